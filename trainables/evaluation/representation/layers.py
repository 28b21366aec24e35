"""Layers of a network whose activations are described: which ones, their means per image, and samples of positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.evaluation.layers import find_layer
from trainables.models.networks import Classifier

#: Name of the penultimate features beside those of layers.
PENULTIMATE = "penultimate"
SETTING = "evaluation.representation.layers"
#: Positions per axis that are sampled: neighbours say little that is new, and all of them would cost as much as the
#: network. An assumption.
_SIDE = 4
#: A network with fewer stages is described by its blocks.
_FEWEST_STAGES = 3
#: Blocks shown of a network that has the same number of positions throughout.
_BLOCKS = 4


def to_maps(output: Shaped[Tensor, "n *rest"]) -> Shaped[Tensor, "n c h w"] | None:
    """Return a layer's output with channels first, None if it is no map of positions or tokens.

    Tokens are a map of one row. Channels last are told from channels first by the sides: images are square.
    """
    if output.ndim == 3:
        return output.transpose(1, 2).unsqueeze(2)
    if output.ndim != 4:
        return None
    is_last = output.shape[2] != output.shape[3] and output.shape[1] == output.shape[2]
    return output.permute(0, 3, 1, 2) if is_last else output


def sample_positions(maps: Shaped[Tensor, "n c h w"]) -> Shaped[Tensor, "m c"]:
    """Return the activations at positions of a regular grid, at most 4 × 4 per image (16 tokens), as samples."""
    height, width = maps.shape[2:]
    across = _SIDE if height > 1 else _SIDE**2
    grid = maps[:, :, :: -(-height // _SIDE), :: -(-width // across)]
    return grid.permute(0, 2, 3, 1).flatten(0, 2)


@contextmanager
def listening(
    model: Classifier, names: Sequence[str], listen: Callable[[str, Shaped[Tensor, "n c h w"]], None]
) -> Iterator[None]:
    """Call ``listen`` with name and maps of every layer in each forward pass, until the context ends.

    It has to copy what it keeps: the next layer may work in place.

    Raises:
        ConfigError: there is no such layer, or, in a pass, its output is no map.
    """

    def hook(name: str, output: object) -> None:
        maps = to_maps(output) if isinstance(output, Tensor) else None
        if maps is None:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"{SETTING}: listened to {name}, whose output is {found}; expected a layer that gives maps of "
                "positions or tokens"
            )
        listen(name, maps)

    modules = {name: find_layer(model.backbone, name, setting=SETTING) for name in names}
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: hook(name, output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def check_layers(model: Classifier, names: Sequence[str], images: UInt8[Tensor, "n c h w"]) -> None:
    """Check on some images that layers exist, each named once, take part and give maps.

    Raises:
        ConfigError: if one does not.
    """
    if len(set(names)) < len(names):
        raise ConfigError(f"{SETTING}: found {', '.join(names)}; expected every layer once")
    heard: list[str] = []
    with listening(model.eval(), names, lambda name, _: heard.append(name)):
        model(model.normalise(images))
    missing = [name for name in names if name not in heard]
    if missing:
        raise ConfigError(f"{SETTING}: {missing[0]} takes no part in a forward pass; name another layer")


@torch.inference_mode()
def choose_layers(model: Classifier, images: UInt8[Tensor, "n c h w"]) -> tuple[str, ...]:
    """Return the first convolution and the last layer of every stage, in the order in which they run.

    Layers with the same number of positions are one stage. A network that has the same number throughout, such as a
    vision transformer, has no stages: evenly spaced blocks take their place, the last one among them.

    Args:
        model: the network.
        images: some images.
    """
    maps: dict[str, tuple[int, ...]] = {}

    def hook(name: str, module: nn.Module, output: object) -> None:
        found = to_maps(output) if isinstance(output, Tensor) else None
        has_weights = any(parameter.ndim > 1 for parameter in module.parameters())
        if found is not None and has_weights and found[0, 0].numel() > 1:
            maps.pop(name, None)
            maps[name] = tuple(found.shape[1:])

    modules = {name: module for name, module in model.backbone.named_modules() if name}
    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: hook(name, module, output))
        for name, module in modules.items()
    ]
    try:
        model.eval()
        model(model.normalise(images))
    finally:
        for handle in handles:
            handle.remove()
    first = [name for name in maps if isinstance(modules[name], nn.Conv2d)][:1]
    stages: dict[int, list[str]] = {}
    for name, shape in maps.items():
        stages.setdefault(shape[1] * shape[2], []).append(name)
    chosen = {*first, *(_list_blocks(maps) if len(stages) < _FEWEST_STAGES else ())}
    chosen |= {end for names in stages.values() for end in _find_end(names, set())}
    # A module that holds others of these, such as the whole trunk, gives way to its last part.
    ends = {end for names in stages.values() for end in _find_end(names, chosen)}
    kept = ends | {name for name in chosen if not _holds(name, chosen)}
    return tuple(name for name in maps if name in kept)


def _find_end(names: Sequence[str], chosen: set[str]) -> list[str]:
    """Return the last of the outermost modules of a stage without those that hold one of ``chosen``, if one is left."""
    free = [name for name in names if not _holds(name, chosen)]
    return [min(reversed(free), key=lambda name: name.count("."))] if free else []


def _holds(name: str, chosen: set[str]) -> bool:
    return any(each.startswith(f"{name}.") for each in chosen)


def list_convolutions(model: Classifier, names: Sequence[str]) -> list[str]:
    """Return those of the layers that are convolutions, whose output is linear in their input."""
    return [name for name in names if isinstance(find_layer(model.backbone, name, setting=SETTING), nn.Conv2d)]


def _list_blocks(maps: dict[str, tuple[int, ...]]) -> list[str]:
    """Return evenly spaced ones among the most modules with one parent and outputs of the same shape."""
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, shape in maps.items():
        groups.setdefault((name.rpartition(".")[0], shape), []).append(name)
    blocks = max(groups.values(), key=len, default=[])
    step = len(blocks) / _BLOCKS
    return [blocks[round((number + 1) * step) - 1] for number in range(_BLOCKS)] if step >= 1 else []
