"""Centreline Dice of tubular structures, such as vessels, and the thinning of many masks at once that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Bool, Int64

from trainables.data.dataset import UNCOUNTED
from trainables.errors import DataError
from trainables.evaluation.segmentation.overlap import Segmentations, Values, check_shapes

#: Steps (row, column) to the eight neighbours, x₁ to x₈ of Guo & Hall: from the right one on, counter-clockwise.
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
#: Pixels that are thinned at a time: their numbers take 32 MiB.
_BLOCK = 1 << 22


def measure_centreline(predicted: Segmentations, targets: Segmentations, *, foreground: Sequence[int]) -> Values:
    """Return clDice of every case and class, in [0, 1]; higher is better.

    2·T_prec·T_sens / (T_prec + T_sens): T_prec is the share of the prediction's centreline that lies in the target,
    T_sens the share of the target's that lies in the prediction. 0 if one of them is empty, NaN if both are. Pixels
    whose target is ``UNCOUNTED`` are outside of both masks.

    Args:
        predicted: predicted classes.
        targets: true classes, ``UNCOUNTED`` where no metric counts.
        foreground: classes of the columns.

    Raises:
        DataError: if shapes differ, or the masks are not in 2-D.

    Source: Shit et al. 2021 (clDice), eq. 1 to 3. Differs: centrelines by ``thin``.
    """
    check_shapes(predicted, targets)
    if targets.ndim != 3:
        raise DataError(
            f"computed centrelines and found segmentations of shape {targets.shape}; expected cases × rows × columns: "
            "cl_dice is defined for 2-D masks only, leave it out of the metrics of volumes"
        )
    counted = targets != UNCOUNTED
    columns = [_compare((predicted == index) & counted, targets == index) for index in foreground]
    return np.stack(columns, axis=1)


def _compare(predicted: Bool[np.ndarray, "n h w"], target: Bool[np.ndarray, "n h w"]) -> np.ndarray:
    def share_inside(lines: Bool[np.ndarray, "n h w"], masks: Bool[np.ndarray, "n h w"]) -> np.ndarray:
        length = np.count_nonzero(lines, axis=(1, 2))
        return np.count_nonzero(lines & masks, axis=(1, 2)) / np.maximum(length, 1)

    precision, sensitivity = share_inside(thin(predicted), target), share_inside(thin(target), predicted)
    both = precision + sensitivity
    is_empty = ~(predicted.any(axis=(1, 2)) | target.any(axis=(1, 2)))
    return np.where(is_empty, np.nan, 2 * precision * sensitivity / np.where(both > 0, both, 1.0))


def thin(masks: Bool[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
    """Return the centrelines of masks: lines of one pixel, connected where the mask is, with its holes kept.

    Pixels are looked at again only where a neighbour was removed, so that the time is that of the masks' area.

    Source: Guo & Hall 1989, algorithm A1. Unlike Zhang & Suen's, it keeps a square of 2 × 2 pixels as a point.
    """
    lines = np.zeros_like(masks)
    step = max(1, _BLOCK // max(1, masks[0].size)) if len(masks) else 1
    for start in range(0, len(masks), step):
        lines[start : start + step] = _thin_block(masks[start : start + step])
    return lines


def _thin_block(masks: Bool[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
    framed = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    flat = framed.reshape(-1)
    offsets = np.array([row * framed.shape[2] + column for row, column in _NEIGHBOURS])
    place = np.empty(len(flat), dtype=np.int32)
    tables = _tabulate()
    # Of each half of a pass: the pixels that it has not yet seen with the neighbours that they have now.
    open_pixels = [np.flatnonzero(flat)] * 2
    half = 0
    while len(open_pixels[0]) or len(open_pixels[1]):
        looked_at = open_pixels[half]
        looked_at = looked_at[flat[looked_at]]
        code = np.zeros(len(looked_at), dtype=np.uint8)
        for bit, offset in enumerate(offsets):
            code |= flat[looked_at + offset].astype(np.uint8) << bit
        removed = looked_at[tables[half][code]]
        flat[removed] = False
        changed = _find_neighbours(removed, offsets, flat, place)
        open_pixels[half] = changed
        open_pixels[1 - half] = _join(open_pixels[1 - half], changed, place)
        half = 1 - half
    return framed[:, 1:-1, 1:-1]


def _find_neighbours(
    removed: Int64[np.ndarray, " removed"],
    offsets: Int64[np.ndarray, " eight"],
    flat: Bool[np.ndarray, " pixels"],
    place: np.ndarray,
) -> Int64[np.ndarray, " neighbours"]:
    """Return the pixels that are left beside those that were removed, each once."""
    near = (removed[:, None] + offsets).reshape(-1)
    return _keep_once(near[flat[near]], place)


def _join(first: np.ndarray, second: np.ndarray, place: np.ndarray) -> Int64[np.ndarray, " both"]:
    return _keep_once(np.concatenate([first, second]), place)


def _keep_once(pixels: Int64[np.ndarray, " all"], place: np.ndarray) -> Int64[np.ndarray, " different"]:
    """Return pixels without repetitions; ``place`` is room for a number per pixel of the block."""
    order = np.arange(len(pixels), dtype=place.dtype)
    place[pixels] = order
    return pixels[place[pixels] == order]


@cache
def _tabulate() -> Bool[np.ndarray, "2 256"]:
    """Return, for both halves of a pass, which neighbourhoods (bit i: x_(i + 1)) let a pixel be removed."""
    x = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(bool).T
    x1, x2, x3, x4, x5, x6, x7, x8 = x
    crossings = sum(~x[i] & (x[i + 1] | x[(i + 2) % 8]) for i in (0, 2, 4, 6))
    first = sum((x[i] | x[i + 1]).astype(np.int64) for i in (0, 2, 4, 6))
    second = sum((x[i + 1] | x[(i + 2) % 8]).astype(np.int64) for i in (0, 2, 4, 6))
    fewer = np.minimum(first, second)
    is_simple = (crossings == 1) & (fewer >= 2) & (fewer <= 3)
    return np.stack([is_simple & ~((x2 | x3 | ~x8) & x1), is_simple & ~((x6 | x7 | ~x4) & x5)])
