"""Layout of an image folder: which folders name a split, which an external set, and which a class.

A folder is read as splits or as classes only if one reading is possible; otherwise the study is refused with both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainables.data.assembly import suggest
from trainables.data.identity.texts import normalise
from trainables.data.splits import EXTERNAL, SPLITS
from trainables.data.table import list_first
from trainables.errors import DataError

#: Split → its usual names, without case and separators.
SPELLINGS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "holdout"),
}
_EXTERNAL_NAMES = ("external", "ext")
#: Words that data sets add to the name of a split: training_set, Test-Images, trainData.
_SUFFIXES = re.compile(r"(data)?(set|sets|data|dataset|images|imgs|image|split|folder)$")
_SEPARATORS = re.compile(r"[\s_.-]")
#: Classes listed in a message.
_MAX_CLASSES = 6

Layout = Literal["auto", "splits", "classes"]


def parse_split(name: str) -> str | None:
    """Return train, val or test for a usual name of a split in any case ("Training", "TEST_set"), None for others."""
    plain = _SEPARATORS.sub("", name.casefold())
    for split, spellings in SPELLINGS.items():
        if plain in spellings or _SUFFIXES.sub("", plain) in spellings:
            return split
    return None


def is_external(name: str) -> bool:
    """Return whether a folder is named like the one that holds the external sets."""
    return _SEPARATORS.sub("", name.casefold()) in _EXTERNAL_NAMES


@dataclass(frozen=True)
class _Top:
    """Folders at the level at which splits or classes lie."""

    #: Number of folders around them.
    depth: int
    #: Folder → split.
    splits: dict[str, str]
    external: list[str]
    others: list[str]

    @property
    def names(self) -> list[str]:
        return sorted([*self.splits, *self.external, *self.others])


def read_places(files: Sequence[str], *, layout: Layout, folder: str) -> list[tuple[str, str]]:
    """Return (split, class) of every file; the split is "" where the folder has none.

    Args:
        files: paths below the folder, with forward slashes.
        layout: "splits" for ``<split>/<class>/*`` and ``external/<name>/<class>/*``, "classes" for ``<class>/*``,
            "auto" for whichever of them is the only possible reading. One folder around the splits is allowed.
        folder: name of the folder in messages.

    Raises:
        DataError: both readings are possible, two folders name the same split, or files lie outside the layout.
    """
    parts = [name.split("/") for name in files]
    top = _find_top(parts, layout)
    has_splits = layout == "splits" or (layout == "auto" and _has_splits(parts, top, folder))
    if has_splits:
        _check_splits(top, folder)
    places = [_read_place(part[top.depth :], top) if has_splits else _read_class(part[top.depth :]) for part in parts]
    wrong = [name for name, place in zip(files, places, strict=True) if place is None]
    if wrong:
        expected = "<split>/<class>/<image> or external/<name>/<class>/<image>" if has_splits else "<class>/<image>"
        raise DataError(f"{len(wrong)} file(s) in {folder} lie outside {expected}:\n  {list_first(wrong)}")
    return [place for place in places if place is not None]


def _find_top(parts: Sequence[Sequence[str]], layout: Layout) -> _Top:
    """Return the folders that may be splits: the first level, or the second if one folder is around named splits."""
    top = _list_folders(parts, 0)
    if layout != "classes" and not top.splits and len(top.names) == 1 and all(len(part) > 1 for part in parts):
        inner = _list_folders(parts, 1)
        if inner.splits:
            return inner
    return top


def _list_folders(parts: Sequence[Sequence[str]], depth: int) -> _Top:
    names = sorted({part[depth] for part in parts if len(part) > depth + 1})
    splits = {name: split for name in names if (split := parse_split(name)) is not None}
    external = [name for name in names if is_external(name)]
    return _Top(depth, splits, external, [name for name in names if name not in splits and name not in external])


def _has_splits(parts: Sequence[Sequence[str]], top: _Top, folder: str) -> bool:
    """Return whether the top folders are splits, and not classes.

    Raises:
        DataError: both are possible.
    """
    if not top.splits and not top.external:
        return False
    below = {name: _list_subfolders(parts, top.depth, name) for name in (*top.splits, *top.external)}
    if top.others:
        if len(top.splits) < 2 and not any(below.values()):
            return False  # classes, one of which has the name of a split
        raise DataError(_describe_both(top, below, folder))
    if not top.splits:  # external sets, and nothing to train on
        raise DataError(_describe_both(top, below, folder))
    named = [below[name] for name in top.splits]
    shares_classes = len(named) == 1 or bool(set.union(*named) - _in_one_only(named))
    if not any(named) or (not shares_classes and "train" not in top.splits.values()):
        raise DataError(_describe_both(top, below, folder))
    return True


def _in_one_only(sets: Sequence[set[str]]) -> set[str]:
    return {item for each in sets for item in each if sum(item in other for other in sets) == 1}


def _list_subfolders(parts: Sequence[Sequence[str]], depth: int, name: str) -> set[str]:
    return {normalise(part[depth + 1]) for part in parts if part[depth] == name and len(part) > depth + 2}


def _describe_both(top: _Top, below: dict[str, set[str]], folder: str) -> str:
    as_splits = ", ".join(f"{name!r} is {split}" for name, split in top.splits.items()) or "'external' holds sets"
    classes = sorted(set().union(*(below[name] for name in top.splits)))
    shown = ", ".join(classes[:_MAX_CLASSES]) + (", …" if len(classes) > _MAX_CLASSES else "")
    odd = ", ".join(repr(name) + suggest(name.casefold(), [*SPLITS, "external"]) for name in top.others)
    odd = f"; {odd} would be no split" if odd else ""
    return (
        f"data.path: {folder} can be read as splits: {as_splits}, with the classes {shown or 'none'}{odd}; "
        f"or as classes: {', '.join(map(repr, top.names))}. Set data.layout to splits or classes, or rename the folders"
    )


def _check_splits(top: _Top, folder: str) -> None:
    """Check that every top folder is a split or holds external sets, and that no split has two folders."""
    if top.others:
        odd = ", ".join(map(repr, top.others))
        raise DataError(
            f"{folder} is read as splits, and also holds {odd}; expected only folders for {', '.join(SPLITS)} and "
            "external beside each other: move or rename"
        )
    for split in SPLITS:
        names = [name for name, each in top.splits.items() if each == split]
        if len(names) > 1:
            raise DataError(
                f"{folder} holds {' and '.join(map(repr, names))}, which all name the split {split}; expected one "
                "folder per split: merge or rename them"
            )


def _read_place(part: Sequence[str], top: _Top) -> tuple[str, str] | None:
    if part[0] in top.splits:
        return (top.splits[part[0]], normalise(part[1])) if len(part) > 2 else None
    return (EXTERNAL + normalise(part[1]), normalise(part[2])) if len(part) > 3 and part[0] in top.external else None


def _read_class(part: Sequence[str]) -> tuple[str, str] | None:
    return ("", normalise(part[0])) if len(part) > 1 else None
