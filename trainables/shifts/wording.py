"""Reading what a study says about shifts: every complaint names the key, what was found and what was expected."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from trainables.errors import ConfigError
from trainables.shifts.operation import Strength

#: Names become metrics and file names.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")


def check_known(key: str, found: Iterable[Any], known: tuple[str, ...], *, also: re.Pattern[str] | None = None) -> None:
    """Check that every name is among the known ones or has the form ``also``.

    Raises:
        ConfigError: with the nearest known name.
    """
    for name in found:
        if name in known or (also is not None and isinstance(name, str) and also.fullmatch(name)):
            continue
        nearest = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"{key}: found {name!r}, expected one of {', '.join(known)}{hint}")


def check_once(key: str, found: tuple[str, ...] | tuple[int, ...]) -> None:
    """Check that nothing is listed twice.

    Raises:
        ConfigError: something is.
    """
    repeated = sorted({str(value) for value in found if found.count(value) > 1})
    if repeated:
        raise ConfigError(f"{key}: {', '.join(repeated)} is listed more than once; name every value once")


def read_mapping(key: str, found: Any, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a mapping that has the required keys and no unknown ones.

    Raises:
        ConfigError: it has not, or is none.
    """
    if not isinstance(found, Mapping):
        raise ConfigError(f"{key}: found {found!r}, expected a mapping with {', '.join(required)}")
    check_known(key, found, (*required, *optional))
    missing = [name for name in required if name not in found]
    if missing:
        raise ConfigError(f"{key}: {', '.join(missing)} is missing, expected {', '.join((*required, *optional))}")
    return dict(found)


def read_name(key: str, found: Any) -> str:
    """Return a name that can be part of a metric's.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise ConfigError(f"{key}: found {found!r}, expected a letter, then letters, digits, '_', '.' and '-'")
    return found


def read_numbers(key: str, found: Any) -> tuple[float, ...]:
    """Return finite numbers ≥ 0, at least one; a single number is a list of one.

    Raises:
        ConfigError: something else was found.
    """
    values = found if isinstance(found, list | tuple) else [found]
    if not values or not all(_is_number(value) and value >= 0 for value in values):
        raise ConfigError(f"{key}: found {found!r}, expected a list of numbers ≥ 0")
    return tuple(map(float, values))


def read_strengths(key: str, found: Any, size: int) -> tuple[Strength, ...]:
    """Return 1 to 5 strengths of ``size`` numbers each; severity is their place in the list.

    Raises:
        ConfigError: something else was found.
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
