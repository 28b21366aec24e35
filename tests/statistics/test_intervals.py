import itertools

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.intervals import (
    METHODS,
    MIN_REPLICATES,
    Interval,
    Method,
    bootstrap_interval,
    paired_bootstrap,
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
    assert interval == Interval(pytest.approx(low), pytest.approx(high), 5, 0.9, "t")


def test_t_interval_of_clusters_is_that_of_their_means() -> None:
    clusters, values = [0, 0, 0, 1, 2, 2, 3, 4], [1.0, 2.0, 6.0, 5.0, 1.0, 0.0, 2.0, 4.0]
    assert t_interval(values, clusters=clusters) == t_interval([3.0, 5.0, 0.5, 2.0, 4.0])
    assert t_interval(values, clusters=[0, 0, 0, 1, 2, 2, 3, 3]) is None


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


def test_interval_is_seeded_and_agrees_with_scipy() -> None:
    values = np.random.default_rng(1).normal(0.3, 0.1, size=40)
    interval = bootstrap_interval(values, seed=3)
    assert interval == bootstrap_interval(values, seed=3)
    assert interval != bootstrap_interval(values, seed=4)
    assert interval is not None
    assert interval.num_units == 40
    peer = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert interval.low == pytest.approx(peer.low, abs=0.003)
    assert interval.high == pytest.approx(peer.high, abs=0.003)


def test_bootstrap_of_four_values_is_the_exhaustive_one() -> None:
    values = np.array([0.0, 1.0, 3.0, 10.0])
    exhaustive = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
    interval = bootstrap_interval(values, seed=0)
    assert interval is not None
    # The means are discrete: both ends must be within one step of the exact quantiles.
    assert interval.low == pytest.approx(np.quantile(exhaustive, 0.025), abs=0.25)
    assert interval.high == pytest.approx(np.quantile(exhaustive, 0.975), abs=0.8)


def test_too_few_units_give_no_interval() -> None:
    assert bootstrap_interval([0.1, 0.2, 0.3], seed=0) is None
    assert bootstrap_interval([0.1, 0.2, 0.3, float("nan")], seed=0) is None
    assert bootstrap_interval(np.arange(30), clusters=np.arange(30) % 3, seed=0) is None


def test_clusters_are_resampled_whole() -> None:
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(8), 25)
    values = random.normal(size=8)[clusters] + random.normal(scale=0.01, size=200)
    alone = bootstrap_interval(values, seed=0)
    together = bootstrap_interval(values, clusters=clusters, seed=0)
    assert alone is not None
    assert together is not None
    assert together.num_units == 8
    # 25 copies of 8 independent values: pretending they are 200 shrinks the interval about √25-fold.
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_cluster_labels_must_match() -> None:
    with pytest.raises(ValueError, match="2 cluster labels for 4 values"):
        bootstrap_interval([1.0, 2.0, 3.0, 4.0], clusters=[0, 1], seed=0)


def test_pairing_removes_what_both_sides_share() -> None:
    random = np.random.default_rng(0)
    shared = random.normal(size=50)
    interval = paired_bootstrap(shared + 0.1 + random.normal(scale=0.01, size=50), shared, seed=0)
    assert interval is not None
    assert 0.09 < interval.low < 0.1 < interval.high < 0.11
    with pytest.raises(ValueError, match="match one to one"):
        paired_bootstrap([1.0, 2.0], [1.0], seed=0)


def test_pair_with_an_undefined_side_is_left_out() -> None:
    interval = paired_bootstrap([1.0, 2.0, 3.0, 4.0, float("nan")], [0.0, 1.0, 2.0, 3.0, 0.0], seed=0)
    assert interval is not None
    assert (interval.low, interval.high, interval.num_units) == (1.0, 1.0, 4)


def test_large_input_is_drawn_in_chunks() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    interval = bootstrap_interval(values, seed=0, num_resamples=500)
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / np.sqrt(20_000), rel=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_equal_values_give_an_interval_of_no_width(method: Method) -> None:
    interval = bootstrap_interval([0.1] * 7, seed=0, method=method)
    assert interval is not None
    assert interval.low == interval.high == pytest.approx(0.1)


@pytest.mark.parametrize("method", METHODS)
def test_nearly_equal_values_give_a_finite_interval(method: Method) -> None:
    interval = bootstrap_interval([0.3, 0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2, 0.3], seed=0, method=method)
    assert interval is not None
    assert 0.299 < interval.low <= interval.high < 0.301


def test_bca_agrees_with_scipy_on_skewed_values() -> None:
    values = np.random.default_rng(5).exponential(size=30)
    interval = bootstrap_interval(values, seed=3, method="bca", num_resamples=50_000)
    assert interval is not None
    found = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=50_000, rng=np.random.default_rng(0))
    assert interval.low == pytest.approx(found.confidence_interval.low, abs=0.006)
    assert interval.high == pytest.approx(found.confidence_interval.high, abs=0.012)
    percentile = bootstrap_interval(values, seed=3, num_resamples=50_000)
    assert percentile is not None
    assert interval.high > percentile.high + 0.014  # the correction is larger than what the comparison allows


def test_bca_of_clusters_is_bca_of_their_means_where_they_are_equally_large() -> None:
    means = np.random.default_rng(5).exponential(size=12)
    values, clusters = np.repeat(means, 3), np.repeat(np.arange(12), 3)
    alone = bootstrap_interval(means, seed=0, method="bca")
    together = bootstrap_interval(values, clusters=clusters, seed=0, method="bca")
    assert alone is not None
    assert together is not None
    assert (together.low, together.high) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert together.num_units == 12


def test_expanded_interval_of_normal_values_is_students() -> None:
    values = np.random.default_rng(2).normal(size=12)
    interval = bootstrap_interval(values, seed=0, method="expanded", num_resamples=50_000)
    low, high = stats.t.interval(0.95, 11, values.mean(), values.std(ddof=1) / np.sqrt(12))
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.06)


def test_level_decides_the_width() -> None:
    values = np.random.default_rng(2).normal(size=200)
    wide, narrow = (paired_bootstrap(values, np.zeros(200), seed=0, level=level) for level in (0.95, 0.68))
    assert wide is not None
    assert narrow is not None
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(1.96 / 0.994, rel=0.05)
    assert narrow.level == 0.68


def test_unknown_method_names_the_known() -> None:
    with pytest.raises(ValueError, match="percentile, bca"):
        bootstrap_interval([1.0] * 5, seed=0, method="BCa")  # type: ignore[arg-type]


def test_studentized_interval_of_clusters_is_that_of_their_means_where_they_are_equally_large() -> None:
    means = np.random.default_rng(5).exponential(size=12)
    values, clusters = np.repeat(means, 3), np.repeat(np.arange(12), 3)
    alone = bootstrap_interval(means, seed=0, method="studentized")
    together = bootstrap_interval(values, clusters=clusters, seed=0, method="studentized")
    assert alone is not None
    assert together is not None
    assert (together.low, together.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


def test_studentized_interval_inverts_the_resampled_t_statistics() -> None:
    values = np.array([0.0, 1.0, 3.0, 10.0, 4.0])
    draws = np.array(list(itertools.product(values, repeat=5)))
    errors = draws.std(axis=1, ddof=1) / np.sqrt(5)
    with np.errstate(divide="ignore"):
        t = np.sort((draws.mean(axis=1) - values.mean()) / errors)
    low, high = values.mean() - values.std(ddof=1) / np.sqrt(5) * t[[int(0.975 * 3124), int(0.025 * 3124)]]
    interval = bootstrap_interval(values, seed=0, method="studentized", num_resamples=200_000)
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(low, rel=0.02), pytest.approx(high, rel=0.02))


def test_studentized_interval_is_refused_where_too_many_resamples_hold_equal_units() -> None:
    mostly_zero = [0.0, 0.0, 0.0, 0.01, 0.02]  # (3/5)⁵ = 7.8 % of the resamples are all zero
    assert bootstrap_interval(mostly_zero, seed=0, method="studentized") is None
    assert bootstrap_interval(mostly_zero, seed=0, method="expanded") is not None


def test_expanded_and_studentized_intervals_of_few_units_cover_what_they_promise() -> None:
    """A small copy of ``benchmarks/significance.py``: 600 draws, standard error .01."""
    draws = np.random.default_rng(0).normal(size=(600, 8))
    covered = dict.fromkeys(METHODS, 0)
    for seed, values in enumerate(draws):
        for method in METHODS:
            interval = bootstrap_interval(values, seed=seed, method=method, num_resamples=1000)
            covered[method] += interval is not None and interval.low <= 0 <= interval.high
    shares = {method: count / len(draws) for method, count in covered.items()}
    assert 0.92 <= shares["expanded"] <= 0.98
    assert 0.92 <= shares["studentized"] <= 0.98
    assert shares["percentile"] < shares["expanded"] - 0.02
    assert shares["bca"] < shares["expanded"] - 0.02
