"""Sources of images and masks in files: folders, and a CSV manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from trainables.data.dataset import UNCOUNTED
from trainables.data.decoding.files import FilePixels
from trainables.data.decoding.lesion_masks import read_size
from trainables.data.decoding.pixels import PixelSpec, build_pixel_spec
from trainables.data.decoding.threads import map_threads
from trainables.data.identity.file_digests import FileDigests
from trainables.data.identity.texts import check_similar
from trainables.data.segmentation.pairs import find_pairs
from trainables.data.segmentation.targets import (
    TARGETS_VERSION,
    convert_mask,
    find_foreground,
    fit_targets,
    index_values,
    order_classes,
    read_mask,
    scale_spacing,
)
from trainables.data.sources.csv_file import read_csv
from trainables.data.sources.image_groups import find_groups, find_patients
from trainables.data.sources.manifests import (
    MISSING,
    check_file_names,
    convert_column,
    find_missing,
    find_path,
    find_unknown_formats,
    list_folder,
    read_splits,
)
from trainables.data.splits import EXTERNAL, check_unique
from trainables.data.table import Source, Table, hash_json
from trainables.errors import DataError
from trainables.segmentation_data_config import BACKGROUND, ImageMaskCsvData, ImageMaskFolderData, MaskFileData

REQUIRED_COLUMNS = ("file_name", "mask")
OPTIONAL_COLUMNS = ("id", "split", "group", "site", "fov", "spacing_mm")
KNOWN_COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS


@dataclass(frozen=True)
class MaskedFiles:
    """Images in files with their masks; every list has one entry per row of the table."""

    images: list[Path]
    #: None for a row with a problem.
    masks: list[Path | None]
    #: Fields of view; None where all pixels are counted.
    fov: list[Path | None]
    #: Height and width of a pixel in mm; None where unknown.
    spacing: list[tuple[float, float] | None]

    @cached_property
    def paths(self) -> list[Path]:
        """All files."""
        return [path for paths in (self.images, self.masks, self.fov) for path in paths if path is not None]


@dataclass(frozen=True)
class MaskedPixels:
    """Images and targets that ``decode`` reads from files; digests cover image, mask, field of view and classes."""

    files: MaskedFiles
    images: FilePixels
    digests: Sequence[str]
    spec: PixelSpec
    #: Value in a mask → index of its class, or ``UNCOUNTED``.
    index: dict[int, int]
    #: Height and width in mm of a stored pixel of every row, filled in by ``decode``.
    spacing: dict[str, list[float | None]] = field(default_factory=dict)
    has_masks: bool = True

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Decode the files of ``rows``, see ``Pixels.decode``."""
        assert masks is not None
        _, problems = self.images.decode(rows, images, None)

        def decode(place: int) -> str | None:
            row = int(rows[place])
            if row in problems:
                return problems[row]
            try:
                masks[place] = self._decode_targets(row)
            except DataError as error:
                return str(error)
            return None

        found = map_threads(decode, range(len(rows)))
        return [self.digests[row] for row in rows], {
            int(row): problem for row, problem in zip(rows, found, strict=True) if problem
        }

    def _decode_targets(self, row: int) -> UInt8[np.ndarray, "side side"]:
        image, mask, fov = self.files.images[row], self.files.masks[row], self.files.fov[row]
        assert mask is not None
        width, height = read_size(image, self.spec)
        try:
            values = read_mask(mask)
            _check_size(values, (height, width))
            targets = convert_mask(values, self.index)
        except DataError as error:
            raise DataError(f"has a mask, {mask.name}, that cannot be used: it {error}") from error
        if fov is not None:
            try:
                inside = read_mask(fov, what="field of view") > 0
                _check_size(inside, (height, width))
            except DataError as error:
                raise DataError(f"has a field of view, {fov.name}, that cannot be used: it {error}") from error
            targets[~inside] = UNCOUNTED
        for name, side in zip(
            self.spacing, scale_spacing((height, width), self.files.spacing[row], self.spec), strict=True
        ):
            self.spacing[name][row] = side
        return fit_targets(targets, self.spec)


def _check_size(values: np.ndarray, size: tuple[int, int]) -> None:
    if values.shape != size:
        raise DataError(
            f"is {values.shape[1]}×{values.shape[0]} px, and its image {size[1]}×{size[0]} px; expected the image's "
            "own size, so that crop and scale are the same"
        )


def build_image_mask_folder_source(config: ImageMaskFolderData, digests: FileDigests) -> Source:
    """Return the source of ``{train,val,test,external/<name>}/{images,masks}`` or ``{images,masks}``.

    Every image is its own group unless ``data.group_pattern`` or a DICOM file names the patient.

    Raises:
        DataError: the folder is missing, or a file or folder lies where none is expected.
    """
    pairs = find_pairs(list_folder(config.path, "one with images and masks"), config)
    names = [pair.image for pair in pairs]
    spacing = None if config.spacing_mm is None else (config.spacing_mm, config.spacing_mm)
    files = MaskedFiles(
        images=[config.path / name for name in names],
        masks=[config.path / pair.mask if pair.mask else None for pair in pairs],
        fov=[config.path / pair.fov if pair.fov else None for pair in pairs],
        spacing=[spacing] * len(names),
    )
    groups = find_groups(config, names)
    problems = find_unknown_formats(files.images) | {
        row: pair.problem for row, pair in enumerate(pairs) if pair.problem is not None
    }
    said = [names, groups, [pair.problem for pair in pairs]]

    def describe() -> dict[str, Any]:
        return {
            "ids": names,
            "splits": [pair.split for pair in pairs],
            "groups": find_patients(names, files.images, similar_text=config.similar_text)
            if groups is None
            else groups,
            "sites": [pair.split.removeprefix(EXTERNAL) if EXTERNAL in pair.split else "" for pair in pairs],
            "file_names": names,
            "rows": [None] * len(names),
            "problems": problems,
        }

    return _MaskedSource(config, files, digests, config.path).build(describe, said)


def build_image_mask_csv_source(config: ImageMaskCsvData, digests: FileDigests) -> Source:
    """Return the source of a manifest with the columns file_name and mask.

    Raises:
        DataError: the manifest cannot be read, lacks a column, points outside its root, repeats a file, or has an
            unknown split.
    """
    columns, lines = read_csv(config.path, key="data.path", required=REQUIRED_COLUMNS, optional=OPTIONAL_COLUMNS)
    root, where = config.root or config.path.parent, config.path.name
    empty = [""] * len(lines)
    names = {
        key: check_file_names(columns.get(key, empty), lines, where, column=key) for key in ("file_name", "mask", "fov")
    }
    images = names["file_name"]
    known = [(name, f"line {line}") for name, line in zip(images, lines, strict=True) if name]
    check_unique([name for name, _ in known], [place for _, place in known], what="file_name")
    problems = find_missing(columns, lines, where, config.outer_sites, required=REQUIRED_COLUMNS)
    splits = read_splits(columns.get("split", empty), lines, where)
    if config.similar_text == "error" and "group" in columns:
        check_similar(columns["group"], what="group", advice="set data.similar_text: distinct if they do differ")
    cells = zip(columns.get("spacing_mm", empty), lines, strict=True)
    files = MaskedFiles(
        images=[find_path(root, name) for name in images],
        masks=[find_path(root, name) if name else None for name in names["mask"]],
        fov=[find_path(root, name) if name else None for name in names["fov"]],
        spacing=[_read_spacing(text, f"{where} line {line}") for text, line in cells],
    )
    ids = columns.get("id", images)

    def describe() -> dict[str, Any]:
        return {
            "ids": ids,
            "splits": splits,
            "groups": columns.get("group") or find_patients(ids, files.images, similar_text=config.similar_text),
            "sites": ["" if site.lower() in MISSING else site for site in columns.get("site", empty)],
            "file_names": [name or where for name in images],
            "rows": list(lines),
            "problems": problems,
            "metadata": {name: convert_column(columns[name]) for name in columns if name not in KNOWN_COLUMNS},
        }

    return _MaskedSource(config, files, digests, root).build(describe, columns)


def _read_spacing(text: str, place: str) -> tuple[float, float] | None:
    """Return height and width of a pixel in mm: of ``0.7`` both, of ``0.7x0.8`` one each; None for an empty cell."""
    if text.lower() in MISSING:
        return None
    try:
        sides = [float(part) for part in text.lower().replace("×", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not all(0 < side < float("inf") for side in sides):
        raise DataError(
            f"{place}: found the spacing_mm {text!r}; expected one number above 0, or row × column such as 0.7x0.8"
        )
    return sides[0], sides[-1]


@dataclass(frozen=True)
class _MaskedSource:
    """Files with masks on the way to a source: the part that folders and manifests share."""

    config: MaskFileData
    files: MaskedFiles
    digests: FileDigests
    root: Path

    def build(self, describe: Any, said: Any) -> Source:
        """Return the source: its content is a hash of the digests of all files and of ``said``, the data about them.

        Args:
            describe: returns the columns of the table.
            said: JSON.
        """
        paths = [path.absolute() for path in self.files.paths]
        by_path = dict(zip(paths, self.digests.read(paths, of=f"masked {self.root.absolute()}"), strict=True))
        found = [
            ["" if path is None else by_path[path.absolute()] for path in paths]
            for paths in (self.files.images, self.files.masks, self.files.fov)
        ]
        return Source(hash_json([found, said, self.files.spacing]), lambda: self._read_table(describe(), found))

    def _read_table(self, columns: dict[str, Any], found: list[list[str]]) -> Table:
        config, count = self.config, len(self.files.images)
        values = config.mask_values
        if values is None:
            value = find_foreground([path for path in self.files.masks if path is not None])
            values = {0: BACKGROUND} | ({} if value is None else {value: config.foreground})
        named = [BACKGROUND, config.foreground] if config.mask_values is None else list(dict.fromkeys(values.values()))
        classes = config.classes or order_classes(named, config.label_map)
        index = index_values(values, config.label_map, classes)
        settings = [TARGETS_VERSION, config.window, config.scale, config.frame, sorted(index.items()), classes]
        spec = build_pixel_spec(config)
        images = FilePixels([path.absolute() for path in self.files.images], found[0], spec)
        spacing: dict[str, list[float | None]] = {name: [None] * count for name in ("spacing_row", "spacing_column")}
        row_digests = [hash_json([settings, *digests]) for digests in zip(*found, self.files.spacing, strict=True)]
        pixels = MaskedPixels(self.files, images, row_digests, spec, index, spacing)
        measured = spacing if any(self.files.spacing) else {}
        return Table(
            **columns | {"metadata": columns.get("metadata", {}) | measured},
            pixels=pixels,
            labels=[""] * count,
            conversions=images.conversions,
            classes=classes,
            components=("",),
            annotated={"": tuple(range(len(classes)))},
        )
