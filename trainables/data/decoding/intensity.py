"""Conversion of intensities of more than 8 bits to 8 bits: by a window, or by the range of each image."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from trainables.data.decoding.pixels import PixelSpec
from trainables.errors import DataError

#: Range of ``scale: percentile``, in percent of the pixels (nnU-Net's for CT, Isensee et al. 2021).
PERCENTILES = (0.5, 99.5)


def describe_setting(spec: PixelSpec) -> str | None:
    """Return in words how the config converts intensities, None if it leaves that to the files."""
    if spec.window is not None:
        return "data.window: centre {:g}, width {:g}".format(*spec.window)
    if spec.scale == "minmax":
        return "data.scale: each from its minimum to its maximum"
    if spec.scale == "percentile":
        return "data.scale: each from its {:g}th to its {:g}th percentile".format(*PERCENTILES)
    return None


def convert_values(
    values: np.ndarray, spec: PixelSpec, *, is_padding: Bool[np.ndarray, "height width"] | None = None
) -> UInt8[np.ndarray, "height width"]:
    """Return intensities as 8 bits by the window or the scale of ``spec``, of which one must be set.

    Args:
        values: grey image of any type.
        spec: its window or scale.
        is_padding: pixels outside the image, which are left out of its range.

    Raises:
        DataError: a value is not finite.
    """
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError("holds values that are not finite, expected numbers")
    if spec.window is not None:
        centre, width = spec.window
        return apply_range(values, centre - width / 2, centre + width / 2)
    inside = values if is_padding is None or is_padding.all() else values[~is_padding]
    if spec.scale == "minmax":
        return apply_range(values, float(inside.min()), float(inside.max()))
    low, high = np.percentile(inside, PERCENTILES)
    return apply_range(values, float(low), float(high))


def apply_range(
    values: Float32[np.ndarray, "height width"], low: float, high: float
) -> UInt8[np.ndarray, "height width"]:
    """Return 0 up to ``low``, 255 from ``high`` on and linear values between; 0 if the range is empty."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
