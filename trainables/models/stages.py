"""The first stages of a convolutional network, with average pooling and a new linear layer after them.

Layers whose maps have the same size are one stage (Lin et al. 2017, FPN, section 3); a stem, the layers before the
first block, is part of the first stage. ResNet and ConvNeXt have four stages, EfficientNet has five, the last of which
holds the final 1×1 convolution. Early stages carry most of the benefit of ImageNet weights for medical images, in a
fraction of the time (Raghu et al. 2019, Transfusion, section 5).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainables.errors import ConfigError

#: Side in px of the image that shows where the stages end: at a stride of 32 the maps still have 4 × 4 values.
_SIDE_PX = 128
#: A new stage begins where the side falls below this share of the last one: halving does, unpadded convolutions do not.
_SHRINKS_BELOW = 0.75
#: What the modules of a network raise if they are called out of place.
_REFUSALS = (AssertionError, RuntimeError, TypeError, ValueError, NotImplementedError)


class FirstStages(nn.Module):
    """The first parts of a network in sequence, under their own names, then average pooling and a linear layer.

    Args:
        parts: name in the network → module.
        num_features: channels of the last map.
        num_classes: number of logits.
    """

    def __init__(self, parts: dict[str, nn.Module], *, num_features: int, num_classes: int) -> None:
        super().__init__()
        assert "head" not in parts, "the linear layer would take the place of a part of the network"
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the logits."""
        for name, part in self.named_children():
            if name != "head":
                images = part(images)
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


@torch.no_grad()
def keep_stages(network: nn.Module, count: int, *, head: str, num_classes: int, name: str) -> FirstStages:
    """Return the first ``count`` stages of an RGB network with their weights; what lies behind them is gone.

    Their output is compared with what the whole network computes at that place. The linear layer is drawn from torch's
    global generator, the modules are those of ``network``.

    Args:
        network: network of torchvision or timm.
        count: number of stages, from 1.
        head: name of the layer that gives the logits; the child that holds it is part of no stage.
        num_classes: number of logits.
        name: name of the network, for messages.

    Raises:
        ConfigError: if the network has fewer stages, or none that run one after the other.
    """
    was_training = network.training
    network.eval()
    ends = find_ends(network, channels=3, head=head)
    if not ends:
        raise ConfigError(
            f"model.stages: looked for stages in {name}, whose maps get smaller from one to the next, and found none; "
            "expected a convolutional network that runs its parts in sequence, such as resnet18, convnext_tiny or "
            "timm/tf_efficientnet_lite0: choose another one, or leave model.stages out"
        )
    if count > len(ends):
        raise ConfigError(
            f"model.stages: found {count}, and {name} has {len(ends)} stages; expected 1 to {len(ends)}, or none for "
            "the whole network"
        )
    image = _make_image(network, channels=3)
    expected = _record_output(network, ends[count - 1], image)
    parts = _cut(network, ends[count - 1])
    found = image
    for part in parts.values():
        found = part(found)
    if not torch.equal(found, expected):
        raise ConfigError(
            f"model.stages: cut {name} behind {ends[count - 1]}, and its parts run in sequence give another map than "
            "the network computes there; expected a network that does nothing between them: choose another one, or "
            "leave model.stages out"
        )
    kept = FirstStages(parts, num_features=found.shape[1], num_classes=num_classes)
    network.train(was_training)
    return kept.train(was_training)


def _make_image(network: nn.Module, *, channels: int) -> Float[Tensor, "1 channels h w"]:
    image = torch.linspace(-1.0, 1.0, channels * _SIDE_PX**2, device=next(network.parameters()).device)
    return image.view(1, channels, _SIDE_PX, _SIDE_PX)


@torch.no_grad()
def find_ends(network: nn.Module, *, channels: int, head: str) -> list[str]:
    """Return the name of the last part of every stage: a block, or a convolution with its normalisation and activation.

    A normalisation behind a block belongs to what follows it. The list is empty if parts do not run one after the
    other, as in a transformer.

    Args:
        network: network in evaluation mode.
        channels: channels of its images.
        head: name of the layer that gives the logits; the child that holds it is part of no stage.
    """
    image = _make_image(network, channels=channels)
    top = head.partition(".")[0]
    parts = [(name, part) for name, part in list_parts(network) if name.partition(".")[0] != top]
    has_blocks = any(count_weights(part) > 1 for _, part in parts)
    ends: list[str] = []
    side, maps = _SIDE_PX, image
    is_new, has_begun, is_behind_block = True, False, False
    for name, part in parts:
        try:
            maps = part(maps)
        except _REFUSALS:
            break
        if maps.ndim != 4 or maps.shape[2] != maps.shape[3] or maps.shape[2] == 1:
            break  # pooled, flattened, or with channels last
        if maps.shape[2] < _SHRINKS_BELOW * side:
            is_new, has_begun = True, False
        side, weights = maps.shape[2], count_weights(part)
        has_begun |= weights > int(has_blocks)
        if weights:
            is_behind_block = weights > 1
        if has_begun and (weights or not is_behind_block):
            if is_new:
                ends.append(name)
            ends[-1], is_new = name, False
    return ends


def list_parts(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of the parts in the order in which they are defined; plain sequences are taken apart."""
    for name, child in network.named_children():
        if type(child) is nn.Sequential:
            yield from list_parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def count_weights(part: nn.Module) -> int:
    """Return the number of weights of convolutions and linear layers: above one for a block."""
    return sum(parameter.ndim > 1 for parameter in part.parameters())


def _record_output(network: nn.Module, name: str, image: Float[Tensor, "1 3 h w"]) -> Tensor:
    """Return what the module ``name`` gives inside the network."""
    seen: list[Tensor] = []
    # A copy: the next layer may work in place.
    hook = network.get_submodule(name).register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    try:
        network(image)
    finally:
        hook.remove()
    return seen[0]


def _cut(network: nn.Module, last: str) -> dict[str, nn.Module]:
    """Return the children up to and including the module ``last``, sequences cut inside."""
    first, _, rest = last.partition(".")
    kept: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if name != first:
            kept[name] = child
            continue
        kept[name] = nn.Sequential(OrderedDict(_cut(child, rest))) if rest else child
        break
    return kept
