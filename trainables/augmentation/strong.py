"""Strong policies: a few distinct operations per image from a very wide magnitude space.

Source: Pohjonen et al. 2022 (arXiv 2206.15274): strong-v0.1.0 is the space of StrongAugment 0.1.0, strong-v1 that of
the first release, which belongs to the paper's first version. Differs: everything is drawn from the sample's seed;
results are rounded, not cut off; jpeg does not swap red and blue; posterize does not overflow; strength is an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.policy import (
    Images,
    Magnitudes,
    Operation,
    PixelOperation,
    PointOperation,
    Seeds,
    TableOperation,
    WarpOperation,
)
from trainables.augmentation.sequences import Sequences, apply_sequences, move_masks
from trainables.ops import colour, filters, geometry, noise
from trainables.seeding import uniform


class Range(NamedTuple):
    """Range of an operation's magnitudes."""

    low: float
    high: float
    #: Magnitudes that change nothing; only tone uses the second.
    identity: tuple[float, float]
    #: float: uniform in [low, high). integer: uniform, both ends included. switch: 1 with probability strength.
    kind: Literal["float", "integer", "switch"] = "float"


@dataclass(frozen=True)
class StrongSpace:
    """Operations of one released policy and their ranges."""

    operations: Mapping[str, tuple[Operation, Range]]
    #: Probabilities of ``min_ops``, ``min_ops`` + 1, … operations per image.
    num_ops_shares: tuple[float, ...]
    min_ops: int = 2

    @property
    def max_ops(self) -> int:
        """Return the largest number of operations per image."""
        return self.min_ops + len(self.num_ops_shares) - 1


def _point(operation: Callable[[Images, Tensor], Images], channel: int | None = None) -> PointOperation:
    return PointOperation(lambda images, magnitudes: operation(images, magnitudes[:, 0]), channel)


def _pixels(operation: Callable[[Images, Tensor], Images]) -> PixelOperation:
    return PixelOperation(lambda images, magnitudes, seeds: operation(images, magnitudes[:, 0]))


def _gain(channel: int) -> PointOperation:
    return _point(partial(colour.adjust_channel, channel=channel), channel)


def _blur(images: Images, sigma: Float[Tensor, " n"]) -> Images:
    half = torch.div(torch.round(3.5 * sigma), 2, rounding_mode="floor").clamp(min=1)  # kernel side 2·half + 1 ≥ 3
    return filters.gaussian_blur(images, sigma, half.to(torch.int64))


def _noise(images: Images, magnitudes: Magnitudes, seeds: Seeds) -> Images:
    return noise.mix_uniform_noise(images, magnitudes[:, 0], seeds)


def _tone(images: Images, magnitudes: Magnitudes) -> Images:
    return colour.adjust_tone(images, magnitudes[:, 0], magnitudes[:, 1])


def _shear(magnitudes: Magnitudes, height: int, width: int, *, down: bool) -> Float[Tensor, "n 2 3"]:
    amount = torch.tan(torch.deg2rad(magnitudes[:, 0].double())).float()
    zero = torch.zeros_like(amount)
    matrices = geometry.shear_matrices(*((zero, amount) if down else (amount, zero)))
    return geometry.about_centre(matrices, height=height, width=width)


def _translate(magnitudes: Magnitudes, height: int, width: int, *, down: bool) -> Float[Tensor, "n 2 3"]:
    amount, zero = magnitudes[:, 0], torch.zeros_like(magnitudes[:, 0])
    return geometry.translation_matrices(*((zero, amount) if down else (amount, zero)))


def _rotate(magnitudes: Magnitudes, height: int, width: int) -> Float[Tensor, "n 2 3"]:
    return geometry.rotation_matrices(torch.trunc(magnitudes[:, 0]), height=height, width=width)


_ONE = (1.0, 0.0)
_ZERO = (0.0, 0.0)
_SWITCH = Range(0, 1, _ZERO, "switch")
#: Grey value of pixels from outside the image in strong-v1, as published.
_GREY = 128

_COLOURS: dict[str, tuple[Operation, Range]] = {
    "red": (_gain(0), Range(0.0, 2.0, _ONE)),
    "green": (_gain(1), Range(0.0, 2.0, _ONE)),
    "blue": (_gain(2), Range(0.0, 2.0, _ONE)),
    "hue": (_pixels(colour.adjust_hue), Range(-0.5, 0.5, _ZERO)),
    "saturation": (_pixels(colour.adjust_saturation), Range(0.0, 2.0, _ONE)),
    "brightness": (_point(colour.adjust_brightness), Range(0.1, 2.0, _ONE)),
    "contrast": (TableOperation(lambda x, m: colour.tabulate_contrast(x, m[:, 0])), Range(0.1, 2.0, _ONE)),
    "gamma": (_point(colour.adjust_gamma), Range(0.1, 2.0, _ONE)),
}
_POSTERIZE = (_point(colour.posterize), Range(1, 8, (8.0, 0.0), "integer"))
_SWITCHES: dict[str, tuple[Operation, Range]] = {
    "autocontrast": (TableOperation(lambda x, m: colour.tabulate_autocontrast(x)), _SWITCH),
    "equalize": (TableOperation(lambda x, m: colour.tabulate_equalize(x)), _SWITCH),
    "grayscale": (PixelOperation(lambda x, m, seeds: colour.to_grayscale(x)), _SWITCH),
}

SPACES: dict[str, StrongSpace] = {
    "strong-v0.1.0": StrongSpace(
        {
            **_COLOURS,
            "solarize": (_point(colour.solarize), Range(0, 255, (256.0, 0.0), "integer")),
            "posterize": _POSTERIZE,
            "sharpen": (_pixels(filters.sharpen), Range(0.0, 1.0, _ZERO)),
            "emboss": (_pixels(filters.emboss), Range(0.0, 1.0, _ZERO)),
            "blur": (_pixels(_blur), Range(0.0, 3.0, _ZERO)),
            "noise": (PixelOperation(_noise), Range(0.0, 0.2, _ZERO)),
            # JPEG at 100 still changes pixels: 101 stands for "not encoded", so that strength 0 is the identity.
            "jpeg": (
                _pixels(lambda x, quality: filters.jpeg(x, quality.to(torch.int64))),
                Range(0, 100, (101.0, 0.0), "integer"),
            ),
            "tone": (PointOperation(_tone), Range(0.0, 1.0, (1 / 3, 2 / 3))),
            **_SWITCHES,
        },
        (0.5, 0.3, 0.2),
    ),
    # A further operation with probability .4 after each from the second on, at most five, at most one of them a warp.
    "strong-v1": StrongSpace(
        {
            "identity": (_point(lambda x, m: x), Range(0.0, 0.0, _ZERO)),
            **_COLOURS,
            "sharpness": (_pixels(filters.adjust_sharpness), Range(1.0, 4.0, _ONE)),
            "blur": (_pixels(_blur), Range(0.0, 2.0, _ZERO)),
            "solarize": (_point(colour.solarize), Range(0, 256, (256.0, 0.0), "integer")),
            "posterize": _POSTERIZE,
            **_SWITCHES,
            "shear_x": (WarpOperation(partial(_shear, down=False), _GREY), Range(-45.0, 45.0, _ZERO)),
            "shear_y": (WarpOperation(partial(_shear, down=True), _GREY), Range(-45.0, 45.0, _ZERO)),
            "translate_x": (WarpOperation(partial(_translate, down=False), _GREY), Range(-32.0, 32.0, _ZERO)),
            "translate_y": (WarpOperation(partial(_translate, down=True), _GREY), Range(-32.0, 32.0, _ZERO)),
            "rotate": (WarpOperation(_rotate, _GREY), Range(-135.0, 135.0, _ZERO)),
        },
        (0.6, 0.24, 0.096, 0.064),
    ),
}


class StrongPolicy:
    """A strong policy at a strength between 0 (no change at all) and 1 (the published space).

    Strength moves every bound linearly from its identity. Integers are drawn as real numbers and rounded down, so
    that the share of those that are not the identity (solarize, posterize, jpeg) goes to 0 with the strength; the
    switch-like operations (autocontrast, equalize, grayscale), when drawn, act with probability ``strength``.

    Args:
        space: operations and ranges of the policy.
        strength: share of the way from the identity to the published bounds.
    """

    def __init__(self, space: StrongSpace, strength: float) -> None:
        self.space, self.strength = space, strength
        self.operations = [operation for operation, _ in space.operations.values()]
        ranges = [values for _, values in space.operations.values()]
        identity = torch.tensor([values.identity for values in ranges], dtype=torch.float64)
        bounds = torch.tensor([[values.low, values.high] for values in ranges], dtype=torch.float64)
        low, high = (identity + strength * (bound[:, None] - identity) for bound in bounds.unbind(1))
        integer, switch = (torch.tensor([[values.kind == kind] for values in ranges]) for kind in ("integer", "switch"))
        self._low, self._high = low.float(), high.float()
        self._identity, self._integer, self._switch = identity.float(), integer, switch
        self._uses = torch.tensor([[True, name == "tone"] for name in space.operations])
        self._warps = torch.tensor([isinstance(operation, WarpOperation) for operation in self.operations])

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the augmented images."""
        return apply_sequences(images, self.draw(seeds), self.operations)

    def move(self, masks: UInt8[Tensor, "n 1 h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 h w"]:
        """Return the masks of the same samples, moved like their images."""
        if not self._warps.any():
            return masks
        return move_masks(masks, self.draw(seeds), self.operations)

    def draw(self, seeds: Int64[Tensor, " n"]) -> Sequences:
        """Return the operations and magnitudes of each sample; an operation that would change nothing becomes −1."""
        choices = self._draw_choices(seeds)
        magnitudes = self._draw_magnitudes(seeds)
        same = (magnitudes == self._identity.to(seeds.device)) | ~self._uses.to(seeds.device)
        drawn = choices.clamp(min=0)
        choices = torch.where(same.all(2).gather(1, drawn), -1, choices)
        return Sequences(choices, magnitudes.gather(1, drawn[:, :, None].expand(-1, -1, 2)), seeds)

    def _draw_choices(self, seeds: Int64[Tensor, " n"]) -> Int64[Tensor, "n steps"]:
        """Return distinct operations in order: the head of a random permutation, without warps after the first."""
        order = torch.argsort(uniform(seeds, len(self.operations), stream="order"), dim=1, stable=True)
        warps = self._warps.to(seeds.device)[order]
        spare = warps & (warps.cumsum(1) > 1)
        order = order.gather(1, torch.argsort(spare.to(torch.uint8), dim=1, stable=True))[:, : self.space.max_ops]
        share = uniform(seeds, stream="num_ops").double()
        bounds = torch.tensor(self.space.num_ops_shares[:-1], dtype=torch.float64, device=seeds.device).cumsum(0)
        num_ops = self.space.min_ops + (share[:, None] >= bounds).sum(1)
        steps = torch.arange(self.space.max_ops, device=seeds.device)
        return torch.where(steps < num_ops[:, None], order, -1)

    def _draw_magnitudes(self, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n operations 2"]:
        """Return magnitudes for every operation, drawn or not."""
        low, high, integer, switch = (
            value.to(seeds.device) for value in (self._low, self._high, self._integer, self._switch)
        )
        u = uniform(seeds, len(self.operations), 2, stream="magnitude")
        magnitudes = low + u * (high - low)
        whole = torch.floor(low + u * (high - low + 1)).clamp(max=high.ceil())
        magnitudes = torch.where(integer, whole, magnitudes)
        return torch.where(switch, (u < self.strength).float(), magnitudes)
