"""Means over cases and classes, with misses counted and shown; what is left out of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.errors import DataError
from trainables.evaluation.metric_tables.segmentation import SEGMENTATION_METRICS
from trainables.evaluation.segmentation.calibration import CalibrationAccumulator
from trainables.evaluation.segmentation.cases import (
    CASE_METRICS,
    VOLUME_METRICS,
    CaseMetrics,
    measure_cases,
    summarise_cases,
    summarise_classes,
)

SIDE = 30
CLASSES = ((1, "disc"), (2, "cup"))


def draw() -> tuple[np.ndarray, np.ndarray]:
    """Five cases: right, shifted, disc missed, cup invented, nothing at all."""
    targets = np.zeros((5, SIDE, SIDE), dtype=np.uint8)
    targets[:4, 5:15, 5:15] = 1
    targets[:3, 20:25, 20:25] = 2
    predicted = targets.copy()
    predicted[1] = np.roll(targets[1], 2, axis=1)
    predicted[2][predicted[2] == 1] = 0
    predicted[3, 20:25, 20:25] = 2
    return predicted, targets


def measure(predicted: np.ndarray, targets: np.ndarray, **more: object) -> CaseMetrics:
    spacing = np.ones((len(targets), targets.ndim - 1))
    return measure_cases(predicted, targets, classes=CLASSES, spacing=spacing, tolerance_mm=1.0, **more)


def test_a_mean_is_over_cases_then_classes_and_misses_stand_beside_it() -> None:
    summary = summarise_cases(measure(*draw()))
    disc, cup = (1.0, 0.8, 0.0, 1.0), (1.0, 0.6, 1.0, 0.0)
    assert summary.metrics.values["dice"] == pytest.approx((np.mean(disc) + np.mean(cup)) / 2)
    assert summary.metrics.values["missed"] == pytest.approx((1 / 4 + 1 / 4) / 2)
    assert summary.counts == {"num_cases": 5, "num_missed": 1, "num_invented": 1, "num_empty": 2}
    assert set(summary.metrics.values) == set(CASE_METRICS) <= set(SEGMENTATION_METRICS)
    assert not summary.metrics.undefined
    diagonal = np.hypot(SIDE, SIDE)
    assert summary.metrics.values["hd95"] == pytest.approx((0 + 2 + diagonal + 0) / 4)  # of either class
    classes = summarise_classes(measure(*draw()))
    assert classes["disc"].metrics.values["dice"] == pytest.approx(np.mean(disc))
    assert classes["cup"].metrics.values["dice"] == pytest.approx(np.mean(cup))
    assert classes["cup"].counts == {"num_cases": 5, "num_missed": 0, "num_invented": 1, "num_empty": 1}


def test_missing_a_structure_does_not_improve_a_mean() -> None:
    predicted, targets = draw()
    before = summarise_cases(measure(predicted, targets)).metrics.values
    predicted[1] = 0
    after = summarise_cases(measure(predicted, targets)).metrics.values
    for name in CASE_METRICS:
        if SEGMENTATION_METRICS[name].higher_is_better:
            assert after[name] < before[name], name
        else:
            assert after[name] > before[name], name


def test_a_class_that_no_case_has_is_left_out_and_without_any_the_metric_is_undefined() -> None:
    predicted, targets = draw()
    for own in (predicted, targets):
        own[own == 2] = 0
    only = summarise_cases(measure(predicted, targets))
    assert only.metrics.values["dice"] == pytest.approx(np.mean((1.0, 0.8, 0.0, 1.0)))
    assert only.counts["num_empty"] == 6
    none = summarise_cases(measure(np.zeros_like(predicted), np.zeros_like(targets)))
    assert not none.metrics.values
    assert none.metrics.undefined["nsd"] == "none of 5 cases, and of their predictions, has disc or cup"
    assert set(none.metrics.undefined) == set(CASE_METRICS)


def test_cases_can_be_taken_and_have_numbers_of_their_own() -> None:
    cases = measure(*draw())
    assert cases.per_case()["dice"][:4] == pytest.approx([1.0, 0.7, 0.5, 0.5])
    assert np.isnan(cases.per_case()["dice"][4])
    some = cases.take(np.array([1, 1, 3]))
    assert len(some) == 3
    assert summarise_cases(some).metrics.values["iou"] == pytest.approx(
        (np.mean((2 / 3, 2 / 3, 1)) + np.mean((3 / 7, 3 / 7, 0))) / 2
    )


def test_calibration_is_over_all_pixels_together() -> None:
    predicted, targets = draw()
    accumulator = CalibrationAccumulator(bins=10, band_px=3)
    p = torch.full((5, 3, SIDE, SIDE), 0.1).scatter_(1, torch.from_numpy(predicted).long()[:, None], 0.8)
    accumulator.add(p, torch.from_numpy(targets))
    calibration = accumulator.finish()
    cases = measure(predicted, targets, calibration=calibration, metrics=("dice",))
    summary = summarise_cases(cases).metrics
    assert set(summary.values) == {"dice", *calibration.pooled()} <= set(SEGMENTATION_METRICS)
    assert summary.values["pixel_ece"] == pytest.approx(abs((predicted == targets).mean() - 0.8), abs=1e-6)
    assert np.isnan(cases.per_case()["band_ece"]).tolist() == [False] * 4 + [True]
    assert (
        summarise_cases(cases.take(np.array([4]))).metrics.undefined["band_nll"]
        == "none of 1 cases has a pixel that counts"
    )
    assert all(SEGMENTATION_METRICS[name].is_calibration for name in calibration.pooled())


def test_volumes_have_all_but_centrelines() -> None:
    predicted, targets = (np.stack([own] * 3, axis=1) for own in draw())
    found = measure(predicted, targets, metrics=VOLUME_METRICS)
    assert set(found.values) == set(VOLUME_METRICS)
    assert found.values["dice"][:4, 0] == pytest.approx([1.0, 0.8, 0.0, 1.0])
    with pytest.raises(DataError, match="2-D masks only"):
        measure(predicted, targets)


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(DataError, match="by hd99; expected some of dice, iou"):
        measure(*draw(), metrics=("dice", "hd99"))


@pytest.mark.parametrize("name", SEGMENTATION_METRICS)
def test_values_lie_in_the_range_of_the_table(name: str) -> None:
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(6, 3, 20, 20)))
    targets = random.integers(0, 3, (6, 20, 20)).astype(np.uint8)
    accumulator = CalibrationAccumulator(bins=10, band_px=1)
    accumulator.add(torch.softmax(2 * logits, dim=1), torch.from_numpy(targets))
    predicted = logits.argmax(dim=1).numpy().astype(np.uint8)
    value = summarise_cases(measure(predicted, targets, calibration=accumulator.finish())).metrics.values[name]
    assert SEGMENTATION_METRICS[name].low <= value <= SEGMENTATION_METRICS[name].high
