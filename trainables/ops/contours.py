"""Contours as OpenCV finds them (Canny's edges), and distances to them, for a whole batch; exact, in integers."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int32, UInt8
from torch import Tensor
from torch.nn import functional as F

#: tan 22.5° and tan 67.5° (2 more than the former) in OpenCV's 15-bit fixed point.
_TAN_22, _TAN_67 = 13573, 13573 + 2**16
#: Growth steps between two checks for changes: growing by one pixel is cheap, but a check waits for the GPU.
_STEPS_BETWEEN_LOOKS = 8
#: Distances are in ten-thousandths of a pixel. Moves cost 1 along an axis, 1.4 diagonally and 2.1969 as a chess knight
#: moves (Borgefors 1986).
DISTANCE_UNIT = 10_000
_MOVES = (
    (10_000, ((0, 1), (1, 0))),
    (14_000, ((1, 1), (1, -1))),
    (21_969, ((1, 2), (1, -2), (2, 1), (2, -1))),
)


def find_contours(levels: UInt8[Tensor, "n 1 h w"], *, weak: int, strong: int) -> Bool[Tensor, "n 1 h w"]:
    """Return the pixels of contours: gradient ridges above ``strong``, and ridges above ``weak`` connected to them.

    Source: OpenCV's ``Canny(levels, weak, strong)``, the same pixels: Sobel's 3×3 gradients with repeated borders, L1
    norm, no gradient outside the image, neighbours in eight directions.
    """
    right, down = _compute_gradients(levels)
    strength = right.abs() + down.abs()
    ridge = _is_ridge(strength, right, down)
    return _grow(ridge & (strength > strong), ridge & (strength > weak))


def _compute_gradients(levels: UInt8[Tensor, "n 1 h w"]) -> tuple[Int32[Tensor, "n 1 h w"], Int32[Tensor, "n 1 h w"]]:
    """Return Sobel's gradients to the right and down, in −1020 … 1020."""
    padded = F.pad(levels.float(), (1, 1, 1, 1), mode="replicate").to(torch.int32)
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return rows[..., 2:] - rows[..., :-2], columns[..., 2:, :] - columns[..., :-2, :]


def _is_ridge(
    strength: Int32[Tensor, "n 1 h w"], right: Int32[Tensor, "n 1 h w"], down: Int32[Tensor, "n 1 h w"]
) -> Bool[Tensor, "n 1 h w"]:
    """Return whether a pixel's gradient is the largest along its own direction, rounded to eighths of a turn.

    Of two equal neighbours in a row or column the first is the ridge, as in OpenCV.
    """
    height, width = strength.shape[-2:]
    padded = F.pad(strength, (1, 1, 1, 1))

    def beside(rows: int, columns: int) -> Int32[Tensor, "n 1 h w"]:
        return padded[..., 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]

    run, rise = right.abs(), down.abs() << 15
    is_flat, is_steep = rise < _TAN_22 * run, rise > _TAN_67 * run
    is_falling = (right ^ down) >= 0
    sideways = (strength > beside(0, -1)) & (strength >= beside(0, 1))
    upright = (strength > beside(-1, 0)) & (strength >= beside(1, 0))
    falling = (strength > beside(-1, -1)) & (strength > beside(1, 1))
    rising = (strength > beside(-1, 1)) & (strength > beside(1, -1))
    aslant = (is_falling & falling) | (~is_falling & rising)
    return (is_flat & sideways) | (is_steep & upright) | (~(is_flat | is_steep) & aslant)


def _grow(found: Bool[Tensor, "n 1 h w"], passable: Bool[Tensor, "n 1 h w"]) -> Bool[Tensor, "n 1 h w"]:
    """Return the found pixels and all passable pixels connected to them in eight directions."""
    # Rows follow each other with an empty column in between, so that growth does not cross from one row to the next.
    ground = F.pad(passable, (0, 1, 1, 1)).flatten(1)
    height, wide = passable.shape[-2], passable.shape[-1] + 1
    grown = F.pad(found, (0, 1, 1, 1)).flatten(1)
    while True:
        before = grown
        for _ in range(_STEPS_BETWEEN_LOOKS):
            grown = _spread(_spread(grown, 1), wide) & ground
        if torch.equal(grown, before):
            return grown.reshape(-1, 1, height + 2, wide)[..., 1:-1, :-1]


def _spread(flags: Bool[Tensor, "n p"], step: int) -> Bool[Tensor, "n p"]:
    """Return the flags, with those ``step`` before and after each set flag set as well."""
    spread = flags.clone()
    spread[:, step:] |= flags[:, :-step]
    spread[:, :-step] |= flags[:, step:]
    return spread


def measure_distance(found: Bool[Tensor, "n 1 h w"], *, limit_px: int) -> Int32[Tensor, "n 1 h w"]:
    """Return the length of the shortest path to a found pixel, at most the limit, in ten-thousandths of a pixel.

    Source: OpenCV's ``distanceTransform`` with ``DIST_L2`` and mask size 5, as computed by Intel's library, which
    the wheels for x86 contain; OpenCV's own code has the costs in 16-bit fixed point, where 1.4 is 1.39999.

    A shortest path has moves of two kinds, in any order. So all moves of one kind are made after those of another, each
    kind by doubling: 1, 2, 4, … moves at a time.
    """
    height, width = found.shape[-2:]
    limit = limit_px * DISTANCE_UNIT
    # Further columns on the right: a path that leaves a row there exceeds the limit before it reaches the next row.
    wide = width + limit_px
    ways = F.pad(torch.where(found, 0, limit).to(torch.int32), (0, limit_px), value=limit).flatten(1)
    longer = torch.empty_like(ways)
    for cost, moves in _MOVES:
        for down, right in moves:
            left, at_once = (limit - 1) // cost, 1
            while left > 0:
                at_once = min(at_once, left)
                step = at_once * (down * wide + right)
                if step < ways.shape[1]:
                    torch.add(ways, at_once * cost, out=longer)
                    after, before = ways[:, step:], ways[:, :-step]
                    torch.minimum(after, longer[:, :-step], out=after)
                    torch.minimum(before, longer[:, step:], out=before)
                left -= at_once
                at_once *= 2
    return ways.reshape(-1, 1, height, wide)[..., :width]
