"""Building blocks of the image operations: conversion to uint8, look-up tables, grey values.

Contract of all operations in this package: images are uint8 (n, c, h, w) with c = 1 or 3 on any device, magnitudes are
one number per sample, and the result for a sample does not depend on the batch around it. For that, sums
over pixels or kernel taps are exact (integers) or taken in a fixed order: a reduction or a convolution in float32
may pick another order for another batch size, and a rounding to uint8 then flips a few pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32, Int32, Num, UInt8
from torch import Tensor

#: Pixels of a plane from which on a table of 2¹⁶ pairs saves time.
_PAIRED_PIXELS = 2**14
#: Weights of red, green and blue in luma (ITU-R 601-2, in Pillow's 16-bit fixed point).
_LUMA = (19595, 38470, 7471)
#: Planes of 224² that are looked up at a time, so few that index and tables stay in the cache.
_CACHED_PLANES = 6


def to_uint8(values: Num[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Return ``values`` (in units of 0–255) rounded to the nearest integer and saturated."""
    # By way of int16: torch converts float32 → int16 → uint8 three times as fast as float32 → uint8 on a CPU.
    return values.round().clamp_(0, 255).to(torch.int16).to(torch.uint8)


def to_uint8_(values: Float32[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Return the result of ``to_uint8``, overwriting ``values``: on a CPU new memory costs more than the arithmetic."""
    return round_in_place(values.clamp_(0, 255)).to(torch.uint8)


def round_in_place(values: Float32[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Return integers whose lowest byte is ``values`` (−½ to 255½, ends excluded) rounded, in the memory of these.

    Adding 1.5·2²³ leaves no bits for a fraction and rounds to even as ``round`` does.
    """
    return values.add_(1.5 * 2**23).view(torch.int32)


def truncate_to_uint8_(values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Return ``values`` (in units of 0–255) cut off to the integer below and saturated, overwriting them.

    NumPy does the same at the end of ImageNet-C's and MedMNIST-C's operations. 16 units in the last place of 255 (2⁻¹²
    in float32) are added before, so that a whole number that arithmetic leaves a little too small is kept and an
    identity changes nothing. One fraction in 4,096 is therefore rounded up instead of cut off.
    """
    return values.add_(2**11 * torch.finfo(values.dtype).eps).clamp_(0, 255).to(torch.int16).to(torch.uint8)


def per_sample(magnitudes: Num[Tensor, " n"]) -> Num[Tensor, "n 1 1 1"]:
    """Return ``magnitudes`` shaped to multiply a batch of images."""
    return magnitudes.reshape(-1, 1, 1, 1)


def is_grey(images: UInt8[Tensor, "n c h w"]) -> bool:
    """Return whether the images have one channel; operations on colour leave such images unchanged."""
    return images.shape[1] == 1


def compute_grey(images: UInt8[Tensor, "n c h w"]) -> Int32[Tensor, "n 1 h w"]:
    """Return luma 0–255 (ITU-R 601-2, in Pillow's 16-bit fixed point, hence exact)."""
    if is_grey(images):
        return images.to(torch.int32)
    red, green, blue = (images[:, channel : channel + 1].to(torch.int32) for channel in range(3))
    weighted = red.mul_(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return weighted.add_(32768).bitwise_right_shift_(16)


def compute_mean_grey(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Return the mean luma of every image, in [0, 255], not rounded pixel by pixel."""
    sums = images.float().sum(3).double().sum(2)  # whole numbers below 2²⁴, then below 2⁵³: exact in any order
    if not is_grey(images):
        sums = (sums * torch.tensor(_LUMA, dtype=torch.float64, device=images.device)).div_(2**16).sum(1, keepdim=True)
    return (sums[:, 0] / (images.shape[-1] * images.shape[-2])).float()


def choose(
    chosen: Bool[Tensor, "..."], images: UInt8[Tensor, "n c h w"], others: UInt8[Tensor, "#n #c #h #w"]
) -> UInt8[Tensor, "n c h w"]:
    """Return ``images`` where chosen, else ``others``, sample by sample or pixel by pixel if ``chosen`` has 4 axes.

    Bitwise: ``torch.where`` is not vectorised on a CPU and takes 40 times as long.
    """
    mask = (chosen if chosen.ndim > 1 else chosen[:, None, None, None]).to(torch.uint8) * 255
    return (images ^ others).bitwise_and_(mask).bitwise_xor_(others)


def levels(device: torch.device) -> Float[Tensor, "256"]:
    """Return 0, 1, …, 255 in float64, from which look-up tables are computed."""
    return torch.arange(256, dtype=torch.float64, device=device)


def ramp(images: UInt8[Tensor, "n c h w"], num: int) -> UInt8[Tensor, "num c 1 256"]:
    """Return 0, 1, …, 255 as ``num`` images of one row; an operation turns them into its look-up table."""
    return torch.arange(256, dtype=torch.uint8, device=images.device).expand(num, images.shape[1], 1, 256)


def apply_lut(images: UInt8[Tensor, "n c h w"], lut: UInt8[Tensor, "n k 256"]) -> UInt8[Tensor, "n c h w"]:
    """Return every pixel's entry in its sample's table; ``k`` is the number of channels, or 1 if all share a table."""
    num, channels, height, width = images.shape
    table = lut.expand(num, channels, 256)
    return table.gather(2, images.flatten(2).to(torch.int64)).reshape(num, channels, height, width)


def look_up(
    planes: UInt8[Tensor, "k pixels"], tables: UInt8[Tensor, "k 256"], *, out: UInt8[Tensor, "k pixels"]
) -> None:
    """Write every pixel's entry in its plane's table to ``out``, which may be ``planes``.

    On a CPU a gather takes as long per entry for two bytes as for one: large planes are looked up two pixels at a time.

    Args:
        planes: planes of pixels, contiguous.
        tables: one table per plane.
        out: planes to write to, contiguous.
    """
    if planes.device.type != "cpu":
        torch.gather(tables, 1, planes.to(torch.int64), out=out)
        return
    pixels = planes.shape[1]
    if pixels < _PAIRED_PIXELS or pixels % 2:
        for start in range(0, len(planes), _CACHED_PLANES):
            now = slice(start, start + _CACHED_PLANES)
            torch.gather(tables[now], 1, planes[now].to(torch.int64), out=out[now])
        return
    # A pair's first byte is its low or its high one; the entries are written back in the same order.
    single = tables.to(torch.int16)
    for own, plane, place in zip(single, planes.view(torch.uint16), out.view(torch.int16), strict=True):
        pairs = ((own << 8)[:, None] | own).flatten()
        torch.index_select(pairs, 0, plane.to(torch.int32), out=place)
