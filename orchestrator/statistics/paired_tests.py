"""Tests on paired differences, a test of monotone trend, and Holm's correction, on plain arrays.

Every test returns None if there are too few units for a p-value of at most ``alpha``, whatever the data. NaN means
"undefined" and is left out. With ``alternative="greater"`` small p-values are evidence for differences above 0, with
``"less"`` for differences below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.statistics.intervals import Array

Alternative = Literal["two-sided", "greater", "less"]
ALTERNATIVES: tuple[Alternative, ...] = ("two-sided", "greater", "less")
#: Number of random sign flips or orders if there are too many to count all.
NUM_PERMUTATIONS = 10_000
#: Largest number of orders, or of sign flips of a whole map, that are all tried; 14 units have 2¹⁴ flips.
MAX_ENUMERATED = 20_000
#: Largest number of units of which all sign flips are counted in the test of one mean: two halves of 2¹⁴ sums, 5 ms.
MAX_COUNTED_UNITS = 28
#: The signed-rank distribution is exact up to this number of differences, normal above (as in scipy).
_MAX_EXACT_RANKS = 50
#: Digits to which differences are ranked and statistics compared: .85 − .80 and .90 − .85 differ in the 16th.
DIGITS = 10
#: Signs drawn at once: bounds the memory of 10,000 flips of 10⁵ units to 32 MiB.
_CHUNK = 4_000_000


def smallest_p(num_units: int, alternative: Alternative = "two-sided") -> float:
    """Return the p-value of a signed-rank, sign or sign-flip test when all ``num_units`` differences agree in sign."""
    return min(1.0, (2 if alternative == "two-sided" else 1) * 0.5**num_units)


def min_units(alpha: float = 0.05, alternative: Alternative = "two-sided") -> int:
    """Return the fewest units with which ``smallest_p`` is at most ``alpha``: 6 for .05, two-sided."""
    number = 1
    while smallest_p(number, alternative) > alpha:
        number += 1
    return number


def wilcoxon(differences: ArrayLike, *, alternative: Alternative = "two-sided", alpha: float = 0.05) -> float | None:
    """Return the p-value of the signed-rank test, None with too few differences other than 0 (under 6 two-sided).

    Exact for up to 50 differences, also with ties (they share the mean of their ranks); zeros are left out.

    Source: Wilcoxon 1945; Hollander, Wolfe & Chicken 2014, section 3.1. Differs from scipy: ties do not make it
    approximate.
    """
    array = _other_than_zero(np.asarray(differences, dtype=np.float64).ravel(), alternative, alpha)
    if array is None:
        return None
    from scipy.stats import rankdata
    from scipy.stats import wilcoxon as signed_rank

    sizes = np.round(np.abs(array) / np.abs(array).max(), DIGITS)
    if len(array) > _MAX_EXACT_RANKS:
        ranked = np.sign(array) * rankdata(sizes)
        return float(signed_rank(ranked, alternative=alternative, method="asymptotic").pvalue)
    # Twice the ranks: mid-ranks are whole or half numbers.
    ranks = np.round(2 * rankdata(sizes)).astype(int)
    ways = np.ones(1)
    for rank in ranks:  # how many of the 2ⁿ sign patterns give each sum of the positive ranks
        longer = np.zeros(len(ways) + rank)
        longer[: len(ways)] += ways
        longer[rank:] += ways
        ways = longer / 2
    positive = int(ranks[array > 0].sum())
    return _p_value(float(ways[positive:].sum()), float(ways[: positive + 1].sum()), alternative)


def sign_test(differences: ArrayLike, *, alternative: Alternative = "two-sided", alpha: float = 0.05) -> float | None:
    """Return the exact p-value of the sign test, None with too few differences other than 0 (under 6 two-sided).

    The test only counts the differences above 0. It assumes no symmetry, and has less power for it.

    Source: Hollander, Wolfe & Chicken 2014, section 3.4.
    """
    array = _other_than_zero(np.asarray(differences, dtype=np.float64).ravel(), alternative, alpha)
    if array is None:
        return None
    from scipy.stats import binomtest

    return float(binomtest(int((array > 0).sum()), len(array), 0.5, alternative=alternative).pvalue)


def permutation_test(
    differences: ArrayLike,
    *,
    seed: int,
    alternative: Alternative = "two-sided",
    alpha: float = 0.05,
) -> float | None:
    """Return the p-value of the sign-flip test of the mean, None with too few units other than 0 (under 6 two-sided).

    Args:
        differences: one difference per pair.
        seed: seed of the random flips, which are drawn for more than ``MAX_COUNTED_UNITS`` units; up to that, all
            flips are counted.
        alternative: hypothesis that small p-values are evidence for.
        alpha: level that the p-value must be able to reach.

    Source: Fisher 1935, section 21; Phipson & Smyth 2010 for (b + 1) / (m + 1) of m random flips; Horowitz & Sahni
    1974 for counting sums by halves. Assumes that under the null hypothesis a difference is as likely as its negative.
    """
    array = _other_than_zero(np.asarray(differences, dtype=np.float64).ravel(), alternative, alpha)
    if array is None:
        return None
    array = array / np.abs(array).max()
    if len(array) <= MAX_COUNTED_UNITS:
        return _count_flips(array, alternative)
    observed = float(array.sum())
    if NUM_PERMUTATIONS * len(array) <= _CHUNK:
        return tail_p(_draw_all_flips(seed, len(array)) @ array, observed, alternative, num_more=1)
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(array))
    flipped = np.concatenate(
        [
            _draw_flips(generator, min(rows, NUM_PERMUTATIONS - start), len(array)) @ array
            for start in range(0, NUM_PERMUTATIONS, rows)
        ]
    )
    return tail_p(flipped, observed, alternative, num_more=1)


def _count_flips(array: Array, alternative: Alternative) -> float:
    """Return the share of all sign flips whose sum is as extreme as that of ``array``.

    A sum is one of the first half of the units plus one of the second: for each of the former, the latter that reach
    far enough are counted in their sorted list.
    """
    half = len(array) // 2
    first, second = (outer_sums([np.array([-value, value]) for value in part]) for part in (array[:half], array[half:]))
    observed = float(array.sum())
    if alternative == "less":
        observed = -observed  # flips are symmetric about 0
    elif alternative == "two-sided":
        observed = abs(observed)
    # Equal up to rounding is equal.
    least = observed - 10.0**-DIGITS
    if alternative == "two-sided" and least <= 0:
        return 1.0
    reached = int((len(second) - np.searchsorted(np.sort(second), least - np.sort(first))).sum())
    return (2 if alternative == "two-sided" else 1) * reached / 2 ** len(array)


@lru_cache(maxsize=1)  # a report tests dozens of effects over the same replicates
def _draw_all_flips(seed: int, num_units: int) -> Array:
    """Return the signs of all random flips, as flips × units."""
    return _draw_flips(np.random.default_rng(seed), NUM_PERMUTATIONS, num_units)


def _draw_flips(generator: np.random.Generator, num_flips: int, num_units: int) -> Array:
    signs = 2.0 * generator.integers(2, size=(num_flips, num_units), dtype=np.int8) - 1
    return signs.astype(np.float64, copy=False)


def max_t_test(differences: ArrayLike, *, seed: int, alpha: float = 0.05) -> Array:
    """Return p-values of many mean differences, corrected for all of them; NaN where a column is not tested.

    The signs of a whole row are flipped together, which keeps the columns as correlated as they are. A column's p-value
    is the share of flips in which the largest |t| of all columns is at least its own.

    Args:
        differences: units × columns; NaN is undefined. A column with fewer than ``min_units(alpha)`` values other than
            0 is not tested.
        seed: seed of the random flips, which are drawn for more than 14 units; for fewer, all flips are tried.
        alpha: level that the p-values must be able to reach.

    Source: Westfall & Young 1993, section 2.3 (single step); Winkler et al. 2014 (sign flips). Flips leave the sum of
    squares as it is, so t rises with the sum over the root of that, which is used in its place. Assumes that under the
    null hypothesis a row is as likely as its negative.
    """
    array = np.nan_to_num(np.asarray(differences, dtype=np.float64), nan=0.0)
    p_values = np.full(array.shape[1], np.nan)
    tested = (array != 0).sum(axis=0) >= min_units(alpha)
    if not tested.any():
        return p_values
    scaled = array[:, tested] / np.abs(array[:, tested]).max(axis=0)
    scaled /= np.sqrt((scaled**2).sum(axis=0))
    signs, num_more = _draw_signs(len(scaled), seed)
    rows = max(1, _CHUNK // scaled.shape[1])
    parts = (signs[start : start + rows] @ scaled for start in range(0, len(signs), rows))
    largest = np.concatenate([np.maximum(part.max(axis=1), -part.min(axis=1)) for part in parts])
    reached = len(largest) - np.searchsorted(np.sort(largest), np.abs(scaled.sum(axis=0)) - 10.0**-DIGITS)
    p_values[tested] = (reached + num_more) / (len(largest) + num_more)
    return p_values


def _draw_signs(num_units: int, seed: int) -> tuple[Array, int]:
    """Return patterns × units of ±1, and 1 if they are random so that the observed one counts as one more, else 0."""
    if 2**num_units > MAX_ENUMERATED:
        generator = np.random.default_rng(seed)
        return generator.choice(np.array([-1.0, 1.0]), size=(NUM_PERMUTATIONS, num_units)), 1
    # A pattern and its negative give the same |t|: those with + in the first place are enough.
    patterns = np.arange(2 ** (num_units - 1))[:, None] >> np.arange(num_units - 1) & 1
    return np.column_stack([np.ones(len(patterns)), 1.0 - 2.0 * patterns]), 0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values of one family corrected for their number; None values stay None and do not count.

    Source: Holm 1979, step-down.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


def holm_nested(p_values: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the p-values of one family in which every hypothesis has one or several tests, corrected for their number.

    The null hypotheses of one hypothesis exclude each other (the effect is 0, the effect is the claimed size), so that
    its tests share its part of α. It passes that on once all of them are rejected. With one test each this is
    ``holm``.

    Args:
        p_values: p-values of the tests of each hypothesis, one or more.

    Source: Holm 1979, step-down over hypotheses; Shaffer 1986 for nulls of which at most one is true.
    """
    order = sorted(range(len(p_values)), key=lambda number: max(p_values[number]))
    adjusted: list[list[float]] = [[] for _ in p_values]
    #: Adjusted p-value at which all hypotheses before a step are rejected.
    before = [0.0]
    for step, number in enumerate(order):
        adjusted[number] = [
            min(1.0, *(max(reached, (len(order) - early) * p) for early, reached in enumerate(before)))
            for p in p_values[number]
        ]
        before.append(max(before[-1], (len(order) - step) * max(p_values[number])))
    return adjusted


def _other_than_zero(array: Array, alternative: Alternative, alpha: float) -> Array | None:
    """Return the defined values other than 0, None if they are too few for a p-value of at most ``alpha``."""
    if alternative not in ALTERNATIVES:
        raise ValueError(f"got the alternative {alternative!r}; expected one of {', '.join(ALTERNATIVES)}")
    array = array[~np.isnan(array) & (array != 0)]
    return array if smallest_p(len(array), alternative) <= alpha else None


def _p_value(at_least: float, at_most: float, alternative: Alternative) -> float:
    one_sided = {"greater": at_least, "less": at_most}
    return one_sided.get(alternative, min(1.0, 2 * min(at_least, at_most)))


def tail_p(possible: Array, observed: float, alternative: Alternative, *, num_more: int) -> float:
    """Return the share of ``possible`` statistics as extreme as ``observed``, which counts too if ``num_more`` is 1."""
    distance: dict[Alternative, Callable[[Array], Array]] = {
        "two-sided": np.abs,
        "greater": np.asarray,
        "less": np.negative,
    }
    far = distance[alternative]
    # Equal up to rounding is equal.
    reached = int((far(possible) >= far(np.array([observed])) - 10.0**-DIGITS).sum())
    return (reached + num_more) / (len(possible) + num_more)


def outer_sums(choices: Sequence[Array]) -> Array:
    """Return all sums that add one value from each array in ``choices``."""
    sums = np.zeros(1)
    for choice in choices:
        sums = np.add.outer(sums, choice).ravel()
    return sums
