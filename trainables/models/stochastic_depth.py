"""Stochastic depth in the networks of torchvision and timm."""

from __future__ import annotations

from torch import nn

from trainables.errors import ConfigError


def set_stochastic_depth(backbone: nn.Module, probability: float, *, name: str) -> None:
    """Set probabilities that rise linearly from 0 at the first residual branch (Huang et al. 2016, equation 4).

    Raises:
        ConfigError: the network has no stochastic depth.
    """
    from torchvision.ops import StochasticDepth

    layers = [layer for layer in backbone.modules() if isinstance(layer, StochasticDepth)]
    if not layers:
        raise ConfigError(describe_lack(name))
    for index, layer in enumerate(layers):
        layer.p = probability * index / max(1, len(layers) - 1)


def scale_drop_paths(backbone: nn.Module, probability: float, *, name: str) -> None:
    """Scale timm's probabilities, which rise linearly, so that the last branch of those kept has ``probability``.

    Raises:
        ConfigError: the network has no stochastic depth.
    """
    from timm.layers import DropPath

    layers = [layer for layer in backbone.modules() if isinstance(layer, DropPath)]
    if probability and not layers:
        raise ConfigError(describe_lack(name))
    largest = max((layer.drop_prob for layer in layers), default=0.0)
    for layer in layers:
        layer.drop_prob *= probability / largest if largest else 0.0


def describe_lack(name: str) -> str:
    """Return the message that a network has no stochastic depth."""
    return (
        f"regulariser: asked {name} for stochastic depth, which it does not have; expected a network with it, such as "
        "efficientnet_b0, convnext_tiny, swin_t or timm/resnet18: set model.name to one, or use dropout"
    )
