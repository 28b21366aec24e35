"""Weather between the object and the camera: snow, frost, fog, drops of water and mud on the lens.

All of ImageNet-C. One random layer per image, the same in all channels but for its colour.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from trainables.ops.colour import equalize
from trainables.ops.filters import EMBOSS, filter_3x3, motion_blur, smooth_field, smoothing_gain
from trainables.ops.frost_textures import NUM_TEXTURES, frost_textures
from trainables.ops.pixels import compute_grey, is_grey, per_sample, to_uint8
from trainables.seeding import normal, uniform

Images = UInt8[Tensor, "n c h w"]
Seeds = Int64[Tensor, " n"]
Layer = Float[Tensor, "n 1 h w"]

#: Pale turquoise water and brown mud, as in ImageNet-C.
_WATER, _MUD = (175.0, 238.0, 238.0), (63.0, 42.0, 20.0)
#: Below this a pixel of mud is none.
_THIN_MUD = 0.8


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
    """Return the images with flakes that fall, over whitened ground.

    Source: ``snow`` of ImageNet-C.

    Args:
        images: uint8 images.
        seeds: one per sample.
        density: mean and standard deviation of the noise that flakes are made of.
        threshold: noise below it is no flake.
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
    flakes = to_uint8(255.0 * noise * (noise >= threshold))
    angle = -torch.pi * (0.25 + 0.5 * uniform(seeds, stream="angle"))  # ImageNet-C: −135° to −45°
    flakes = motion_blur(flakes, angle, num_taps=streak[0], sigma_px=streak[1])[..., :height, :width]
    ground = torch.maximum(images, 1.5 * compute_grey(images) + 127.5)
    return to_uint8(kept * images + (1.0 - kept) * ground + flakes.float() + flakes.flip(2, 3).float())


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
    return to_uint8(kept * images + frost * part)


def add_fog(images: Images, seeds: Seeds, *, amount: float, decay: float) -> Images:
    """Return the images behind a fractal fog: (x + amount·fog), the brightest value of the image kept.

    Source: ``fog`` of ImageNet-C.

    Args:
        images: uint8 images.
        seeds: one per sample.
        amount: of fog, relative to the grey range; 0 is identity.
        decay: of the fractal's roughness from one octave to the next (squared); > 1, larger is smoother.
    """
    height, width = images.shape[-2:]
    side = 2 ** max(1, math.ceil(math.log2(max(height, width))))
    fog = _diamond_square(seeds, side, decay)[:, None, :height, :width]
    brightest = per_sample(images.flatten(1).amax(1)).float() / 255.0
    scale = brightest / (brightest + amount)
    return to_uint8((images.float() + 255.0 * amount * fog) * scale)


def _diamond_square(seeds: Seeds, side: int, decay: float) -> Float[Tensor, "n side side"]:
    """Return fractal height maps in [0, 1], periodic; ``side`` is a power of two."""
    draws = 2.0 * uniform(seeds, side, side, stream="fog") - 1.0
    heights = torch.zeros_like(draws)
    step, wibble = side, 100.0
    while step >= 2:
        half = step // 2
        corners, centres = (slice(None, None, step),) * 2, (slice(half, None, step),) * 2
        above, left = (
            (slice(None, None, step), slice(half, None, step)),
            (slice(half, None, step), slice(None, None, step)),
        )
        known = heights[:, corners[0], corners[1]]
        known = known + known.roll(-1, 1)
        heights[:, centres[0], centres[1]] = (known + known.roll(-1, 2)) / 4.0 + wibble**2 * draws[:, *centres]
        middle, known = heights[:, centres[0], centres[1]], heights[:, corners[0], corners[1]]
        vertical = (middle + middle.roll(1, 1)) + (known + known.roll(-1, 2))
        horizontal = (middle + middle.roll(1, 2)) + (known + known.roll(-1, 1))
        heights[:, above[0], above[1]] = vertical / 4.0 + wibble**2 * draws[:, *above]
        heights[:, left[0], left[1]] = horizontal / 4.0 + wibble**2 * draws[:, *left]
        step, wibble = half, wibble / decay
    low, high = heights.amin((1, 2), keepdim=True), heights.amax((1, 2), keepdim=True)
    return (heights - low) / (high - low)


def splash_water(
    images: Images, seeds: Seeds, *, liquid: tuple[float, float], drop_px: float, threshold: float, amount: float
) -> Images:
    """Return the images with drops of water on the lens, brightest near their edges.

    Source: ``spatter`` of ImageNet-C, its three mild levels. Differs: a drop's edge is where wet meets dry, ImageNet-C
    runs Canny's detector; distances to it are exact; equalised as Pillow does, not OpenCV. With the same draws a fixed
    network's accuracy differs by up to one point for it (docs/shifts.md).

    Args:
        images: uint8 images.
        seeds: one per sample.
        liquid: mean and standard deviation of the noise that drops are made of, after smoothing.
        drop_px: sigma of that smoothing.
        threshold: smoothed noise below it is dry.
        amount: brightness of the drops, relative to the grey range.
    """
    layer = _liquid(images, seeds, liquid, drop_px)
    layer = layer * (layer >= threshold)
    levels = torch.floor(255.0 * layer.clamp(0, 1))
    distance = _distance_to(_find_edges(levels > 0), limit_px=20).clamp(max=20.0)
    contrast = equalize(_mean_3x3(distance).floor().to(torch.uint8))
    rim = _mean_3x3(filter_3x3(contrast, EMBOSS).clamp(0, 255)).round()
    water = levels * rim
    water = water / per_sample(water.flatten(1).amax(1)).clamp(min=1.0)
    return to_uint8(images + amount * water * _tint(_WATER, images))


def splash_mud(
    images: Images, seeds: Seeds, *, liquid: tuple[float, float], drop_px: float, threshold: float, soft_px: float
) -> Images:
    """Return the images with splashes of mud on the lens.

    Source: ``spatter`` of ImageNet-C, its two strong levels. Arguments are those of ``splash_water``; ``soft_px`` is
    the sigma that softens the splashes' edges.
    """
    layer = (_liquid(images, seeds, liquid, drop_px) > threshold).float()
    cover = smooth_field(layer, sigma_px=soft_px, radius_px=math.ceil(4.0 * soft_px))
    cover = cover * (cover >= _THIN_MUD)
    return to_uint8((1.0 - cover) * images + cover * _tint(_MUD, images))


def _liquid(images: Images, seeds: Seeds, liquid: tuple[float, float], drop_px: float) -> Layer:
    """Smooth noise of the given mean and standard deviation."""
    radius = max(1, math.ceil(4.0 * drop_px))
    noise = smooth_field(normal(seeds, 1, *images.shape[-2:], stream="liquid"), sigma_px=drop_px, radius_px=radius)
    return liquid[0] + liquid[1] / smoothing_gain(drop_px, radius) * noise


def _tint(colour: tuple[float, float, float], images: Images) -> Float[Tensor, "1 c 1 1"]:
    values = torch.tensor(colour, device=images.device)
    if is_grey(images):
        values = (values * torch.tensor((0.2989, 0.5870, 0.1140), device=images.device)).sum()[None]
    return values[None, :, None, None]


def _find_edges(wet: Bool[Tensor, "n 1 h w"]) -> Bool[Tensor, "n 1 h w"]:
    """Pixels that are not as wet as the one to their right or below them."""
    edges = torch.zeros_like(wet)
    edges[..., :-1] |= wet[..., :-1] ^ wet[..., 1:]
    edges[..., :-1, :] |= wet[..., :-1, :] ^ wet[..., 1:, :]
    return edges


def _distance_to(found: Bool[Tensor, "n 1 h w"], *, limit_px: int) -> Layer:
    """Euclidean distance in px to the nearest pixel found; right up to the limit, at least the limit beyond."""
    far = limit_px + 1
    height, width = found.shape[-2:]
    row = torch.arange(height, device=found.device)[:, None]
    above = torch.where(found, row, -far).cummax(2).values
    below = torch.where(found, row, height + far).flip(2).cummin(2).values.flip(2)
    vertical = torch.minimum(row - above, below - row).clamp(max=far).float() ** 2
    padded = F.pad(vertical, (limit_px, limit_px), value=float(far**2))
    nearest = vertical
    for offset in range(2 * limit_px + 1):
        nearest = torch.minimum(nearest, padded[..., offset : offset + width] + float((offset - limit_px) ** 2))
    return nearest.sqrt()


def _mean_3x3(layer: Layer) -> Layer:
    return filter_3x3(layer, ((1, 1, 1),) * 3) / 9.0
