"""Operations that move pixels: affine maps, crops, flips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from trainables.ops.pixels import choose, to_uint8_

Images = UInt8[Tensor, "n c h w"]
#: Values that are resized at a time on a CPU, so few that a core's cache holds them.
_BLOCK_VALUES = 1 << 20


def flip(images: Images, chosen: Bool[Tensor, " n"], *, dim: int) -> Images:
    """Return the images with the chosen ones mirrored along ``dim`` (−1 left–right, −2 up–down)."""
    return choose(chosen, images.flip(dim), images)


def resize_crop(images: Images, boxes: Float[Tensor, "n 4"], *, size: int) -> UInt8[Tensor, "n c size size"]:
    """Return the boxes (top, left, height, width, in px, inside the image) resized to ``size``², bilinear.

    Rows are interpolated first, then columns, which takes a third of the time of ``grid_sample`` on a CPU.
    """
    num, channels, height, width = images.shape
    top, left, box_height, box_width = (value[:, None] for value in boxes.unbind(1))
    rows, columns = _place(top, box_height, size, height), _place(left, box_width, size, width)
    step = max(1, _BLOCK_VALUES // (channels * size * width)) if images.device.type == "cpu" else num
    parts = [slice(start, start + step) for start in range(0, num, max(1, step))]
    resized = [_interpolate(images[part], *(each[part] for each in (*rows, *columns))) for part in parts]
    return torch.cat(resized) if resized else images.new_empty((0, channels, size, size))


def _place(
    start: Float[Tensor, "n 1"], extent: Float[Tensor, "n 1"], size: int, length: int
) -> tuple[Int64[Tensor, "n size"], Int64[Tensor, "n size"], Float[Tensor, "n size"]]:
    """Return the pixels before and after each place of a resized axis of ``length`` px, and the share of the latter."""
    place = start + (torch.arange(size, device=start.device) + 0.5) / size * extent - 0.5
    place = place.clamp(0, length - 1)
    before = place.floor()
    return before.long(), (before + 1).clamp(max=length - 1).long(), place - before


def _interpolate(
    images: Images,
    above: Int64[Tensor, "n size"],
    below: Int64[Tensor, "n size"],
    down: Float[Tensor, "n size"],
    left: Int64[Tensor, "n size"],
    right: Int64[Tensor, "n size"],
    across: Float[Tensor, "n size"],
) -> UInt8[Tensor, "n c size size"]:
    num, channels, height, width = images.shape
    flat = images.reshape(-1, width)
    first = height * torch.arange(num * channels, device=images.device).reshape(num, channels, 1)

    def take_rows(rows: Int64[Tensor, "n size"]) -> Float[Tensor, "n c size w"]:
        taken = flat.index_select(0, (first + rows[:, None]).flatten())
        return taken.reshape(num, channels, -1, width).float()

    # Sums of three terms, not ``lerp``: its last bit depends on the place in memory, and so on the batch.
    upper = take_rows(above)
    mixed = take_rows(below).sub_(upper).mul_(down[:, None, :, None]).add_(upper).flatten(1, 2)
    before, after = (mixed.gather(2, each[:, None].expand(-1, mixed.shape[1], -1)) for each in (left, right))
    return to_uint8_(after.sub_(before).mul_(across[:, None]).add_(before).reshape(num, channels, len(down[0]), -1))


def resize_crop_nearest(masks: Images, boxes: Float[Tensor, "n 4"], *, size: int) -> UInt8[Tensor, "n c size size"]:
    """Return the boxes (top, left, height, width, in px, inside the image) resized to ``size``², nearest pixel."""
    num, channels, height, width = masks.shape
    top, left, box_height, box_width = (value[:, None] for value in boxes.unbind(1))
    centre = (torch.arange(size, device=masks.device) + 0.5) / size
    row = torch.floor(top + centre * box_height).to(torch.int64).clamp(0, height - 1)
    column = torch.floor(left + centre * box_width).to(torch.int64).clamp(0, width - 1)
    index = (row[:, :, None] * width + column[:, None, :]).flatten(1)[:, None].expand(num, channels, -1)
    return masks.flatten(2).gather(2, index).reshape(num, channels, size, size)


def warp_affine(images: Images, matrices: Float[Tensor, "n 2 3"], *, fill: int = 0) -> Images:
    """Return the images sampled at matrix · (x, y, 1), nearest pixel, ``fill`` outside.

    Args:
        images: uint8 images.
        matrices: maps from a place in the result to the place in the source; px, pixel centres at .5, origin top left.
        fill: grey value 0–255 of pixels from outside the image.
    """
    num, channels, height, width = images.shape
    y = (torch.arange(height, device=images.device) + 0.5)[None, :, None]
    x = (torch.arange(width, device=images.device) + 0.5)[None, None, :]
    m = matrices[:, :, :, None, None]
    column = torch.round(m[:, 0, 0] * x + m[:, 0, 1] * y + m[:, 0, 2] - 0.5).to(torch.int64)
    row = torch.round(m[:, 1, 0] * x + m[:, 1, 1] * y + m[:, 1, 2] - 0.5).to(torch.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    moved = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(num, channels, height * width))
    return choose(inside[:, None], moved.reshape(images.shape), torch.full_like(images[:1], fill))


def shear_matrices(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, "n 2 3"]:
    """Return matrices for ``warp_affine`` that shear about the top left corner (px per px)."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return _matrices((one, x, zero), (y, one, zero))


def translation_matrices(right_px: Float[Tensor, " n"], down_px: Float[Tensor, " n"]) -> Float[Tensor, "n 2 3"]:
    """Return matrices for ``warp_affine`` that move by whole pixels (cut towards 0)."""
    one, zero = torch.ones_like(right_px), torch.zeros_like(right_px)
    return _matrices((one, zero, -torch.trunc(right_px)), (zero, one, -torch.trunc(down_px)))


def rotation_matrices(degrees: Float[Tensor, " n"], *, height: int, width: int) -> Float[Tensor, "n 2 3"]:
    """Return matrices for ``warp_affine`` that rotate counter-clockwise about the centre."""
    angle = torch.deg2rad(degrees.double())
    cos, sin = torch.cos(angle).float(), torch.sin(angle).float()
    x, y = width / 2.0, height / 2.0
    return _matrices((cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y))


def about_centre(matrices: Float[Tensor, "n 2 3"], *, height: int, width: int) -> Float[Tensor, "n 2 3"]:
    """Return ``matrices``, whose origin is the top left corner, with the centre of the image as their origin."""
    x, y = width / 2.0, height / 2.0
    (a, b, right), (c, d, down) = (row.unbind(1) for row in matrices.unbind(1))
    return _matrices((a, b, right + x - a * x - b * y), (c, d, down + y - c * x - d * y))


def _matrices(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Float[Tensor, "n 2 3"]:
    return torch.stack([torch.stack(first, dim=1), torch.stack(second, dim=1)], dim=1)


def split_slices(volumes: Shaped[Tensor, "n c d h w"]) -> Shaped[Tensor, "slices c h w"]:
    """Return volumes as images of their slices, those of a volume one after the other."""
    return volumes.movedim(2, 1).flatten(0, 1)


def join_slices(slices: Shaped[Tensor, "slices c h w"], depth: int) -> Shaped[Tensor, "n c d h w"]:
    """Return slices as volumes of ``depth`` slices each."""
    return slices.reshape(-1, depth, *slices.shape[1:]).movedim(1, 2).contiguous()


def index_last(places: Iterable[slice]) -> tuple[Any, ...]:
    """Return the index of a box along the last axes of an array."""
    return (..., *places)


def index_first(sides: Iterable[int]) -> tuple[Any, ...]:
    """Return the index of the box with these sides in the first corner of the last axes of an array."""
    return index_last(slice(0, side) for side in sides)
