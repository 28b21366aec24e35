"""Main effect of each factor: paired differences between two levels, everything else being equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.statistics.intervals import MIN_UNITS, Interval, Method, bootstrap_interval
from orchestrator.statistics.paired_tests import holm, wilcoxon

#: With at least this many replicates, whole replicates are resampled, otherwise cells; the report states which.
MIN_REPLICATES = 5

#: Bootstrap method: it reaches its nominal coverage from six units on, percentile intervals only from 48
#: (docs/statistics.md).
METHOD: Method = "expanded"


@dataclass(frozen=True)
class Cell:
    """One matched pair: its other levels, its replicate, and the difference level minus reference."""

    name: str
    replicate: int
    difference: float


@dataclass(frozen=True)
class Effect:
    """Effect of one level against its factor's first level, averaged over all other factors and replicates."""

    factor: str
    level: str
    reference: str
    #: Column of the trials table.
    measure: str
    #: Mean over cells; None without a single complete pair.
    difference: float | None
    interval: Interval | None
    #: Units that the interval resamples, in words, or the reason why there is no interval.
    resampled: str
    cells: tuple[Cell, ...]
    #: Number of planned pairs that lack a defined value on either side.
    num_missing: int
    #: Signed-rank test of the mean differences per shift type; ``p_holm``: corrected over all effects on this measure.
    p_value: float | None = None
    p_holm: float | None = None
    num_shifts: int = 0


def compute_effects(results: Results, measure: str) -> list[Effect]:
    """Return the effect of every level against its factor's first level on one column of the trials table.

    A factor whose levels were partly excluded or skipped is compared on the cells that both levels are planned in.
    """
    return compute_all_effects(results, [measure])[measure]


def compute_all_effects(results: Results, measures: Sequence[str]) -> dict[str, list[Effect]]:
    """Return measure → effects on it. Trials are paired once for all measures (columns of the trials table)."""
    found = {factor: _pairs_of(results, factor) for factor in results.factors} if measures else {}
    return {measure: _effects_on(results, measure, found) for measure in measures}


def _pairs_of(results: Results, factor: str) -> list[pd.DataFrame]:
    """Return one table per level: row numbers of its trials and of the paired trials of the reference."""
    cells = _side_by_side(results.trials, factor)
    reference, *levels = [str(level) for level in results.plan["factors"][factor]]
    return [cells[[level, reference]].dropna().astype(int) for level in levels if level in cells and reference in cells]


def _effects_on(results: Results, measure: str, found: Mapping[str, Sequence[pd.DataFrame]]) -> list[Effect]:
    effects = [
        _with_test(results, _effect(results, factor, pairs, measure), pairs)
        for factor, levels in found.items()
        for pairs in (levels if measure in results.trials else ())
    ]
    corrected = holm([effect.p_value for effect in effects])
    return [replace(effect, p_holm=p) for effect, p in zip(effects, corrected, strict=True)]


def _effect(results: Results, factor: str, pairs: pd.DataFrame, measure: str) -> Effect:
    """Return the effect of the first column of ``pairs`` (row numbers of the trials table) against the second."""
    level, reference = pairs.columns
    values = results.trials[measure].to_numpy(dtype=float)
    differences = pd.Series(values[pairs[level]] - values[pairs[reference]], index=pairs.index)
    defined = differences.dropna()
    replicates = defined.index.get_level_values("replicate")
    names = [" · ".join(key[:-1]) for key in defined.index]
    interval, resampled = _interval(defined.to_numpy(), replicates.to_numpy(), seed=results.plan["seed"])
    return Effect(
        factor=factor,
        level=level,
        reference=reference,
        measure=measure,
        difference=float(defined.mean()) if len(defined) else None,
        interval=interval,
        resampled=resampled,
        cells=tuple(Cell(*values) for values in zip(names, map(int, replicates), map(float, defined), strict=True)),
        num_missing=int(len(differences) - len(defined)),
    )


def _side_by_side(trials: pd.DataFrame, factor: str) -> pd.DataFrame:
    """Return row numbers of ``trials``, indexed by other levels and replicate, one column per level of ``factor``."""
    column = f"arm/{factor}"
    others = [name for name in trials if str(name).startswith("arm/") and name != column]
    # A leading constant level keeps the index a MultiIndex when nothing else varies.
    keys = [pd.Series("", index=trials.index, name="all")] if not others else [trials[name] for name in others]
    index = pd.MultiIndex.from_arrays([*keys, trials["replicate"], trials[column]])
    return pd.Series(range(len(trials)), index=index).unstack()


def _interval(differences: np.ndarray, replicates: np.ndarray, *, seed: int) -> tuple[Interval | None, str]:
    num_cells, num_replicates = len(differences), len(set(replicates))
    if num_replicates >= MIN_REPLICATES:
        interval = bootstrap_interval(differences, seed=seed, clusters=replicates, method=METHOD)
        return interval, f"{num_replicates} whole replicates ({num_cells} cells) resampled"
    if num_cells < MIN_UNITS:
        return None, f"no interval: {num_cells} {'cell' if num_cells == 1 else 'cells'}, at least {MIN_UNITS} needed"
    replicate_text = "1 replicate" if num_replicates == 1 else f"{num_replicates} replicates"
    return (
        bootstrap_interval(differences, seed=seed, method=METHOD),
        f"{num_cells} cells resampled ({replicate_text}: too few to resample replicates)",
    )


def _with_test(results: Results, effect: Effect, pairs: pd.DataFrame) -> Effect:
    """Return the effect, with the signed-rank test over shift types if the measure is the mean over shifts."""
    means = results.type_means(results.metric)
    if effect.measure != f"robustness/mean_{results.metric}" or means.empty:
        return effect
    first, second = (means.reindex(results.trials["signature"].iloc[pairs[level]]) for level in pairs)
    differences = first.to_numpy() - second.to_numpy()
    per_shift = pd.DataFrame(differences, columns=means.columns).mean().dropna()
    return replace(effect, p_value=wilcoxon(per_shift.to_numpy()), num_shifts=len(per_shift))


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
            "num_cells": len(effect.cells),
            "num_missing_cells": effect.num_missing,
            "resampled": effect.resampled,
            "num_shifts": effect.num_shifts,
            "p_wilcoxon_over_shifts": effect.p_value,
            "p_holm": effect.p_holm,
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
