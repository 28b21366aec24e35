"""Textures of frost on glass, generated once from seeded noise as feathers of ice."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from trainables.ops.pixels import to_uint8
from trainables.seeding import derive_seed, uniform

#: ImageNet-C ships six photographs and uses five.
NUM_TEXTURES = 5
#: Side at which textures are generated: twice the 224 px at which ImageNet-C cuts its parts, and some room.
_SIDE_PX = 512
#: Side at which feathers are drawn, then enlarged: a quarter of the time.
_GROWN_PX = 256
#: Smallest scale: CIFAR-10-C shrinks its photographs to a fifth for 32 px.
_SMALLEST = 0.2
#: Number of samples along a line.
_NUM_TAPS = 17
#: Mean red, green and blue of the textures, and their standard deviation: about those of the photographs.
_TINTS = ((78, 149, 166), (201, 205, 214), (138, 153, 165), (112, 123, 135), (71, 95, 105))
_DEVIATIONS = (27, 22, 28, 43, 42)


@lru_cache(maxsize=8)
def frost_textures(image_side_px: int, device: torch.device) -> UInt8[Tensor, "k 3 side side"]:
    """Return the textures scaled for images of ``image_side_px``: as generated at 224 px, else in proportion.

    The textures are larger than the images by an eighth or more, so that images get different parts.
    """
    scale = max(_SMALLEST, image_side_px / 224)
    side = max(round(_SIDE_PX * scale), image_side_px + image_side_px // 8 + 1)
    grown = _grow_textures()
    if side != _SIDE_PX:
        grown = F.interpolate(grown, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return to_uint8(grown).to(device)


@lru_cache(maxsize=1)
def _grow_textures() -> Float[Tensor, "k 3 512 512"]:
    """Return ridges of noise in three sizes, drawn out along a field of directions; always computed on the CPU."""
    textures = []
    for number, (tint, deviation) in enumerate(zip(_TINTS, _DEVIATIONS, strict=True)):
        angle = 2.0 * torch.pi * _noise(number, "angle", cells=4, side=_GROWN_PX)
        ice = torch.zeros(_GROWN_PX, _GROWN_PX)
        for weight, cells in ((1.0, 24), (0.7, 64), (0.35, 160)):
            ridges = 1.0 - (2.0 * _noise(number, cells, cells=cells, side=_GROWN_PX) - 1.0).abs()
            ice += weight * _draw_out(ridges**6, angle, length_px=min(12.0, 2.0 * _GROWN_PX / cells))
        ice += 0.6 * _noise(number, "cover", cells=3, side=_GROWN_PX)
        ice = F.interpolate(ice[None, None], size=(_SIDE_PX, _SIDE_PX), mode="bicubic", align_corners=False)[0, 0]
        sparkle = 0.8 * (_noise(number, "sparkle", cells=256, side=_SIDE_PX) - 0.5)
        grey = (ice - ice.mean()) / ice.std() + sparkle
        textures.append(torch.tensor(tint, dtype=torch.float32)[:, None, None] + grey * deviation)
    return torch.stack(textures)


def _noise(number: int, name: object, *, cells: int, side: int) -> Float[Tensor, "side side"]:
    """Return smooth noise in [0, 1]: uniform numbers on a grid of ``cells``², bicubic in between."""
    seed = torch.tensor([derive_seed("frost", number, name)])
    grid = uniform(seed, 1, cells + 3, cells + 3, stream=name)
    larger = round(side * (cells + 3) / cells)
    smooth = F.interpolate(grid, size=(larger, larger), mode="bicubic", align_corners=False)[0, 0]
    offset = (larger - side) // 2
    return smooth[offset : offset + side, offset : offset + side].clamp(0, 1)


def _draw_out(
    field: Float[Tensor, "side side"], angle: Float[Tensor, "side side"], *, length_px: float
) -> Float[Tensor, "side side"]:
    """Return the mean of the field along short lines in the directions ``angle`` (line integral convolution)."""
    side = field.shape[0]
    axis = torch.arange(side, dtype=torch.float32)
    total = torch.zeros_like(field)
    down, right = torch.sin(angle), torch.cos(angle)
    for number in range(_NUM_TAPS):
        along = length_px * (2.0 * number / (_NUM_TAPS - 1) - 1.0)
        y, x = axis[:, None] + along * down, axis + along * right
        grid = torch.stack([(2 * x + 1) / side - 1, (2 * y + 1) / side - 1], dim=2)
        total += F.grid_sample(field[None, None], grid[None], padding_mode="reflection", align_corners=False)[0, 0]
    return total / _NUM_TAPS
