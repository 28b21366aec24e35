"""Similarity of two representations of the same images: unbiased linear CKA and the orthogonal Procrustes distance.

Both are computed from sums over images in feature space: no n × n matrix is held, and images may come in batches. The
sums are float64. Neither measure dominates the other (Ding et al. 2021): CKA follows the directions of large variance,
the Procrustes distance sees the smaller ones too.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

#: The unbiased estimator divides by n − 3.
MIN_IMAGES = 4
#: Images of which float64 copies are held at once.
_BATCH = 512


class CrossMoments:
    """Sums over images of two representations x and y, from which both measures are computed."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._product: Tensor | None = None
        self._sums: list[Tensor] = []

    def update(self, first: Shaped[Tensor, "n p"], second: Shaped[Tensor, "n q"]) -> None:
        """Add the features of n images."""
        x, y = first.double(), second.double()
        if self._shift is None:  # both measures are blind to a constant: less is lost to rounding near 0
            self._shift = x.mean(0), y.mean(0)
        x, y = x - self._shift[0], y - self._shift[1]
        k, m = x.square().sum(1), y.square().sum(1)  # diagonals of the Gram matrices
        if self._product is None:
            self._product = x.new_zeros(x.shape[1], y.shape[1])
        self._product.addmm_(x.T, y)
        sums = [x.sum(0), y.sum(0), x.T @ m, y.T @ k, k.sum(), m.sum(), k @ m]
        self._sums = [old.add_(new) for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.count += len(x)

    def compute_hsic(self) -> float:
        """Return the unbiased estimate of HSIC with linear kernels; it can be negative.

        Of the Gram matrices K = xxᵀ and L = yyᵀ it needs their diagonals and row sums only.

        Source: Song et al. 2007 (Supervised feature selection via dependence estimation), eq. 4: K̃ and L̃ without
        diagonal, [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1 / ((n − 1)(n − 2)) − 2/(n − 2)·1ᵀK̃L̃1] / (n(n − 3)).

        Raises:
            ValueError: there are fewer than four images.
        """
        n = self.count
        if n < MIN_IMAGES:
            raise ValueError(f"computed HSIC of {n} images, expected {MIN_IMAGES} or more")
        assert self._product is not None
        x, y, x_by_m, y_by_k, k, m, k_by_m = self._sums
        trace = torch.linalg.matrix_norm(self._product).square() - k_by_m
        totals = (x @ x - k) * (y @ y - m)
        rows = x @ self._product @ y - x @ x_by_m - y @ y_by_k + k_by_m
        return float(trace + totals / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * rows) / (n * (n - 3))

    def compute_procrustes(self) -> float | None:
        """Return the orthogonal Procrustes distance in [0, 2], 0 if one is a rotation of the other; None if one is
        constant.

        2 − 2·‖xᵀy‖_* of centred representations of Frobenius norm 1.

        Source: Ding et al. 2021 (Grounding representation similarity with statistical testing), section 2.
        """
        assert self._product is not None
        x, y, _, _, k, m, _ = self._sums
        norms = (k - x @ x / self.count) * (m - y @ y / self.count)
        if not float(norms) > 0.0:
            return None
        nuclear = torch.linalg.svdvals(torch.addr(self._product, x, y, alpha=-1.0 / self.count)).sum()
        return max(0.0, 2.0 - 2.0 * float(nuclear / norms.sqrt()))


def compute_cka(cross: CrossMoments, first: CrossMoments, second: CrossMoments) -> float | None:
    """Return unbiased linear CKA in [−1, 1], 1 if one representation is a scaled rotation of the other.

    Independent ones have 0 on average, whatever their sizes; None if one does not vary.

    Source: Kornblith et al. 2019, eq. 2; Nguyen et al. 2021 (Do wide and deep networks learn the same things?), eq. 3
    for the unbiased estimator. Differs: of all images at once, not a mean over minibatches.

    Args:
        cross: sums of both representations.
        first: sums of the first one with itself.
        second: sums of the second one with itself.
    """
    return _relate(cross.compute_hsic(), first.compute_hsic(), second.compute_hsic())


def _relate(cross: float, first: float, second: float) -> float | None:
    if min(first, second) <= 0.0:
        return None
    return min(1.0, max(-1.0, cross / math.sqrt(first) / math.sqrt(second)))


Features = Shaped[Tensor, "_ _"] | Shaped[np.ndarray, "_ _"]


def compare_features(first: Features, second: Features) -> tuple[float | None, float | None]:
    """Return CKA and the Procrustes distance of two representations; None where one is not defined.

    Args:
        first: features of n ≥ 4 images.
        second: other features of the same images, in the same order.

    Raises:
        ValueError: the numbers of images differ, or there are fewer than four.
    """
    if len(first) != len(second):
        raise ValueError(f"compared features of {len(first)} and of {len(second)} images, expected the same images")
    # One after the other, so that one matrix of sums is held at a time.
    own, other = _sum(first, first).compute_hsic(), _sum(second, second).compute_hsic()
    cross = _sum(first, second)
    return _relate(cross.compute_hsic(), own, other), cross.compute_procrustes()


def _sum(first: Features, second: Features) -> CrossMoments:
    moments = CrossMoments()
    for start in range(0, len(first), _BATCH):
        moments.update(*(torch.as_tensor(each[start : start + _BATCH]) for each in (first, second)))
    return moments
