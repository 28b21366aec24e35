"""Logits of whole images from overlapping windows, blended with Gaussian weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trainables.ops.geometry import index_first, index_last

#: Standard deviation of the weights of a window, as a share of its side (nnU-Net, Isensee et al. 2021).
SIGMA = 1 / 8
#: Least weight of a pixel of a window, so that none is divided by zero (nnU-Net sets zeros to the smallest weight).
_LEAST = 1e-3
#: Side of windows, or sides along every axis.
Size = int | tuple[int, ...]


def predict_windows(
    forward: Callable[[Tensor], Tensor],
    images: Float[Tensor, "n c *space"],
    *,
    size: Size | None,
    overlap: float,
    batch_size: int = 1,
) -> Float[Tensor, "n classes *space"]:
    """Return the logits of images: of every pixel the mean over the windows that it is in, those around it most.

    Args:
        forward: network on normalised images; all windows are of one size.
        images: normalised images or volumes; volumes that are smaller than a window are continued by their last voxels.
        size: side or sides of the windows in px; None, or that of the images: one pass over whole images.
        overlap: least share of a window's side that it has in common with the next.
        batch_size: windows of a forward pass, if there are more of them than images.
    """
    shape = tuple(images.shape[2:])
    if size is None:
        return forward(images)
    sides = _list_sides(size, len(shape))
    if len(shape) == 2 and all(side >= length for side, length in zip(sides, shape, strict=True)):
        return forward(images)
    whole = fill_up(images, sides)
    weights = blend_window(sides, images.device)
    total: Tensor | None = None
    norm = torch.zeros(whole.shape[2:], device=images.device)
    places = list(list_windows(tuple(whole.shape[2:]), sides, overlap))
    together = max(1, batch_size // len(images))
    for start in range(0, len(places), together):
        part = places[start : start + together]
        logits = forward(torch.cat([whole[index_last(place)] for place in part])).float()
        if total is None:
            total = torch.zeros(len(images), logits.shape[1], *whole.shape[2:], device=images.device)
        for place, window in zip(part, torch.split(logits, len(images)), strict=True):
            total[index_last(place)] += weights * window
            norm[place] += weights
    assert total is not None
    return (total / norm)[index_first(shape)]


def fill_up(images: Float[Tensor, "n c *space"], size: Size) -> Float[Tensor, "n c *filled"]:
    """Return images that are at least as large as windows, continued by their last pixels."""
    shape = images.shape[2:]
    missing = [max(0, side - length) for side, length in zip(_list_sides(size, len(shape)), shape, strict=True)]
    if not any(missing):
        return images
    return F.pad(images, [each for side in reversed(missing) for each in (0, side)], mode="replicate")


def list_windows(shape: tuple[int, ...], size: Size, overlap: float) -> Iterator[tuple[slice, ...]]:
    """Yield the places of the windows in images of a shape, see ``place_windows``."""
    sides = _list_sides(size, len(shape))
    along = [place_windows(length, side, overlap) for length, side in zip(shape, sides, strict=True)]
    for corner in itertools.product(*along):
        yield tuple(slice(first, first + side) for first, side in zip(corner, sides, strict=True))


def place_windows(length: int, size: int, overlap: float) -> list[int]:
    """Return where windows begin: evenly spaced from edge to edge, as few as the overlap allows.

    >>> place_windows(100, 40, 0.5)
    [0, 20, 40, 60]
    """
    if size >= length:
        return [0]
    step = max(1, int(size * (1.0 - overlap)))
    count = -(-(length - size) // step)
    return [round(index * (length - size) / count) for index in range(count + 1)]


def _list_sides(size: Size, axes: int) -> tuple[int, ...]:
    return (size,) * axes if isinstance(size, int) else size


def blend_window(sides: tuple[int, ...], device: torch.device) -> Float[Tensor, "*sides"]:
    """Return the weights of the pixels of a window, largest at its centre."""
    weights = torch.ones((), device=device)
    for side in sides:
        across = torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (across / (SIGMA * side)).square())
    return weights.clamp(min=_LEAST)
