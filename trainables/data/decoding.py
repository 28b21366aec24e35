"""Decoding of image files and arrays to uint8 images of one size.

Accepted: 8-bit grey, RGB, palette, 1-bit, CMYK and YCbCr images (converted by PIL), alpha (composited on black), EXIF
orientation (applied), and grey or RGB arrays. Refused: 16- and 32-bit images (which window becomes 8 bits is a
clinical decision, and PIL silently keeps the high byte of 16-bit RGB), stacks of several frames, images larger than
``max_megapixels`` (checked in the header, before decoding), and files that cannot be read completely.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps

from trainables.config import ImageData
from trainables.cpus import count_cpus
from trainables.errors import DataError

#: Exceptions that PIL's decoders raise on damaged input.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip
#: Decoding one image takes milliseconds; more threads than this only compete for memory bandwidth.
MAX_THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PixelSpec:
    """Format to which every image is converted: ``channels`` × ``image_size`` × ``image_size``."""

    image_size: int
    channels: int
    resize: str
    max_megapixels: float


def build_pixel_spec(config: ImageData) -> PixelSpec:
    """Return the pixel settings of a data config."""
    return PixelSpec(config.image_size, config.channels, config.resize, config.max_megapixels)


def map_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function(item)`` for all items in order, computed in threads: PIL, hashing and NumPy release the GIL."""
    with ThreadPoolExecutor(min(MAX_THREADS, count_cpus())) as pool:
        return list(pool.map(function, items))


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Disable PIL's size limit, so that only ``max_megapixels`` applies; every image's header is checked against it."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_header(image: Image.Image, max_megapixels: float) -> None:
    """Raise DataError if the image is too large, has more than 8 bits per channel, or holds several frames."""
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise DataError(
            f"is {width}×{height} px, expected at most {max_megapixels:g} megapixels: shrink it or raise "
            "data.max_megapixels"
        )
    raw_modes = [part for tile in getattr(image, "tile", ()) for part in np.atleast_1d(np.array(tile[3], dtype=object))]
    if image.mode[0] in "IF" or any(isinstance(mode, str) and ";16" in mode for mode in raw_modes):
        raise DataError(
            f"has more than 8 bits per channel (mode {image.mode}), expected 8: choose the intensity window and "
            "convert it first"
        )
    # An MPO file is a JPEG followed by previews.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise DataError(f"holds {getattr(image, 'n_frames', 1)} frames, expected one image: extract the frame to use")


def fit_image(image: Image.Image, spec: PixelSpec) -> UInt8[np.ndarray, "channels height width"]:
    """Return the image as uint8 with the channels and size of ``spec``; grey from RGB is ITU-R 601 luma."""
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    image = image.convert("L" if spec.channels == 1 else "RGB")
    size = (spec.image_size, spec.image_size)
    if image.size != size:
        # Bilinear: antialiased when shrinking in PIL, and without overshoot when enlarging.
        if spec.resize == "crop":
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        elif spec.resize == "pad":
            image = ImageOps.pad(image, size, Image.Resampling.BILINEAR, color=0)
        else:
            image = image.resize(size, Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def decode_file(path: Path, spec: PixelSpec) -> UInt8[np.ndarray, "channels height width"]:
    """Return the image in a file.

    Raises:
        DataError: the file is no usable image; the message completes a sentence that begins with the file's name.
    """
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):  # reading a pipe or a device may never end
            raise DataError("is no file, expected an image")
        if stat.st_size == 0:
            raise DataError("is empty (0 bytes), expected an image")
        with Image.open(path) as image:
            _check_header(image, spec.max_megapixels)
            image.load()
            return fit_image(ImageOps.exif_transpose(image), spec)
    except FileNotFoundError:
        raise DataError("does not exist, expected an image file") from None
    except UNREADABLE as error:
        raise DataError(f"cannot be read to its end as an image ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class FilePixels:
    """Images in files; the content digests are those of the files."""

    paths: Sequence[Path]
    digests: Sequence[str]
    spec: PixelSpec
    has_masks: bool = False

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Decode the files of ``rows``, see ``Pixels.decode``."""

        def decode(place: int) -> str | None:
            try:
                images[place] = decode_file(self.paths[rows[place]], self.spec)
            except DataError as error:
                return str(error)
            return None

        with _own_size_limit():
            found = map_threads(decode, range(len(rows)))
        problems = {int(row): problem for row, problem in zip(rows, found, strict=True) if problem}
        return [self.digests[row] for row in rows], problems


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
