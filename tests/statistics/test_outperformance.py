import math

import numpy as np
import pytest
from scipy import integrate, stats

from orchestrator.statistics.outperformance import (
    bound_both_right,
    bound_correlation,
    false_claim_of_means,
    false_claim_of_shares,
    find_both_right,
)


@pytest.mark.parametrize(
    ("claimed", "other", "num_cases", "both_right"),
    [(0.8, 0.7, 20, 0.6), (0.9, 0.88, 100, 0.82), (0.6, 0.65, 40, 0.5), (0.913, 0.905, 60, 0.88), (0.5, 0.5, 10, 0.25)],
)
def test_closed_form_for_shares_is_the_integral_over_the_dirichlet(
    claimed: float, other: float, num_cases: int, both_right: float
) -> None:
    # The integral of the source: the density of (only A right, only B right) where the first is the smaller.
    x, y = num_cases * (claimed - both_right), num_cases * (other - both_right)
    alphas = np.array([x + 1, y + 1, num_cases - x - y + 2])
    log_constant = math.lgamma(alphas.sum()) - sum(map(math.lgamma, alphas))

    def density(a: float, b: float) -> float:
        rest = 1 - a - b
        return math.exp(log_constant + np.dot(alphas - 1, np.log([a, b, rest]))) if min(a, b, rest) > 0 else 0.0

    expected, _ = integrate.dblquad(density, 0, 1, 0, lambda b: min(b, 1 - b), epsabs=1e-6)
    found = false_claim_of_shares(claimed, other, num_cases, both_right=both_right)
    assert found == pytest.approx(expected, abs=1e-5)


def test_uniform_prior_over_the_four_outcomes_gives_the_dirichlet_of_the_source() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet([30 + 1, 12 + 1, 8 + 1, 10 + 1], size=200_000)  # both, only A, only B, neither
    found = false_claim_of_shares(42 / 60, 38 / 60, 60, both_right=0.5)
    assert found == pytest.approx((shares[:, 1] <= shares[:, 2]).mean(), abs=0.004)


@pytest.mark.parametrize(
    ("difference", "sds", "num_cases", "correlation"),
    [
        (0.01, (0.1, 0.12), 40, 0.7),
        (0.02, (0.1, 0.1), 10, 0.9),
        (-0.01, (0.2, 0.1), 100, 0.0),
        (0.005, (0.05, 0.07), 4, -0.5),
    ],
)
def test_closed_form_for_means_is_the_integral_over_mean_and_variance(
    difference: float, sds: tuple[float, float], num_cases: int, correlation: float
) -> None:
    variance = sds[0] ** 2 + sds[1] ** 2 - 2 * correlation * sds[0] * sds[1]
    # Prior 1/σ²: σ² is (n − 1) s² over a χ² of n − 1, and the mean given σ² is normal.
    posterior = stats.invgamma((num_cases - 1) / 2, scale=(num_cases - 1) * variance / 2)

    def integrand(share: float) -> float:
        return float(stats.norm.cdf(-difference, scale=math.sqrt(posterior.ppf(share) / num_cases)))

    expected, _ = integrate.quad(integrand, 0, 1, epsabs=1e-6, limit=200)
    found = false_claim_of_means(difference, *sds, num_cases, correlation=correlation)
    assert found == pytest.approx(expected, abs=1e-5)


def test_known_answers() -> None:
    assert false_claim_of_shares(0.8, 0.8, 50, both_right=0.7) == pytest.approx(0.5)
    # Both right wherever the worse one is: 5 cases of 100 speak for the claim, none against it: 2⁻⁶.
    assert false_claim_of_shares(0.9, 0.85, 100, both_right=0.85) == pytest.approx(2**-6)
    assert false_claim_of_means(0.0, 0.1, 0.1, 30, correlation=0.5) == pytest.approx(0.5)
    assert false_claim_of_means(0.01, 0.1, 0.1, 30, correlation=1.0) == 0
    assert false_claim_of_means(0.0, 0.1, 0.1, 30, correlation=1.0) == 1
    assert false_claim_of_means(0.1, 0.1, 0.1, 2, correlation=0.5) == pytest.approx(
        0.5 - math.atan(math.sqrt(2)) / math.pi
    )


def test_correlation_and_share_that_both_get_right_say_the_same() -> None:
    random = np.random.default_rng(1)
    first = random.random(1000) < 0.7
    second = np.where(random.random(1000) < 0.6, first, random.random(1000) < 0.5)
    correlation = np.corrcoef(first, second)[0, 1]
    assert find_both_right(first.mean(), second.mean(), correlation) == pytest.approx((first & second).mean())
    assert bound_both_right(0.9, 0.6) == (pytest.approx(0.5), 0.6)
    bounds = bound_correlation(0.9, 0.6)
    assert bounds is not None
    assert [find_both_right(0.9, 0.6, bound) for bound in bounds] == pytest.approx([0.5, 0.6])
    assert bound_correlation(1.0, 0.6) is None


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a share from 0.5 to 0.6"):
        false_claim_of_shares(0.9, 0.6, 10, both_right=0.7)
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        bound_correlation(90, 60)
    with pytest.raises(ValueError, match="two cases or more"):
        false_claim_of_means(0.1, 0.1, 0.1, 1, correlation=0.5)
    with pytest.raises(ValueError, match="correlation from"):
        false_claim_of_means(0.1, 0.1, 0.1, 10, correlation=1.5)
