"""Alignment and uniformity: whether two views of an image are near each other, and whether images fill the sphere."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Shaped
from torch import Tensor

#: Rows whose distances to all others are held at once: 512 × 20,000 of them are 82 MB.
_BLOCK = 512


def compute_alignment(
    first: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"], second: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"]
) -> float:
    """Return the mean squared distance between two views of the same images, in [0, 4]; lower is better.

    Features are normalised to length 1 first. It is 0 for a network that maps all images to one point, too: read it
    together with ``compute_uniformity``.

    Source: Wang & Isola 2020 (arXiv 2005.10242), section 4.1.1 with α = 2.

    Args:
        first: features of one view of every image.
        second: features of another view of the same images, in the same order.
    """
    return float((normalise_rows(first) - normalise_rows(second)).square().sum(1).mean())


def compute_uniformity(features: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"]) -> float:
    """Return the logarithm of the mean Gaussian potential between images, in [−8, 0]; lower is better.

    Features are normalised to length 1 first. It is 0 where all are one point; −4 is the least that can be had in
    expectation for many images in many dimensions, −8 that of two opposite points. No n × n matrix is held.

    Source: Wang & Isola 2020 (arXiv 2005.10242), section 4.1.2 with t = 2, over pairs of different images.

    Args:
        features: of n ≥ 2 images.

    Raises:
        ValueError: there is one image, or none.
    """
    units = normalise_rows(features)
    count = len(units)
    if count < 2:
        raise ValueError(f"computed the uniformity of {count} images, expected two or more")
    # exp(−2‖x − y‖²) = exp(4·xᵀy − 4) for unit vectors; twice the pairs of different images.
    total = 0.0
    for start in range(0, count, _BLOCK):
        similarity = units[start : start + _BLOCK] @ units.T
        potential = torch.exp(4.0 * similarity.clamp(max=1.0) - 4.0)
        total += float(potential.sum() - potential.diagonal(start).sum())
    return math.log(total / (count * (count - 1)))


def normalise_rows(features: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"]) -> Float64[Tensor, "n d"]:
    """Return the features in float64, each row divided by its length; a row of zeros stays."""
    return F.normalize(as_double(features), dim=1)


def as_double(values: Tensor | np.ndarray) -> Float64[Tensor, "..."]:
    """Return values in float64 on the CPU, without a graph; arrays are copied, since they may be read-only."""
    if isinstance(values, np.ndarray):
        return torch.from_numpy(np.array(values, dtype=np.float64))
    return values.detach().to("cpu", torch.float64)
