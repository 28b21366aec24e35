"""Regularisers that mix the images of a batch: mixup and CutMix, with the shares of the two labels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Mixed(NamedTuple):
    """A mixed batch."""

    images: Float[Tensor, "n c h w"]
    #: Index of each image's partner.
    partner: Int64[Tensor, " n"]
    #: Share of the image itself and of its label, in [0, 1]; its partner has the rest.
    share: float


def mixup(images: Float[Tensor, "n c h w"], *, alpha: float, generator: np.random.Generator) -> Mixed:
    """Return convex combinations of the images with their partners.

    The share is Beta(α, α), drawn once per batch (Zhang et al. 2018, algorithm 1).
    """
    share = float(generator.beta(alpha, alpha))
    partner = _draw_partners(images, generator)
    return Mixed(share * images + (1.0 - share) * images[partner], partner, share)


def cutmix(images: Float[Tensor, "n c h w"], *, alpha: float, generator: np.random.Generator) -> Mixed:
    """Return the images with one rectangle, the same for the whole batch, replaced by their partners' pixels.

    The rectangle has the image's proportions and the area share 1 − λ, λ from Beta(α, α), around a uniform centre. It
    is clipped to the image, and the returned share is that of the pixels kept (Yun et al. 2019, algorithm 1).
    """
    height, width = images.shape[-2:]
    side = math.sqrt(1.0 - float(generator.beta(alpha, alpha)))
    partner = _draw_partners(images, generator)
    top, bottom = _cut(int(generator.integers(height)), int(side * height), height)
    left, right = _cut(int(generator.integers(width)), int(side * width), width)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    return Mixed(mixed, partner, 1.0 - (bottom - top) * (right - left) / (height * width))


def _cut(centre: int, length: int, side: int) -> tuple[int, int]:
    return max(0, centre - length // 2), min(side, centre + length - length // 2)


def _draw_partners(images: Tensor, generator: np.random.Generator) -> Int64[Tensor, " n"]:
    return torch.from_numpy(generator.permutation(len(images))).to(images.device)
