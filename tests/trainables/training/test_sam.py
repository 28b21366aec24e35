from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.training.sam import perturbed_weights


def quadratic(weights: torch.Tensor) -> torch.Tensor:
    return (torch.tensor([1.0, 10.0]) * weights.square()).sum()


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_second_gradient_is_taken_at_the_edge_of_the_neighbourhood(adaptive: bool) -> None:
    weights = nn.Parameter(torch.tensor([2.0, -0.3]))
    before = weights.detach().clone()
    quadratic(weights).backward()
    gradient = weights.grad.clone()
    scaled = before.abs() * gradient if adaptive else gradient
    step = 0.1 * (before.abs() * scaled if adaptive else scaled) / scaled.norm()
    with perturbed_weights(nn.Identity(), [weights], rho=0.1, adaptive=adaptive):
        torch.testing.assert_close(weights.detach(), before + step)
        weights.grad = None
        quadratic(weights).backward()
    assert torch.equal(weights.detach(), before)  # bit for bit
    torch.testing.assert_close(weights.grad, 2 * torch.tensor([1.0, 10.0]) * (before + step))


def test_batch_statistics_are_recorded_in_the_first_pass_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False))
    images = torch.randn(4, 1, 8, 8)
    model(images).square().sum().backward()
    before = {name: value.clone() for name, value in model.named_buffers()}
    with perturbed_weights(model, list(model.parameters()), rho=0.05, adaptive=False):
        model(images).square().sum().backward()
    assert before["1.num_batches_tracked"] == 1
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in before.items())
    assert [model[1].track_running_stats, model[2].track_running_stats] == [True, False]
    model(images)
    assert model[1].num_batches_tracked == 2


def test_weights_come_back_when_the_pass_fails() -> None:
    weights = nn.Parameter(torch.tensor([1.0, 1.0]))
    quadratic(weights).backward()
    with pytest.raises(RuntimeError), perturbed_weights(nn.Identity(), [weights], rho=1.0, adaptive=False):
        raise RuntimeError("out of memory")
    assert weights.tolist() == [1.0, 1.0]


def test_without_a_gradient_the_weights_stay() -> None:
    flat, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    flat.grad = torch.zeros(2)
    with perturbed_weights(nn.Identity(), [flat, frozen], rho=1.0, adaptive=False):
        assert flat.tolist() == frozen.tolist() == [1.0, 1.0]


def descend(rho: float | None) -> float:
    """Return where training settles that begins near a sharp minimum (at 0), in a wide bowl around 2."""
    x = nn.Parameter(torch.tensor([0.05]))
    optimiser = torch.optim.SGD([x], lr=0.01)

    def loss() -> torch.Tensor:
        return (0.1 * (x - 2).square() - (-50 * x.square()).exp()).sum()

    for _ in range(500):
        optimiser.zero_grad()
        loss().backward()
        if rho is not None:
            with perturbed_weights(nn.Identity(), [x], rho=rho, adaptive=False):
                optimiser.zero_grad()
                loss().backward()
        optimiser.step()
    return x.item()


def test_a_sharp_minimum_is_left_and_plain_descent_stays() -> None:
    assert abs(descend(None)) < 0.05
    assert descend(0.5) > 0.3  # the sharp minimum is .1 wide
