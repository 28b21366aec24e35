"""Checks of the shifts in a study file. Every error names the key, the value found and the value expected."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from trainables.errors import ConfigError
from trainables.evaluation_config import EvaluationConfig
from trainables.shifts.tables import (
    ENTRY_POINTS,
    GENERAL,
    GROUPS,
    STAIN_NAME,
    Strength,
    load_aliases,
    load_groups,
    load_tables,
    registered_names,
)

#: Form of a shift's name, which becomes part of metrics and file names.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")


def check_known(key: str, found: Iterable[Any], known: tuple[str, ...], *, also: re.Pattern[str] | None = None) -> None:
    """Check that every name is known or matches ``also``.

    Raises:
        ConfigError: a name is unknown; the message suggests the nearest known name.
    """
    for name in found:
        if name in known or (also is not None and isinstance(name, str) and also.fullmatch(name)):
            continue
        nearest = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"{key}: found {name!r}, expected one of {', '.join(known)}{hint}")


def check_shift_names(evaluation: EvaluationConfig, modality: str) -> None:
    """Check the names of shifts as ``bank.build_shifts`` does, without importing torch and the operations.

    Raises:
        ConfigError: a name or severity is unknown or repeated; the message suggests the nearest known name.
    """
    asked = [evaluation.shifts] if isinstance(evaluation.shifts, str) else list(evaluation.shifts)
    own = [str(entry.get("name")) for entry in asked if isinstance(entry, dict)]
    own += [*registered_names, *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))]
    known, aliases = (*load_tables()[GENERAL], *load_aliases(), *GROUPS, *own), load_aliases()
    modality = modality if evaluation.modality == "auto" else evaluation.modality
    check_severities(evaluation)
    for key, names in (
        ("evaluation.shifts", [entry for entry in asked if isinstance(entry, str)]),
        ("evaluation.validation_shifts", list(evaluation.validation_shifts)),
    ):
        check_known(key, names, known, also=STAIN_NAME)
        check_once(key, tuple(aliases.get(name, name) for name in names if name not in GROUPS))
        if "medmnist-c" in names:
            check_has_table(key, modality)


def check_severities(evaluation: EvaluationConfig) -> None:
    """Check that no severity is listed twice.

    Raises:
        ConfigError: a severity is listed twice.
    """
    if evaluation.severities != "matched":
        check_once("evaluation.severities", evaluation.severities)


def check_has_table(key: str, modality: str) -> None:
    """Check that MedMNIST-C has a table for the modality.

    Raises:
        ConfigError: it has none.
    """
    if "medmnist-c" not in load_groups(modality):
        raise ConfigError(
            f"{key}: found 'medmnist-c', but MedMNIST-C has no table for the modality {modality!r}: set "
            "evaluation.modality, or name the shifts"
        )


def check_once(key: str, found: tuple[str, ...] | tuple[int, ...]) -> None:
    """Check that no value is listed twice.

    Raises:
        ConfigError: a value is listed twice.
    """
    repeated = sorted({str(value) for value in found if found.count(value) > 1})
    if repeated:
        raise ConfigError(f"{key}: {', '.join(repeated)} is listed more than once; name every value once")


def read_mapping(key: str, found: Any, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return ``found`` as a dictionary after checking its keys.

    Raises:
        ConfigError: ``found`` is no mapping, lacks a required key or has an unknown one.
    """
    if not isinstance(found, Mapping):
        raise ConfigError(f"{key}: found {found!r}, expected a mapping with {', '.join(required)}")
    check_known(key, found, (*required, *optional))
    missing = [name for name in required if name not in found]
    if missing:
        raise ConfigError(f"{key}: {', '.join(missing)} is missing, expected {', '.join((*required, *optional))}")
    return dict(found)


def read_name(key: str, found: Any) -> str:
    """Return ``found`` if it can be part of a metric's name.

    Raises:
        ConfigError: ``found`` is no such name.
    """
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise ConfigError(f"{key}: found {found!r}, expected a letter, then letters, digits, '_', '.' and '-'")
    return found


def read_numbers(key: str, found: Any) -> tuple[float, ...]:
    """Return one or more finite numbers ≥ 0; a single number is read as a list of one.

    Raises:
        ConfigError: ``found`` is neither such a number nor a list of them.
    """
    values = found if isinstance(found, list | tuple) else [found]
    if not values or not all(_is_number(value) and value >= 0 for value in values):
        raise ConfigError(f"{key}: found {found!r}, expected a list of numbers ≥ 0")
    return tuple(map(float, values))


def read_strengths(key: str, found: Any, size: int) -> tuple[Strength, ...]:
    """Return 1 to 5 strengths of ``size`` numbers each, in order of severity.

    Raises:
        ConfigError: ``found`` is no list of 1 to 5 such strengths.
    """
    form = "a number" if size == 1 else f"a list of {size} numbers"
    if isinstance(found, list | tuple) and 1 <= len(found) <= 5:
        if size == 1 and all(map(_is_number, found)):
            return tuple(map(float, found))
        if size > 1 and all(_is_row(row, size) for row in found):
            return tuple(tuple(map(float, row)) for row in found)
    raise ConfigError(f"{key}: found {found!r}, expected a list of 1 to 5 strengths, each {form}")


def _is_row(found: Any, size: int) -> bool:
    return isinstance(found, list | tuple) and len(found) == size and all(map(_is_number, found))


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
