"""Decoding of lesion masks to the size of the stored images, with exactly the geometry of their image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from trainables.data.decoding.dicom import decode_dicom, is_dicom
from trainables.data.decoding.files import IMAGE_SUFFIXES, UNREADABLE
from trainables.data.decoding.pixels import PixelSpec, fit_image
from trainables.errors import DataError

#: A stored pixel is part of a lesion if at least half of it is: of 255.
_HALF = 128


def decode_mask(path: Path, image_path: Path, spec: PixelSpec) -> UInt8[np.ndarray, "height width"]:
    """Return the mask in a file, 1 in lesions and 0 elsewhere, at the size and with the crop of its stored image.

    Any value but 0 is a lesion. A stored pixel is one if at least half of it is; a lesion too small to fill half of any
    pixel keeps the one that it fills most, so none vanishes.

    Args:
        path: file of the mask.
        image_path: file of the image that it belongs to.
        spec: format of the stored images.

    Raises:
        DataError: the file is no usable mask; the message completes a sentence that begins with the file's name.
    """
    try:
        with Image.open(path) as opened:
            inside = _read_inside(opened)
        size = read_size(image_path, spec)
    except FileNotFoundError:
        raise DataError("does not exist, expected a mask") from None
    except UNREADABLE as error:
        raise DataError(f"cannot be read to its end as a mask ({type(error).__name__}: {error})") from error
    found = inside.shape[::-1]
    if found != size:
        raise DataError(
            f"is {found[0]}×{found[1]} px, and its image {size[0]}×{size[1]} px; expected a mask of the image's own "
            "size, so that crop and scale are the same"
        )
    drawn = Image.fromarray(inside.astype(np.uint8) * 255)
    return _select_pixels(fit_image(drawn, replace(spec, channels=1))[0])


def _read_inside(image: Image.Image) -> Bool[np.ndarray, "height width"]:
    if image.format in ("JPEG", "MPO"):
        raise DataError("is a JPEG, which blurs the edges of a mask; expected PNG, TIFF or another lossless format")
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise DataError(f"holds {num_frames} images, expected one mask")
    if "A" in image.mode or "transparency" in image.info:
        raise DataError("is partly transparent, expected 0 outside of lesions and any other value inside")
    image = ImageOps.exif_transpose(image)
    values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    return (values != 0).any(axis=2) if values.ndim == 3 else values != 0


def read_size(path: Path, spec: PixelSpec) -> tuple[int, int]:
    """Return width and height of an image as it is displayed."""
    if is_dicom(path, IMAGE_SUFFIXES):
        return decode_dicom(path, spec)[0].size
    with Image.open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # orientation: width and height change places
    return (height, width) if turned else (width, height)


def _select_pixels(share: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    from scipy import ndimage

    inside = share >= _HALF
    patches, count = ndimage.label(share > 0, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    if count:
        small = numbers[ndimage.maximum(share, patches, numbers) < _HALF]
        for row, column in ndimage.maximum_position(share, patches, small) if len(small) else ():
            inside[row, column] = True
    return inside.astype(np.uint8)
