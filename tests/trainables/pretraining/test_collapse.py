"""Collapse of a contrastive pretraining: embeddings at one point and a loss as by guessing, not one of them alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainables.errors import CollapsedError
from trainables.pretraining.collapse import check_collapse, measure_spread


def test_spread_is_the_deviation_of_normalised_vectors() -> None:
    vectors = np.random.default_rng(0).normal(0.3, 1.0, (50, 7))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = math.sqrt(((units - units.mean(0)) ** 2).sum(1).mean())
    assert measure_spread(torch.from_numpy(vectors)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("features", [2, 128])
def test_spread_is_one_for_all_directions_and_zero_for_one(features: int) -> None:
    vectors = torch.randn(20_000, features, generator=torch.Generator().manual_seed(0))
    assert measure_spread(vectors).item() == pytest.approx(1.0, abs=0.01)
    scaled = torch.rand(50, 1) * torch.ones(1, features) + 0.1  # of different length, in one direction
    assert measure_spread(scaled).item() == pytest.approx(0.0, abs=1e-6)
    assert measure_spread(torch.zeros(8, features)).item() == 0.0


@pytest.mark.parametrize(
    ("loss", "features", "embeddings", "is_collapsed"),
    [
        (math.log(511), 0.8, 0.0, True),
        (math.log(511), 1e-4, 0.9, True),  # batch normalisation pulls rounding errors apart
        (6.2275, 0.45, 0.23, True),  # measured: digits at a learning rate of 1,000
        (6.74, 0.75, 0.99, False),  # measured: a phantom's first epoch
        (6.17, 0.82, 0.99, False),  # measured: the quickstart's first epoch
        (5.0, 0.8, 0.1, False),  # alike, and told apart
    ],
)
def test_both_signs_are_needed(loss: float, features: float, embeddings: float, is_collapsed: bool) -> None:
    values = {"loss": loss, "feature_spread": features, "embedding_spread": embeddings}

    def check() -> None:
        check_collapse(epoch=3, num_images=256, learning_rate=0.06, **values)

    if not is_collapsed:
        check()
        return
    with pytest.raises(CollapsedError, match=r"epoch 3: .* guessing costs 6.236; lower .* \(now 0.06\)"):
        check()
