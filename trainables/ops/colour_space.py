"""Brightness, contrast and saturation as ImageNet-C defines them, in closed form.

``ops/colour.py`` has operations of similar names as in StrongAugment and Pillow, with factors instead of offsets.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from trainables.ops.pixels import apply_lut, is_grey, levels, per_sample, truncate_to_uint8_

Images = UInt8[Tensor, "n c h w"]


def add_value(images: Images, offset: Float[Tensor, " n"]) -> Images:
    """Return the images with ``offset`` (of the grey range, 0 is identity) added to the HSV value; grey: to the pixel.

    Source: ``brightness`` of ImageNet-C. Hue and saturation stay when all channels are scaled alike.
    """
    value = images.amax(1, keepdim=True).float()
    brighter = (value + 255.0 * per_sample(offset)).clamp(0, 255)
    # A black pixel has no saturation and becomes grey.
    return truncate_to_uint8_(torch.where(value > 0, images * (brighter / value.clamp(min=1.0)), brighter))


def scale_contrast(images: Images, factor: Float[Tensor, " n"]) -> Images:
    """Return m·x + (1−m)·mean(x), with a separate mean for every channel; 1 is identity.

    Source: ``contrast`` of ImageNet-C.
    """
    total = images.sum((2, 3), dtype=torch.int64)  # integers: exact in any order
    mean = total.double()[..., None] / (images.shape[2] * images.shape[3])
    m = factor.double()[:, None, None]
    return apply_lut(images, truncate_to_uint8_(m * levels(images.device) + (1.0 - m) * mean))


def saturate(images: Images, scale: Float[Tensor, " n"], offset: Float[Tensor, " n"]) -> Images:
    """Return the images with HSV saturation s·scale + offset, cut to [0, 1]; (1, 0) is identity.

    Source: ``saturate`` of ImageNet-C and MedMNIST-C, in which pixels without a hue turn red where the offset is not
    0 (``colour.scale_saturation`` leaves them grey). Grey images are returned unchanged.
    """
    if is_grey(images):
        return images
    value = images.amax(1, keepdim=True).float()
    chroma = value - images.amin(1, keepdim=True)
    present = chroma / value.clamp(min=1.0)
    wanted = (present * per_sample(scale) + per_sample(offset)).clamp(0, 1)
    # v − x is v·s times a factor that depends on the hue only, hence proportional to s.
    result = value - (value - images) * (wanted / present.clamp(min=1e-6))
    is_red = torch.tensor([0.0, 1.0, 1.0], device=images.device)[:, None, None]  # hue 0: green and blue go down
    return truncate_to_uint8_(torch.where(chroma > 0, result, value * (1.0 - wanted * is_red)))
