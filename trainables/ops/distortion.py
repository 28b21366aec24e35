"""Operations that move pixels a little: frosted glass, elastic deformation, zooming while the shutter is open."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from trainables.ops.filters import blur_with_one_sigma, smooth_field
from trainables.ops.pixels import truncate_to_uint8_
from trainables.seeding import uniform

Images = UInt8[Tensor, "n c h w"]
Seeds = Int64[Tensor, " n"]

#: Chains of at most 2⁶ copies are followed: a seventh doubling would matter to one pixel in 10²⁴ (below .42⁶⁴).
_DOUBLINGS = 6


def glass_blur(images: Images, seeds: Seeds, *, sigma_px: float, reach_px: float, rounds: int) -> Images:
    """Return the images seen through frosted glass: blurred, pixels replaced by near ones, blurred again.

    Source: ``glass_blur`` of ImageNet-C. There a loop from the last pixel to the first replaces every pixel by one
    at −reach … reach − 1 px, which may have been replaced before (what reads as a swap copies one way, NumPy's rows
    being views). Every pixel thus follows a chain to an original one; here all chains are followed at once, by
    doubling. Differs: grey images, which are really swapped there, are treated like colour.

    Args:
        images: uint8 images.
        seeds: one per sample.
        sigma_px: sigma of both blurs.
        reach_px: largest shift per axis, rounded, at least 1; below 1 px only that share of the pixels is replaced.
        rounds: number of times that the loop runs.
    """
    num, channels, height, width = images.shape
    radius = max(1, math.ceil(4.0 * sigma_px))  # 4 sigma: scikit-image
    blurred = blur_with_one_sigma(images, sigma_px=sigma_px, radius_px=radius)
    source = torch.arange(height * width, device=images.device).expand(num, -1)
    for number in range(rounds):
        source = source.gather(1, _follow_copies(seeds, number, (height, width), reach_px))
    moved = blurred.flatten(2).gather(2, source[:, None].expand(num, channels, -1))
    return blur_with_one_sigma(moved.reshape(images.shape), sigma_px=sigma_px, radius_px=radius)


def _follow_copies(seeds: Seeds, number: int, size: tuple[int, int], reach_px: float) -> Int64[Tensor, "n pixels"]:
    """Return the index of the pixel whose value every pixel has after one round of the loop."""
    height, width = size
    num_pixels, reach = height * width, max(1, round(reach_px))
    choice = torch.floor(uniform(seeds, num_pixels, stream=("glass", number)) * (2 * reach) ** 2).to(torch.int64)
    down, right = choice // (2 * reach) - reach, choice % (2 * reach) - reach
    here = torch.arange(num_pixels, device=seeds.device)
    row, column = here // width, here % width
    inside = (row > reach) & (row <= height - reach) & (column > reach) & (column <= width - reach)
    moves = inside.expand_as(choice)
    if reach_px < 1.0:
        moves = inside & (uniform(seeds, num_pixels, stream=("moves", number)) < reach_px)
    target = here + moves * (down * width + right)
    # The loop runs backwards: a later pixel that also moves has already been replaced, any other is still the original.
    is_replaced = (target > here) & moves.gather(1, target)
    # 0 … pixels − 1 mean "what that pixel has become", pixels … 2·pixels − 1 the original pixel, which ends a chain.
    chain = torch.cat([target + num_pixels * ~is_replaced, (here + num_pixels).expand_as(target)], dim=1)
    for _ in range(_DOUBLINGS):
        chain = chain.gather(1, chain)
    return chain[:, :num_pixels] % num_pixels


def elastic_transform(images: Images, seeds: Seeds, *, amplitude_px: float, sigma_px: float) -> Images:
    """Return the images deformed by a smooth random displacement, bilinear, borders mirrored.

    Source: ``elastic_transform`` of ImageNet-C.

    Args:
        images: uint8 images.
        seeds: one per sample.
        amplitude_px: largest displacement down and right before smoothing, which takes most of it.
        sigma_px: sigma of the Gaussian that smooths the displacements; cut at 3 sigma.
    """
    height, width = images.shape[-2:]
    draws = 2.0 * uniform(seeds, 2, height, width, stream="elastic") - 1.0
    moves = amplitude_px * smooth_field(draws, sigma_px=sigma_px, radius_px=elastic_radius(sigma_px))
    y = torch.arange(height, device=images.device)[:, None] + moves[:, 0]
    x = torch.arange(width, device=images.device) + moves[:, 1]
    grid = torch.stack([(2.0 * x + 1.0) / width - 1.0, (2.0 * y + 1.0) / height - 1.0], dim=3)  # −1, 1: outer edges
    return truncate_to_uint8_(F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False))


def elastic_radius(sigma_px: float) -> int:
    """Return the radius (px) at which ``elastic_transform`` cuts its Gaussian."""
    return math.floor(3.0 * sigma_px + 0.5)


def zoom_blur(images: Images, *, largest: float, step: float) -> Images:
    """Return the mean of the images and of their zooms by 1, 1 + step, …, ``largest`` about the centre.

    Source: ``zoom_blur`` of ImageNet-C (bilinear, the image itself counts twice).
    """
    height, width = images.shape[-2:]
    pixels = images.float().contiguous(memory_format=torch.channels_last)  # on a CPU twice as fast to interpolate
    total = pixels.clone()
    num_zooms = round((largest - 1.0) / step) + 1
    for number in range(num_zooms):
        zoomed = _zoom(pixels, 1.0 + number * step)
        total += zoomed[..., :height, :width]
    return truncate_to_uint8_(total.contiguous().div_(num_zooms + 1))


def _zoom(pixels: Float[Tensor, "n c h w"], factor: float) -> Float[Tensor, "n c H W"]:
    """Return the middle part enlarged to at least the full size, corners aligned, rounded to 8 binary places."""
    height, width = pixels.shape[-2:]
    part_height, part_width = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - part_height) // 2, (width - part_width) // 2
    part = pixels[..., top : top + part_height, left : left + part_width]
    size = (round(part_height * factor), round(part_width * factor))
    zoomed = F.interpolate(part, size=size, mode="bilinear", align_corners=True)
    return torch.round(zoomed * 256.0) / 256.0  # sums of these are exact, in whatever order
