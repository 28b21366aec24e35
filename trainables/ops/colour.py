"""Operations that change every pixel by itself: brightness, contrast, gamma, hue, quantisation, histograms.

Images of one channel have no colour: gains of one channel, hue, saturation and grayscale return them unchanged.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, Num, UInt8
from torch import Tensor

from trainables.ops.pixels import (
    apply_lut,
    compute_grey,
    compute_mean_grey,
    is_grey,
    levels,
    per_sample,
    ramp,
    to_uint8,
    to_uint8_,
)

Images = UInt8[Tensor, "n c h w"]
Tables = UInt8[Tensor, "n c 256"]
#: Pixels of a plane from which on its histogram takes longer than the call for it.
_LARGE_PIXELS = 2**15


def adjust_channel(images: Images, gain: Float[Tensor, " n"], *, channel: int) -> Images:
    """Return the images with one channel times ``gain`` (≥ 0, 1 is identity), saturating."""
    if is_grey(images):
        return images
    result = images.clone()
    result[:, channel] = to_uint8(images[:, channel].float() * gain[:, None, None])
    return result


def adjust_brightness(images: Images, factor: Float[Tensor, " n"]) -> Images:
    """Return m·x, saturating: 0 is black, 1 identity."""
    return to_uint8(images.float().mul_(per_sample(factor)))


def adjust_contrast(images: Images, factor: Float[Tensor, " n"]) -> Images:
    """Return m·x + (1−m)·mean(grey(x)): 0 is flat grey, 1 identity."""
    return _blend(images, factor, per_sample(compute_mean_grey(images)))


def tabulate_contrast(images: Images, factor: Float[Tensor, " n"]) -> Tables:
    """Return ``adjust_contrast`` of these images as look-up tables."""
    table = _blend(ramp(images, len(images)), factor, per_sample(compute_mean_grey(images)))
    return table.squeeze(2)


def _blend(images: Images, factor: Float[Tensor, " n"], grey: Num[Tensor, "n 1 _ _"]) -> Images:
    m = per_sample(factor)
    return to_uint8_(images.float().mul_(m).add_((1 - m) * grey))


def adjust_saturation(images: Images, factor: Float[Tensor, " n"]) -> Images:
    """Return m·x + (1−m)·grey(x): 0 is grey, 1 identity."""
    if is_grey(images):
        return images
    return _blend(images, factor, compute_grey(images))


def adjust_gamma(images: Images, gamma: Float[Tensor, " n"]) -> Images:
    """Return 255·(x/255)^γ, γ > 0: above 1 darker, 1 identity."""
    table = 255.0 * (levels(images.device) / 255.0) ** gamma.double()[:, None]
    return apply_lut(images, to_uint8(table)[:, None])


def adjust_tone(images: Images, low: Float[Tensor, " n"], high: Float[Tensor, " n"]) -> Images:
    """Return the Bézier tone curve 3(1−t)²t·low + 3(1−t)t²·high + t³ of t = x/255; (1/3, 2/3) is identity."""
    t = levels(images.device) / 255.0
    curve = 3 * (1 - t) ** 2 * t * low.double()[:, None] + 3 * (1 - t) * t**2 * high.double()[:, None] + t**3
    return apply_lut(images, to_uint8(255.0 * curve)[:, None])


def adjust_hue(images: Images, turns: Float[Tensor, " n"]) -> Images:
    """Return the images with HSV hue shifted by ``turns`` of the colour circle; 0 is identity.

    In closed form, without hue: with m and C a pixel's minimum and chroma, and x − m written x, a sixth of a turn is
    x → C − x with the channels moved on by two; a further φ ≤ ½ sixths make channel x, followed by channel y on the
    circle, clamp(x − y + clamp(y, φ·C, C − φ·C), 0, C); a negative φ uses the channel before. Everything but φ·C
    is whole, so that rounding φ·C is rounding the result, and the rest is done in uint8: a tenth of float32's time.
    """
    if is_grey(images):
        return images
    num, _, height, width = images.shape
    sixths = 6.0 * turns
    whole = torch.round(sixths)
    part, whole = (sixths - whole), whole.to(torch.int64)
    own = (torch.arange(3, device=images.device) + whole[:, None]) % 3
    beside = (own + torch.where(part < 0, -1, 1)[:, None]) % 3
    red, green, blue = (images[:, channel : channel + 1] for channel in range(3))
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)
    planes = (images - low).reshape(3 * num, height, width)
    first = 3 * torch.arange(num, device=images.device)[:, None]
    value, neighbour = (
        planes.index_select(0, (first + channel).flatten()).reshape(images.shape) for channel in (own, beside)
    )
    reach = to_uint8_(chroma.float().mul_(per_sample(part.abs())))
    up = torch.maximum(neighbour, reach).sub_(neighbour)
    down = neighbour.sub_(torch.minimum(neighbour, chroma - reach))
    value = torch.minimum(value, chroma - up).add_(up)  # clamp(value + up − down, 0, chroma) without leaving uint8
    value = torch.maximum(value, down).sub_(down)
    odd = per_sample(whole % 2).to(torch.uint8)
    return value.mul_(1 + 254 * odd).add_(low + odd * chroma)  # times −1 (255) modulo 256: low + chroma − value


def scale_saturation(images: Images, scale: Float[Tensor, " n"], offset: Float[Tensor, " n"]) -> Images:
    """Return the images with HSV saturation s·scale + offset; (1, 0) is identity up to rounding.

    Source: ``saturate`` of ImageNet-C and MedMNIST-C. Differs: pixels without a hue stay grey; there they turn red.
    """
    if is_grey(images):
        return images
    hue, saturation, value = _rgb_to_hsv(images)
    changed = (saturation * scale[:, None, None] + offset[:, None, None]).clamp(0, 1)
    return _hsv_to_rgb(hue, torch.where(saturation > 0, changed, saturation), value)


def _rgb_to_hsv(images: UInt8[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue in turns, saturation and value in [0, 1], each (n, h, w)."""
    red, green, blue = (images.float() / 255.0).unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    return hue / 6.0, chroma / torch.where(value > 0, value, 1.0), value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> UInt8[Tensor, "n 3 h w"]:
    """Return the RGB images, the inverse of ``_rgb_to_hsv``; hue may lie outside [0, 1)."""
    channels = []
    for number in (5.0, 3.0, 1.0):  # red, green, blue: v − v·s·max(0, min(k, 4−k, 1)), k = (number + 6h) mod 6
        k = torch.remainder(number + 6.0 * hue, 6.0)
        channels.append(value - value * saturation * torch.minimum(k, 4.0 - k).clamp(0, 1))
    return to_uint8(255.0 * torch.stack(channels, dim=1))


def solarize(images: Images, threshold: Float[Tensor, " n"]) -> Images:
    """Return x where x < threshold, else 255−x; 256 is identity."""
    return images ^ ((images >= per_sample(threshold)).to(torch.uint8) * 255)  # 255 − x is x with all bits flipped


def posterize(images: Images, bits: Float[Tensor, " n"]) -> Images:
    """Return the images with their ``bits`` (1–8) top bits kept; 8 is identity."""
    mask = (0xFF << (8 - bits.to(torch.int32))) & 0xFF
    return images & per_sample(mask).to(torch.uint8)


def invert(images: Images) -> Images:
    """Return 255−x."""
    return 255 - images


def to_grayscale(images: Images) -> Images:
    """Return grey(x) in all channels."""
    return compute_grey(images).to(torch.uint8).expand_as(images).clone()


def autocontrast(images: Images) -> Images:
    """Return every channel stretched linearly to 0–255; a channel of one value stays."""
    return apply_lut(images, tabulate_autocontrast(images))


def tabulate_autocontrast(images: Images) -> Tables:
    """Return ``autocontrast`` of these images as look-up tables."""
    pixels = images.flatten(2)
    low, high = (extreme[..., None].to(torch.int32) for extreme in (pixels.amin(2), pixels.amax(2)))
    level = torch.arange(256, dtype=torch.int32, device=images.device)
    span = (high - low).clamp(min=1)
    stretched = ((255 * (level - low) + span // 2) // span).clamp(0, 255)
    return torch.where(high > low, stretched, level).to(torch.uint8)


def equalize(images: Images) -> Images:
    """Return every channel with its histogram equalised, as in Pillow (integer arithmetic)."""
    return apply_lut(images, tabulate_equalize(images))


def tabulate_equalize(images: Images) -> Tables:
    """Return ``equalize`` of these images as look-up tables."""
    histogram = _compute_histogram(images)
    levels_used = torch.where(histogram > 0, torch.arange(256, device=images.device), -1)
    last = histogram.gather(2, levels_used.amax(2, keepdim=True))
    step = (histogram.sum(2, keepdim=True) - last) // 255
    below = histogram.cumsum(2) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    return torch.where(step > 0, table, torch.arange(256, device=images.device)).to(torch.uint8)


def equalize_as_opencv(images: Images) -> Images:
    """Return every channel with its histogram equalised as in OpenCV: the darkest level present becomes 0.

    A channel of one value stays. Source: OpenCV's ``equalizeHist``, in its float32.
    """
    histogram = _compute_histogram(images)
    first = (histogram > 0).to(torch.uint8).argmax(2, keepdim=True)
    below = histogram.cumsum(2) - histogram.gather(2, first)
    rest = below[..., -1:]
    table = to_uint8(below.float() * (255.0 / rest.clamp(min=1).float()))
    return apply_lut(images, torch.where(rest > 0, table, torch.arange(256, device=images.device)).to(torch.uint8))


def _compute_histogram(images: Images) -> Int64[Tensor, "n c 256"]:
    num, channels = images.shape[:2]
    if images.device.type == "cpu" and images[0, 0].numel() >= _LARGE_PIXELS:  # bytes are counted faster than integers
        planes = images.reshape(num * channels, -1)
        return torch.stack([torch.bincount(plane, minlength=256) for plane in planes]).reshape(num, channels, 256)
    offset = 256 * torch.arange(num * channels, dtype=torch.int32, device=images.device)
    flat = images.reshape(num * channels, -1).to(torch.int32).add_(offset[:, None])
    return torch.bincount(flat.flatten(), minlength=256 * num * channels).reshape(num, channels, 256)
