"""Overlap of segmentations: Dice, IoU, sensitivity and precision per case and class, from counts of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from trainables.data.dataset import UNCOUNTED
from trainables.errors import DataError

#: Class of every pixel or voxel of n cases of one size; an index into ``Dataset.classes``.
Segmentations = UInt8[np.ndarray, "n *space"]
#: A value per case and class; NaN where it is undefined.
Values = Float64[np.ndarray, "n classes"]


@dataclass(frozen=True)
class Overlap:
    """Numbers of counted pixels per case and class."""

    #: Pixels that are of the class in the target and in the prediction.
    both: Int64[np.ndarray, "n classes"]
    predicted: Int64[np.ndarray, "n classes"]
    target: Int64[np.ndarray, "n classes"]

    @property
    def is_missed(self) -> Bool[np.ndarray, "n classes"]:
        """Whether the target has the class and the prediction nothing of it."""
        return (self.target > 0) & (self.predicted == 0)

    @property
    def is_invented(self) -> Bool[np.ndarray, "n classes"]:
        """Whether the prediction has the class and the target nothing of it."""
        return (self.target == 0) & (self.predicted > 0)

    @property
    def is_empty(self) -> Bool[np.ndarray, "n classes"]:
        """Whether neither has the class: no metric of the case is defined for it."""
        return (self.target == 0) & (self.predicted == 0)


def count_overlap(predicted: Segmentations, targets: Segmentations, *, foreground: Sequence[int]) -> Overlap:
    """Return the numbers of pixels of every case and class; those whose target is ``UNCOUNTED`` count nowhere.

    Args:
        predicted: predicted classes.
        targets: true classes, ``UNCOUNTED`` where no metric counts.
        foreground: classes of the columns.

    Raises:
        DataError: if shapes differ.
    """
    check_shapes(predicted, targets)
    counted = targets != UNCOUNTED
    pairs = [((predicted == index) & counted, targets == index) for index in foreground]
    return Overlap(
        both=_stack([_count(own & true) for own, true in pairs]),
        predicted=_stack([_count(own) for own, _ in pairs]),
        target=_stack([_count(true) for _, true in pairs]),
    )


def check_shapes(predicted: Segmentations, targets: Segmentations) -> None:
    """Raise DataError unless predictions and targets have one shape, [n, h, w] or [n, d, h, w]."""
    if predicted.shape != targets.shape or predicted.ndim not in (3, 4):
        raise DataError(
            f"compared segmentations and found predictions of shape {predicted.shape} and targets of shape "
            f"{targets.shape}; expected one shape, cases × rows × columns or cases × slices × rows × columns"
        )


def _stack(columns: Sequence[Int64[np.ndarray, " n"]]) -> Int64[np.ndarray, "n classes"]:
    return np.stack(columns, axis=1)


def _count(masks: Bool[np.ndarray, "n *space"]) -> Int64[np.ndarray, " n"]:
    """Return the number of true pixels of each case: eight to a byte, of which the processor counts the bits."""
    bits = np.packbits(masks.reshape(len(masks), -1), axis=1)
    return np.bitwise_count(bits).sum(axis=1, dtype=np.int64)


def measure_overlap(counts: Overlap) -> dict[str, Values]:
    """Return Dice, IoU, sensitivity and precision, each in [0, 1]; higher is better.

    NaN where target and prediction are empty, 0 where one of them is.

    Source: Dice 1945; Jaccard 1912.
    """
    totals = {
        "dice": (2 * counts.both, counts.predicted + counts.target),
        "iou": (counts.both, counts.predicted + counts.target - counts.both),
        "pixel_sensitivity": (counts.both, np.where(counts.is_invented, counts.predicted, counts.target)),
        "pixel_precision": (counts.both, np.where(counts.is_missed, counts.target, counts.predicted)),
    }
    return {
        name: np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
        for name, (part, whole) in totals.items()
    }
