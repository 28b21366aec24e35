"""Writing of decoded images into the cache: decoding, checks for copies, fingerprint.

A folder is written under a temporary name and then renamed, so it exists completely or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from trainables.data.assembly import Assignment
from trainables.data.cache import INDEX
from trainables.data.dataset import BadImage, SimilarPair, SimilarPairs
from trainables.data.identity.copies import describe_problems, digest_images, find_copies
from trainables.data.identity.near_duplicates import MAX_IMAGES, MIN_SIDE, find_near_duplicates, shrink_images
from trainables.data.segmentation.targets import check_learnt, count_pixels
from trainables.data.splits import EXTERNAL, SPLITS, check_no_empty_split
from trainables.data.table import Table, describe_row, hash_json, list_first
from trainables.data_config import UnlabelledFolderData
from trainables.errors import DataError, DiskFullError
from trainables.image_data_config import FileData, ImageData
from trainables.segmentation_data_config import SegmentationData
from trainables.storage.completeness import describe_files
from trainables.storage.folder import Folder, explain_failure

#: Increase it when the fingerprint's definition changes: all signatures change with it.
FINGERPRINT_VERSION = 1
_COPY_ROWS = 1024
#: Decoding takes hours at most; an unfinished folder that is older was left by a killed process.
_ABANDONED_SECONDS = 86_400.0
#: Near-duplicates kept for looking at them.
MAX_PAIRS = 1000
#: Entries of a set that are needed while it is written: its rows in the table, digests of its files and of its pixels,
#: thumbnails, areas of classes.
_NOT_INDEXED = ("rows", "digests", "pixels", "thumbnails", "areas")


def write_dataset(folder: Path, table: Table, assignment: Assignment, config: ImageData) -> None:
    """Decode every image of ``table`` into ``folder``, which appears only once it is complete.

    Raises:
        DataError: images are unusable and ``on_bad`` is ``error``; images with the same pixels lie in two sets and
            ``on_leak`` is ``error``, or have two labels; or after quarantine a set is empty, or train lacks a class.
        DiskFullError: the disk has too little room, which is checked before images are decoded.
    """
    _remove_abandoned(folder)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    temporary.mkdir(parents=True)
    try:
        _check_space(temporary, int((assignment.sets != "").sum()), _find_shape(table, config), config)
        sets, problems = _decode_sets(temporary, table, assignment, config)
        bad = [
            BadImage(table.file_names[row], table.rows[row], problem)
            for row, problem in sorted((assignment.problems | problems).items())
        ]
        if bad and config.on_bad == "error":
            raise DataError(_describe_bad(bad))
        copies, leaked = _check_copies(sets, table, assignment, config)
        bad += [BadImage(table.file_names[row], table.rows[row], problem) for row, problem in leaked.items()]
        if bad:
            gone = problems.keys() | leaked.keys()
            kept = np.array([name if row not in gone else "" for row, name in enumerate(assignment.sets)])
            if not isinstance(config, UnlabelledFolderData):
                check_no_empty_split(kept, assignment.labels, assignment.classes_of_images)
            elif not (kept != "").any():
                raise DataError(_describe_bad(bad))
            _check_external(assignment.sets, kept)
        for entry in sets:
            _drop_rows(temporary, entry, leaked)
        if table.components:
            check_learnt(next(entry["areas"] for entry in sets if entry["name"] == "train"), assignment.classes)
        kept_rows = {row for entry in sets for row in entry["rows"]}
        index = {
            "classes": assignment.classes,
            "held_out": assignment.held_out,
            "components": table.components,
            "annotated": table.annotated,
            "fingerprint": _compute_fingerprint(sets, assignment, table, config),
            "quarantined": [[image.file_name, image.row, image.problem] for image in bad],
            "copies": copies,
            "similar": asdict(_find_similar(sets, table, config)),
            "conversions": Counter(how for row, how in sorted(table.conversions.items()) if row in kept_rows),
            "sets": [{key: value for key, value in entry.items() if key not in _NOT_INDEXED} for entry in sets],
            "files": describe_files(Folder(temporary), sorted(path.name for path in temporary.glob("*.npy"))),
        }
        text = json.dumps(index, allow_nan=False)  # on one line: there may be a million images
        Folder(temporary).write(INDEX, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left of their attempts; those of living ones are younger than a day."""
    for other in folder.parent.glob(f"{folder.name}.*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename a finished folder to its place; what is there is damaged, or as good since somebody else was faster."""
    while True:
        try:
            temporary.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        shutil.rmtree(folder, ignore_errors=True)  # processes that have mapped it keep their data


def _find_shape(table: Table, config: ImageData) -> tuple[int, ...]:
    """Return the sides of the stored images: height and width, of volumes depth, height and width."""
    return table.shape or (config.image_size, config.image_size)


def _check_space(folder: Path, num_images: int, shape: tuple[int, ...], config: ImageData) -> None:
    needed = num_images * (config.channels + isinstance(config, SegmentationData)) * math.prod(shape)
    free = shutil.disk_usage(folder).free
    if needed > free:
        what, smaller = f"images of {shape[0]} px", "smaller data.image_size"
        if len(shape) > 2:
            what, smaller = f"volumes of {' × '.join(map(str, shape))} voxels", "coarser data.spacing_mm"
        raise DiskFullError(
            f"{num_images} {what} need {needed / 2**30:.1f} GiB in {folder.parent}, which has {free / 2**30:.1f} GiB "
            f"free: free some, or choose another cache_dir or a {smaller}"
        )


def _decode_sets(
    folder: Path, table: Table, assignment: Assignment, config: ImageData
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Write the arrays of every set; return their index entries (usable rows only) and the problems by row."""
    names = [*SPLITS, *sorted(set(assignment.sets) - {*SPLITS, ""})]
    ids = np.array(table.ids, dtype=object)
    sets: list[dict[str, Any]] = []
    all_problems: dict[int, str] = {}
    for name in names:
        rows = np.flatnonzero(assignment.sets == name)
        if len(rows) == 0:
            continue  # only if there are problems: write_dataset reports them before check_covered
        rows = rows[np.argsort(ids[rows])]
        entry, problems = _decode_set(folder / str(len(sets)), rows, table, config)
        all_problems.update(problems)
        good = np.array([row not in problems for row in rows])
        sets.append({"name": name, **entry, **_describe_rows(table, assignment.labels, rows[good])})
        sets[-1]["digests"] = [digest for digest, keep in zip(entry["digests"], good, strict=True) if keep]
        sets[-1]["rows"] = rows[good].tolist()
        if table.components and good.any():
            areas = count_pixels(np.load(folder / entry["targets"], mmap_mode="r"), len(assignment.classes))
            sets[-1]["areas"] = areas.tolist()
            sets[-1]["metadata"]["foreground_px"] = areas[:, 1:].sum(axis=1).tolist()
    return sets, all_problems


def _decode_set(
    stem: Path, rows: Int64[np.ndarray, " n"], table: Table, config: ImageData
) -> tuple[dict[str, Any], dict[int, str]]:
    shape = _find_shape(table, config)
    kind = "targets" if table.components else "masks"
    images_file, masks_file = f"{stem.name}.npy", f"{stem.name}.{kind}.npy" if table.pixels.has_masks else None
    images = _create(stem.with_name(images_file), (len(rows), config.channels, *shape))
    masks = _create(stem.with_name(masks_file), (len(rows), *shape)) if masks_file else None
    digests, problems = table.pixels.decode(rows, images, masks)
    good = np.array([row not in problems for row in rows])
    hashed = digest_images(images)  # while they are in the page cache
    pixels = [digest for digest, keep in zip(hashed, good, strict=True) if keep]
    is_compared = config.near_duplicates == "report" and len(shape) == 2
    is_compared = is_compared and config.image_size >= MIN_SIDE and len(table.ids) <= MAX_IMAGES
    thumbnails = list(shrink_images(images)[good]) if is_compared else [None] * len(pixels)
    if problems:
        _keep_rows(stem.with_name(images_file), images, good)
        if masks is not None and masks_file is not None:
            _keep_rows(stem.with_name(masks_file), masks, good)
    entry = {"images": images_file, "masks": None, "targets": None, kind: masks_file, "digests": digests}
    return entry | {"pixels": pixels, "thumbnails": thumbnails, "areas": [()] * len(pixels)}, problems


def _check_copies(
    sets: Sequence[dict[str, Any]], table: Table, assignment: Assignment, config: ImageData
) -> tuple[dict[str, int], dict[int, str]]:
    """Return ``Copies.repeats``, and row → reason for images to set aside.

    Raises:
        DataError: copies have different labels, or lie in two sets and ``on_leak`` is ``error``.
    """
    digests = {row: digest for entry in sets for row, digest in zip(entry["rows"], entry["pixels"], strict=True)}
    labels = np.zeros_like(assignment.labels) if assignment.components else assignment.labels
    copies = find_copies(digests, assignment.sets, labels)
    classes = (*assignment.classes, *assignment.held_out)
    problem = describe_problems(copies, table, assignment.sets, labels, classes, config.on_leak)
    if problem is not None:
        raise DataError(problem)
    leaked = {row: f"has a copy with the same pixels in {assignment.sets[kept]}" for row, kept in copies.across}
    return copies.repeats, leaked


def _drop_rows(folder: Path, entry: dict[str, Any], rows: Mapping[int, str]) -> None:
    """Remove table rows from the arrays and lists of a set."""
    good = np.array([row not in rows for row in entry["rows"]])
    if good.all():
        return
    for name in (entry["images"], entry["masks"], entry["targets"]):
        if name is not None:
            _keep_rows(folder / name, np.load(folder / name, mmap_mode="r"), good)
    for key in (*_NOT_INDEXED, "labels", "ids", "groups", "sites"):
        entry[key] = [value for value, keep in zip(entry[key], good, strict=True) if keep]
    entry["metadata"] = {
        key: [value for value, keep in zip(values, good, strict=True) if keep]
        for key, values in entry["metadata"].items()
    }


def _find_similar(sets: Sequence[dict[str, Any]], table: Table, config: ImageData) -> SimilarPairs:
    """Return the pairs of images that look like copies of each other without having the same pixels."""
    places = [(str(entry["name"]), place) for entry in sets for place in range(len(entry["rows"]))]
    if table.shape is not None:
        return SimilarPairs({}, (), unchecked="volumes")
    if config.near_duplicates == "ignore":
        return SimilarPairs({}, (), unchecked="data.near_duplicates: ignore")
    if config.image_size < MIN_SIDE:
        return SimilarPairs({}, (), unchecked=f"images of {config.image_size} px, at least {MIN_SIDE} are needed")
    thumbnails = [thumbnail for entry in sets for thumbnail in entry["thumbnails"]]
    if any(thumbnail is None for thumbnail in thumbnails):
        return SimilarPairs({}, (), unchecked=f"more than {MAX_IMAGES:,} images")
    number_of: dict[bytes, int] = {}
    same = [number_of.setdefault(digest, len(number_of)) for entry in sets for digest in entry["pixels"]]
    found = [
        SimilarPair(places[pair.first], places[pair.second], pair.correlation)
        for pair in find_near_duplicates(np.stack(thumbnails), np.array(same))
    ]
    counts = Counter(" and ".join(sorted({pair.first[0], pair.second[0]})) for pair in found)
    found.sort(key=lambda pair: pair.first[0] == pair.second[0])
    return SimilarPairs(dict(counts), tuple(found[:MAX_PAIRS]))


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    try:
        array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):  # otherwise a disk that fills up kills the process writing the mapping
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise explain_failure(f"could not write {path}", error) from error
    return array


def _keep_rows(path: Path, array: UInt8[np.ndarray, "n ..."], good: np.ndarray) -> None:
    """Rewrite an array's file with the good rows only, in pieces because it may be larger than memory."""
    kept = np.flatnonzero(good)
    if len(kept) == 0:
        return  # write_dataset raises: an empty set is never stored
    part = path.with_suffix(".part")
    target = _create(part, (len(kept), *array.shape[1:]))
    for start in range(0, len(kept), _COPY_ROWS):
        target[start : start + _COPY_ROWS] = array[kept[start : start + _COPY_ROWS]]
    target.flush()
    part.replace(path)


def _describe_rows(table: Table, labels: Int64[np.ndarray, " n"], rows: Int64[np.ndarray, " k"]) -> dict[str, Any]:
    return {
        "labels": labels[rows].tolist(),
        "ids": [table.ids[row] for row in rows],
        "groups": [table.groups[row] for row in rows],
        "sites": [table.sites[row] for row in rows],
        "metadata": {key: [values[row] for row in rows] for key, values in table.metadata.items()},
    }


def _describe_bad(bad: Sequence[BadImage]) -> str:
    lines = [f"{describe_row(image.file_name, image.row)}: {image.problem}" for image in bad]
    return (
        f"{len(bad)} image(s) cannot be used. Correct them, or set data.on_bad: quarantine to go on without them "
        f"(they are then counted in the report):\n  {list_first(lines)}"
    )


def _check_external(before: np.ndarray, after: np.ndarray) -> None:
    emptied = sorted({name for name in set(before) - set(after) if name.startswith(EXTERNAL)})
    if emptied:
        raise DataError(
            f"every image of {', '.join(emptied)} is unusable, so nothing is left of it after quarantine: "
            "correct its images or take it out of the data"
        )


def _compute_fingerprint(
    sets: Sequence[dict[str, Any]], assignment: Assignment, table: Table, config: ImageData
) -> str:
    """Return the sha256 of all rows' identity and content and of the settings that change pixels, without paths."""
    classes = (*assignment.classes, *assignment.held_out)
    labels = assignment.components or classes
    rows = [
        [entry["name"], identifier, labels[label], group, site, digest]
        for entry in sets
        for identifier, label, group, site, digest in zip(
            *(entry[key] for key in ("ids", "labels", "groups", "sites", "digests")), strict=True
        )
    ]
    settings: list[Any] = [FINGERPRINT_VERSION, config.image_size, config.channels, config.resize, list(classes)]
    if isinstance(config, FileData) and (config.window, config.scale, config.frame) != (None, None, None):
        settings.append([config.window, config.scale, config.frame])  # only if set: older fingerprints stay as they are
    if table.shape is not None:
        settings.append(table.shape)
    return hash_json([settings, rows])
