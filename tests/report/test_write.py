import hashlib
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from orchestrator.analysis.wording import flatten
from orchestrator.ledger.derived import Report, Source, compute_state, read_report
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.examples import build_examples
from orchestrator.report.page import pack, read_figures, unpack
from orchestrator.report.write import write_report
from tests.support.synthetic_ledger import Fate, make_fake_ledger
from trainables.config import EvaluationConfig, TrialConfig
from trainables.data_config import CsvData, DigitsData


def render(ledger: Ledger, tmp_path: Path, **options: Any) -> tuple[Report, str]:
    report = write_report(ledger, cache_dir=tmp_path / "cache", **({"examples": False} | options))
    return report, Path(report.html).read_text(encoding="utf-8")


def without_scripts(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def figures_of(page: str) -> dict[str, Any]:
    return read_figures(page)


class Links(HTMLParser):
    """Collects everything a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"src", "srcset"} if tag != "link" else {"href"}
        self.loaded += [str(value) for name, value in attrs if name in wanted]


def test_report_of_a_partial_study_is_complete_about_what_is_missing(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, fate=Fate(failed=1, interrupted=1, missing=1))
    report, page = render(ledger, tmp_path)
    assert report.counts == {"planned": 24, "complete": 21, "failed": 1, "interrupted": 1, "missing": 1}
    assert "3 of 24 trials are not complete" in page
    assert "Left out: 1 arm of 2 trials: no weights file (" in page
    assert "diverged: the training loss became nan" in page
    assert "scan_0412.png (row 413)" in page
    assert "the file is truncated" in page
    assert report.results_sha256 in page
    assert report.summary.startswith("24 planned, 21 complete, 1 failed, 1 interrupted, 1 missing")


def test_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    _, page = render(make_fake_ledger(tmp_path), tmp_path)
    links = Links()
    links.feed(without_scripts(page))
    assert all(link.startswith("data:") for link in links.loaded)
    assert "default-src 'none'" in page
    packed = re.search(r'id="packed-plotly">([^<]*)</script>', page)
    assert packed is not None
    assert "plotly.js v" in unpack(packed[1])[:200]


def test_page_of_a_study_of_the_quickstarts_size_is_below_two_megabytes(tmp_path: Path) -> None:
    config = TrialConfig(data=DigitsData(image_size=32), evaluation=EvaluationConfig(severities=(2, 4)))
    report, page = render(make_fake_ledger(tmp_path, replicates=6, config=config), tmp_path, examples=True)
    assert report.counts["complete"] == 72
    assert page.count("data:image/png") >= 2 * 15
    assert len(Path(report.html).read_bytes()) < 2_000_000


def test_what_is_packed_survives_in_a_script() -> None:
    text = "".join(map(chr, np.random.default_rng(0).integers(32, 0x2FFF, 20_000)))
    packed = pack(text)
    assert unpack(packed) == text
    assert {ord(each) & 127 for each in packed} == set(range(128))  # everything that could go wrong is in it
    assert not set(packed) & set("\0\r<\x1a\x1b")
    assert len(packed.encode()) < 1.2 * len(zlib.compress(text.encode(), 9))
    assert [unpack(pack("x" * length)) for length in range(20)] == ["x" * length for length in range(20)]


def test_every_figure_is_valid_plotly_and_states_its_question_and_n(tmp_path: Path) -> None:
    _, page = render(make_fake_ledger(tmp_path), tmp_path)
    figures = figures_of(page)
    assert {"figure-effects", "figure-heat", "figure-severity-0", "figure-transfer", "figure-training"} <= set(figures)
    for figure in figures.values():
        go.Figure(figure)  # raises on an attribute that Plotly does not know
    captions = re.findall(r'<figcaption><h3>(.*?)</h3><p class="note">(.*?)</p>', page)
    assert len(captions) == len(figures)
    assert all(title.endswith("?") and re.search(r"n [=≤] \d", text) for title, text in captions)


def test_heat_map_is_the_mean_over_severities(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path)
    _, page = render(ledger, tmp_path)
    heat = figures_of(page)["figure-heat"]["data"][0]
    shifts = pd.read_csv(Path(ledger.root.uri) / "report" / "shifts.csv", keep_default_na=False)
    rows = shifts[(shifts["shift"] == "jpeg") & (shifts["set"] == "test")]
    means = rows.groupby("name", sort=False)["balanced_accuracy"].mean()
    column = [row[heat["x"].index("jpeg")] for row in heat["z"]]
    assert sorted(column) == pytest.approx(sorted(means))
    assert len(heat["y"]) == 12


def test_csv_files_hold_the_tables(tmp_path: Path) -> None:
    report, _ = render(make_fake_ledger(tmp_path, fate=Fate(missing=2)), tmp_path)
    tables = {Path(path).name: pd.read_csv(path, keep_default_na=False) for path in report.csv}
    assert {name: len(table) for name, table in tables.items() if name != "shifts.csv"} == {
        "trials.csv": 24,
        "arms.csv": 12,
        "effects.csv": 4 * 8,
        "balanced_errors.csv": 12,
        "failure_detection.csv": 0,  # these trials store no scores
        "costs.csv": 12,
        "verdicts.csv": 0,
    }
    assert list(tables["trials.csv"]["state"]).count("missing") == 2


def test_arm_without_a_complete_trial_is_shown_and_never_chosen(tmp_path: Path) -> None:
    factors = {"augmentation": ("none", "randaugment", "strong")}
    ledger = make_fake_ledger(tmp_path, factors=factors, replicates=1, fate=Fate(failed=2))
    report, page = render(ledger, tmp_path)
    assert "Chosen on in-distribution validation: none." in report.summary
    assert "randaugment" in without_scripts(page)
    assert "0 replicates: at least 5 for an interval; 1 planned pair is missing" in page


@pytest.mark.parametrize("fate", [Fate(failed=24), Fate(interrupted=24), Fate(missing=24)])
def test_study_without_a_complete_trial_says_so(tmp_path: Path, fate: Fate) -> None:
    report, page = render(make_fake_ledger(tmp_path, fate=fate), tmp_path, examples=fate.missing == 24)
    assert report.counts["complete"] == 0
    assert "No trial is complete" in report.summary
    assert "No trial is complete" in page
    assert "figure-heat" not in page


def test_one_arm_with_one_replicate_has_neither_deviation_nor_effects(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, factors={}, replicates=1, externals=())
    report, page = render(ledger, tmp_path)
    assert "(n\u00a0=\u00a01)" in report.summary
    assert "±" not in report.summary
    assert 'id="effects"' not in page
    assert "there is no standard deviation" in page


def test_many_arms_are_limited_in_the_curves_and_the_page_says_so(tmp_path: Path) -> None:
    factors = {"a": [str(i) for i in range(10)], "b": [str(i) for i in range(5)]}
    _, page = render(make_fake_ledger(tmp_path, factors=factors, replicates=1), tmp_path)
    assert "8 of 50 are drawn; click the legend for 16 more; the other 26 are in shifts.csv." in page
    assert len(figures_of(page)["figure-heat"]["data"][0]["y"]) == 50


def test_undefined_metrics_are_left_out_and_listed(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path)
    for trial in ledger.read_plan()["trials"]:
        folder = ledger.folder("trial", trial["signature"])
        result = folder.read_json("result.json")
        for evaluation in result["evaluations"]:
            del evaluation["metrics"]["auroc"]
        result["metrics"] = {name: value for name, value in result["metrics"].items() if "auroc" not in name}
        result["undefined"] = {"id/auroc": "only one class in the test set"}
        folder.write_json("result.json", result)
    _, page = render(ledger, tmp_path)
    assert "id/auroc in 24 of 24 trials" in page
    assert "only one class in the test set" in page
    report, _ = render(ledger, tmp_path, metric="auroc")
    assert "no arm can be chosen by it" in report.summary


def test_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    factors = {f"f{evil.replace('/', '')}": ("none", evil)}
    _, page = render(make_fake_ledger(tmp_path, factors=factors, question=evil), tmp_path)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_a_report_of_the_same_ledger_is_the_same_file(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    assert render(ledger, tmp_path) == render(ledger, tmp_path)


def test_report_is_written_to_any_storage() -> None:
    ledger = make_fake_ledger(Path("unused"), replicates=1, storage_uri="memory://report-test")
    report = write_report(ledger, cache_dir=Path("unused"), examples=False)
    assert report.html.startswith("memory://")
    assert ledger.root.exists("report/index.html")


def test_examples_show_every_shift_of_the_study_as_evaluated(tmp_path: Path) -> None:
    config = TrialConfig(evaluation=EvaluationConfig(shifts=("gaussian_noise", "jpeg"), severities=(1, 3)))
    examples = build_examples(config, cache_dir=tmp_path / "cache")
    assert list(examples.rows) == ["gaussian_noise", "jpeg"]
    assert examples.severities == (1, 3)
    images = {png for cells in examples.rows.values() for png, _ in cells} | {examples.original}
    assert len(images) == 5
    assert all(png.startswith(b"\x89PNG") for png in images)
    _, page = render(make_fake_ledger(tmp_path, config=config), tmp_path, examples=True)
    assert without_scripts(page).count("data:image/png;base64") == 2 * 2 + 2


def test_images_that_have_moved_cost_the_examples_and_not_the_report(tmp_path: Path) -> None:
    config = TrialConfig(data=CsvData(path=tmp_path / "gone.csv"))
    _, page = render(make_fake_ledger(tmp_path, config=config), tmp_path, examples=True)
    assert "No examples are shown, because the images could not be had here" in page


def test_trials_of_another_version_cost_the_examples_and_not_the_report(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path)
    for record in ledger.records("trial"):
        folder = ledger.folder("trial", record.signature)
        stored = folder.read_json("config.json")
        folder.write_json("config.json", stored | {"config": stored["config"] | {"schema_version": 1}})
    _, page = render(ledger, tmp_path, examples=True)
    assert "another version of RobustSweep ran the trial" in page


def test_many_trainings_are_thinned_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = make_fake_ledger(tmp_path)
    monkeypatch.setattr("orchestrator.report.curves.MAX_TRAINING_POINTS", 24 * 13 - 1)
    _, page = render(ledger, tmp_path)
    assert "n = 24 trials" in page
    assert "One in 2 trials of each colour is drawn." in page
    traces = [trace for trace in figures_of(page)["figure-training"]["data"] if trace["yaxis"] == "y"]
    assert sum(trace["x"].count(1) for trace in traces) == 12
    monkeypatch.undo()
    _, page = render(ledger, tmp_path)
    assert "of each colour is drawn" not in page


def test_a_report_remembers_what_it_was_made_from(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    report, page = render(ledger, tmp_path)
    source = Source(compute_state(ledger.read_plan(), ledger.states()), "balanced_accuracy", examples=False)
    assert read_report(ledger.root, source) == report
    assert report.page_sha256 == hashlib.sha256(page.encode()).hexdigest()
    for other in (replace(source, metric="auroc"), replace(source, examples=True), replace(source, state="x")):
        assert read_report(ledger.root, other) is None
    Path(report.csv[1]).unlink()
    assert read_report(ledger.root, source) is None


def test_configuration_is_flattened() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": [1]}


def test_numbers_in_figures_are_json_even_where_values_are_missing(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path)
    folder = ledger.folder("trial", ledger.read_plan()["trials"][0]["signature"])
    result = folder.read_json("result.json")
    result["evaluations"] = [e for e in result["evaluations"] if e["shift"] != "jpeg"]
    folder.write_json("result.json", result)
    _, page = render(ledger, tmp_path)
    heat = figures_of(page)["figure-heat"]["data"][0]
    assert np.isfinite([value for row in heat["z"] for value in row if value is not None]).all()


def test_effects_say_what_differs_besides_the_level(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path)
    assert "was not recorded by the version that planned" in render(ledger, tmp_path)[1]
    line = "training.learning_rate: 0.001 (none) / 0.00003 (strong)"
    for levels, expected in (
        ({"augmentation": {"strong": [line]}}, f"augmentation, strong: {line}"),
        ({}, "Between the levels of a factor nothing differs but what they set; not tuning-matched: no setting was"),
    ):
        plan = ledger.read_plan() | {"differences": {"hypotheses": {}, "levels": levels}}
        ledger.root.write_json("plan.json", plan)
        assert expected in render(ledger, tmp_path)[1]


def test_notes_of_the_study_file_are_a_section_of_plain_paragraphs(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    assert 'id="notes"' not in render(ledger, tmp_path)[1]
    plan = ledger.read_plan()
    ledger.root.write_json("plan.json", plan | {"notes": "Site 3 <changed> its scanner.\n\nTwo\nlines.\n"})
    page = render(ledger, tmp_path)[1]
    assert '<p class="notes">Site 3 &lt;changed&gt; its scanner.</p><p class="notes">Two\nlines.</p>' in page
    assert '<a href="#notes">Notes</a>' in page


def test_trainings_of_one_epoch_are_dots(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=1)
    lines = figures_of(render(ledger, tmp_path)[1])["figure-training"]["data"]
    assert {each["mode"] for each in lines} == {"lines"}
    for trial in ledger.read_plan()["trials"]:
        folder = ledger.folder("trial", trial["signature"])
        folder.write("epochs.jsonl", folder.read("epochs.jsonl").splitlines(keepends=True)[0])
    figure = figures_of(render(ledger, tmp_path)[1])["figure-training"]
    assert {each["mode"] for each in figure["data"] if "opacity" in each} == {"markers"}
    assert figure["layout"]["xaxis"]["dtick"] == 1
