"""Sharpness-aware minimisation: gradients at the point of highest loss in a neighbourhood (Foret et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainables.models.batch_norm import running_statistics_kept

#: Added to the gradient's norm, so that weights stay unchanged where the gradient is zero.
_TINY = 1e-12


@contextmanager
def perturbed_weights(
    model: nn.Module, parameters: Sequence[nn.Parameter], *, rho: float, adaptive: bool
) -> Iterator[None]:
    """Set the weights to w + ρ·g/‖g‖ for their current gradients g inside the context, and restore them on exit.

    Weights are restored bit for bit; gradients stay those of the pass inside.

    Args:
        model: network; inside, its batch normalisation uses the batch's statistics without updating the running ones.
        parameters: trained parameters.
        rho: radius ρ.
        adaptive: whether the weights are w + ρ·w²g/‖|w|·g‖ instead, with a radius relative to each weight.

    Source: Foret et al. 2021 (arXiv 2010.01412), equation 2; Kwon et al. 2021 (arXiv 2102.11600), equation 8.
    """
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    _perturb_weights(moved, rho=rho, adaptive=adaptive)
    try:
        with running_statistics_kept([model]):
            yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def _perturb_weights(parameters: Sequence[nn.Parameter], *, rho: float, adaptive: bool) -> None:
    """Move the weights along the gradient to the edge of the neighbourhood, without waiting for the device."""
    gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
    directions = gradients
    if adaptive:
        sizes = [parameter.abs() for parameter in parameters]
        gradients = [size * gradient for size, gradient in zip(sizes, gradients, strict=True)]
        directions = [size * gradient for size, gradient in zip(sizes, gradients, strict=True)]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    scale = rho / (norm + _TINY)
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.add_(direction * scale)
