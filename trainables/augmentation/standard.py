"""RandAugment and TrivialAugment Wide with torchvision's operations and magnitude tables, one draw per image.

Strength f ∈ [0, 1] multiplies the magnitude; the switch-like operations (autocontrast, equalize) act with probability
f, so that 0 is no change. Differs from torchvision: results are rounded, not cut; moved-in pixels are black.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.policy import apply_chosen
from trainables.ops import colour, filters, geometry
from trainables.seeding import uniform

Images = UInt8[Tensor, "n c h w"]
#: Share of the largest magnitude in [−1, 1]; the sign matters to the operations that have one.
Share = Float[Tensor, " n"]


class Space(NamedTuple):
    """Largest magnitudes of a policy."""

    shear: float
    #: Of the side where it is at most 1, else px.
    translate_side: float
    translate_px: float
    rotate_degrees: float
    enhance: float
    posterize_bits: int


#: torchvision.transforms.RandAugment
RANDAUGMENT = Space(0.3, 150.0 / 331.0, 0.0, 30.0, 0.9, 4)
#: torchvision.transforms.TrivialAugmentWide
TRIVIALAUGMENT = Space(0.99, 0.0, 32.0, 135.0, 0.99, 6)


def _shear(images: Images, share: Share, space: Space, *, down: bool) -> Images:
    amount, zero = space.shear * share, torch.zeros_like(share)
    return geometry.warp_affine(images, geometry.shear_matrices(*((zero, amount) if down else (amount, zero))))


def _translate(images: Images, share: Share, space: Space, *, down: bool) -> Images:
    side = images.shape[-2 if down else -1]
    amount, zero = (space.translate_side * side + space.translate_px) * share, torch.zeros_like(share)
    matrices = geometry.translation_matrices(*((zero, amount) if down else (amount, zero)))
    return geometry.warp_affine(images, matrices)


def _rotate(images: Images, share: Share, space: Space) -> Images:
    height, width = images.shape[-2:]
    matrices = geometry.rotation_matrices(space.rotate_degrees * share, height=height, width=width)
    return geometry.warp_affine(images, matrices)


def _enhance(operation: Callable[[Images, Tensor], Images]) -> Callable[[Images, Share, Space], Images]:
    return lambda images, share, space: operation(images, 1.0 + space.enhance * share)


def _posterize(images: Images, share: Share, space: Space) -> Images:
    return colour.posterize(images, 8 - torch.round(space.posterize_bits * share.abs()))


def _solarize(images: Images, share: Share, space: Space) -> Images:
    return colour.solarize(images, 255.0 * (1.0 - share.abs()))


OPERATIONS: dict[str, Callable[[Images, Share, Space], Images]] = {
    "identity": lambda images, share, space: images,
    "shear_x": partial(_shear, down=False),
    "shear_y": partial(_shear, down=True),
    "translate_x": partial(_translate, down=False),
    "translate_y": partial(_translate, down=True),
    "rotate": _rotate,
    "brightness": _enhance(colour.adjust_brightness),
    "saturation": _enhance(colour.adjust_saturation),
    "contrast": _enhance(colour.adjust_contrast),
    "sharpness": _enhance(filters.adjust_sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda images, share, space: colour.autocontrast(images),
    "equalize": lambda images, share, space: colour.equalize(images),
}
_SWITCHES = [list(OPERATIONS).index(name) for name in ("autocontrast", "equalize")]


class StandardPolicy:
    """``num_ops`` operations per image, drawn with replacement from the 14 of RandAugment and TrivialAugment.

    Args:
        space: the largest magnitudes.
        num_ops: operations per image.
        bin: magnitude as a bin 0–30 (RandAugment), or None: a bin drawn per operation (TrivialAugment).
        strength: multiplies the magnitude; 0 is no change.
    """

    def __init__(self, space: Space, *, num_ops: int, bin: int | None, strength: float) -> None:
        self.space, self.num_ops, self.bin, self.strength = space, num_ops, bin, strength

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the augmented images."""
        choices, shares = self.draw(seeds)
        for step in range(self.num_ops):
            operations = [partial(self._apply, operation, shares[:, step]) for operation in OPERATIONS.values()]
            images = apply_chosen(images, choices[:, step], operations)
        return images

    def draw(self, seeds: Int64[Tensor, " n"]) -> tuple[Int64[Tensor, "n num_ops"], Float[Tensor, "n num_ops"]]:
        """Return which operations each sample gets (−1: a switch that stays off) and their signed magnitude shares."""
        u = uniform(seeds, self.num_ops, 4, stream="standard")
        choices = torch.floor(u[..., 0] * len(OPERATIONS)).to(torch.int64)
        bins = torch.floor(u[..., 1] * 31) if self.bin is None else torch.full_like(u[..., 1], self.bin)
        shares = self.strength * bins / 30.0 * torch.where(u[..., 2] < 0.5, 1.0, -1.0)
        is_switch = torch.isin(choices, torch.tensor(_SWITCHES, device=seeds.device))
        return torch.where(is_switch & (u[..., 3] >= self.strength), -1, choices), shares

    def _apply(
        self,
        operation: Callable[[Images, Share, Space], Images],
        shares: Float[Tensor, " n"],
        images: UInt8[Tensor, "rows c h w"],
        rows: Int64[Tensor, " rows"],
    ) -> UInt8[Tensor, "rows c h w"]:
        return operation(images, shares[rows], self.space)
