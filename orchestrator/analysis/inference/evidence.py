"""Evidence for a hypothesis: the mean of paired differences, its t interval and exact p-values.

A pair is one cell (levels of all factors that the hypothesis does not vary) in one replicate. The *units* that a test
counts are replicates (mean over cells); replicates whose models share a pretrained encoder are one unit. Over sites,
they are external sites (mean over cells), crossed with these trainings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from orchestrator.analysis.inference.measured import Measured
from orchestrator.analysis.inference.scope import Scope, find_scope
from orchestrator.analysis.inference.units import Units, cross_with_sites, group_by_training, mean_of_defined
from orchestrator.analysis.shared_sites import measure_over_sites
from orchestrator.statistics.intervals import MIN_REPLICATES, Array, Interval, drop_rounding
from orchestrator.statistics.paired_tests import Alternative, permutation_test, sign_test, wilcoxon
from orchestrator.statistics.trend import trend_test
from orchestrator.study.contrasts import (
    Contrast,
    ContrastError,
    compute_smallest_p,
    find_shared_sites,
    num_units_needed,
)
from orchestrator.study.hypotheses import (
    Directed,
    Equivalence,
    Hypothesis,
    NonInferiority,
    counts_shifts,
    counts_sites,
    get_claimed_size,
)
from trainables.evaluation.metrics import find_site_aggregate, is_higher_better
from trainables.evaluation.shift_means import average_by_family


@dataclass(frozen=True)
class Agreement:
    """Numbers of families and types of shift under which the mean difference has the claimed direction."""

    num_agreeing_types: int
    num_types: int
    #: None for results from elsewhere, whose shifts are in no families.
    num_agreeing_families: int | None = None
    num_families: int | None = None

    def describe(self) -> str:
        """Return both numbers, e.g. "5 of 6 shift families (14 of 15 shift types)"."""
        types = f"{self.num_agreeing_types} of {self.num_types} shift types"
        if self.num_families is None:
            return types
        return f"{self.num_agreeing_families} of {self.num_families} shift families ({types})"


@dataclass(frozen=True)
class Evidence:
    """Evidence that the results give for one hypothesis."""

    #: Mean over units; None without a complete pair.
    effect: float | None
    #: t interval over units, over sites one over sites and trainings; None for too few (``Units.are_enough``).
    interval: Interval | None
    #: p-value before correction of the claim as such: that the effect is not 0, two-sided; of an equivalence the larger
    #: of two one-sided ones; of non-inferiority that the effect is not −margin. None if the test cannot give one.
    p_value: float | None
    #: p-value before correction of the claimed size: that the effect is not ``smallest_effect``, two-sided. None if no
    #: size is claimed beyond the claim itself, or the test cannot give one.
    p_size: float | None
    #: Difference of each unit.
    differences: tuple[float, ...]
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
    scope: Scope | None = None
    #: Over sites: number of independent trainings that were tested at all of them. None: these are the units.
    num_trainings: int | None = None
    #: Unit → its two gains, of a correlation; the effect is then the coefficient.
    gains: Mapping[str, tuple[float, float]] | None = None
    #: Shift families and types that agree, if the hypothesis asks for these; there is then no interval and no p-value.
    agreement: Agreement | None = None
    #: Reason why there is no evidence at all.
    problem: str | None = None

    @property
    def num_units(self) -> int:
        """Number of independent units."""
        return len(self.differences)

    @property
    def has_enough_units(self) -> bool:
        """Whether p can fall to α, before correction."""
        has_trainings = self.num_trainings is None or self.num_trainings >= MIN_REPLICATES
        return self.num_units >= self.num_needed and has_trainings

    @property
    def num_missing(self) -> int:
        """Number of planned pairs that lack a value."""
        return self.num_planned - self.num_complete


def no_evidence(problem: str, *, num_planned: int = 0) -> Evidence:
    """Return the evidence of a hypothesis that nothing can be said about, with the reason."""
    return Evidence(None, None, None, None, (), 1.0, 0, "nothing", num_planned, 0, {}, problem=problem)


def assess_evidence(hypothesis: Hypothesis, measured: Measured) -> Evidence:
    """Return the evidence for one hypothesis."""
    plan = measured.results.plan
    try:
        contrast = measured.find_contrast(hypothesis)
    except ContrastError as error:
        return no_evidence(f"the plan has nothing to compare: {error}")
    planned = (combine(measured.planned[..., None].astype(float), contrast) == 1).all(axis=(2, 3))
    # What only some cells have would make the replicates means over different arms.
    is_common = planned.all(axis=0) | (not planned.all(axis=0).any())
    planned &= is_common
    num_planned = int(planned.sum())
    frame = measured.values(hypothesis)
    if frame.empty:
        return no_evidence(f"no complete trial has {hypothesis.metric}", num_planned=num_planned)
    parts = _combine_shared(hypothesis, contrast, measured, frame)
    parts[np.repeat(np.isnan(parts).any(axis=2, keepdims=True), parts.shape[2], axis=2)] = np.nan  # whole pairs only
    parts[:, ~is_common] = np.nan
    is_complete = np.isfinite(parts).any(axis=(2, 3))
    if not is_complete.any():
        return no_evidence("no planned pair is complete", num_planned=num_planned)
    cells = [[arm for arms in groups for arm in arms] for groups in contrast.cells.values()]
    grouping, num_encoders = measured.group_replicates(sorted({arm for arms in cells for arm in arms}))
    num_models = int(is_complete.sum(axis=1) @ [len(arms) for arms in cells])
    data_sets = [" and ".join(dict.fromkeys(measured.data_sets[arm] for arm in arms)) for arms in cells]
    parts = _mean_by_data_set(parts, data_sets)
    units = (cross_with_sites if counts_sites(hypothesis) else group_by_training)(parts, grouping, contrast.weights)
    if units is None:
        return no_evidence("no replicate has a value at all external sites", num_planned=num_planned)
    has_p = units.are_enough and not counts_shifts(hypothesis)
    p_value, p_size = _compute_p(hypothesis, contrast, units, seed=plan["seed"]) if has_p else (None, None)
    num_levels = len(contrast.levels or contrast.parts)
    # Two one-sided tests at α agree with the interval of level 1 − 2α.
    level = 1 - hypothesis.alpha * (2 if isinstance(hypothesis, Equivalence) else 1)
    return Evidence(
        effect=float(units.differences.mean()),
        interval=units.find_interval(level) if has_p else None,
        p_value=p_value,
        p_size=p_size,
        differences=tuple(map(float, units.differences)),
        smallest_p=compute_smallest_p(hypothesis, len(units.means), num_levels, num_trainings=units.num_trainings),
        num_needed=num_units_needed(hypothesis, num_levels),
        units=units.text + " that all arms have" * (not is_common.all() and grouping.noun == "replicate"),
        num_planned=num_planned,
        num_complete=int(is_complete.sum()),
        means=dict(zip(contrast.parts, map(float, units.means.mean(axis=0)), strict=True)),
        scope=find_scope(
            plan,
            hypothesis.metric,
            num_models=num_models,
            num_encoders=num_encoders,
            external=measured.external,
            data_sets=dict.fromkeys(measured.data_sets[arm] for arms in cells for arm in arms),
            remarks=measured.list_remarks(arm for arms in cells for arm in arms),
        ),
        num_trainings=units.num_trainings,
        agreement=_count_agreeing(hypothesis, contrast, parts, frame.columns, measured)
        if counts_shifts(hypothesis)
        else None,
    )


def combine(values: Array, contrast: Contrast) -> Array:
    """Return cells × replicates × parts × columns: the mean of each part's arms, NaN where one of them is missing.

    Args:
        values: arms × replicates × columns.
        contrast: groups of arms to compare.
    """
    return np.stack(
        [np.stack([values[list(arms)].mean(axis=0) for arms in parts], axis=1) for parts in contrast.cells.values()]
    )


def _combine_shared(hypothesis: Hypothesis, contrast: Contrast, measured: Measured, frame: pd.DataFrame) -> Array:
    """Return what ``combine`` does; summaries over external sets are over those that all arms of a cell have."""
    parts = combine(measured.spread(frame), contrast)
    if find_site_aggregate(hypothesis.metric) is None or counts_sites(hypothesis):
        return parts
    for position, (key, groups) in enumerate(contrast.cells.items()):
        arms = [arm for group in groups for arm in group]
        shared = find_shared_sites(arms, measured.sites)
        if shared is not None and any(measured.sites[arm] != shared for arm in arms):
            values = measure_over_sites(measured.results, hypothesis.metric, shared)
            spread = measured.spread(pd.DataFrame(values, measured.results.trials["signature"]))
            parts[position] = combine(spread, replace(contrast, cells={key: groups}))[0]
    return parts


def _mean_by_data_set(parts: Array, data_sets: Sequence[str]) -> Array:
    """Return data sets × replicates × parts × columns: means over the cells of each, so that each counts once.

    Args:
        parts: cells × replicates × parts × columns.
        data_sets: data set of each cell.
    """
    labels = np.array(data_sets)
    return np.stack([mean_of_defined(parts[labels == label], (0,)) for label in dict.fromkeys(data_sets)])


def _count_agreeing(
    hypothesis: Directed, contrast: Contrast, parts: Array, types: Iterable[str], measured: Measured
) -> Agreement:
    """Return the numbers of shift families and types that agree; a type without any difference counts in neither."""
    differences = mean_of_defined(parts, (0, 1)).T @ np.array(contrast.weights)
    by_type = {kind: value for kind, value in zip(types, differences, strict=True) if np.isfinite(value)}
    families = measured.group_types(hypothesis, by_type)
    by_family = None if families is None else average_by_family(by_type, families)
    mean, scale = np.mean(list(by_type.values())), np.nanmax(np.abs(parts))
    sign = {"higher": 1.0, "lower": -1.0, "two-sided": np.sign(mean)}[hypothesis.direction]

    def count(values: Mapping[str, float]) -> int:
        return int((sign * drop_rounding(np.array(list(values.values())), scale) > 0).sum())

    return Agreement(
        count(by_type),
        len(by_type),
        None if by_family is None else count(by_family),
        None if by_family is None else len(by_family),
    )


# --------------------------------------------------------------------------- p-values


def _compute_p(
    hypothesis: Hypothesis, contrast: Contrast, units: Units, *, seed: int
) -> tuple[float | None, float | None]:
    """Return the p-value of the claim and that of its size, each None if the test cannot give one."""

    differences, scale = units.differences, np.abs(units.means).max()

    def against(value: float, alternative: Alternative = "two-sided") -> float | None:
        p_value = _test_paired(hypothesis, drop_rounding(differences - value, scale), alternative, seed=seed)
        return units.bound_p(p_value, value)

    size, mean = get_claimed_size(hypothesis), float(differences.mean())
    if isinstance(hypothesis, Equivalence):
        return _largest(against(-size, "greater"), against(size, "less")), None
    if isinstance(hypothesis, NonInferiority):
        return against(-size if is_higher_better(hypothesis.metric) else size), None
    p_value = (
        units.bound_p(_test_trend(contrast, units, hypothesis.alpha, seed)) if hypothesis.test == "page" else against(0)
    )
    if not size:
        return p_value, None
    if hypothesis.direction != "two-sided":
        return p_value, against(size if hypothesis.direction == "higher" else -size)
    if abs(mean) > size:
        return p_value, against(size if mean > 0 else -size)
    return p_value, _largest(against(size), against(-size))


#: Tests whose statistic is not the mean.
_RANK_TESTS = {"wilcoxon_signed_rank": wilcoxon, "sign": sign_test}


def _largest(*p_values: float | None) -> float | None:
    known = [p for p in p_values if p is not None]
    return max(known) if len(known) == len(p_values) else None


def _test_paired(hypothesis: Hypothesis, differences: Array, alternative: Alternative, *, seed: int) -> float | None:
    if hypothesis.test in _RANK_TESTS:
        test = _RANK_TESTS[hypothesis.test]
        toward: Alternative = "greater" if differences.mean() > 0 else "less"
        # Signs and ranks that point away from the mean, to one side and the effect to the other, support neither.
        if (test(differences, alternative=toward, alpha=hypothesis.alpha) or 0.0) > 0.5:
            return 1.0
        return test(differences, alternative=alternative, alpha=hypothesis.alpha)
    return permutation_test(differences, alternative=alternative, seed=seed, alpha=hypothesis.alpha)


def _test_trend(contrast: Contrast, units: Units, alpha: float, seed: int) -> float | None:
    assert contrast.levels is not None
    num_levels, means = len(contrast.levels), units.means
    if len(contrast.parts) > num_levels:  # the trend of a difference
        means = means[:, :num_levels] - means[:, num_levels:]
    levels, blocks = np.meshgrid(contrast.levels, np.arange(len(means)))
    trend = trend_test(means.ravel(), levels.ravel(), blocks=blocks.ravel(), seed=seed, alpha=alpha)
    if trend.p_value is None or trend.correlation is None:
        return None
    # Ranks that rise while the mean falls, or the reverse, support neither direction.
    return trend.p_value if trend.correlation * units.differences.mean() > 0 else 1.0
