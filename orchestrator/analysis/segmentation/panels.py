"""A segmented case as pictures: image, truth, prediction, errors, uncertainty; every page draws these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from trainables.data.dataset import UNCOUNTED

#: Colours of the foreground, of what was missed and of what was invented: told apart by colour-blind readers.
FOUND, MISSED, INVENTED = (0, 200, 160), (255, 120, 0), (60, 140, 255)
#: Names of the pictures, in the order in which they are shown; without a truth there are no "truth" and "errors".
PANELS = ("image", "truth", "prediction", "errors", "uncertainty")


def paint_panels(
    image: UInt8[np.ndarray, "c *space"],
    target: UInt8[np.ndarray, "*space"] | None,
    predicted: UInt8[np.ndarray, "*space"],
    entropy: UInt8[np.ndarray, "*space"],
) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Return name in ``PANELS`` → picture, in their order; of a volume one slice, that of ``choose_slice``.

    Args:
        image: one or three channels.
        target: true class of every pixel or ``UNCOUNTED``; None where it is not known.
        predicted: predicted class of every pixel.
        entropy: uncertainty of every pixel, 0 to 255.
    """
    if predicted.ndim == 3:
        number = choose_slice(target, predicted)
        image, predicted, entropy = image[:, number], predicted[number], entropy[number]
        target = None if target is None else target[number]
    colours = np.array(np.broadcast_to(image, (3, *image.shape[1:]))).transpose(1, 2, 0)
    grey = np.repeat((0.6 * colours.mean(2, keepdims=True)).astype(np.uint8), 3, axis=2)
    uncertainty = np.repeat(entropy[:, :, None], 3, axis=2)
    if target is None:
        return {"image": colours, "prediction": _paint(grey, [(predicted > 0, FOUND)]), "uncertainty": uncertainty}
    counted = target != UNCOUNTED
    true, found = counted & (target > 0), counted & (predicted > 0)
    right = true & found & (target == predicted)
    return {
        "image": colours,
        "truth": _paint(grey, [(true, FOUND)]),
        "prediction": _paint(grey, [(found, FOUND)]),
        "errors": _paint(grey, [(right, FOUND), (true & ~right, MISSED), (found & ~true, INVENTED)]),
        "uncertainty": uncertainty,
    }


def choose_slice(target: UInt8[np.ndarray, "d h w"] | None, predicted: UInt8[np.ndarray, "d h w"]) -> int:
    """Return the number of the slice that is shown of a volume: that with the most wrong voxels.

    Without a truth, or if nothing is wrong, that with the most predicted foreground; without any, the central one.

    Args:
        target: true class of every voxel or ``UNCOUNTED``; None where it is not known.
        predicted: predicted class of every voxel.
    """
    wrong = np.zeros(predicted.shape, dtype=np.bool_)
    if target is not None:
        wrong = (target != predicted) & (target != UNCOUNTED)
    for shown in (wrong, predicted > 0):
        counts = shown.sum(axis=(1, 2))
        if counts.any():
            return int(counts.argmax())
    return len(predicted) // 2


def _paint(
    image: UInt8[np.ndarray, "h w 3"], masks: Sequence[tuple[np.ndarray, tuple[int, int, int]]]
) -> UInt8[np.ndarray, "h w 3"]:
    painted = image.copy()
    for mask, rgb in masks:
        painted[mask] = rgb
    return painted
