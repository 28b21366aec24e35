"""Connected lesion components of masks: area, elongation and irregularity of each, computed for many images at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Shaped

from trainables.evaluation.attribution.table import AREA_BINS


@dataclass(frozen=True)
class Components:
    """Components of n masks; entry j of every array but ``labels`` belongs to component j."""

    #: 0 outside of lesions, j + 1 in component j.
    labels: Int32[np.ndarray, "n h w"]
    #: Index of the image.
    image: Int64[np.ndarray, " components"]
    area_px: Int64[np.ndarray, " components"]
    #: Major over minor axis of the ellipse with the same second moments, 1 or more.
    elongation: Float64[np.ndarray, " components"]
    #: Area of that ellipse over the area of the component: 1 for an ellipse, 1.05 for a rectangle, more for ragged,
    #: bent or hollow ones. Affine maps do not change it, so it does not repeat the elongation.
    irregularity: Float64[np.ndarray, " components"]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def area_share(self) -> Float64[np.ndarray, " components"]:
        """Share of the image's area."""
        return self.area_px / (self.labels.shape[1] * self.labels.shape[2])

    @property
    def number(self) -> Int64[np.ndarray, " components"]:
        """Number of components in the same image."""
        return np.bincount(self.image, minlength=len(self.labels))[self.image]

    def by_area(self) -> dict[str, Bool[np.ndarray, " components"]]:
        """Return area bin → which components are in it."""
        return {name: (self.area_px >= low) & (self.area_px <= high) for name, (low, high) in AREA_BINS.items()}


def find_components(masks: Bool[np.ndarray, "n h w"]) -> Components:
    """Return the connected components of masks; pixels that touch at a corner are connected."""
    from scipy.ndimage import label

    within_image = np.zeros((3, 3, 3), dtype=bool)
    within_image[1] = True
    labels, count = label(masks, structure=within_image, output=np.int32)
    image, row, column = np.nonzero(labels)
    which = labels[image, row, column] - 1
    area = np.bincount(which, minlength=count)
    first = np.zeros(count, dtype=np.int64)
    first[which] = image

    def average(values: Shaped[np.ndarray, " pixels"]) -> Float64[np.ndarray, " components"]:
        return np.bincount(which, weights=values, minlength=count) / area

    y, x = row - average(row)[which], column - average(column)[which]
    # Every pixel is a square of variance 1/12 along both axes, not a point.
    yy, xx, xy = average(y * y) + 1 / 12, average(x * x) + 1 / 12, average(x * y)
    centre, half = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    return Components(
        labels=labels,
        image=first,
        area_px=area.astype(np.int64),
        elongation=np.sqrt((centre + half) / (centre - half)),
        irregularity=4 * np.pi * np.sqrt(yy * xx - xy**2) / area,
    )
