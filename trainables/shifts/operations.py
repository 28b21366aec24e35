"""Operations of the shift bank: one strength per batch, random numbers per sample."""

from __future__ import annotations

import math

from trainables.ops import colour, filters, noise
from trainables.seeding import uniform
from trainables.shifts import imagenet_c, medmnist_c
from trainables.shifts.operation import REFERENCE_SIDE_PX, Images, Operation, Seeds, each, one, scale_to, several
from trainables.shifts.tables import Strength


def _gaussian_blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    sigma = scale_to(images, one(strength))
    # cut at 4 sigma, as in scikit-image
    return filters.blur_with_one_sigma(images, sigma_px=sigma, radius_px=math.ceil(4.0 * sigma))


def _defocus_blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    radius, alias = several(strength, 2)
    return filters.defocus_blur(images, radius_px=scale_to(images, radius), alias_px=alias)


def _motion_blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    radius, sigma = (scale_to(images, length) for length in several(strength, 2))
    angle = uniform(seeds, stream="angle") * (math.pi / 2) - math.pi / 4  # ImageNet-C: −45° to 45°
    return filters.motion_blur(images, angle, num_taps=2 * math.ceil(radius) + 1, sigma_px=sigma)


def _pixelate(images: Images, strength: Strength, seeds: Seeds) -> Images:
    # At 32 px ImageNet-C's .6–.25 become .82–.59; CIFAR-10-C publishes .95–.65.
    exponent = math.sqrt(min(1.0, min(images.shape[-2:]) / REFERENCE_SIDE_PX))
    return filters.pixelate(images, kept=one(strength) ** exponent)


def _jpeg(images: Images, strength: Strength, seeds: Seeds) -> Images:
    return filters.jpeg(images, each(strength, images).long())


def _brightness(images: Images, strength: Strength, seeds: Seeds) -> Images:
    return colour.adjust_brightness(images, each(strength, images))


def _contrast(images: Images, strength: Strength, seeds: Seeds) -> Images:
    return colour.adjust_contrast(images, each(strength, images))


def _gamma(images: Images, strength: Strength, seeds: Seeds) -> Images:
    return colour.adjust_gamma(images, each(strength, images))


#: Operations of ``shifts: all``, in this order. The identity of jpeg and shot noise is a limit that cannot be applied.
DEFAULT: dict[str, Operation] = {
    "gaussian_noise": Operation(lambda x, s, seeds: noise.add_gaussian_noise(x, each(s, x), seeds), 0.0, fold="voxels"),
    "shot_noise": Operation(
        lambda x, s, seeds: noise.add_shot_noise(x, seeds, photons=one(s)), math.inf, fold="voxels"
    ),
    "impulse_noise": Operation(lambda x, s, seeds: noise.add_impulse_noise(x, each(s, x), seeds), 0.0, fold="voxels"),
    "speckle_noise": Operation(lambda x, s, seeds: noise.add_speckle_noise(x, each(s, x), seeds), 0.0, fold="voxels"),
    "gaussian_blur": Operation(_gaussian_blur, 0.0, fold="slices"),
    "defocus_blur": Operation(_defocus_blur, (0.0, 0.0), fold="slices"),
    "motion_blur": Operation(_motion_blur, (0.0, 0.0), fold="slices"),
    "brightness_up": Operation(_brightness, 1.0, fold="voxels"),
    "brightness_down": Operation(_brightness, 1.0, fold="voxels"),
    "contrast_up": Operation(_contrast, 1.0, fold="voxels"),
    "contrast_down": Operation(_contrast, 1.0, fold="voxels"),
    "gamma_up": Operation(_gamma, 1.0, fold="voxels"),
    "gamma_down": Operation(_gamma, 1.0, fold="voxels"),
    "saturation": Operation(
        lambda x, s, seeds: colour.scale_saturation(x, each(s, x, 0), each(s, x, 1)), (1.0, 0.0), True, "voxels"
    ),
    "jpeg": Operation(_jpeg, math.inf, fold="slices"),
    "pixelate": Operation(_pixelate, 1.0, fold="slices"),
}

#: Every operation of the bank, in the order in which shifts are listed everywhere.
OPERATIONS: dict[str, Operation] = {**DEFAULT, **imagenet_c.OPERATIONS, **medmnist_c.OPERATIONS}
