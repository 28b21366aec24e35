"""Evidence for a correlation of two gains across the levels of a factor, such as data sets: one pair for each level.

A level's gain is the mean over its cells and replicates. Chance in a trained model, and in a control that two gains
share, is in both gains if both come from the same trainings, and correlates them where the true gains are not. So they
come from different replicates unless the hypothesis asks otherwise; replicates that share a pretrained encoder stay on
one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.inference.evidence import Evidence, combine, no_evidence
from orchestrator.analysis.inference.measured import Measured
from orchestrator.analysis.inference.scope import find_scope
from orchestrator.analysis.inference.units import mean_of_defined
from orchestrator.analysis.wording import plural
from orchestrator.statistics.intervals import Array
from orchestrator.statistics.trend import MIN_PAIRS, correlation_test
from orchestrator.study.contrasts import (
    Cell,
    Contrast,
    ContrastError,
    compute_smallest_p,
    group_cells,
    num_units_needed,
)
from orchestrator.study.hypotheses import MIN_CORRELATED, Correlation, list_gains


@dataclass(frozen=True)
class _Gain:
    """One gain at one level."""

    #: Mean over cells and replicates, NaN if no pair is complete.
    value: float
    #: Numbers of pairs (cell × replicate): planned and with every value defined.
    num_planned: int
    num_complete: int
    #: Arm and replicate of every trained model in it, by their numbers.
    models: frozenset[tuple[int, int]]


def assess_correlation(hypothesis: Correlation, measured: Measured) -> Evidence:
    """Return the evidence for a correlation: its coefficient, the gains of every level, and p from 6 levels on.

    There is no interval: none is known to hold its level over so few gains, which are no draws from a normal
    distribution.
    """
    plan = measured.results.plan
    factors = {name: [str(label) for label in labels] for name, labels in plan["factors"].items()}
    try:
        levels = group_cells(hypothesis, measured.arms, factors)
    except ContrastError as error:
        return no_evidence(f"the plan has nothing to correlate: {error}")
    tables = [measured.values(gain) for gain in list_gains(hypothesis)]
    spread = [None if table.empty else measured.spread(table) for table in tables]
    found = {
        level: [
            _measure_gain(each, table, measured.planned & chosen)
            for each, table, chosen in zip(cells, spread, _choose_replicates(hypothesis, cells, measured), strict=True)
        ]
        for level, cells in levels.items()
    }
    gains = [gain for pair in found.values() for gain in pair]
    pairs = {
        level: (one.value, other.value)
        for level, (one, other) in found.items()
        if np.isfinite(one.value) and np.isfinite(other.value)
    }
    num_planned, num_complete = (sum(counts) for counts in zip(*map(_count, gains), strict=True))
    first, other = np.array(list(pairs.values())).reshape(-1, 2).T
    tested = correlation_test(first, other, coefficient=hypothesis.test, seed=plan["seed"])
    if tested is None:
        why = "all of one side’s gains are equal" if len(pairs) >= MIN_PAIRS else "fewer than three have both gains"
        return no_evidence(f"no correlation across {hypothesis.across}: {why}", num_planned=num_planned)
    models = frozenset[tuple[int, int]]().union(*(gain.models for gain in gains))
    return Evidence(
        effect=tested.coefficient,
        interval=None,
        p_value=tested.p_value if len(pairs) >= MIN_CORRELATED else None,
        p_size=None,
        differences=tuple(map(float, first)),
        smallest_p=compute_smallest_p(hypothesis, len(pairs)),
        num_needed=num_units_needed(hypothesis),
        units=_name_units(hypothesis, len(pairs)),
        num_planned=num_planned,
        num_complete=num_complete,
        means={},
        gains=pairs,
        scope=find_scope(
            plan,
            hypothesis.metric,
            num_models=len(models),
            num_encoders=measured.group_replicates(sorted({arm for arm, _ in models}))[1],
            external=measured.external,
            data_sets=dict.fromkeys(measured.data_sets[arm] for arm, _ in sorted(models)),
            remarks=measured.list_remarks(arm for arm, _ in sorted(models)),
        ),
    )


def _count(gain: _Gain) -> tuple[int, int]:
    return gain.num_planned, gain.num_complete


def _name_units(hypothesis: Correlation, number: int) -> str:
    return f"{plural(number, 'level')} of {hypothesis.across}"


def _measure_gain(cells: Sequence[Cell], table: Array | None, chosen: NDArray[np.bool_]) -> _Gain:
    """Return a gain at one level.

    Args:
        cells: arms of treatment and control, for each cell of the level.
        table: values as arms × replicates × columns; None if no trial has the metric.
        chosen: whether a trial takes part, as arms × replicates.
    """
    contrast = Contrast(("treatment", "control"), (1.0, -1.0), None, {(str(n),): cell for n, cell in enumerate(cells)})
    is_planned = (combine(chosen[..., None].astype(float), contrast) == 1).all(axis=(2, 3))
    if table is None:
        return _Gain(np.nan, int(is_planned.sum()), 0, frozenset())
    parts = combine(table, contrast)
    differences = parts[:, :, 0] - parts[:, :, 1]
    differences[~is_planned] = np.nan
    is_complete: NDArray[np.bool_] = np.array(np.isfinite(differences).any(axis=2))
    models = frozenset(
        (arm, int(replicate))
        for cell, row in zip(cells, is_complete, strict=True)
        for replicate in np.flatnonzero(row)
        for part in cell
        for arm in part
    )
    value = float(mean_of_defined(differences, (0, 1, 2)))
    return _Gain(value, int(is_planned.sum()), int(is_complete.sum()), models)


def _choose_replicates(
    hypothesis: Correlation, cells: tuple[Sequence[Cell], Sequence[Cell]], measured: Measured
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether a replicate takes part in the one gain of a level and in the other."""
    arms = sorted({arm for gain in cells for cell in gain for part in cell for arm in part})
    is_planned: NDArray[np.bool_] = np.array(measured.planned[arms].all(axis=0))
    if hypothesis.trainings == "same":
        return is_planned, is_planned
    units = measured.group_replicates(arms)[0].units
    order = {unit: number for number, unit in enumerate(dict.fromkeys(units[is_planned].tolist()))}
    is_first = np.array([order.get(unit, 0) % 2 == 0 for unit in units.tolist()])
    return is_planned & is_first, is_planned & ~is_first
