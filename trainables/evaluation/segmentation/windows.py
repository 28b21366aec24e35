"""Logits of whole images from overlapping windows, blended with Gaussian weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

#: Standard deviation of the weights of a window, as a share of its side (nnU-Net, Isensee et al. 2021).
SIGMA = 1 / 8
#: Least weight of a pixel of a window, so that none is divided by zero (nnU-Net sets zeros to the smallest weight).
_LEAST = 1e-3


def predict_windows(
    forward: Callable[[Tensor], Tensor],
    images: Float[Tensor, "n c h w"],
    *,
    size: int | None,
    overlap: float,
) -> Float[Tensor, "n classes h w"]:
    """Return the logits of images: of every pixel the mean over the windows that it is in, those around it most.

    Args:
        forward: network on normalised images; all windows are of one size.
        images: normalised images, at least of the windows' size.
        size: side of the windows in px; None, or that of the images: one pass over whole images.
        overlap: least share of a window's side that it has in common with the next.
    """
    height, width = images.shape[-2:]
    if size is None or (size >= height and size >= width):
        return forward(images)
    weights = blend_window(size, images.device)
    total: Tensor | None = None
    norm = torch.zeros(height, width, device=images.device)
    for top in place_windows(height, size, overlap):
        for left in place_windows(width, size, overlap):
            rows, columns = slice(top, top + size), slice(left, left + size)
            logits = forward(images[..., rows, columns]).float()
            if total is None:
                total = torch.zeros(*logits.shape[:2], height, width, device=images.device)
            total[..., rows, columns] += weights * logits
            norm[rows, columns] += weights
    assert total is not None
    return total / norm


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


def blend_window(size: int, device: torch.device) -> Float[Tensor, "s s"]:
    """Return the weights of the pixels of a window, largest at its centre."""
    across = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
    line = torch.exp(-0.5 * (across / (SIGMA * size)).square())
    return (line[:, None] * line).clamp(min=_LEAST)
