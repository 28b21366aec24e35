"""One number per image from a map of uncertainties: of all pixels, the foreground, the worst patch, off boundaries."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64, Integer
from torch import Tensor
from torch.nn import functional

from trainables.errors import DataError

#: Side in pixels of the patch of ``worst_patch``. Source: Kahl et al. 2024 (ValUES).
PATCH = 10
#: Pixels at most this far from another predicted class are left out by ``boundary_excluded``. Assumption.
BOUNDARY = 2

Maps = Float[Tensor, "n *space"]
Labels = Integer[Tensor, "n *space"]


def aggregate_uncertainty(
    uncertainty: Maps, prediction: Labels, *, patch: int = PATCH, boundary: int = BOUNDARY
) -> dict[str, Float64[Tensor, " n"]]:
    """Return, by name of the aggregation (``confidence.AGGREGATIONS``), the mean uncertainty of every image.

    Of all pixels; of the predicted foreground; of the patch in which it is largest; of the pixels away from predicted
    boundaries. Where nothing is predicted, or no pixel is away from a boundary, it is that of all pixels.

    Along an axis on which a volume is shorter than a patch, a patch is as long as the volume.

    Args:
        uncertainty: map of two or three axes of every image; higher is less certain.
        prediction: predicted class of every pixel; 0 is background.
        patch: side of the patches, in pixels.
        boundary: distance up to which pixels are left out, in pixels, along the axes and diagonally.

    Raises:
        DataError: if the patch is larger than an image, or the maps have neither two nor three axes.
    """
    if uncertainty.ndim not in (3, 4) or patch < 1 or (uncertainty.ndim == 3 and patch > min(uncertainty.shape[1:])):
        raise DataError(
            f"aggregated maps of {tuple(uncertainty.shape[1:])} pixels over patches with a side of {patch}; expected "
            "maps of three axes, or of two that are not shorter than a patch"
        )
    image = uncertainty.flatten(1).mean(dim=1, dtype=torch.float64)
    worst = _pool(uncertainty, patch, (functional.avg_pool2d, functional.avg_pool3d)).flatten(1).amax(dim=1)
    return {
        "image": image,
        "foreground": _average(uncertainty, prediction > 0, image),
        "worst_patch": worst.double(),
        "boundary_excluded": _average(uncertainty, ~find_boundary(prediction, boundary), image),
    }


def find_boundary(prediction: Labels, distance: int) -> Bool[Tensor, "n *space"]:
    """Return where the square with a half side of ``distance`` pixels around a pixel holds more than one class."""
    pools = (functional.max_pool2d, functional.max_pool3d)
    labels = prediction.float()
    highest = _pool(labels, 2 * distance + 1, pools, padding=distance)
    lowest = -_pool(-labels, 2 * distance + 1, pools, padding=distance)
    return highest != lowest


def _pool(
    maps: Maps, size: int, pools: tuple[Callable[..., Tensor], ...], padding: int = 0
) -> Float[Tensor, "n *pooled"]:
    """Return maps pooled over boxes at every place: over one axis after the other, which is the same."""
    axes = maps.ndim - 1
    found = maps[:, None]
    for axis in range(axes):
        length = min(size, maps.shape[1 + axis]) if not padding else size
        kernel = tuple(length if each == axis else 1 for each in range(axes))
        margin = tuple(padding if each == axis else 0 for each in range(axes))
        found = pools[axes - 2](found, kernel, stride=1, padding=margin)
    return found[:, 0]


def _average(
    uncertainty: Maps, chosen: Bool[Tensor, "n *space"], otherwise: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Return the mean over the chosen pixels of every image, ``otherwise`` where there are none."""
    total = torch.where(chosen, uncertainty, 0.0).flatten(1).sum(dim=1, dtype=torch.float64)
    count = chosen.flatten(1).sum(dim=1)
    return torch.where(count > 0, total / count.clamp(min=1), otherwise)
