"""Results on several data sets: each has its own reference, shifts, ranking and maps, and counts once in a mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.balanced_errors import balanced_errors_table
from orchestrator.analysis.differences import compute_differences
from orchestrator.analysis.effects import compute_effects
from orchestrator.analysis.inference.verdicts import SUPPORTED, Verdict, judge
from orchestrator.analysis.results import load_results
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.checklist import write_checklist
from orchestrator.report.page import read_figures
from orchestrator.report.write import write_report
from orchestrator.selection.ranking import SelectionCriteria, select_arm
from orchestrator.study.hypotheses import Hypothesis
from tests.analysis.test_verdicts import claim, plant, shift_by, version
from tests.study.test_hypotheses import make
from trainables.errors import StudyError

METRIC = "robustness/mean_balanced_accuracy"


def value(arm: Mapping[str, str], replicate: int) -> float:
    """Strong augmentation gains 2 points on blood and 6 on grey; grey is 20 points harder."""
    gain = {"blood": 0.02, "grey": 0.06}[arm["data"]]
    return 0.8 - 0.2 * (arm["data"] == "grey") + 0.001 * replicate + gain * (arm["augmentation"] == "strong")


def plant_two(folder: Path, *, widths: tuple[str, ...] = ("8",), fewer: int = 0) -> Ledger:
    """Return a study on two data sets, of which grey lacks a shift of colours, and perhaps the last replicates."""
    ledger = plant(folder, value, data=("blood", "grey"), augmentation=("none", "strong"), width=widths)
    plan = ledger.read_plan()
    names = {label: [] for label in ("blood", "grey")}  # type: dict[str, list[str]]
    for trial in plan["trials"]:
        names[trial["arm"]["data"]].append(trial["name"])
        if trial["arm"]["data"] == "grey":
            place = ledger.folder("trial", trial["signature"])
            result = place.read_json("result.json")
            result["evaluations"] = [each for each in result["evaluations"] if each["shift"] != "saturation"]
            place.write_json("result.json", result)
    about = {
        label: {
            **plan["data"],
            "name": f"{label}mnist",
            "classes": [*["a", "b"][:number], "c"],
            "num_images": plan["data"]["num_images"] | {"test": 100 * number},
            "arms": list(dict.fromkeys(names[label])),
        }
        for number, label in enumerate(names, start=1)
    }
    more: dict[str, Any] = {"data_sets": about, "reference": {"arms": {k: v["arms"][0] for k, v in about.items()}}}
    planned = [trial for trial in plan["trials"] if trial["arm"]["data"] == "blood" or trial["replicate"] < 6 - fewer]
    ledger.root.write_json("plan.json", plan | more | {"trials": planned})
    return ledger


def verdict_of(ledger: Ledger, hypothesis: Hypothesis) -> Verdict:
    (verdict,) = judge(load_results(claim(ledger, version(hypothesis))))
    return verdict


def test_a_verdict_over_data_sets_says_how_many_and_counts_each_once(tmp_path: Path) -> None:
    ledger = plant_two(tmp_path, widths=("8", "16"))
    plan = ledger.read_plan()  # blood has one width left
    kept = [trial for trial in plan["trials"] if (trial["arm"]["data"], trial["arm"]["width"]) != ("blood", "16")]
    ledger.root.write_json("plan.json", plan | {"trials": kept})
    verdict = verdict_of(ledger, make())
    assert verdict.evidence.effect == pytest.approx((0.02 + 0.06) / 2)
    assert (verdict.evidence.units, verdict.evidence.num_planned) == ("6 replicates", 18)
    assert verdict.verdict == SUPPORTED
    assert verdict.evidence.scope is not None
    said = verdict.evidence.scope.describe()
    assert said.startswith("36 trained models, 2 data sets, 300 test images of 360 patients at 4 sites")
    one = verdict_of(ledger, make(where={"data": "grey"})).evidence.scope
    assert one is not None
    assert one.describe().startswith("24 trained models, 200 test images of 180 patients")
    (effect,) = [each for each in compute_effects(load_results(ledger), METRIC) if each.factor == "augmentation"]
    assert effect.difference == pytest.approx(0.04)


def test_replicates_that_only_some_data_sets_have_are_left_out(tmp_path: Path) -> None:
    ledger = plant_two(tmp_path, fewer=1)
    verdict = verdict_of(ledger, make(smallest_effect=0.0))
    assert verdict.evidence.units == "5 replicates that all arms have"
    assert (verdict.evidence.num_planned, verdict.evidence.num_missing) == (10, 0)
    assert verdict.evidence.means["control"] == pytest.approx(0.7 + 0.001 * 2)
    assert verdict_of(ledger, make(where={"data": "blood"})).evidence.units == "6 replicates"
    assert compute_effects(load_results(ledger), METRIC)[0].num_replicates == 5


def test_levels_on_different_data_sets_are_no_effect(tmp_path: Path) -> None:
    results = load_results(plant_two(tmp_path))
    assert {each.factor for each in compute_effects(results, METRIC)} == {"augmentation"}


def test_each_data_set_has_means_over_its_own_shifts(tmp_path: Path) -> None:
    def change(arm: Mapping[str, str], shift: str, severity: int) -> float:
        return 0.07 * (shift == "saturation") * (arm["augmentation"] == "strong")

    ledger = shift_by(plant_two(tmp_path), change)
    results = load_results(ledger)
    colours = [kind for kind in results.families["colour"] if kind != "saturation"]
    assert colours
    assert results.trials["family/colour/balanced_accuracy"].notna().all()
    evidence = verdict_of(ledger, make(metric="family/colour/balanced_accuracy")).evidence
    assert evidence.effect == pytest.approx((0.02 + 0.07 / (len(colours) + 1) + 0.06) / 2)
    assert verdict_of(ledger, make(metric="slope/colour/accuracy")).evidence.num_missing == 0


def test_balanced_errors_are_relative_to_the_reference_on_the_same_data_set(tmp_path: Path) -> None:
    ledger = plant_two(tmp_path)
    table = balanced_errors_table(load_results(ledger)).set_index("name")
    assert table["data_set"].tolist() == ["blood", "blood", "grey", "grey"]
    assert table["be"].iloc[[0, 2]].tolist() == pytest.approx([1.0, 1.0])
    assert table["be"].iloc[1] == pytest.approx(1 - 0.02 / 0.195, abs=0.01)
    assert table["be"].iloc[3] == pytest.approx(1 - 0.06 / 0.395, abs=0.01)
    assert table["be_shifts"].tolist() == [14, 14, 13, 13]
    evidence = verdict_of(ledger, make(metric="be/mean", direction="lower")).evidence
    assert evidence.effect == pytest.approx(float(table["be"].iloc[[1, 3]].mean()) - 1)
    assert evidence.means["control"] == pytest.approx(1.0)


def test_maps_and_choices_are_within_a_data_set(tmp_path: Path) -> None:
    ledger = plant_two(tmp_path)
    results = load_results(ledger)
    grey = results.select_data_set("grey")
    found = compute_differences(grey)
    assert found is not None
    assert (found.reference, list(found.mean.index)) == (
        "data=grey, augmentation=none, width=8", ["data=grey, augmentation=strong, width=8"],
    )  # fmt: skip
    assert "saturation" not in found.mean
    assert select_arm(grey, SelectionCriteria()).arm.label == "strong"
    with pytest.raises(StudyError, match="--data-set with one of blood, grey"):
        select_arm(results, SelectionCriteria())
    with pytest.raises(StudyError, match="looked for the data set 'x', and the study has blood, grey"):
        results.select_data_set("x")


def test_the_report_has_a_part_for_each_data_set(tmp_path: Path) -> None:
    ledger = claim(plant_two(tmp_path), version(make()))
    report = write_report(ledger, cache_dir=tmp_path, examples=False)
    page = (tmp_path / "fake-study" / "report" / "index.html").read_text()
    identifiers = re.findall(r'<section id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert {"verdicts", "effects-0", "answer-1", "answer-2", "shifts-1", "shifts-2", "balanced-2", "left-out"} <= set(
        identifiers
    )
    figures = read_figures(page)
    assert {"figure-1-heat", "figure-2-heat"} <= set(figures)
    assert sorted(re.findall(r'data-figure="([^"]+)"', page)) == sorted(figures)
    assert "blood: bloodmnist, 2 classes; images: 1,080 train, 357 val, 100 test" in page
    assert "grey: Chosen on in-distribution validation: strong." in report.summary
    assert "2 data sets" in report.summary
    write_checklist(ledger, "tripod-ai")
    checklist = (tmp_path / "fake-study" / "report" / "checklist-tripod-ai.md").read_text()
    assert "grey: greymnist (digits) ([plan.json](../plan.json) `data_sets.grey`)" in checklist
    assert "blood: train 1,080 images, val 357 images, test 100 images" in checklist
    assert "index.html#arms-1" in checklist or "arms.csv" in checklist
