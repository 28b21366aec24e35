"""Export of shifted test sets: a contact sheet, npz files as in MedMNIST-C, folders as in ImageNet-C."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainables.data.dataset import ImageSet
from trainables.data.feed import split_sizes
from trainables.errors import StorageError
from trainables.seeding import hash_ids, mix
from trainables.shifts.preview import contact_sheet
from trainables.shifts.shift import Shift

#: Sides of the cells of a sheet (px): small images are enlarged by whole factors, large ones reduced.
_CELL_PX, _LARGEST_CELL_PX = 96, 224
_MARGIN_PX, _FONT_PX = 8, 15
_BATCH = 256


def group_shifts(shifts: Sequence[Shift]) -> dict[str, list[Shift]]:
    """Return name → shifts of this name, in their order."""
    groups: dict[str, list[Shift]] = {}
    for shift in shifts:
        groups.setdefault(shift.name, []).append(shift)
    return groups


def compute_seeds(images: ImageSet, shift_seed: int) -> Int64[Tensor, " n"]:
    """Return the seeds that the evaluation of a set passes to ``Shift.apply``."""
    return mix(torch.from_numpy(hash_ids(images.ids)), "shift", shift_seed)


def draw_sheet(images: ImageSet, rows: Sequence[int], shifts: Sequence[Shift], *, shift_seed: int) -> Image.Image:
    """Return a contact sheet with one row per shift and image: name, unshifted image, then the severities.

    Args:
        images: image set.
        rows: rows of the images to show.
        shifts: shifts without the identity.
        shift_seed: seed of the shifts in the evaluation; the sheet shows the pixels that models are evaluated on.
    """
    chosen = torch.from_numpy(images.images[list(rows)].copy())
    seeds = compute_seeds(images, shift_seed)[list(rows)]
    groups = group_shifts(shifts)
    height, width = chosen.shape[-2:]
    side = min(height, width)
    scale = max(1, _CELL_PX // side) if side < _CELL_PX else min(1.0, _LARGEST_CELL_PX / side)
    cell = round(width * scale), round(height * scale)
    columns = 1 + max(map(len, groups.values()))
    left = 2 * _MARGIN_PX + math.ceil(max(ImageFont.load_default(_FONT_PX).getlength(name) for name in groups))
    sheet = Image.new("RGB", (left + columns * cell[0], len(groups) * len(rows) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for name, group in groups.items():
        strip = _picture(contact_sheet(chosen, group, seeds))
        size = cell[0] * (1 + len(group)), cell[1] * len(rows)
        how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        sheet.paste(strip.resize(size, how), (left, top))
        severities = ", ".join(str(shift.severity) for shift in group)
        draw.text((_MARGIN_PX, top + _MARGIN_PX), f"{name}\n{severities}", fill="black", font_size=_FONT_PX)
        top += size[1]
    return sheet


def write_npz(folder: Path, images: ImageSet, shifts: Sequence[Shift], *, shift_seed: int) -> list[Path]:
    """Write one ``<shift>.npz`` per shift in the format of MedMNIST-C, and return the paths.

    All images at one severity are followed by all images at the next one. Arrays: ``test_images`` uint8
    (severities·n, height, width) or (…, 3), ``test_labels`` (severities·n, 1), and ``test_severities``
    (severities·n,), which MedMNIST-C lacks: a study may have other severities than 1 to 5.

    Raises:
        StorageError: a file cannot be written.
    """
    written = []
    for name, group in group_shifts(shifts).items():
        path = folder / f"{name}.npz"
        count, channels, height, width = images.images.shape
        shape = (len(group) * count, height, width, *((channels,) if channels > 1 else ()))
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        labels = np.tile(images.labels, len(group))[:, None]
        severities = np.repeat([shift.severity for shift in group], count)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                with archive.open("test_images.npy", "w", force_zip64=True) as file:  # may be larger than memory
                    np.lib.format.write_array_header_1_0(file, header)
                    for shift in group:
                        for _, pixels in _shift_batches(images, shift, shift_seed):
                            file.write(pixels.tobytes())
                for member, array in (("test_labels", labels), ("test_severities", severities)):
                    with archive.open(f"{member}.npy", "w") as file:
                        np.lib.format.write_array(file, array, allow_pickle=False)
        except OSError as error:
            raise _explain(path, error) from error
        written.append(path)
    return written


def write_folders(
    folder: Path, images: ImageSet, classes: Sequence[str], shifts: Sequence[Shift], *, shift_seed: int
) -> list[Path]:
    """Write ``<shift>/<severity>/<class>/<id>.png`` in the layout of ImageNet-C, and return the folders of the shifts.

    Characters of a class or id that cannot be part of a file name are encoded as in a URL, / as %2F.

    Raises:
        StorageError: a file cannot be written.
    """
    names = [_file_name(name) for name in classes]
    for shift in shifts:
        place = folder / shift.name / str(shift.severity)
        try:
            for name in names:
                (place / name).mkdir(parents=True, exist_ok=True)
            for start, pixels in _shift_batches(images, shift, shift_seed):
                for row, image in enumerate(pixels, start):
                    path = place / names[images.labels[row]] / f"{_file_name(str(images.ids[row]))}.png"
                    Image.fromarray(image).save(path)
        except OSError as error:
            raise _explain(place, error) from error
    return [folder / name for name in group_shifts(shifts)]


def _shift_batches(images: ImageSet, shift: Shift, shift_seed: int) -> Iterator[tuple[int, UInt8[np.ndarray, "m ..."]]]:
    """Yield the first row and the shifted pixels of every batch: (m, h, w) if grey, (m, h, w, 3) if RGB."""
    seeds, start = compute_seeds(images, shift_seed), 0
    for size in split_sizes(len(images), _BATCH):
        rows = slice(start, start + size)
        shifted = shift.apply(torch.from_numpy(np.array(images.images[rows])), seeds[rows])
        pixels = shifted.permute(0, 2, 3, 1).contiguous().numpy()
        yield start, pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        start += size


def _picture(pixels: UInt8[np.ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _file_name(text: str) -> str:
    name = quote(text, safe=" ")
    return name if name.strip(".") else name.replace(".", "%2E")


def _explain(path: Path, error: OSError) -> StorageError:
    return StorageError(f"could not write {path}: {error}; choose a folder that can be written and has room")
