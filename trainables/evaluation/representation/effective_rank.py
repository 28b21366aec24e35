"""Effective rank of features: RankMe of single images, LiDAR of several views of each."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from trainables.evaluation.representation.alignment_uniformity import as_double

#: Added to the diagonal of the scatter within images: δ of Thilak et al. 2024, section 4.
_DELTA = 1e-4
#: Values below this share of the largest are rounding errors.
_ROUNDING = 1e-12


def compute_rankme(features: Shaped[Tensor, "n d"] | Shaped[np.ndarray, "n d"]) -> float:
    """Return the effective rank of features, in [1, min(n, d)]; higher is better.

    exp of the entropy of the singular values as shares of their sum. Features are not centred. A constant or zero
    matrix has rank 1.

    Source: Garrido et al. 2023 (RankMe, arXiv 2210.02885), eq. 1 and 2. Differs: no ε is added to the shares, and a
    share of 0 contributes nothing.

    Args:
        features: of n images; the paper takes 25,600, and a rank cannot exceed n.
    """
    return compute_rank(torch.linalg.svdvals(as_double(features)))


def compute_lidar(views: Shaped[Tensor, "n q d"] | Shaped[np.ndarray, "n q d"]) -> float:
    """Return the effective rank of what tells images apart beyond what their views differ in, in [1, min(n − 1, d)].

    exp of the entropy of the eigenvalues, as shares of their sum, of Σ_w^−½ Σ_b Σ_w^−½: Σ_b the covariance of the
    means of the images, Σ_w the mean covariance of an image's views about their mean, plus δ = 1e-4 on its diagonal.
    Higher is better. Directions in which views vary as much as images count little, which RankMe cannot see.

    Source: Thilak et al. 2024 (LiDAR, arXiv 2312.04000), eq. 1 to 4. Differs: no ε is added to the shares.

    Args:
        views: features of q ≥ 2 views of each of n ≥ 2 images; the paper takes 1,000 images and 50 views.

    Raises:
        ValueError: there are fewer images or views.
    """
    vectors = as_double(views)
    num_images, num_views, size = vectors.shape
    if min(num_images, num_views) < 2:
        raise ValueError(f"computed LiDAR of {num_images} images and {num_views} views, expected two or more of both")
    means = vectors.mean(1)
    between = means - means.mean(0)
    between[between.abs() <= _ROUNDING * means.abs().max()] = 0.0  # or the rounding errors of one point had a rank
    within = (vectors - means[:, None]).flatten(0, 1)
    scatter = within.T @ within / len(within) + _DELTA * torch.eye(size, dtype=torch.float64)
    # With Σ_w = LLᵀ the eigenvalues are those of L⁻¹ Σ_b L⁻ᵀ: squared singular values of the whitened means.
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(scatter), between.T, upper=False)
    return compute_rank(torch.linalg.svdvals(whitened).square() / num_images)


def compute_rank(values: Float64[Tensor, " k"]) -> float:
    """Return exp of the entropy of ``values`` ≥ 0 as shares of their sum, in [1, k]; 1 where all are 0.

    Source: Roy & Vetterli 2007 (the effective rank).
    """
    values = torch.where(values > _ROUNDING * values.max(), values, torch.zeros_like(values))
    total = values.sum()
    if float(total) == 0.0:
        return 1.0
    shares = values / total
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))
