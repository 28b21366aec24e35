import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from orchestrator.statistics.factorial import compute_contrasts, decompose_variance
from orchestrator.statistics.paired_tests import permutation_test

NPK_YIELDS = """49.5 62.8 46.8 57.0 59.8 58.5 55.5 56.0 62.8 55.8 69.5 55.0 62.0 48.8 45.5 44.2 52.0 51.5 49.8 48.8 57.2
59.0 53.2 56.0"""
NPK_LEVELS = """011 110 000 101 100 111 001 010 010 111 100 001 100 111 001 010 110 000 101 011 101 110 011 000"""


def npk() -> pd.DataFrame:
    """Peas in six blocks of four plots; nitrogen, phosphate, potassium: Venables & Ripley 2002, section 6.7."""
    frame = pd.DataFrame([list(levels) for levels in NPK_LEVELS.split()], columns=["N", "P", "K"])
    return frame.assign(block=np.repeat(range(1, 7), 4), y=[float(each) for each in NPK_YIELDS.split()])


#: A 3 × 2 design in 4 blocks with three cells missing.
UNBALANCED_VALUES = """.700 .736 .715 .752 .731 .790 .711 .767 .720 .768 .760 .827 .722 .731 .739 .804 .733 .821 .692
.734 .713 .795 .745 .845"""


def unbalanced() -> pd.DataFrame:
    rows = [(a, b, r) for r in range(4) for a in range(3) for b in range(2)]
    frame = pd.DataFrame(rows, columns=["a", "b", "seed"]).assign(y=[float(v) for v in UNBALANCED_VALUES.split()])
    return frame.drop([3, 10, 16])


def test_analysis_of_variance_of_a_published_experiment() -> None:
    # R 4: summary(aov(yield ~ block + (N + P + K)^2, npk)); statsmodels 0.15.0 prints the same, also as type III.
    expected = {
        ("block",): (5, 343.295, 4.4467, 0.01594),
        ("N",): (1, 189.2817, 12.2587, 0.00437),
        ("P",): (1, 8.4017, 0.5441, 0.47490),
        ("K",): (1, 95.2017, 6.1657, 0.02880),
        ("N", "P"): (1, 21.2817, 1.3783, 0.26317),
        ("N", "K"): (1, 33.1350, 2.1460, 0.16865),
        ("P", "K"): (1, 0.4817, 0.0312, 0.86275),
    }
    table = decompose_variance(npk(), value="y", factors=["N", "P", "K"], block="block")
    found = {term.factors: term for term in table.terms}
    assert list(found) == [*expected, ()]
    for name, (df, squares, f, p) in expected.items():
        assert found[name].df == df
        assert found[name].sum_of_squares == pytest.approx(squares, abs=1e-4)
        assert found[name].f == pytest.approx(f, abs=1e-4)
        assert found[name].p_value == pytest.approx(p, abs=1e-5)
    assert (found[()].df, found[()].sum_of_squares) == (12, pytest.approx(185.2867, abs=1e-4))
    assert sum(term.eta_squared for term in table.terms) == pytest.approx(1)
    assert table.overlap == pytest.approx(0, abs=1e-12)
    # ω² by its definition, from the published numbers.
    error, total = 185.2867 / 12, 876.365
    assert found[("N",)].omega_squared == pytest.approx((189.2817 - error) / (total + error), abs=1e-5)
    assert table.num_missing == 24  # half of the combinations per block: the three-way interaction is the blocks'


def test_unbalanced_table_gives_type_iii_sums_of_squares() -> None:
    # statsmodels 0.15.0: anova_lm(ols("y ~ C(seed, Sum) + C(a, Sum) * C(b, Sum)", data).fit(), typ=3)
    expected = {
        ("seed",): (3, 0.001070437838, 0.2938183406677),
        ("a",): (2, 0.010647292670, 1.283200748945e-04),
        ("b",): (1, 0.015862049643, 4.523444508238e-06),
        ("a", "b"): (2, 0.001429731678, 0.1017235505700),
    }
    table = decompose_variance(unbalanced(), value="y", factors=["a", "b"], block="seed")
    found = {term.factors: term for term in table.terms}
    for name, (df, squares, p) in expected.items():
        assert found[name].df == df
        assert found[name].sum_of_squares == pytest.approx(squares, rel=1e-8)
        assert stats.f.sf(found[name].f, df, found[()].df) == pytest.approx(p, rel=1e-8)
        assert found[name].p_value is None  # four seeds
    assert found[()].sum_of_squares == pytest.approx(0.003083812162, rel=1e-8)
    assert (table.num_values, table.num_missing) == (21, 3)
    assert abs(table.overlap) > 1e-3  # said, not hidden


def test_shares_of_a_planted_decomposition() -> None:
    rows = [(a, b, r, 2.0 * a + 1.0 * b + 0.5 * r) for a, b, r in itertools.product([0, 1], [0, 1], [0, 1, 2, 3])]
    frame = pd.DataFrame(rows, columns=["a", "b", "seed", "y"])
    table = decompose_variance(frame, value="y", factors=["a", "b"], block="seed")
    shares = {term.factors: term.eta_squared for term in table.terms}
    variances = {("a",): 1.0, ("b",): 0.25, ("seed",): 0.25 * 1.25, ("a", "b"): 0.0, (): 0.0}
    total = sum(variances.values())
    assert shares == {name: pytest.approx(variance / total, abs=1e-12) for name, variance in variances.items()}
    assert all(term.f is None for term in table.terms)  # nothing is left to compare with


def test_omega_squared_of_pure_noise_is_zero_on_average() -> None:
    random = np.random.default_rng(0)
    base = pd.DataFrame(itertools.product("abc", "xy", range(5)), columns=["one", "two", "seed"])
    found = [
        decompose_variance(base.assign(y=random.normal(size=30)), value="y", factors=["one", "two"], block="seed")
        for _ in range(120)
    ]
    etas, omegas = (
        np.array([[getattr(t, name) for t in table.terms[:-1]] for table in found])
        for name in ("eta_squared", "omega_squared")
    )
    assert etas.mean(axis=0)[1] > 0.05
    assert np.abs(omegas.mean(axis=0)).max() < 0.03


def test_interaction_with_a_combination_that_has_no_value_is_left_out() -> None:
    frame = npk().query("N == '0' or P == '0'")
    table = decompose_variance(frame, value="y", factors=["N", "P", "K"], block="block")
    assert table.left_out == (("N", "P"),)
    assert ("N", "K") in [term.factors for term in table.terms]


def test_factor_that_another_one_determines_has_no_degrees_of_freedom() -> None:
    frame = npk().assign(twin=lambda rows: rows["N"].map({"0": "no", "1": "yes"}), only="one")
    table = decompose_variance(frame, value="y", factors=["N", "P", "K", "twin", "only"], block="block")
    found = {term.factors: term for term in table.terms}
    assert (found[("N",)].df, found[("N",)].p_value, found[("twin",)].sum_of_squares) == (0, None, pytest.approx(0))
    assert ("only",) not in found


def full_design() -> pd.DataFrame:
    random = np.random.default_rng(1)
    rows = []
    for seed, (a, b, c) in itertools.product(range(12), itertools.product(["0", "1", "2"], ["x", "y"], ["u", "v"])):
        value = 0.7 + 0.05 * int(a) + 0.03 * (b == "y") + 0.04 * (a == "2" and b == "y") + 0.01 * seed
        rows.append((a, b, c, seed, value + random.normal(scale=0.002)))
    return pd.DataFrame(rows, columns=["a", "b", "c", "seed", "y"])


FACTORS = {"a": ["0", "1", "2"], "b": ["x", "y"], "c": ["u", "v"]}


def test_main_effects_and_interactions_of_a_planted_design() -> None:
    contrasts = compute_contrasts(full_design(), value="y", factors=FACTORS, block="seed", max_order=3)
    found = {(each.factors, each.levels): each for each in contrasts}
    assert len(found) == 4 + 5 + 2  # 2+1+1 main effects, 2+2+1 two-way, 2 three-way interactions
    expected = {
        (("a",), ("1",)): 0.05,
        (("a",), ("2",)): 0.12,
        (("b",), ("y",)): 0.03 + 0.04 / 3,
        (("c",), ("v",)): 0.0,
        (("a", "b"), ("1", "y")): 0.0,
        (("a", "b"), ("2", "y")): 0.04,
        (("a", "b", "c"), ("2", "y", "v")): 0.0,
    }
    for key, effect in expected.items():
        contrast = found[key]
        assert contrast.estimate == pytest.approx(effect, abs=0.004)
        assert contrast.interval is not None
        assert contrast.num_blocks == contrast.interval.num_units == 12
        assert contrast.p_value is not None
        assert contrast.p_holm is not None
        assert (contrast.p_holm <= 0.05) == (effect != 0)
        assert contrast.num_missing == 0
    assert found[(("a",), ("1",))].num_cells == 12 * 4


def test_contrast_of_two_levels_is_the_paired_test() -> None:
    frame = full_design().query("a != '2' and b == 'x' and c == 'u'")
    (contrast,) = compute_contrasts(frame, value="y", factors={"a": ["0", "1"]}, block="seed", max_order=1)
    wide = frame.set_index(["seed", "a"])["y"].unstack()
    differences = wide["1"] - wide["0"]
    assert contrast.estimate == pytest.approx(differences.mean())
    assert contrast.sd == pytest.approx(differences.std(ddof=1))
    assert contrast.p_value == permutation_test(differences, seed=0) == contrast.p_holm


def test_missing_cells_are_counted_and_the_rest_is_compared_like_with_like() -> None:
    frame = full_design()
    # The best arm lacks its best seeds: means of what is there would say that it is worse than it is.
    frame.loc[(frame["a"] == "2") & (frame["b"] == "y") & (frame["seed"] >= 5), "y"] = np.nan
    contrasts = compute_contrasts(frame, value="y", factors=FACTORS, block="seed")
    found = {(each.factors, each.levels): each for each in contrasts}
    of_a, both = found[(("a",), ("2",))], found[(("a", "b"), ("2", "y"))]
    assert (of_a.num_cells, of_a.num_missing) == (34, 14)
    assert (both.num_cells, both.num_missing, both.num_blocks) == (10, 14, 5)
    assert both.estimate == pytest.approx(0.04, abs=0.003)
    assert (both.p_value, both.p_holm) == (None, None)  # five blocks cannot be significant
    assert found[(("a",), ("1",))].num_missing == 0


def test_below_five_blocks_there_is_an_estimate_without_interval_and_p() -> None:
    few, many = (full_design()[lambda frame, n=n: frame["seed"] < n] for n in (4, 5))
    for frame, is_enough in ((few, False), (many, True)):
        found = compute_contrasts(frame, value="y", factors=FACTORS, block="seed")
        assert all((contrast.interval is not None) == is_enough for contrast in found)
        assert all(contrast.p_value is None and contrast.estimate is not None for contrast in found)


def test_blocks_weigh_the_same_however_many_cells_they_have() -> None:
    rows = [("a", b, r, 0.0) for b in "xy" for r in range(6)] + [("b", b, r, 1.0 + r) for b in "xy" for r in range(6)]
    frame = pd.DataFrame(rows, columns=["f", "g", "seed", "y"]).drop(index=17)  # b, x, 5
    (contrast,) = compute_contrasts(frame, value="y", factors={"f": ("a", "b"), "g": ("x", "y")}, block="seed")[:1]
    found = stats.ttest_1samp(np.arange(1, 7), 0).confidence_interval(0.95)
    assert (contrast.estimate, contrast.num_cells, contrast.num_blocks, contrast.num_missing) == (3.5, 11, 6, 1)
    assert contrast.interval is not None
    assert (contrast.interval.low, contrast.interval.high) == pytest.approx((found.low, found.high))


def test_level_that_nothing_has_gives_no_estimate() -> None:
    frame = full_design().query("a == '0' and b == 'x' and c == 'u'")
    (contrast,) = compute_contrasts(frame, value="y", factors={"a": ["0", "1"]}, block="seed", max_order=1)
    assert (contrast.estimate, contrast.interval, contrast.num_cells, contrast.num_missing) == (None, None, 0, 12)


def test_two_rows_of_one_arm_and_block_are_refused() -> None:
    frame = pd.concat([full_design(), full_design().head(1)])
    with pytest.raises(ValueError, match="a=0, b=x, c=u, seed=0"):
        compute_contrasts(frame, value="y", factors=FACTORS, block="seed")
    with pytest.raises(ValueError, match="one row per arm and block"):
        decompose_variance(frame, value="y", factors=list(FACTORS), block="seed")
    with pytest.raises(ValueError, match="no value is defined"):
        decompose_variance(full_design().assign(y=np.nan), value="y", factors=list(FACTORS), block="seed")
