"""Finds the map that Grad-CAM weighs: the last convolutional one of a network that still has places."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.models.networks import Classifier


@torch.no_grad()
def find_last_map(model: Classifier, image: Float[Tensor, "1 c h w"]) -> nn.Module:
    """Return the module of the backbone that gives the last map of more than one place before the pooling.

    Where a network ends in maps of a single place (small images at a stride of 32), that is an earlier and larger one.

    Args:
        model: model in evaluation mode.
        image: normalised image.

    Raises:
        ConfigError: if the network has none, as a vision transformer, whose tokens are no map.
    """
    seen: list[tuple[nn.Module, torch.Size]] = []
    handles = [
        module.register_forward_hook(
            lambda each, _inputs, output: seen.append((each, output.shape)) if isinstance(output, Tensor) else None
        )
        for module in model.backbone.modules()
        if module is not model.backbone
    ]
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    calls: dict[nn.Module, int] = {}
    for module, _ in seen:
        calls[module] = calls.get(module, 0) + 1
    for position in range(len(seen) - 1, -1, -1):
        module, shape = seen[position]
        # A module that is called twice, such as an activation shared by two layers, is no single map.
        if _is_map(shape) and calls[module] == 1:
            return module
        if not _is_pooled(shape) and not _is_map(shape):
            break
    raise ConfigError(
        f"grad_cam: looked for the last convolutional map of {type(model.backbone).__name__} and found none before its "
        "pooling; expected a convolutional network: choose another attribution"
    )


def _is_map(shape: torch.Size) -> bool:
    """Return whether a shape is n × channels × side × side with more than one place."""
    return len(shape) == 4 and shape[2] == shape[3] > 1


def _is_pooled(shape: torch.Size) -> bool:
    """Return whether a shape has one vector per image, channels first or last."""
    return len(shape) == 2 or (len(shape) == 4 and 1 in (shape[1] * shape[2], shape[2] * shape[3]))
