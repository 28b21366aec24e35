"""Interface of the shift bank's operations: one strength per batch, random numbers per sample.

Published strengths hold at 224 px. On smaller images a blur of the same share of the image would often be less than
a pixel and have no effect, so up to .3 px are added (``scale_length``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.shifts.tables import Strength

Images = UInt8[Tensor, "n c h w"]
Seeds = Int64[Tensor, " n"]

#: Side at which ImageNet-C and MedMNIST-C define their kernels.
REFERENCE_SIDE_PX = 224


#: How volumes are shifted: as one image of all voxels where neighbours do not matter (noise, intensities), or slice by
#: slice with the random numbers of the volume; a composition part by part.
Fold = Literal["voxels", "slices", "parts"]


class Operation(NamedTuple):
    """Operation of a shift, and the strength at which it is the identity."""

    apply: Callable[[Images, Strength, Seeds], Images]
    identity: Strength
    #: Whether images of one channel are returned unchanged.
    needs_colour: bool = False
    #: None: it means nothing for volumes.
    fold: Fold | None = None


def scale_length(length_px: float, side_px: int) -> float:
    """Return a kernel length given at 224 px scaled to images of ``side_px``, plus up to .3 px below 224 px.

    At 32 px ImageNet-C's Gaussian sigmas 1, 2, 3, 4, 6 become .40, .54, .69, .83, 1.11; CIFAR-10-C publishes
    .4, .6, .7, .8, 1.
    """
    share = side_px / REFERENCE_SIDE_PX
    return length_px * share + 0.3 * max(0.0, 1.0 - share)


def scale_to(images: Images, length_px: float) -> float:
    """Return a length given at 224 px scaled to the shorter side of the images by ``scale_length``."""
    return scale_length(length_px, min(images.shape[-2:]))


def each(strength: Strength, images: Images, index: int = 0) -> Float[Tensor, " n"]:
    """Return the strength (or its ``index``-th number) repeated for every sample."""
    value = strength[index] if isinstance(strength, tuple) else strength
    return torch.full((len(images),), float(value), device=images.device)


def one(strength: Strength) -> float:
    """Return a strength that must be one number.

    Raises:
        TypeError: the strength has several numbers.
    """
    if isinstance(strength, tuple):
        raise TypeError(f"expected one number as strength, found {strength}")
    return strength


def several(strength: Strength, count: int) -> tuple[float, ...]:
    """Return a strength that must be ``count`` numbers.

    Raises:
        TypeError: the strength has more or fewer numbers.
    """
    if not isinstance(strength, tuple) or len(strength) != count:
        raise TypeError(f"expected {count} numbers as strength, found {strength}")
    return strength
