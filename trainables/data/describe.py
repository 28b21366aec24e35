"""Description of a data set in words: classes in order, images per class and set, groups and sites."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trainables.data.dataset import Dataset, ImageSet
from trainables.data.segmentation.extents import find_extents, find_sides

#: Classes and sites that a line names; of more only the number is given.
MAX_NAMED = 12


def describe_dataset(data: Dataset) -> dict[str, str]:
    """Return label → one line: classes, every set, groups, sites and copies."""
    lines = {"classes": f"{data.num_classes}, in this order: {_list(data.classes)}"}
    count = _count_foreground if data.components else _count_classes
    for name, images in data.splits.items():
        lines[name] = count(images, data)
    for name, images in data.external.items():
        lines[f"external/{name}"] = count(images, data)
    for name, images in data.ood.items():
        lines[name] = f"{len(images):,} images of no class that is trained on"
    sets = [*data.splits.values(), *data.external.values()]
    if sets[0].holds_volumes:
        lines["volumes"] = _describe_voxels(data)
    if has_groups(data):
        lines["groups"] = f"{sum(len(set(images.groups.tolist())) for images in sets):,}, each in one set"
    else:
        what = "volume" if sets[0].holds_volumes else "image"
        lines["groups"] = f"one per {what}: if several show one patient, they may lie in several sets"
    names, counts = np.unique(np.concatenate([images.sites for images in sets]), return_counts=True)
    sites = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True) if name]
    if sites:
        lines["sites"] = _list(sites)
    if data.copies:
        copies = ", ".join(f"{count:,} in {name}" for name, count in data.copies.items())
        lines["copies"] = f"images with the pixels of another image: {copies}"
    if data.conversions:
        lines["intensities"] = describe_conversions(data.conversions)
    lines["near-duplicates"] = describe_similar(data.similar.counts, data.similar.unchecked)
    return lines


def describe_conversions(conversions: Mapping[str, int]) -> str:
    """Return how intensities of more than 8 bits became 8 bits, and of how many images."""
    return "; ".join(f"{count:,} image{'s' * (count != 1)} by {how}" for how, count in sorted(conversions.items()))


def describe_similar(counts: Mapping[str, int], unchecked: str | None) -> str:
    """Return how many pairs of images look like copies of each other, or why they were not looked for."""
    if unchecked is not None:
        return f"not looked for: {unchecked}"
    if not counts:
        return "none found"
    number = sum(counts.values())
    pairs = "1 pair of images looks like a copy" if number == 1 else f"{number:,} pairs of images look like copies"
    return f"{pairs} of each other: {', '.join(f'{count:,} in {name}' for name, count in sorted(counts.items()))}"


def has_groups(data: Dataset) -> bool:
    """Return whether some images share a group, so that groups were given and kept together."""
    sets = [*data.splits.values(), *data.external.values()]
    return any(len(set(images.groups.tolist())) < len(images) for images in sets)


def _count_foreground(images: ImageSet, data: Dataset) -> str:
    """Return the images of every data set, the share of foreground, and how many images have none."""
    area = np.array(images.metadata["foreground_px"])
    parts = np.bincount(images.labels, minlength=len(data.components))
    named = [f"{name} {number:,}" for name, number in zip(data.components, parts, strict=True) if number]
    what, pixels, of_what = "image", len(images) * images.images[0, 0].size, "pixels"
    if images.holds_volumes:
        what, pixels, of_what = "volume", int(find_extents(images).prod(axis=1).sum()), "voxels"
    text = f"{len(images):,} {what}s: " + (f"{', '.join(named)}; " if len(data.components) > 1 else "")
    text += f"{area.sum() / pixels:.1%} of all {of_what} are not {data.classes[0]}"
    empty = int((area == 0).sum())
    return text + (f"; {empty:,} {what}{'s' * (empty != 1)} without any" if empty else "")


def _describe_voxels(data: Dataset) -> str:
    """Return the sizes of volumes and of their voxels."""
    sets = [*data.splits.values(), *data.external.values()]
    extents = np.concatenate([find_extents(images) for images in sets])
    small, large = (" × ".join(map(str, each.tolist())) for each in (extents.min(axis=0), extents.max(axis=0)))
    sides = " × ".join(f"{side:g}" for side in find_sides(sets[0])[0])
    size = small if small == large else f"{small} to {large}"
    return f"{size} voxels (slices × rows × columns) of {sides} mm"


def _count_classes(images: ImageSet, data: Dataset) -> str:
    classes = data.classes
    counts = np.bincount(images.labels, minlength=len(classes))
    if len(classes) > MAX_NAMED:
        return f"{len(images):,} images, {counts.min():,} to {counts.max():,} per class"
    return f"{len(images):,} images: " + ", ".join(
        f"{name} {count:,}" for name, count in zip(classes, counts, strict=True)
    )


def _list(names: list[str] | tuple[str, ...]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
