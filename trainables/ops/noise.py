"""Pixel noise, drawn per sample from counter-based numbers: the same alone and in any batch.

Strengths are in units of the grey range (1 is 255) unless said otherwise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

from trainables.ops.pixels import levels, per_sample, to_uint8_, truncate_to_uint8_
from trainables.seeding import normal, uniform, uniform_16bit

Images = UInt8[Tensor, "n c h w"]
Seeds = Int64[Tensor, " n"]


def add_gaussian_noise(images: Images, scale: Float[Tensor, " n"], seeds: Seeds) -> Images:
    """Return x + N(0, scale²), independent per pixel and channel; 0 is identity."""
    return truncate_to_uint8_(images + 255.0 * per_sample(scale) * normal(seeds, *images.shape[1:]))


def add_speckle_noise(images: Images, scale: Float[Tensor, " n"], seeds: Seeds) -> Images:
    """Return x·(1 + N(0, scale²)), independent per pixel and channel; 0 is identity."""
    return truncate_to_uint8_(images * (1.0 + per_sample(scale) * normal(seeds, *images.shape[1:])))


def add_impulse_noise(images: Images, amount: Float[Tensor, " n"], seeds: Seeds) -> Images:
    """Return the images with a share ``amount`` of values set to 0 or 255 (half each); 0 is identity."""
    draw, half = uniform(seeds, *images.shape[1:]), per_sample(amount) / 2
    return torch.where(draw < half, 0, torch.where(draw >= 1 - half, 255, images)).to(torch.uint8)


def mix_uniform_noise(images: Images, amount: Float[Tensor, " n"], seeds: Seeds) -> Images:
    """Return (1−m)·x + m·U{0…254}, the same noise in all channels; 0 is identity (StrongAugment's noise)."""
    m = per_sample(amount)
    noise = uniform_16bit(seeds, 1, *images.shape[2:], stream="noise").mul_(255).bitwise_right_shift_(16)
    return to_uint8_(images.float().mul_(1 - m).add_(noise * m))


def add_shot_noise(images: Images, seeds: Seeds, *, photons: float) -> Images:
    """Return Poisson(x/255 · photons) · 255 / photons, independent per pixel and channel.

    Exact inversion of the Poisson distribution: a pixel has one of 256 values, hence one of 256 rates, whose
    cumulative distributions fit in one table. Tails beyond probability 2⁻²⁵ are cut (24-bit uniform numbers).

    Args:
        images: uint8 images.
        seeds: one per sample.
        photons: expected count of a white pixel; fewer is noisier.
    """
    thresholds = _poisson_thresholds(photons, images.device)
    num_entries = thresholds.shape[1]
    flat, first = thresholds.flatten(), images.flatten().to(torch.int32) * num_entries
    draw = (uniform(seeds, *images.shape[1:]) * 2.0**24).to(torch.int32).flatten()  # exact: 24 bits
    count = torch.zeros_like(first)
    step = num_entries // 2
    while step:  # bisection: how many thresholds a draw reaches
        reached = draw >= flat.index_select(0, first + count + (step - 1))
        count += step * reached
        step //= 2
    return truncate_to_uint8_(count.reshape(images.shape) * (255.0 / photons))


@lru_cache(maxsize=16)
def _poisson_thresholds(photons: float, device: torch.device) -> Int32[Tensor, "256 k"]:
    """Return in row x the smallest 24-bit draws that mean more than 0, 1, … counts at rate x/255 · photons; k = 2^m."""
    largest = math.ceil(photons + 8.0 * math.sqrt(photons) + 20.0)  # 2⁻²⁵ lies below 5.5 σ plus skew
    counts = torch.arange(largest + 1, dtype=torch.float64, device=device)
    rates = (levels(device) / 255.0 * photons).clamp(min=1e-300)[:, None]
    mass = torch.exp(counts * torch.log(rates) - rates - torch.lgamma(counts + 1.0))
    cumulative = mass.cumsum(1).clamp(max=1.0)
    # A draw d stands for the probability (d + ½)·2⁻²⁴: 0 is not "less likely than anything".
    reached = torch.floor(cumulative * 2.0**24 - 0.5) + 1.0
    thresholds = torch.full((256, 2 ** math.ceil(math.log2(largest + 2))), 2**24, dtype=torch.int32, device=device)
    thresholds[:, : largest + 1] = reached.to(torch.int32)
    return thresholds
