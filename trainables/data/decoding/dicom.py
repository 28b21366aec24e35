"""DICOM files: one image each, with its intensities brought to 8 bits; nothing else of a file is kept.

The chain of DICOM PS3.3 C.11: modality (rescale slope and intercept, or table), values of interest (window or table),
then MONOCHROME1 inverted. The window is the study's, or the first one in the file. pydicom, of the extra ``medical``,
reads the files.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainables.data.decoding.intensity import apply_range, convert_values, describe_setting
from trainables.data.decoding.pixels import PixelSpec
from trainables.errors import ConfigError, DataError

SUFFIXES = {".dcm", ".dicom", ".dic"}
#: Files begin with 128 arbitrary bytes and this word (PS3.10, 7.1).
_MAGIC = b"DICM"
_PREAMBLE = 128
_GREY = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(path: Path, known_suffixes: set[str]) -> bool:
    """Return whether a file is DICOM, by its suffix, or if its suffix is not among the known ones by its first bytes.

    Files of picture archives have no suffix, or the last number of an identifier.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if suffix in known_suffixes:
        return False
    try:
        with path.open("rb") as file:
            file.seek(_PREAMBLE)
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:  # decoding reports the file
        return False


@cache
def import_pydicom() -> Any:
    """Return pydicom.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        pydicom = importlib.import_module("pydicom")
        importlib.import_module("pydicom.pixels")
    except ImportError:
        raise ConfigError(
            "data holds DICOM files, and the package that reads them is missing: pip install 'robustsweep[medical]'"
        ) from None
    # Warnings quote values of the header, which may be a patient's.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")
    return pydicom


def read_patient(path: Path) -> str | None:
    """Return what identifies the patient of a DICOM file, "" if it names none, None if the file is unreadable.

    The identifier is for comparison only, and is not to be written anywhere.
    """
    pydicom = import_pydicom()
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID", "IssuerOfPatientID"])
        patient, issuer = (str(header.get(key) or "").strip() for key in ("PatientID", "IssuerOfPatientID"))
    except _unreadable(pydicom):  # decoding reports the file
        return None
    return f"{issuer}\n{patient}" if patient else ""


def _unreadable(pydicom: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions that pydicom and its decoders raise on damaged input."""
    return (
        pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException, OSError, EOFError, ValueError, TypeError,
        KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError, OverflowError, MemoryError,
    )  # fmt: skip


@contextmanager
def _explained(what: str, pydicom: Any) -> Iterator[None]:
    """Turn pydicom's exceptions into a DataError without their text, which may quote the header."""
    try:
        yield
    except _unreadable(pydicom) as error:
        raise DataError(f"{what} ({type(error).__name__})") from error


def decode_dicom(path: Path, spec: PixelSpec) -> tuple[Image.Image, str]:
    """Return the image in a DICOM file in 8 bits, and in words how its intensities were converted.

    Raises:
        ConfigError: pydicom is not installed.
        DataError: the file holds no image, several, or one that cannot be decoded or converted; the message completes
            a sentence that begins with the file's name.
    """
    pydicom = import_pydicom()
    with _explained("cannot be read as DICOM", pydicom):
        header = pydicom.dcmread(path)
        has_pixels = any(key in header for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
        photometric = str(header.get("PhotometricInterpretation", ""))
        size = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        frames = int(header.get("NumberOfFrames") or 1)
    if not has_pixels or 0 in size:
        raise DataError("is a DICOM file without an image, expected one: leave it out")
    if size[0] * size[1] > spec.max_megapixels * 1e6:
        raise DataError(
            f"is {size[1]}×{size[0]} px, expected at most {spec.max_megapixels:g} megapixels: shrink it or raise "
            "data.max_megapixels"
        )
    frame = choose_frame(frames, spec)
    with _explained(f"cannot be decoded from {_describe_storage(pydicom, header)}", pydicom):
        values = pydicom.pixels.pixel_array(header, index=frame)
    with _explained("cannot be converted to 8 bits", pydicom):
        if photometric in _GREY:
            return _convert_grey(pydicom, header, values, spec)
        return _convert_colour(pydicom, header, values, photometric)


def _describe_storage(pydicom: Any, header: Any) -> str:
    """Return how the pixels are compressed, and the missing decoder if that is why they cannot be read."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        return "an unknown format"
    with suppress(NotImplementedError):  # of formats that pydicom does not know
        if not pydicom.pixels.get_decoder(syntax).is_available:
            return f"{syntax.name} without a decoder: pip install 'robustsweep[medical]'"
    return str(syntax.name)


def choose_frame(frames: int, spec: PixelSpec) -> int:
    """Return the place of the image to take from a file that holds several, from 0.

    Raises:
        DataError: there are several and ``data.frame`` is not set, or fewer than it asks for.
    """
    if spec.frame == "middle":
        return (frames - 1) // 2
    if spec.frame is None:
        if frames > 1:
            raise DataError(
                f"holds {frames} frames, expected one image: set data.frame to the one to use, 1 to {frames} or middle"
            )
        return 0
    if spec.frame > frames:
        raise DataError(f"holds {frames} frame(s), expected at least {spec.frame} for data.frame: {spec.frame}")
    return spec.frame - 1


def _convert_grey(pydicom: Any, header: Any, stored: np.ndarray, spec: PixelSpec) -> tuple[Image.Image, str]:
    values = pydicom.pixels.apply_modality_lut(stored, header)
    setting = describe_setting(spec)
    if setting is not None:
        pixels = convert_values(values, spec, is_padding=_find_padding(header, stored))
        how = setting
    elif header.get("VOILUTSequence"):
        pixels, how = _apply_table(pydicom, header, values), "the table of values of interest in the file"
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        pixels, how = _apply_own_window(header, values), "the window in the file"
    elif stored.dtype == np.uint8 and np.array_equal(values, stored):
        bits = int(header.BitsStored)
        pixels, how = apply_range(stored.astype(np.float32), 0, 2**bits - 1), f"their own {bits} bit{'s' * (bits > 1)}"
    else:
        raise DataError(
            f"holds {header.get('BitsStored')} bits per pixel and no window, expected one: set data.window (centre and "
            "width) or data.scale"
        )
    if str(header.PhotometricInterpretation) == "MONOCHROME1":  # 0 is white
        pixels = 255 - pixels
    return Image.fromarray(pixels), how


def _find_padding(header: Any, stored: np.ndarray) -> np.ndarray | None:
    """Return the mask of the pixels that lie outside the image (PS3.3 C.7.5.1.1.2), None if the file states none."""
    value, limit = header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")
    if value is None:
        return None
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _apply_own_window(header: Any, values: np.ndarray) -> np.ndarray:
    """Return the values by the first window of the file (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    centre, width = (float(np.atleast_1d(header[key].value)[0]) for key in ("WindowCenter", "WindowWidth"))
    kind = str(header.get("VOILUTFunction") or "LINEAR").upper()
    values = values.astype(np.float32)
    if kind == "SIGMOID":
        return np.rint(255 / (1 + np.exp(-4 * (values - centre) / width))).astype(np.uint8)
    if kind == "LINEAR":  # a width of w holds w whole numbers
        centre, width = centre - 0.5, width - 1
    return apply_range(values, centre - width / 2, centre + width / 2)


def _apply_table(pydicom: Any, header: Any, values: np.ndarray) -> np.ndarray:
    bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
    found = pydicom.pixels.apply_voi(values, header)
    return apply_range(found.astype(np.float32), 0, 2**bits - 1)


def _convert_colour(pydicom: Any, header: Any, values: np.ndarray, photometric: str) -> tuple[Image.Image, str]:
    if photometric == "PALETTE COLOR":
        values = pydicom.pixels.apply_color_lut(values, header)[..., :3]
        if values.dtype == np.uint16:  # PS3.3 C.7.6.3.1.6: a table of 16 bits spans all of them
            values = (values >> 8).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(
            f"holds colours of {header.get('BitsAllocated')} bits, expected 8: a window is defined for grey images only"
        )
    return Image.fromarray(values), "their own 8 bits"
