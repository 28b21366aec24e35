"""Operations that move pixels: affine maps, crops, flips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from trainables.ops.pixels import choose, to_uint8_

Images = UInt8[Tensor, "n c h w"]


def flip(images: Images, chosen: Bool[Tensor, " n"], *, dim: int) -> Images:
    """Return the images with the chosen ones mirrored along ``dim`` (−1 left–right, −2 up–down)."""
    return choose(chosen, images.flip(dim), images)


def resize_crop(
    images: Images, boxes: Int64[Tensor, "n 4"], mirrored: Bool[Tensor, "n 2"], *, size: int
) -> UInt8[Tensor, "n c size size"]:
    """Return the boxes resized to ``size``², bilinear, as torchvision's ``resized_crop`` does.

    On a CPU the result is rounded between the two axes as well, and so differs from that on a GPU by at most one level.

    Args:
        images: uint8 images.
        boxes: top, left, height, width of every box; px, inside the image.
        mirrored: whether a result is mirrored up–down, and whether left–right.
        size: side of the results in px.
    """
    if images.device.type != "cpu":
        return interpolate(images, boxes, mirrored, size=size)
    result = images.new_empty((len(images), images.shape[1], size, size))
    with torch.inference_mode():
        # torch's uint8 kernel knows one box per call; a batched gather of floats takes two to four times as long.
        parts = zip(torch.split(images, 1), torch.split(result, 1), boxes.tolist(), mirrored.tolist(), strict=True)
        for image, place, (top, left, height, width), (up_down, left_right) in parts:
            box = image[:, :, top : top + height, left : left + width]
            dims = [2] * up_down + [3] * left_right
            torch.ops.aten.upsample_bilinear2d.out(box.flip(dims), [size, size], False, out=place)
    return result


def interpolate(
    images: Images, boxes: Int64[Tensor, "n 4"], mirrored: Bool[Tensor, "n 2"], *, size: int
) -> UInt8[Tensor, "n c size size"]:
    """Return the result of ``resize_crop`` for all images at once and rounded once: rows first, then columns."""
    num, channels, height, width = images.shape
    (above, below, down), (left, right, across) = (
        _find_neighbours(centres, start, extent)
        for centres, start, extent in zip(
            _find_centres(boxes, mirrored, size), boxes[:, :2].unbind(1), boxes[:, 2:].unbind(1), strict=True
        )
    )
    flat = images.reshape(-1, width)
    first = height * torch.arange(num * channels, device=images.device).reshape(num, channels, 1)

    def take_rows(rows: Int64[Tensor, "n size"]) -> Float[Tensor, "n c size w"]:
        taken = flat.index_select(0, (first + rows[:, None]).flatten())
        return taken.reshape(num, channels, -1, width).float()

    # Sums of three terms, not ``lerp``: its last bit depends on the place in memory, and so on the batch.
    upper = take_rows(above)
    mixed = take_rows(below).sub_(upper).mul_(down[:, None, :, None]).add_(upper).flatten(1, 2)
    before, after = (mixed.gather(2, each[:, None].expand(-1, mixed.shape[1], -1)) for each in (left, right))
    return to_uint8_(after.sub_(before).mul_(across[:, None]).add_(before).reshape(num, channels, size, size))


def _find_centres(
    boxes: Int64[Tensor, "n 4"], mirrored: Bool[Tensor, "n 2"], size: int
) -> tuple[Float[Tensor, "n size"], Float[Tensor, "n size"]]:
    """Return where in the source the centres of the rows and of the columns of a resized box lie, in px."""
    order = torch.arange(size, device=boxes.device)
    places = (torch.where(mirrored[:, :, None], size - 1 - order, order) + 0.5) / size
    rows, columns = (boxes[:, :2, None] + places * boxes[:, 2:, None]).unbind(1)
    return rows, columns


def _find_neighbours(
    centres: Float[Tensor, "n size"], start: Int64[Tensor, " n"], extent: Int64[Tensor, " n"]
) -> tuple[Int64[Tensor, "n size"], Int64[Tensor, "n size"], Float[Tensor, "n size"]]:
    """Return the pixels before and after places along an axis of the boxes, and the share of the latter."""
    last = (start + extent - 1)[:, None]
    place = torch.minimum(torch.maximum(centres - 0.5, start[:, None]), last)
    before = place.floor()
    return before.long(), torch.minimum(before.long() + 1, last), place - before


def resize_crop_nearest(
    masks: Images, boxes: Int64[Tensor, "n 4"], mirrored: Bool[Tensor, "n 2"], *, size: int
) -> UInt8[Tensor, "n c size size"]:
    """Return the boxes resized to ``size``² by the nearest pixel, see ``resize_crop``."""
    num, channels, height, width = masks.shape
    row, column = (place.long() for place in _find_centres(boxes, mirrored, size))
    first = height * torch.arange(num * channels, device=masks.device).reshape(num, channels, 1)
    rows = masks.flatten(0, 2).index_select(0, (first + row.clamp(0, height - 1)[:, None]).flatten())
    index = column.clamp(0, width - 1)[:, None, None].expand(-1, channels, size, -1)
    return rows.reshape(num, channels, size, width).gather(3, index)


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
