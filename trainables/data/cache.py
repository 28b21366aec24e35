"""Decoded images on disk: one folder per content, memory-mapped by every process of a node.

    <cache_dir>/data/<key>/index.json   labels, ids, groups, sites, metadata of every set, checksums of the arrays
    <cache_dir>/data/<key>/0.npy …      uint8 (n, channels, size, size), one file per set; 0.masks.npy beside it

A folder is written under a temporary name and then renamed, so it exists completely or not at all. Later damage is
detected as in the ledger (``trainables/storage/completeness.py``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from trainables.config import ImageData
from trainables.data.assembly import Assignment
from trainables.data.copies import describe_problems, digest_images, find_copies
from trainables.data.dataset import BadImage, Dataset, ImageSet
from trainables.data.decoding import map_threads
from trainables.data.splits import EXTERNAL, SPLITS, check_no_empty_split
from trainables.data.table import Table, describe_row, hash_json, list_first
from trainables.errors import DataError, DiskFullError, StorageError
from trainables.storage.completeness import describe_files, find_change
from trainables.storage.folder import Folder, explain_failure

#: Increase it when decoding or the layout of a folder changes.
CACHE_VERSION = 3
INDEX = "index.json"

_LOG = logging.getLogger(__name__)
#: Increase it when the fingerprint's definition changes: all signatures change with it.
FINGERPRINT_VERSION = 1
_COPY_ROWS = 1024
#: Entries of a set that are needed while it is written: its rows in the table, digests of its files and of its pixels.
_NOT_INDEXED = ("rows", "digests", "pixels")


def digest_files(paths: Sequence[Path], *, memory: Path) -> list[str]:
    """Return the sha256 of every file, "" for a file that cannot be read.

    A file whose stamp (``_read_stamp``) equals the one stored in the JSON file ``memory`` is not read again.
    """
    known = _read_memory(memory)
    stamps = [_read_stamp(path) for path in paths]
    entries = {
        str(path): known[str(path)]
        for path, stamp in zip(paths, stamps, strict=True)
        if stamp and known.get(str(path), [None])[:-1] == stamp
    }
    changed = [(path, stamp) for path, stamp in zip(paths, stamps, strict=True) if stamp and str(path) not in entries]
    digests = map_threads(lambda item: _digest_file(item[0]), changed)
    fresh = {str(path): [*stamp, digest] for (path, stamp), digest in zip(changed, digests, strict=True) if digest}
    if fresh:
        Folder(memory.parent).write(memory.name, json.dumps(known | fresh).encode())
    entries |= fresh
    return [entries[str(path)][-1] if str(path) in entries else "" for path in paths]


def _read_memory(memory: Path) -> dict[str, list[Any]]:
    try:
        return json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):  # missing or damaged: all files are read again
        return {}


def _read_stamp(path: Path) -> list[int] | None:
    """Return size (bytes), modification and change time (ns) and inode, None if it is no readable file.

    Archives and tools for data versions set modification times, so that two swapped files can have the same. The kernel
    sets the change time, and a renamed file keeps its inode. Decoding reports unreadable files.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    if not S_ISREG(stat.st_mode):
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _digest_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # decoding reports the file
        return ""


def write_dataset(folder: Path, table: Table, assignment: Assignment, config: ImageData) -> None:
    """Decode every image of ``table`` into ``folder``, which appears only once it is complete.

    Raises:
        DataError: images are unusable and ``on_bad`` is ``error``; images with the same pixels lie in two sets and
            ``on_leak`` is ``error``, or have two labels; or after quarantine a set is empty, or train lacks a class.
        DiskFullError: the disk has too little room, which is checked before images are decoded.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process; safe, since the caller holds the lock
    temporary.mkdir(parents=True)
    try:
        _check_space(temporary, int((assignment.sets != "").sum()), config)
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
            check_no_empty_split(kept, assignment.labels, assignment.classes)
            _check_external(assignment.sets, kept)
        for entry in sets:
            _drop_rows(temporary, entry, leaked)
        index = {
            "classes": assignment.classes,
            "fingerprint": _compute_fingerprint(sets, assignment.classes, config),
            "quarantined": [[image.file_name, image.row, image.problem] for image in bad],
            "copies": copies,
            "sets": [{key: value for key, value in entry.items() if key not in _NOT_INDEXED} for entry in sets],
            "files": describe_files(Folder(temporary), sorted(path.name for path in temporary.glob("*.npy"))),
        }
        text = json.dumps(index, allow_nan=False)  # on one line: there may be a million images
        Folder(temporary).write(INDEX, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
        shutil.rmtree(folder, ignore_errors=True)  # damaged; processes that have mapped it keep their data
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_space(folder: Path, num_images: int, config: ImageData) -> None:
    needed = num_images * config.channels * config.image_size**2
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{num_images} images of {config.image_size} px need {needed / 2**30:.1f} GiB in {folder.parent}, which "
            f"has {free / 2**30:.1f} GiB free: free some, or choose another cache_dir or a smaller data.image_size"
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
    return sets, all_problems


def _decode_set(
    stem: Path, rows: Int64[np.ndarray, " n"], table: Table, config: ImageData
) -> tuple[dict[str, Any], dict[int, str]]:
    size = config.image_size
    images_file, masks_file = f"{stem.name}.npy", f"{stem.name}.masks.npy" if table.pixels.has_masks else None
    images = _create(stem.with_name(images_file), (len(rows), config.channels, size, size))
    masks = _create(stem.with_name(masks_file), (len(rows), size, size)) if masks_file else None
    digests, problems = table.pixels.decode(rows, images, masks)
    good = np.array([row not in problems for row in rows])
    hashed = digest_images(images)  # while they are in the page cache
    pixels = [digest for digest, keep in zip(hashed, good, strict=True) if keep]
    if problems:
        _keep_rows(stem.with_name(images_file), images, good)
        if masks is not None and masks_file is not None:
            _keep_rows(stem.with_name(masks_file), masks, good)
    return {"images": images_file, "masks": masks_file, "digests": digests, "pixels": pixels}, problems


def _check_copies(
    sets: Sequence[dict[str, Any]], table: Table, assignment: Assignment, config: ImageData
) -> tuple[dict[str, int], dict[int, str]]:
    """Return ``Copies.repeats``, and row → reason for images to set aside.

    Raises:
        DataError: copies have different labels, or lie in two sets and ``on_leak`` is ``error``.
    """
    digests = {row: digest for entry in sets for row, digest in zip(entry["rows"], entry["pixels"], strict=True)}
    copies = find_copies(digests, assignment.sets, assignment.labels)
    problem = describe_problems(copies, table, assignment.sets, assignment.labels, assignment.classes, config.on_leak)
    if problem is not None:
        raise DataError(problem)
    leaked = {row: f"has a copy with the same pixels in {assignment.sets[kept]}" for row, kept in copies.across}
    return copies.repeats, leaked


def _drop_rows(folder: Path, entry: dict[str, Any], rows: Mapping[int, str]) -> None:
    """Remove table rows from the arrays and lists of a set."""
    good = np.array([row not in rows for row in entry["rows"]])
    if good.all():
        return
    for name in (entry["images"], entry["masks"]):
        if name is not None:
            _keep_rows(folder / name, np.load(folder / name, mmap_mode="r"), good)
    for key in ("rows", "digests", "pixels", "labels", "ids", "groups", "sites"):
        entry[key] = [value for value, keep in zip(entry[key], good, strict=True) if keep]
    entry["metadata"] = {
        key: [value for value, keep in zip(values, good, strict=True) if keep]
        for key, values in entry["metadata"].items()
    }


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


def _compute_fingerprint(sets: Sequence[dict[str, Any]], classes: Sequence[str], config: ImageData) -> str:
    """Return the sha256 of all rows' identity and content and of the settings that change pixels, without paths."""
    rows = [
        [entry["name"], identifier, classes[label], group, site, digest]
        for entry in sets
        for identifier, label, group, site, digest in zip(
            *(entry[key] for key in ("ids", "labels", "groups", "sites", "digests")), strict=True
        )
    ]
    settings = [FINGERPRINT_VERSION, config.image_size, config.channels, config.resize, list(classes)]
    return hash_json([settings, rows])


def find_dataset(folder: Path, *, name: str, modality: str) -> Dataset | None:
    """Return the data set in ``folder``, None if it is missing or damaged and has to be built again."""
    if not (folder / INDEX).exists():
        return None
    try:
        return read_dataset(folder, name=name, modality=modality)
    except StorageError as error:
        _LOG.warning("%s", error)
        return None


def read_dataset(folder: Path, *, name: str, modality: str) -> Dataset:
    """Return the data set in a folder that ``write_dataset`` created; images are mapped, not read.

    Raises:
        StorageError: the folder is damaged.
    """
    try:
        index = _read_index(folder)
        sets = [_read_set(folder, entry) for entry in index["sets"]]
    except (OSError, ValueError, StorageError) as error:
        raise StorageError(
            f"could not map the decoded images in {folder} ({error}); expected the files written there earlier; "
            "they are made anew"
        ) from error
    return Dataset(
        name=name,
        classes=tuple(index["classes"]),
        fingerprint=index["fingerprint"],
        splits={images.name: images for images in sets if images.name in SPLITS},
        external={
            short: replace(images, name=short)
            for images in sets
            if (short := images.name.removeprefix(EXTERNAL)) != images.name
        },
        quarantined=tuple(BadImage(*entry) for entry in index["quarantined"]),
        copies=index["copies"],
        modality=modality,
    )


def _read_index(folder: Path) -> dict[str, Any]:
    seal, _, text = Folder(folder).read(INDEX).partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != seal:
        raise StorageError(f"{folder / INDEX} is damaged or was changed by hand")
    index: dict[str, Any] = json.loads(text)
    damage = find_change(Folder(folder), index["files"], since=INDEX)
    if damage is not None:
        raise StorageError(damage)
    return index


def _read_set(folder: Path, entry: dict[str, Any]) -> ImageSet:
    return ImageSet(
        name=entry["name"],
        images=np.load(folder / entry["images"], mmap_mode="r", allow_pickle=False),
        labels=np.array(entry["labels"], dtype=np.int64),
        ids=np.array(entry["ids"], dtype=str),
        groups=np.array(entry["groups"], dtype=str),
        sites=np.array(entry["sites"], dtype=str),
        metadata=entry["metadata"],
        masks=np.load(folder / entry["masks"], mmap_mode="r", allow_pickle=False) if entry["masks"] else None,
    )
