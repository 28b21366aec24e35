"""Adaptation of a network to grey and to small images, in place."""

from __future__ import annotations

from torch import nn

from trainables.errors import ConfigError


def _first_convolution(backbone: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise ConfigError(f"{type(backbone).__name__} has no convolution that could be fitted to grey or small images")


def replace_module(backbone: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the one called ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, module)


_STEM_LAYERS = (nn.Conv2d, nn.MaxPool2d)


def make_stem_small(backbone: nn.Module) -> None:
    """Give the first convolution stride 1 and remove a max-pool right after it, in place."""
    _, convolution = _first_convolution(backbone)
    convolution.stride = (1, 1)
    layers = [(name, module) for name, module in backbone.named_modules() if isinstance(module, _STEM_LAYERS)]
    pools = [index for index, (_, module) in enumerate(layers) if isinstance(module, nn.MaxPool2d)]
    # Right after the first convolution, or after the three 3×3 convolutions that replace it in timm's ResNets.
    if pools and (pools[0] == 1 or layers[pools[0]][0] == "maxpool"):
        replace_module(backbone, layers[pools[0]][0], nn.Identity())


def make_grey(backbone: nn.Module) -> None:
    """Give the first convolution one input channel, whose kernel is the sum over RGB, in place.

    Raises:
        ConfigError: it does not have three.
    """
    name, old = _first_convolution(backbone)
    if old.in_channels != 3:
        raise ConfigError(f"cannot fit {type(backbone).__name__} to grey images: {name} has {old.in_channels} inputs")
    old.weight = nn.Parameter(old.weight.detach().sum(1, keepdim=True))
    old.in_channels = 1
