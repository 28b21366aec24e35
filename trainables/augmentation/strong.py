"""The strong policy: a few distinct operations per image from a very wide magnitude space.

Source: Pohjonen et al. 2022 (arXiv 2206.15274), the space of StrongAugment v0.1.0. Differs: everything is drawn from
the sample's seed; jpeg keeps red and blue in place; posterize does not overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.policy import apply_chosen
from trainables.ops import colour, filters, noise
from trainables.seeding import uniform

Images = UInt8[Tensor, "n c h w"]
#: Two per sample; only tone uses the second.
Magnitudes = Float[Tensor, "n 2"]
Seeds = Int64[Tensor, " n"]


class StrongOperation(NamedTuple):
    """One row of the policy's table."""

    apply: Callable[[Images, Magnitudes, Seeds], Images]
    low: float
    high: float
    #: Magnitudes (the second for tone) that change nothing.
    identity: tuple[float, float]
    #: float: uniform in [low, high). integer: uniform, both ends included. switch: 1 with probability strength.
    kind: str = "float"


def _first(operation: Callable[[Images, Tensor], Images]) -> Callable[[Images, Magnitudes, Seeds], Images]:
    return lambda images, magnitudes, seeds: operation(images, magnitudes[:, 0])


def _plain(operation: Callable[[Images], Images]) -> Callable[[Images, Magnitudes, Seeds], Images]:
    return lambda images, magnitudes, seeds: operation(images)


def _channel(channel: int) -> Callable[[Images, Magnitudes, Seeds], Images]:
    return _first(partial(colour.adjust_channel, channel=channel))


def _blur(images: Images, magnitudes: Magnitudes, seeds: Seeds) -> Images:
    sigma = magnitudes[:, 0]
    half = torch.div(torch.round(3.5 * sigma), 2, rounding_mode="floor").clamp(min=1)  # kernel side 2·half + 1 ≥ 3
    return filters.gaussian_blur(images, sigma, half.to(torch.int64))


def _jpeg(images: Images, magnitudes: Magnitudes, seeds: Seeds) -> Images:
    return filters.jpeg(images, magnitudes[:, 0].to(torch.int64))


def _noise(images: Images, magnitudes: Magnitudes, seeds: Seeds) -> Images:
    return noise.mix_uniform_noise(images, magnitudes[:, 0], seeds)


def _tone(images: Images, magnitudes: Magnitudes, seeds: Seeds) -> Images:
    return colour.adjust_tone(images, magnitudes[:, 0], magnitudes[:, 1])


_ONE = (1.0, 0.0)
_ZERO = (0.0, 0.0)

OPERATIONS: dict[str, StrongOperation] = {
    "red": StrongOperation(_channel(0), 0.0, 2.0, _ONE),
    "green": StrongOperation(_channel(1), 0.0, 2.0, _ONE),
    "blue": StrongOperation(_channel(2), 0.0, 2.0, _ONE),
    "hue": StrongOperation(_first(colour.adjust_hue), -0.5, 0.5, _ZERO),
    "saturation": StrongOperation(_first(colour.adjust_saturation), 0.0, 2.0, _ONE),
    "brightness": StrongOperation(_first(colour.adjust_brightness), 0.1, 2.0, _ONE),
    "contrast": StrongOperation(_first(colour.adjust_contrast), 0.1, 2.0, _ONE),
    "gamma": StrongOperation(_first(colour.adjust_gamma), 0.1, 2.0, _ONE),
    "solarize": StrongOperation(_first(colour.solarize), 0, 255, (256.0, 0.0), "integer"),
    "posterize": StrongOperation(_first(colour.posterize), 1, 8, (8.0, 0.0), "integer"),
    "sharpen": StrongOperation(_first(filters.sharpen), 0.0, 1.0, _ZERO),
    "emboss": StrongOperation(_first(filters.emboss), 0.0, 1.0, _ZERO),
    "blur": StrongOperation(_blur, 0.0, 3.0, _ZERO),
    "noise": StrongOperation(_noise, 0.0, 0.2, _ZERO),
    # JPEG at 100 still changes pixels: 101 stands for "not encoded", so that strength 0 is the identity.
    "jpeg": StrongOperation(_jpeg, 0, 100, (101.0, 0.0), "integer"),
    "tone": StrongOperation(_tone, 0.0, 1.0, (1 / 3, 2 / 3)),
    "autocontrast": StrongOperation(_plain(colour.autocontrast), 0, 1, _ZERO, "switch"),
    "equalize": StrongOperation(_plain(colour.equalize), 0, 1, _ZERO, "switch"),
    "grayscale": StrongOperation(_plain(colour.to_grayscale), 0, 1, _ZERO, "switch"),
}


class StrongDraw(NamedTuple):
    """What was drawn for a batch."""

    #: Index into ``OPERATIONS``, in the order of application; −1 after an image's last.
    operations: Int64[Tensor, "n 4"]
    #: For every operation, drawn or not.
    magnitudes: Float[Tensor, "n operations 2"]


class StrongPolicy:
    """The policy strong-v0.1.0 at a strength between 0 (no change at all) and 1 (the published space).

    Strength moves every bound linearly from its identity; integer bounds are rounded down; the switch-like operations
    (autocontrast, equalize, grayscale), when drawn, act with probability ``strength``.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        table = list(OPERATIONS.values())
        identity = torch.tensor([operation.identity for operation in table], dtype=torch.float64)
        low, high = (
            torch.tensor([[bound] * 2 for bound in bounds], dtype=torch.float64)
            for bounds in ([operation.low for operation in table], [operation.high for operation in table])
        )
        low, high = (identity + strength * (bound - identity) for bound in (low, high))
        integer = torch.tensor([[operation.kind == "integer"] * 2 for operation in table])
        self._low = torch.where(integer, low.floor(), low).float()
        self._high = torch.where(integer, high.floor(), high).float()
        self._identity, self._integer = identity.float(), integer
        self._switch = torch.tensor([[operation.kind == "switch"] * 2 for operation in table])

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the augmented images."""
        draw = self.draw(seeds)
        operations = [
            partial(self._apply, number, operation, draw.magnitudes, seeds)
            for number, operation in enumerate(OPERATIONS.values())
        ]
        for step in range(draw.operations.shape[1]):
            images = apply_chosen(images, draw.operations[:, step], operations)
        return images

    def draw(self, seeds: Int64[Tensor, " n"]) -> StrongDraw:
        """Return which operations each sample gets, and at which magnitudes."""
        keys = uniform(seeds, len(OPERATIONS), stream="order")
        order = torch.argsort(keys, dim=1, stable=True)[:, :4]  # a random permutation's head: distinct and uniform
        share = uniform(seeds, stream="num_ops")
        num_ops = 2 + (share >= 0.5).to(torch.int64) + (share >= 0.8).to(torch.int64)  # 2, 3, 4: .5, .3, .2
        steps = torch.arange(4, device=seeds.device)
        operations = torch.where(steps < num_ops[:, None], order, -1)

        low, high, integer, switch = (
            value.to(seeds.device) for value in (self._low, self._high, self._integer, self._switch)
        )
        u = uniform(seeds, len(OPERATIONS), 2, stream="magnitude")
        magnitudes = low + u * (high - low)
        whole = torch.floor(low + u * (high - low + 1)).clamp(max=high)
        magnitudes = torch.where(integer, whole, magnitudes)
        return StrongDraw(operations, torch.where(switch, (u < self.strength).float(), magnitudes))

    def _apply(
        self,
        number: int,
        operation: StrongOperation,
        magnitudes: Float[Tensor, "n operations 2"],
        seeds: Int64[Tensor, " n"],
        images: UInt8[Tensor, "rows c h w"],
        rows: Int64[Tensor, " rows"],
    ) -> UInt8[Tensor, "rows c h w"]:
        own = magnitudes[rows, number]
        identity = self._identity[number].to(images.device)
        used = 2 if operation.apply is _tone else 1
        unchanged = (own == identity)[:, :used].all(1)
        return torch.where(unchanged[:, None, None, None], images, operation.apply(images, own, seeds[rows]))
