from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainables.training.group_dro import GroupWeights


def build(*sizes: int, step_size: float = 0.01, adjustment: float = 0.0) -> GroupWeights:
    names = [f"site_{index}" for index in range(len(sizes))]
    return GroupWeights(names, torch.tensor(sizes), step_size=step_size, adjustment=adjustment)


def test_weights_start_equal_and_an_empty_group_has_none() -> None:
    assert build(10, 0, 30).weights.tolist() == pytest.approx([0.5, 0.0, 0.5])
    weights = build(10, 0, 30)
    weights(torch.tensor([1.0, 2.0]), torch.tensor([0, 2]), adapt=True)
    assert weights.weights[1] == 0.0
    assert bool(torch.isfinite(weights.weights).all())


def test_an_absent_group_loses_only_by_what_the_others_gain() -> None:
    weights = build(5, 5, step_size=1.0)
    weights(torch.tensor([math.log(3.0)]), torch.tensor([0]), adapt=True)
    assert weights.weights.tolist() == pytest.approx([0.75, 0.25])


def test_small_groups_are_adjusted_upwards() -> None:
    weights = build(4, 400, step_size=1.0, adjustment=2.0)
    weights(torch.tensor([1.0, 1.0]), torch.tensor([0, 1]), adapt=True)
    assert weights.weights[0] / weights.weights[1] == pytest.approx(math.exp(2 / 2 - 2 / 20), rel=1e-5)


def test_large_losses_do_not_overflow() -> None:
    weights = build(5, 5, step_size=1.0)
    for _ in range(50):
        loss = weights(torch.tensor([1000.0, 1.0]), torch.tensor([0, 1]), adapt=True)
    assert loss.item() == pytest.approx(1000.0)
    assert weights.weights.tolist() == pytest.approx([1.0, 0.0])


def test_summary_is_of_all_batches_since_the_last() -> None:
    weights = build(5, 5, 5)
    weights(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), adapt=True)
    weights(torch.tensor([6.0]), torch.tensor([1]), adapt=True)
    weights(torch.tensor([99.0]), torch.tensor([1]), adapt=False)  # a second pass over the same batch
    report = weights.summarise()
    assert report["group_loss/site_0"] == pytest.approx(2.0)
    assert report["worst_group_loss"] == report["group_loss/site_1"] == pytest.approx(5.5)
    assert "group_loss/site_2" not in report
    assert report["group_weight/site_2"] > 0
    weights(torch.tensor([7.0]), torch.tensor([2]), adapt=True)
    assert weights.summarise()["worst_group_loss"] == pytest.approx(7.0)


def test_only_the_weights_are_state() -> None:
    assert list(build(5, 5).state_dict()) == ["log_weights"]


def fit(robust: bool) -> list[float]:
    """Fit one number to two groups that want 0 (nine images) and 1 (one image); return each group's loss."""
    free = torch.zeros(1, requires_grad=True)
    wanted, groups = torch.tensor([0.0] * 9 + [1.0]), torch.tensor([0] * 9 + [1])
    weights = build(9, 1, step_size=0.1)
    optimiser = torch.optim.SGD([free], lr=0.05)
    for _ in range(1000):
        losses: Tensor = (free - wanted).square()
        optimiser.zero_grad()
        (weights(losses, groups, adapt=True) if robust else losses.mean()).backward()
        optimiser.step()
    return [losses[0].item(), losses[-1].item()]


def test_the_worst_group_is_as_good_as_it_can_be() -> None:
    assert max(fit(robust=False)) == pytest.approx(0.81, abs=0.01)  # the mean of all is at .1
    assert fit(robust=True) == pytest.approx([0.25, 0.25], abs=0.02)
