"""Decoded images on disk: one folder per content, memory-mapped by every process of a node.

    <cache_dir>/data/<key>/index.json   labels, ids, groups, sites, metadata of every set, checksums of the arrays
    <cache_dir>/data/<key>/0.npy …      uint8 (n, channels, size, size), of volumes (n, channels, depth, height, width),
                                        one file per set; beside it 0.masks.npy, or 0.targets.npy with the class of
                                        every pixel

``cache_writer`` writes a folder. Later damage is detected as in the ledger (``trainables/storage/completeness.py``).
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from trainables.data.dataset import BadImage, Dataset, ImageSet, SimilarPair, SimilarPairs
from trainables.data.splits import EXTERNAL, HELD_OUT, SPLITS
from trainables.errors import StorageError
from trainables.storage.completeness import find_change
from trainables.storage.folder import Folder

#: Increase it when decoding or the layout of a folder changes.
CACHE_VERSION = 6
INDEX = "index.json"

_LOG = logging.getLogger(__name__)


def find_dataset(folder: Path, name: str, modality: str, *, every_byte: bool = False) -> Dataset | None:
    """Return the data set in ``folder``, None if it is missing or damaged and has to be built again.

    Args:
        folder: folder of ``write_dataset``.
        name: name of the data set.
        modality: see ``Dataset.modality``.
        every_byte: whether to compare the content of all files, not only their sizes and times.
    """
    if not (folder / INDEX).exists():
        return None
    try:
        return read_dataset(folder, name, modality, every_byte=every_byte)
    except StorageError as error:
        _LOG.warning("%s", error)
        return None


def read_dataset(folder: Path, name: str, modality: str, *, every_byte: bool = False) -> Dataset:
    """Return the data set in a folder that ``write_dataset`` created; images are mapped, not read.

    See ``find_dataset`` for the arguments.

    Raises:
        StorageError: the folder is damaged.
    """
    try:
        index = _read_index(folder, every_byte)
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
        ood={images.name: _without_labels(images, index) for images in sets if images.name == HELD_OUT},
        quarantined=tuple(BadImage(*entry) for entry in index["quarantined"]),
        copies=index["copies"],
        similar=_read_similar(index["similar"]),
        conversions=index["conversions"],
        modality=modality,
        components=tuple(each or name for each in index["components"]),
        annotated={each or name: tuple(classes) for each, classes in index["annotated"].items()},
    )


def _without_labels(images: ImageSet, index: dict[str, Any]) -> ImageSet:
    """Return the images of held-out classes, their class as metadata."""
    names = [index["held_out"][label - len(index["classes"])] for label in images.labels]
    return replace(images, labels=np.full(len(names), -1), metadata=images.metadata | {"class": names})


def _read_index(folder: Path, every_byte: bool) -> dict[str, Any]:
    seal, _, text = Folder(folder).read(INDEX).partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != seal:
        raise StorageError(f"{folder / INDEX} is damaged or was changed by hand")
    index: dict[str, Any] = json.loads(text)
    damage = find_change(Folder(folder), index["files"], since=INDEX, every_byte=every_byte)
    if damage is not None:
        raise StorageError(damage)
    return index


def _read_similar(stored: dict[str, Any]) -> SimilarPairs:
    pairs = (SimilarPair(tuple(pair["first"]), tuple(pair["second"]), pair["correlation"]) for pair in stored["pairs"])
    return SimilarPairs(stored["counts"], tuple(pairs), stored["unchecked"])


def _read_set(folder: Path, entry: dict[str, Any]) -> ImageSet:
    return ImageSet(
        name=entry["name"],
        images=np.load(folder / entry["images"], mmap_mode="r", allow_pickle=False),
        labels=np.array(entry["labels"], dtype=np.int64),
        ids=np.array(entry["ids"], dtype=str),
        groups=np.array(entry["groups"], dtype=str),
        sites=np.array(entry["sites"], dtype=str),
        metadata=entry["metadata"],
        masks=_map(folder, entry["masks"]),
        targets=_map(folder, entry["targets"]),
    )


def _map(folder: Path, name: str | None) -> UInt8[np.ndarray, "n *space"] | None:
    return None if name is None else np.load(folder / name, mmap_mode="r", allow_pickle=False)
