"""RandAugment and TrivialAugment Wide with torchvision's operations and magnitude tables, one draw per image.

Strength f ∈ [0, 1] multiplies the magnitude; the switch-like operations (autocontrast, equalize) act with probability
f, so that 0 is no change; the threshold of solarize moves from 256, which inverts nothing. Differs from torchvision:
results are rounded, not cut off; pixels from outside the image are black.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.augmentation.policy import (
    Images,
    Magnitudes,
    Operation,
    PixelOperation,
    PointOperation,
    TableOperation,
    WarpOperation,
)
from trainables.augmentation.sequences import Sequences, apply_sequences, move_masks
from trainables.ops import colour, filters, geometry
from trainables.seeding import uniform


class Space(NamedTuple):
    """Largest magnitudes of a policy."""

    shear: float
    #: Share of the image's side; ``translate_px`` is added to it.
    translate_side: float
    translate_px: float
    rotate_degrees: float
    enhance: float
    posterize_bits: int


#: Magnitudes of torchvision.transforms.RandAugment.
RANDAUGMENT = Space(0.3, 150.0 / 331.0, 0.0, 30.0, 0.9, 4)
#: Magnitudes of torchvision.transforms.TrivialAugmentWide.
TRIVIALAUGMENT = Space(0.99, 0.0, 32.0, 135.0, 0.99, 6)
SWITCHES = ("autocontrast", "equalize")


def build_operations(space: Space) -> dict[str, Operation]:
    """Return name → operation for all 14.

    The first magnitude is a share in [−1, 1] of the largest, the strength included; some operations ignore the sign.
    The second is the policy's strength.
    """

    def enhance(operation: Callable[[Images, Tensor], Images]) -> Callable[[Images, Magnitudes], Images]:
        return lambda x, share: operation(x, 1.0 + space.enhance * share[:, 0])

    def on_pixels(operation: Callable[[Images, Magnitudes], Images]) -> PixelOperation:
        return PixelOperation(lambda x, share, seeds: operation(x, share))

    return {
        "identity": PointOperation(lambda x, share: x),
        "shear_x": WarpOperation(partial(_shear, space=space, down=False)),
        "shear_y": WarpOperation(partial(_shear, space=space, down=True)),
        "translate_x": WarpOperation(partial(_translate, space=space, down=False)),
        "translate_y": WarpOperation(partial(_translate, space=space, down=True)),
        "rotate": WarpOperation(partial(_rotate, space=space)),
        "brightness": PointOperation(enhance(colour.adjust_brightness)),
        "saturation": on_pixels(enhance(colour.adjust_saturation)),
        "contrast": TableOperation(enhance(colour.tabulate_contrast)),
        "sharpness": on_pixels(enhance(filters.adjust_sharpness)),
        "posterize": PointOperation(
            lambda x, share: colour.posterize(x, 8 - torch.round(space.posterize_bits * share[:, 0].abs()))
        ),
        "solarize": PointOperation(_solarize),
        "autocontrast": TableOperation(lambda x, share: colour.tabulate_autocontrast(x)),
        "equalize": TableOperation(lambda x, share: colour.tabulate_equalize(x)),
    }


def _solarize(images: Images, magnitudes: Magnitudes) -> Images:
    share, strength = magnitudes[:, 0].abs(), magnitudes[:, 1]
    # From 256 at strength 0 to torchvision's 255·(1 − share) at 1, exactly: no division by the strength.
    return colour.solarize(images, 255.0 * (strength - share) + 256.0 * (1.0 - strength))


def _shear(share: Magnitudes, height: int, width: int, *, space: Space, down: bool) -> Float[Tensor, "n 2 3"]:
    amount, zero = space.shear * share[:, 0], torch.zeros_like(share[:, 0])
    return geometry.shear_matrices(*((zero, amount) if down else (amount, zero)))


def _translate(share: Magnitudes, height: int, width: int, *, space: Space, down: bool) -> Float[Tensor, "n 2 3"]:
    largest = space.translate_side * (height if down else width) + space.translate_px
    amount, zero = largest * share[:, 0], torch.zeros_like(share[:, 0])
    return geometry.translation_matrices(*((zero, amount) if down else (amount, zero)))


def _rotate(share: Magnitudes, height: int, width: int, *, space: Space) -> Float[Tensor, "n 2 3"]:
    return geometry.rotation_matrices(space.rotate_degrees * share[:, 0], height=height, width=width)


class StandardPolicy:
    """Policy of ``num_ops`` operations per image, drawn with replacement from the 14 of ``build_operations``.

    Args:
        space: largest magnitudes.
        num_ops: operations per image.
        bin: magnitude as a bin 0–30 (RandAugment); None to draw a bin per operation (TrivialAugment).
        strength: factor on the magnitude and probability that switch-like operations act; 0 is no change.
    """

    def __init__(self, space: Space, *, num_ops: int, bin: int | None, strength: float) -> None:
        self.num_ops, self.bin, self.strength = num_ops, bin, strength
        named = build_operations(space)
        self.operations = list(named.values())
        self._is_switch = torch.tensor([name in SWITCHES for name in named])

    def __call__(self, images: UInt8[Tensor, "n c h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return the augmented images."""
        return apply_sequences(images, self.draw(seeds), self.operations)

    def move(self, masks: UInt8[Tensor, "n 1 h w"], seeds: Int64[Tensor, " n"]) -> UInt8[Tensor, "n 1 h w"]:
        """Return the masks of the same samples, moved like their images."""
        return move_masks(masks, self.draw(seeds), self.operations)

    def draw(self, seeds: Int64[Tensor, " n"]) -> Sequences:
        """Return the operations of each sample (−1: identity, or a switch that does not act) and their shares."""
        u = uniform(seeds, self.num_ops, 4, stream="standard")
        choices = torch.floor(u[..., 0] * len(self.operations)).to(torch.int64)
        bins = torch.floor(u[..., 1] * 31) if self.bin is None else torch.full_like(u[..., 1], self.bin)
        shares = self.strength * bins / 30.0 * torch.where(u[..., 2] < 0.5, 1.0, -1.0)
        off = self._is_switch.to(seeds.device)[choices] & (u[..., 3] >= self.strength)
        choices = torch.where(off | (choices == 0), -1, choices)
        return Sequences(choices, torch.stack([shares, torch.full_like(shares, self.strength)], dim=2), seeds)
