"""Conversion of the entries of ``evaluation.shifts`` into shifts.

An entry of ``evaluation.shifts`` is the name of a shift (``snow``, ``stain_h0.5_e2``, one of an installed package) or
of a group (``all``, ``imagenet-c``, ``medmnist-c``, ``stain-grid``), or a mapping::

    {compose: [gaussian_noise/2, jpeg/3]}                      one after the other, at the severities given
    {compose: [gaussian_noise, jpeg], name: noisy_jpeg}        both at the severities of the evaluation
    {name: dusk, op: brightness_down, strengths: [0.4, 0.1]}   an operation of the bank, or strong_<name> of the policy
    {stain: {haematoxylin: [0.5, 1, 2], eosin: [1, 2]}}        every combination
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainables.errors import ConfigError
from trainables.evaluation_config import EvaluationConfig, MatchedEvaluation
from trainables.shifts import strong
from trainables.shifts.medmnist_c import STAIN
from trainables.shifts.operation import Operation
from trainables.shifts.operations import DEFAULT, OPERATIONS
from trainables.shifts.registry import registered_shifts
from trainables.shifts.shift import IDENTITY, Shift, compose
from trainables.shifts.tables import GROUPS, STAIN_NAME, Strength, load_aliases, load_groups, load_tables
from trainables.shifts.wording import (
    check_has_table,
    check_known,
    check_once,
    check_severities,
    read_mapping,
    read_name,
    read_numbers,
    read_strengths,
)

__all__ = ["DEFAULT_NAMES", "IDENTITY", "SHIFT_NAMES", "Shift", "build_shifts", "stain_name"]

#: Names of all shifts of the bank, in the order of tables and figures.
SHIFT_NAMES: tuple[str, ...] = tuple(OPERATIONS)
#: Names of the shifts of ``all`` in every modality: those that change any image, at strengths of its modality.
DEFAULT_NAMES: tuple[str, ...] = tuple(DEFAULT)
#: Multipliers of haematoxylin and of eosin in the published grid (Pohjonen et al. 2022).
STAIN_FACTORS = (0.0, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
#: How many times the largest published strength may be exceeded; the largest strength of operations without a table. An
#: assumption: above any sensible value, and below those that exhaust the memory.
FAR_BEYOND = 1000.0


@dataclass(frozen=True)
class _Bank:
    """Shifts by name in one evaluation."""

    modality: str
    severities: tuple[int, ...]
    own: Mapping[str, tuple[Operation, tuple[Strength, ...]]]
    #: Shift → strengths that were chosen for this study, None for those of the tables.
    matched: Mapping[str, tuple[Strength, ...]] | None = None

    def at(self, name: str, severity: int) -> Shift:
        """Return the shift called ``name`` at a severity. The name must be known."""
        if cell := STAIN_NAME.fullmatch(name):
            return Shift(name, severity, (float(cell[1]), float(cell[2])), STAIN)
        if name in self.own:
            operation, strengths = self.own[name]
            return Shift(name, severity, strengths[severity - 1], operation)
        return Shift(name, severity, load_tables()[self.modality][name][severity - 1])

    def find(self, name: str, severity: int) -> Shift:
        """Return the shift called ``name``, which is no part of a composition, at a severity: matched if it can be."""
        shift = self.at(name, severity)
        if self.matched is None or shift.operation is not None or name not in load_tables()[self.modality]:
            return shift
        if name in self.matched:
            return replace(shift, strength=self.matched[name][severity - 1])
        if shift.needs_colour:  # left out where images are grey
            return shift
        raise ConfigError(
            f"evaluation.severities: looked for the matched strengths of {name!r} and found those of "
            f"{', '.join(self.matched) or 'no shift'}; run the study again, which makes the stage that chooses them"
        )

    def known_severities(self, name: str) -> tuple[int, ...]:
        """Return the severities of a name: the evaluation's for the bank's shifts, all defined ones for others."""
        if STAIN_NAME.fullmatch(name):
            return (1,)
        return tuple(range(1, len(self.own[name][1]) + 1)) if name in self.own else self.severities


def build_shifts(evaluation: EvaluationConfig, modality: str) -> list[Shift]:
    """Return the shifts of an evaluation, grouped by name in ascending severity, without the identity.

    Where matched strengths are not known yet (``severities: matched`` before its stage), those of the tables stand in.

    Args:
        evaluation: names and severities of the shifts, and a modality that overrides the data's unless it is "auto".
        modality: modality of the data set.

    Raises:
        ConfigError: a shift, severity or modality is unknown or repeated, or a mapping defines no shift.
    """
    entries = _list_entries(evaluation)
    return _build("evaluation.shifts", entries, _open_bank(evaluation, modality, entries))


def build_validation_shifts(evaluation: EvaluationConfig, modality: str) -> list[Shift]:
    """Return the shifts of the validation images, grouped by name in ascending severity, without the identity.

    A shift that ``evaluation.shifts`` defines is known by its name. Arguments and errors are those of ``build_shifts``.
    """
    defined = _list_entries(evaluation)
    entries: list[tuple[int, str | Mapping[str, Any]]] = []
    by_name = {entry["name"]: entry for _, entry in defined if not isinstance(entry, str) and "name" in entry}
    for index, name in enumerate(evaluation.validation_shifts):
        entries.append((index, by_name.get(name, name)))
    return _build("evaluation.validation_shifts", entries, _open_bank(evaluation, modality, defined))


def _list_entries(evaluation: EvaluationConfig) -> list[tuple[int, str | Mapping[str, Any]]]:
    return list(enumerate((evaluation.shifts,) if isinstance(evaluation.shifts, str) else evaluation.shifts))


def _open_bank(
    evaluation: EvaluationConfig, modality: str, entries: Sequence[tuple[int, str | Mapping[str, Any]]]
) -> _Bank:
    if evaluation.modality != "auto":
        modality = evaluation.modality
    check_known("evaluation.modality", [modality], tuple(load_tables()))
    check_severities(evaluation)
    matched = evaluation.strengths if isinstance(evaluation, MatchedEvaluation) else None
    return _Bank(modality, evaluation.levels, _read_own(entries), matched)


def _build(section: str, entries: Iterable[tuple[int, str | Mapping[str, Any]]], bank: _Bank) -> list[Shift]:
    shifts: dict[str, list[Shift]] = {}
    explicit: list[str] = []
    for index, entry in entries:
        key = section if isinstance(entry, str) else f"{section}[{index}]"
        for found in _read_entry(key, entry, bank):
            shifts.setdefault(found[0].name, found)
            if not isinstance(entry, str) or entry not in GROUPS:
                explicit.append(found[0].name)
    check_once(section, tuple(explicit))
    return [shift for found in shifts.values() for shift in found]


def stain_name(haematoxylin: float, eosin: float) -> str:
    """Return the name of a cell of the stain grid, e.g. ``stain_h0.5_e2``."""
    return f"stain_h{haematoxylin:g}_e{eosin:g}"


def _read_entry(key: str, entry: str | Mapping[str, Any], bank: _Bank) -> list[list[Shift]]:
    """Return one list of shifts per name."""
    if isinstance(entry, str):
        names = _expand(key, entry, bank.modality)
    elif "compose" in entry:
        return [_read_composition(key, entry, bank)]
    elif "stain" in entry:
        names = _read_stains(key, entry)
    elif "op" in entry:
        names = (str(entry["name"]),)  # already in ``bank.own``
    else:
        raise ConfigError(
            f"{key}: found a mapping with {', '.join(map(str, entry)) or 'nothing'}, expected one with compose, with "
            "stain, or with name, op and strengths"
        )
    check_known(key, names, (*SHIFT_NAMES, *bank.own, *GROUPS), also=STAIN_NAME)
    return [[bank.find(name, severity) for severity in bank.known_severities(name)] for name in names]


def _expand(key: str, name: str, modality: str) -> tuple[str, ...]:
    """Return the bank's names that a group, an alias or a name stands for."""
    if name == "all":
        return DEFAULT_NAMES
    if name == "stain-grid":
        return tuple(stain_name(h, e) for h, e in itertools.product(STAIN_FACTORS, repeat=2) if (h, e) != (0.0, 0.0))
    if name == "medmnist-c":
        check_has_table(key, modality)
    return load_groups(modality).get(name, (load_aliases().get(name, name),))


def _read_own(
    entries: Sequence[tuple[int, str | Mapping[str, Any]]],
) -> dict[str, tuple[Operation, tuple[Strength, ...]]]:
    """Return the shifts registered by packages and those defined by the study, by name."""
    own = {name: (shift.operation, shift.strengths) for name, shift in registered_shifts().items()}
    for name in own:
        _check_free("registered shifts", read_name("registered shifts", name), ())
    operations = OPERATIONS | strong.OPERATIONS | {"stain": STAIN}
    for index, entry in entries:
        if isinstance(entry, str) or "op" not in entry:
            continue
        key = f"evaluation.shifts[{index}]"
        fields = read_mapping(key, entry, required=("name", "op", "strengths"))
        name = read_name(f"{key}.name", fields["name"])
        _check_free(f"{key}.name", name, own)
        check_known(f"{key}.op", [fields["op"]], tuple(operations))
        operation = operations[fields["op"]]
        size = len(operation.identity) if isinstance(operation.identity, tuple) else 1
        strengths = read_strengths(f"{key}.strengths", fields["strengths"], size)
        _check_range(f"{key}.strengths", fields["op"], strengths)
        own[name] = operation, strengths
    return own


def _check_range(key: str, operation: str, strengths: Sequence[Strength]) -> None:
    """Check that no number is negative where no published one is, or far larger than the published ones."""
    published = [_list_numbers(row) for table in load_tables().values() for row in table.get(operation, ())]
    largest = [FAR_BEYOND * max(column) for column in zip(*published, strict=True)]
    for strength in strengths:
        for index, number in enumerate(_list_numbers(strength)):
            low, high = (0.0, largest[index]) if largest else (-FAR_BEYOND, FAR_BEYOND)
            if not low <= number <= high:
                raise ConfigError(f"{key}: found {number:g}, expected a number from {low:g} to {high:g} here")


def _list_numbers(strength: Strength) -> tuple[float, ...]:
    return strength if isinstance(strength, tuple) else (strength,)


def _check_free(key: str, name: str, own: Container[str]) -> None:
    # A shift called identity would be taken for the unshifted images.
    if name in own or name in OPERATIONS or name in (*GROUPS, IDENTITY.name) or STAIN_NAME.fullmatch(name):
        raise ConfigError(f"{key}: {name!r} is taken; choose another name")


def _read_stains(key: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    fields = read_mapping(key, entry, required=("stain",))
    factors = read_mapping(f"{key}.stain", fields["stain"], required=("haematoxylin", "eosin"))
    haematoxylin, eosin = (read_numbers(f"{key}.stain.{name}", factors[name]) for name in ("haematoxylin", "eosin"))
    return tuple(itertools.starmap(stain_name, itertools.product(haematoxylin, eosin)))


def _read_composition(key: str, entry: Mapping[str, Any], bank: _Bank) -> list[Shift]:
    """Return one shift if every part has a fixed severity, else one per severity of the evaluation."""
    fields = read_mapping(key, entry, required=("compose",), optional=("name",))
    words = fields["compose"]
    if not isinstance(words, list | tuple) or len(words) < 2 or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{key}.compose: found {words!r}, expected two or more of the form name or name/severity")
    parts = [_read_part(f"{key}.compose", word, bank) for word in words]
    default = "_then_".join(f"{name}{severity or ''}" for name, severity in parts)
    name = read_name(f"{key}.name", fields.get("name", default))
    _check_free(f"{key}.name", name, bank.own)
    is_fixed = all(fixed or STAIN_NAME.fullmatch(part) for part, fixed in parts)
    found = []
    for severity in (1,) if is_fixed else bank.severities:
        shifts = tuple(bank.at(part, fixed or _severity_of(part, severity)) for part, fixed in parts)
        strength = tuple(float(shift.severity) for shift in shifts)
        found.append(Shift(name, severity, strength, compose(shifts)))
    return found


def _severity_of(part: str, severity: int) -> int:
    return 1 if STAIN_NAME.fullmatch(part) else severity


def _read_part(key: str, word: str, bank: _Bank) -> tuple[str, int | None]:
    """Return the name and the severity of a part. The severity is None if the evaluation's severities apply."""
    name, _, severity = word.partition("/")
    name = load_aliases().get(name, name)
    check_known(key, [name], (*SHIFT_NAMES, *bank.own), also=STAIN_NAME)
    if not severity:
        _check_severities(key, word, bank, name, bank.severities)
        return name, None
    if not severity.isdecimal():
        raise ConfigError(f"{key}: found {word!r}, expected name/severity with a whole severity")
    _check_severities(key, word, bank, name, (int(severity),))
    return name, int(severity)


def _check_severities(key: str, word: str, bank: _Bank, name: str, severities: Iterable[int]) -> None:
    largest = len(bank.own[name][1]) if name in bank.own else 5
    if not all(1 <= severity <= largest for severity in severities):
        raise ConfigError(f"{key}: found {word!r}, expected {name} with a severity from 1 to {largest}")
