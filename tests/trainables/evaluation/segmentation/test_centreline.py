"""Thinning keeps what is connected and every hole; clDice has its known values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from trainables.data.dataset import UNCOUNTED
from trainables.errors import DataError
from trainables.evaluation.segmentation import centreline
from trainables.evaluation.segmentation.centreline import measure_centreline, thin


def draw(*boxes: tuple[slice, slice], side: int = 40) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    for box in boxes:
        mask[box] = True
    return mask


def draw_ring(outer: float, inner: float, side: int = 40) -> np.ndarray:
    distance = np.hypot(*np.mgrid[-side // 2 : side // 2, -side // 2 : side // 2])
    return (distance <= outer) & (distance >= inner)


def count_parts(mask: np.ndarray) -> tuple[int, int]:
    """Numbers of connected parts (8 neighbours) and of parts of what is around them (4 neighbours)."""
    return label(mask, np.ones((3, 3)))[1], label(np.pad(~mask, 1, constant_values=True))[1]


def test_a_bar_becomes_its_middle_row() -> None:
    line = thin(draw((slice(10, 15), slice(5, 30)))[None])[0]
    assert np.flatnonzero(line.any(axis=1)).tolist() == [12]
    columns = np.flatnonzero(line.any(axis=0))
    assert np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))
    assert (columns[0] - 5, 29 - columns[-1]) == pytest.approx((2, 2), abs=1)  # half a width at each end, at most


def test_a_ring_stays_a_ring() -> None:
    line = thin(draw_ring(14, 10)[None])[0]
    assert count_parts(line) == (1, 2)
    radii = np.hypot(*np.mgrid[-20:20, -20:20])[line]
    assert np.abs(radii - 12).max() <= 1.5
    assert line.sum() < 1.2 * 2 * np.pi * 12  # one pixel wide


def test_a_cross_stays_a_cross() -> None:
    line = thin(draw((slice(18, 23), slice(3, 38)), (slice(3, 38), slice(18, 23)))[None])[0]
    assert count_parts(line) == (1, 1)
    for row, column in ((20, 8), (20, 33), (8, 20), (33, 20)):
        assert line[row, column]


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 7), (2, 3), (3, 3)])
def test_small_shapes_do_not_vanish(shape: tuple[int, int]) -> None:
    mask = draw((slice(0, shape[0]), slice(39 - shape[1], 39)))  # at the border
    line = thin(mask[None])[0]
    assert line.any()
    assert not (line & ~mask).any()


def draw_blobs(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    noise = [gaussian_filter(random.normal(size=(60, 50)), sigma) for sigma in np.linspace(0, 4, count)]
    return np.stack([own > 0 for own in noise])


def test_connectivity_and_holes_are_kept_and_nothing_is_left_to_remove() -> None:
    masks = draw_blobs(8)
    lines = thin(masks)
    for mask, line in zip(masks, lines, strict=True):
        assert count_parts(mask) == count_parts(line)
    assert not (lines & ~masks).any()
    assert np.array_equal(thin(lines), lines)


def test_lines_are_those_of_scikit_image() -> None:
    morphology = pytest.importorskip("skimage.morphology")
    masks = draw_blobs(8)
    assert np.array_equal(thin(masks), np.stack([morphology.thin(mask) for mask in masks]))


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = draw_blobs(5)
    whole = thin(masks)
    monkeypatch.setattr(centreline, "_BLOCK", 7000)  # two cases
    assert np.array_equal(thin(masks), whole)
    assert thin(masks[:0]).shape == (0, 60, 50)


def measure(predicted: np.ndarray, target: np.ndarray) -> float:
    pair = (np.asarray(mask, dtype=np.uint8)[None] for mask in (predicted, target))
    return float(measure_centreline(*pair, foreground=(1,))[0, 0])


def test_width_does_not_matter_but_a_gap_does() -> None:
    thick, fine = draw((slice(10, 17), slice(2, 38))), draw((slice(13, 14), slice(5, 35)))
    assert measure(fine, thick) == pytest.approx(1.0, abs=0.03)
    gap = thick.copy()
    gap[:, 15:25] = False
    # The prediction's line lies inside; of the target's line, 10 of about 32 pixels are not in the prediction.
    length = int(thin(thick[None]).sum())
    inside = int((thin(thick[None])[0] & gap).sum())
    assert measure(gap, thick) == pytest.approx(2 * (inside / length) / (1 + inside / length))


def test_masks_side_by_side_and_empty_ones() -> None:
    left, right, empty = draw((slice(0, 40), slice(2, 8))), draw((slice(0, 40), slice(20, 26))), np.zeros((40, 40))
    assert measure(left, left) == 1.0
    assert measure(left, right) == 0.0
    assert (measure(left, empty), measure(empty, left)) == (0.0, 0.0)
    assert np.isnan(measure(empty, empty))
    marked = np.where(left, UNCOUNTED, right).astype(np.uint8)
    assert measure(left | right, marked) == 1.0


def test_volumes_are_refused() -> None:
    volume = np.ones((1, 3, 4, 5), dtype=np.uint8)
    with pytest.raises(DataError, match="cl_dice is defined for 2-D masks only"):
        measure_centreline(volume, volume, foreground=(1,))
