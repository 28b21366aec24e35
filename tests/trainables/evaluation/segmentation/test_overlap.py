"""Dice, IoU, sensitivity and precision: known values, empty masks, pixels that do not count, a loop over pixels."""

from __future__ import annotations

import numpy as np
import pytest

from trainables.data.dataset import UNCOUNTED
from trainables.errors import DataError
from trainables.evaluation.metric_tables.segmentation import SEGMENTATION_METRICS
from trainables.evaluation.segmentation.overlap import count_overlap, measure_overlap


def row(*values: int) -> np.ndarray:
    """One case of one row of pixels."""
    return np.array([[values]], dtype=np.uint8)


def measure(predicted: np.ndarray, target: np.ndarray, foreground: tuple[int, ...] = (1,)) -> dict[str, list[float]]:
    found = measure_overlap(count_overlap(predicted, target, foreground=foreground))
    return {name: values[0].tolist() for name, values in found.items()}


def test_known_values() -> None:
    found = measure(row(1, 1, 1, 0, 0), row(0, 1, 1, 1, 1))
    assert found == {
        "dice": pytest.approx([4 / 7]),
        "iou": pytest.approx([2 / 5]),
        "pixel_sensitivity": pytest.approx([1 / 2]),
        "pixel_precision": pytest.approx([2 / 3]),
    }


def test_a_case_without_the_class_is_undefined_and_a_miss_counts_zero() -> None:
    found = measure(row(0, 2, 0), row(3, 0, 0), foreground=(1, 2, 3))
    for values in found.values():
        assert np.isnan(values[0])
        assert values[1:] == [0.0, 0.0]
    counts = count_overlap(row(0, 2, 0), row(3, 0, 0), foreground=(1, 2, 3))
    assert counts.is_empty.tolist() == [[True, False, False]]
    assert counts.is_invented.tolist() == [[False, True, False]]
    assert counts.is_missed.tolist() == [[False, False, True]]


def test_pixels_that_do_not_count_count_nowhere() -> None:
    whole = measure(row(1, 1, 0, 1), row(1, 0, 1, 0))
    assert measure(row(1, 1, 0, 1, 1, 0), row(1, 0, 1, 0, UNCOUNTED, UNCOUNTED)) == whole
    outside = count_overlap(row(1, 0), row(UNCOUNTED, 0), foreground=(1,))
    assert outside.is_empty.all()


@pytest.mark.parametrize("space", [(13, 17), (5, 6, 7)])
def test_every_case_and_class_is_as_in_a_loop(space: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    predicted = random.integers(0, 4, (6, *space)).astype(np.uint8)
    targets = random.choice(np.array([0, 1, 2, 3, UNCOUNTED], dtype=np.uint8), (6, *space))
    found = measure_overlap(count_overlap(predicted, targets, foreground=(1, 3)))
    for case in range(6):
        for column, index in enumerate((1, 3)):
            pixels = zip(predicted[case].flat, targets[case].flat, strict=True)
            pairs = [(own == index, true == index) for own, true in pixels if true != UNCOUNTED]
            both, own, true = sum(map(all, pairs)), sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
            assert found["dice"][case, column] == pytest.approx(2 * both / (own + true), abs=1e-12)
            assert found["iou"][case, column] == pytest.approx(both / (own + true - both), abs=1e-12)
            assert found["pixel_sensitivity"][case, column] == pytest.approx(both / true, abs=1e-12)
            assert found["pixel_precision"][case, column] == pytest.approx(both / own, abs=1e-12)


def test_what_is_neither_an_image_nor_a_volume_is_refused() -> None:
    with pytest.raises(DataError, match=r"predictions of shape \(1, 2\) and targets of shape \(1, 2\)"):
        count_overlap(row(1, 0)[0], row(1, 0)[0], foreground=(1,))


def test_names_are_those_of_the_table() -> None:
    assert set(measure(row(1), row(1))) < set(SEGMENTATION_METRICS)
