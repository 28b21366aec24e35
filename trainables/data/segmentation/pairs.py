"""Images, masks and fields of view in a folder: which of them belong together, and to which split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from trainables.data.sources.layout import is_external, parse_split
from trainables.data.splits import EXTERNAL
from trainables.data.table import list_first
from trainables.errors import DataError
from trainables.segmentation_data_config import ImageMaskFolderData

#: Where the name of a mask may go on after that of its image.
_SEPARATORS = re.compile(r"[_.\- ]")
_Files = dict[str, list[str]]


@dataclass(frozen=True)
class Pair:
    """An image with its mask; all paths are below the root."""

    #: The mask's own path for a mask without an image.
    image: str
    #: train, val, test, external/<name>, or "".
    split: str
    mask: str = ""
    #: "" where there is no field of view.
    fov: str = ""
    #: Why the pair cannot be used.
    problem: str | None = None


@dataclass
class _Place:
    """Files of one split, by role: path → path below the folder of its role, without the suffix."""

    images: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    fov: dict[str, str] = field(default_factory=dict)


def find_pairs(files: Sequence[str], config: ImageMaskFolderData) -> list[Pair]:
    """Return the pairs of a folder, sorted by image; what has no partner is one with a problem.

    Args:
        files: paths below the root.
        config: names of the folders, and ``pair_pattern``.

    Raises:
        DataError: a file lies outside of the folders, or ``path/images`` is beside folders of splits.
    """
    places = _sort_files(files, config)
    if "" in places and len(places) > 1:
        raise DataError(
            f"data.path: {config.path} holds {config.image_folder!r} or {config.mask_folder!r} beside folders of "
            f"splits ({', '.join(sorted({*places} - {''}))}); expected one of them: move or rename"
        )
    pairs = [pair for split, place in places.items() for pair in _pair_place(split, place, config)]
    return sorted(pairs, key=lambda pair: pair.image)


def _sort_files(files: Sequence[str], config: ImageMaskFolderData) -> dict[str, _Place]:
    roles = {config.image_folder: "images", config.mask_folder: "masks", config.fov_folder: "fov"}
    places: dict[str, _Place] = {}
    outside = []
    for name in files:
        parts = PurePosixPath(name).parts
        depth = next((depth for depth, part in enumerate(parts[:-1]) if part in roles), None)
        split = None if depth is None else _read_split(parts[:depth])
        if depth is None or split is None:
            outside.append(name)
        else:
            stem = str(PurePosixPath(*parts[depth + 1 :]).with_suffix(""))
            getattr(places.setdefault(split, _Place()), roles[parts[depth]])[name] = stem
    if outside:
        raise DataError(
            f"{len(outside)} file(s) in {config.path} lie outside <split>/{config.image_folder}/<image>, "
            f"<split>/{config.mask_folder}/<mask>, external/<name>/… or the same without <split>; expected nothing "
            "else, or data.image_folder, data.mask_folder and data.fov_folder to name the folders:\n  "
            + list_first(outside)
        )
    return places


def _read_split(above: Sequence[str]) -> str | None:
    """Return the split by the folders above the images, None if they name none."""
    if not above:
        return ""
    if len(above) == 1:
        return parse_split(above[0])
    return EXTERNAL + above[1] if len(above) == 2 and is_external(above[0]) else None


def _pair_place(split: str, place: _Place, config: ImageMaskFolderData) -> list[Pair]:
    keys = _find_keys(place.images, config.pair_pattern)
    known = {key for key in keys.values() if key is not None}
    masks, fields = (_find_partners(names, known, config.pair_pattern) for names in (place.masks, place.fov))
    owners: _Files = {}
    for image, key in keys.items():
        if key is not None:
            owners.setdefault(key, []).append(image)
    pairs = []
    for image, key in keys.items():
        if key is None:
            pairs.append(Pair(image, split, problem=f"has a name in which {config.pair_pattern!r} finds nothing"))
            continue
        found, views = masks.get(key, []), fields.get(key, [])
        problem = _explain(owners[key], found, views, bool(place.fov), config)
        pairs.append(Pair(image, split, found[0] if found else "", views[0] if views else "", problem))
    for names, what in ((masks, "a mask"), (fields, "a field of view")):
        for name in names.get("", []):
            pairs.append(Pair(name, split, problem=f"is {what} of no image in {split or 'images'}, expected one"))
    return pairs


def _explain(
    images: Sequence[str], masks: Sequence[str], fields: Sequence[str], has_fields: bool, config: ImageMaskFolderData
) -> str | None:
    """Return why an image has not exactly one mask of its own, None if it has."""
    advice = "name what the file names of a pair have in common by data.pair_pattern"
    if len(images) > 1:
        return f"shares its name with {', '.join(images)}, so that a mask belongs to both; expected one image: {advice}"
    for names, folder, needed in ((masks, config.mask_folder, True), (fields, config.fov_folder, has_fields)):
        if len(names) > 1:
            return f"has {len(names)} files in {folder} ({', '.join(names)}), expected one: {advice}"
        if needed and not names:
            return f"has no file of its name in {folder}, expected one: {advice}"
    return None


def _find_keys(stems: Mapping[str, str], pattern: str | None) -> dict[str, str | None]:
    """Return name → what it has in common with its partners, None if the pattern finds nothing."""
    if pattern is None:
        return dict(stems)
    expression = re.compile(pattern)
    which = min(1, expression.groups)
    found = {name: expression.search(stem) for name, stem in stems.items()}
    return {name: match[which] or None if match else None for name, match in found.items()}


def _find_partners(names: Mapping[str, str], known: set[str], pattern: str | None) -> _Files:
    """Return key of an image → its files among ``names``; "" → files of no image."""
    partners: _Files = {}
    for name, key in _find_keys(names, pattern).items():
        owner = key if key in known else None if key is None or pattern else _find_longest(key, known)
        partners.setdefault(owner or "", []).append(name)
    return partners


def _find_longest(stem: str, known: set[str]) -> str | None:
    """Return the longest name of an image with which a mask's begins before a separator."""
    cuts = [match.start() for match in _SEPARATORS.finditer(stem)]
    return next((stem[:cut] for cut in reversed(cuts) if stem[:cut] in known), None)
