"""Sums over batches against the metrics of classification on all pixels at once; the band; misuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from trainables.data.dataset import UNCOUNTED
from trainables.errors import DataError, DivergedError
from trainables.evaluation.classification import compute_ece, compute_metrics
from trainables.evaluation.segmentation.calibration import CalibrationAccumulator, PixelCalibration, find_band

BINS, BAND = 15, 2


def draw(space: tuple[int, ...] = (20, 24), num: int = 5, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return logits n × classes × space, with a few structures, and targets of which some do not count."""
    random = np.random.default_rng(0)
    targets = np.zeros((num, *space), dtype=np.uint8)
    targets[:, 3:7, 4:9], targets[1:, 10:12, 10:14] = 1, 2
    logits = random.normal(size=(num, classes, *space)).astype(np.float32)
    logits += 1.5 * np.moveaxis(np.eye(classes, dtype=np.float32)[targets], -1, 1)
    targets[:, 0] = UNCOUNTED
    return logits, targets


def accumulate(logits: np.ndarray, targets: np.ndarray, sizes: tuple[int, ...]) -> PixelCalibration:
    accumulator, start = CalibrationAccumulator(bins=BINS, band_px=BAND), 0
    probabilities = torch.softmax(torch.from_numpy(logits).double(), dim=1)
    for size in sizes:
        rows = slice(start, start + size)
        accumulator.add(probabilities[rows], torch.from_numpy(targets[rows]))
        start += size
    return accumulator.finish()


def expect(logits: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """The metrics of classification on the pixels of a mask, and MCE by a loop over bins."""
    chosen, labels = np.moveaxis(logits, 1, -1)[mask], targets[mask].astype(np.int64)
    values = compute_metrics(chosen, labels, ece_bins=BINS).values
    p = torch.softmax(torch.from_numpy(chosen).double(), dim=1).numpy()
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == labels
    gaps = [0.0]
    for low in range(BINS):
        inside = (confidence > low / BINS) & (confidence <= (low + 1) / BINS)
        if inside.any():
            gaps.append(abs(correct[inside].mean() - confidence[inside].mean()))
    return {"ece": values["ece"], "mce": max(gaps), "nll": values["nll"], "brier": values["brier"]}


def dilate(targets: np.ndarray) -> np.ndarray:
    foreground = (targets != 0) & (targets != UNCOUNTED)
    square = np.ones((2 * BAND + 1,) * (targets.ndim - 1))
    return np.stack([binary_dilation(own, square) for own in foreground])


@pytest.mark.parametrize("space", [(20, 24), (14, 16, 5)])
def test_sums_over_batches_are_the_metrics_of_all_pixels(space: tuple[int, ...]) -> None:
    logits, targets = draw(space)
    counted = targets != UNCOUNTED
    masks = {"pixel": counted, "band": counted & dilate(targets)}
    found = accumulate(logits, targets, (2, 2, 1))
    for region, mask in masks.items():
        for kind, value in expect(logits, targets, mask).items():
            assert found.pooled()[f"{region}_{kind}"] == pytest.approx(value, abs=1e-6), (region, kind)
        for case in range(len(targets)):
            own = np.zeros_like(mask)
            own[case] = mask[case]
            for kind, value in expect(logits, targets, own).items():
                assert found.per_case()[f"{region}_{kind}"][case] == pytest.approx(value, abs=1e-6)


def test_batches_do_not_matter_and_cases_can_be_taken() -> None:
    logits, targets = draw()
    whole, parts = accumulate(logits, targets, (5,)), accumulate(logits, targets, (1, 4))
    assert whole.pooled() == pytest.approx(parts.pooled(), rel=1e-12)
    some = np.array([3, 0, 0])
    assert whole.take(some).pooled() == pytest.approx(accumulate(logits[some], targets[some], (3,)).pooled(), rel=1e-12)


def test_bins_are_those_of_classification_at_their_edges() -> None:
    """Probabilities on the edges belong to the lower bin; ½ and ½ is a guess of the first class."""
    confidence = np.array([0.5, 0.6, 0.8, 1.0, 0.6], dtype=np.float32)
    p = torch.from_numpy(np.stack([confidence, 1 - confidence]).reshape(1, 2, 1, 5))
    targets = np.array([[[0, 1, 0, 1, 0]]], dtype=np.uint8)
    accumulator = CalibrationAccumulator(bins=5, band_px=0)
    accumulator.add(p, torch.from_numpy(targets))
    found = accumulator.finish().pooled()
    assert found["pixel_ece"] == pytest.approx(compute_ece(confidence.astype(np.float64), targets.ravel() == 0, bins=5))
    # The true class of the fourth pixel has no probability: it counts with the smallest number of 32 bits.
    assert found["pixel_nll"] == pytest.approx(
        -np.mean(np.log([0.5, 0.4, 0.8, np.finfo(np.float32).tiny, 0.6])), rel=1e-6
    )


def test_the_band_is_a_square_around_every_structure() -> None:
    _, targets = draw()
    assert np.array_equal(find_band(torch.from_numpy(targets), BAND).numpy(), dilate(targets))
    _, volumes = draw((14, 16, 5))
    assert np.array_equal(find_band(torch.from_numpy(volumes), BAND).numpy(), dilate(volumes))
    for band_px in (1, 3, 4, 7, 19, 40):
        whole = np.pad((targets[1:2] == 1) | (targets[1:2] == 2), ((0, 0), (band_px, band_px), (band_px, band_px)))
        square = np.lib.stride_tricks.sliding_window_view(whole[0], (2 * band_px + 1,) * 2).any(axis=(2, 3))
        assert np.array_equal(find_band(torch.from_numpy(targets[1:2]), band_px)[0].numpy(), square), band_px
    assert np.array_equal(find_band(torch.from_numpy(targets), 0).numpy(), (targets == 1) | (targets == 2))


def test_a_case_without_structures_has_no_band() -> None:
    logits, targets = draw()
    targets[2] = 0
    found = accumulate(logits, targets, (5,)).per_case()
    assert np.isnan(found["band_ece"]).tolist() == [False, False, True, False, False]
    assert not np.isnan(found["pixel_ece"]).any()


def test_misuse_is_refused() -> None:
    accumulator = CalibrationAccumulator(bins=BINS, band_px=BAND)
    with pytest.raises(DataError, match="found no case"):
        accumulator.finish()
    bad = torch.full((1, 2, 3, 3), float("nan"))
    with pytest.raises(DivergedError, match="found NaN"):
        accumulator.add(bad, torch.zeros((1, 3, 3), dtype=torch.uint8))
