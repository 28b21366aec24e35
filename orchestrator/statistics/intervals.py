"""Means, standard deviations, t intervals and bootstrap intervals on plain arrays.

Independent of studies and trials. NaN means "undefined" and is left out, never counted as a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Fewer independently trained replicates give no interval and no p: all of 4 agree by chance in 12.5 % of studies, and
#: a standard deviation with 3 degrees of freedom says little about the next replicate.
MIN_REPLICATES = 5

#: Resamples of every bootstrap interval (methods, section 6.7).
NUM_RESAMPLES = 10_000

#: Fewer units give no interval: with n ≤ 3 a 95 % percentile interval is the range of the data (n⁻ⁿ > 2.5 %).
MIN_UNITS = 4

#: Indices drawn at once: bounds the memory of a bootstrap over 10⁵ images to 32 MiB.
_CHUNK = 4_000_000

#: Share of the size of the numbers they come from, up to which differences are rounding errors.
_ROUNDING = 1e-12

#: Method that computes the ends of an interval from the resampled means; see ``bootstrap_interval``.
Method = Literal["percentile", "bca", "expanded", "studentized"]
METHODS: tuple[Method, ...] = ("percentile", "bca", "expanded", "studentized")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof 1) of ``n`` defined values; None where n is too small."""

    mean: float | None
    sd: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """An interval of a mean, and the settings it was computed with."""

    low: float
    high: float
    #: Number of independent units: values, or clusters of values.
    num_units: int
    level: float = 0.95
    method: Method | Literal["t"] = "t"


@dataclass(frozen=True)
class Units:
    """Independent units: values, or clusters of values, each as the sum and the number of its values."""

    sums: Array
    counts: Array

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def are_single(self) -> bool:
        """Whether every unit is one value."""
        return bool((self.counts == 1).all())

    @property
    def mean(self) -> float:
        """The mean over all values; a cluster of more values weighs more."""
        return float(self.sums.sum() / self.counts.sum())


def gather_units(values: ArrayLike, clusters: ArrayLike | None = None) -> Units:
    """Return the independent units of the defined ``values``: each value, or all values of one cluster label.

    Raises:
        ValueError: if there is not one label per value.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    labels = np.arange(len(array)) if clusters is None else np.asarray(clusters).ravel()
    if len(labels) != len(array):
        raise ValueError(f"got {len(labels)} cluster labels for {len(array)} values; give one label per value")
    keep = ~np.isnan(array)
    _, index = np.unique(labels[keep], return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    # Without any value bincount's sums are integers.
    return Units(np.bincount(index, weights=array[keep]).astype(np.float64), counts)


def summarise(values: ArrayLike) -> Summary:
    """Return mean, standard deviation (ddof 1, None for fewer than two values) and number of the defined values."""
    array = np.asarray(values, dtype=np.float64).ravel()
    array = array[~np.isnan(array)]
    if not len(array):
        return Summary(None, None, 0)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return Summary(float(array.mean()), sd, len(array))


def drop_rounding(differences: ArrayLike, scale: ArrayLike) -> Array:
    """Return the differences, with 0 in place of rounding errors: those of at most 10⁻¹² of ``scale``.

    .85 − .80 and .90 − .85 differ in the 16th digit. A test that counts or flips signs would take that for an effect.

    Args:
        differences: differences, or their means; NaN stays.
        scale: size of the numbers that were subtracted, which broadcasts against the differences.
    """
    array = np.asarray(differences, dtype=np.float64)
    return np.where(np.abs(array) <= _ROUNDING * np.abs(np.asarray(scale, dtype=np.float64)), 0.0, array)


def t_interval(values: ArrayLike, level: float = 0.95, *, clusters: ArrayLike | None = None) -> Interval | None:
    """Return Student's t interval of the mean of ``values``, None for fewer than ``MIN_REPLICATES`` units.

    Args:
        values: one number per unit, for a paired interval the difference of a pair; NaN is left out.
        level: nominal coverage in (0, 1).
        clusters: label per value; the units are then the means of the clusters, which all weigh the same.

    Units that are equal, up to rounding, give an interval of no width. Measured coverage of a nominal 95 % for
    n = 5, 6, 8, 12: .95 for normal values, .93 to .95 for uniform, .95 to .96 for t5, .93 to .94 for gamma(4) and .88
    to .91 for exponential ones (``benchmarks/significance.py``); differences of two arms are roughly symmetric.

    Raises:
        ValueError: if there is not one label per value.

    Source: Student 1908; n − 1 degrees of freedom.
    """
    units = gather_units(values, clusters)
    n = len(units)
    if n < MIN_REPLICATES:
        return None
    from scipy.special import stdtrit

    means = units.sums / units.counts
    mean, sd = float(means.mean()), float(means.std(ddof=1))
    if sd <= _ROUNDING * np.abs(means).max():
        sd = 0.0
    half = float(stdtrit(n - 1, (1 + level) / 2)) * sd / n**0.5
    return Interval(mean - half, mean + half, n, level)


def ratio_interval(numerators: ArrayLike, denominators: ArrayLike, level: float = 0.95) -> Interval | None:
    """Return the t interval of a mean of ratios, None for fewer than ``MIN_REPLICATES`` units or without a ratio.

    The ratios are of means over units, one per column. A unit enters with its linearised share, not with ratios of its
    own: the denominator of a single unit may be near 0.

    Args:
        numerators: units × columns, without NaN.
        denominators: the same, or one row if they are constants; the mean of a column must not be 0.
        level: nominal coverage in (0, 1).

    Source: Cochran 1977, section 2.11 (variance of a ratio of means).
    """
    above, below = np.broadcast_arrays(np.asarray(numerators, np.float64), np.asarray(denominators, np.float64))
    if not above.size:
        return None
    scale = below.mean(axis=0)
    ratios = above.mean(axis=0) / scale
    return t_interval(ratios.mean() + ((above - ratios * below) / scale).mean(axis=1), level)


def bootstrap_interval(
    values: ArrayLike,
    *,
    seed: int,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    method: Method = "percentile",
) -> Interval | None:
    """Return a bootstrap interval of the mean of ``values``, None for fewer than ``MIN_UNITS`` units.

    Args:
        values: one number per cell; NaN is left out.
        seed: seed of the resampling; the same seed gives the same interval.
        clusters: label per value; whole clusters are resampled, because their values are not independent.
        level: nominal coverage in (0, 1).
        num_resamples: number of bootstrap replicates.
        method: ``percentile``: quantiles of the resampled means; too narrow for few units. ``bca``: those quantiles
            corrected for bias and skewness (acceleration by the jackknife over units); as narrow. ``expanded``:
            quantiles moved outwards so that for normal values the interval is as wide as Student's t interval.
            ``studentized``: quantiles of the resampled t statistics; None if so many resamples hold only equal units
            that a quantile is infinite.

    Units that are all equal give an interval of no width, by every method. Measured coverage of a nominal 95 % for
    normal values, n = 5, 6, 8, 12, 24: percentile and BCa .85, .85, .88, .91, .93; expanded .93, .93, .94, .95, .95;
    studentized .94 to .95 (``benchmarks/significance.py``; skewed values and clusters in ``docs/statistics.md``).

    Raises:
        ValueError: if there is not one label per value, or the method is unknown.

    Source: Efron & Tibshirani 1993, sections 12.5 (studentized), 13.3 (percentile) and 14.3 (BCa); Hesterberg 2015,
    "What teachers should know about the bootstrap", section 3.2 (expanded); Field & Welsh 2007 (cluster bootstrap).
    Differs: where no resampled mean lies on one side of the mean, BCa's bias is that of one that does, not infinite.
    """
    if method not in METHODS:
        raise ValueError(f"got the bootstrap method {method!r}; expected one of {', '.join(METHODS)}")
    units = gather_units(values, clusters)
    if len(units) < MIN_UNITS:
        return None
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "studentized":
        ends = _studentize(tails, units, seed=seed, num_resamples=num_resamples)
    else:
        means = _resample_means(units, seed=seed, num_resamples=num_resamples)
        if method == "expanded":
            tails = _expand(tails, len(units))
        elif method == "bca":
            tails = _correct(tails, units, means)
        ends = np.quantile(means, tails)
    if not np.isfinite(ends).all():
        return None
    return Interval(float(ends[0]), float(ends[1]), len(units), level, method)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    *,
    seed: int,
    clusters: ArrayLike | None = None,
    method: Method = "percentile",
    level: float = 0.95,
) -> Interval | None:
    """Return the interval of mean(first − second) over pairs, None for fewer than ``MIN_UNITS`` pairs or clusters.

    A pair with an undefined side is left out. See ``bootstrap_interval``.

    Raises:
        ValueError: if the lengths differ, there is not one label per pair, or the method is unknown.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must match one to one, got shapes {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, seed=seed, clusters=clusters, method=method, level=level)


def _resample(*columns: Array, seed: int, num_resamples: int) -> Array:
    """Return the sums of columns (one value per unit) over the units of each resample, as column × resample."""
    generator = np.random.default_rng(seed)
    num_units = len(columns[0])
    rows = max(1, _CHUNK // num_units)
    sums = np.empty((len(columns), num_resamples))
    for start in range(0, num_resamples, rows):
        stop = min(start + rows, num_resamples)
        drawn = generator.integers(num_units, size=(stop - start, num_units))
        for row, column in zip(sums, columns, strict=True):
            row[start:stop] = column[drawn].sum(axis=1)
    return sums


def _resample_means(units: Units, *, seed: int, num_resamples: int) -> Array:
    if units.are_single:  # half the work, and the same to the last bit
        means: Array = _resample(units.sums, seed=seed, num_resamples=num_resamples)[0] / len(units)
        return means
    sums, counts = _resample(units.sums, units.counts, seed=seed, num_resamples=num_resamples)
    return sums / counts


def _studentize(tails: Array, units: Units, *, seed: int, num_resamples: int) -> Array:
    """Return the ends of the bootstrap-t interval; an end that is not finite is undefined."""
    n, c = len(units), units.counts
    e = units.sums - units.mean * c  # what is left once the mean is taken off: its resampled mean is the difference
    if np.abs(e).max() <= _ROUNDING * np.abs(units.sums).max():
        return np.full(2, units.mean)
    if units.are_single:
        e_sums, ee = _resample(e, e * e, seed=seed, num_resamples=num_resamples)
        c_sums, ec, cc = np.full_like(ee, n), e_sums, np.full_like(ee, n)
    else:
        e_sums, c_sums, ee, ec, cc = _resample(e, c, e * e, e * c, c * c, seed=seed, num_resamples=num_resamples)
    difference = e_sums / c_sums
    # The variance of a ratio of sums, linearised: Cochran 1977, section 2.11. For values it is that of the mean.
    variance = (ee - 2 * difference * ec + difference**2 * cc) * n / (n - 1) / c_sums**2
    variance[variance < 1e-12 * (e @ e) / c.sum() ** 2] = 0
    error = np.sqrt((e @ e) * n / (n - 1)) / c.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        # A resample of equal units has t = ±∞; one whose mean is that of the data has t = 0.
        t = np.where(difference == 0, 0.0, difference / np.sqrt(variance))
        ends: Array = units.mean - error * np.quantile(t, tails[::-1])
    return ends


def _expand(tails: Array, num_units: int) -> Array:
    """Return the quantiles at which the normal interval of ddof 0 is as wide as Student's with ddof 1."""
    from scipy.special import ndtr, stdtrit

    wide: Array = ndtr(np.sqrt(num_units / (num_units - 1)) * stdtrit(num_units - 1, tails))
    return wide


def _correct(tails: Array, units: Units, means: Array) -> Array:
    """Return BCa's quantiles; ``tails`` themselves where all units have the same mean."""
    from scipy.special import ndtr, ndtri

    # Each mean without one unit, against their average: positive where leaving it out lowers the mean.
    without = (units.sums.sum() - units.sums) / (units.counts.sum() - units.counts)
    influence = without.mean() - without
    spread = float((influence**2).sum() ** 1.5)
    if spread == 0 or np.ptp(means) == 0:
        return tails
    acceleration = float((influence**3).sum()) / (6 * spread)
    # A resample of every unit once has the mean itself, up to rounding; ties count half, as in scipy.
    away, near = means - units.mean, 1e-12 * np.abs(means).max()
    below = np.mean(away < -near) + np.mean(np.abs(away) <= near) / 2
    share = np.clip(below, 1 / (len(means) + 1), len(means) / (len(means) + 1))
    bias, z = ndtri(share), ndtri(tails)
    corrected: Array = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
    return corrected
