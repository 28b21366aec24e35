"""Whole volumes of one spacing as images with targets: their grid, and their voxels.

Volumes are resampled to a common spacing, which may differ between the axes, and stored in one array per set: each
begins in its first voxel, and the rest up to the size of the largest volume is 0 and ``UNCOUNTED``. Where a volume ends
is in the columns of ``EXTENT``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from trainables.data.dataset import EXTENT, SPACING, UNCOUNTED
from trainables.data.decoding.pixels import PixelSpec
from trainables.data.decoding.threads import map_threads
from trainables.data.segmentation.nifti import Volume, read_case
from trainables.data.segmentation.targets import assign_classes
from trainables.errors import DataError

Value = TypeVar("Value")
Sides = tuple[float, float, float]
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Grid:
    """Voxels in which the volumes of a data set are stored; axes are depth, height, width."""

    #: Sides of a voxel in mm.
    spacing: Sides
    #: Of the largest volume along each axis.
    shape: Size
    #: Voxels of every volume after resampling.
    extents: tuple[Size, ...]

    def describe(self) -> dict[str, list[object]]:
        """Return the columns ``EXTENT`` and ``SPACING``, one value per volume."""
        columns: dict[str, list[object]] = {
            name: [extent[axis] for extent in self.extents] for axis, name in enumerate(EXTENT)
        }
        return columns | {name: [side] * len(self.extents) for name, side in zip(SPACING, self.spacing, strict=True)}


def plan_grid(
    sizes: Sequence[Size], sides: Sequence[Sides], *, spacing: Sides | None, reference: Sequence[int]
) -> Grid:
    """Return the grid of some volumes.

    Args:
        sizes: voxels of every volume in its file.
        sides: sides of its voxels in mm.
        spacing: sides of the stored voxels in mm; None: the median over volumes, axis by axis.
        reference: numbers of the volumes whose median it is.

    Source: Isensee et al. 2021 (median). Differs: the median of the coarsest axis, too, where nnU-Net takes its tenth
    percentile if voxels are more than three times as thick as they are wide.

    Raises:
        DataError: a median is wanted, and no volume can be used.
    """
    if spacing is None:
        if not reference:
            raise DataError("looked for the median spacing of the volumes and found none that can be read")
        x, y, z = np.median([sides[row] for row in reference], axis=0).tolist()
        spacing = x, y, z
    extents = []
    for size, own in zip(sizes, sides, strict=True):
        a, b, c = (
            max(1, round(number * side / wanted)) for number, side, wanted in zip(size, own, spacing, strict=True)
        )
        extents.append((a, b, c))
    depth, height, width = np.max(extents, axis=0).tolist()
    return Grid(spacing, (depth, height, width), tuple(extents))


def order_axes(values: tuple[Value, Value, Value], axis: int) -> tuple[Value, Value, Value]:
    """Return values of the axes R, A, S in the order depth, height, width (``nifti.take_slice``)."""
    column, row = (value for each, value in enumerate(values) if each != axis)
    return values[axis], row, column


@dataclass(frozen=True)
class VolumePixels:
    """Volumes that ``decode`` reads and resamples; digests cover image, labels, classes and spacing."""

    volumes: Sequence[Volume]
    grid: Grid
    #: Axis of R, A, S that becomes the depth.
    axis: int
    digests: Sequence[str]
    spec: PixelSpec
    #: Label → index of its class, or ``UNCOUNTED``.
    index: Mapping[int, int]
    #: Row → in words how its intensities were converted, filled in by ``decode``.
    conversions: dict[int, str] = field(default_factory=dict)
    has_masks: bool = True

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels depth height width"],
        masks: UInt8[np.ndarray, "n depth height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Read the volumes ``rows``, see ``Pixels.decode``; arrays hold zeros before."""
        assert masks is not None
        targets = masks

        def decode(place: int) -> str | None:
            row = int(rows[place])
            extent = self.grid.extents[row]
            depth, height, width = extent
            try:
                case = read_case(self.volumes[row], self.index, self.spec)
            except DataError as error:
                return str(error)
            for channel in range(self.spec.channels):
                source = case.modalities[min(channel, len(case.modalities) - 1)]
                fitted = resample(self._turn(source), extent)
                images[place, channel, :depth, :height, :width] = np.rint(fitted).astype(np.uint8)
            turned = self._turn(case.classes)
            is_same = turned.shape == extent
            targets[place] = UNCOUNTED
            targets[place, :depth, :height, :width] = (
                turned if is_same else assign_classes(turned, lambda mask: resample(mask, extent))
            )
            if case.conversion is not None:
                self.conversions[row] = case.conversion
            return None

        found = map_threads(decode, range(len(rows)))
        problems = {int(row): text for row, text in zip(rows, found, strict=True) if text is not None}
        return [self.digests[row] for row in rows], problems

    def _turn(self, voxels: UInt8[np.ndarray, "x y z"]) -> UInt8[np.ndarray, "depth height width"]:
        column, row = (axis for axis in range(3) if axis != self.axis)
        return np.ascontiguousarray(voxels.transpose(self.axis, row, column)[:, ::-1])


def resample(voxels: np.ndarray, shape: Size) -> Float32[np.ndarray, "depth height width"]:
    """Return a volume of numbers or a mask in another number of voxels over the same extent.

    Linear, antialiased where it becomes coarser (Pillow, as for images), first within slices and then across them.
    """
    values = voxels.astype(np.float32)
    depth, height, width = shape
    if values.shape[1:] != (height, width):
        how = Image.Resampling.BILINEAR
        values = np.stack([np.asarray(Image.fromarray(each).resize((width, height), how)) for each in values])
    if len(values) != depth:  # a slice is a row of one image
        flat = Image.fromarray(values.reshape(len(values), -1))
        values = np.asarray(flat.resize((height * width, depth), Image.Resampling.BILINEAR)).reshape(shape)
    return values
