"""Settings in which the sides of a comparison differ although the comparison does not vary them.

A comparison varies factors; what their levels set is meant to differ. A condition of the study file can set any other
field in some of the arms: the sides then differ in it too, and the effect is that of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from orchestrator.study.contrasts import find_contrast
from orchestrator.study.grid import Arm, Grid, format_label
from orchestrator.study.hypotheses import Hypothesis, list_measured
from orchestrator.study.search.tuning import TuningConfig
from trainables.errors import StudyError

#: Numbers in this range are written without an exponent.
_SMALLEST, _LARGEST = 1e-9, 1e16
#: Value of a field that an arm does not have, because its section is of another kind.
_ABSENT = "absent"

#: Levels of the factors that a comparison does not vary → for each side, the numbers of its arms.
Cells = Mapping[tuple[str, ...], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class FieldDifference:
    """A field that differs between the sides of a comparison beyond the factors that the comparison varies."""

    #: Dotted field of the trial.
    field: str
    #: Name of each side, with the value that its arms have, as text.
    values: tuple[tuple[str, str], ...]
    #: Number of cells in which the sides have these values, and number of cells of the comparison.
    num_cells: int
    num_cells_in_all: int

    def describe(self) -> str:
        """Return the difference in words: ``training.learning_rate: 0.001 (control) / 0.00003 (treatment)``."""
        sides: dict[str, list[str]] = {}
        for side, value in self.values:
            sides.setdefault(value, []).append(side)
        text = " / ".join(f"{value} ({'; '.join(names)})" for value, names in sides.items())
        part = f", in {self.num_cells} of {self.num_cells_in_all} cells" * (self.num_cells < self.num_cells_in_all)
        return f"{self.field}: {text}{part}"


@dataclass(frozen=True)
class Settings:
    """Fields in which the arms of a study differ, and where their values come from."""

    #: Factor → level, for each arm.
    levels: tuple[Mapping[str, str], ...]
    #: Dotted field → its value in each arm, as text.
    values: Mapping[str, tuple[str, ...]]
    #: Factor → those of these fields that its levels set.
    set_by: Mapping[str, frozenset[str]]
    #: Dotted field → numbers of the arms in which a condition has set it.
    conditioned: Mapping[str, frozenset[int]]


def read_settings(
    arms: Sequence[Mapping[str, str]], configs: Sequence[Mapping[str, Any]], grid: Grid, *, tuned: Sequence[str] = ()
) -> Settings:
    """Return the settings in which the arms of a study differ.

    Args:
        arms: factor → level of each arm.
        configs: resolved config of each arm, in plain values.
        grid: grid of the study, whose levels and conditions have set the fields.
        tuned: dotted fields that every arm is tuned in; whatever they are, the arms are matched in them.
    """
    flat = [
        {name: value for name, value in _flatten(config) if not any(_covers(field, name) for field in tuned)}
        for config in configs
    ]
    names = dict.fromkeys(name for fields in flat for name in fields)
    first = flat[0] if flat else {}
    varied = [
        name
        for name in names
        if any(name not in fields or name not in first or fields[name] != first[name] for fields in flat)
    ]
    conditioned: dict[str, set[int]] = {name: set() for name in varied}
    for _, match, assignments in grid.conditions:
        fields = [name for name in varied if any(_covers(".".join(each.path), name) for each in assignments)]
        numbers = [number for number, arm in enumerate(arms) if all(arm[f] in labels for f, labels in match.items())]
        for name in fields:
            conditioned[name].update(numbers)
    return Settings(
        levels=tuple(arms),
        values={name: tuple(_format(each[name]) if name in each else _ABSENT for each in flat) for name in varied},
        set_by={
            factor: frozenset(
                name
                for name in varied
                if any(_covers(".".join(each.path), name) for _, assignments in levels for each in assignments)
            )
            for factor, levels in grid.factors.items()
        },
        conditioned={name: frozenset(numbers) for name, numbers in conditioned.items()},
    )


def find_other_differences(cells: Cells, sides: Sequence[str], settings: Settings) -> list[FieldDifference]:
    """Return the fields that differ between the sides within a cell beyond the factors that vary there.

    A field differs as meant if the levels of such a factor set it, and no condition has set it in an arm of the cell.
    A section that one side alone has, such as the images of a step, is listed by its kind.

    Args:
        cells: arms to compare.
        sides: name of each side, in the order in which they are shown.
        settings: settings of all arms.
    """
    found: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
    for parts in cells.values():
        numbers = [number for part in parts for number in part]
        varied = [name for name in settings.set_by if len({settings.levels[number][name] for number in numbers}) > 1]
        texts = {
            name: [_join([values[number] for number in part]) for part in parts]
            for name, values in settings.values.items()
        }
        meant = {name for factor in varied for name in settings.set_by[factor]}
        listed = {
            name: each
            for name, each in texts.items()
            if len(set(each)) > 1 and not (name in meant and settings.conditioned[name].isdisjoint(numbers))
        }
        of_one_side = {name for name, each in listed.items() if _ABSENT in each}
        for name, each in listed.items():
            if not _find_kinds(name) & of_one_side:
                found[name, tuple(zip(sides, each, strict=True))] += 1
    return [FieldDifference(name, values, count, len(cells)) for (name, values), count in found.items()]


def find_differences_of_hypotheses(
    hypotheses: Iterable[Hypothesis], settings: Settings, factors: Mapping[str, Sequence[str]]
) -> dict[str, list[FieldDifference]]:
    """Return name of a hypothesis → the fields in which its sides differ beyond its factors.

    Args:
        hypotheses: hypotheses of a study file without problems.
        settings: settings of its arms.
        factors: factor → its levels.
    """
    found = {}
    for hypothesis in hypotheses:
        differences: dict[FieldDifference, None] = {}
        for each in list_measured(hypothesis):
            contrast = find_contrast(each, settings.levels, factors)
            step = -1 if contrast.levels is None else 1  # control before treatment, but the levels of a trend ascend
            cells = {key: parts[::step] for key, parts in contrast.cells.items()}
            differences |= dict.fromkeys(find_other_differences(cells, contrast.parts[::step], settings))
        found[hypothesis.name] = list(differences)
    return found


def find_differences_of_levels(
    settings: Settings, factors: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, list[FieldDifference]]]:
    """Return factor → level → the fields in which it differs from the first level beyond what the two levels set.

    Levels that differ in nothing else are left out.

    Args:
        settings: settings of the arms.
        factors: factor → its levels, the reference first.
    """
    found: dict[str, dict[str, list[FieldDifference]]] = {}
    for factor, (reference, *levels) in factors.items():
        by_cell: dict[tuple[str, ...], dict[str, int]] = {}
        for number, arm in enumerate(settings.levels):
            key = tuple(level for name, level in arm.items() if name != factor)
            by_cell.setdefault(key, {})[arm[factor]] = number
        for level in levels:
            pairs = {
                key: ((arms[reference],), (arms[level],))
                for key, arms in by_cell.items()
                if reference in arms and level in arms
            }
            others = find_other_differences(pairs, (reference, level), settings)
            if others:
                found.setdefault(factor, {})[level] = others
    return found


def check_ceteris_paribus(found: Mapping[str, Sequence[FieldDifference]]) -> None:
    """Check that the sides of no hypothesis differ in more than the factors that it names.

    Args:
        found: name of a hypothesis → other fields that differ.

    Raises:
        StudyError: if a field differs; the message names the hypotheses, the fields and their values.
    """
    lines = [f"{name}: {each.describe()}" for name, differences in found.items() for each in differences]
    if lines:
        raise StudyError(
            "ceteris_paribus: found strict, and the sides of hypotheses differ in more than the factors that they "
            "name. Set these fields alike in conditions, make them levels of a factor that the hypothesis names, or "
            "say ceteris_paribus: report\n  " + "\n  ".join(lines)
        )


# --------------------------------------------------------------------------- in plan.json


def describe_all_differences(
    settings: Settings, found: Mapping[str, Sequence[FieldDifference]], factors: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return the differences as ``plan.json`` holds them, in words.

    Args:
        settings: settings of the arms.
        found: name of a hypothesis → other fields that differ.
        factors: factor → its levels, the reference first.
    """
    of_levels = find_differences_of_levels(settings, factors)
    return {
        "hypotheses": {name: [each.describe() for each in differences] for name, differences in found.items()},
        "levels": {
            factor: {level: [each.describe() for each in differences] for level, differences in levels.items()}
            for factor, levels in of_levels.items()
        },
    }


def read_differences(plan: Mapping[str, Any], hypothesis: str) -> list[str] | None:
    """Return the fields in which the sides of a hypothesis differ beyond its factors, in words.

    Args:
        plan: content of ``plan.json``.
        hypothesis: name of the hypothesis.

    Returns:
        One line per field; None if the plan does not record them.
    """
    recorded = plan.get("differences", {}).get("hypotheses", {}).get(hypothesis)
    return None if recorded is None else list(recorded)


def read_differences_of_levels(plan: Mapping[str, Any]) -> list[str] | None:
    """Return a line for each field in which a level differs from its factor's first level beyond what both set.

    Args:
        plan: content of ``plan.json``.

    Returns:
        None if the plan does not record them.
    """
    if "differences" not in plan:
        return None
    return [
        f"{factor}, {level}: {line}"
        for factor, levels in plan["differences"]["levels"].items()
        for level, lines in levels.items()
        for line in lines
    ]


# --------------------------------------------------------------------------- tuning

#: Said of a comparison in a study without ``tuning``.
_NOT_MATCHED = "not tuning-matched: no setting was tuned per arm"
#: Most arms named in a line.
_MAX_NAMED = 3


def describe_tuning(
    tuning: TuningConfig,
    candidates: Sequence[Arm],
    hypotheses: Iterable[Hypothesis],
    factors: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Return what ``plan.json`` holds about a tuning, besides the section itself.

    Args:
        tuning: section of the study.
        candidates: every arm once per candidate.
        hypotheses: hypotheses of the study.
        factors: factor → its levels.
    """
    distinct = Counter(arm.name for arm in candidates)
    arms = {arm.name: arm.levels for arm in candidates}
    compared = {}
    for hypothesis in hypotheses:
        contrast = find_contrast(hypothesis, list(arms.values()), factors)
        numbers = {number for parts in contrast.cells.values() for part in parts for number in part}
        compared[hypothesis.name] = {name: distinct[name] for i, name in enumerate(arms) if i in numbers}
    return {
        "distinct": dict(distinct),
        "all": _describe_matching(tuning, distinct),
        "hypotheses": {name: _describe_matching(tuning, each) for name, each in compared.items()},
    }


def _describe_matching(tuning: TuningConfig, distinct: Mapping[str, int]) -> str:
    text = (
        f"tuning-matched: in each replicate each arm was given {tuning.candidates} candidates of "
        f"{', '.join(tuning.space)}, chosen by {tuning.metric}"
    )
    fewer = {name: number for name, number in distinct.items() if number < tuning.candidates}
    if not fewer:
        return text
    named = "; ".join(f"{number} of {name}" for name, number in list(fewer.items())[:_MAX_NAMED])
    more = f" and {len(fewer) - _MAX_NAMED} more arms" if len(fewer) > _MAX_NAMED else ""
    return f"{text}; fewer of them differ where a field does not apply: {named}{more}"


def read_matching(plan: Mapping[str, Any], hypothesis: str | None = None) -> str:
    """Return in one line whether the arms of a study, or of one hypothesis, are tuning-matched.

    Args:
        plan: content of ``plan.json``.
        hypothesis: name of the hypothesis; None for all arms.
    """
    tuning = plan.get("tuning")
    if tuning is None:
        return _NOT_MATCHED
    return str(tuning["all"] if hypothesis is None else tuning["hypotheses"].get(hypothesis, tuning["all"]))


# --------------------------------------------------------------------------- values


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted field and value of everything that is not a section, and of empty sections."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _find_kinds(name: str) -> set[str]:
    """Return the fields that name the kinds of the sections in which a field is: of a.b.c a.kind and a.b.kind."""
    parts = name.split(".")
    return {".".join([*parts[:depth], "kind"]) for depth in range(1, len(parts))} - {name}


def _covers(path: str, name: str) -> bool:
    """Return whether ``path`` is the field ``name`` or a section that contains it."""
    return name == path or name.startswith(f"{path}.")


def _join(values: Sequence[str]) -> str:
    """Return the value of a side's arms, or all their values with their shares of the arms, in a fixed order."""
    counts = Counter(values)
    if len(counts) == 1:
        return values[0]
    shares = {value: Fraction(count, len(values)) for value, count in sorted(counts.items())}
    return ", ".join(f"{value} in {share} of the arms" for value, share in shares.items())


def _format(value: Any) -> str:
    """Return a value as text, floats without an exponent where that is readable."""
    if isinstance(value, float) and _SMALLEST <= abs(value) < _LARGEST:
        return format(Decimal(repr(value)).normalize(), "f")
    return format_label(value)
