import itertools

import numpy as np
import pytest
from scipy import stats

from orchestrator.report.statistics import bootstrap_interval, holm, paired_bootstrap, summarise, wilcoxon


def test_summary_uses_the_sample_deviation_and_leaves_undefined_values_out() -> None:
    summary = summarise([0.8, 0.9, float("nan"), 1.0])
    assert summary.n == 3
    assert summary.mean == pytest.approx(0.9)
    assert summary.sd == pytest.approx(0.1)


def test_one_value_has_no_deviation_and_none_has_no_mean() -> None:
    assert (summarise([0.7]).mean, summarise([0.7]).sd, summarise([0.7]).n) == (0.7, None, 1)
    assert (summarise([float("nan")]).mean, summarise([]).n) == (None, 0)


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


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([1, 2, 3, 4, 5, 6], 2 / 2**6), ([-1, 2, 3, 4, 5, 6], 4 / 2**6), ([1, 2, 3, 4, 5], None), ([0, 0, 1, 2, 3], None)],
)
def test_signed_rank_test_is_exact_and_refuses_too_few(differences: list[float], expected: float | None) -> None:
    assert wilcoxon(differences) == (None if expected is None else pytest.approx(expected))


def test_holm_is_step_down_monotone_and_ignores_what_was_not_tested() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06), None]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
