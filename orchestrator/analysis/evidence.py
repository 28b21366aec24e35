"""Evidence for a hypothesis: the mean of paired differences, its interval and a p-value.

A pair is one cell (levels of all factors that the hypothesis does not vary) in one replicate. The *units* that a test
counts are replicates (mean over cells), cells, or shift types (mean over cells and replicates).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.statistics.intervals import Array, Interval, Method, bootstrap_interval
from orchestrator.statistics.paired_tests import permutation_test, sign_test, wilcoxon
from orchestrator.statistics.trend import trend_test
from orchestrator.study.contrasts import Contrast, ContrastError, compute_smallest_p, find_contrast, num_units_needed
from orchestrator.study.hypotheses import Hypothesis, find_shift_metric, split_metric

#: Bootstrap method: with few units, its intervals are as wide as Student's.
METHOD: Method = "expanded"

#: Ratio of bounds at which the search for a bootstrap p-value ends, after 14 intervals.
_BOOTSTRAP_P_RATIO = 1.001


@dataclass(frozen=True)
class Evidence:
    """Evidence that the results give for one hypothesis."""

    #: Mean over units; None without a complete pair.
    effect: float | None
    interval: Interval | None
    #: Two-sided p-value before correction; None if the test cannot give one.
    p_value: float | None
    num_units: int
    #: p-value if all units agreed.
    smallest_p: float
    #: Fewest units with which p can fall to α, before correction.
    num_needed: int
    #: Number and kind of units in words, e.g. 6 replicates.
    units: str
    #: Number of pairs (cell × replicate): planned, and with every value defined.
    num_planned: int
    num_complete: int
    #: Group of arms → its mean over units.
    means: Mapping[str, float]
    #: Reason why there is no evidence at all.
    problem: str | None = None
    #: Warning for readers about the units.
    caution: str | None = None

    @property
    def num_missing(self) -> int:
        """Number of planned pairs that lack a value."""
        return self.num_planned - self.num_complete


class Measured:
    """Values of a study, arranged by arm and replicate."""

    def __init__(self, results: Results) -> None:
        self.results = results
        first = results.trials.drop_duplicates("name")
        names = [str(name) for name in first["name"]]
        columns = [str(column) for column in first if str(column).startswith("arm/")]
        self.arms = [{column[4:]: str(arm[column]) for column in columns} for _, arm in first.iterrows()]
        self.replicates = sorted(set(results.trials["replicate"]))
        position = {name: number for number, name in enumerate(names)}
        order = {replicate: number for number, replicate in enumerate(self.replicates)}
        self._arm = results.trials["name"].map(position).to_numpy(dtype=int)
        self._replicate = results.trials["replicate"].map(order).to_numpy(dtype=int)
        self.planned = np.zeros((len(names), len(self.replicates)), dtype=bool)
        self.planned[self._arm, self._replicate] = True

    def spread(self, values: pd.DataFrame) -> Array:
        """Return values (one row per signature) as arms × replicates × columns, NaN for trials without a row."""
        rows = values.reindex(self.results.trials["signature"]).to_numpy(dtype=float)
        spread = np.full((*self.planned.shape, rows.shape[1]), np.nan)
        spread[self._arm, self._replicate] = rows
        return spread

    @cached_property
    def shifted(self) -> pd.DataFrame:
        """Rows of the shifts table on the shifted test set."""
        shifts = self.results.shifts
        return shifts[(shifts["set"] == "test") & (shifts["severity"] > 0)]

    def values(self, hypothesis: Hypothesis) -> pd.DataFrame:
        """Return the values of the hypothesis' metric, one row per signature.

        One column per shift type if these are the units, otherwise a single column; empty if no trial has the metric.
        """
        kind, name, metric = split_metric(hypothesis.metric)
        of_shifts = find_shift_metric(hypothesis.metric)
        if hypothesis.over == "shifts" and of_shifts is not None:
            return self.results.type_means(of_shifts)
        if kind == "shift":
            return self._at_severities(name, metric, hypothesis.severities)
        if hypothesis.metric not in self.results.trials:
            return pd.DataFrame()
        return self.results.trials.set_index("signature")[[hypothesis.metric]]

    def _at_severities(self, name: str, metric: str, severities: Sequence[int] | None) -> pd.DataFrame:
        rows = self.shifted[self.shifted["shift"] == name]
        if metric not in rows or rows.empty:
            return pd.DataFrame()
        wide = rows.pivot_table(metric, "signature", "severity")
        wanted = list(wide) if severities is None else list(severities)
        return wide.reindex(columns=wanted).mean(axis=1, skipna=False).to_frame(metric)


def _nothing(problem: str, *, num_planned: int = 0) -> Evidence:
    return Evidence(None, None, None, 0, 1.0, 0, "nothing", num_planned, 0, {}, problem)


def assess_evidence(hypothesis: Hypothesis, measured: Measured) -> Evidence:
    """Return the evidence for one hypothesis."""
    factors = {name: [str(label) for label in labels] for name, labels in measured.results.plan["factors"].items()}
    try:
        contrast = find_contrast(hypothesis, measured.arms, factors)
    except ContrastError as error:
        return _nothing(f"the plan has nothing to compare: {error}")
    planned = (_combine(measured.planned[..., None].astype(float), contrast) == 1).all(axis=(2, 3))
    num_planned = int(planned.sum())
    frame = measured.values(hypothesis)
    if frame.empty:
        return _nothing(f"no complete trial has {hypothesis.metric}", num_planned=num_planned)
    parts = _combine(measured.spread(frame), contrast)
    parts[np.repeat(np.isnan(parts).any(axis=2, keepdims=True), parts.shape[2], axis=2)] = np.nan  # whole pairs only
    num_complete = int(np.isfinite(parts).any(axis=(2, 3)).sum())
    if not num_complete:
        return _nothing("no planned pair is complete", num_planned=num_planned)
    evidence = _test(hypothesis, contrast, parts, seed=measured.results.plan["seed"])
    return replace(evidence, num_planned=num_planned, num_complete=num_complete)


def _combine(values: Array, contrast: Contrast) -> Array:
    """Return cells × replicates × parts × columns: the mean of each part's arms, NaN where one of them is missing.

    Args:
        values: arms × replicates × columns.
        contrast: groups of arms to compare.
    """
    return np.stack(
        [np.stack([values[list(arms)].mean(axis=0) for arms in parts], axis=1) for parts in contrast.cells.values()]
    )


def _test(hypothesis: Hypothesis, contrast: Contrast, parts: Array, *, seed: int) -> Evidence:
    """Return the evidence from units of one kind. The caller fills in the numbers of pairs."""
    num_needed = num_units_needed(hypothesis, len(contrast.parts))
    by_replicate = _mean(parts, (0, 3))
    counted = hypothesis.over
    if counted == "cells" and len(by_replicate) >= num_needed:
        counted = "replicates"
    if counted == "cells":
        units = _mean(parts.reshape(-1, *parts.shape[2:]), (2,))
    else:
        units = by_replicate if counted == "replicates" else _mean(parts, (0, 1)).T
    units = units[np.isfinite(units).all(axis=1)]
    differences = units @ np.array(contrast.weights)
    interval = bootstrap_interval(differences, seed=seed, level=1 - hypothesis.alpha, method=METHOD)
    noun = {"replicates": "replicate", "cells": "cell", "shifts": "shift type"}[counted]
    return Evidence(
        effect=float(differences.mean()),
        interval=interval,
        p_value=_compute_p(hypothesis, contrast, units, differences, seed=seed),
        num_units=len(units),
        smallest_p=compute_smallest_p(hypothesis, len(units), len(contrast.parts)),
        num_needed=num_needed,
        units=f"{len(units)} {noun}{'s' * (len(units) != 1)}",
        num_planned=0,
        num_complete=0,
        means=dict(zip(contrast.parts, map(float, units.mean(axis=0)), strict=True)),
        caution=_CAUTIONS.get(counted),
    )


#: Kind of units → caution.
_CAUTIONS = {
    "cells": "Cells of one replicate share its splits, first weights and batch order; counted as if independent, they "
    "give p-values that are too small.",
    "shifts": "Counted over shift types: whether the effect is the same from shift to shift, not from seed to seed.",
}


def _mean(values: Array, axes: tuple[int, ...]) -> Array:
    """Return the mean of the defined values, NaN where there is none."""
    is_defined = np.isfinite(values)
    count = is_defined.sum(axis=axes)
    total = np.where(is_defined, values, 0.0).sum(axis=axes)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _compute_p(
    hypothesis: Hypothesis, contrast: Contrast, units: Array, differences: Array, *, seed: int
) -> float | None:
    """Return the two-sided p-value, None if the test cannot give one."""
    alpha, test = hypothesis.alpha, hypothesis.test
    if test == "wilcoxon_signed_rank":
        return wilcoxon(differences, alpha=alpha)
    if test == "sign":
        return sign_test(differences, alpha=alpha)
    if test in ("permutation", "paired_bootstrap"):
        flipped = permutation_test(differences, seed=seed, alpha=alpha)
        if flipped is None or test == "permutation":
            return flipped
        # Resampled means never lie beyond the units, so far out the intervals of few units are too narrow.
        return _invert_bootstrap(differences, flipped, seed=seed)
    assert contrast.levels is not None
    levels, blocks = np.meshgrid(contrast.levels, np.arange(len(units)))
    trend = trend_test(units.ravel(), levels.ravel(), blocks=blocks.ravel(), seed=seed, alpha=alpha)
    if trend.p_value is None or trend.correlation is None:
        return None
    # Ranks that rise while the mean falls, or the reverse, support neither direction.
    return trend.p_value if trend.correlation * differences.mean() > 0 else 1.0


def _invert_bootstrap(differences: Array, smallest: float, *, seed: int) -> float:
    """Return the smallest α at which the bootstrap interval of the mean excludes 0, at least ``smallest``."""
    excluded, included = 1.0, smallest
    if _excludes_zero(differences, included, seed=seed):
        return included
    while excluded / included > _BOOTSTRAP_P_RATIO:
        middle = float(np.sqrt(excluded * included))
        if _excludes_zero(differences, middle, seed=seed):
            excluded = middle
        else:
            included = middle
    return excluded


def _excludes_zero(differences: Array, alpha: float, *, seed: int) -> bool:
    interval = bootstrap_interval(differences, seed=seed, level=1 - alpha, method=METHOD)
    return interval is not None and (interval.low > 0 or interval.high < 0)
