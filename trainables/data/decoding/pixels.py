"""Conversion of images and arrays to the channels and the size that a data config asks for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from trainables.data.decoding.threads import map_threads
from trainables.image_data_config import FileData, ImageData


@dataclass(frozen=True)
class PixelSpec:
    """Format to which every image is converted: ``channels`` × ``image_size`` × ``image_size``."""

    image_size: int
    channels: int
    resize: str
    max_megapixels: float
    #: Centre and width of the intensities of images of more than 8 bits (``FileData``).
    window: tuple[float, float] | None = None
    scale: Literal["minmax", "percentile"] | None = None
    frame: int | Literal["middle"] | None = None


def build_pixel_spec(config: ImageData) -> PixelSpec:
    """Return the pixel settings of a data config."""
    spec = PixelSpec(config.image_size, config.channels, config.resize, config.max_megapixels)
    if not isinstance(config, FileData):
        return spec
    return PixelSpec(**vars(spec) | {"window": config.window, "scale": config.scale, "frame": config.frame})


def fit_image(image: Image.Image, spec: PixelSpec) -> UInt8[np.ndarray, "channels height width"]:
    """Return the image as uint8 with the channels and size of ``spec``; grey from RGB is ITU-R 601 luma."""
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    array = np.asarray(fit_size(image.convert("L" if spec.channels == 1 else "RGB"), spec))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def fit_size(image: Image.Image, spec: PixelSpec) -> Image.Image:
    """Return the image in the size of ``spec``, cropped, squashed or padded with 0 as it says."""
    size = (spec.image_size, spec.image_size)
    if image.size == size:
        return image
    # Bilinear: antialiased when shrinking in PIL, and without overshoot when enlarging.
    if spec.resize == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if spec.resize == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=0)
    return image.resize(size, Image.Resampling.BILINEAR)


def fit_arrays(
    arrays: UInt8[np.ndarray, "n ..."], spec: PixelSpec, images: UInt8[np.ndarray, "n channels height width"]
) -> list[str]:
    """Fill ``images`` from grey (n, h, w) or RGB (n, h, w, 3) arrays; return one content digest per image.

    Images of the target size are converted by array arithmetic; PIL resizes all others one by one.
    """
    size = spec.image_size
    if arrays.shape[1:3] == (size, size):
        images[...] = _fit_channels(arrays, spec.channels)
    else:

        def fit(place: int) -> None:
            images[place] = fit_image(Image.fromarray(arrays[place]), spec)

        map_threads(fit, range(len(arrays)))
    shape = repr(arrays.shape[1:]).encode()
    return [hashlib.sha256(shape + np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays]


def _fit_channels(arrays: UInt8[np.ndarray, "n ..."], channels: int) -> UInt8[np.ndarray, "n channels height width"]:
    if arrays.ndim == 3:
        return np.repeat(arrays[:, None], channels, axis=1)
    if channels == 3:
        return arrays.transpose(0, 3, 1, 2)
    # PIL's fixed-point ITU-R 601 luma (Convert.c, L24), so that both paths give the same bytes.
    luma = arrays.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return ((luma + 0x8000) >> 16).astype(np.uint8)[:, None]
