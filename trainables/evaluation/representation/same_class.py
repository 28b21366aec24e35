"""Alignment of images of one class, from sums: no pair is looked at alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from trainables.evaluation.representation.alignment_uniformity import normalise_rows


def compute_class_alignment(features: Shaped[Tensor, "n d"], labels: Int64[np.ndarray, " n"]) -> float | None:
    """Return the mean squared distance between images of one class, in [0, 4]; lower is better.

    Features are normalised to length 1 first. Over all pairs of different images of a class, all classes together; None
    if there is no such pair.

    Source: Wang & Isola 2020 (arXiv 2005.10242), section 4.1.1 with α = 2. Differs: the positive pairs are images of
    one class; those of a pretraining are two views of an image.

    Args:
        features: of the images.
        labels: their classes; images without one (below 0) are left out.
    """
    total, count = 0.0, 0
    for label in np.unique(labels[labels >= 0]):
        units = normalise_rows(features[labels == label])
        size = len(units)
        # Over pairs i < j: Σ‖u_i − u_j‖² = n·Σ‖u‖² − ‖Σu‖².
        total += float(size * units.square().sum() - units.sum(0).square().sum())
        count += size * (size - 1) // 2
    return max(0.0, total / count) if count else None
