"""Order of a network's layers and stages: number of every parameter, counted from the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainables.errors import ConfigError
from trainables.models.networks import Classifier
from trainables.models.stages import count_weights, find_ends, list_parts

#: A network in whose order no more layers are found has not been taken apart: a transformer of torchvision.
_FEWEST_LAYERS = 3


def order_layers(model: Classifier, *, name: str) -> dict[str, int]:
    """Return parameter of the backbone → its layer, from 0 for the stem up to the largest number for the head.

    Layers of a timm network are those of timm's ``group_matcher``. Of another one they are its parts in the order of
    their definition: everything before the first block is the stem, every block or convolution behind it is a layer.
    In a network without blocks the first convolution is the stem. A normalisation behind a convolution belongs to it,
    one behind a block to what follows.

    Args:
        model: model whose backbone is looked at.
        name: name of the network, for messages.

    Raises:
        ConfigError: the network shows no order of layers.
    """
    backbone: Any = model.backbone
    if hasattr(backbone, "group_matcher"):
        from timm.models import group_parameters

        found: dict[str, int] = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    else:
        found = _number_parts(backbone, head=model.head_name)
    highest = max(found.values())
    if highest < _FEWEST_LAYERS:
        raise ConfigError(
            f"training.fine_tune: looked for the order of the layers of {name} and found {highest} below the head; "
            "expected a convolutional network or one of timm (timm/<name>), which says it"
        )
    return {name: highest if name.startswith(f"{model.head_name}.") else layer for name, layer in found.items()}


def _number_parts(backbone: nn.Module, *, head: str) -> dict[str, int]:
    """Return parameter → layer; the head's parameters come last."""
    parts = [(name, part) for name, part in list_parts(backbone) if not f"{name}.".startswith(f"{head}.")]
    has_begun = not any(count_weights(part) > 1 for _, part in parts)  # without blocks every convolution is a layer
    layers = [[name for name, _ in backbone.named_parameters(recurse=False)]]  # class token, position embedding
    has_weights = is_behind_block = begins_with_norm = False
    for prefix, part in parts:
        names = [f"{prefix}.{name}" for name, _ in part.named_parameters()]
        weights = count_weights(part)
        has_begun |= weights > 1
        if names and not weights and is_behind_block:
            layers.append([])
            begins_with_norm, is_behind_block = True, False
        elif weights:
            if has_begun and has_weights and not begins_with_norm:
                layers.append([])
            has_weights, begins_with_norm, is_behind_block = True, False, weights > 1
        layers[-1] += names
    found = {name: layer for layer, names in enumerate(layers) for name in names}
    return {name: found.get(name, len(layers)) for name, _ in backbone.named_parameters()}


@torch.no_grad()
def order_stages(model: Classifier, *, name: str) -> tuple[dict[str, int], int]:
    """Return parameter of the backbone without the head → its stage from 0, and the number of stages.

    Stages are those of ``model.stages``: layers whose maps have the same size; what follows the last is part of it.

    Raises:
        ConfigError: the network has no stages.
    """
    backbone = model.backbone
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    ends = find_ends(backbone, channels=model.mean.shape[1], head=model.head_name)
    for module, mode in modes.items():
        module.training = mode
    if not ends:
        raise ConfigError(
            f"training.fine_tune.last_stages: looked for stages in {name}, whose maps get smaller from one to the "
            "next, and found none; expected a convolutional network: choose another one, or use layer_decay"
        )
    modules = [module for module, _ in backbone.named_modules()]
    last = [max(index for index, module in enumerate(modules) if f"{module}.".startswith(f"{end}.")) for end in ends]
    position = {module: index for index, module in enumerate(modules)}
    found: dict[str, int] = {}
    for parameter, _ in backbone.named_parameters():
        if not parameter.startswith(f"{model.head_name}."):
            stage = sum(position[parameter.rpartition(".")[0]] > boundary for boundary in last)
            found[parameter] = min(stage, len(ends) - 1)
    return found, len(ends)
