"""Weather between the object and the camera: snow, frost, fog, drops of water and mud on the lens.

All are from ImageNet-C. Each image gets one random layer, the same in all channels but for its colour.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64, Int64, Num, UInt8
from torch import Tensor
from torch.nn import functional as F

from trainables.ops.colour import equalize_as_opencv
from trainables.ops.contours import DISTANCE_UNIT, find_contours, measure_distance
from trainables.ops.filters import EMBOSS, filter_3x3, smear, smooth_inside, smoothing_gain
from trainables.ops.frost_textures import NUM_TEXTURES, frost_textures
from trainables.ops.pixels import compute_grey, is_grey, per_sample, to_uint8, truncate_to_uint8_
from trainables.seeding import normal, uniform

Images = UInt8[Tensor, "n c h w"]
Seeds = Int64[Tensor, " n"]
Layer = Float[Tensor, "n 1 h w"]

#: Pale turquoise water and brown mud, as in ImageNet-C.
_WATER, _MUD = (175.0, 238.0, 238.0), (63.0, 42.0, 20.0)
#: Cover below which a pixel has no mud.
_THIN_MUD = 0.8
#: Steps per grey level of a snowflake before it is smeared: ImageNet-C's flakes are not rounded there.
_FLAKE_STEPS = 2**8


def add_snow(
    images: Images,
    seeds: Seeds,
    *,
    density: tuple[float, float],
    threshold: float,
    flake_px: float,
    streak: tuple[int, float],
    kept: float,
) -> Images:
    """Return the whitened images with falling snowflakes on them.

    Source: ``snow`` of ImageNet-C.

    Args:
        images: uint8 images.
        seeds: one per sample.
        density: mean and standard deviation of the noise that flakes are made of.
        threshold: noise level below which there is no flake.
        flake_px: enlargement of the noise, ≥ 1.
        streak: taps and sigma in px of the motion blur of flakes.
        kept: share of the image that is not whitened.
    """
    height, width = images.shape[-2:]
    mean, deviation = density
    small = (math.ceil(height / flake_px), math.ceil(width / flake_px))
    size = (max(height, round(small[0] * flake_px)), max(width, round(small[1] * flake_px)))
    noise = mean + deviation * normal(seeds, 1, *small, stream="flakes")
    noise = F.interpolate(noise, size=size, mode="bilinear", align_corners=True)
    flakes = (noise * (noise >= threshold)).clamp_(0, 1).mul_(255.0 * _FLAKE_STEPS).round_().double()
    angle = -torch.pi * (0.25 + 0.5 * uniform(seeds, stream="angle"))  # ImageNet-C: −135° to −45°
    flakes = to_uint8(smear(flakes, angle, num_taps=streak[0], sigma_px=streak[1]).div_(_FLAKE_STEPS))
    flakes = flakes[..., :height, :width]
    ground = torch.maximum(images, 1.5 * _luma(images) + 127.5)
    return truncate_to_uint8_(kept * images + (1.0 - kept) * ground + flakes.float() + flakes.flip(2, 3).float())


def _luma(images: Images) -> Layer:
    """Return grey values with their fractions, as OpenCV computes them in float32; ``compute_grey`` rounds."""
    if is_grey(images):
        return images.float()
    red, green, blue = (images[:, channel : channel + 1].float() for channel in range(3))
    return red.mul_(0.299).add_(green.mul_(0.587)).add_(blue.mul_(0.114))


def add_frost(images: Images, seeds: Seeds, *, kept: float, frost: float) -> Images:
    """Return kept·x + frost·(a random part of a random frost texture).

    Source: ``frost`` of ImageNet-C. Differs: procedural textures (``frost_textures``) instead of six photographs.
    """
    channels, height, width = images.shape[1:]
    textures = frost_textures(max(height, width), images.device)
    if channels == 1:
        textures = compute_grey(textures).to(torch.uint8)
    side = textures.shape[-1]
    choice, down, right = (
        torch.floor(uniform(seeds, stream=name) * count).to(torch.int64)
        for name, count in (("texture", NUM_TEXTURES), ("down", side - height + 1), ("right", side - width + 1))
    )
    windows = textures.as_strided((textures.numel() - width + 1, width), (1, 1))  # any run of ``width`` values
    plane = choice[:, None] * channels + torch.arange(channels, device=images.device)
    row = down[:, None] + torch.arange(height, device=images.device)
    starts = (plane[:, :, None] * side + row[:, None, :]) * side + right[:, None, None]
    part = windows.index_select(0, starts.flatten()).reshape(images.shape)
    return truncate_to_uint8_(kept * images + frost * part)


def add_fog(images: Images, seeds: Seeds, *, amount: float, decay: float) -> Images:
    """Return the images behind a fractal fog: (x + amount·fog), the brightest value of the image kept.

    Source: ``fog`` of ImageNet-C.

    Args:
        images: uint8 images.
        seeds: one per sample.
        amount: amount of fog, relative to the grey range; 0 is identity.
        decay: decay of the fractal's roughness from one octave to the next (squared); > 1, larger is smoother.
    """
    height, width = images.shape[-2:]
    side = 2 ** max(1, math.ceil(math.log2(max(height, width))))
    fog = _diamond_square(seeds, side, decay)[:, None, :height, :width]
    brightest = per_sample(images.flatten(1).amax(1)).float() / 255.0
    scale = brightest / (brightest + amount)
    return truncate_to_uint8_((images.float() + 255.0 * amount * fog) * scale)


def _diamond_square(seeds: Seeds, side: int, decay: float) -> Float[Tensor, "n side side"]:
    """Return fractal height maps in [0, 1], periodic; ``side`` is a power of two."""
    draws = 2.0 * uniform(seeds, side, side, stream="fog") - 1.0
    heights = torch.zeros_like(draws)
    step, amplitude = side, 100.0
    while step >= 2:
        half = step // 2
        corners, centres = (slice(None, None, step),) * 2, (slice(half, None, step),) * 2
        above, left = (
            (slice(None, None, step), slice(half, None, step)),
            (slice(half, None, step), slice(None, None, step)),
        )
        known = heights[:, corners[0], corners[1]]
        known = known + known.roll(-1, 1)
        heights[:, centres[0], centres[1]] = (known + known.roll(-1, 2)) / 4.0 + amplitude**2 * draws[:, *centres]
        middle, known = heights[:, centres[0], centres[1]], heights[:, corners[0], corners[1]]
        vertical = (middle + middle.roll(1, 1)) + (known + known.roll(-1, 2))
        horizontal = (middle + middle.roll(1, 2)) + (known + known.roll(-1, 1))
        heights[:, above[0], above[1]] = vertical / 4.0 + amplitude**2 * draws[:, *above]
        heights[:, left[0], left[1]] = horizontal / 4.0 + amplitude**2 * draws[:, *left]
        step, amplitude = half, amplitude / decay
    low, high = heights.amin((1, 2), keepdim=True), heights.amax((1, 2), keepdim=True)
    return (heights - low) / (high - low)


def splash_water(
    images: Images, seeds: Seeds, *, liquid: tuple[float, float], drop_px: float, threshold: float, amount: float
) -> Images:
    """Return the images with drops of water on the lens, brightest near their edges.

    Source: ``spatter`` of ImageNet-C, its three mild levels, step by step.

    Args:
        images: uint8 images.
        seeds: one per sample.
        liquid: mean and standard deviation of the noise that drops are made of, after smoothing.
        drop_px: sigma of that smoothing.
        threshold: level of the smoothed noise below which a pixel is dry.
        amount: brightness of the drops, relative to the grey range.
    """
    layer = _liquid(images, seeds, liquid, drop_px)
    levels = (255.0 * (layer * (layer >= threshold)).clamp(0, 1)).to(torch.uint8)
    water = levels * _light_rims(levels)
    water = water / per_sample(water.flatten(1).amax(1)).clamp(min=1.0)
    return truncate_to_uint8_(images + amount * water * _tint(_WATER, images))


def _light_rims(levels: UInt8[Tensor, "n 1 h w"]) -> Layer:
    """Return light from one side on drops whose slope follows the distance to their contours; whole numbers, 0–255."""
    distance = measure_distance(find_contours(levels, weak=50, strong=150), limit_px=20)
    whole_px = (_sum_3x3(distance) / (9 * DISTANCE_UNIT)).to(torch.uint8)
    lit = filter_3x3(equalize_as_opencv(whole_px), EMBOSS).clamp(0, 255)
    return (_sum_3x3(lit) / 9.0).round()


def splash_mud(
    images: Images, seeds: Seeds, *, liquid: tuple[float, float], drop_px: float, threshold: float, soft_px: float
) -> Images:
    """Return the images with splashes of mud on the lens.

    Source: ``spatter`` of ImageNet-C, its two strong levels. Arguments are those of ``splash_water``; ``soft_px`` is
    the sigma that softens the splashes' edges.
    """
    layer = (_liquid(images, seeds, liquid, drop_px) > threshold).float()
    cover = smooth_inside(layer, sigma_px=soft_px, radius_px=math.ceil(4.0 * soft_px))
    cover = cover * (cover >= _THIN_MUD)
    return truncate_to_uint8_((1.0 - cover) * images + cover * _tint(_MUD, images))


def _liquid(images: Images, seeds: Seeds, liquid: tuple[float, float], drop_px: float) -> Float64[Tensor, "n 1 h w"]:
    """Return smooth noise of the given mean and standard deviation, in float64.

    At a drop's border a grey level more or less would move its edge.
    """
    radius = max(1, math.ceil(4.0 * drop_px))
    noise = normal(seeds, 1, *images.shape[-2:], stream="liquid").double()
    noise = smooth_inside(noise, sigma_px=drop_px, radius_px=radius)
    return liquid[0] + liquid[1] / smoothing_gain(drop_px, radius) * noise


def _tint(colour: tuple[float, float, float], images: Images) -> Float[Tensor, "1 c 1 1"]:
    values = torch.tensor(colour, device=images.device)
    if is_grey(images):
        values = (values * torch.tensor((0.2989, 0.5870, 0.1140), device=images.device)).sum()[None]
    return values[None, :, None, None]


def _sum_3x3(layer: Num[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Return sums over 3×3 pixels of whole numbers, exact below 2²⁴."""
    return filter_3x3(layer, ((1, 1, 1),) * 3)
