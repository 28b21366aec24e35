"""Scores of groups of trials over the severities of every shift: mean, interval over independent units, numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64

from orchestrator.analysis.results import Results
from orchestrator.analysis.stain_grid import rows_of_shifts
from orchestrator.statistics.intervals import t_interval
from trainables.evaluation.balanced import UNSHIFTED


@dataclass(frozen=True)
class SeverityScores:
    """Scores of one group under one shift, one number per severity from 0, the unshifted images, on."""

    severities: tuple[int, ...]
    #: NaN where an independent unit has no trial.
    units: Float64[np.ndarray, "severities units"]
    #: Mean over the units that have a value.
    mean: Float64[np.ndarray, " severities"]
    #: Ends of the 95 % t interval of the mean over units, NaN without one.
    low: Float64[np.ndarray, " severities"]
    high: Float64[np.ndarray, " severities"]
    #: Numbers of trials.
    num_trials: tuple[int, ...]


def order_by_drop(results: Results) -> list[str]:
    """Return the shifts in the order of their drop, largest first: unshifted minus mean over severities and trials."""
    rows, names = rows_of_shifts(results)
    if not names:
        return []
    means = rows[rows["severity"] > 0].groupby("shift", observed=True)[results.metric].mean()
    return sorted(names, key=lambda name: float(means[name]))  # all are compared with the same unshifted scores


def score_severities(
    results: Results, groups: Mapping[str, str], listed: Sequence[str]
) -> dict[tuple[str, str], SeverityScores]:
    """Return (group, shift) → scores, of the groups that have unshifted scores and of the shifts that they have.

    Args:
        results: tables of the study.
        groups: signature → group (an arm's label, or a level of one factor).
        listed: groups to return.
    """
    rows, names = rows_of_shifts(results)
    clean = rows[rows["severity"] == 0].set_index("signature")[results.metric]
    cells = results.cells(results.metric).reindex(clean.index)
    severities = np.array([0, *cells.columns.get_level_values("severity")])
    shifts = np.array([UNSHIFTED, *cells.columns.get_level_values("shift").astype(str)])
    # One row per trial: 700,000 rows, one per trial and severity, take seconds to group.
    table = pd.DataFrame(np.column_stack([clean, cells]))
    own = np.array([groups.get(str(signature)) for signature in clean.index], dtype=object)
    replicates = results.trials.set_index("signature")["replicate"].reindex(clean.index.astype(str)).to_numpy()
    found = {}
    for group in listed:
        units = results.group_replicates(results.trials[results.trials["signature"].map(dict(groups)) == group])
        of_group = own == group
        trials = table[of_group]
        of_trial = np.array([units[int(replicate)] for replicate in replicates[of_group]])
        scores = trials.groupby(of_trial).mean()
        means, numbers = scores.mean().to_numpy(), trials.count().to_numpy()
        values = scores.to_numpy()
        ends = [(math.nan, math.nan) if each is None else (each.low, each.high) for each in map(t_interval, values.T)]
        low, high = np.array(ends).T
        for shift in names if numbers[0] else ():
            columns = np.flatnonzero((shifts == shift) & (numbers > 0))
            if len(columns):
                chosen = np.array([0, *columns[np.argsort(severities[columns])]])
                of_units = values[:, chosen].T
                found[group, shift] = SeverityScores(
                    tuple(severities[chosen].tolist()),
                    of_units[:, ~np.isnan(of_units).all(axis=0)],
                    means[chosen],
                    low[chosen],
                    high[chosen],
                    tuple(numbers[chosen].tolist()),
                )
    return found
