"""Pixel noise, drawn per sample from counter-based numbers: the same alone and in any batch.

Strengths are in units of the grey range (1 is 255) unless said otherwise.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from trainables.ops.pixels import levels, per_sample, to_uint8
from trainables.seeding import normal, uniform

Images = UInt8[Tensor, "n c h w"]
Seeds = Int64[Tensor, " n"]


def add_gaussian_noise(images: Images, scale: Float[Tensor, " n"], seeds: Seeds) -> Images:
    """Return x + N(0, scale²), independent per pixel and channel; 0 is identity."""
    return to_uint8(images + 255.0 * per_sample(scale) * normal(seeds, *images.shape[1:]))


def add_speckle_noise(images: Images, scale: Float[Tensor, " n"], seeds: Seeds) -> Images:
    """Return x·(1 + N(0, scale²)), independent per pixel and channel; 0 is identity."""
    return to_uint8(images * (1.0 + per_sample(scale) * normal(seeds, *images.shape[1:])))


def add_impulse_noise(images: Images, amount: Float[Tensor, " n"], seeds: Seeds) -> Images:
    """Return the images with a share ``amount`` of values set to 0 or 255 (half each); 0 is identity."""
    draw, half = uniform(seeds, *images.shape[1:]), per_sample(amount) / 2
    return torch.where(draw < half, 0, torch.where(draw >= 1 - half, 255, images)).to(torch.uint8)


def mix_uniform_noise(images: Images, amount: Float[Tensor, " n"], seeds: Seeds) -> Images:
    """Return (1−m)·x + m·U{0…254}, the same noise in all channels; 0 is identity (StrongAugment's noise)."""
    m = per_sample(amount)
    noise = torch.floor(255.0 * uniform(seeds, 1, *images.shape[2:], stream="noise"))
    return to_uint8((1 - m) * images + m * noise)


def add_shot_noise(images: Images, seeds: Seeds, *, photons: float) -> Images:
    """Return Poisson(x/255 · photons) · 255 / photons, independent per pixel and channel.

    Exact inversion of the Poisson distribution: a pixel has one of 256 values, hence one of 256 rates, whose
    cumulative distributions fit in one table. Tails beyond probability 2⁻²⁵ are cut (24-bit uniform numbers).

    Args:
        images: uint8 images.
        seeds: one per sample.
        photons: expected count of a white pixel; fewer is noisier.
    """
    table = _poisson_table(photons, images.device)
    # Table rows lie in (level, level + 1], so the flattened table is sorted and one search serves all rates.
    # The half step keeps a draw of exactly 0 from meaning "less likely than anything".
    draw = uniform(seeds, *images.shape[1:]).double() + 2.0**-25
    position = torch.searchsorted(table.flatten(), draw + images)
    counts = position - images.to(torch.int64) * table.shape[1]
    return to_uint8(counts * (255.0 / photons))


def _poisson_table(photons: float, device: torch.device) -> Float[Tensor, "256 k"]:
    """Row x: x + P(count ≤ k) for the rate x/255 · photons; the last column is exactly x + 1."""
    largest = math.ceil(photons + 8.0 * math.sqrt(photons) + 20.0)  # 2⁻²⁵ lies below 5.5 σ plus skew
    counts = torch.arange(largest + 1, dtype=torch.float64, device=device)
    rates = (levels(device) / 255.0 * photons).clamp(min=1e-300)[:, None]
    mass = torch.exp(counts * torch.log(rates) - rates - torch.lgamma(counts + 1.0))
    cumulative = mass.cumsum(1).clamp(max=1.0)
    cumulative[:, -1] = 1.0
    return cumulative + levels(device)[:, None]
