"""Mean, worst and spread of a trial's metrics over its external sets, each of which is a site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from trainables.evaluation.metrics import METRICS, name_over_sites
from trainables.shifts.bank import IDENTITY


def summarise_sites(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return ``external/mean_…``, ``worst_…`` and ``sd_…`` of every metric over the unshifted external sets.

    Every set counts once, whatever its size. The worst is the smallest value, for errors the largest; sd is that of a
    sample (n − 1). The mean needs one set, worst and sd two. A metric that is undefined on one of the sets has none.

    Args:
        rows: rows of an evaluation (``robustness.summarise_predictions``).
    """
    sites = [row["metrics"] for row in rows if row["set"] not in ("val", "test") and row["shift"] == IDENTITY.name]
    headline: dict[str, float] = {}
    for metric in dict.fromkeys(name for metrics in sites for name in metrics):
        values = [metrics[metric] for metrics in sites if metric in metrics]
        if len(values) < len(sites):
            continue
        headline[name_over_sites("mean", metric)] = float(np.mean(values))
        if len(values) > 1:
            headline[name_over_sites("worst", metric)] = (
                min(values) if METRICS[metric].higher_is_better else max(values)
            )
            headline[name_over_sites("sd", metric)] = float(np.std(values, ddof=1))
    return headline
