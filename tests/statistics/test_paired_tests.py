import itertools
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.paired_tests import (
    ALTERNATIVES,
    MAX_COUNTED_UNITS,
    Alternative,
    holm,
    max_t_test,
    min_units,
    permutation_test,
    sign_test,
    smallest_p,
    wilcoxon,
)
from orchestrator.statistics.trend import correlation_test, trend_test

NAN = float("nan")


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


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("number", [6, 13, 50, 51, 80])
def test_signed_rank_test_agrees_with_scipy(number: int, alternative: Alternative) -> None:
    differences = np.random.default_rng(number).normal(0.2, size=number)
    method = "exact" if number <= 50 else "asymptotic"
    expected = stats.wilcoxon(differences, alternative=alternative, method=method).pvalue
    assert wilcoxon(differences, alternative=alternative) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_signed_rank_test_with_ties_is_that_of_all_sign_patterns(alternative: Alternative) -> None:
    differences = [1.0, 1.0, 2.0, -2.0, 3.0, 0.0, 3.0, 3.0, NAN]
    method = stats.PermutationMethod(n_resamples=2**9)  # more than there are: all are tried
    kept = [each for each in differences if np.isfinite(each) and each != 0]
    expected = stats.wilcoxon(kept, alternative=alternative, method=method).pvalue
    assert wilcoxon(differences, alternative=alternative) == pytest.approx(expected, rel=1e-12)


def test_differences_that_are_equal_but_for_rounding_are_ties() -> None:
    rounded = [0.85 - 0.80, 0.80 - 0.85, 0.90 - 0.85, 0.95 - 0.90, 0.5 - 0.45, 0.3 - 0.25]
    assert len({abs(each) for each in rounded}) > 1
    assert wilcoxon(rounded) == pytest.approx(wilcoxon(np.sign(rounded)), rel=1e-12)


def test_published_example_of_the_signed_rank_test() -> None:
    # Hollander, Wolfe & Chicken 2014, example 3.1 (Salsburg 1970, Hamilton scale factor): T+ = 5, P = .0195 one-sided.
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    assert wilcoxon(np.subtract(after, before), alternative="less") == pytest.approx(0.01953125)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_sign_test_is_binomial(alternative: Alternative) -> None:
    differences = [0.1, 0.2, -0.3, 0.0, 0.4, 0.5, 0.6, NAN, 0.7]
    tails = {"greater": 8 / 128, "less": 1 - 1 / 128, "two-sided": 16 / 128}
    assert sign_test(differences, alternative=alternative) == pytest.approx(tails[alternative])


def test_tests_refuse_what_could_not_be_significant() -> None:
    five, six = [0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    for test in (wilcoxon, sign_test, lambda values, **how: permutation_test(values, seed=0, **how)):
        assert test(five) is None
        assert test(five, alternative="greater") == pytest.approx(1 / 32)
        assert test(five, alpha=0.1) == pytest.approx(2 / 32)
        assert test(six) == pytest.approx(2 / 64) == smallest_p(6)
        assert test([*five, 0.0]) is None
        assert test([]) is None
        with pytest.raises(ValueError, match="two-sided, greater, less"):
            test(six, alternative="bigger")


@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_permutation_test_tries_every_sign_pattern_of_few_units(alternative: Alternative) -> None:
    differences = np.random.default_rng(4).normal(0.5, size=9)
    expected = stats.permutation_test(
        (differences, np.zeros(9)),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        alternative=alternative,
        n_resamples=2**9,
    ).pvalue
    found = permutation_test(differences, seed=0, alternative=alternative)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found == permutation_test(differences, seed=1, alternative=alternative)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("num_units", [6, 15, 17])
def test_permutation_test_counts_all_flips(num_units: int, alternative: Alternative) -> None:
    """Also with ties: values of one digit."""
    differences = np.round(np.random.default_rng(num_units).normal(0.3, size=num_units), 1)
    units = differences[differences != 0]
    signs = 1.0 - 2.0 * (np.arange(2 ** len(units))[:, None] >> np.arange(len(units)) & 1)
    flipped, observed = signs @ units, units.sum()
    reached = {
        "two-sided": np.abs(flipped) >= abs(observed) - 1e-9,
        "greater": flipped >= observed - 1e-9,
        "less": flipped <= observed + 1e-9,
    }[alternative]
    assert permutation_test(differences, seed=0, alternative=alternative, alpha=0.5) == reached.mean()


def test_there_is_no_floor_to_the_p_of_units_that_are_all_counted() -> None:
    differences = np.random.default_rng(4).normal(0.4, size=MAX_COUNTED_UNITS)
    found = permutation_test(differences, seed=0)
    assert found == permutation_test(differences, seed=1)
    assert found == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    assert permutation_test(np.ones(MAX_COUNTED_UNITS), seed=0) == 2 / 2**MAX_COUNTED_UNITS


def test_more_units_are_flipped_at_random_and_the_observed_counts() -> None:
    differences = np.random.default_rng(4).normal(0.4, size=MAX_COUNTED_UNITS + 1)
    found = permutation_test(differences, seed=0)
    assert found == permutation_test(differences, seed=0)
    assert found == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)
    assert permutation_test(np.ones(MAX_COUNTED_UNITS + 1), seed=0) == pytest.approx(1 / 10_001)


def _long(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, levels (1, 2, 4, …) and blocks of a table with a block per row."""
    blocks, levels = np.indices(table.shape)
    return table.ravel(), 2.0 ** levels.ravel(), blocks.ravel()


@pytest.mark.parametrize("alternative", ["greater", "less"])
def test_trend_test_is_pages(alternative: Alternative) -> None:
    table = np.random.default_rng(3).normal(size=(4, 3)) + 0.6 * np.arange(3)
    values, groups, blocks = _long(table)
    found = trend_test(values, groups, blocks=blocks, seed=0, alternative=alternative)
    ordered = table if alternative == "greater" else table[:, ::-1]
    assert found.p_value == pytest.approx(stats.page_trend_test(ordered, method="exact").pvalue, rel=1e-9)
    assert found.correlation == pytest.approx(np.mean([stats.spearmanr(range(3), row).statistic for row in table]))
    assert (found.num_blocks, found.num_levels) == (4, 3)


def test_trend_test_of_many_blocks_draws_orders_at_random() -> None:
    table = np.random.default_rng(2).normal(size=(8, 5)) + 0.3 * np.arange(5)
    values, groups, blocks = _long(table)
    found = trend_test(values, groups, blocks=blocks, seed=0, alternative="greater")
    assert found == trend_test(values, groups, blocks=blocks, seed=0, alternative="greater")
    assert found.p_value == pytest.approx(stats.page_trend_test(table, method="exact").pvalue, abs=0.005)


def test_trend_test_takes_incomplete_blocks_and_ties() -> None:
    values = [1.0, 2.0, 3.0, 2.0, 2.0, 3.0, 4.0, 1.0, 5.0, NAN]
    groups = [0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 1.0, 1.0]
    blocks = ["a", "a", "a", "b", "b", "b", "c", "d", "d", "c"]
    found = trend_test(values, groups, blocks=blocks, seed=0, alternative="greater", alpha=0.5)
    correlations = [1.0, stats.spearmanr([0, 1, 2], [2, 2, 3]).statistic, 1.0]
    assert found.correlation == pytest.approx(np.mean(correlations))
    assert found.num_blocks == 3  # c has one defined level
    # By hand: all 6 · 6 · 2 orders; two of the six orders of the tied block are alike in the top place.
    assert found.p_value == pytest.approx(1 / 6 * 2 / 6 * 1 / 2)


def test_trend_test_averages_what_a_block_has_at_one_level() -> None:
    table = np.random.default_rng(3).normal(size=(6, 3)) + 0.6 * np.arange(3)
    values, groups, blocks = _long(table)
    twice = np.concatenate([values + 0.3, values - 0.3])
    assert trend_test(twice, [*groups, *groups], blocks=[*blocks, *blocks], seed=0) == trend_test(
        values, groups, blocks=blocks, seed=0
    )


def test_trend_test_refuses_what_could_not_be_significant() -> None:
    for table, why in ((np.arange(6.0).reshape(2, 3), "2/36 > .05"), (np.ones((9, 4)), "no value differs")):
        values, groups, blocks = _long(table)
        found = trend_test(values, groups, blocks=blocks, seed=0)
        assert found.p_value is None, why
    assert found.correlation == 0
    empty = trend_test([1.0, NAN], [0.0, 1.0], blocks=[0, 0], seed=0)
    assert (empty.correlation, empty.p_value, empty.num_blocks) == (None, None, 0)
    with pytest.raises(ValueError, match="1 groups"):
        trend_test([1.0, 2.0], [1.0], blocks=[0, 1], seed=0)


def test_holm_agrees_with_all_intersection_hypotheses() -> None:
    """Holm is the closed test of Bonferroni: the adjusted p is the largest Bonferroni p of the sets that hold it."""
    p_values = [0.011, 0.2, 0.03, 0.04]
    sets = [subset for size in range(1, 5) for subset in itertools.combinations(range(4), size)]
    closed = [
        max(min(1.0, len(subset) * min(p_values[j] for j in subset)) for subset in sets if i in subset)
        for i in range(4)
    ]
    assert holm(p_values) == [pytest.approx(p) for p in closed]


# --------------------------------------------------------------------------- many columns at once


def test_max_t_test_by_trying_every_flip() -> None:
    values = np.random.default_rng(0).normal(size=(7, 4))
    values[:, 0] += 2
    values[3, 2] = np.nan
    values[1:, 3] = np.nan  # too few
    largest, own = [], None
    for signs in itertools.product((1, -1), repeat=7):
        flipped = (np.array(signs)[:, None] * values)[:, :3]
        t = np.abs(stats.ttest_1samp(np.nan_to_num(flipped), 0).statistic)
        largest.append(t.max())
        own = t if own is None else own
    assert own is not None
    p_values = max_t_test(values, seed=0)
    assert p_values[:3] == pytest.approx([np.mean(np.array(largest) >= each - 1e-9) for each in own])
    assert np.isnan(p_values[3])


def test_max_t_test_of_one_column_is_the_sign_flip_test() -> None:
    values = np.random.default_rng(1).normal(0.5, size=9)
    assert max_t_test(values[:, None], seed=0) == pytest.approx([permutation_test(values, seed=0)])
    many = np.random.default_rng(2).normal(0.3, size=40)
    assert max_t_test(many[:, None], seed=0) == pytest.approx([permutation_test(many, seed=0)], abs=0.01)


def test_max_t_test_takes_six_units_and_rows_of_zeros_are_no_units() -> None:
    assert min_units() == 6
    assert np.isnan(max_t_test(np.ones((5, 3)), seed=0)).all()
    assert np.isnan(max_t_test(np.zeros((9, 3)), seed=0)).all()
    assert max_t_test(np.arange(1, 7)[:, None], seed=0) == [2 / 2**6]


@pytest.mark.parametrize("num_units", [6, 8, 12])
@pytest.mark.parametrize("num_images", [50, None])
def test_max_t_test_keeps_the_error_rate_of_a_whole_map(num_units: int, num_images: int | None) -> None:
    random = np.random.default_rng(num_units)
    num_maps, found = 200, 0
    for _ in range(num_maps):
        # A reference and 12 arms under 16 shifts: cells of an arm share a trained model, arms share a reference.
        scores = 0.7 + 0.02 * (random.normal(size=(num_units, 13, 1)) + random.normal(size=(num_units, 13, 16)))
        if num_images:
            scores = random.binomial(num_images, scores) / num_images
        differences = np.round(scores[:, 1:] - scores[:, :1], 12).reshape(num_units, -1)
        found += bool((max_t_test(differences, seed=0) <= 0.05).any())
    assert found / num_maps <= 0.05 + 2 * (0.05 * 0.95 / num_maps) ** 0.5


@pytest.mark.parametrize("coefficient", ["spearman", "pearson"])
def test_correlation_test_tries_all_orders(coefficient: Literal["spearman", "pearson"]) -> None:
    x, y = np.random.default_rng(5).normal(size=(2, 6))
    y[0] = y[1]  # a tie
    known = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}[coefficient]
    found = correlation_test(x, y, coefficient=coefficient, seed=0)
    assert found is not None
    assert found.coefficient == pytest.approx(known(x, y).statistic)
    orders = np.array([known(x, np.array(order)).statistic for order in itertools.permutations(y)])
    assert found.p_value == pytest.approx(np.mean(np.abs(orders) >= abs(found.coefficient) - 1e-9))


def test_correlation_test_of_more_pairs_is_that_of_scipy() -> None:
    x = np.arange(10.0)
    y = x + np.random.default_rng(1).normal(scale=4.0, size=10)
    found = correlation_test(x, y, coefficient="pearson", seed=0)
    assert found is not None
    assert found.p_value == pytest.approx(stats.pearsonr(x, y).pvalue, abs=0.02)
    assert correlation_test(x[:2], y[:2], coefficient="pearson", seed=0) is None
    assert correlation_test(x, np.full(10, 0.1 + 0.2), coefficient="spearman", seed=0) is None
