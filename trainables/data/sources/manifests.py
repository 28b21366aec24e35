"""Sources whose images are files: a CSV manifest, and class folders."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trainables.data.assembly import suggest
from trainables.data.decoding.dicom import is_dicom
from trainables.data.decoding.files import IMAGE_SUFFIXES, FilePixels
from trainables.data.decoding.pixels import build_pixel_spec
from trainables.data.identity.file_digests import FileDigests
from trainables.data.identity.texts import check_similar
from trainables.data.sources.csv_file import read_csv
from trainables.data.sources.image_groups import find_groups, find_patients
from trainables.data.sources.layout import parse_split, read_places
from trainables.data.splits import EXTERNAL, SPLITS, check_unique
from trainables.data.table import Source, Table, hash_json, list_first
from trainables.data_config import CsvData, ImageFolderData, UnlabelledFolderData
from trainables.errors import DataError
from trainables.image_data_config import ImageData

REQUIRED_COLUMNS = ("file_name", "label")
OPTIONAL_COLUMNS = ("id", "split", "group", "site", "mask")
#: Missing values as pandas and spreadsheets write them, in lower case; "none" and "NA" may be a class.
MISSING = {"", "nan", "<na>", "#n/a"}
#: Files and folders that file managers and archives leave in folders.
IGNORED_FILES = {"thumbs.db", "desktop.ini", "__macosx", "dicomdir"}


def build_csv_source(config: CsvData, digests: FileDigests) -> Source:
    """Return the source of a manifest.

    Raises:
        DataError: the manifest cannot be read, lacks a column, points outside its root, repeats a file, or has an
            unknown split.
    """
    columns, lines = read_csv(config.path, key="data.path", required=REQUIRED_COLUMNS, optional=OPTIONAL_COLUMNS)
    root = config.root or config.path.parent
    where = config.path.name
    files = check_file_names(columns["file_name"], lines, where)
    places = [f"line {line}" for line in lines]
    known = [(name, place) for name, place in zip(files, places, strict=True) if name]
    check_unique([name for name, _ in known], [place for _, place in known], what="file_name")
    problems = find_missing(columns, lines, where, config.outer_sites)
    columns["split"] = read_splits(columns.get("split", [""] * len(files)), lines, where)
    if config.similar_text == "error" and "group" in columns:
        check_similar(columns["group"], what="group", advice="set data.similar_text: distinct if they do differ")
    paths = [find_path(root, name) for name in files]
    ids = columns.get("id", files)

    def build_table(pixels: FilePixels) -> Table:
        return Table(
            pixels=pixels,
            ids=ids,
            labels=columns["label"],
            splits=columns["split"],
            groups=columns.get("group") or find_patients(ids, paths, similar_text=config.similar_text),
            sites=["" if site.lower() in MISSING else site for site in columns.get("site", [""] * len(files))],
            file_names=[name or where for name in files],
            rows=list(lines),
            metadata={
                name: convert_column(values)
                for name, values in columns.items()
                if name not in REQUIRED_COLUMNS + OPTIONAL_COLUMNS
            },
            problems=problems,
            conversions=pixels.conversions,
            classes=config.classes,
        )

    # Masks have a digest of their own (``lesion_masks``): images that gain one are decoded, and named, as before.
    said = {name: values for name, values in columns.items() if name != "mask"}
    return _build_file_source(config, paths, digests, root, build_table, said=said)


@dataclass(frozen=True)
class MaskFile:
    """Lesion mask of an image in a manifest."""

    #: As the manifest names it.
    name: str
    #: None for an image without a mask.
    path: Path | None
    image_path: Path
    line: int


def read_mask_files(config: CsvData) -> dict[str, MaskFile] | None:
    """Return id of every image → its lesion mask, None if the manifest has no column ``mask``. No mask is opened.

    Raises:
        DataError: the manifest cannot be read, or names a mask outside its root.
    """
    columns, lines = read_csv(config.path, key="data.path", required=REQUIRED_COLUMNS, optional=OPTIONAL_COLUMNS)
    if "mask" not in columns:
        return None
    root, where = config.root or config.path.parent, config.path.name
    files = check_file_names(columns["file_name"], lines, where)
    masks = check_file_names(columns["mask"], lines, where, column="mask")
    ids = columns.get("id", files)
    return {
        identifier: MaskFile(mask, find_path(root, mask) if mask else None, find_path(root, file), line)
        for identifier, mask, file, line in zip(ids, masks, files, lines, strict=True)
    }


def _build_file_source(
    config: ImageData,
    paths: Sequence[Path],
    digests: FileDigests,
    root: Path,
    build_table: Callable[[FilePixels], Table],
    *,
    said: Any,
) -> Source:
    """Return a source whose content is a hash of the digests of all files and of ``said``, the data about them."""
    absolute = [path.absolute() for path in paths]
    found = digests.read(absolute, of=str(root.absolute()))
    pixels = FilePixels(absolute, found, build_pixel_spec(config))
    return Source(hash_json([found, said]), lambda: build_table(pixels))


def check_file_names(names: Sequence[str], lines: Sequence[int], where: str, *, column: str = "file_name") -> list[str]:
    """Return the names in normal form, "" if missing; a path outside the root raises DataError for any ``on_bad``."""
    escaping = []
    for name, line in zip(names, lines, strict=True):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or name[1:2] == ":":
            escaping.append(f"{where} line {line}: {name!r}")
    if escaping:
        raise DataError(
            f"{len(escaping)} {column}(s) point outside the root; expected paths relative to data.root without '..' "
            f"(set data.root to the folder that holds all images):\n  {list_first(escaping)}"
        )
    return ["" if name.lower() in MISSING else str(PurePosixPath(name.replace("\\", "/"))) for name in names]


def find_path(root: Path, name: str) -> Path:
    """Return the path of a file, also where its name is on disk in Unicode's decomposed form."""
    path = root / name
    if name.isascii() or path.exists():
        return path
    decomposed = root / unicodedata.normalize("NFD", name)
    return decomposed if decomposed.exists() else path


def find_missing(
    columns: dict[str, list[str]],
    lines: Sequence[int],
    where: str,
    external_sites: Sequence[str],
    *,
    required: Sequence[str] = REQUIRED_COLUMNS,
) -> dict[int, str]:
    """Return row → problem for rows with an empty cell in a column that needs a value.

    A site may be unknown; images of an external site need no split.
    """
    needed = [name for name in (*required, "id", "split", "group") if name in columns]
    sites = columns.get("site", [""] * len(lines))
    problems: dict[int, str] = {}
    for row, line in enumerate(lines):
        empty = [name for name in needed if columns[name][row].lower() in MISSING]
        if empty == ["split"] and sites[row] in external_sites:
            continue
        if empty:
            problems[row] = f"has no value (or NaN) for {', '.join(empty)} in {where} line {line}, expected one"
    return problems


def read_splits(splits: Sequence[str], lines: Sequence[int], where: str) -> list[str]:
    """Return the column split with train, val and test for their usual names in any case, "" where it is missing."""
    known = [
        "" if split.lower() in MISSING else split if split.startswith(EXTERNAL) else parse_split(split) or split
        for split in splits
    ]
    wrong = [
        f"{where} line {line}: {split!r}{suggest(split.lower(), SPLITS)}"
        for split, line in zip(known, lines, strict=True)
        if split and split not in SPLITS and not split.startswith(EXTERNAL)
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} value(s) of the column split are unknown; expected {', '.join(SPLITS)} or "
            f"{EXTERNAL}<name>:\n  {list_first(wrong)}"
        )
    return known


def convert_column(values: Sequence[str]) -> list[Any]:
    """Return a metadata column as integers or floats if all values are, otherwise as text; None for a missing value."""
    present = [value for value in values if value.lower() not in MISSING]
    for kind in (int, float):
        try:
            numbers = [kind(value) for value in present]
        except ValueError:
            continue
        if all(abs(number) < float("inf") for number in numbers):
            return [None if value.lower() in MISSING else kind(value) for value in values]
    return [None if value.lower() in MISSING else value for value in values]


def build_image_folder_source(config: ImageFolderData, digests: FileDigests) -> Source:
    """Return the source of ``{train,val,test,external/<name>}/<class>/*`` or ``<class>/*`` (``layout.read_places``).

    Every image is its own group unless ``data.group_pattern``, ``data.group_file`` or a DICOM file names the patient.

    Raises:
        DataError: the folder is missing, or a file or folder lies where none is expected.
    """
    files = list_folder(config.path, "one with a folder per split or class")
    places = read_places(files, layout=config.layout, folder=str(config.path))
    splits, labels = [split for split, _ in places], [label for _, label in places]
    groups = find_groups(config, files)
    paths = [config.path / name for name in files]
    problems = find_unknown_formats(paths)

    def build_table(pixels: FilePixels) -> Table:
        return Table(
            pixels=pixels,
            ids=files,
            labels=labels,
            splits=splits,
            groups=find_patients(files, paths, similar_text=config.similar_text) if groups is None else groups,
            sites=[split.removeprefix(EXTERNAL) if split.startswith(EXTERNAL) else "" for split in splits],
            file_names=files,
            rows=[None] * len(files),
            problems=problems,
            conversions=pixels.conversions,
            classes=config.classes,
        )

    said = files if config.group_file is None else [files, groups]
    return _build_file_source(config, paths, digests, config.path, build_table, said=said)


def build_unlabelled_folder_source(config: UnlabelledFolderData, digests: FileDigests) -> Source:
    """Return the source of all images below a folder.

    Raises:
        DataError: the folder is missing, or ``group_pattern`` finds no group in a path.
    """
    files = list_folder(config.path, "one with images")
    groups = find_groups(config, files)
    paths = [config.path / name for name in files]

    def build_table(pixels: FilePixels) -> Table:
        return Table(
            pixels=pixels,
            ids=files,
            labels=[""] * len(files),
            splits=["train"] * len(files),
            groups=find_patients(files, paths, similar_text=config.similar_text) if groups is None else groups,
            sites=[""] * len(files),
            file_names=files,
            rows=[None] * len(files),
            problems=find_unknown_formats(paths),
            conversions=pixels.conversions,
        )

    return _build_file_source(config, paths, digests, config.path, build_table, said=files)


def list_folder(folder: Path, expected: str) -> list[str]:
    """Return the paths of all files below a folder, sorted.

    Raises:
        DataError: it is missing, or cannot be listed; the message says what is ``expected``.
    """
    if not os.path.isdir(folder):
        raise DataError(f"data.path: there is no folder {folder}; expected {expected}")
    try:
        return sorted(_list_files(folder))
    except OSError as error:
        raise DataError(f"data.path: could not list the images in {folder}: {error}") from error


def find_unknown_formats(paths: Sequence[Path]) -> dict[int, str]:
    """Return row → problem of the files that are no images by their suffix and their first bytes."""
    return {
        row: f"is not of a known image format; expected DICOM or one of {' '.join(sorted(IMAGE_SUFFIXES))}"
        for row, path in enumerate(paths)
        if path.suffix.lower() not in IMAGE_SUFFIXES and not is_dicom(path, IMAGE_SUFFIXES)
    }


def _list_files(folder: Path, prefix: str = "", above: tuple[str, ...] = ()) -> list[str]:
    """Return the paths of all files below ``folder``, with forward slashes; hidden files and litter are left out.

    Args:
        folder: folder to list.
        prefix: path of ``folder`` below the first one, with a trailing slash; "" for the first one.
        above: real paths of the folders that contain ``folder``.
    """
    here = os.path.realpath(folder)
    if here in above:
        raise DataError(f"data.path: {folder} is a link to a folder that it lies in: remove it")
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in IGNORED_FILES:
                continue
            if entry.name.encode(errors="ignore") != os.fsencode(entry.name):
                raise DataError(f"data.path: {entry.path!a} has a name that is no text in UTF-8: rename it")
            if entry.is_dir():
                found += _list_files(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
            else:
                found.append(prefix + entry.name)
    return found
