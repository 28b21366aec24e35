"""A study of segmentations on two data sets, trained for real, from its file to its report; what is refused of it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from orchestrator.analysis.results import load_results
from orchestrator.analysis.segmentation.by_data_set import score_data_sets
from orchestrator.analysis.segmentation.cases import Cases, find_worst, load_cases
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.sections.segmentation.figures import draw_areas, draw_score
from orchestrator.report.sections.segmentation.section import SCORE
from orchestrator.report.write import write_report
from orchestrator.study.study_file import load_study
from tests.support.organs_study import TEXT
from trainables.errors import StudyError
from trainables.evaluation.confidence import find_title
from trainables.evaluation.segmentation.judged import measure_dice


@pytest.fixture(scope="module")
def ledger(organs: Path) -> Ledger:
    return Ledger(str(organs), "organs")


@pytest.fixture(scope="module")
def cases(ledger: Ledger) -> Cases:
    found = load_cases(load_results(ledger), ledger, "trained_on=ct")
    assert found is not None
    return found


def test_the_plan_counts_the_test_images_of_each_data_set(ledger: Ledger) -> None:
    data = ledger.read_plan()["data"]
    assert {name: each["num_images"] for name, each in data["components"].items()} == {"ct": 4, "us": 4}
    assert data["num_images"]["test"] == 8


def test_the_report_is_about_pixels(ledger: Ledger, cache_dir: Path) -> None:
    report = write_report(ledger, cache_dir=cache_dir)
    assert "no arm is chosen" in report.summary
    page = (Path(report.html)).read_text()
    text = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)))
    sections = re.findall(r'<section id="([^"]+)">', page)
    assert {"segmentation", "failures", "foreign", "arms"} <= set(sections)
    assert not {"transfer", "trade-off", "spread", "effects", "balanced", "representations"} & set(sections)
    for words in ("Dice", "figure-dice-score", "figure-areas", "figure-data-sets"):
        assert words in page
    for words in ("· ρ", "sens. ", "spec. ", "Errors: green found", "Arms are trained on different data sets"):
        assert words in text
    for words in ("alanced accuracy", "Chance is", "class 1", "one validation image in five"):
        assert words not in text


def test_scores_of_data_sets_are_those_of_the_trials(ledger: Ledger) -> None:
    results = load_results(ledger)
    found = score_data_sets(results)
    assert found is not None
    assert set(found.data_sets) == {"ct", "us"}
    for arm in found.arms:
        trials = [each["signature"] for each in ledger.read_plan()["trials"] if each["name"] == arm]
        metrics = [json.loads(ledger.folder("trial", signature).read("result.json"))["metrics"] for signature in trials]
        for name in ("dice", "band_ece"):
            expected = np.mean([each[f"dataset/us/{name}"] for each in metrics])
            assert found.scores[arm, "us", name].mean == pytest.approx(expected)


def test_the_worst_cases_of_all_sets_come_first(ledger: Ledger, cases: Cases, cache_dir: Path) -> None:
    """The arm is tested on the data set that it is trained on, and on the other as an external set."""
    worst = find_worst(load_results(ledger), cases, cache_dir, number=5)
    every = np.concatenate([measure_dice(stored) for stored in cases.sets])
    assert [each.dice for each in worst] == pytest.approx(np.sort(every[~np.isnan(every)])[:5])
    assert {each.set_name for each in worst} <= {"ct", "us"}
    assert all(each.predicted.shape == each.target.shape == each.image.shape[1:] for each in worst)


def test_figures_of_cases_have_a_colour_per_data_set(cases: Cases) -> None:
    for figure in (draw_areas(cases, ["us", "ct"]), draw_score(cases, SCORE, find_title(SCORE), ["us", "ct"])):
        assert figure is not None
        dots = {trace["name"]: trace for trace in figure.data}
        assert {name: len(trace["x"]) for name, trace in dots.items()} == {"ct": 4, "us": 4}
        assert dots["ct"]["marker"]["color"] != dots["us"]["marker"]["color"]


def test_what_classifications_alone_have_is_refused(ledger: Ledger) -> None:
    with pytest.raises(StudyError, match="a study of segmentation, by the metric 'auroc'; expected one of dice"):
        load_results(ledger, "auroc")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("failure/predictive_entropy.foreground/augrc", None),
        ("failure/predictive_entropy.foreground/mean_shifted_augrc", None),
        ("ood/spectral_signature/digits/auroc", None),
        ("dataset/us/band_ece", None),
        ("failure/predictive_entropy/augrc", "segmentations have no score 'predictive_entropy'"),
        ("failure/confidnet/augrc", "segmentations have no score 'confidnet'"),
        ("failure/spectral_signature/mean_shifted_augrc", "computed of unshifted images alone"),
        ("ood/spectral_signature.encoder/digits/auroc", "segmentations have no score"),
        ("ood/knn/organs/auroc", "there is no set 'organs'"),
        ("representation/effective_rank", "task is segmentation"),
        ("id/balanced_accuracy", "a metric of one class per image"),
        ("dataset/mr/dice", "there are ct, us"),
    ],
)
def test_metrics_are_looked_up_before_anything_runs(
    metric: str, message: str | None, tmp_path: Path, cache_dir: Path
) -> None:
    text = TEXT.replace("CACHE", str(cache_dir)).replace("replicates: 2", "replicates: 6")
    text = text.replace("over: shifts, metric: robustness/mean_dice", f"metric: {metric}")
    if metric.rpartition("/")[2].endswith(("augrc", "ece")):
        text = text.replace("direction: higher", "direction: lower")
    (tmp_path / "s.yaml").write_text(text)
    study = load_study(tmp_path / "s.yaml")
    if message is None:
        prepare(study, storage=str(tmp_path))
        return
    with pytest.raises(StudyError, match=f"metric: found '{metric}'.*{message}"):
        prepare(study, storage=str(tmp_path))
