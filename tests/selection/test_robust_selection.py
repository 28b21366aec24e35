"""Choosing an arm on shifted validation images, and what the report says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.results import Results, load_results
from orchestrator.analysis.tables.arms import arms_table
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.sections.answer import answer
from orchestrator.selection.ranking import SelectionCriteria, select_arm
from orchestrator.selection.select_model import describe_selection
from tests.report.test_write import figures_of, render
from tests.support.synthetic_ledger import SHIFTS, make_fake_ledger
from trainables.errors import StudyError

COLUMN = "validation/robustness/mean_balanced_accuracy"
UNUSED = "robustness/mean_unused_balanced_accuracy"
NOISES = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"}
#: Arm → balanced accuracy on validation, on validation under Gaussian noise, and on test under noises and others.
VALUES = {
    "clean": (0.90, 0.50, 0.50, 0.60),
    "robust": (0.80, 0.70, 0.75, 0.66),
    "oracle": (0.70, 0.60, 0.55, 0.68),
}


def make_ledger(folder: Path, shifts: tuple[str, ...] = ("gaussian_noise",)) -> Ledger:
    ledger = make_fake_ledger(folder, factors={"augmentation": tuple(VALUES)})
    for trial in ledger.read_plan()["trials"]:
        stored = ledger.folder("trial", trial["signature"])
        result = stored.read_json("result.json")
        set_values(result, *VALUES[trial["arm"]["augmentation"]], shifts)
        stored.write_json("result.json", result)
    return ledger


def set_values(
    result: dict[str, Any], clean: float, val: float, noise: float, other: float, shifts: tuple[str, ...]
) -> None:
    for row in result["evaluations"]:
        if row["set"] == "val":
            row["metrics"]["balanced_accuracy"] = clean
        elif row["set"] == "test" and row["severity"]:
            row["metrics"]["balanced_accuracy"] = noise if row["shift"] in NOISES else other
    about = {"set": "val", "severity": 3, "strength": 0.1, "num_images": 357}
    result["evaluations"] += [about | {"shift": name, "metrics": {"balanced_accuracy": val}} for name in shifts]
    result["metrics"] |= {COLUMN: val, "robustness/mean_balanced_accuracy": (4 * noise + 10 * other) / 14}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return load_results(make_ledger(tmp_path))


def test_shifted_validation_chooses_without_being_an_oracle(results: Results) -> None:
    assert select_arm(results, SelectionCriteria()).arm.label == "clean"
    chosen = select_arm(results, SelectionCriteria(by=COLUMN))
    assert (chosen.arm.label, chosen.arm.mean, chosen.column, chosen.oracle) == ("robust", 0.7, COLUMN, False)
    assert chosen.label == "robust"
    said = "\n".join(describe_selection(chosen, results))
    assert f"arms by {COLUMN} (in-distribution validation, shifted (evaluation.validation_shifts)), mean" in said
    with pytest.raises(StudyError, match="is in-distribution validation, which is no oracle"):
        select_arm(results, SelectionCriteria(by=COLUMN, oracle=True))
    with pytest.raises(StudyError, match=f"{UNUSED} is not in-distribution validation.*add --oracle"):
        select_arm(results, SelectionCriteria(by=UNUSED))
    assert select_arm(results, SelectionCriteria(by=UNUSED, oracle=True)).label == "oracle (oracle)"


def test_a_study_without_shifted_validation_says_so(tmp_path: Path) -> None:
    plain = load_results(make_fake_ledger(tmp_path))
    with pytest.raises(StudyError, match=r"no shifted validation images: evaluation\.validation_shifts is empty"):
        select_arm(plain, SelectionCriteria(by=COLUMN))
    assert not plain.used_types
    assert UNUSED not in plain.trials
    assert "Used for selection" not in render(make_fake_ledger(tmp_path / "page"), tmp_path)[1]


def test_the_mean_over_shifts_that_were_not_used_comes_first(results: Results) -> None:
    assert results.used_types == NOISES  # the others are of the kind of the one that was applied
    by_arm = results.trials.groupby("name")[UNUSED].mean()
    assert sorted(by_arm) == pytest.approx([0.60, 0.66, 0.68])
    listed = [measure.column for measure in results.measures]
    assert listed.index(UNUSED) < listed.index("robustness/mean_balanced_accuracy")
    assert listed.index("val/balanced_accuracy") < listed.index(COLUMN) < listed.index(UNUSED)


def test_the_answer_says_what_it_wins_back_under_shifts_that_did_not_choose(results: Results) -> None:
    words = answer(results, arms_table(results), [])
    clean, shifted, oracle = words.statements
    assert (clean.headline, shifted.headline) == ("clean", "robust")
    assert shifted.heading == "Chosen on shifted validation"
    text = shifted.text.replace("\u00a0", " ")
    assert "Mean balanced accuracy on shifted validation images 70.0 ± 0.0 % (n = 2)." in text
    assert (
        "Under the 10 shift types not used for the choice 66.0 ± 0.0 %; the best in hindsight there is oracle" in text
    )
    assert "unshifted validation gave up 8.0 points of it; choosing on shifted validation won back 6.0 of them." in text
    assert "(oracle)" in oracle.heading


def test_a_choice_that_has_used_every_shift_is_not_judged(tmp_path: Path) -> None:
    results = load_results(make_ledger(tmp_path, tuple(SHIFTS)))
    assert results.used_types == set(SHIFTS)
    assert UNUSED not in results.trials
    words = answer(results, arms_table(results), [])
    assert "Every shift of the test set was used for the choice" in words.statements[1].text


def test_figures_mark_shifts_that_were_used(tmp_path: Path) -> None:
    _, page = render(make_ledger(tmp_path), tmp_path)
    heat = figures_of(page)["figure-heat"]
    names = heat["data"][0]["x"]
    assert {name for name in names if name.endswith(" †")} == {f"{name.replace('_', ' ')} †" for name in NOISES}
    assert page.count("† Used for selection: it, or a shift of its kind, was applied to validation images") >= 2
    assert "not used for selection" in page
