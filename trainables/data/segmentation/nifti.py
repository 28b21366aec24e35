"""Volumes in NIfTI: their size, their labels and their slices as images with targets; read by nibabel."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from trainables.data.decoding.intensity import convert_values, describe_setting
from trainables.data.decoding.pixels import PixelSpec, fit_size
from trainables.data.decoding.threads import map_threads
from trainables.data.segmentation.targets import convert_mask, fit_targets, scale_spacing
from trainables.errors import ConfigError, DataError

#: Largest difference of two affine matrices, relative and in mm, that count as the same.
_SAME = 1e-3


@dataclass(frozen=True)
class Volume:
    """An image with its labels."""

    name: str
    #: File of every modality that is stored, and its place on the file's fourth axis, 0 if that has three.
    images: tuple[tuple[Path, int], ...]
    label: Path


def _open(path: Path, modality: int = 0) -> Any:
    """Return the opened volume in R, A, S.

    Args:
        path: file.
        modality: place on the fourth axis; 0 for files of three axes.

    Raises:
        ConfigError: nibabel is not installed.
        DataError: it is no volume, or lacks the modality.
    """
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ImportError as error:
        raise ConfigError(
            "data: NIfTI files are read by nibabel, which is not installed: pip install 'robustsweep[medical]'"
        ) from error
    try:
        image = nibabel.load(path)
        if len(image.shape) == 4 and modality < image.shape[3]:
            image = image.slicer[..., modality]
        if len(image.shape) == 3:
            return nibabel.as_closest_canonical(image)
    except FileNotFoundError:
        raise DataError("does not exist, expected a volume in NIfTI") from None
    except (OSError, ValueError, EOFError, ImageFileError, HeaderDataError) as error:
        raise DataError(f"cannot be read as a volume ({type(error).__name__}: {error})") from error
    shape = "×".join(map(str, image.shape))
    raise DataError(f"has the shape {shape}, expected three axes, or a fourth with more than {modality} modalities")


def read_shape(path: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return the number of voxels of a volume from left to right, back to front and down to up, and their sides in mm.

    Raises:
        ConfigError: nibabel is not installed.
        DataError: the file is no volume; the message completes a sentence that begins with its name.
    """
    image = _open(path)
    a, b, c = image.shape
    return (a, b, c), measure_sides(image.affine)


def read_volume(path: Path, modality: int = 0) -> tuple[Any, Any]:
    """Return the voxels of a volume in R, A, S, and its affine matrix (mm).

    Raises:
        DataError: the file cannot be read to its end.
    """
    image = _open(path, modality)
    try:
        return np.asanyarray(image.dataobj), image.affine
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read to its end ({type(error).__name__}: {error})") from error


def read_labels(path: Path) -> tuple[Int64[np.ndarray, "x y z"], Any]:
    """Return the labels of a volume, and its affine matrix (mm).

    Raises:
        DataError: they cannot be read, or are no whole numbers from 0 to 65,535.
    """
    values, affine = read_volume(path)
    whole = np.rint(values)
    if not np.isfinite(values).all() or (whole != values).any() or values.min() < 0 or values.max() >= 2**16:
        raise DataError("holds labels that are no whole numbers from 0 to 65,535, expected one number per class")
    return whole.astype(np.int64), affine


def take_slice(voxels: Any, axis: int, number: int) -> Any:
    """Return a slice as it is looked at: of the two other axes the later one runs upwards, the earlier one right."""
    return np.take(voxels, number, axis=axis).T[::-1]


@dataclass(frozen=True)
class SlicePixels:
    """Slices that ``decode`` reads, every volume once for all its slices; digests cover image, labels and classes."""

    volumes: Sequence[Volume]
    #: (number of the volume, of the slice) of every row.
    slices: Sequence[tuple[int, int]]
    axis: int
    digests: Sequence[str]
    spec: PixelSpec
    #: Label → index of its class, or ``UNCOUNTED``.
    index: Mapping[int, int]
    #: Height and width in mm of a stored pixel of every row, filled in by ``decode``.
    spacing: dict[str, list[float | None]]
    #: Row → in words how its intensities were converted, filled in by ``decode``.
    conversions: dict[int, str] = field(default_factory=dict)
    has_masks: bool = True

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Read the slices ``rows``, see ``Pixels.decode``."""
        assert masks is not None
        targets = masks
        order = sorted(range(len(rows)), key=lambda place: self.slices[int(rows[place])])
        by_volume = [list(places) for _, places in groupby(order, key=lambda place: self.slices[int(rows[place])][0])]

        def decode(places: list[int]) -> dict[int, str]:
            mine = [int(rows[place]) for place in places]
            volume = self.volumes[self.slices[mine[0]][0]]
            try:
                case = read_case(volume, self.index, self.spec)
                column, line = (side for axis, side in enumerate(case.sides) if axis != self.axis)
                for place, row in zip(places, mine, strict=True):
                    number = self.slices[row][1]
                    images[place] = self._fit([take_slice(plane, self.axis, number) for plane in case.modalities])
                    shown = take_slice(case.classes, self.axis, number)
                    targets[place] = fit_targets(np.ascontiguousarray(shown), self.spec)
                    sides = scale_spacing(shown.shape, (line, column), self.spec)
                    for values, side in zip(self.spacing.values(), sides, strict=True):
                        values[row] = side
            except DataError as error:
                return {row: str(error) for row in mine}
            if case.conversion is not None:
                self.conversions.update(dict.fromkeys(mine, case.conversion))
            return {}

        problems = {row: text for found in map_threads(decode, by_volume) for row, text in found.items()}
        return [self.digests[row] for row in rows], problems

    def _fit(self, planes: Sequence[UInt8[np.ndarray, "height width"]]) -> UInt8[np.ndarray, "channels side side"]:
        fitted = [np.asarray(fit_size(Image.fromarray(np.ascontiguousarray(plane)), self.spec)) for plane in planes]
        return np.stack(fitted * self.spec.channels if len(fitted) == 1 else fitted)


class ReadCase(NamedTuple):
    """A volume in 8 bits with its classes, both on the voxels of its files in R, A, S."""

    modalities: list[UInt8[np.ndarray, "x y z"]]
    classes: UInt8[np.ndarray, "x y z"]
    #: Sides of a voxel in mm.
    sides: tuple[float, float, float]
    #: In words how the intensities were converted, None if they had 8 bits.
    conversion: str | None


def read_case(volume: Volume, index: Mapping[int, int], spec: PixelSpec) -> ReadCase:
    """Return a volume with the classes of its voxels.

    Args:
        volume: its files.
        index: label → index of its class, or ``UNCOUNTED``.
        spec: how intensities become 8 bits.

    Raises:
        DataError: a file is unusable, or image and labels do not lie in the same place.
    """
    try:
        labels, place = read_labels(volume.label)
        classes = convert_mask(labels, index, setting="labels in dataset.json")
    except DataError as error:
        raise DataError(f"has labels, {volume.label.name}, that cannot be used: the file {error}") from error
    modalities, how = [], None
    for path, modality in volume.images:
        voxels, affine = read_volume(path, modality)
        if voxels.shape != labels.shape:
            shapes = ["×".join(map(str, each.shape)) for each in (voxels, labels)]
            raise DataError(
                f"has {shapes[0]} voxels, and its labels {shapes[1]}; expected as many: resample the labels to the "
                "image"
            )
        if not np.allclose(affine, place, rtol=_SAME, atol=_SAME):
            raise DataError(
                "lies in another place than its labels (their affine matrices differ); expected labels on the "
                "image's own voxels: resample them"
            )
        converted, how = convert_intensities(voxels, spec)
        modalities.append(converted)
    return ReadCase(modalities, classes, measure_sides(place), how)


def measure_sides(affine: Any) -> tuple[float, float, float]:
    """Return the sides of a voxel in mm, from an affine matrix."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0)).tolist()
    return x, y, z


def convert_intensities(voxels: Any, spec: PixelSpec) -> tuple[UInt8[np.ndarray, "x y z"], str | None]:
    """Return a volume in 8 bits, and in words how it was converted, None if it had 8 bits; one range for all slices.

    Raises:
        DataError: it has more than 8 bits, and neither a window nor a scale is set.
    """
    if voxels.dtype == np.uint8:
        return voxels, None
    setting = describe_setting(spec)
    if setting is None:
        raise DataError(
            f"has voxels of type {voxels.dtype}, expected 8 bits, or data.window (centre and width) or data.scale for "
            "the intensities that become black and white"
        )
    flat = convert_values(voxels.reshape(voxels.shape[0], -1), spec)
    return flat.reshape(voxels.shape), f"{setting} (each is a volume)" if "each" in setting else setting
