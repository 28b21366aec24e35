"""Power of the paired tests, and the number of replicates needed to detect an effect.

Assumptions throughout: the differences between two arms, one per replicate, are independent and normal with mean
``effect`` and standard deviation ``sd``. For the expanded bootstrap interval, use the power of the t test.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from orchestrator.statistics.paired_tests import Alternative, smallest_p

Test = Literal["t", "permutation", "wilcoxon", "sign"]
TESTS: tuple[Test, ...] = ("t", "permutation", "wilcoxon", "sign")

#: Assumption: nobody trains more replicates of an arm. If more are needed, the result is None.
MAX_REPLICATES = 10_000

#: Draws per simulated power: standard errors of at most .0016 and .005.
_NUM_DRAWS: dict[Test, int] = {"wilcoxon": 100_000, "permutation": 10_000}

#: Number of replicates up to which the test is exact and its power simulated.
_MAX_SIMULATED: dict[Test, int] = {"wilcoxon": 50, "permutation": 12}
#: Above that number, the power is that of the t test with the number of pairs times this factor.
_EFFICIENCY: dict[Test, float] = {"wilcoxon": 3 / math.pi, "permutation": 1.0}


def compute_power(
    effect: float,
    sd: float,
    num_replicates: int,
    *,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
    test: Test = "t",
) -> float:
    """Return the probability in [0, 1] that a paired test with ``num_replicates`` differences gives p ≤ ``alpha``.

    Args:
        effect: true mean difference, in the units of ``sd``; above 0 with ``greater``, below with ``less``.
        sd: standard deviation of the differences (ddof 1 where it is estimated).
        num_replicates: number of differences.
        alpha: level of the test. After Holm over m tests, ``alpha / m`` is the worst case.
        alternative: alternative hypothesis of the test.
        test: ``t`` by the noncentral t distribution, ``sign`` by the binomial one; ``wilcoxon`` and ``permutation``
            (sign flips) by simulation with a fixed seed up to 50 and 12 replicates, and by their asymptotic relative
            efficiency of 3/π and 1 above.

    Raises:
        ValueError: if the standard deviation is not above 0, or there are fewer than two replicates.

    Source: Lehmann & Romano 2005, sections 5.2 (t) and 4.9 (sign); Hollander, Wolfe & Chicken 2014, section 3.11 (3/π).
    """
    if not sd > 0 or num_replicates < 2:
        raise ValueError(f"got sd {sd} and {num_replicates} replicates; expected an sd above 0 and two or more")
    shift = -effect / sd if alternative == "less" else effect / sd
    tails: Literal[1, 2] = 2 if alternative == "two-sided" else 1
    if test == "t":
        return _t_power(shift, num_replicates, alpha / tails, tails)
    if smallest_p(num_replicates, alternative) > alpha:
        return 0.0
    if test == "sign":
        return _sign_power(shift, num_replicates, alpha / tails, tails)
    if not _is_simulated(test, num_replicates):
        return _t_power(shift, num_replicates * _EFFICIENCY[test], alpha / tails, tails)
    if test == "wilcoxon":
        return _signed_rank_power(shift, num_replicates, alpha / tails, tails)
    return _sign_flip_power(shift, num_replicates, alpha, tails)


def minimum_replicates(
    effect: float,
    sd: float,
    *,
    power: float = 0.8,
    alpha: float = 0.05,
    alternative: Alternative = "two-sided",
    test: Test = "t",
) -> int | None:
    """Return the smallest number of replicates whose power reaches ``power``, None if 10,000 do not reach it.

    A simulated power must exceed ``power`` by two standard errors. See ``compute_power``.

    Raises:
        ValueError: if the standard deviation is not above 0.
    """

    def reaches(number: int, which: Test) -> bool:
        found = compute_power(effect, sd, number, alpha=alpha, alternative=alternative, test=which)
        leeway = 2 * math.sqrt(power * (1 - power) / _NUM_DRAWS[which]) if _is_simulated(which, number) else 0.0
        return found - leeway >= power

    if not reaches(MAX_REPLICATES, "t"):
        return None
    low, high = 1, MAX_REPLICATES  # the t test's power rises with every replicate
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle, "t") else (middle, high)
    # The other tests need as many replicates or more.
    return next((number for number in range(high, MAX_REPLICATES + 1) if test == "t" or reaches(number, test)), None)


def upper_sd(sd: float, num_values: int, *, confidence: float = 0.8) -> float:
    """Return the one-sided upper confidence bound of a standard deviation estimated from ``num_values`` normal values.

    Planned with a pilot's own estimate, half of all studies end up with too little power; planned with its upper 80 %
    bound, a fifth do.

    Source: Browne 1995, "On the use of a pilot sample for sample size determination".
    """
    from scipy.stats import chi2

    return float(sd * math.sqrt((num_values - 1) / chi2.ppf(1 - confidence, num_values - 1)))


def _is_simulated(test: Test, num_replicates: int) -> bool:
    return num_replicates <= _MAX_SIMULATED.get(test, 0)


def _t_power(shift: float, n: float, tail: float, tails: Literal[1, 2]) -> float:
    from scipy.stats import t

    critical, centre = t.isf(tail, n - 1), shift * math.sqrt(n)
    return _beyond(critical, n - 1, centre) + (_beyond(critical, n - 1, -centre) if tails == 2 else 0.0)


def _beyond(critical: float, df: float, centre: float) -> float:
    """Return the probability that a noncentral t statistic exceeds ``critical``."""
    from scipy.stats import chi2, nct

    if abs(centre) < 37:  # beyond, scipy's underflows, and the statistic is its centre over √(χ²/df)
        return float(nct.sf(critical, df, centre))
    return float(chi2.cdf(df * (centre / critical) ** 2, df)) if centre > 0 else 0.0


def _sign_power(shift: float, n: int, tail: float, tails: Literal[1, 2]) -> float:
    from scipy.stats import binom, norm

    # The smallest number of positive signs whose tail is at most ``tail``.
    critical = next(k for k in range(n // 2, n + 1) if binom.sf(k - 1, n, 0.5) <= tail)
    positive = norm.cdf(shift)
    other = binom.cdf(n - critical, n, positive) if tails == 2 else 0.0
    return float(binom.sf(critical - 1, n, positive) + other)


def _signed_rank_power(shift: float, n: int, tail: float, tails: Literal[1, 2]) -> float:
    ways = np.ones(1)
    for rank in range(1, n + 1):  # the share of sign patterns with each sum of positive ranks
        ways = (np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))) / 2
    at_least = ways[::-1].cumsum()[::-1]
    critical = int(np.argmax(at_least <= tail))
    drawn = np.random.default_rng(n).normal(shift, size=(_NUM_DRAWS["wilcoxon"], n))
    order = np.argsort(np.abs(drawn), axis=1)
    sums = (np.take_along_axis(drawn, order, axis=1) > 0) @ np.arange(1, n + 1)
    reached = sums >= critical
    if tails == 2:
        reached |= n * (n + 1) // 2 - sums >= critical
    return float(reached.mean())


def _sign_flip_power(shift: float, n: int, alpha: float, tails: Literal[1, 2]) -> float:
    signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)  # a row per pattern, all + first
    drawn = np.random.default_rng(n).normal(shift, size=(_NUM_DRAWS["permutation"], n))
    rejected = 0
    for rows in np.array_split(drawn, len(drawn) // 500):  # bounds the memory to 16 MB
        flipped = rows @ signs.T
        flipped = np.abs(flipped) if tails == 2 else flipped
        reached = (flipped >= flipped[:, :1] - 1e-10).mean(axis=1)
        rejected += int((reached <= alpha).sum())
    return rejected / len(drawn)
