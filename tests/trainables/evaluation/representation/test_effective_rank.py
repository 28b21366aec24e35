"""RankMe and LiDAR against their definitions in numpy, and where the rank is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.evaluation.representation.effective_rank import compute_lidar, compute_rankme

RANDOM = np.random.default_rng(0)


def orthogonal(size: int) -> np.ndarray:
    return np.linalg.qr(RANDOM.normal(size=(size, size)))[0]


def entropy_rank(values: np.ndarray) -> float:
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_rankme_is_the_entropy_of_singular_values() -> None:
    features = RANDOM.normal(size=(50, 8)).astype(np.float32)
    expected = entropy_rank(np.linalg.svd(features.astype(np.float64), compute_uv=False))
    assert compute_rankme(features) == pytest.approx(expected, rel=1e-10)
    assert compute_rankme(torch.from_numpy(features) * 1e6) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_rankme_of_equal_singular_values_is_their_number(rank: int) -> None:
    assert compute_rankme(orthogonal(40)[:, :rank] @ orthogonal(12)[:rank]) == pytest.approx(rank, rel=1e-9)


def test_one_point_has_rank_one() -> None:
    assert compute_rankme(np.full((30, 6), 0.3)) == pytest.approx(1.0)
    assert compute_rankme(np.zeros((30, 6))) == 1.0
    assert compute_lidar(np.full((30, 4, 6), 0.3)) == 1.0
    assert compute_lidar(np.broadcast_to(RANDOM.normal(size=(1, 4, 6)), (30, 4, 6))) == 1.0


def test_lidar_is_the_rank_of_the_whitened_scatter() -> None:
    views = RANDOM.normal(size=(40, 1, 6)) * [3, 3, 2, 1, 1, 0.1] + RANDOM.normal(size=(40, 5, 6)) * [
        1,
        0.2,
        1,
        1,
        2,
        1,
    ]
    means = views.mean(1)
    between = np.cov(means.T, bias=True)
    within = np.mean([np.cov(image.T, bias=True) for image in views], axis=0) + 1e-4 * np.eye(6)
    expected = entropy_rank(np.linalg.eigvals(np.linalg.solve(within, between)).real)
    assert compute_lidar(torch.from_numpy(views)) == pytest.approx(expected, rel=1e-8)


def test_lidar_leaves_out_what_views_differ_in() -> None:
    """Of eight directions of equal size, four are noise of the views: RankMe sees eight, LiDAR four."""
    images = np.concatenate([RANDOM.normal(size=(400, 1, 4)).repeat(20, 1), np.zeros((400, 20, 4))], axis=2)
    views = images + np.concatenate([np.zeros((400, 20, 4)), RANDOM.normal(size=(400, 20, 4))], axis=2)
    assert compute_rankme(views.reshape(-1, 8)) == pytest.approx(8, abs=0.1)
    assert compute_lidar(views) == pytest.approx(4, abs=0.1)


def test_lidar_needs_two_of_both() -> None:
    with pytest.raises(ValueError, match="of 5 images and 1 views, expected two or more of both"):
        compute_lidar(RANDOM.normal(size=(5, 1, 3)))
