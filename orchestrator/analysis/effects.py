"""Main effect of each factor: paired differences between two levels, everything else being equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.analysis.shared_sites import pair_values
from orchestrator.analysis.wording import plural
from orchestrator.statistics.intervals import MIN_REPLICATES, Interval, drop_rounding, t_interval
from orchestrator.statistics.paired_tests import holm, permutation_test


@dataclass(frozen=True)
class Cell:
    """One matched pair: its other levels, its replicate, and the difference level minus reference."""

    name: str
    replicate: int
    difference: float


@dataclass(frozen=True)
class Effect:
    """Effect of one level against its factor's first level, averaged over all other factors and replicates.

    The unit is the replicate: its difference is the mean over its cells. Replicates of which trials start from the same
    pretrained encoder are one unit.
    """

    factor: str
    level: str
    reference: str
    #: Column of the trials table.
    measure: str
    #: Mean over units; None without a single complete pair.
    difference: float | None
    #: t interval over units; None for fewer than ``MIN_REPLICATES``.
    interval: Interval | None
    cells: tuple[Cell, ...]
    num_replicates: int
    #: Number of independent units: replicates, or pretrained encoders that replicates share (``name_unit``).
    num_units: int
    unit: str
    #: Number of planned pairs that lack a defined value on either side.
    num_missing: int
    #: Exact two-sided sign-flip test over units, which takes 6; ``p_holm``: corrected over all effects on this
    #: measure.
    p_value: float | None = None
    p_holm: float | None = None
    #: Number of shift types, and of those whose mean difference has the sign of the effect; 0 for other measures than
    #: the mean over shifts. A description of these trainings, no test: shift types are not drawn at random.
    num_shifts: int = 0
    num_same_direction: int = 0

    @property
    def units(self) -> str:
        """Number of units in words and, where there is no interval, how many it takes."""
        if not self.cells and not self.num_missing:
            return "nothing to compare"
        lacks = f": at least {MIN_REPLICATES} for an interval" if self.num_units < MIN_REPLICATES else ""
        return self.over + lacks

    @property
    def over(self) -> str:
        """Number and kind of units in words."""
        return plural(self.num_units, "replicate" if self.num_units == self.num_replicates else self.unit)


def compute_effects(results: Results, measure: str) -> list[Effect]:
    """Return the effect of every level against its factor's first level on one column of the trials table.

    A factor whose levels were partly excluded or skipped is compared on the cells that both levels are planned in, a
    measure over external sets on those that both arms of a pair have (``pair_values``).
    """
    return compute_all_effects(results, [measure])[measure]


def compute_all_effects(results: Results, measures: Sequence[str]) -> dict[str, list[Effect]]:
    """Return measure → effects on it. Trials are paired once for all measures (columns of the trials table)."""
    found = {factor: _pairs_of(results, factor) for factor in results.factors} if measures else {}
    return {measure: _effects_on(results, measure, found) for measure in measures}


@dataclass(frozen=True)
class _Pairs:
    """Paired trials of a level and its reference."""

    #: Row numbers of the level's trials (first column) and of the reference's.
    rows: pd.DataFrame
    #: Replicate → independent unit.
    units: Mapping[int, int]
    #: What a unit is called.
    unit: str


def _pairs_of(results: Results, factor: str) -> list[_Pairs]:
    """Return the pairs of every level."""
    cells = _side_by_side(results.trials, factor)
    reference, *levels = [str(level) for level in results.plan["factors"][factor]]
    tables = [cells[[level, reference]].dropna().astype(int) for level in levels if {level, reference} <= set(cells)]
    kept = [rows for table in tables if len(rows := _keep_comparable(results, table)) or table.empty]
    compared = [results.trials.iloc[rows.to_numpy().ravel()] for rows in kept]
    return [
        _Pairs(rows, results.group_replicates(trials), results.name_unit(trials))
        for rows, trials in zip(kept, compared, strict=True)
    ]


def _keep_comparable(results: Results, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs on one data set each, of the replicates that most cells have: all, unless numbers differ."""
    kept = pairs
    if results.data_sets:
        data_sets = results.data_set_of_trials
        kept = pairs[data_sets[pairs.iloc[:, 0]] == data_sets[pairs.iloc[:, 1]]]
    replicates = kept.index.get_level_values("replicate")
    counts = replicates.value_counts()
    return kept[counts.loc[replicates].to_numpy() == counts.max()] if len(kept) else kept


def _effects_on(results: Results, measure: str, found: Mapping[str, Sequence[_Pairs]]) -> list[Effect]:
    effects = [
        _with_shifts(results, _effect(results, factor, pairs, measure), pairs.rows)
        for factor, levels in found.items()
        for pairs in (levels if measure in results.trials else ())
    ]
    corrected = holm([effect.p_value for effect in effects])
    return [replace(effect, p_holm=p) for effect, p in zip(effects, corrected, strict=True)]


def _effect(results: Results, factor: str, pairs: _Pairs, measure: str) -> Effect:
    """Return the effect of the first column of the pairs against the second."""
    level, reference = pairs.rows.columns
    rows, values = pair_values(results, measure, pairs.rows)
    scale = float(np.fmax.reduce(np.abs(values), axis=None, initial=0.0))
    differences = pd.Series(drop_rounding(values[:, 0] - values[:, 1], scale), index=rows.index)
    defined = differences.dropna()
    replicates = defined.index.get_level_values("replicate")
    names = [" · ".join(key[:-1]) for key in defined.index]
    data_sets = pd.Series(results.data_set_of_trials[pairs.rows[level]], index=pairs.rows.index)[defined.index]
    # Every data set counts once, however many cells it has.
    by_replicate = defined.groupby([replicates, data_sets.to_numpy()]).mean().groupby(level=0).mean()
    units = drop_rounding(by_replicate.groupby(by_replicate.index.map(pairs.units)).mean().to_numpy(), scale)
    return Effect(
        factor=factor,
        level=level,
        reference=reference,
        measure=measure,
        difference=float(units.mean()) if len(units) else None,
        interval=t_interval(units),
        cells=tuple(Cell(*values) for values in zip(names, map(int, replicates), map(float, defined), strict=True)),
        num_replicates=len(by_replicate),
        num_units=len(units),
        unit=pairs.unit,
        num_missing=int(len(differences) - len(defined)),
        p_value=permutation_test(units, seed=results.plan["seed"]),
    )


def _side_by_side(trials: pd.DataFrame, factor: str) -> pd.DataFrame:
    """Return row numbers of ``trials``, indexed by other levels and replicate, one column per level of ``factor``."""
    column = f"arm/{factor}"
    others = [name for name in trials if str(name).startswith("arm/") and name != column]
    # A leading constant level keeps the index a MultiIndex when nothing else varies.
    keys = [pd.Series("", index=trials.index, name="all")] if not others else [trials[name] for name in others]
    index = pd.MultiIndex.from_arrays([*keys, trials["replicate"], trials[column]])
    return pd.Series(range(len(trials)), index=index).unstack()


def _with_shifts(results: Results, effect: Effect, pairs: pd.DataFrame) -> Effect:
    """Return the effect with its number of shift types and agreeing ones, if the measure is the mean over shifts."""
    means = results.type_means(results.metric)
    if effect.measure != f"robustness/mean_{results.metric}" or means.empty or effect.difference is None:
        return effect
    first, second = (means.reindex(results.trials["signature"].iloc[pairs[level]]) for level in pairs)
    differences = first.to_numpy() - second.to_numpy()
    per_shift = pd.DataFrame(differences, columns=means.columns).mean().dropna().to_numpy()
    per_shift = drop_rounding(per_shift, 1.0)
    same = int((np.sign(per_shift) == np.sign(effect.difference)).sum()) if effect.difference else 0
    return replace(effect, num_shifts=len(per_shift), num_same_direction=same)


def effects_table(effects: Sequence[Effect]) -> pd.DataFrame:
    """Return one row per effect, without the cells."""
    rows = [
        {
            "measure": effect.measure,
            "factor": effect.factor,
            "level": effect.level,
            "reference": effect.reference,
            "mean_difference": effect.difference,
            "low_95": effect.interval.low if effect.interval else None,
            "high_95": effect.interval.high if effect.interval else None,
            "num_replicates": effect.num_replicates,
            "num_units": effect.num_units,
            "num_cells": len(effect.cells),
            "num_missing_cells": effect.num_missing,
            "p_sign_flips": effect.p_value,
            "p_holm": effect.p_holm,
            "num_shifts": effect.num_shifts,
            "num_shifts_same_direction": effect.num_same_direction,
        }
        for effect in effects
    ]
    return pd.DataFrame(rows, columns=None if rows else ["measure", "factor", "level", "reference"])


def rank_factors(results: Results, effects: Sequence[Effect]) -> list[str]:
    """Return the factors, the one with the largest effect first. Figures assign colour and shape in this order."""
    size = dict.fromkeys(results.factors, 0.0)
    for effect in effects:
        size[effect.factor] = max(size[effect.factor], abs(effect.difference or 0.0))
    return sorted(size, key=lambda factor: -size[factor])
