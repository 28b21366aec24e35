"""Inspection of somebody's images: which kind of source they are, what is in them, and what to know about them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainables.data.dataset import Dataset
from trainables.data.describe import describe_dataset, has_groups
from trainables.errors import DataError

#: Number of files whose sizes are read to choose ``data.image_size``.
_LOOK_AT = 50
#: Sides in px to choose from; the largest that the images have, up to what the machine can train on.
_SIDES = (28, 32, 64, 96, 128, 224)
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class FoundData:
    """The section ``data`` of a study for some images, with one comment for each of its keys that needs one."""

    settings: dict[str, Any]
    comments: dict[str, str]
    #: What is in the data, one line each, for the head of the study file.
    facts: tuple[str, ...]
    num_train: int
    has_imbalance: bool


def find_source(path: Path, *, max_side: int) -> dict[str, Any]:
    """Return kind, path, side and channels of the images at ``path``: a manifest, a folder of images, or an npz.

    Args:
        path: what the user names.
        max_side: largest side in px that this machine can train on in reasonable time.

    Raises:
        DataError: nothing is there, or it is none of the three.
    """
    if path.is_dir():
        if any((each / "masks").is_dir() and (each / "images").is_dir() for each in (path, path / "train")):
            raise DataError(
                f"--from: found folders of images and masks in {path}; expected images in a folder per class. init "
                "writes no studies of segmentations: begin with configs/retina_vessels.yaml (robustsweep examples)"
            )
        sides, channels = _look_at_files(_walk(path), path)
        return {"kind": "image_folder", "path": str(path), "image_size": _choose(sides, max_side), "channels": channels}
    if not path.exists():
        raise DataError(f"--from: there is nothing at {path}; expected a CSV manifest, a folder of images or an npz")
    match path.suffix.lower():
        case ".npz":
            side, channels = _look_at_npz(path)
            kept = {"image_size": min(side, max_side)} if side > max_side else {"image_size": side}
            return {"kind": "medmnist", "flag": path.stem, "path": str(path), **kept, "channels": channels}
        case ".csv":
            sides, channels = _look_at_files(_read_manifest(path), path)
            return {"kind": "csv", "path": str(path), "image_size": _choose(sides, max_side), "channels": channels}
    raise DataError(
        f"--from: found {path}, expected a CSV manifest (.csv), a folder of images, or an npz of MedMNIST's form (.npz)"
    )


def describe_found(settings: dict[str, Any], data: Dataset) -> FoundData:
    """Return the section ``data`` with what a look at the loaded images adds: groups, sites, copies, imbalance.

    Args:
        settings: of ``find_source``, with ``on_leak: quarantine``.
        data: the data set that was loaded with them.
    """
    settings, comments = dict(settings), {}
    if data.quarantined:
        number = len(data.quarantined)
        images = "1 training image repeats an image" if number == 1 else f"{number} training images repeat images"
        comments["on_leak"] = f"{images} of another set: set aside, and counted in the report"
    else:
        del settings["on_leak"]
    if not has_groups(data):
        comments["path"] = {
            "csv": "a column group (the patient) keeps images of one patient in one set; there is none",
            "image_folder": "add group_pattern: '(p\\d+)_' (a patient in each path) or group_file: else images of one "
            "patient may lie in several sets",
        }.get(settings["kind"], "every image counts as a patient of its own")
    train = data.splits["train"]
    counts = np.bincount(train.labels, minlength=data.num_classes)
    sites = sorted({str(site) for images in data.splits.values() for site in set(images.sites.tolist())} - {""})
    if len(sites) > 1 and not data.external:
        comments["image_size"] = (
            f"sites: {', '.join(sites[:6])}; external_sites: [{sites[0]}] would keep one for the end"
        )
    facts = tuple(f"{label}: {line}" for label, line in describe_dataset(data).items())
    return FoundData(settings, comments, facts, len(train), bool(counts.max() > 2 * max(counts.min(), 1)))


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SUFFIXES and path.is_file():
            yield path


def _read_manifest(path: Path) -> Iterator[Path]:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        columns = set(reader.fieldnames or ())
        if not {"file_name", "label"} <= columns:
            raise DataError(
                f"--from: {path} has the columns {', '.join(sorted(columns)) or 'none'}; expected file_name and label, "
                "optionally id, split, group and site: rename them"
            )
        for row in reader:
            yield path.parent / row["file_name"]


def _look_at_files(files: Iterator[Path], where: Path) -> tuple[list[int], int]:
    """Return the short sides in px of some images, and 1 channel if all of them are grey, else 3."""
    from PIL import Image, UnidentifiedImageError

    some = [path for path in files if path.suffix.lower() in _SUFFIXES]
    if not some:
        raise DataError(f"--from: found no image in {where}; expected files such as {', '.join(sorted(_SUFFIXES))}")
    step = max(len(some) // _LOOK_AT, 1)
    sides, modes = [], Counter[str]()
    for path in some[::step]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
                modes[image.mode] += 1
        except (OSError, UnidentifiedImageError):
            continue  # the data check names every unusable file
    if not sides:
        raise DataError(f"--from: none of the images in {where} that were looked at can be read, such as {some[0]}")
    return sides, 1 if set(modes) <= {"L", "1", "I;16", "I", "F"} else 3


def _look_at_npz(path: Path) -> tuple[int, int]:
    """Return side in px and channels of the images of an npz in MedMNIST's form."""
    with np.load(path, mmap_mode=None, allow_pickle=False) as arrays:
        if "train_images" not in arrays:
            raise DataError(f"--from: {path} has {', '.join(arrays)}; expected MedMNIST's arrays, such as train_images")
        shape = arrays["train_images"].shape
    return int(min(shape[1:3])), 3 if len(shape) == 4 and shape[3] == 3 else 1


def _choose(sides: list[int], max_side: int) -> int:
    median = int(np.median(sides))
    return max((side for side in _SIDES if side <= min(median, max_side)), default=_SIDES[0])
