"""Class and set of every table row: class order, external sites, splits by group, and all checks without pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches

import numpy as np
from jaxtyping import Int64

from trainables.data.identity.texts import check_similar, check_single
from trainables.data.splits import (
    EXTERNAL,
    HELD_OUT,
    assign_splits,
    check_disjoint,
    check_no_empty_split,
    check_split_names,
    check_unique,
)
from trainables.data.table import Table, describe_row, list_first
from trainables.data_config import UnlabelledFolderData
from trainables.errors import ConfigError, DataError
from trainables.image_data_config import ImageData

#: Longer strings of digits are sorted as text: Python refuses numbers of thousands of digits.
_MAX_DIGITS = 100
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Assignment:
    """Class and set of every row of a table; an unlabelled folder is one class, all of it in train."""

    classes: tuple[str, ...]
    #: Index into ``classes`` and then ``held_out``; −1 for a row with a problem, or left out by ``data.label_map``.
    labels: Int64[np.ndarray, " n"]
    #: train, val, test, held_out or external/<name>; "" for a row that is not used or has a problem.
    sets: np.ndarray
    #: Row → why its image cannot be used.
    problems: dict[int, str]
    #: Classes that no model is trained on.
    held_out: tuple[str, ...] = ()
    #: See ``Table.components``: if there are any, ``labels`` index them.
    components: tuple[str, ...] = ()

    @property
    def classes_of_images(self) -> tuple[str, ...]:
        """Classes of which train needs an image; () where pixels and not images have classes."""
        return () if self.components else self.classes


def assign_sets(table: Table, config: ImageData) -> Assignment:
    """Return the class and the set of every row.

    Raises:
        ConfigError: a site to leave out does not exist, or the split fractions leave no training data.
        DataError: an unmapped label, a repeated id, a group or id in two sets, an empty split, a class not in train.
    """
    if not table.ids:
        raise DataError(f"found no image in the {config.model_dump()['kind']} data; expected at least a few per class")
    if isinstance(config, UnlabelledFolderData):
        sets = np.array(["" if row in table.problems else "train" for row in range(len(table.ids))], dtype=object)
        return Assignment(("",), np.zeros(len(sets), dtype=np.int64), sets, dict(table.problems))
    if table.components:
        assignment = assign_components(table, config)
        if not assignment.problems:
            check_no_empty_split(assignment.sets, assignment.labels, ())
        return assignment
    classes, labels, problems = _resolve_labels(table, config)
    classes, labels, held_out = _hold_out(classes, labels, config.held_out_classes)
    sets = _assign_rows(table, labels, config)
    is_held_out = labels >= len(classes)
    sets[is_held_out] = np.where(sets[is_held_out] == "test", HELD_OUT, "")
    if not problems:  # otherwise write_dataset reports them first, and runs this check after quarantine
        check_no_empty_split(sets, labels, classes)
    _check_held_out(sets, held_out)
    return Assignment(classes, labels, sets, problems, held_out)


def assign_components(table: Table, config: ImageData) -> Assignment:
    """Return the data set and the set of every row of a segmentation; a split may be empty.

    Raises:
        ConfigError: a site to leave out does not exist, or the split fractions leave no training data.
        DataError: a repeated id, a group or id in two sets.
    """
    known = {name: index for index, name in enumerate(table.components)}
    labels = np.array([-1 if row in table.problems else known[name] for row, name in enumerate(table.labels)])
    sets = _assign_rows(table, labels.astype(np.int64), config)
    return Assignment(table.classes or (), labels, sets, dict(table.problems), components=table.components)


def _assign_rows(table: Table, labels: Int64[np.ndarray, " n"], config: ImageData) -> np.ndarray:
    """Return the set of every row, "" for those with a negative label."""
    sets = np.full(len(table.ids), "", dtype=object)
    usable = np.flatnonzero(labels >= 0)
    splits = np.array(table.splits, dtype=object)[usable]
    ids, groups, sites = (np.array(values, dtype=object)[usable] for values in (table.ids, table.groups, table.sites))
    for site in config.outer_sites:
        key = "leave_out" if site == config.leave_out else "external_sites"
        splits[_find_site(sites, site, key)] = EXTERNAL + site
    check_split_names([name for name in splits if name])
    splits = assign_splits(
        splits,
        labels[usable],
        groups,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    sets[usable] = splits
    check_disjoint(splits, ids, what="id")
    check_unique(list(ids), [describe_row(table.file_names[row], table.rows[row]) for row in usable], what="id")
    check_disjoint(splits, groups, what="group")
    return sets


def _hold_out(
    classes: tuple[str, ...], labels: Int64[np.ndarray, " n"], names: Sequence[str]
) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"], tuple[str, ...]]:
    """Return the classes that are left, the labels with those of held-out classes at the end, and the latter's names.

    Raises:
        ConfigError: there is no such class, or fewer than two are left.
    """
    if not names:
        return classes, labels, ()
    unknown = [name for name in names if name not in classes]
    left = tuple(name for name in classes if name not in names)
    if unknown or len(left) < 2:
        found = f"no class {unknown[0]!r}{suggest(unknown[0], list(classes))}" if unknown else f"{len(left)} left"
        raise ConfigError(
            f"data.held_out_classes: found {found}; expected some of the classes {', '.join(classes)}, so that two or "
            "more are left to tell apart"
        )
    held_out = tuple(name for name in classes if name in names)
    index = np.array([(*left, *held_out).index(name) for name in classes])
    return left, np.where(labels < 0, -1, index[labels]), held_out


def _check_held_out(sets: np.ndarray, names: Sequence[str]) -> None:
    """Check that held-out classes have test images.

    Raises:
        DataError: they have none.
    """
    if names and not (sets == HELD_OUT).any():
        raise DataError(
            f"data.held_out_classes: no test image is of {', '.join(names)}; expected some, since only these are "
            "evaluated: correct the split, or raise data.test_fraction"
        )


def _resolve_labels(table: Table, config: ImageData) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"], dict[int, str]]:
    """Return the classes, the label index of every row and all problems known so far.

    The index is −1 for a problem, and for an image that ``data.label_map`` leaves out.
    """
    problems = dict(table.problems)
    usable = [row for row in range(len(table.ids)) if row not in problems]
    found = [table.labels[row] for row in usable]
    mapping: Mapping[str, str | None] = dict(zip(found, found, strict=True))
    if config.label_map is not None:
        mapping = config.label_map
    if config.label_map is None and table.classes is None:
        check_single(found)
        if config.similar_text == "error":
            check_similar(found, what="label", advice="name both in data.classes, or one of them in data.label_map")
    unmapped = [row for row in usable if table.labels[row] not in mapping]
    if unmapped:
        lines = [f"{describe_row(table.file_names[row], table.rows[row])}: {table.labels[row]!r}" for row in unmapped]
        raise DataError(
            f"data.label_map names no class for the label of {len(unmapped)} image(s); expected one of "
            f"{', '.join(map(repr, mapping))}. Add the label to the map, or map it to null to leave the images out:\n  "
            + list_first(lines)
        )
    classes = table.classes or _order_classes(set(found), mapping)
    index = {name: position for position, name in enumerate(classes)}
    labels = np.full(len(table.ids), -1, dtype=np.int64)
    for row, label in zip(usable, found, strict=True):
        name = mapping[label]
        if name is None:
            continue
        labels[row] = index.get(name, -1)
        if labels[row] < 0:
            problems[row] = f"has the label {name!r}, expected one of the classes {', '.join(classes)}"
    if len(classes) < 2 and not problems:
        raise DataError(f"found the classes {list(classes)}, expected at least two to tell apart")
    return classes, labels, problems


def _order_classes(found: set[str], mapping: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the mapped classes: by value if all are numbers, otherwise in the order of their original labels."""
    mapped = [name for label in sort_naturally(found) if (name := mapping[label]) is not None]
    return tuple(sort_naturally(set(mapped))) if are_numbers(mapped) else tuple(dict.fromkeys(mapped))


def are_numbers(labels: Iterable[str]) -> bool:
    """Return whether every label is a decimal number, such as "2", "-1", "10.0" or "1e-3"."""
    return all(len(label) <= _MAX_DIGITS and _NUMBER.fullmatch(label) for label in labels)


def sort_naturally(labels: set[str]) -> list[str]:
    """Return the labels sorted by value if all are numbers ("-2" before "-1", "2.0" before "10"), or by their text."""
    numeric = are_numbers(labels)
    return sorted(labels, key=lambda label: (Decimal(label) if numeric else 0, label))


def check_order(config: ImageData, classes: Sequence[str]) -> None:
    """Check that ordered classes have an order that somebody has stated, and not that of the alphabet.

    Raises:
        ConfigError: ``data.ordinal`` is set, and neither ``data.classes`` nor numbers (as labels, or before or after
            ``data.label_map``) order the classes.
    """
    if not config.ordinal or are_numbers(classes) or getattr(config, "classes", None) is not None:
        return
    if config.label_map is not None and are_numbers(config.label_map):
        return
    found = f"data.ordinal: found the classes {', '.join(classes)}, sorted by their text"
    if "classes" not in type(config).model_fields:
        raise ConfigError(f"{found}; expected data.label_map from or to numbers to state their order, lowest first")
    raise ConfigError(
        f"{found}; expected data.classes to state their order, lowest first. Paste and order:\n"
        f"  classes: [{', '.join(map(json.dumps, classes))}]"
    )


def _find_site(sites: np.ndarray, site: str, key: str) -> np.ndarray:
    """Return the mask of a site's rows."""
    mask = sites == site
    if not mask.any():
        known = sorted(set(sites) - {""})
        raise ConfigError(
            f"data.{key} names {site!r}, which no image has{suggest(site, known)}; "
            f"the sites are {', '.join(known) or 'not recorded in this data'}"
        )
    return mask


def suggest(value: str, known: Sequence[str]) -> str:
    """Return " (nearest: …)" for a mistyped value, "" if no known value is similar."""
    near = get_close_matches(value, known, n=1)
    return f" (nearest: {near[0]!r})" if near else ""
