"""The page that compares studies, and the command that writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from typer.testing import CliRunner

from orchestrator.analysis.comparison.compare import compare_studies
from orchestrator.cli.main import app
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.comparison.write import TABLES, write_comparison
from orchestrator.report.page import read_figures
from tests.support.synthetic_ledger import Fate, make_fake_ledger
from trainables.config import TrainingConfig, TrialConfig
from trainables.data_config import DigitsData
from trainables.errors import StudyError

LONGER = TrialConfig(data=DigitsData(), training=TrainingConfig(epochs=30))


def make_named(folder: Path, study: str, **options: Any) -> None:
    """Write a study that can be found by its name."""
    ledger = make_fake_ledger(folder, study=study, **options)
    plan = ledger.read_plan()
    plan["base"]["study"] = study
    ledger.root.write_json("plan.json", plan)


def text_of(page: str) -> str:
    body = page[page.index("<main") : page.index("</main>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_page_shows_figure_arms_differences_and_what_is_left_out(tmp_path: Path) -> None:
    ledgers = [
        make_fake_ledger(tmp_path, study="<b>short", replicates=5),
        make_fake_ledger(tmp_path, study="long", replicates=5, config=LONGER, fate=Fate(failed=1)),
    ]
    paths = write_comparison(compare_studies(ledgers), str(tmp_path / "out"))
    assert [Path(path).name for path in paths] == ["index.html", *TABLES]
    page = Path(paths[0]).read_text(encoding="utf-8")
    text = text_of(page)
    assert "<b>short" not in page
    assert "How do &lt;b&gt;short and long compare?" in page
    assert "12 arms paired over replicates." in text
    assert "Exploratory: this comparison was made after the results." in text
    assert "1 of 120 trials are not complete." in text
    assert not re.search(r"supported|contradicted|undecided|verdict", text, re.IGNORECASE)
    (figure,) = read_figures(page).values()
    go.Figure(figure)  # raises on an attribute that Plotly does not know
    arms = pd.read_csv(tmp_path / "out" / "arms.csv", keep_default_na=False)
    (large,) = [trace for trace in figure["data"] if trace.get("name") == "mean over shifts"]
    assert sorted(large["x"]) == pytest.approx(sorted(arms["common_mean.mean"]), abs=1e-6)
    assert "n ≤ 5" in page
    assert "Content-Security-Policy" in page
    trials = pd.read_csv(tmp_path / "out" / "trials.csv", keep_default_na=False)
    assert len(trials) == 119
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    assert len(pairs) == 3 * 12
    assert pairs["low"].notna().sum() == 3 * 11  # with 4 replicates there is no interval


def test_what_a_pretraining_may_have_seen_is_said_of_its_arms_and_their_differences(tmp_path: Path) -> None:
    factors = {"augmentation": ("none", "strong")}
    ledgers = [make_fake_ledger(tmp_path, study=name, factors=factors) for name in ("a", "b")]
    remark = "transductive: a pretraining may have seen these <images>"
    ledgers[1].root.write_json("plan.json", ledgers[1].read_plan() | {"remarks": {"augmentation=strong": [remark]}})
    page = Path(write_comparison(compare_studies(ledgers), str(tmp_path / "out"))[0]).read_text(encoding="utf-8")
    assert "Transductive: a pretraining may have seen these &lt;images&gt;.<ul><li>b · strong</li></ul>" in page
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv", keep_default_na=False)
    assert {(first, said) for first, said in zip(pairs["first"], pairs["remarks"], strict=True)} == {
        ("a · none", ""), ("a · strong", remark)
    }  # fmt: skip


def test_page_of_studies_on_other_images_says_why_nothing_is_tested(tmp_path: Path) -> None:
    ledgers = [
        make_fake_ledger(tmp_path, study="a", replicates=6),
        make_fake_ledger(tmp_path, study="b", replicates=6, fingerprint="0" * 16),
    ]
    page = Path(write_comparison(compare_studies(ledgers), str(tmp_path / "out"))[0]).read_text(encoding="utf-8")
    text = text_of(page)
    assert "12 not paired: different images, or another split or size of them." in text
    assert "p, Holm" not in text
    assert "fingerprint of the data" in text


def train_on(ledger: Ledger, *names: str, arm: str) -> None:
    """Make an arm one that was trained on some of two data sets, which changes its images."""
    for trial in ledger.read_plan()["trials"]:
        if trial["name"] == arm:
            folder = ledger.folder("trial", trial["signature"])
            stored = folder.read_json("config.json")
            stored["config"]["data"] |= {"datasets": {"ct": {}, "us": {}}, "train_on": [*names]}
            folder.write_json("config.json", stored | {"data_fingerprint": "".join(names)})


def test_arms_that_are_trained_on_different_data_sets_are_named_and_not_ranked(tmp_path: Path) -> None:
    factors = {"trained_on": ("ct", "both")}
    ledgers = [make_fake_ledger(tmp_path, study=name, factors=factors, replicates=6) for name in ("a", "b")]
    for ledger in ledgers:
        train_on(ledger, "ct", arm="trained_on=ct")
    page = Path(write_comparison(compare_studies(ledgers), str(tmp_path / "same"))[0]).read_text(encoding="utf-8")
    assert "trained on different data sets" not in page  # of one the images of the other arms are not known
    for ledger in ledgers:
        train_on(ledger, "ct", "us", arm="trained_on=both")
    compared = compare_studies(ledgers, named=[("ct", "both")])
    page = Path(write_comparison(compared, str(tmp_path / "out"))[0]).read_text(encoding="utf-8")
    text = text_of(page)
    assert "Arms are trained on different data sets (data.train_on), and their validation, test and shifted" in text
    assert "(ct: a · ct; b · ct; ct and us: a · both; b · both)." in text
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv", keep_default_na=False)
    over = dict(zip(pairs["first"] + " " + pairs["second"], pairs["over"], strict=True))
    assert over["a · ct b · both"] == "not paired: different images, or another split or size of them"
    assert not over["a · ct b · ct"].startswith("not paired: different images")
    rows = re.findall(r"<tr>.*?</tr>", page[page.index('id="arms"') : page.index('id="pairs"')], re.DOTALL)
    assert {"both" in row for row in rows if ' best"' in row} == {True, False}  # one of each set of images


def test_the_command_prints_paths_and_takes_pairs(tmp_path: Path) -> None:
    make_named(tmp_path, "a", factors={"augmentation": ("none", "strong")})
    make_named(tmp_path, "b", factors={"augmentation": ("off", "on")}, config=LONGER)
    out = tmp_path / "out"
    words = ["compare", "a", "b", "--storage", str(tmp_path), "--out", str(out), "--metric", "auroc"]
    done = CliRunner().invoke(app, [*words, "--pair", "none vs off", "--pair", "strong vs on"])
    assert done.exit_code == 0, done.output
    assert [line for line in done.stdout.splitlines() if "out" in line] == [
        str(out / name) for name in ("index.html", *TABLES)
    ]
    pairs = pd.read_csv(out / "pairs.csv")
    assert list(pairs["second"].unique()) == ["b · off", "b · on"]
    assert "AUROC" in (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "found only a; expected two or more"),
        (["a", "nobody"], "no study of that name"),
        (["a", "a"], "is named twice"),
        (["a", "b", "--metric", "f1"], "metric 'f1'"),
        (["a", "b", "--pair", "none vs none"], "looked for the arm 'none'"),
        (["a", "b", "--pair", "none"], "expected two arms with vs between them"),
    ],
)
def test_a_wrong_request_is_one_error_and_nothing_is_written(tmp_path: Path, words: list[str], message: str) -> None:
    for study in ("a", "b"):
        make_named(tmp_path, study, replicates=1)
    done = CliRunner().invoke(app, ["compare", *words, "--storage", str(tmp_path), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, StudyError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()
