import numpy as np
import pytest

from orchestrator.statistics.patient_resampling import (
    Resamples,
    draw_resamples,
    resample_auroc,
    resample_balanced_accuracy,
)
from trainables.evaluation.classification import compute_auroc, compute_balanced_accuracy

#: 1 to 3 images of each of 40 patients, of 3 classes; images of a patient are not neighbours.
RANDOM = np.random.default_rng(0)
PATIENTS = RANDOM.permutation(np.repeat(np.arange(40), np.resize([1, 2, 3], 40)))
LABELS = RANDOM.integers(3, size=len(PATIENTS))
RESAMPLES = draw_resamples(PATIENTS, LABELS, seed=1, num_resamples=25)


def _rows(resamples: Resamples, number: int) -> np.ndarray:
    """The images of one resample, each as often as its patient was drawn."""
    return np.repeat(np.arange(len(resamples.patients)), resamples.counts[resamples.patients, number].astype(int))


def test_resamples_draw_as_many_patients_as_there_are_and_depend_on_the_seed_alone() -> None:
    assert RESAMPLES.counts.shape == (40, 26)
    assert (RESAMPLES.counts[:, 0] == 1).all()
    assert (RESAMPLES.counts.sum(axis=0) == 40).all()
    again = draw_resamples(PATIENTS, LABELS, seed=1, num_resamples=25)
    assert np.array_equal(again.counts, RESAMPLES.counts)
    assert not np.array_equal(draw_resamples(PATIENTS, LABELS, seed=2, num_resamples=25).counts, RESAMPLES.counts)


def test_a_count_is_binomial() -> None:
    counts = draw_resamples(np.arange(20), np.zeros(20, dtype=int), seed=0, num_resamples=20_000).counts[:, 1:]
    assert counts.mean() == pytest.approx(1)
    assert counts.var() == pytest.approx(0.95, rel=0.02)


def test_resamples_that_lack_a_class_are_left_out() -> None:
    labels = np.zeros(10, dtype=int)
    labels[0] = 1
    resamples = draw_resamples(np.arange(10), labels, seed=0, num_resamples=2_000)
    assert (resamples.counts[0] > 0).all()
    assert resamples.counts.shape[1] == pytest.approx(2_000 * (1 - 0.9**10), rel=0.05)


def test_metrics_on_a_resample_are_the_metrics_of_its_images() -> None:
    num_images = len(PATIENTS)
    correct = RANDOM.random((2, num_images)) < 0.6
    # Values of few digits: many ties.
    scores = np.round(RANDOM.normal(size=(2, num_images)) + (LABELS == 1), 1)
    predicted = np.where(correct, LABELS, (LABELS + 1) % 3)
    balanced = resample_balanced_accuracy(RESAMPLES, correct, LABELS)
    auroc = resample_auroc(RESAMPLES, scores, LABELS == 1)
    for number in range(RESAMPLES.counts.shape[1]):
        rows = _rows(RESAMPLES, number)
        for model in range(2):
            expected = compute_balanced_accuracy(predicted[model, rows], LABELS[rows])
            assert balanced[model, number] == pytest.approx(expected, rel=1e-5)
            score = scores[model, rows]
            expected_area = compute_auroc(np.stack([-score, score], axis=1), (LABELS[rows] == 1).astype(np.int64))
            assert auroc[model, number] == pytest.approx(expected_area, rel=1e-12)
