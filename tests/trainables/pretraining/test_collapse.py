"""Collapse of a contrastive pretraining: embeddings at one point and a loss as by guessing, not one of them alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainables.contrastive_config import Byol, Method, MoCo, SimClr
from trainables.errors import CollapsedError
from trainables.pretraining.collapse import (
    CollapseMeter,
    check_collapse,
    describe_collapse,
    find_chance_loss,
    measure_spread,
)
from trainables.pretraining.methods import Outcome


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


GUESSING = math.log(511)


@pytest.mark.parametrize(
    ("method", "loss", "features", "embeddings", "is_collapsed"),
    [
        (SimClr(), GUESSING, 0.8, 0.0, True),
        (SimClr(), GUESSING, 1e-4, 0.9, True),  # batch normalisation pulls rounding errors apart
        (SimClr(), 6.2275, 0.45, 0.23, True),  # measured: digits at a learning rate of 1,000
        (SimClr(), 6.74, 0.75, 0.99, False),  # measured: a phantom's first epoch
        (SimClr(), 6.17, 0.82, 0.99, False),  # measured: the quickstart's first epoch
        (SimClr(), 5.0, 0.8, 0.1, False),  # alike, and told apart
        (MoCo(queue_size=512), math.log(513), 0.8, 0.02, True),
        (MoCo(queue_size=512), 6.179, 0.94, 0.087, False),  # measured: a phantom's second epoch; it recovers
        (MoCo(queue_size=256), 5.51, 0.34, 0.158, False),  # measured: digits, the second epoch of a healthy run
        (MoCo(), GUESSING, 0.8, 0.02, False),  # of 65,536 keys this is no guessing
        (Byol(), 0.01, 0.8, 0.0, True),
        (Byol(), 1.66, 0.996, 0.825, False),  # measured: digits
    ],
)
def test_both_signs_are_needed(
    method: Method, loss: float, features: float, embeddings: float, is_collapsed: bool
) -> None:
    found = {"ssl/loss": loss, "ssl/feature_spread": features, "ssl/embedding_spread": embeddings}

    def check() -> None:
        check_collapse(found, method, find_chance_loss(method, 256), epoch=3)

    if not is_collapsed:
        check()
        return
    guessing = "" if isinstance(method, Byol) else ", where guessing costs 6.2"
    with pytest.raises(CollapsedError, match=rf"epoch 3: .*{guessing}.*; lower pretraining\.method.* \(now 0"):
        check()


def outcome(rank: int) -> Outcome:
    """Embeddings of 400 views evenly spread over so many dimensions of 30, about a common direction."""
    random = np.random.default_rng(0)
    vectors = np.zeros((400, 30))
    vectors[:, :rank] = random.normal(size=(400, rank))
    vectors[:, -1] = 50.0
    features = torch.from_numpy(random.normal(size=(400, 30)))
    return Outcome(torch.tensor(2.0), features.float(), torch.from_numpy(vectors).float())


@pytest.mark.parametrize(
    ("rank", "chance", "is_collapsed"),
    [(1, None, 1.0), (2, 9.0, 1.0), (4, None, 0.0), (4, 9.0, 0.0), (4, 2.01, 1.0), (8, 2.0, 1.0), (12, 2.0, 0.0)],
)
def test_few_dimensions_are_flagged(rank: int, chance: float | None, is_collapsed: float) -> None:
    """Fewer than three always; fewer than half of the first batch's twenty, if the loss of 2 is that of guessing."""
    first = CollapseMeter(torch.device("cpu"), None)
    first.add(outcome(20))
    first.add(outcome(20))
    start = first.summarise(chance)
    assert start["ssl/first_embedding_rank"] == pytest.approx(20, rel=0.1)
    meter = CollapseMeter(torch.device("cpu"), start)
    meter.add(outcome(20))
    meter.add(outcome(rank))
    found = meter.summarise(chance)
    assert found["ssl/loss"] == 2.0
    assert "ssl/first_embedding_rank" not in found
    assert found["ssl/embedding_rank"] == pytest.approx(rank, rel=0.1, abs=0.05)
    assert found["ssl/feature_rank"] > 25
    assert found["ssl/collapsed"] == is_collapsed


@pytest.mark.parametrize(("views", "is_collapsed"), [(2, 0.0), (6, 0.0), (8, 1.0)])
def test_batches_that_can_have_no_more_dimensions_are_not_flagged(views: int, is_collapsed: float) -> None:
    few = outcome(2)
    meter = CollapseMeter(torch.device("cpu"), None)
    meter.add(Outcome(few.loss, few.features[:views], few.embeddings[:views]))
    assert meter.summarise(None)["ssl/collapsed"] == is_collapsed


@pytest.mark.parametrize(
    ("flags", "verdict", "epochs"),
    [([0, 0, 0], "none", []), ([1, 1, 0], "none", [1, 2]), ([0, 1, 1], "dimensional", [2, 3])],
)
def test_the_verdict_is_that_of_the_last_epoch(flags: list[int], verdict: str, epochs: list[int]) -> None:
    history = [{"epoch": n, "metrics": {"ssl/collapsed": float(flag)}} for n, flag in enumerate(flags, 1)]
    found = describe_collapse(history)
    assert (found["verdict"], found["epochs"]) == (verdict, epochs)
