"""Headline numbers per trial from a tidy table, laid out like the report's own tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.study.contrasts import ContrastError, find_contrast
from orchestrator.study.grid import find_label, read_match
from orchestrator.study.hypotheses import Correlation, Hypothesis, counts_shifts, iterate_selectors
from orchestrator.study.problems import list_options
from orchestrator.study.yaml_source import Source
from trainables.evaluation.metrics import AGGREGATES, METRICS
from trainables.evaluation.shift_means import average_shifts

#: Columns of the table after reading; no CSV header has these names, because header names are stripped.
SEED, SHIFT, SEVERITY = " seed", " shift", " severity"


@dataclass(frozen=True)
class Counts:
    """Numbers of seeds and of evaluations (shift and severity) of one arm."""

    arm: dict[str, str]
    num_seeds: int
    num_planned: int
    num_present: int
    #: Number of evaluations in which a metric is empty that is not left out there for all.
    num_undefined: int


@dataclass(frozen=True)
class LeftOut:
    """A shift that is in no mean of a metric, because the metric is empty in all rows of an evaluation."""

    #: Factor → level of the arms that this is about; empty if all.
    within: dict[str, str]
    metric: str
    #: "" for the unshifted evaluation.
    shift: str
    severities: tuple[float, ...]


@dataclass(frozen=True)
class TidyResults:
    """Results in a tidy table."""

    #: Factor → levels, the reference first.
    factors: dict[str, list[str]]
    #: One row per planned trial, each arm with each seed: a column per factor, the seed, and every measure.
    trials: pd.DataFrame
    #: One row per shifted evaluation.
    shifts: pd.DataFrame
    #: Metric → higher or lower, whichever is better.
    directions: dict[str, str]
    #: Measure → metric, for headline numbers in display order; measures of single shifts are not among them.
    measures: dict[str, str]
    #: Measure of a single shift → metric.
    of_shifts: dict[str, str]
    counts: list[Counts]
    left_out: list[LeftOut]

    def check(self, reference: Mapping[str, Any], hypotheses: Sequence[Hypothesis], tree: Source) -> None:
        """Report levels that the table lacks, and hypotheses that cannot be tested with it, to ``tree``."""
        raw: Any = {factor: [(label, {}) for label in labels] for factor, labels in self.factors.items()}
        if reference:
            read_match(reference, ("reference",), self.factors, raw, tree.report)
        arms = self.trials[list(self.factors)].drop_duplicates().to_dict("records")
        metrics = [*self.measures, *self.of_shifts]
        means = [measure for measure, metric in self.measures.items() if measure == f"robustness/mean_{metric}"]
        _check_names(hypotheses, tree)
        for number, hypothesis in enumerate(hypotheses):
            known = len(tree.problems)
            for field, when in iterate_selectors(hypothesis):
                read_match(when, ("hypotheses", number, field), self.factors, raw, tree.report)
            if isinstance(hypothesis, Correlation) and hypothesis.with_metric is not None:
                tree.report(
                    ("hypotheses", number, "with_metric"), "gains in two metrics are correlated in studies only"
                )
            if hypothesis.metric not in metrics:
                text = f"there is no measure {hypothesis.metric!r}{list_options(hypothesis.metric, metrics)}"
                tree.report(("hypotheses", number, "metric"), text)
            elif counts_shifts(hypothesis) and hypothesis.metric not in means:
                text = f"shifts are counted for {', '.join(means) or 'means over shifts'}, found {hypothesis.metric!r}"
                tree.report(("hypotheses", number, "over"), text)
            if len(tree.problems) == known:
                try:
                    find_contrast(hypothesis, [{str(k): str(v) for k, v in arm.items()} for arm in arms], self.factors)
                except ContrastError as error:
                    tree.report(("hypotheses", number), str(error))

    def pose(self, hypothesis: Hypothesis, seed: int) -> tuple[Hypothesis, Results]:
        """Return a hypothesis and the results in the form of a study's, both with a metric that studies know.

        Any name may head a column of a table, but a study's metrics are read by their names.
        """
        metric = (self.measures | self.of_shifts)[hypothesis.metric]
        known = find_study_metric(metric, self.directions[metric])
        asked = hypothesis.metric.removesuffix(metric) + known
        if asked == f"robustness/mean_{known}" and not METRICS[known].higher_is_better:
            asked = f"calibration/mean_shifted_{known}"
        names = {factor: f"arm/{factor}" for factor in self.factors}
        trials = self.trials[[*self.factors, SEED, hypothesis.metric]]
        trials = trials.set_axis([*names.values(), "replicate", asked], axis=1)
        trials.insert(0, "name", trials[list(names.values())].agg(" · ".join, axis=1))
        trials.insert(0, "signature", [str(number) for number in range(len(trials))])
        shifts = self._usable_shifts(metric)[[*self.factors, SEED, SHIFT, SEVERITY, metric]]
        shifts = shifts.set_axis([*names.values(), "replicate", "shift", "severity", known], axis=1)
        about = trials.drop(columns=asked).assign(is_whole=trials[asked].notna())
        shifts = shifts.merge(about, on=[*names.values(), "replicate"]).assign(set="test")
        if hypothesis.metric in self.measures:  # a trial without a mean takes no part in a count of shifts either
            shifts[known] = shifts[known].where(shifts["is_whole"])
        plan = {"factors": self.factors, "seed": seed, "trials": [], "families": None}
        results = Results(plan, known, {}, [], trials, shifts.drop(columns="is_whole"), ())
        return hypothesis.model_copy(update={"metric": asked}), results

    def _usable_shifts(self, metric: str) -> pd.DataFrame:
        """Return the rows of ``shifts`` that enter a metric's measures."""
        usable = self.shifts
        for each in self.left_out:
            if each.metric == metric:
                is_there = (usable[list(each.within)] == pd.Series(each.within, dtype=object)).all(axis=1)
                usable = usable[~(is_there & (usable[SHIFT] == each.shift))]
        return usable


def find_study_metric(metric: str, better: str) -> str:
    """Return the metric itself if studies have it with that direction, otherwise one of theirs that has."""
    known = METRICS.get(metric)
    if known is not None and known.higher_is_better == (better == "higher"):
        return metric
    return "accuracy" if better == "higher" else "ece"


def list_measures(frame: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """Return the names of all measures of a table, twice where two things would have one name."""
    shifts = [shift for shift in frame[SHIFT].unique() if shift]
    if not shifts:
        return list(metrics)
    prefixes = ("id/", *(f"robustness/{which}_" for which in AGGREGATES), *(f"shift/{shift}/" for shift in shifts))
    return [f"{prefix}{metric}" for metric in metrics for prefix in prefixes]


def find_measures(
    frame: pd.DataFrame,
    factors: Sequence[str],
    reference: Mapping[str, Any],
    directions: Mapping[str, str],
    within: Sequence[str] = (),
) -> TidyResults:
    """Return the results with one row per planned trial and its measures.

    Without shifts a measure is the metric itself. With shifts: ``id/<metric>`` of the unshifted evaluation,
    ``robustness/mean_<metric>``, ``worst_cell`` and ``worst_shift`` as for a study (``average_shifts``), and
    ``shift/<name>/<metric>``, the mean over severities. Planned is every evaluation (shift and severity) that some
    trial has, for every arm with every seed. If a trial lacks one, means that would include it are undefined: a mean
    over fewer shifts would not be comparable. A shift with an evaluation that is empty in all rows is in no mean.

    Args:
        frame: table with the columns of factors and metrics, ``SEED``, ``SHIFT`` and ``SEVERITY``.
        factors: names of the factors' columns.
        reference: factor → level that comes first.
        directions: metric → higher or lower, whichever is better.
        within: factors each combination of whose levels has evaluations of its own.
    """
    keys = [*factors, SEED]
    has_shifts, num_seeds = bool((frame[SHIFT] != "").any()), frame[SEED].nunique()
    parts, left_out, counts = [], list[LeftOut](), list[Counts]()
    measures, of_shifts = dict[str, str](), dict[str, str]()
    for about, stratum in _iterate_strata(frame, within):
        empty = _find_empty(stratum, list(directions), about)
        usable = {
            metric: stratum[~stratum[SHIFT].isin([each.shift for each in empty if each.metric == metric])]
            for metric in directions
        }
        part, whole, single = _measure(usable, keys, directions, "id/" if has_shifts else "")
        parts += [part] if len(part.columns) else []
        measures |= whole
        of_shifts |= single
        left_out += empty
        counts += _count(stratum, usable, factors, num_seeds)
    levels = {name: _order([str(label) for label in frame[name].unique()], reference.get(name)) for name in factors}
    return TidyResults(
        factors=levels,
        trials=_plan(frame, factors).join(pd.concat(parts)).reset_index(),
        shifts=frame[frame[SHIFT] != ""],
        directions=dict(directions),
        measures=measures,
        of_shifts=of_shifts,
        counts=counts,
        left_out=left_out,
    )


def _measure(
    usable: Mapping[str, pd.DataFrame], keys: list[str], directions: Mapping[str, str], prefix: str
) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """Return one row per trial with its measures, and measure → metric for those over shifts and those of single ones.

    Args:
        usable: metric → rows that enter its measures.
        keys: columns that identify a trial.
        directions: metric → higher or lower, whichever is better.
        prefix: first part of the name of an unshifted measure.
    """
    measures: dict[str, str] = {}
    of_shifts: dict[str, str] = {}
    columns = {}
    for metric, better in directions.items():
        rows = usable[metric]
        shifted, clean = rows[rows[SHIFT] != ""], rows[rows[SHIFT] == ""]
        if not clean.empty:
            name = f"{prefix}{metric}"
            columns[name], measures[name] = clean.set_index(keys)[metric], metric
        if not shifted.empty:
            wide = shifted.set_index([*keys, SHIFT, SEVERITY])[metric].unstack([SHIFT, SEVERITY])
            means = average_shifts(wide.to_numpy(dtype=np.float64), list(wide.columns.get_level_values(SHIFT)))
            found = dict(zip(AGGREGATES, means.aggregate(better == "higher"), strict=True))
            named = {f"robustness/{which}_{metric}": values for which, values in found.items()}
            of_each = {f"shift/{shift}/{metric}": values for shift, values in means.by_shift.items()}
            columns |= {name: pd.Series(values, wide.index) for name, values in (named | of_each).items()}
            measures |= dict.fromkeys(named, metric)
            of_shifts |= dict.fromkeys(of_each, metric)
    return pd.DataFrame(columns), measures, of_shifts


def _plan(frame: pd.DataFrame, factors: Sequence[str]) -> pd.DataFrame:
    """Return an empty table whose index is each arm of the table with each seed, in the table's order."""
    arms = frame[list(factors)].drop_duplicates()
    plan = arms.merge(frame[[SEED]].drop_duplicates(), how="cross")
    return plan.set_index([*factors, SEED])


def _iterate_strata(frame: pd.DataFrame, within: Sequence[str]) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """Yield the levels of the factors ``within`` and the rows that have them."""
    if not within:
        yield {}, frame
        return
    for levels, rows in frame.groupby(list(within), sort=False):
        yield dict(zip(within, map(str, levels), strict=True)), rows


def _find_empty(stratum: pd.DataFrame, metrics: Sequence[str], about: dict[str, str]) -> list[LeftOut]:
    """Return the shifts with an evaluation in which a metric is empty in every row."""
    num_defined = stratum.groupby([SHIFT, SEVERITY], sort=False)[list(metrics)].count()
    found = []
    for metric in metrics:
        empty = num_defined.index[num_defined[metric] == 0].to_frame(index=False)
        for shift, rows in empty.groupby(SHIFT, sort=False):
            found.append(LeftOut(about, metric, str(shift), tuple(map(float, rows[SEVERITY]))))
    return found


def _check_names(hypotheses: Sequence[Hypothesis], tree: Source) -> None:
    """Report duplicate names, and families with two error rates."""
    names: dict[str, int] = {}
    families: dict[str, Hypothesis] = {}
    for number, hypothesis in enumerate(hypotheses):
        if names.setdefault(hypothesis.name, number) != number:
            text = f"the name {hypothesis.name!r} is there twice, first in hypotheses[{names[hypothesis.name]}]"
            tree.report(("hypotheses", number, "name"), text)
        first = families.setdefault(hypothesis.family, hypothesis)
        if first.alpha != hypothesis.alpha:
            text = f"found {hypothesis.alpha} where {first.name} of the same family has {first.alpha}; give one"
            tree.report(("hypotheses", number, "alpha"), text)


def _order(labels: list[str], first: Any) -> list[str]:
    label = None if first is None else find_label(first, labels)
    return labels if label is None else [label, *(each for each in labels if each != label)]


def _count(
    stratum: pd.DataFrame, usable: Mapping[str, pd.DataFrame], factors: Sequence[str], num_seeds: int
) -> list[Counts]:
    """Return the counts of every arm. Planned are all evaluations of the stratum with all seeds of the table."""
    num_planned = num_seeds * len(stratum[[SHIFT, SEVERITY]].drop_duplicates())
    undefined = pd.Series(False, index=stratum.index)
    for metric, rows in usable.items():
        undefined[rows.index[rows[metric].isna()]] = True
    return [
        Counts(
            arm=dict(zip(factors, map(str, levels), strict=True)),
            num_seeds=rows[SEED].nunique(),
            num_planned=num_planned,
            num_present=len(rows),
            num_undefined=int(undefined[rows.index].sum()),
        )
        for levels, rows in stratum.groupby(list(factors), sort=False)
    ]
