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
    frame = _name_units(results, rows, groups, listed)
    keys = ["group", "shift", "severity"]
    grouped = frame.groupby([*keys, "unit"], observed=True)["score"]
    scores = grouped.mean().unstack("unit")
    counts = grouped.count().groupby(keys, observed=True).sum()
    values, numbers = scores.to_numpy(np.float64), counts.reindex(scores.index).to_numpy(np.int64)
    means = scores.mean(axis=1).to_numpy()
    intervals = [t_interval(row) for row in values]
    ends = np.array([(math.nan, math.nan) if each is None else (each.low, each.high) for each in intervals])
    places: dict[tuple[str, str], list[int]] = {}
    for place, (group, shift, _) in enumerate(scores.index):
        places.setdefault((group, shift), []).append(place)
    severities = scores.index.get_level_values("severity").to_numpy()
    found = {}
    for group in listed:
        for shift in names:
            if (group, shift) not in places or (group, UNSHIFTED) not in places:
                continue
            chosen = [*places[group, UNSHIFTED], *places[group, shift]]
            units = values[chosen]
            found[group, shift] = SeverityScores(
                tuple(severities[chosen].tolist()),
                units[:, ~np.isnan(units).all(axis=0)],
                means[chosen],
                *ends[chosen].T,
                tuple(numbers[chosen].tolist()),
            )
    return found


def _name_units(results: Results, rows: pd.DataFrame, groups: Mapping[str, str], listed: Sequence[str]) -> pd.DataFrame:
    """Return group, shift, severity, independent unit and score of the rows of the listed groups."""
    signatures = rows["signature"].cat
    of_trial = dict(zip(results.trials["signature"], results.trials["replicate"], strict=True))
    own = results.trials["signature"].map(dict(groups))
    units = {group: results.group_replicates(results.trials[own == group]) for group in listed}
    group_of = [groups.get(signature) for signature in signatures.categories]
    unit_of = [
        units[group][int(of_trial[signature])] if group in units else -1
        for signature, group in zip(signatures.categories, group_of, strict=True)
    ]
    codes = signatures.codes.to_numpy()
    categories = pd.Categorical(group_of, categories=list(listed))
    frame = pd.DataFrame(
        {
            "group": pd.Categorical.from_codes(categories.codes[codes], categories=list(listed)),
            "shift": rows["shift"].array,
            "severity": rows["severity"].to_numpy(),
            "unit": np.array(unit_of)[codes],
            "score": rows[results.metric].to_numpy(),
        }
    )
    return frame[frame["group"].notna()]
