"""Distances between the boundaries of segmentations in mm, per case and class: HD95, ASSD and NSD, in 2-D and 3-D.

The boundary of a mask is made of its pixels with a neighbour along an axis (4 of them in 2-D, 6 in 3-D) that is not in
it; what lies outside of the image is in no mask. A distance is that between the centres of two boundary pixels. This is
MONAI's definition (a mask without its erosion by a cross), and so is the percentile: the larger one of both directions,
not that of both pooled. Differs: MONAI leaves a missed structure out of its mean (monai#9095).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from trainables.data.dataset import UNCOUNTED
from trainables.data.decoding.threads import map_threads
from trainables.errors import DataError
from trainables.evaluation.segmentation.overlap import Segmentations, Values, check_shapes

#: Metrics of this module.
SURFACE = ("hd95", "assd", "nsd")
Mask = Bool[np.ndarray, "*space"]
Points = Int64[np.ndarray, "axes points"]


def measure_surfaces(
    predicted: Segmentations,
    targets: Segmentations,
    *,
    foreground: Sequence[int],
    spacing: Float[np.ndarray, "n axes"],
    tolerance_mm: float,
) -> dict[str, Values]:
    """Return HD95 and ASSD in mm, lower is better, and NSD in [0, 1], higher is better; of every case and class.

    - hd95: the larger of the two 95th percentiles (linear between ranks) of the distances from one boundary to the
      other, as in MONAI.
    - assd: mean over the boundary pixels of both of the distance to the other boundary.
    - nsd: share of the boundary pixels of both that lie within ``tolerance_mm`` of the other boundary.

    Where target or prediction is empty, hd95 and assd are the image's diagonal (of its sides in mm) and nsd is 0. NaN
    where both are empty. Pixels whose target is ``UNCOUNTED`` are outside of both masks.

    Args:
        predicted: predicted classes.
        targets: true classes, ``UNCOUNTED`` where no metric counts.
        foreground: classes of the columns.
        spacing: mm per pixel of each case along each axis.
        tolerance_mm: distance that nsd forgives.

    Raises:
        DataError: if shapes differ, or a spacing is not above 0.

    Source: Maier-Hein et al. 2024 (Metrics Reloaded); Nikolov et al. 2021 for NSD. Differs: boundary pixels count
    equally, where Nikolov et al. weigh the surface that each one stands for.
    """
    check_shapes(predicted, targets)
    if spacing.shape != (len(targets), targets.ndim - 1) or not (spacing > 0).all():
        raise DataError(
            f"measured distances of segmentations of shape {targets.shape} and found spacings of shape "
            f"{spacing.shape}, smallest {spacing.min(initial=np.inf):g}; expected {targets.ndim - 1} numbers above 0 "
            "for every case"
        )

    def measure_case(row: int) -> Float64[np.ndarray, "classes metrics"]:
        counted = targets[row] != UNCOUNTED
        classes = ((predicted[row] == index, targets[row] == index) for index in foreground)
        return np.array([_compare(own & counted, true, spacing[row], tolerance_mm) for own, true in classes])

    if not len(targets):
        return {name: np.empty((0, len(foreground))) for name in SURFACE}
    found = np.stack(map_threads(measure_case, range(len(targets))))
    return {name: found[:, :, place] for place, name in enumerate(SURFACE)}


def _compare(
    predicted: Mask, target: Mask, spacing: Float[np.ndarray, " axes"], tolerance_mm: float
) -> tuple[float, float, float]:
    """Return HD95, ASSD and NSD of one pair of masks."""
    boxes = [find_box(mask) for mask in (predicted, target)]
    if boxes[0] is None or boxes[1] is None:
        if boxes[0] is boxes[1]:
            return np.nan, np.nan, np.nan
        diagonal = float(np.linalg.norm(np.multiply(target.shape, spacing)))
        return diagonal, diagonal, 0.0
    box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(boxes[0], boxes[1], strict=True))
    edges = [find_boundary(mask[box]) for mask in (predicted, target)]
    points = [np.stack(np.nonzero(edge)) for edge in edges]
    there = measure_distances(points[0], edges[1], spacing)
    back = measure_distances(points[1], edges[0], spacing)
    both = np.concatenate([there, back])
    hd95 = max(float(np.percentile(distances, 95)) for distances in (there, back))
    return hd95, float(both.mean()), float((both <= tolerance_mm).mean())


def find_box(mask: Mask) -> tuple[slice, ...] | None:
    """Return the smallest box that holds a mask, None if it is empty."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(inside):
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def find_boundary(mask: Mask) -> Mask:
    """Return the pixels of a mask with a neighbour along an axis that is not in it, or is outside of the array."""
    inner = np.zeros_like(mask)
    middle = (slice(1, -1),) * mask.ndim
    inner[middle] = mask[middle]
    for axis in range(mask.ndim):
        for step in (slice(None, -2), slice(2, None)):
            inner[middle] &= mask[(*middle[:axis], step, *middle[axis + 1 :])]
    return mask & ~inner


def measure_distances(
    points: Points, edge: Mask, spacing: Float[np.ndarray, " axes"]
) -> Float64[np.ndarray, " points"]:
    """Return the distance in mm of each point to the nearest pixel of a boundary, which is not empty.

    The nearest pixel comes from SciPy's exact feature transform; distances are computed at the points alone.
    """
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~edge, sampling=spacing, return_distances=False, return_indices=True)
    apart = (nearest[(slice(None), *points)] - points) * np.asarray(spacing)[:, None]
    return np.sqrt(np.square(apart).sum(axis=0))
