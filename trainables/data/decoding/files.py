"""Decoding of image files to uint8 images of one size.

Accepted: 8-bit grey, RGB, palette, 1-bit, CMYK and YCbCr images (converted by PIL), alpha (composited on black), EXIF
orientation (applied), DICOM, and grey images of more than 8 bits for which a window or a scale is set. Refused: grey
images of more than 8 bits otherwise (which window becomes 8 bits is a clinical decision), colours of more than 8 bits
(PIL silently keeps the high byte), files of several images unless ``data.frame`` selects one, images larger than
``max_megapixels`` (checked in the header, before decoding), and files that cannot be read completely.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps

from trainables.data.decoding.dicom import choose_frame, decode_dicom, is_dicom
from trainables.data.decoding.intensity import convert_values, describe_setting
from trainables.data.decoding.pixels import PixelSpec, fit_image
from trainables.data.decoding.threads import map_threads
from trainables.errors import DataError

#: Suffixes of files that PIL reads.
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"}
#: Exceptions that PIL's decoders raise on damaged input.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    Image.DecompressionBombError,
)  # fmt: skip


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Disable PIL's size limit, so that only ``max_megapixels`` applies; every image's header is checked against it."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _select_frame(image: Image.Image, spec: PixelSpec) -> None:
    """Check the size in the image's header, and go to the frame to use."""
    width, height = image.size
    if width * height > spec.max_megapixels * 1e6:
        raise DataError(
            f"is {width}×{height} px, expected at most {spec.max_megapixels:g} megapixels: shrink it or raise "
            "data.max_megapixels"
        )
    # An MPO file is a JPEG followed by previews.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    frame = choose_frame(frames, spec)
    if frame:
        image.seek(frame)


def _has_deep_colours(image: Image.Image) -> bool:
    """Return whether the file holds colours of 16 bits, of which PIL would keep the high byte."""
    raw_modes = [part for tile in getattr(image, "tile", ()) for part in np.atleast_1d(np.array(tile[3], dtype=object))]
    return any(isinstance(mode, str) and ";16" in mode for mode in raw_modes) and image.mode[0] not in "IF"


def _read_image(image: Image.Image, spec: PixelSpec) -> tuple[Image.Image, str | None]:
    """Return an opened image in 8 bits, and in words how its intensities were converted, None if they had 8 bits."""
    _select_frame(image, spec)
    if _has_deep_colours(image):
        raise DataError(
            "holds colours of more than 8 bits per channel, expected 8 (a window is defined for grey images only): "
            "convert it first"
        )
    if image.mode[0] not in "IF":
        return ImageOps.exif_transpose(image), None
    setting = describe_setting(spec)
    if setting is None:
        raise DataError(
            f"has more than 8 bits per channel (mode {image.mode}), expected 8, or data.window (centre and width) or "
            "data.scale for the intensities that become black and white"
        )
    return Image.fromarray(convert_values(np.asarray(ImageOps.exif_transpose(image)), spec)), setting


def decode_file(path: Path, spec: PixelSpec) -> tuple[UInt8[np.ndarray, "channels height width"], str | None]:
    """Return the image in a file, and in words how its intensities were converted, None if it is an image of 8 bits.

    Raises:
        ConfigError: it is a DICOM file, and the package that reads them is missing.
        DataError: the file is no usable image; the message completes a sentence that begins with the file's name.
    """
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):  # reading a pipe or a device may never end
            raise DataError("is no file, expected an image")
        if stat.st_size == 0:
            raise DataError("is empty (0 bytes), expected an image")
        if is_dicom(path, IMAGE_SUFFIXES):
            converted, how = decode_dicom(path, spec)
            return fit_image(converted, spec), how
        with Image.open(path) as opened:
            image, conversion = _read_image(opened, spec)
            return fit_image(image, spec), conversion
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
    conversions: dict[int, str] = field(default_factory=dict)

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Decode the files of ``rows``, see ``Pixels.decode``."""

        def decode(place: int) -> str | None:
            row = int(rows[place])
            try:
                images[place], conversion = decode_file(self.paths[row], self.spec)
            except DataError as error:
                return str(error)
            if conversion is not None:
                self.conversions[row] = conversion
            return None

        with _own_size_limit():
            found = map_threads(decode, range(len(rows)))
        problems = {int(row): problem for row, problem in zip(rows, found, strict=True) if problem}
        return [self.digests[row] for row in rows], problems
