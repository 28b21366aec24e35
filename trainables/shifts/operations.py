"""The shift bank's operations: one strength for the whole batch, randomness per sample.

Published strengths hold at 224 px. On smaller images a blur of the same share of the image would often be less than
a pixel and do nothing, so lengths shrink to a floor (``scale_length``); pixelation is softened likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trainables.ops import colour, filters, noise
from trainables.seeding import uniform

Images = UInt8[Tensor, "n c h w"]
Seeds = Int64[Tensor, " n"]
#: One number, or the few that a table gives per severity.
Strength = float | tuple[float, ...]

#: Side at which ImageNet-C and MedMNIST-C define their kernels.
REFERENCE_SIDE_PX = 224


class Operation(NamedTuple):
    """A shift's operation, and the strength at which it is the identity."""

    apply: Callable[[Images, Strength, Seeds], Images]
    identity: Strength
    #: Images of one channel come back as they are.
    needs_colour: bool = False


def scale_length(length_px: float, side_px: int) -> float:
    """Return a kernel length given at 224 px for an image of ``side_px``: proportional, plus up to .3 px below 224.

    At 32 px ImageNet-C's Gaussian sigmas 1, 2, 3, 4, 6 become .40, .54, .69, .83, 1.11; CIFAR-10-C publishes
    .4, .6, .7, .8, 1.
    """
    share = side_px / REFERENCE_SIDE_PX
    return length_px * share + 0.3 * max(0.0, 1.0 - share)


def _side(images: Images) -> int:
    return min(images.shape[-2:])


def _each(strength: Strength, images: Images, index: int = 0) -> Tensor:
    """The strength (or its ``index``-th number) once per sample."""
    value = strength[index] if isinstance(strength, tuple) else strength
    return torch.full((len(images),), float(value), device=images.device)


def _one(strength: Strength) -> float:
    if isinstance(strength, tuple):
        raise TypeError(f"expected one number as strength, found {strength}")
    return strength


def _pair(strength: Strength) -> tuple[float, float]:
    if not isinstance(strength, tuple) or len(strength) != 2:
        raise TypeError(f"expected two numbers as strength, found {strength}")
    return strength[0], strength[1]


def _gaussian_blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    sigma = scale_length(_one(strength), _side(images))
    radius = torch.full((len(images),), math.ceil(4.0 * sigma), device=images.device)  # 4 sigma: scikit-image
    return filters.gaussian_blur(images, _each(sigma, images), radius)


def _defocus_blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    radius, alias = _pair(strength)
    return filters.defocus_blur(images, radius_px=scale_length(radius, _side(images)), alias_px=alias)


def _motion_blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    radius, sigma = (scale_length(length, _side(images)) for length in _pair(strength))
    angle = uniform(seeds, stream="angle") * (math.pi / 2) - math.pi / 4  # ImageNet-C: −45° to 45°
    return filters.motion_blur(images, angle, num_taps=2 * math.ceil(radius) + 1, sigma_px=sigma)


def _pixelate(images: Images, strength: Strength, seeds: Seeds) -> Images:
    # At 32 px ImageNet-C's .6–.25 become .82–.59; CIFAR-10-C publishes .95–.65.
    exponent = math.sqrt(min(1.0, _side(images) / REFERENCE_SIDE_PX))
    return filters.pixelate(images, kept=_one(strength) ** exponent)


def _jpeg(images: Images, strength: Strength, seeds: Seeds) -> Images:
    return filters.jpeg(images, _each(strength, images).to(torch.int64))


def _brightness(images: Images, strength: Strength, seeds: Seeds) -> Images:
    return colour.adjust_brightness(images, _each(strength, images))


def _contrast(images: Images, strength: Strength, seeds: Seeds) -> Images:
    return colour.adjust_contrast(images, _each(strength, images))


def _gamma(images: Images, strength: Strength, seeds: Seeds) -> Images:
    return colour.adjust_gamma(images, _each(strength, images))


#: In the order in which shifts are listed everywhere. jpeg's and shot noise's identity is the limit, not a level.
OPERATIONS: dict[str, Operation] = {
    "gaussian_noise": Operation(lambda x, s, seeds: noise.add_gaussian_noise(x, _each(s, x), seeds), 0.0),
    "shot_noise": Operation(lambda x, s, seeds: noise.add_shot_noise(x, seeds, photons=_one(s)), math.inf),
    "impulse_noise": Operation(lambda x, s, seeds: noise.add_impulse_noise(x, _each(s, x), seeds), 0.0),
    "speckle_noise": Operation(lambda x, s, seeds: noise.add_speckle_noise(x, _each(s, x), seeds), 0.0),
    "gaussian_blur": Operation(_gaussian_blur, 0.0),
    "defocus_blur": Operation(_defocus_blur, (0.0, 0.0)),
    "motion_blur": Operation(_motion_blur, (0.0, 0.0)),
    "brightness_up": Operation(_brightness, 1.0),
    "brightness_down": Operation(_brightness, 1.0),
    "contrast_up": Operation(_contrast, 1.0),
    "contrast_down": Operation(_contrast, 1.0),
    "gamma_up": Operation(_gamma, 1.0),
    "gamma_down": Operation(_gamma, 1.0),
    "saturation": Operation(
        lambda x, s, seeds: colour.scale_saturation(x, _each(s, x, 0), _each(s, x, 1)), (1.0, 0.0), needs_colour=True
    ),
    "jpeg": Operation(_jpeg, math.inf),
    "pixelate": Operation(_pixelate, 1.0),
}
