from dataclasses import replace

import numpy as np
import pytest

from orchestrator.analysis.inference.over_patients import add_patient_intervals
from orchestrator.analysis.inference.verdicts import NOT_ENOUGH, Verdict, judge, verdicts_table
from orchestrator.analysis.predictions.patients import Measurement, PatientAssessment, assess_patients
from orchestrator.analysis.results import load_results
from orchestrator.ledger.ledger import Ledger
from orchestrator.statistics.patient_variance import compute_interval, estimate_components_of_means
from tests.analysis.test_verdicts import version
from tests.study.test_hypotheses import make
from tests.support.synthetic_ledger import make_fake_ledger
from trainables.errors import StudyError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.predictions import Predictions, load_predictions, save_predictions

REPLICATES, PATIENTS = 6, 300
CELLS = ("identity/0", "gaussian_noise/1", "gaussian_noise/5")
LABELS = np.repeat(np.arange(PATIENTS) % 2, 2)
GROUPS = np.repeat(np.arange(PATIENTS), 2)  # two images of each patient


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """Two arms × six replicates whose predictions are made up."""
    made = make_fake_ledger(
        tmp_path_factory.mktemp("ledger"), factors={"augmentation": ("none", "strong")}, replicates=REPLICATES
    )
    random = np.random.default_rng(0)
    hard = np.repeat(random.normal(size=PATIENTS), 2)
    for trial in made.read_plan()["trials"]:
        better = 0.5 * (trial["arm"]["augmentation"] == "strong") + 0.1 * random.normal()
        noise = random.normal(size=(len(CELLS), len(LABELS)))
        margin = (2 * LABELS - 1) * (0.6 + better) + hard + noise
        logits = np.stack([-margin / 2, margin / 2], axis=2).astype(np.float32)
        ids = np.arange(len(LABELS)).astype(str)
        predictions = Predictions("test", ids, LABELS, CELLS, logits, groups=GROUPS)
        save_predictions(made.folder("trial", trial["signature"]), predictions)
    return made


def _side(ledger: Ledger, level: str) -> list[list[str]]:
    trials = [trial for trial in ledger.read_plan()["trials"] if trial["arm"]["augmentation"] == level]
    return [[trial["signature"]] for trial in sorted(trials, key=lambda trial: trial["replicate"])]


def _assess(ledger: Ledger, measurement: Measurement) -> PatientAssessment:
    return assess_patients(ledger, _side(ledger, "strong"), _side(ledger, "none"), measurement)


def _values(ledger: Ledger, level: str, cell: str, metric: str) -> np.ndarray:
    found = [load_predictions(ledger.folder("trial", trials[0]), "test") for trials in _side(ledger, level)]
    return np.array([compute_metrics(each.of(cell), each.labels).values[metric] for each in found])


def test_interval_of_accuracy_is_that_of_the_images_differences(ledger: Ledger) -> None:
    right = {
        level: np.stack(
            [
                load_predictions(ledger.folder("trial", trials[0]), "test").of("identity/0").argmax(axis=1) == LABELS
                for trials in _side(ledger, level)
            ]
        ).astype(float)
        for level in ("none", "strong")
    }
    found = _assess(ledger, Measurement("accuracy"))
    assert found.interval is not None
    assert (found.num_replicates, found.num_patients) == (REPLICATES, PATIENTS)
    expected = compute_interval(estimate_components_of_means(right["strong"] - right["none"], GROUPS))
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("metric", ["balanced_accuracy", "auroc"])
def test_centre_is_the_difference_of_the_stored_metric_and_patients_widen_the_interval(
    ledger: Ledger, metric: str
) -> None:
    differences = _values(ledger, "strong", "identity/0", metric) - _values(ledger, "none", "identity/0", metric)
    found = _assess(ledger, Measurement(metric)).interval
    assert found is not None
    assert (found.low + found.high) / 2 == pytest.approx(differences.mean(), abs=1e-6)
    assert found.components.between_replicates == pytest.approx(differences.var(ddof=1) / REPLICATES, rel=1e-3)
    assert found.components.variance > found.components.between_replicates
    assert found.components.patient_sd > 0
    assert found == _assess(ledger, Measurement(metric)).interval


def test_mean_over_shifts_is_weighted(ledger: Ledger) -> None:
    cells = {"gaussian_noise/1": 3.0, "gaussian_noise/5": 1.0}
    for metric in ("accuracy", "auroc"):
        found = _assess(ledger, Measurement(metric, cells=cells)).interval
        assert found is not None
        differences = sum(
            weight / 4 * (_values(ledger, "strong", cell, metric) - _values(ledger, "none", cell, metric))
            for cell, weight in cells.items()
        )
        assert found.components.mean == pytest.approx(np.mean(differences), abs=1e-6)


def test_mean_of_two_trials_is_the_value_of_a_replicate(ledger: Ledger) -> None:
    strong, none = _side(ledger, "strong"), _side(ledger, "none")
    both = [[*a, *b] for a, b in zip(strong, none, strict=True)]
    half = assess_patients(ledger, both, none, Measurement("accuracy")).interval
    whole = assess_patients(ledger, strong, none, Measurement("accuracy")).interval
    assert half is not None
    assert whole is not None
    assert (2 * half.low, 2 * half.high) == pytest.approx((whole.low, whole.high))


def test_what_coverage_was_not_shown_for_gives_no_interval(ledger: Ledger) -> None:
    strong, none = _side(ledger, "strong"), _side(ledger, "none")
    few = assess_patients(ledger, strong[:4], none[:4], Measurement("accuracy"))
    assert few.interval is None
    assert "4 replicates and 300 patients, 150 of the rarest class" in str(few.problem)
    assert "for ece" in str(_assess(ledger, Measurement("ece")).problem)
    assert "brier" in str(_assess(ledger, Measurement("brier")).problem)


def test_other_images_and_predictions_without_patients_give_no_interval(ledger: Ledger) -> None:
    strong, none = _side(ledger, "strong"), _side(ledger, "none")
    folder = ledger.folder("trial", strong[0][0])
    kept = load_predictions(folder, "test")
    for changed, reason in (
        (replace(kept, ids=kept.ids[::-1]), "tested on different images"),
        (replace(kept, groups=None), "without the patient of each image"),
    ):
        save_predictions(folder, changed)
        found = assess_patients(ledger, strong, none, Measurement("accuracy"))
        assert found.interval is None
        assert reason in str(found.problem)
    save_predictions(folder, kept)


def test_sides_must_pair_and_trials_be_complete(ledger: Ledger) -> None:
    strong, none = _side(ledger, "strong"), _side(ledger, "none")
    with pytest.raises(ValueError, match="6 and 5 replicates"):
        assess_patients(ledger, strong, none[:5], Measurement("accuracy"))
    with pytest.raises(StudyError, match="absent, which is not complete"):
        assess_patients(ledger, [["absent"]], none[:1], Measurement("accuracy"))


# ------------------------------------------------------------------ beside a verdict


def _verdict(ledger: Ledger, metric: str, without: str = "") -> Verdict:
    """Return the verdict of results in which the first trial lacks the shift ``without``."""
    plan = ledger.read_plan()
    claims = version(make(metric=metric, smallest_effect=0.0))
    results = load_results(ledger)
    lacks = (results.shifts["signature"] == results.trials["signature"].iloc[0]) & (results.shifts["shift"] == without)
    results = replace(results, shifts=results.shifts[~lacks])
    results = replace(results, plan=plan | {"hypotheses": {"versions": [claims]}})
    (found,) = add_patient_intervals(results, ledger, judge(results))
    return found


def test_decided_verdict_has_the_interval_of_its_sides(ledger: Ledger) -> None:
    found = _verdict(ledger, "id/accuracy")
    assert found.verdict != NOT_ENOUGH
    assert found.patients == _assess_with_seed(ledger, Measurement("accuracy"))
    assert found.patients is not None
    assert found.patients.interval is not None
    row = verdicts_table([found]).iloc[0]
    assert (row["low_over_patients"], row["high_over_patients"]) == (
        found.patients.interval.low, found.patients.interval.high,
    )  # fmt: skip


def _assess_with_seed(ledger: Ledger, measurement: Measurement) -> PatientAssessment:
    seed = ledger.read_plan()["seed"]
    return assess_patients(ledger, _side(ledger, "strong"), _side(ledger, "none"), measurement, seed=seed)


def test_predictions_that_are_gone_are_said(ledger: Ledger) -> None:
    found = _verdict(ledger, "external/site-3/accuracy").patients
    assert found is not None
    assert found.interval is None
    assert str(found.problem).startswith("no interval over patients: ")


def test_trials_under_different_shifts_have_no_interval_over_patients(ledger: Ledger) -> None:
    found = _verdict(ledger, "robustness/mean_accuracy", without="jpeg")
    assert found.verdict != NOT_ENOUGH
    assert found.patients is None
