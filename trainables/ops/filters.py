"""Operations that mix neighbouring pixels: blurs, 3×3 kernels, pixelation, JPEG.

Borders are mirrored unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int16, Int32, Int64, Num, Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from trainables.ops.pixels import is_grey, per_sample, round_in_place, to_uint8, to_uint8_, truncate_to_uint8_

Images = UInt8[Tensor, "n c h w"]

#: StrongAugment's embossing kernel.
EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
#: Values of a chunk of rows: a plane of 512². Smaller ones cost more in calls than they save.
_CHUNK_VALUES = 2**18
#: Radius from which on a disk has enough pixels to consist of whole ones.
_COARSE_PX = 2.0
#: Radius beyond which ImageNet-C softens a disk's edge with 5×5 pixels instead of 3×3.
_WIDE_PX = 8.0
#: Pillow's smoothing kernel, 1/13 of it; sharpness blends with it.
_SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))


def _mirrored(side: int, radius: int, device: torch.device) -> Int64[Tensor, " padded"]:
    """Return the indices −radius … side+radius−1 mirrored into the image without repeating the edge; any radius."""
    period = max(1, 2 * (side - 1))
    index = torch.arange(-radius, side + radius, device=device) % period
    return torch.minimum(index, period - index)


def _pad(images: Num[Tensor, "n c h w"], radius: int, dtype: torch.dtype | None = None) -> Num[Tensor, "n c H W"]:
    """Return the images with mirrored borders, as ``dtype``."""
    height, width = images.shape[-2:]
    if radius < min(height, width):  # slices: on a CPU 50 times as fast as picking columns by index
        sides = (*images.shape[:2], height + 2 * radius, width + 2 * radius)
        padded = torch.empty(sides, dtype=dtype or images.dtype, device=images.device)
        middle = padded[..., radius : radius + height, :]
        middle[..., radius : radius + width].copy_(images)
        for whole, dim, side in ((middle, 3, width), (padded, 2, height)) if radius else ():
            near, far = whole.narrow(dim, radius + 1, radius), whole.narrow(dim, side - 1, radius)
            whole.narrow(dim, 0, radius).copy_(near.flip(dim))
            whole.narrow(dim, radius + side, radius).copy_(far.flip(dim))
        return padded
    rows = images.index_select(2, _mirrored(height, radius, images.device))
    return rows.index_select(3, _mirrored(width, radius, images.device)).to(dtype or images.dtype)


def filter_3x3(images: Num[Tensor, "n c h w"], kernel: tuple[tuple[int, ...], ...]) -> Float[Tensor, "n c h w"]:
    """Return Σ kernel · neighbours, not normalised; for uint8 these are integers below 2²⁴, hence exact in float32."""
    height, width = images.shape[-2:]
    padded = _pad(images, 1, torch.float32)
    result = torch.zeros(images.shape, device=images.device)
    for row, weights in enumerate(kernel):
        for column, weight in enumerate(weights):
            if weight:
                result += weight * padded[..., row : row + height, column : column + width]
    return result


def sharpen(images: Images, amount: Float[Tensor, " n"]) -> Images:
    """Return (1−m)·x + m·(3×3 sharpening of x); 0 is identity.

    The kernel (StrongAugment's) is 9 in the middle and −1 around it: ten times the pixel minus the sum over 3×3 pixels.
    """
    padded = _pad(images, 1, torch.int16)  # int16: exact, and twice as fast as float32
    rows = (padded[:, :, :-2] + padded[:, :, 1:-1]).add_(padded[:, :, 2:])
    taken = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).sub_(padded[:, :, 1:-1, 1:-1], alpha=9)
    return _add(images, -amount, taken)


def _add(images: Images, amount: Float[Tensor, " n"], added: Int16[Tensor, "n c h w"]) -> Images:
    return to_uint8_(added.float().mul_(per_sample(amount)).add_(images))


def emboss(images: Images, amount: Float[Tensor, " n"]) -> Images:
    """Return (1−m)·x + m·(3×3 embossing of x); 0 is identity.

    ``EMBOSS`` is the pixel plus differences of pairs of neighbours: the pair on the right minus the pair on the left,
    and the pair below minus the pair above. A pair is a direct neighbour and the one next to it towards the corner.
    """
    padded = _pad(images, 1, torch.int16)
    beside = padded[..., :-1] + padded[..., 1:]
    below = padded[:, :, :-1] + padded[:, :, 1:]
    added = beside[:, :, 2:, 1:] - beside[:, :, :-2, :-1]
    return _add(images, amount, added.add_(below[:, :, 1:, 2:]).sub_(below[:, :, :-1, :-2]))


def adjust_sharpness(images: Images, factor: Float[Tensor, " n"]) -> Images:
    """Return m·x + (1−m)·smooth(x) as in Pillow and torchvision: 0 smooth, 1 identity, 2 sharper; borders stay."""
    m = per_sample(factor)
    result = to_uint8(m * images + (1 - m) * (filter_3x3(images, _SMOOTH) / 13.0).round())
    for edge in (0, -1):
        result[..., edge, :] = images[..., edge, :]
        result[..., :, edge] = images[..., :, edge]
    return result


def gaussian_blur(images: Images, sigma_px: Float[Tensor, " n"], radius_px: Int64[Tensor, " n"]) -> Images:
    """Return the images blurred by a Gaussian of their own ``sigma_px`` (0 is identity), cut at ``radius_px``."""
    radii = radius_px.tolist()
    largest = max(radii, default=0)
    num, channels, height, width = images.shape
    sigma = sigma_px.double().clamp(min=1e-3)  # weights beside the centre underflow to 0: identity
    distance = torch.arange(largest + 1, device=images.device)[:, None]
    weights = torch.where(radius_px >= distance, torch.exp(-(distance**2) / (2.0 * sigma**2)), 0.0)
    total = 2.0 * sum(weights[1:].unbind(), torch.zeros_like(sigma)) + 1.0  # a wider neighbour only adds exact zeros
    scaled = (weights / total).float()
    # Images whose kernel reaches this far; in a batch ordered by radius their span contains no others.
    wide = [[number for number, radius in enumerate(radii) if radius >= away] for away in range(largest + 1)]
    spans = [slice(numbers[0], numbers[-1] + 1) for numbers in wide] if radii else [slice(0)]
    rows, along = images.reshape(num, channels * height, width), scaled[:, :, None, None].unbind()
    blurred = torch.empty(rows.shape, device=images.device)
    for part in _split_rows(images, num * width, channels * height):
        blurred[:, part] = _sum_pairs(_pad_columns(rows[:, part], largest), along, spans, dim=2, side=width)
    # A bag is the sum of its rows of the table, one after the other: the same in any batch.
    window = _mirrored(height, largest, images.device).unfold(0, 2 * largest + 1, 1)
    bags = (height * torch.arange(num * channels, device=images.device)[:, None, None] + window).flatten(0, 1)
    down = torch.cat([scaled[1:].flip(0), scaled]).t().repeat_interleave(channels * height, 0)
    result = torch.empty((len(bags), width), dtype=torch.uint8, device=images.device)
    table = blurred.flatten(0, 1)
    for part in _split_rows(images, width, len(bags)):
        summed = F.embedding_bag(bags[part], table, mode="sum", per_sample_weights=down[part])
        result[part] = round_in_place(summed)
    return result.reshape(images.shape)


def _split_rows(images: Images, values: int, num_rows: int) -> list[slice]:
    """Return all of ``num_rows`` in parts, on a CPU of few rows of ``values`` each, whose floats stay in its cache."""
    step = max(1, _CHUNK_VALUES // max(1, values)) if images.device.type == "cpu" else max(1, num_rows)
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def _pad_columns(rows: UInt8[Tensor, "n h w"], radius: int) -> Float[Tensor, "n h W"]:
    """Return the rows with mirrored borders."""
    width = rows.shape[2]
    if radius >= width:
        return rows.index_select(2, _mirrored(width, radius, rows.device)).float()
    padded = torch.empty((*rows.shape[:2], width + 2 * radius), device=rows.device)
    padded[..., radius : radius + width].copy_(rows)
    if radius:
        padded[..., :radius].copy_(padded[..., radius + 1 : 2 * radius + 1].flip(2))
        padded[..., radius + width :].copy_(padded[..., width - 1 : width + radius - 1].flip(2))
    return padded


def _sum_pairs(
    padded: Float[Tensor, "n *h w"],
    weights: Sequence[Float[Tensor, "#n *#h 1"]],
    spans: Sequence[slice],
    *,
    dim: int,
    side: int,
) -> Float[Tensor, "n *H W"]:
    """Return the sum over a symmetric kernel along ``dim``: one product for the two pixels at the same distance.

    Images outside the span of a distance have the weight 0 there and are left out, which gives the same sum.
    """
    radius = len(weights) - 1
    result = padded.narrow(dim, radius, side) * weights[0]
    pair = torch.empty_like(result)
    for distance in range(1, radius + 1):
        own = spans[distance]
        before, after = (padded[own].narrow(dim, radius + away, side) for away in (-distance, distance))
        both = torch.add(before, after, out=pair[own])
        result[own].add_(both.mul_(weights[distance][own]))  # in two steps: never fused, the same in any batch
    return result


def blur_with_one_sigma(images: Images, *, sigma_px: float, radius_px: int) -> Images:
    """Return the images blurred by one Gaussian of ``sigma_px`` (> 0), cut at ``radius_px``; exact in any batch.

    Borders are repeated and fractions cut off, as in ImageNet-C; ``gaussian_blur`` mirrors and rounds.
    """
    fixed = [math.floor(weight * 2**16) for weight in gaussian_weights(sigma_px, radius_px)]
    height, width = images.shape[-2:]
    padded = F.pad(images.float(), (radius_px,) * 4, mode="replicate")
    rows = torch.zeros((*padded.shape[:2], height, padded.shape[3]), device=images.device)
    for tap, weight in enumerate(fixed):
        rows.add_(padded[..., tap : tap + height, :], alpha=weight)  # below 2²⁴
    exact = rows.double()
    result = torch.zeros(images.shape, dtype=torch.float64, device=images.device)
    for tap, weight in enumerate(fixed):
        result.add_(exact[..., tap : tap + width], alpha=weight)  # below 2⁵³
    return truncate_to_uint8_(result.div_(sum(fixed) ** 2))


def smooth_field(field: Float[Tensor, "n c h w"], *, sigma_px: float, radius_px: int) -> Float[Tensor, "n c h w"]:
    """Return numbers of any range blurred by one Gaussian of ``sigma_px`` (> 0), cut at ``radius_px``."""
    return _smooth(_pad(field, radius_px), gaussian_weights(sigma_px, radius_px))


def smooth_inside(field: Float[Tensor, "n c h w"], *, sigma_px: float, radius_px: int) -> Float[Tensor, "n c h w"]:
    """Return the result of ``smooth_field``, but with the border repeated outside instead of mirrored."""
    padded = F.pad(field, (radius_px,) * 4, mode="replicate")
    return _smooth(padded, gaussian_weights(sigma_px, radius_px))


def _smooth(padded: Float[Tensor, "n c H W"], weights: Sequence[float]) -> Float[Tensor, "n c h w"]:
    half = torch.tensor(weights[len(weights) // 2 :], dtype=padded.dtype, device=padded.device)
    taps, spans = half[:, None, None, None, None].unbind(), [slice(None)] * len(half)
    height, width = (side - len(weights) + 1 for side in padded.shape[-2:])
    return _sum_pairs(_sum_pairs(padded, taps, spans, dim=2, side=height), taps, spans, dim=3, side=width)


def gaussian_weights(sigma_px: float, radius_px: int) -> list[float]:
    """Return the 2·radius + 1 weights of a Gaussian; they sum to 1."""
    weights = [math.exp(-(distance**2) / (2.0 * sigma_px**2)) for distance in range(-radius_px, radius_px + 1)]
    return [weight / sum(weights) for weight in weights]


def smoothing_gain(sigma_px: float, radius_px: int) -> float:
    """Return the standard deviation that white noise of standard deviation 1 has after ``smooth_field``."""
    return sum(weight**2 for weight in gaussian_weights(sigma_px, radius_px))


def defocus_blur(images: Images, *, radius_px: float, alias_px: float) -> Images:
    """Return the images blurred by a disk of ``radius_px``, its edge softened by ``alias_px``.

    Source: ``defocus_blur`` of ImageNet-C, whose disks are made of whole pixels. Differs: below a radius of 2 px,
    pixels are weighted by how much of them is covered, so that radii below 1 px have an effect on small images.
    """
    kernel = _disk(radius_px, alias_px)
    # 16-bit fixed point: products with uint8 sum to little more than 2²⁴, so what is not saturated is exact in float32.
    fixed = torch.floor(kernel * 2**16).to(torch.int64).tolist()
    result = _correlate_by_runs(_pad(images, len(fixed) // 2), fixed, images.shape[-2:])
    return truncate_to_uint8_(result.float().div_(sum(map(sum, fixed)) / float(kernel.sum())))


def _correlate_by_runs(
    padded: UInt8[Tensor, "n c H W"], kernel: list[list[int]], size: Sequence[int]
) -> Int32[Tensor, "n c h w"]:
    """Return Σ kernel[i][j] · padded[y + i, x + j], exact, from running sums: a run of equal weights costs two terms.

    Partial sums may wrap around in 32 bits; the result fits, so arithmetic modulo 2³² yields it.
    """
    height, width = size
    sums = F.pad(padded.to(torch.int32).cumsum(3, dtype=torch.int32), (1, 0))
    same: dict[tuple[int, ...], list[int]] = {}
    for row, weights in enumerate(kernel):
        same.setdefault(tuple(weights), []).append(row)
    result = torch.zeros((*padded.shape[:2], height, width), dtype=torch.int32, device=padded.device)
    for equal, (first, *others) in same.items():
        if not any(equal):
            continue
        rows = sums[..., first : first + height, :]
        for row in others:
            rows = rows + sums[..., row : row + height, :]
        for column, (before, after) in enumerate(pairwise((0, *equal, 0))):
            if before != after:
                result.add_(rows[..., column : column + width], alpha=before - after)
    return result


def _disk(radius_px: float, alias_px: float) -> Float[Tensor, "k k"]:
    """Return the kernel of ImageNet-C, with its edge at 8 and 10 px: cut off and mirrored, it adds up to 1.01."""
    half, reach = (8, 1) if radius_px <= _WIDE_PX else (math.ceil(radius_px), 2)
    axis = torch.arange(-half, half + 1, dtype=torch.float64)
    distance = torch.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    disk = (radius_px + 0.5 - distance).clamp(0, 1) if radius_px < _COARSE_PX else (distance <= radius_px).double()
    padded = F.pad((disk / disk.sum())[None, None], (reach,) * 4, mode="reflect")
    soft = torch.tensor(gaussian_weights(max(alias_px, 1e-3), reach), dtype=torch.float64)
    return F.conv2d(padded, (soft[:, None] * soft[None, :])[None, None])[0, 0]


def motion_blur(images: Images, angle: Float[Tensor, " n"], *, num_taps: int, sigma_px: float) -> Images:
    """Return the images smeared in one direction along ``angle`` (radians), weights a half Gaussian of ``sigma_px``.

    Source: ``motion_blur`` of ImageNet-C (ImageMagick): whole-pixel steps, edge pixels repeated.
    """
    return truncate_to_uint8_(smear(images.float(), angle, num_taps=num_taps, sigma_px=sigma_px))


def smear(
    levels: Float[Tensor, "n c h w"], angle: Float[Tensor, " n"], *, num_taps: int, sigma_px: float
) -> Float[Tensor, "n c h w"]:
    """Return ``motion_blur`` of whole numbers without rounding: below 2⁸ exact in float32, below 2³⁷ in float64."""
    num, channels, height, width = levels.shape
    weights = [math.exp(-(step**2) / (2.0 * sigma_px**2)) for step in range(num_taps)]
    fixed = [math.floor(weight / sum(weights) * 2**16) for weight in weights]  # sums stay below 2²⁴: exact
    margin = num_taps - 1
    padded = F.pad(levels, (margin,) * 4, mode="replicate")
    wide = width + 2 * margin
    # Every ``width`` values that follow each other, so that a shifted row is one row of this view.
    windows = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
    plane = torch.arange(num * channels, device=levels.device).reshape(num, channels, 1) * (height + 2 * margin)
    first = (plane + margin + torch.arange(height, device=levels.device)) * wide + margin
    result = torch.zeros((num * channels * height, width), dtype=levels.dtype, device=levels.device)
    for step, weight in enumerate(fixed):
        down = torch.round(step * torch.sin(angle.double())).to(torch.int64)
        right = torch.round(step * torch.cos(angle.double())).to(torch.int64)
        starts = first + (down * wide + right)[:, None, None]
        result.add_(windows.index_select(0, starts.flatten()), alpha=weight)
    return result.div_(sum(fixed)).reshape(levels.shape)


def pixelate(images: Images, *, kept: float) -> Images:
    """Return the images averaged down to ``kept`` (in (0, 1], 1 is identity) of their sides and enlarged again.

    Both steps weight pixels by exact overlap of areas. Nearest pixels instead, as in ImageNet-C, move edges by up to a
    cell, and at 32 px a milder level then often does more damage than a stronger one.
    """
    height, width = images.shape[-2:]
    small = (max(1, int(height * kept)), max(1, int(width * kept)))
    return _resize_by_area(_resize_by_area(images, small), (height, width))


def _resize_by_area(images: Images, size: tuple[int, int]) -> UInt8[Tensor, "n c H W"]:
    # Weights of a cell sum to at most 2¹⁶: with uint8 below 2²⁴, exact in float32; twice below 2⁵³, exact in float64.
    rows = torch.zeros((*images.shape[:2], size[0], images.shape[3]), device=images.device)
    for index, weight in _overlap_taps(images.shape[2], size[0], images.device):
        rows += weight.float()[:, None] * images.index_select(2, index)
    exact = rows.double()
    result = torch.zeros((*images.shape[:2], *size), dtype=torch.float64, device=images.device)
    for index, weight in _overlap_taps(images.shape[3], size[1], images.device):
        result += weight * exact.index_select(3, index)
    row_total, column_total = (_overlap_weights(side, n).sum(1) for side, n in zip(images.shape[2:], size, strict=True))
    return to_uint8(result / (row_total[:, None] * column_total).to(images.device))


def _overlap_taps(side: int, target: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return for every k the k-th source pixel of each target cell and its weight; 0 where a cell covers fewer."""
    weights = _overlap_weights(side, target)
    first = (weights > 0).to(torch.uint8).argmax(1)
    taps = []
    for number in range(int((weights > 0).sum(1).max())):
        index = (first + number).clamp(max=side - 1)
        weight = torch.where(first + number < side, weights.gather(1, index[:, None])[:, 0], 0.0)
        taps.append((index.to(device), weight.to(device)))
    return taps


def _overlap_weights(side: int, target: int) -> Float[Tensor, "target side"]:
    """Return the share of every source pixel in every target cell, in 16-bit fixed point."""
    edges = torch.arange(target + 1, dtype=torch.float64) * (side / target)
    pixel = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return torch.floor(overlap.clamp(min=0) * (target / side) * 2**16)


def jpeg(images: Images, quality: Int64[Tensor, " n"]) -> Images:
    """Return the images after JPEG encoding at ``quality`` (0–100; libjpeg reads 0 as 1) and decoding.

    Always runs on the CPU with Pillow's libjpeg (4:2:0 chroma, as in ImageNet-C and MedMNIST-C), so that a study gives
    the same pixels with and without a GPU. torchvision's codec is deprecated since 0.29.
    """
    if is_grey(images):
        mode, pixels = "L", images[:, 0].cpu()
    else:  # Pillow keeps a colour pixel in four bytes: red, green, blue, unused
        red, green, blue = images.cpu().to(torch.int32).unbind(1)
        mode, pixels = "RGBX", red.add_(green, alpha=2**8).add_(blue, alpha=2**16)
    # No batched codec exists: one call per image.
    recoded = [_recode_jpeg(image, mode, max(1, q)) for image, q in zip(pixels.numpy(), quality.tolist(), strict=True)]
    decoded = torch.frombuffer(bytearray(b"".join(recoded)), dtype=pixels.dtype).reshape(pixels.shape)
    result = torch.empty(images.shape, dtype=torch.uint8)
    for channel in range(images.shape[1]):
        result[:, channel] = decoded >> 8 * channel if channel else decoded  # uint8 keeps the lowest byte
    return result.to(images.device)


def _recode_jpeg(pixels: Shaped[np.ndarray, "h w"], mode: str, quality: int) -> bytes:
    """Return the bytes after encoding and decoding by the codecs alone: saving and opening a file is slower."""
    height, width = pixels.shape
    image = Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)
    code = image.tobytes("jpeg", mode, quality)
    return Image.frombytes(mode[:3], image.size, code, "jpeg", mode[:3], "").tobytes("raw", mode)
