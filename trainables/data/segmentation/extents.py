"""Where volumes end in the arrays that they are stored in, and the sides of their voxels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from trainables.data.dataset import EXTENT, SPACING, ImageSet


def find_extents(images: ImageSet) -> Int64[np.ndarray, "n 3"]:
    """Return the slices, rows and columns of every volume; the rest of its array is padding."""
    return np.array([images.metadata[name] for name in EXTENT], dtype=np.int64).T.reshape(-1, 3)


def find_sides(images: ImageSet) -> Float64[np.ndarray, "n axes"]:
    """Return the sides in mm of a stored pixel (row, column) or voxel (slice, row, column); 1 where data do not say.

    Of several data sets some may say it and others not.
    """
    axes = images.images.ndim - 2
    columns = [images.metadata.get(name) for name in SPACING[-axes:]]
    if any(column is None for column in columns):
        return np.ones((len(images), axes))
    sides = np.array(columns, dtype=np.float64).T  # None becomes NaN
    return np.where(np.isnan(sides), 1.0, sides)


def trim(
    volume: Shaped[np.ndarray, "*lead d h w"], extent: Int64[np.ndarray, " 3"]
) -> Shaped[np.ndarray, "*lead a b c"]:
    """Return a stored volume without its padding."""
    depth, height, width = extent.tolist()
    return volume[..., :depth, :height, :width]
