import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.paired_tests import Alternative, permutation_test, wilcoxon
from orchestrator.statistics.power import TESTS, Test, compute_power, minimum_replicates, upper_sd


# statsmodels 0.15.0: TTestPower().power(shift, number, alpha, alternative="two-sided" or "larger")
@pytest.mark.parametrize(
    ("shift", "number", "alpha", "alternative", "expected"),
    [
        (0.5, 34, 0.05, "two-sided", 0.8077775012792737),
        (1.0, 6, 0.05, "two-sided", 0.5068419799585816),
        (1.5, 5, 0.05, "greater", 0.8619466212922704),
        (0.8, 12, 0.01, "two-sided", 0.41461991497948236),
        (0.2, 150, 0.05, "greater", 0.7862538814962274),
    ],
)
def test_power_of_the_t_test_is_that_of_statsmodels(
    shift: float, number: int, alpha: float, alternative: Alternative, expected: float
) -> None:
    found = compute_power(0.03 * shift, 0.03, number, alpha=alpha, alternative=alternative)
    assert found == pytest.approx(expected, abs=1e-7)
    if alternative == "greater":
        assert compute_power(-0.03 * shift, 0.03, number, alpha=alpha, alternative="less") == pytest.approx(found)


# statsmodels 0.15.0: TTestPower().solve_power(shift, None, alpha, power, alternative=…) gives 33.4, 12.6, 4.4, 155.9.
@pytest.mark.parametrize(
    ("shift", "power", "alternative", "expected"),
    [(0.5, 0.8, "two-sided", 34), (1.0, 0.9, "two-sided", 13), (1.5, 0.8, "greater", 5), (0.2, 0.8, "greater", 156)],
)
def test_minimum_replicates_of_the_t_test_are_those_of_statsmodels(
    shift: float, power: float, alternative: Alternative, expected: int
) -> None:
    assert minimum_replicates(shift, 1.0, power=power, alternative=alternative) == expected


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
@pytest.mark.parametrize("number", [6, 9])
@pytest.mark.parametrize("name", ["wilcoxon", "permutation"])
def test_simulated_power_is_how_often_the_test_rejects(name: Test, number: int, alternative: Alternative) -> None:
    drawn = np.random.default_rng(99).normal(1.0, size=(1500, number))
    test = {"wilcoxon": wilcoxon, "permutation": partial(permutation_test, seed=0)}[name]
    p_values = np.array([test(row, alternative=alternative) for row in drawn])
    found = compute_power(1.0, 1.0, number, test=name, alternative=alternative)
    assert found == pytest.approx((p_values <= 0.05).mean(), abs=0.035)


def test_power_under_the_null_is_the_level_that_the_test_has() -> None:
    # Two-sided at n = 6 only the two extreme rank sums are rejected: 2/64.
    assert compute_power(0.0, 1.0, 6, test="wilcoxon") == pytest.approx(2 / 64, abs=0.002)
    assert compute_power(0.0, 1.0, 6, test="permutation") == pytest.approx(2 / 64, abs=0.004)
    assert compute_power(0.0, 1.0, 6, test="sign") == pytest.approx(2 / 64)
    assert compute_power(0.0, 1.0, 6) == pytest.approx(0.05)


def test_power_of_the_sign_test_is_binomial() -> None:
    # n = 10 two-sided: 0, 1, 9 or 10 positive signs (22/1024 = .021); with 8 it would be .109.
    positive = stats.norm.cdf(0.8)
    expected = stats.binom.sf(8, 10, positive) + stats.binom.cdf(1, 10, positive)
    assert compute_power(0.8, 1.0, 10, test="sign") == pytest.approx(expected)


def test_too_few_replicates_have_no_power() -> None:
    assert compute_power(10.0, 1.0, 5, test="wilcoxon") == 0
    assert compute_power(10.0, 1.0, 5, test="sign") == 0
    assert compute_power(10.0, 1.0, 5, test="wilcoxon", alternative="greater") == pytest.approx(1)
    assert compute_power(100.0, 1.0, 20) == 1
    with pytest.raises(ValueError, match="sd above 0"):
        compute_power(0.1, 0.0, 5)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_minimum_is_the_first_number_that_reaches_the_power(test: Test, alternative: Alternative) -> None:
    number = minimum_replicates(0.02, 0.02, power=0.8, alternative=alternative, test=test)
    assert number is not None
    assert compute_power(0.02, 0.02, number, alternative=alternative, test=test) >= 0.8
    assert compute_power(0.02, 0.02, number - 1, alternative=alternative, test=test) < 0.81


def test_tests_that_use_less_of_the_values_need_more_of_them() -> None:
    numbers = [minimum_replicates(0.2, 1.0, test=test) for test in TESTS]
    assert numbers[0] == 199
    assert numbers[1] == 199
    assert numbers[2] == pytest.approx(199 * math.pi / 3, abs=2)
    assert numbers[3] == pytest.approx(199 * math.pi / 2, rel=0.05)


def test_effect_that_no_number_shows_is_none() -> None:
    assert minimum_replicates(0.0, 1.0) is None
    assert minimum_replicates(1e-4, 1.0, test="wilcoxon") is None
    assert minimum_replicates(-0.5, 1.0, alternative="greater") is None


def test_upper_bound_holds_as_often_as_it_says() -> None:
    pilots = np.random.default_rng(0).normal(size=(4000, 5)).std(axis=1, ddof=1)
    factor = upper_sd(1.0, 5)
    assert (pilots * factor >= 1).mean() == pytest.approx(0.8, abs=0.02)
    assert upper_sd(0.3, 1000) == pytest.approx(0.3, rel=0.03)
