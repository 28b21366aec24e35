"""Factors × levels → arms. The grid is checked before arms are built, so that all problems are reported at once."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, ValidationError

from orchestrator.study.fields import FIELDS, SECTIONS, describe_replicate, suggest
from orchestrator.study.problems import explain, list_options
from orchestrator.study.yaml_source import Key, Source, format_key, format_value, resolve_scalar
from trainables.config import TrialConfig

#: Assumption: a larger full grid is a mistake, and a search is meant.
MAX_ARMS = 10_000

#: Assumption: far more conditions or exclusions than a study has. Each is compared with every arm.
MAX_RULES = 1000

#: Names of factors that are not a field. They become tags and parameters in MLflow.
_FACTOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")

Label = str | int | float | bool | None
#: Factor → one or several levels; at least one factor.
When = Annotated[dict[str, Label | list[Label]], Field(min_length=1)]

#: Callback that receives a key of the study file and the text of a problem there.
Report = Callable[[Key, str], None]


@dataclass(frozen=True)
class Arm:
    """One combination of levels and the trial config it resolves to."""

    #: Factor → label of its level, in the order of the file.
    levels: dict[str, str]
    #: Config of replicate 0.
    config: TrialConfig
    #: Number of the candidate whose settings the config has (``tuning``), and these by field; None without tuning.
    candidate: int | None = None
    tuned: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Levels as text (``pretraining=scratch, augmentation.strength=0.5``), ``base`` if there are no factors."""
        return _name(self.levels)


@dataclass(frozen=True)
class Assignment:
    """One field of the trial and the value it is set to; ``{}`` empties a section."""

    path: tuple[str, ...]
    value: Any
    #: Key in the study file.
    source: Key


#: Label of a level and the assignments that the level makes.
Level = tuple[str, tuple[Assignment, ...]]
#: Factor → labels. Matches the arms that have one of the labels for every factor.
Match = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Grid:
    """Base values, factors, conditions and exclusions of a study, checked without building an arm."""

    base: tuple[Assignment, ...]
    factors: Mapping[str, tuple[Level, ...]]
    conditions: tuple[tuple[Key, Match, tuple[Assignment, ...]], ...]
    exclude: tuple[Match, ...]
    #: Whether no part was left out because of a problem; only then are fields that an arm lacks reported.
    is_complete: bool

    def assignments(self) -> Iterator[Assignment]:
        """Yield all assignments of the base, the levels and the conditions."""
        yield from self.base
        for levels in self.factors.values():
            for _, assignments in levels:
                yield from assignments
        for _, _, assignments in self.conditions:
            yield from assignments


def format_label(value: Any) -> str:
    """Return the label of a level that is given as a value: 0, 0.5, 1 (also for 1.0), none, true."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_label, value))}]"
    return str(value)


def _name(levels: Mapping[str, str]) -> str:
    return ", ".join(f"{factor}={level}" for factor, level in levels.items()) or "base"


def flatten(path: tuple[str, ...], value: Any, source: Key, report: Report) -> list[Assignment]:
    """Return the assignments that set field ``path`` to ``value``, one per field, shallow fields first.

    For a section with kinds, a bare string is short for ``{kind: string}``. A mapping that names a kind replaces the
    section, one that does not is merged into it. Inner keys may be dotted.

    Args:
        path: field of the trial, split at the dots.
        value: value from the study file.
        source: key of the value in the study file.
        report: callback for problems.
    """
    dotted = ".".join(path)
    field = FIELDS.get(dotted)
    if field is None:
        parent = FIELDS.get(".".join(path[:-1]))
        valid = [name for name in FIELDS if parent is None or name.startswith(f"{parent.path}.")]
        report(source, f"the trial has no field {dotted}{list_options(dotted, valid)}")
        return []
    if not field.models:
        return [Assignment(path, value, source)]
    if field.kinds and isinstance(value, str):
        return [Assignment(path, {}, source), Assignment((*path, "kind"), value, source)]
    if not isinstance(value, Mapping):
        expected = f"one of {', '.join(field.kinds)}, or " if field.kinds else ""
        report(source, f"found {format_value(value)}, expected {expected}a mapping with fields of {dotted}")
        return []
    found = [Assignment(path, {}, source)] if field.kinds and "kind" in value else []
    if len(field.kinds) == 1 and "kind" not in value:  # the section's name is enough: combined: {sam: {}}
        found.append(Assignment((*path, "kind"), field.kinds[0], source))
    for name, inner in value.items():
        found += flatten((*path, *name.split(".")), inner, (*source, name), report)
    return _shallow_first(found)


def _shallow_first(assignments: Sequence[Assignment]) -> list[Assignment]:
    return sorted(assignments, key=lambda assignment: len(assignment.path))


def read_grid(source: Source) -> Grid:
    """Return the grid of a study file without the parts that have a problem; problems are added to ``source``.

    Values of the wrong type at the top (``factors: 3``) are left to the validation of the study.
    """
    reported: list[Key] = []

    def report(key: Key, text: str) -> None:
        reported.append(key)
        source.report(key, text)

    tree = source.value if isinstance(source.value, Mapping) else {}
    raw = tree.get("factors")
    raw = raw if isinstance(raw, Mapping) else {}
    factors = {name: levels for name in raw if (levels := _read_factor(name, raw[name], report))}
    _report_fields_set_twice(factors, report)
    conditions, exclude = [], []
    for key, entry in _entries(tree, "conditions"):
        when, sets = entry.get("when"), entry.get("set")
        if isinstance(when, Mapping) and isinstance(sets, Mapping):
            match = read_match(when, (*key, "when"), raw, factors, report)
            assignments = _read_fields(sets, (*key, "set"), report)
            if match is not None:
                conditions.append((key, match, tuple(assignments)))
    for key, entry in _entries(tree, "exclude"):
        match = read_match(entry, key, raw, factors, report)
        if match is not None:
            exclude.append(match)
    return Grid(tuple(_read_base(tree)), factors, tuple(conditions), tuple(exclude), not reported)


def _read_base(tree: Mapping[str, Any]) -> list[Assignment]:
    base: list[Assignment] = []
    for section in SECTIONS:
        default = TrialConfig.model_fields[section].default
        if FIELDS[section].kinds:
            base += [Assignment((section,), {"kind": default.kind}, (section,))]
        if section in tree:
            base += flatten((section,), tree[section], (section,), lambda *_: None)  # reported by Study
    if isinstance(tree.get("seed"), int):
        base.append(Assignment(("seed",), tree["seed"], ("seed",)))
    return base


def _entries(tree: Mapping[str, Any], name: str) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    entries = tree.get(name)
    for index, entry in enumerate(entries[:MAX_RULES] if isinstance(entries, list | tuple) else ()):
        if isinstance(entry, Mapping):
            yield (name, index), entry


def _read_factor(name: str, levels: Any, report: Report) -> tuple[Level, ...]:
    key: Key = ("factors", name)
    is_field = name in FIELDS
    if not isinstance(levels, Mapping | list | tuple):
        return ()
    if not levels:
        report(key, "found no levels, expected at least one")
        return ()
    if not is_field and ("." in name or not _FACTOR_NAME.fullmatch(name) or not isinstance(levels, Mapping)):
        rule = "a factor is a field of the trial, or a name whose levels are {label: {field: value}}"
        report(key, f"the trial has no field {name!r} ({rule}){suggest(name, FIELDS)}")
        return ()
    read: dict[str, tuple[Assignment, ...]] = {}
    for label, value, place in _labelled(levels, key, report):
        if label in read:
            report(place, f"the level {label!r} is there twice; keep one")
        elif not label.strip():
            report(place, "found an empty label, expected a name for the level")
        elif is_field:
            read[label] = tuple(flatten(tuple(name.split(".")), value, place, report))
        elif isinstance(value, Mapping):
            read[label] = tuple(_read_fields(value, place, report))
        else:
            hint = suggest(name, FIELDS)
            report(place, f"found {format_value(value)}, expected {{field: value}} as {name!r} is not a field{hint}")
    return tuple(read.items())


def _labelled(levels: Mapping[str, Any] | Sequence[Any], key: Key, report: Report) -> Iterator[tuple[str, Any, Key]]:
    if isinstance(levels, Mapping):
        for label, value in levels.items():
            yield label, value, (*key, label)
        return
    for index, value in enumerate(levels):
        if isinstance(value, Mapping):
            report((*key, index), "found a mapping in a list of levels, expected a name for it: {label: {…}, …}")
        else:
            yield format_label(value), value, (*key, index)


def _read_fields(fields: Mapping[str, Any], key: Key, report: Report) -> list[Assignment]:
    found: list[Assignment] = []
    for name, value in fields.items():
        found += flatten(tuple(name.split(".")), value, (*key, name), report)
    return _shallow_first(found)


def _report_fields_set_twice(factors: Mapping[str, tuple[Level, ...]], report: Report) -> None:
    owner: dict[tuple[str, ...], str] = {}
    for factor, levels in factors.items():
        for path in {assignment.path: None for _, assignments in levels for assignment in assignments}:
            other = owner.setdefault(path, factor)
            if other != factor:
                report(("factors", factor), f"{'.'.join(path)} is also set by the factor {other}; keep it in one")


def read_match(
    when: Mapping[str, Any], key: Key, raw: Mapping[str, Any], factors: Mapping[str, tuple[Level, ...]], report: Report
) -> Match | None:
    """Return the labels that ``when`` selects, None if a factor or level is wrong (reported here or earlier).

    Args:
        when: factor → one or several levels.
        key: key of ``when`` in the study file.
        raw: factors as they are written, including factors that could not be read.
        factors: factors that could be read.
        report: callback for problems.
    """
    match: dict[str, frozenset[str]] = {}
    for factor, wanted in when.items():
        if factor not in raw:
            report((*key, factor), f"there is no factor {factor!r}{list_options(factor, list(raw))}")
        elif factor in factors:
            labels = [label for label, _ in factors[factor]]
            found = [find_label(item, labels) for item in (wanted if isinstance(wanted, list | tuple) else [wanted])]
            for item, label in zip(wanted if isinstance(wanted, list | tuple) else [wanted], found, strict=True):
                if label is None:
                    text = format_label(item)
                    report((*key, factor), f"{factor} has no level {text!r}{list_options(text, labels)}")
            match[factor] = frozenset(label for label in found if label is not None)
    return match if len(match) == len(when) and match and all(match.values()) else None


def find_label(value: Any, labels: Sequence[str]) -> str | None:
    """Return the label that a value stands for, by text or by value (0.50 is 0.5), None if there is none."""
    text = format_label(value)
    if text in labels:
        return text
    return next((label for label in labels if format_label(resolve_scalar(label)) == text), None)


def expand(grid: Grid, source: Source) -> list[Arm]:
    """Return the valid arms in file order, the first factor varying slowest; problems are added to ``source``."""
    num_arms = math.prod(len(levels) for levels in grid.factors.values())
    if num_arms > MAX_ARMS:
        source.report(
            ("factors",), f"found {num_arms:,} combinations, expected at most {MAX_ARMS:,}; vary less at once"
        )
        return []
    broken = {key for section in SECTIONS for key in (section, f"{section}.kind")}
    is_sound = grid.is_complete and not any(problem.key in broken for problem in source.problems)
    base: dict[str, Any] = {}
    _apply(grid.base, base)
    arms: list[Arm] = []
    faults: dict[tuple[Key, str], list[str]] = {}
    unused = {key for key, _, _ in grid.conditions}
    for combination in itertools.product(*grid.factors.values()):
        levels = dict(zip(grid.factors, (label for label, _ in combination), strict=True))
        if any(_matches(match, levels) for match in grid.exclude):
            continue
        changes = _shallow_first([assignment for _, assignments in combination for assignment in assignments])
        for key, match, assignments in grid.conditions:
            if _matches(match, levels):
                unused.discard(key)
                changes += assignments
        values = _copy(base)
        _apply(changes, values)
        try:
            arms.append(Arm(levels, TrialConfig.model_validate(values)))
        except ValidationError as error:
            for fault in _faults(error, values, [*grid.base, *changes], levels, is_sound):
                faults.setdefault(fault, []).append(_name(levels))
    _report_faults(faults, source)
    if is_sound:
        _report_useless(arms, unused, source, expected_any=not faults)
    return arms


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _apply(assignments: Sequence[Assignment], tree: dict[str, Any]) -> None:
    for assignment in assignments:
        node = tree
        for part in assignment.path[:-1]:
            node = node.setdefault(part, {})
        node[assignment.path[-1]] = _copy(assignment.value)


def _matches(match: Match, levels: Mapping[str, str]) -> bool:
    return all(levels[factor] in labels for factor, labels in match.items())


def _faults(
    error: ValidationError,
    values: dict[str, Any],
    assignments: Sequence[Assignment],
    levels: dict[str, str],
    sound: bool,
) -> Iterator[tuple[Key, str]]:
    """Yield key in the study file and text for each error of an arm, located at the last assignment to the field."""
    for key, kind, text in explain(error, TrialConfig, values):
        place: Key = ("factors",) if levels else ()
        for assignment in assignments if key else ():
            length = min(len(key), len(assignment.path))
            if key[:length] == assignment.path[:length]:
                place = (*assignment.source, *key[len(assignment.path) :])
        if kind != "extra_forbidden":
            yield place, text
        elif sound:
            section: Any = values
            for part in key[:-1]:
                section = section[part]
            what = f"{format_key(key[:-1])} of kind {section.get('kind')} has no {key[-1]}"
            yield (
                place,
                f"does not apply: {what}; exclude this combination, or replace the section for it in conditions",
            )


def _report_faults(faults: Mapping[tuple[Key, str], list[str]], source: Source) -> None:
    known = {problem.key for problem in source.problems}
    for (key, text), names in faults.items():
        if key[:1] in ((), ("factors",), ("conditions",)):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            source.report(key, f"{text} (arm {names[0]}{more})")
        elif format_key(key) not in known:  # else the base value itself is wrong, and reported
            source.report(key, f"{text} (arm {names[0]})")


def _report_useless(arms: Sequence[Arm], unused: set[Key], source: Source, *, expected_any: bool) -> None:
    for key in unused:
        source.report(key, "this condition matches no arm; correct it or take it away")
    if not arms and expected_any:
        source.report(("exclude",), "every arm is excluded, expected at least one to remain")
    seen: dict[str, Arm] = {}
    configs = ((describe_replicate(arm.config), arm) for arm in arms)
    twins = [(other, arm) for config, arm in configs if (other := seen.setdefault(config, arm)) is not arm]
    if twins:
        more = f", and {len(twins) - 1} more such pairs" if len(twins) > 1 else ""
        first, second = twins[0]
        aside = "" if first.config == second.config else " (data.split and pretraining.encoders aside)"
        same = f"the arms {first.name!r} and {second.name!r} have the same configuration{aside}{more}"
        source.report(("factors",), f"{same}; exclude one of them")
