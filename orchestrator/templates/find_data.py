"""Inspection of somebody's images: which kind of source they are, what is in them, and what to know about them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.templates.find_masks import SUFFIXES, find_mask_folders, find_mask_values
from trainables.data.dataset import Dataset
from trainables.data.describe import describe_dataset, has_groups
from trainables.errors import DataError

#: Number of files whose sizes are read to choose ``data.image_size``.
_LOOK_AT = 50
#: Sides in px to choose from; the largest that the images have, up to what the machine can train on.
_SIDES = (28, 32, 64, 96, 128, 224, 256, 384, 512)


@dataclass(frozen=True)
class FoundData:
    """The section ``data`` of a study for some images, with one comment for each of its keys that needs one."""

    settings: dict[str, Any]
    comments: dict[str, str]
    #: What is in the data, one line each, for the head of the study file.
    facts: tuple[str, ...]
    num_train: int
    has_imbalance: bool
    #: Whether pixels have classes, and not images.
    has_masks: bool


@dataclass(frozen=True)
class MaxSide:
    """Largest sides in px that a machine can train on in reasonable time."""

    of_images: int
    of_masks: int


def find_source(path: Path, *, max_side: MaxSide, root: str | None = None) -> dict[str, Any]:
    """Return kind, path, side and channels of the images at ``path``: a manifest, a folder of images, or an npz.

    A folder, or a manifest, may hold masks beside the images.

    Args:
        path: what the user names.
        max_side: largest side in px.
        root: folder that the files of a manifest are relative to; None: the manifest's own.

    Raises:
        DataError: nothing is there, or it is none of the three.
    """
    if path.is_dir():
        masked = find_mask_folders(path)
        if masked is not None:
            roles = [masked.get("image_folder", "images"), masked.get("mask_folder", "masks")]
            images, masks = ([each for each in _walk(path) if name in each.relative_to(path).parts] for name in roles)
            return masked | {"path": str(path)} | _describe_masked(images, masks, path, max_side)
        sides, channels = _look_at_files(_walk(path), path)
        size = _choose(sides, max_side.of_images)
        return {"kind": "image_folder", "path": str(path), "image_size": size, "channels": channels}
    if not path.exists():
        raise DataError(f"--from: there is nothing at {path}; expected a CSV manifest, a folder of images or an npz")
    match path.suffix.lower():
        case ".npz":
            side, channels = _look_at_npz(path)
            size = min(side, max_side.of_images)
            return {"kind": "medmnist", "flag": path.stem, "path": str(path), "image_size": size, "channels": channels}
        case ".csv":
            images, masks = _read_manifest(path, path.parent if root is None else Path(root))
            if masks:
                described = _describe_masked(images, masks, path, max_side)
                return {"kind": "image_mask_csv", "path": str(path)} | described
            sides, channels = _look_at_files(images, path)
            size = _choose(sides, max_side.of_images)
            return {"kind": "csv", "path": str(path), "image_size": size, "channels": channels}
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
            "image_mask_csv": "a column group (the patient) keeps images of one patient in one set; there is none",
            "image_folder": "add group_pattern: '(p\\d+)_' (a patient in each path) or group_file: else images of one "
            "patient may lie in several sets",
            "image_mask_folder": "add group_pattern: '(p\\d+)_' (a patient in each path): else images of one patient "
            "may lie in several sets",
        }.get(settings["kind"], "every image counts as a patient of its own")
    train = data.splits["train"]
    if "resize" in settings:
        comments["resize"] = "black borders, which no metric counts; crop would cut structures off"
    if "mask_values" in settings:
        comments["mask_values"] = "name the classes"
    counts = np.bincount(train.labels, minlength=data.num_classes)
    sites = sorted({str(site) for images in data.splits.values() for site in set(images.sites.tolist())} - {""})
    if len(sites) > 1 and not data.external:
        comments["image_size"] = (
            f"sites: {', '.join(sites[:6])}; external_sites: [{sites[0]}] would keep one for the end"
        )
    facts = tuple(f"{label}: {line}" for label, line in describe_dataset(data).items())
    return FoundData(
        settings,
        comments,
        facts,
        len(train),
        has_imbalance=not data.components and bool(counts.max() > 2 * max(counts.min(), 1)),
        has_masks=bool(data.components),
    )


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _read_manifest(path: Path, root: Path) -> tuple[list[Path], list[Path]]:
    """Return the images of a manifest, and their masks if it has such a column."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        columns = set(reader.fieldnames or ())
        if "file_name" not in columns or not columns & {"label", "mask"}:
            raise DataError(
                f"--from: {path} has the columns {', '.join(sorted(columns)) or 'none'}; expected file_name and label, "
                "or file_name and mask, optionally id, split, group and site: rename them"
            )
        rows = list(reader)
    images = [root / row["file_name"] for row in rows]
    return images, [root / row["mask"] for row in rows] if "mask" in columns else []


def _describe_masked(images: list[Path], masks: list[Path], where: Path, max_side: MaxSide) -> dict[str, Any]:
    """Return side and channels of images with masks, and the classes of the masks if they have several."""
    sides, channels = _look_at_files(images, where)
    values = find_mask_values(masks)
    size = {"image_size": _choose(sides, max_side.of_masks), "channels": channels, "resize": "pad"}
    return size | ({} if values is None else {"mask_values": values})


def _look_at_files(files: Iterable[Path], where: Path) -> tuple[list[int], int]:
    """Return the short sides in px of some images, and 1 channel if all of them are grey, else 3."""
    from PIL import Image, UnidentifiedImageError

    some = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not some:
        raise DataError(f"--from: found no image in {where}; expected files such as {', '.join(sorted(SUFFIXES))}")
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
