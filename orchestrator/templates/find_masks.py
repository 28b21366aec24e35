"""Inspection of somebody's images with masks: which folders or file names belong together, and what masks hold."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainables.errors import DataError
from trainables.segmentation_data_config import BACKGROUND

#: Names of folders of images and of masks, in lower case, the usual ones first.
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentation", "ground_truth",
    "groundtruth", "gt", "manual", "1st_manual",
)  # fmt: skip
FOV_FOLDERS = ("fov", "fovs", "field_of_view")
#: What the name of a mask has behind that of its image, where both lie in one folder.
_PAIRED = re.compile(rf"(.+?)[_.\- ](?:{'|'.join(MASK_FOLDERS)}|seg)", re.IGNORECASE)
#: Masks whose values are looked at, and values from which on they are no numbers of classes.
_LOOK_AT, _MAX_CLASSES = 50, 32
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm"}


def find_mask_folders(path: Path) -> dict[str, Any] | None:
    """Return kind and names of the folders of images, masks and fields of view at or below ``path``.

    None if there are no two such folders side by side. A folder counts by its name.

    Raises:
        DataError: several folders may be the one of masks.
    """
    for folder, names, _ in os.walk(path):
        images, masks, fov = (
            [name for name in sorted(names) if name.lower() in known]
            for known in (IMAGE_FOLDERS, MASK_FOLDERS, FOV_FOLDERS)
        )
        for found, what in ((images, "images"), (masks, "masks")):
            if images and masks and len(found) > 1:
                raise DataError(
                    f"--from: found the folders {', '.join(found)} in {folder}, and one of them should be that of "
                    f"{what}; expected one: move the others away, or write the study by hand (data.image_folder, "
                    "data.mask_folder, data.fov_folder)"
                )
        if images and masks:
            kept = {"image_folder": images[0], "mask_folder": masks[0]} | ({"fov_folder": fov[0]} if fov else {})
            usual = {"image_folder": "images", "mask_folder": "masks", "fov_folder": "fov"}
            return {"kind": "image_mask_folder"} | {key: name for key, name in kept.items() if name != usual[key]}
        if len(Path(folder).relative_to(path).parts) >= 2:  # external/<name>
            names.clear()
    return None


def find_named_pairs(path: Path) -> list[tuple[Path, Path]]:
    """Return images and masks that lie in the same folders and are told apart by their names, such as ``1_mask.png``.

    Empty if no file is named so.

    Raises:
        DataError: some images have a mask and others have none.
    """
    files = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
    owners = {each: match[1] for each in files if (match := _PAIRED.fullmatch(each.stem)) is not None}
    by_stem = {(each.parent, each.stem): each for each in files if each not in owners}
    pairs = [(by_stem[mask.parent, stem], mask) for mask, stem in owners.items() if (mask.parent, stem) in by_stem]
    if not pairs:
        return []
    lone = sorted({*by_stem.values()} - {image for image, _ in pairs}) + sorted({*owners} - {mask for _, mask in pairs})
    repeated = [image for image, count in Counter(image for image, _ in pairs).items() if count > 1]
    for found, problem in ((lone, "without a partner"), (repeated, "with several masks")):
        if found:
            raise DataError(
                f"--from: found {len(pairs)} pairs of an image and its mask by their names in {path}, and {len(found)} "
                f"files {problem}, the first {found[0]}; expected one mask for each image: move the others away"
            )
    return sorted(pairs)


def write_pairs(pairs: Sequence[tuple[Path, Path]], root: Path, manifest: Path) -> None:
    """Write a manifest of pairs for ``image_mask_csv``, with paths below ``root``.

    Raises:
        DataError: the manifest is there already.
    """
    try:
        with manifest.open("x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "mask"])
            writer.writerows([[each.relative_to(root).as_posix() for each in pair] for pair in pairs])
    except FileExistsError:
        raise DataError(
            f"--from: wanted to list the pairs in {manifest}, which is there already; name another study file with "
            "--out, or remove it"
        ) from None


def find_mask_values(masks: Sequence[Path]) -> dict[int, str] | None:
    """Return value in some masks → class, None if there is one value above 0, or so many that they are no classes.

    Classes are named by their value: what they are is not in the files.
    """
    from trainables.data.segmentation.targets import read_mask

    values: set[int] = set()
    for mask in masks[:: max(len(masks) // _LOOK_AT, 1)]:
        try:
            values |= {int(value) for value in np.unique(read_mask(mask))}
        except DataError:
            continue  # the data check names every unusable file
    values -= {0}
    if len(values) < 2 or len(values) > _MAX_CLASSES:
        return None
    return {0: BACKGROUND} | {value: f"class-{value}" for value in sorted(values)}
