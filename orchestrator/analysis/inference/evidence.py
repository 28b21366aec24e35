"""Evidence for a hypothesis: the mean of paired differences, its t interval and exact p-values.

A pair is one cell (levels of all factors that the hypothesis does not vary) in one replicate. The *units* that a test
counts are replicates (mean over cells); replicates whose models share a pretrained encoder are one unit. Over sites,
they are external sites (mean over cells and replicates), and all is said of these trained models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.analysis.inference.measured import Measured
from orchestrator.analysis.inference.scope import Scope, find_scope
from orchestrator.analysis.wording import plural
from orchestrator.statistics.intervals import MIN_REPLICATES, Array, Interval, drop_rounding, t_interval
from orchestrator.statistics.paired_tests import Alternative, permutation_test, sign_test, wilcoxon
from orchestrator.statistics.trend import trend_test
from orchestrator.study.contrasts import Contrast, ContrastError, compute_smallest_p, find_contrast, num_units_needed
from orchestrator.study.hypotheses import (
    MIN_SITES,
    Directed,
    Equivalence,
    Hypothesis,
    NonInferiority,
    counts_shifts,
    counts_sites,
    get_claimed_size,
)
from trainables.evaluation.metrics import is_higher_better
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
    #: t interval over units; None for fewer than ``MIN_REPLICATES``.
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
    def num_missing(self) -> int:
        """Number of planned pairs that lack a value."""
        return self.num_planned - self.num_complete


def no_evidence(problem: str, *, num_planned: int = 0) -> Evidence:
    """Return the evidence of a hypothesis that nothing can be said about, with the reason."""
    return Evidence(None, None, None, None, (), 1.0, 0, "nothing", num_planned, 0, {}, problem=problem)


def assess_evidence(hypothesis: Hypothesis, measured: Measured) -> Evidence:
    """Return the evidence for one hypothesis."""
    plan = measured.results.plan
    factors = {name: [str(label) for label in labels] for name, labels in plan["factors"].items()}
    try:
        contrast = find_contrast(hypothesis, measured.arms, factors)
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
    parts = combine(measured.spread(frame), contrast)
    parts[np.repeat(np.isnan(parts).any(axis=2, keepdims=True), parts.shape[2], axis=2)] = np.nan  # whole pairs only
    parts[:, ~is_common] = np.nan
    is_complete = np.isfinite(parts).any(axis=(2, 3))
    if not is_complete.any():
        return no_evidence("no planned pair is complete", num_planned=num_planned)
    cells = [[arm for arms in groups for arm in arms] for groups in contrast.cells.values()]
    units, num_encoders = measured.group_replicates(sorted({arm for arms in cells for arm in arms}))
    num_models = int(is_complete.sum(axis=1) @ [len(arms) for arms in cells])
    data_sets = [" and ".join(dict.fromkeys(measured.data_sets[arm] for arm in arms)) for arms in cells]
    parts = _mean_by_data_set(parts, data_sets)
    by_unit, noun = _mean_by_site(parts) if counts_sites(hypothesis) else _mean_by_unit(parts, units)
    differences = by_unit @ np.array(contrast.weights)
    has_p = not counts_shifts(hypothesis) and len(differences) >= (
        MIN_SITES if counts_sites(hypothesis) else MIN_REPLICATES
    )
    p_value, p_size = (
        _compute_p(hypothesis, contrast, by_unit, differences, seed=plan["seed"]) if has_p else (None, None)
    )
    # Two one-sided tests at α agree with the interval of level 1 − 2α.
    level = 1 - hypothesis.alpha * (2 if isinstance(hypothesis, Equivalence) else 1)
    return Evidence(
        effect=float(differences.mean()),
        interval=t_interval(differences, level=level) if has_p else None,
        p_value=p_value,
        p_size=p_size,
        differences=tuple(map(float, differences)),
        smallest_p=compute_smallest_p(hypothesis, len(differences), len(contrast.levels or contrast.parts)),
        num_needed=num_units_needed(hypothesis, len(contrast.levels or contrast.parts)),
        units=plural(len(differences), noun) + " that all arms have" * (not is_common.all() and noun == "replicate"),
        num_planned=num_planned,
        num_complete=int(is_complete.sum()),
        means=dict(zip(contrast.parts, map(float, by_unit.mean(axis=0)), strict=True)),
        scope=find_scope(
            plan,
            hypothesis.metric,
            num_models=num_models,
            num_encoders=num_encoders,
            external=measured.external,
            data_sets=dict.fromkeys(measured.data_sets[arm] for arms in cells for arm in arms),
        ),
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


def _mean_by_unit(parts: Array, units: NDArray[np.int64]) -> tuple[Array, str]:
    """Return the mean of each unit as units × parts, and what the units are called.

    Args:
        parts: cells × replicates × parts × columns.
        units: unit of each replicate.
    """
    by_replicate = mean_of_defined(parts, (0, 3))
    known = np.isfinite(by_replicate).all(axis=1)
    labels = np.unique(units[known])
    noun = "replicate" if len(labels) == known.sum() else "independent encoder"
    return np.stack([by_replicate[known & (units == label)].mean(axis=0) for label in labels]), noun


def _mean_by_data_set(parts: Array, data_sets: Sequence[str]) -> Array:
    """Return data sets × replicates × parts × columns: means over the cells of each, so that each counts once.

    Args:
        parts: cells × replicates × parts × columns.
        data_sets: data set of each cell.
    """
    labels = np.array(data_sets)
    return np.stack([mean_of_defined(parts[labels == label], (0,)) for label in dict.fromkeys(data_sets)])


def _mean_by_site(parts: Array) -> tuple[Array, str]:
    """Return the mean of each external site as sites × parts, and what the units are called.

    Args:
        parts: cells × replicates × parts × sites, of a pair either all defined or none.
    """
    return mean_of_defined(parts, (0, 1)).T, "external site"


def mean_of_defined(values: Array, axes: tuple[int, ...]) -> Array:
    """Return the mean of the defined values, NaN where there is none."""
    is_defined = np.isfinite(values)
    count = is_defined.sum(axis=axes)
    total = np.where(is_defined, values, 0.0).sum(axis=axes)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


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
    hypothesis: Hypothesis, contrast: Contrast, units: Array, differences: Array, *, seed: int
) -> tuple[float | None, float | None]:
    """Return the p-value of the claim and that of its size, each None if the test cannot give one."""

    scale = np.abs(units).max()

    def against(value: float, alternative: Alternative = "two-sided") -> float | None:
        return _test_paired(hypothesis, drop_rounding(differences - value, scale), alternative, seed=seed)

    size, mean = get_claimed_size(hypothesis), float(differences.mean())
    if isinstance(hypothesis, Equivalence):
        return _largest(against(-size, "greater"), against(size, "less")), None
    if isinstance(hypothesis, NonInferiority):
        return against(-size if is_higher_better(hypothesis.metric) else size), None
    p_value = (
        _test_trend(contrast, units, differences, hypothesis.alpha, seed) if hypothesis.test == "page" else against(0)
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


def _test_trend(contrast: Contrast, units: Array, differences: Array, alpha: float, seed: int) -> float | None:
    assert contrast.levels is not None
    num_levels = len(contrast.levels)
    if len(contrast.parts) > num_levels:  # the trend of a difference
        units = units[:, :num_levels] - units[:, num_levels:]
    levels, blocks = np.meshgrid(contrast.levels, np.arange(len(units)))
    trend = trend_test(units.ravel(), levels.ravel(), blocks=blocks.ravel(), seed=seed, alpha=alpha)
    if trend.p_value is None or trend.correlation is None:
        return None
    # Ranks that rise while the mean falls, or the reverse, support neither direction.
    return trend.p_value if trend.correlation * differences.mean() > 0 else 1.0
