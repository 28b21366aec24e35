"""Headline numbers per trial from a tidy table, laid out like the report's own tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.study.contrasts import ContrastError, find_contrast
from orchestrator.study.grid import find_label, read_match
from orchestrator.study.hypotheses import Hypothesis, find_shift_metric, iterate_selectors
from orchestrator.study.problems import list_options
from orchestrator.study.yaml_source import Source
from trainables.evaluation.metrics import AGGREGATES
from trainables.evaluation.shift_means import average_shifts

#: Columns of the table after reading; no CSV header has these names, because header names are stripped.
SEED, SHIFT, SEVERITY = " seed", " shift", " severity"


@dataclass(frozen=True)
class TidyResults:
    """Results in a tidy table."""

    #: Factor → levels, the reference first.
    factors: dict[str, list[str]]
    #: One row per trial: a column per factor, the seed, and every measure.
    trials: pd.DataFrame
    #: One row per shifted evaluation.
    shifts: pd.DataFrame
    #: Measure → metric, for headline numbers in display order; measures of single shifts are not among them.
    measures: dict[str, str]
    #: Measure of a single shift → metric.
    of_shifts: dict[str, str]
    #: One row per arm: numbers of seeds and of present, missing and undefined evaluations.
    counts: pd.DataFrame

    def check(self, reference: Mapping[str, Any], hypotheses: Sequence[Hypothesis], tree: Source) -> None:
        """Report levels that the table lacks, and hypotheses that cannot be tested with it, to ``tree``."""
        raw: Any = {factor: [(label, {}) for label in labels] for factor, labels in self.factors.items()}
        if reference:
            read_match(reference, ("reference",), self.factors, raw, tree.report)
        arms = self.trials[list(self.factors)].drop_duplicates().to_dict("records")
        metrics = [*self.measures, *self.of_shifts]
        _check_names(hypotheses, tree)
        for number, hypothesis in enumerate(hypotheses):
            known = len(tree.problems)
            for field, when in iterate_selectors(hypothesis):
                read_match(when, ("hypotheses", number, field), self.factors, raw, tree.report)
            if hypothesis.metric not in metrics:
                text = f"there is no measure {hypothesis.metric!r}{list_options(hypothesis.metric, metrics)}"
                tree.report(("hypotheses", number, "metric"), text)
            elif hypothesis.over == "shifts" and find_shift_metric(hypothesis.metric) is None:
                text = f"shifts are counted for robustness/mean_accuracy and its like, found {hypothesis.metric!r}"
                tree.report(("hypotheses", number, "over"), text)
            if len(tree.problems) == known:
                try:
                    find_contrast(hypothesis, [{str(k): str(v) for k, v in arm.items()} for arm in arms], self.factors)
                except ContrastError as error:
                    tree.report(("hypotheses", number), str(error))

    def as_results(self, seed: int) -> Results:
        """Return the results in the form of a study's results, for functions that expect these."""
        names = {factor: f"arm/{factor}" for factor in self.factors}
        trials = self.trials.rename(columns=names | {SEED: "replicate"})
        trials.insert(0, "name", trials[list(names.values())].agg(" · ".join, axis=1))
        trials.insert(0, "signature", [str(number) for number in range(len(trials))])
        keys = [*names.values(), "replicate"]
        shifts = self.shifts.rename(columns=names | {SEED: "replicate", SHIFT: "shift", SEVERITY: "severity"})
        shifts = shifts.merge(trials[[*keys, "signature", "name"]], on=keys).assign(set="test")
        plan = {"factors": self.factors, "seed": seed, "trials": []}
        return Results(plan, next(iter(self.measures)), {}, [], trials, shifts, ())


def find_measures(
    frame: pd.DataFrame, factors: Sequence[str], reference: Mapping[str, Any], directions: Mapping[str, str]
) -> TidyResults:
    """Return the results with one row per trial and its measures.

    Without shifts a measure is the metric itself. With shifts: ``id/<metric>`` of the unshifted evaluation,
    ``robustness/mean_<metric>``, ``worst_cell`` and ``worst_shift`` as for a study (``average_shifts``), and
    ``shift/<name>/<metric>``, the mean over severities. If a trial lacks an evaluation that any other trial has,
    means that would include it are undefined: a mean over fewer shifts would not be comparable.

    Args:
        frame: table with the columns of factors and metrics, ``SEED``, ``SHIFT`` and ``SEVERITY``.
        factors: names of the factors' columns.
        reference: factor → level that comes first.
        directions: metric → higher or lower, whichever is better.
    """
    keys = [*factors, SEED]
    shifted, clean = frame[frame[SHIFT] != ""], frame[frame[SHIFT] == ""]
    trials = frame[keys].drop_duplicates().set_index(keys)
    measures: dict[str, str] = {}
    of_shifts: dict[str, str] = {}
    columns = {}
    for metric, better in directions.items():
        if not clean.empty:
            name = metric if shifted.empty else f"id/{metric}"
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
    levels = {name: _order([str(label) for label in frame[name].unique()], reference.get(name)) for name in factors}
    table = trials.join(pd.DataFrame(columns)).reset_index()
    return TidyResults(levels, table, shifted, measures, of_shifts, _count(frame, factors, list(directions)))


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


def _count(frame: pd.DataFrame, factors: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return one row per arm: numbers of seeds and of present, missing (others have them) and undefined evaluations."""
    evaluations = frame[[SHIFT, SEVERITY]].drop_duplicates()
    num_planned = frame[SEED].nunique() * len(evaluations)
    rows = []
    for key, group in frame.groupby(list(factors), sort=False):
        arm = dict(zip(factors, key if isinstance(key, tuple) else (key,), strict=True))
        undefined = int(group[list(metrics)].isna().any(axis=1).sum())
        rows.append(
            {
                **arm,
                "seeds": group[SEED].nunique(),
                "evaluations": len(group),
                "missing": num_planned - len(group),
                "undefined": undefined,
            }
        )
    return pd.DataFrame(rows)
