"""Shifts of other packages, registered by ``register_shift`` or installed as an entry point.

Trials run in processes of their own, which import this package but no notebook, so a shift that a study names has to
be installed. A package declares it in its ``pyproject.toml``::

    [project.entry-points."robustsweep.shifts"]
    my_shift = "my_package.my_module:MY_SHIFT"

where ``MY_SHIFT`` is a ``RegisteredShift``. ``register_shift`` is for notebooks and tests and affects
only their own process. The signature of a trial contains the name of a shift, not its code: rename a shift when its
code changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata

from trainables.errors import ConfigError
from trainables.shifts.operation import Operation
from trainables.shifts.tables import ENTRY_POINTS, Strength, registered_names


@dataclass(frozen=True)
class RegisteredShift:
    """Operation with its strengths.

    Attributes:
        operation: ``apply(images, strength, sample_seeds)`` takes and returns uint8 (n, c, h, w) on the same device. An
            image's result must not depend on other images; draw random numbers by ``trainables.seeding``.
        strengths: strengths at severity 1, 2, …, up to 5.
    """

    operation: Operation
    strengths: tuple[Strength, ...]


_registered: dict[str, RegisteredShift] = {}


def register_shift(name: str, shift: RegisteredShift) -> None:
    """Register a shift under a name in this process, replacing an earlier one of this name.

    Raises:
        ConfigError: ``shift`` is no ``RegisteredShift`` or has not 1 to 5 strengths.
    """
    _check(name, shift)
    _registered[name] = shift
    registered_names.add(name)


def registered_shifts() -> dict[str, RegisteredShift]:
    """Return name → shift, from installed packages and from this process, which takes precedence.

    Raises:
        ConfigError: an entry point cannot be loaded or is no valid shift.
    """
    return {**_load_entry_points(), **_registered}


@cache
def _load_entry_points() -> dict[str, RegisteredShift]:
    shifts = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            shift = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the entry point {point.name} = {point.value!r} of group {ENTRY_POINTS} cannot be loaded ({error}): "
                "reinstall or remove the package that brings it"
            ) from error
        _check(point.name, shift)
        shifts[point.name] = shift
    return shifts


def _check(name: str, shift: object) -> None:
    if not isinstance(shift, RegisteredShift):
        raise ConfigError(
            f"shift {name!r}: found {type(shift).__name__}, expected a trainables.shifts.registry.RegisteredShift"
        )
    if not 1 <= len(shift.strengths) <= 5:
        raise ConfigError(f"shift {name!r}: found {len(shift.strengths)} strengths, expected 1 to 5")
