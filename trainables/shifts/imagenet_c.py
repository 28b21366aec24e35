"""Corruptions of ImageNet-C that ``operations.DEFAULT`` lacks, with its strengths (Hendrycks & Dietterich 2019)."""

from __future__ import annotations

import math

from trainables.ops import colour_space, distortion, weather
from trainables.ops.filters import smoothing_gain
from trainables.shifts.operation import Images, Operation, Seeds, each, one, scale_to, several
from trainables.shifts.tables import Strength


def _glass_blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    sigma, reach, rounds = several(strength, 3)
    return distortion.glass_blur(
        images,
        seeds,
        sigma_px=scale_to(images, sigma),
        reach_px=scale_to(images, reach),
        rounds=int(rounds),
    )


def _zoom_blur(images: Images, strength: Strength, seeds: Seeds) -> Images:
    largest, step = several(strength, 2)
    return distortion.zoom_blur(images, largest=largest, step=step)


def _elastic_transform(images: Images, strength: Strength, seeds: Seeds) -> Images:
    # ImageNet-C at 224 px: uniform displacements of ±.005·224 px, smoothed by .01·224 px, times the strength. At other
    # sizes the displacement that is left after smoothing keeps its size relative to the image.
    sigma = scale_to(images, 2.24)
    left = 1.12 * one(strength) * smoothing_gain(2.24, distortion.elastic_radius(2.24))
    amplitude = scale_to(images, left) / smoothing_gain(sigma, distortion.elastic_radius(sigma))
    return distortion.elastic_transform(images, seeds, amplitude_px=amplitude, sigma_px=sigma)


def _snow(images: Images, strength: Strength, seeds: Seeds) -> Images:
    mean, deviation, flake, threshold, radius, sigma, kept = several(strength, 7)
    return weather.add_snow(
        images,
        seeds,
        density=(mean, deviation),
        threshold=threshold,
        flake_px=max(1.0, scale_to(images, flake)),
        streak=(2 * math.ceil(scale_to(images, radius)) + 1, scale_to(images, sigma)),
        kept=kept,
    )


def _frost(images: Images, strength: Strength, seeds: Seeds) -> Images:
    kept, frost = several(strength, 2)
    return weather.add_frost(images, seeds, kept=kept, frost=frost)


def _fog(images: Images, strength: Strength, seeds: Seeds) -> Images:
    amount, decay = several(strength, 2)
    return weather.add_fog(images, seeds, amount=amount, decay=decay)


def _spatter(images: Images, strength: Strength, seeds: Seeds) -> Images:
    mean, deviation, drop, threshold, last, is_mud = several(strength, 6)
    # The deviation that smoothing at 224 px leaves of the noise, so that the same share of a small image gets wet.
    liquid = (mean, deviation * smoothing_gain(drop, math.ceil(4.0 * drop)))
    drop_px = scale_to(images, drop)
    if is_mud:
        return weather.splash_mud(
            images, seeds, liquid=liquid, drop_px=drop_px, threshold=threshold, soft_px=scale_to(images, last)
        )
    return weather.splash_water(images, seeds, liquid=liquid, drop_px=drop_px, threshold=threshold, amount=last)


#: Operations by ImageNet-C's name.
OPERATIONS: dict[str, Operation] = {
    "glass_blur": Operation(_glass_blur, (0.0, 0.0, 0.0)),
    "zoom_blur": Operation(_zoom_blur, (1.0, 1.0), fold="slices"),
    "snow": Operation(_snow, (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0)),
    "frost": Operation(_frost, (1.0, 0.0)),
    "fog": Operation(_fog, (0.0, 2.0)),
    "spatter": Operation(_spatter, (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)),
    "brightness": Operation(lambda x, s, seeds: colour_space.add_value(x, each(s, x)), 0.0, fold="voxels"),
    "contrast": Operation(lambda x, s, seeds: colour_space.scale_contrast(x, each(s, x)), 1.0, fold="voxels"),
    "saturate": Operation(
        lambda x, s, seeds: colour_space.saturate(x, each(s, x, 0), each(s, x, 1)), (1.0, 0.0), True, "voxels"
    ),
    "elastic_transform": Operation(_elastic_transform, 0.0, fold="slices"),
}
