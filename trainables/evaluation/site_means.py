"""Mean, worst and spread of a trial's metrics over its external sets, each of which is a site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from trainables.evaluation.balanced import UNSHIFTED
from trainables.evaluation.metrics import EVALUATED, name_over_sites


def summarise_sites(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return ``external/mean_…``, ``worst_…`` and ``sd_…`` of every metric over the unshifted external sets.

    Every set counts once, whatever its size. The worst is the smallest value, for errors the largest; sd is that of a
    sample (n − 1). The mean needs one set, worst and sd two. A metric that is undefined on one of the sets has none.

    Args:
        rows: rows of an evaluation (``robustness.summarise_predictions``).
    """
    sites = [row["metrics"] for row in rows if row["set"] not in ("val", "test") and row["shift"] == UNSHIFTED]
    headline: dict[str, float] = {}
    for metric in dict.fromkeys(name for metrics in sites for name in metrics):
        values = [metrics[metric] for metrics in sites if metric in metrics]
        if len(values) < len(sites):
            continue
        found = aggregate_sites(metric, np.array(values, dtype=np.float64))
        headline |= {name_over_sites(aggregate, metric): float(value) for aggregate, value in found.items()}
    return headline


def aggregate_sites(
    metric: str, values: Float[np.ndarray, "*trials sites"]
) -> dict[str, Float[np.ndarray, "*trials"] | np.float64]:
    """Return mean, worst and sd (n − 1) of a metric over sites, the last two for two sites or more.

    Args:
        metric: name in ``EVALUATED``, which says whether the smallest or the largest value is the worst.
        values: the metric on each site, at least one.
    """
    found = {"mean": values.mean(axis=-1)}
    if values.shape[-1] > 1:
        found["worst"] = values.min(axis=-1) if EVALUATED[metric].higher_is_better else values.max(axis=-1)
        found["sd"] = values.std(axis=-1, ddof=1)
    return found
