"""Relevance on lesions by arm, method and metric over independently trained models, beside its baselines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.statistics.intervals import Interval, drop_rounding, t_interval
from trainables.evaluation.attribution.table import (
    ATTRIBUTION_METRICS,
    CENTRE_PRIOR,
    METHODS,
    RANDOMISED,
    name_attribution,
)

#: Metrics in the order of the table.
METRIC_NAMES = tuple(ATTRIBUTION_METRICS)


@dataclass(frozen=True)
class ArmScore:
    """One metric of one method in one arm, over its independently trained models."""

    mean: float
    interval: Interval | None
    num_units: int
    #: Mean of the same method on networks with random weights; None where it is undefined.
    randomised: float | None
    #: Interval of the paired difference to it.
    gain: Interval | None


@dataclass(frozen=True)
class AttributionScores:
    """Scores of all arms of a study."""

    methods: tuple[str, ...]
    #: Metrics that some trial has, in the order of the table.
    metrics: tuple[str, ...]
    #: Arm, method, metric → its score; without those that are undefined.
    scores: dict[tuple[str, str, str], ArmScore]
    #: Arm, metric → value of the centre prior, which no model changes.
    prior: dict[tuple[str, str], float]

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms with a score."""
        return tuple(dict.fromkeys(arm for arm, _, _ in self.scores))


def score_arms(results: Results) -> AttributionScores | None:
    """Return the scores of all arms, None if no trial has any. Replicates that share an encoder are one unit."""
    complete = results.complete
    columns = {str(column) for column in complete if str(column).startswith("attribution/")}
    methods = tuple(each for each in METHODS if any(column.startswith(f"attribution/{each}/") for column in columns))
    if not methods:
        return None
    metrics = tuple(
        name for name in METRIC_NAMES if any(name_attribution(method, name) in columns for method in methods)
    )
    scores: dict[tuple[str, str, str], ArmScore] = {}
    prior: dict[tuple[str, str], float] = {}
    for arm, rows in complete.groupby("name", sort=False):
        units = rows["replicate"].map(results.group_replicates(results.trials[results.trials["name"] == arm]))
        for metric in metrics:
            column = name_attribution(CENTRE_PRIOR, metric)
            if column in columns and rows[column].notna().any():
                prior[str(arm), metric] = float(rows[column].mean())
            for method in methods:
                found = _score(rows, units, method, metric)
                if found is not None:
                    scores[str(arm), method, metric] = found
    return AttributionScores(methods, metrics, scores, prior)


def _score(rows: pd.DataFrame, units: pd.Series, method: str, metric: str) -> ArmScore | None:
    values = _average(rows, units, name_attribution(method, metric))
    if values is None or not values.notna().any():
        return None
    random = _average(rows, units, name_attribution(method, RANDOMISED + metric))
    gain, mean_random = None, None
    if random is not None and random.notna().any():
        mean_random = float(random.mean())
        gain = t_interval(drop_rounding(values - random, np.abs(values)))
    return ArmScore(float(values.mean()), t_interval(values), int(values.notna().sum()), mean_random, gain)


def _average(rows: pd.DataFrame, units: pd.Series, column: str) -> pd.Series | None:
    """Return the values of a column by unit, None if no trial has it."""
    return rows[column].groupby(units).mean() if column in rows else None


def list_untold(scores: AttributionScores, metric: str) -> dict[str, list[str]]:
    """Return method → arms whose trained networks are not told from networks with random weights by a metric.

    Only arms with enough trained models for an interval; one that does not exclude 0, or lies below it.
    """
    found: dict[str, list[str]] = {}
    for (arm, method, name), score in scores.scores.items():
        if name == metric and score.gain is not None and score.gain.low <= 0:
            found.setdefault(method, []).append(arm)
    return found
