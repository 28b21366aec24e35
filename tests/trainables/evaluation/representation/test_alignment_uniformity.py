"""Alignment and uniformity against their definitions, pair by pair, and where their values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainables.evaluation.representation.alignment_uniformity import compute_alignment, compute_uniformity


def features(count: int = 700, size: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(0.2, 1.0, (count, size)).astype(np.float32)


def test_both_agree_with_their_definitions() -> None:
    """Over all pairs, of more images than are compared at once."""
    first, second = features(), features() + features()[::-1] / 3
    units = first.astype(np.float64) / np.linalg.norm(first.astype(np.float64), axis=1, keepdims=True)
    others = second.astype(np.float64) / np.linalg.norm(second.astype(np.float64), axis=1, keepdims=True)
    assert compute_alignment(first, torch.from_numpy(second)) == pytest.approx(((units - others) ** 2).sum(1).mean())
    squared = ((units[:, None] - units[None]) ** 2).sum(-1)
    pairs = np.triu_indices(len(units), 1)
    assert compute_uniformity(first) == pytest.approx(np.log(np.exp(-2 * squared[pairs]).mean()), rel=1e-10)


def test_known_values() -> None:
    point = np.ones((9, 3))
    assert compute_alignment(features(9, 3), 7 * features(9, 3)) == pytest.approx(0.0, abs=1e-14)
    assert compute_alignment(point, -point) == pytest.approx(4.0)
    assert compute_uniformity(point) == pytest.approx(0.0, abs=1e-14)
    assert compute_uniformity(np.array([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-8.0)
    assert compute_uniformity(np.eye(4)) == pytest.approx(-4.0)  # all at right angles: exp(−2·2)
    assert compute_uniformity(features(2000, 400) - 0.2) == pytest.approx(-4.0, abs=0.05)


def test_one_image_has_no_uniformity() -> None:
    with pytest.raises(ValueError, match="of 1 images, expected two or more"):
        compute_uniformity(np.ones((1, 3)))
    assert math.isfinite(compute_uniformity(np.zeros((2, 3))))
