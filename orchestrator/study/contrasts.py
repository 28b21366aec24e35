"""Contrast of a hypothesis: the groups of arms that it compares, and the number of units that its test needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.study.grid import Match, find_label, format_label
from orchestrator.study.hypotheses import (
    MIN_CORRELATED,
    MIN_SITES,
    MIN_TREND_LEVELS,
    Correlation,
    Equivalence,
    Hypothesis,
    Interaction,
    Trend,
    counts_sites,
    get_claimed_size,
    list_measured,
    split_metric,
)
from orchestrator.study.yaml_source import resolve_scalar
from trainables.errors import StudyError
from trainables.evaluation.metric_tables.views import split_view

# --------------------------------------------------------------------------- contrasts


class ContrastError(StudyError):
    """Raised if the arms of a hypothesis cannot be compared; the message gives the reason."""


#: For each group of a contrast, the numbers of its arms in one cell.
Cell = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of the means of groups of arms, within each cell."""

    #: Name of each group.
    parts: tuple[str, ...]
    #: Weight of each group's mean.
    weights: tuple[float, ...]
    #: Number that each group stands for, None if the hypothesis is not a trend. In the trend of a difference the
    #: treatments of all levels come first, then the controls in the same order.
    levels: tuple[float, ...] | None
    #: Levels of the factors in which the groups do not differ → for each group, the indices of its arms.
    cells: Mapping[tuple[str, ...], Cell]


def find_contrast(
    hypothesis: Hypothesis, arms: Sequence[Mapping[str, str]], factors: Mapping[str, Sequence[str]]
) -> Contrast:
    """Return the contrast that a hypothesis compares; of a correlation, its first gain.

    Args:
        hypothesis: hypothesis of a study file.
        arms: factor → label for each arm; arms that the study leaves out may be missing.
        factors: factor → its labels, including labels that no arm has.

    Raises:
        ContrastError: if a group has no arm, an arm is in two groups, no cell has all groups, or the levels of a trend
            are not numbers or fewer than three.
    """
    where = _resolve(hypothesis.where or {}, factors)
    groups, weights, levels = _find_groups(hypothesis, factors)
    shared = [factor for factor in factors if not _is_varied(factor, list(groups.values()))]
    cells: dict[tuple[str, ...], list[list[int]]] = {}
    used: Counter[str] = Counter()
    for number, arm in enumerate(arms):
        member = [position for position, match in enumerate(groups.values()) if _matches(match | where, arm)]
        if len(member) > 1:
            first, second = (list(groups)[position] for position in member[:2])
            raise ContrastError(f"the arm {_describe(arm)} is in {first} and in {second}; every arm has to be in one")
        for position in member:
            used[list(groups)[position]] += 1
            key = tuple(arm[factor] for factor in shared)
            cells.setdefault(key, [[] for _ in groups])[position].append(number)
    for name in groups:
        if not used[name]:
            raise ContrastError(f"no arm is in {name}")
    whole = {key: tuple(map(tuple, parts)) for key, parts in cells.items() if all(parts)}
    if not whole:
        raise ContrastError(
            f"no arms can be paired: none of {', '.join(groups)} has a counterpart that is equal in everything else"
        )
    return Contrast(tuple(groups), weights, levels, whole)


def find_shared_sites(arms: Iterable[int], sites: Sequence[frozenset[str] | None]) -> frozenset[str] | None:
    """Return the external sets that all of some arms have, None if those of one of them are not known.

    Args:
        arms: numbers of the arms, at least one.
        sites: external sets of each arm; None: not known, because none of its trials is complete.
    """
    found = [sites[arm] for arm in arms]
    known = [each for each in found if each is not None]
    return frozenset.intersection(*known) if len(known) == len(found) else None


def drop_apart(contrast: Contrast, metric: str, sites: Sequence[frozenset[str] | None]) -> Contrast:
    """Return the contrast without the cells whose arms have no external set in common that the metric is about.

    Arms that leave out different sites, or have other data, are tested on other external sets: their values differ by
    the sets, not only by the arms. Where sites are left out one at a time, arms are compared within each of them.

    Args:
        contrast: groups of arms to compare.
        metric: metric of the hypothesis; one that is not about external sets leaves all cells.
        sites: external sets of each arm (``find_shared_sites``); if no arm has any, all cells are left.

    Raises:
        ContrastError: if no cell is left.
    """
    _, within = split_view(metric)
    if not within.startswith("external/") or not any(sites):
        return contrast
    kind, name, _ = split_metric(within)
    whole = {}
    for key, parts in contrast.cells.items():
        shared = find_shared_sites((arm for arms in parts for arm in arms), sites)
        if shared is None or (name in shared if kind else shared):
            whole[key] = parts
    if not whole:
        what = f"are all tested on the external set {name!r}" if kind else "have an external set in common"
        raise ContrastError(f"no arms that differ only in what is compared {what}")
    return replace(contrast, cells=whole)


def list_compared(
    hypothesis: Hypothesis, arms: Sequence[Mapping[str, str]], sites: Sequence[frozenset[str] | None] = ()
) -> list[int]:
    """Return the numbers of the arms that a hypothesis compares, in ascending order; of a correlation, one gain's.

    Args:
        hypothesis: a hypothesis without problems.
        arms: factor → level of every arm.
        sites: external sets of each arm; none: not looked at.

    Raises:
        ContrastError: nothing can be compared.
    """
    factors = {name: list(dict.fromkeys(arm[name] for arm in arms)) for name in (arms[0] if arms else ())}
    contrast = drop_apart(find_contrast(hypothesis, arms, factors), hypothesis.metric, sites)
    return sorted({number for parts in contrast.cells.values() for part in parts for number in part})


def group_cells(
    hypothesis: Correlation, arms: Sequence[Mapping[str, str]], factors: Mapping[str, Sequence[str]]
) -> dict[str, tuple[list[Cell], list[Cell]]]:
    """Return level of ``across`` → the cells of each gain there, of the levels that have both.

    Args:
        hypothesis: a hypothesis without problems.
        arms: factor → label of every arm.
        factors: factor → its labels.

    Raises:
        ContrastError: a gain can be compared nowhere, or no level has both.
    """
    found: dict[str, tuple[list[Cell], list[Cell]]] = {}
    for position, gain in enumerate(list_measured(hypothesis)):
        for cell in find_contrast(gain, arms, factors).cells.values():
            found.setdefault(arms[cell[0][0]][hypothesis.across], ([], []))[position].append(cell)
    whole = {level: cells for level in factors[hypothesis.across] if (cells := found.get(level)) and all(cells)}
    if not whole:
        raise ContrastError(f"no level of {hypothesis.across} has both gains")
    return whole


def compute_smallest_p(
    hypothesis: Hypothesis, num_units: int, num_levels: int = 0, *, num_trainings: int | None = None
) -> float:
    """Return the uncorrected p-value of a verdict when all ``num_units`` units agree, 1 if they are too few for any.

    Two-sided, n differences of one sign give 2 · 2⁻ⁿ by sign flips, signs and signed ranks, one-sided (equivalence)
    2⁻ⁿ; n blocks of k levels in perfect order give 2 / (k!)ⁿ by Page's test, which says nothing about a trend's size;
    of the n! orders of n pairs two have the largest rank correlation, and one has the largest of Pearson's.

    Args:
        hypothesis: a hypothesis with a verdict.
        num_units: number of replicates, of external sites, or of levels of a correlation.
        num_levels: number of levels of a trend.
        num_trainings: number of independent trainings behind the sites; None: enough.
    """
    from orchestrator.statistics.intervals import MIN_REPLICATES  # imports NumPy

    if isinstance(hypothesis, Correlation):
        strongest = (2 if hypothesis.test == "spearman" else 1) / math.factorial(num_units)
        return 1.0 if num_units < MIN_CORRELATED else strongest
    if num_units < (MIN_SITES if counts_sites(hypothesis) else MIN_REPLICATES):
        return 1.0
    if counts_sites(hypothesis) and num_trainings is not None and num_trainings < MIN_REPLICATES:
        return 1.0
    has_size = get_claimed_size(hypothesis) > 0
    ways = math.factorial(num_levels) if hypothesis.test == "page" and not has_size else 2
    # Whole numbers: as a float the number of orders of many levels overflows.
    return (1 if isinstance(hypothesis, Equivalence) else 2) / ways**num_units


def num_units_needed(hypothesis: Hypothesis, num_levels: int = 0) -> int:
    """Return the smallest number of units with which the uncorrected p-value of a test can reach α."""
    num_units = 1
    while compute_smallest_p(hypothesis, num_units, num_levels) > hypothesis.alpha:
        num_units += 1
    return num_units


def describe_needed(hypothesis: Hypothesis, num_needed: int) -> str:
    """Return how many units a verdict takes: "6", or over sites "6 external sites and 5 replicates"."""
    from orchestrator.statistics.intervals import MIN_REPLICATES  # imports NumPy

    return (
        f"{num_needed} external sites and {MIN_REPLICATES} replicates" if counts_sites(hypothesis) else f"{num_needed}"
    )


def find_units(needs: Sequence[Collection[str]]) -> list[int]:
    """Return the independent unit of each replicate: the number of the first replicate that it shares a stage with.

    Replicates of which trials started from the same pretrained encoder, or from encoders with a trained step in common,
    are one unit: what that step happens to have learned is in all of them.

    Args:
        needs: signatures of the stages behind the compared trials of each replicate.
    """
    units = list(range(len(needs)))
    first: dict[str, int] = {}  # stage → the first replicate that has it
    for number, stages in enumerate(needs):
        joined = {units[first.setdefault(stage, number)] for stage in stages} | {number}
        if len(joined) > 1:
            units = [min(joined) if unit in joined else unit for unit in units]
    return units


def count_encoders(needs: Iterable[Collection[str]]) -> int:
    """Return how many independent encoders trials started from: those that share a stage of their chain count once.

    Args:
        needs: signatures of the stages behind each trial.
    """
    return len(set(find_units([stages for stages in {frozenset(each) for each in needs} if stages])))


def name_unit(needs: Sequence[Collection[str]]) -> str:
    """Return what the units of ``find_units`` are called: replicates, independent encoders, or encoder groups.

    Where arms, or the steps of a chain, have different numbers of encoders, replicates that share one in some arm or
    step and none in another are linked to a group: with 2 encoders in one arm and 3 in another, all six are one.
    """
    units = find_units(needs)
    if len(set(units)) == len(units):
        return "replicate"
    stages = {(unit, frozenset(each)) for unit, each in zip(units, needs, strict=True)}
    return "independent encoder" if len(stages) == len(set(units)) else "encoder group"


def weigh_slope(numbers: Sequence[float]) -> tuple[float, ...]:
    """Return the weights that give the rise of the least-squares line from the first to the last of some numbers.

    Args:
        numbers: levels of a factor or severities, in ascending order.
    """
    mean = sum(numbers) / len(numbers)
    spread = sum((number - mean) ** 2 for number in numbers)
    reach = numbers[-1] - numbers[0]
    return tuple((number - mean) * reach / spread if spread else 0.0 for number in numbers)


def _find_groups(
    hypothesis: Hypothesis, labels: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, frozenset[str]]], tuple[float, ...], tuple[float, ...] | None]:
    if isinstance(hypothesis, Trend):
        known = read_numbers(labels.get(hypothesis.factor, ()))
        numbers = sorted(known) if hypothesis.levels is None else sorted(set(hypothesis.levels))
        if len(numbers) < MIN_TREND_LEVELS:
            found = f"found {len(numbers)} levels of {hypothesis.factor}"
            raise ContrastError(f"{found}, a trend has at least {MIN_TREND_LEVELS}; compare two levels by a comparison")
        groups = {
            f"{hypothesis.factor}={format_label(number)}": {hypothesis.factor: frozenset({known.get(number, "")})}
            for number in numbers
        }
        weights = weigh_slope(numbers)
        if hypothesis.treatment is None or hypothesis.control is None:
            return groups, weights, tuple(numbers)
        sides = {"treatment": _resolve(hypothesis.treatment, labels), "control": _resolve(hypothesis.control, labels)}
        both = {f"{side}, {name}": group | level for side, group in sides.items() for name, level in groups.items()}
        return both, (*weights, *(-weight for weight in weights)), tuple(numbers)
    treatment, control = (_resolve(when, labels) for when in (hypothesis.treatment, hypothesis.control))
    if not isinstance(hypothesis, Interaction):
        return {"treatment": treatment, "control": control}, (1.0, -1.0), None
    at, versus = (_resolve(when, labels) for when in (hypothesis.at, hypothesis.versus))
    groups = {
        "treatment, at": treatment | at,
        "control, at": control | at,
        "treatment, versus": treatment | versus,
        "control, versus": control | versus,
    }
    return groups, (1.0, -1.0, -1.0, 1.0), None


def read_numbers(labels: Sequence[str]) -> dict[float, str]:
    """Return number → label for levels that are numbers.

    Raises:
        ContrastError: if a label is not a number.
    """
    numbers = {label: resolve_scalar(label) for label in labels}
    words = [label for label, number in numbers.items() if isinstance(number, bool | str | None)]
    if words:
        raise ContrastError(f"found the level {words[0]!r}, a trend needs levels that are numbers")
    return {float(number): label for label, number in numbers.items() if isinstance(number, int | float)}


def _resolve(when: Mapping[str, Any], labels: Mapping[str, Sequence[str]]) -> dict[str, frozenset[str]]:
    return {
        factor: frozenset(
            label
            for item in (wanted if isinstance(wanted, list | tuple) else [wanted])
            if (label := find_label(item, labels.get(factor, ()))) is not None
        )
        for factor, wanted in when.items()
    }


def _is_varied(factor: str, groups: Sequence[Match]) -> bool:
    return len({group.get(factor) for group in groups}) > 1


def _matches(match: Match, arm: Mapping[str, str]) -> bool:
    return all(arm.get(factor) in labels for factor, labels in match.items())


def _describe(arm: Mapping[str, str]) -> str:
    return repr(", ".join(f"{factor}={level}" for factor, level in arm.items()))
