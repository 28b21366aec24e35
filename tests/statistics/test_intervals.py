import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.intervals import (
    MIN_REPLICATES,
    Interval,
    ratio_interval,
    summarise,
    t_interval,
)


def test_summary_uses_the_sample_deviation_and_leaves_undefined_values_out() -> None:
    summary = summarise([0.8, 0.9, float("nan"), 1.0])
    assert summary.n == 3
    assert summary.mean == pytest.approx(0.9)
    assert summary.sd == pytest.approx(0.1)


def test_one_value_has_no_deviation_and_none_has_no_mean() -> None:
    assert (summarise([0.7]).mean, summarise([0.7]).sd, summarise([0.7]).n) == (0.7, None, 1)
    assert (summarise([float("nan")]).mean, summarise([]).n) == (None, 0)


def test_t_interval_is_scipys() -> None:
    values = [0.02, -0.01, 0.05, 0.03, 0.04, float("nan")]
    low, high = stats.ttest_1samp(values[:5], 0).confidence_interval(0.9)
    interval = t_interval(values, 0.9)
    assert interval == Interval(pytest.approx(low), pytest.approx(high), 5, 0.9)


def test_t_interval_takes_five_units_and_has_no_width_if_they_are_equal_but_for_rounding() -> None:
    assert MIN_REPLICATES == 5
    assert t_interval([0.1, 0.2, 0.3, 0.4, float("nan")]) is None
    interval = t_interval([0.85 - 0.80, 0.90 - 0.85, 0.05, 0.05, 0.05])
    assert interval is not None
    assert interval.low == interval.high == pytest.approx(0.05)


def test_t_interval_covers_what_it_says_from_five_units_on() -> None:
    values = np.random.default_rng(0).normal(size=(4000, 5))
    intervals = [t_interval(row) for row in values]
    covered = np.mean([each is not None and each.low <= 0 <= each.high for each in intervals])
    assert 0.94 <= covered <= 0.96  # three standard errors


def test_ratio_interval_of_constants_is_the_t_interval_of_the_ratios() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.1, size=(6, 3))
    found, by_hand = ratio_interval(values, [0.5, 1.0, 2.0]), t_interval((values / [0.5, 1.0, 2.0]).mean(axis=1))
    assert found is not None
    assert by_hand is not None
    assert (found.low, found.high) == pytest.approx((by_hand.low, by_hand.high))
    assert ratio_interval(values[:4], [0.5, 1.0, 2.0]) is None
    assert ratio_interval(np.zeros((6, 0)), np.zeros((6, 0))) is None


@pytest.mark.parametrize("num_units", [5, 8, 12])
def test_ratio_interval_covers_the_ratio_of_noisy_means(num_units: int) -> None:
    random = np.random.default_rng(num_units)
    covered = 0
    for _ in range(2000):
        shared = random.normal(size=(num_units, 4))  # a replicate's split or seed moves both sides
        below = 0.10 + 0.02 * shared + 0.01 * random.normal(size=(num_units, 4))
        above = 0.05 + 0.01 * shared + 0.01 * random.normal(size=(num_units, 4))
        interval = ratio_interval(above, below)
        assert interval is not None
        covered += interval.low <= 0.5 <= interval.high
    assert 0.93 <= covered / 2000 <= 0.97
