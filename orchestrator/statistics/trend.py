"""Trend tests over ordered levels, within blocks, and the test of a correlation."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial, prod
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.statistics.intervals import Array
from orchestrator.statistics.paired_tests import (
    DIGITS,
    MAX_ENUMERATED,
    NUM_PERMUTATIONS,
    Alternative,
    outer_sums,
    tail_p,
)

#: Two pairs are always on a line.
MIN_PAIRS = 3


@dataclass(frozen=True)
class Trend:
    """Rank correlation of values with the levels of a numeric factor, and its p-value."""

    #: Mean over blocks of Spearman's rank correlation within the block, in [−1, 1]; None without a block.
    correlation: float | None
    #: None if there are too few blocks and levels for a p-value of at most alpha.
    p_value: float | None
    #: Number of blocks with at least two levels; the others hold no information about a trend.
    num_blocks: int
    num_levels: int


def trend_test(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    blocks: ArrayLike,
    seed: int,
    alternative: Alternative = "two-sided",
    alpha: float = 0.05,
) -> Trend:
    """Return the mean within-block rank correlation of ``values`` with ``groups``, and its permutation p-value.

    With every level in every block this is Page's test of ordered alternatives: his L is a linear function of the mean
    correlation. Blocks may also lack levels. The values of one block at one level are averaged first; a block whose
    values are all equal counts as correlation 0.

    Args:
        values: numbers that should rise or fall; NaN is left out.
        groups: level of the numeric factor per value; only the order of the levels counts.
        blocks: label of the block per value, e.g. the replicate.
        seed: seed of the random orders, which are drawn if more than 20,000 are possible; otherwise all are tried.
        alternative: ``greater``: values rise with the level, ``less``: they fall.
        alpha: level that the p-value must be able to reach.

    Raises:
        ValueError: if ``values``, ``groups`` and ``blocks`` have different lengths.

    Source: Page 1963; Hollander, Wolfe & Chicken 2014, section 7.2. Assumes that under the null hypothesis the values
    of a block are exchangeable.
    """
    pairs = _rank_blocks(values, groups, blocks)
    num_levels = len(np.unique(np.asarray(groups, dtype=np.float64)[~np.isnan(np.asarray(values, dtype=np.float64))]))
    if not pairs:
        return Trend(None, None, 0, num_levels)
    observed = float(sum(x @ y for x, y in pairs))
    correlation = observed / len(pairs)
    if prod(factorial(len(x)) for x, _ in pairs) <= MAX_ENUMERATED:
        possible = outer_sums([_orders(len(x), y) @ x for x, y in pairs])
        num_more = 0
    else:
        generator = np.random.default_rng(seed)
        possible = np.zeros(NUM_PERMUTATIONS)
        for x, y in pairs:
            possible += generator.permuted(np.tile(y, (NUM_PERMUTATIONS, 1)), axis=1) @ x
        num_more = 1
    strongest = float(np.abs(possible).max() if alternative == "two-sided" else possible.max())
    best = tail_p(possible, strongest, "two-sided" if alternative == "two-sided" else "greater", num_more=num_more)
    p_value = tail_p(possible, observed, alternative, num_more=num_more) if best <= alpha else None
    return Trend(correlation, p_value, len(pairs), num_levels)


#: Most pairs of which all orders are tried: 8! is 40,320.
_MAX_ORDERED = 8


@dataclass(frozen=True)
class Correlation:
    """A coefficient of correlation in [−1, 1], and its p-value."""

    coefficient: float
    #: Two-sided permutation p-value.
    p_value: float


def correlation_test(
    x: ArrayLike, y: ArrayLike, *, coefficient: Literal["spearman", "pearson"], seed: int
) -> Correlation | None:
    """Return the correlation of pairs, None if fewer than three are given or one side is all equal.

    Args:
        x: one number per pair.
        y: as many, in the same order.
        coefficient: of ranks (spearman; ties share their mean rank) or of the numbers themselves (pearson).
        seed: seed of the random orders, which are drawn for more than 8 pairs; for fewer, all are tried.

    Source: Hollander, Wolfe & Chicken 2014, section 8.5; Phipson & Smyth 2010 for (b + 1) / (m + 1) of m random orders.
    Assumes that without a correlation every order of ``y`` is as likely; intervals of Fisher's z are not given, because
    gains are not normal.
    """
    first, second = (np.asarray(each, dtype=np.float64) for each in (x, y))
    if len(first) < MIN_PAIRS:
        return None
    one, other = (_standardise(each, ranked=coefficient == "spearman") for each in (first, second))
    if not one.any() or not other.any():
        return None
    if len(first) <= _MAX_ORDERED:
        possible, num_more = _orders(len(first), other) @ one, 0
    else:
        generator = np.random.default_rng(seed)
        possible, num_more = generator.permuted(np.tile(other, (NUM_PERMUTATIONS, 1)), axis=1) @ one, 1
    observed = float(one @ other)
    return Correlation(observed, tail_p(possible, observed, "two-sided", num_more=num_more))


def _rank_blocks(values: ArrayLike, groups: ArrayLike, blocks: ArrayLike) -> list[tuple[Array, Array]]:
    """Return, for each block of at least two levels, standardised ranks of levels and values: x·y is Spearman's ρ."""
    import pandas as pd

    y, x, block = (np.asarray(each).ravel() for each in (values, groups, blocks))
    if not len(y) == len(x) == len(block):
        raise ValueError(f"got {len(y)} values, {len(x)} groups and {len(block)} blocks; give one of each per value")
    frame = pd.DataFrame({"value": y.astype(float), "level": x.astype(float), "block": block}).dropna(subset=["value"])
    cells = frame.groupby(["block", "level"])["value"].mean().unstack()
    rows = [row.dropna() for _, row in cells.iterrows()]
    return [(_standardise(row.index.to_numpy()), _standardise(row.to_numpy())) for row in rows if len(row) > 1]


def _standardise(values: Array, *, ranked: bool = True) -> Array:
    """Return the values, or their ranks, with mean 0 and length 1; zeros if all are equal but for rounding."""
    from scipy.stats import rankdata

    largest = np.abs(values).max()
    rounded = np.round(values / largest, DIGITS) if largest else values
    ranks: Array = rankdata(rounded) if ranked else rounded
    centred = ranks - ranks.mean()
    if np.ptp(rounded) == 0:
        return np.zeros_like(centred)
    norm = float(np.sqrt(centred @ centred))
    return centred / norm if norm else centred


def _orders(number: int, values: Array) -> Array:
    """Return every order of ``values``, one per row."""
    from itertools import permutations

    return values[np.array(list(permutations(range(number))))]
