"""Operations that mix neighbouring pixels: blurs, 3×3 kernels, pixelation, JPEG. Borders are mirrored."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from trainables.ops.pixels import per_sample, to_uint8

Images = UInt8[Tensor, "n c h w"]

#: StrongAugment’s kernels.
_SHARPEN = ((-1, -1, -1), (-1, 9, -1), (-1, -1, -1))
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
#: Pillow's smoothing kernel, 1/13 of it; sharpness blends with it.
_SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))


def _mirrored(side: int, radius: int, device: torch.device) -> Int64[Tensor, " padded"]:
    """Indices −radius … side+radius−1 mirrored into the image without repeating the edge; any radius."""
    period = max(1, 2 * (side - 1))
    index = torch.arange(-radius, side + radius, device=device) % period
    return torch.minimum(index, period - index)


def _pad(images: Images, radius: int) -> UInt8[Tensor, "n c H W"]:
    height, width = images.shape[-2:]
    rows = images.index_select(2, _mirrored(height, radius, images.device))
    return rows.index_select(3, _mirrored(width, radius, images.device))


def _filter_3x3(images: Images, kernel: tuple[tuple[int, ...], ...]) -> Float[Tensor, "n c h w"]:
    """Sum over the taps; integers below 2²⁴, hence exact in float32."""
    height, width = images.shape[-2:]
    padded = _pad(images, 1).float()
    result = torch.zeros(images.shape, device=images.device)
    for row, weights in enumerate(kernel):
        for column, weight in enumerate(weights):
            if weight:
                result += weight * padded[..., row : row + height, column : column + width]
    return result


def sharpen(images: Images, amount: Float[Tensor, " n"]) -> Images:
    """Return (1−m)·x + m·(3×3 sharpening of x); 0 is identity."""
    m = per_sample(amount)
    return to_uint8((1 - m) * images + m * _filter_3x3(images, _SHARPEN))


def emboss(images: Images, amount: Float[Tensor, " n"]) -> Images:
    """Return (1−m)·x + m·(3×3 embossing of x); 0 is identity."""
    m = per_sample(amount)
    return to_uint8((1 - m) * images + m * _filter_3x3(images, _EMBOSS))


def adjust_sharpness(images: Images, factor: Float[Tensor, " n"]) -> Images:
    """Return m·x + (1−m)·smooth(x) as Pillow and torchvision do: 0 smooth, 1 identity, 2 sharper; borders stay."""
    m = per_sample(factor)
    result = to_uint8(m * images + (1 - m) * (_filter_3x3(images, _SMOOTH) / 13.0).round())
    for edge in (0, -1):
        result[..., edge, :] = images[..., edge, :]
        result[..., :, edge] = images[..., :, edge]
    return result


def gaussian_blur(images: Images, sigma_px: Float[Tensor, " n"], radius_px: Int64[Tensor, " n"]) -> Images:
    """Return the images blurred by a Gaussian of their own ``sigma_px`` (0 is identity), cut at ``radius_px``."""
    largest = int(radius_px.max()) if len(radius_px) else 0
    height, width = images.shape[-2:]
    sigma = sigma_px.double().clamp(min=1e-3)  # weights beside the centre underflow to 0: identity
    padded = _pad(images, largest).float()
    weights = []
    for distance in range(-largest, largest + 1):
        weight = torch.exp(-(distance**2) / (2.0 * sigma**2)).float()
        weights.append(per_sample(torch.where(radius_px >= abs(distance), weight, 0.0)))
    total = sum(weights[1:], weights[0])  # in tap order: a wider neighbour only adds exact zeros
    rows = torch.zeros((*padded.shape[:2], height, padded.shape[3]), device=images.device)
    for tap, weight in enumerate(weights):
        rows += weight * padded[..., tap : tap + height, :]
    result = torch.zeros(images.shape, device=images.device)
    for tap, weight in enumerate(weights):
        result += weight * rows[..., tap : tap + width]
    return to_uint8(result / total**2)


def defocus_blur(images: Images, *, radius_px: float, alias_px: float) -> Images:
    """Return the images blurred by an anti-aliased disk of ``radius_px``, its edge softened by ``alias_px``.

    Source: ``defocus_blur`` of ImageNet-C. Differs: the disk's edge pixels count by how much they are covered, so
    that radii below one pixel exist.
    """
    kernel = _disk(radius_px, alias_px)
    # 16-bit fixed point: products with uint8 sum to less than 2²⁴, so float32 is exact in whatever order, fused or not.
    fixed = torch.floor(kernel / kernel.sum() * 2**16).to(torch.int64).tolist()
    height, width = images.shape[-2:]
    padded = _pad(images, len(fixed) // 2).float()
    result = torch.zeros(images.shape, device=images.device)
    for row, weights in enumerate(fixed):
        for column, weight in enumerate(weights):
            if weight:
                result.add_(padded[..., row : row + height, column : column + width], alpha=weight)
    return to_uint8(result / sum(map(sum, fixed)))


def _disk(radius_px: float, alias_px: float) -> Float[Tensor, "k k"]:
    half = math.ceil(radius_px + 0.5) + 1  # + 1: room for the softened edge
    axis = torch.arange(-half, half + 1, dtype=torch.float64)
    distance = torch.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    disk = (radius_px + 0.5 - distance).clamp(0, 1)
    soft = torch.exp(-(torch.arange(-1.0, 2.0, dtype=torch.float64) ** 2) / (2.0 * max(alias_px, 1e-3) ** 2))
    soft = soft / soft.sum()
    return F.conv2d(disk[None, None], (soft[:, None] * soft[None, :])[None, None], padding=1)[0, 0]


def motion_blur(images: Images, angle: Float[Tensor, " n"], *, num_taps: int, sigma_px: float) -> Images:
    """Return the images smeared one way along ``angle`` (radians), weights a half Gaussian of ``sigma_px``.

    Source: ``motion_blur`` of ImageNet-C (ImageMagick): whole-pixel steps, edge pixels repeated.
    """
    num, channels, height, width = images.shape
    pixels = images.flatten(2).float()
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    result = torch.zeros_like(pixels)
    total = 0.0
    for step in range(num_taps):
        weight = math.exp(-(step**2) / (2.0 * sigma_px**2))
        down = torch.round(step * torch.sin(angle.double())).to(torch.int64)
        right = torch.round(step * torch.cos(angle.double())).to(torch.int64)
        row = (rows + down[:, None]).clamp(0, height - 1)
        column = (columns + right[:, None]).clamp(0, width - 1)
        index = (row[:, :, None] * width + column[:, None, :]).flatten(1)[:, None]
        result += weight * pixels.gather(2, index.expand(num, channels, height * width))
        total += weight
    return to_uint8(result / total).reshape(images.shape)


def pixelate(images: Images, *, kept: float) -> Images:
    """Return the images averaged down to ``kept`` (in (0, 1], 1 is identity) of their sides and enlarged again.

    Both ways by exact overlap of areas: picking nearest pixels instead, as in ImageNet-C, moves edges by up to a cell,
    and at 32 px a milder level then often does more damage than a stronger one.
    """
    height, width = images.shape[-2:]
    small = (max(1, int(height * kept)), max(1, int(width * kept)))
    return _resize_by_area(_resize_by_area(images, small), (height, width))


def _resize_by_area(images: Images, size: tuple[int, int]) -> UInt8[Tensor, "n c H W"]:
    # Integer weights below 2¹⁶ twice and uint8 stay below 2⁵³: the products are exact in float64 in any order.
    rows = _overlap_weights(images.shape[2], size[0]).to(images.device)
    columns = _overlap_weights(images.shape[3], size[1]).to(images.device)
    total = rows.sum(1)[:, None] * columns.sum(1)
    return to_uint8(rows @ images.double() @ columns.T / total)


def _overlap_weights(side: int, target: int) -> Float[Tensor, "target side"]:
    """Share of every source pixel in every target cell, in 16-bit fixed point."""
    edges = torch.arange(target + 1, dtype=torch.float64) * (side / target)
    pixel = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return torch.floor(overlap.clamp(min=0) * (target / side) * 2**16)


def jpeg(images: Images, quality: Int64[Tensor, " n"]) -> Images:
    """Return the images after JPEG encoding at ``quality`` (0–100; libjpeg reads 0 as 1) and decoding.

    Always on the CPU with Pillow's libjpeg (4:2:0 chroma, as in ImageNet-C and MedMNIST-C), so that a study gives the
    same pixels with and without a GPU. torchvision's codec is deprecated since 0.29.
    """
    pixels = images.permute(0, 2, 3, 1).squeeze(3).cpu().numpy()  # n h w (grey) or n h w 3
    # No batched codec exists: one encoder call an image.
    recoded = [_recode_jpeg(image, max(1, q)) for image, q in zip(pixels, quality.tolist(), strict=True)]
    result = torch.from_numpy(np.stack(recoded)).reshape(*pixels.shape[:3], -1)
    return result.permute(0, 3, 1, 2).contiguous().to(images.device)


def _recode_jpeg(pixels: UInt8[np.ndarray, "h w ..."], quality: int) -> UInt8[np.ndarray, "h w ..."]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
