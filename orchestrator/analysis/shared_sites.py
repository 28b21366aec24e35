"""Values over external sets of arms that do not have the same ones: over those that all compared arms have."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.statistics.intervals import Array
from orchestrator.study.hypotheses import split_metric
from trainables.evaluation.metrics import find_metric, find_site_aggregate, split_view
from trainables.evaluation.site_means import aggregate_sites


def measure_over_sites(results: Results, measure: str, sites: Collection[str]) -> Array:
    """Return ``external/mean_…``, ``worst_…`` or ``sd_…`` of every planned trial over the sites alone.

    NaN for trials on which the metric is undefined on one of them, and everywhere for worst and sd of a single site.
    """
    metric, aggregate = find_metric(measure).name, find_site_aggregate(measure)
    view, _ = split_view(measure)
    prefix = f"{view}/" if view else ""
    columns = [f"{prefix}external/{site}/{metric}" for site in sorted(sites)]
    values = aggregate_sites(metric, results.trials.reindex(columns=columns).to_numpy(dtype=float))
    return np.asarray(values[aggregate]) if aggregate in values else np.full(len(results.trials), np.nan)


def pair_values(results: Results, measure: str, pairs: pd.DataFrame) -> tuple[pd.DataFrame, Array]:
    """Return the pairs that can be compared on a measure, and its values in them, as pairs × 2.

    A measure over external sets is taken over those that both arms have. Pairs of arms without any in common, or
    without the set that the measure is about, are left out: they are not missing, there is nothing to compare.

    Args:
        results: tables of a study.
        measure: column of the trials table.
        pairs: row numbers of the trials of a level (first column) and of its reference.
    """
    rows = pairs.to_numpy()
    taken = results.trials[measure].to_numpy(dtype=float)[rows]
    _, within = split_view(measure)
    sets = results.external_by_arm if within.startswith("external/") else {}
    if len(set(sets.values())) < 2:
        return pairs, taken
    kind, name, _ = split_metric(within)
    arms = results.trials["name"].to_numpy()[rows]
    alike: dict[tuple[frozenset[str] | None, frozenset[str] | None], list[int]] = {}
    for number, (first, second) in enumerate(arms):
        alike.setdefault((sets.get(first), sets.get(second)), []).append(number)
    kept = np.ones(len(pairs), dtype=bool)
    for (first, second), numbers in alike.items():
        if first is None or second is None:  # no trial is complete: missing
            continue
        shared = first & second
        if not shared or (kind and name not in shared):
            kept[numbers] = False
        elif not kind and first != second:
            taken[numbers] = measure_over_sites(results, measure, shared)[rows[numbers]]
    return pairs[kept], taken[kept]
