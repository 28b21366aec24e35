"""Means, paired bootstrap intervals, signed-rank tests and Holm's correction on plain arrays.

Nothing here knows what a trial is. NaN means "undefined" and is left out, never counted as a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Resamples of every bootstrap interval (methods, section 6.7).
NUM_RESAMPLES = 10_000

#: With n ≤ 3 units a 95 % percentile interval is the range of the data (n⁻ⁿ > 2.5 %): not given.
MIN_UNITS = 4

#: The smallest n at which a two-sided signed-rank test can fall below .05: 2 · 2⁻⁶ = .031, 2 · 2⁻⁵ = .0625.
MIN_WILCOXON = 6

#: Indices drawn at once: bounds the memory of a bootstrap over 10⁵ images to 32 MiB.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof 1) of ``n`` defined values; None where n is too small."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """A bootstrap percentile interval of a mean, and what it was made from."""

    low: float
    high: float
    #: Independent units resampled: values, or clusters of values.
    num_units: int
    level: float = 0.95
    num_resamples: int = NUM_RESAMPLES


def _defined(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]


def summarise(values: ArrayLike) -> Summary:
    """Return mean, standard deviation (ddof 1, None for fewer than two values) and number of the defined values."""
    array = _defined(values)
    if not len(array):
        return Summary(None, None, 0)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return Summary(float(array.mean()), sd, len(array))


def bootstrap_interval(
    values: ArrayLike,
    *,
    seed: int,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval | None:
    """Return the percentile interval of the mean of ``values``, None for fewer than ``MIN_UNITS`` units.

    Args:
        values: one number per cell; NaN is left out.
        seed: of the resampling; the same seed gives the same interval.
        clusters: label per value; whole clusters are resampled, because their values are not independent.
        level: nominal coverage in (0, 1).
        num_resamples: bootstrap replicates.

    Intervals of few units are too narrow. Measured coverage of a nominal 95 % for normal values (4,000 draws each):
    n = 4 .80, 6 .85, 8 .89, 12 .91, 24 .93; the report says so beside the interval.

    Source: Efron & Tibshirani 1993, section 13.3 (percentile); Field & Welsh 2007 (cluster bootstrap).
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    keep = ~np.isnan(array)
    labels = np.arange(len(array)) if clusters is None else np.asarray(clusters).ravel()
    if len(labels) != len(array):
        raise ValueError(f"got {len(labels)} cluster labels for {len(array)} values; give one label per value")
    _, index = np.unique(labels[keep], return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    num_units = len(counts)
    if num_units < MIN_UNITS:
        return None
    sums = np.bincount(index, weights=array[keep])
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // num_units)
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, rows):
        stop = min(start + rows, num_resamples)
        drawn = generator.integers(num_units, size=(stop - start, num_units))
        means[start:stop] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), num_units, level, num_resamples)


def paired_bootstrap(
    first: ArrayLike, second: ArrayLike, *, seed: int, clusters: ArrayLike | None = None
) -> Interval | None:
    """Return the 95 % interval of mean(first − second) over pairs; a pair with an undefined side is left out.

    Raises:
        ValueError: the two have different lengths.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must match one to one, got shapes {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, seed=seed, clusters=clusters)


def wilcoxon(differences: ArrayLike) -> float | None:
    """Return the two-sided signed-rank p-value, None with fewer than ``MIN_WILCOXON`` differences other than 0.

    Source: Wilcoxon 1945; exact for up to 50 differences without ties (scipy).
    """
    from scipy.stats import wilcoxon as signed_rank

    array = _defined(differences)
    array = array[array != 0]
    if len(array) < MIN_WILCOXON:
        return None
    return float(signed_rank(array, alternative="two-sided", method="auto").pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of one family corrected for their number; those that are None stay so and do not count.

    Source: Holm 1979, step-down.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted
