"""What the report's statistics promise, on simulated data: coverage of intervals, false positives, power.

    python benchmarks/significance.py           # about ten minutes on one core
    python benchmarks/significance.py --quick   # a fifth of the draws

It is not called ``statistics.py``: that would hide Python's own module from every script in this folder.

- *coverage*: share of nominal 95 % t intervals that hold the true mean, per shape of the differences and number of
  units; the ratio is the share of the judged cells that lie within 93–97 %.
- *false positives*: share of families of true null hypotheses in which anything is significant after Holm.
- *power*: share of significant tests at the number of replicates that ``minimum_replicates`` names for 80 %.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Line

from orchestrator.statistics.intervals import t_interval
from orchestrator.statistics.paired_tests import Alternative, holm, permutation_test, sign_test, wilcoxon
from orchestrator.statistics.power import TESTS as POWER_TESTS
from orchestrator.statistics.power import minimum_replicates
from orchestrator.statistics.trend import trend_test

#: Of the percentile bootstrap, which is measured to show why no interval of the report is one.
NUM_RESAMPLES = 2_000
NUMBERS = (5, 6, 8, 12, 24, 48)
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
#: Shape → draw; each has the mean 0. Skewness 0, 0, 0, 1, 2; excess kurtosis 0, −1.2, 6, 1.5, 6.
SHAPES: dict[str, Draw] = {
    "normal": lambda random, size: random.normal(size=size),
    "uniform": lambda random, size: random.uniform(-1, 1, size=size),
    "t5": lambda random, size: random.standard_t(5, size=size),
    "gamma4": lambda random, size: random.gamma(4, size=size) - 4,
    "exponential": lambda random, size: random.exponential(size=size) - 1,
}
#: Shapes for which the t interval promises 93–97 %, from five units on.
PROMISED = ("normal", "uniform", "t5")
LOW, HIGH = 0.93, 0.97


def measure_coverage(draw: Draw, num_units: int, num_draws: int, *, sizes: tuple[int, ...] = ()) -> float:
    """Return the share of t intervals that hold 0; with ``sizes``, units are clusters of that many values in turn."""
    random = np.random.default_rng(num_units)
    clusters = np.repeat(np.arange(num_units), np.resize(sizes or (1,), num_units))
    hits = 0
    for values in draw(random, (num_draws, num_units)):
        rows = values[clusters] + (0.5 * random.normal(size=len(clusters)) if sizes else 0)
        interval = t_interval(np.bincount(clusters, weights=rows) / np.bincount(clusters))
        hits += interval is not None and interval.low <= 0 <= interval.high
    return hits / num_draws


def measure_bootstrap(draw: Draw, num_units: int, num_draws: int) -> float:
    """Return the share of percentile bootstrap intervals that hold 0."""
    random = np.random.default_rng(num_units)
    hits = 0
    for values in draw(random, (num_draws, num_units)):
        means = values[random.integers(num_units, size=(NUM_RESAMPLES, num_units))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        hits += low <= 0 <= high
    return hits / num_draws


def emit_coverage(num_draws: int) -> None:
    """Measure every shape and number of units."""
    started = time.perf_counter()
    table = {shape: {n: measure_coverage(draw, n, num_draws) for n in NUMBERS} for shape, draw in SHAPES.items()}
    clusters = {n: measure_coverage(SHAPES["normal"], n, num_draws, sizes=(2, 4, 6)) for n in (6, 12, 24)}
    bootstrap = {n: measure_bootstrap(SHAPES["normal"], n, num_draws) for n in NUMBERS}
    # Simulated shares: three standard errors of leeway at both ends.
    leeway = 3 * (0.05 * 0.95 / num_draws) ** 0.5
    judged = [table[shape][n] for shape in PROMISED for n in NUMBERS]
    kept = [share for share in judged if LOW - leeway <= share <= HIGH + leeway]
    facts = {"coverage": table, "of_uneven_clusters": clusters, "percentile_bootstrap_of_normal_values": bootstrap}
    facts |= {"num_draws": num_draws, "seconds": time.perf_counter() - started}
    Line("coverage_t", len(kept) / len(judged), 1.0, facts).emit()


TESTS: dict[str, Callable[..., float | None]] = {
    "wilcoxon": wilcoxon,
    "sign": sign_test,
    "permutation": lambda differences, **how: permutation_test(differences, seed=0, **how),
}


def emit_false_positives(num_draws: int) -> None:
    """Families of five treatments against one control in 8 replicates, none of which differs, after Holm."""
    shares = {}
    for shape in ("normal", "t5", "exponential"):
        random = np.random.default_rng(1)
        # What a replicate shares, and each arm's own part; differences against one control are correlated.
        arms = SHAPES[shape](random, (num_draws, 6, 8)) + random.normal(size=(num_draws, 1, 8))
        for name, test in TESTS.items():
            found = 0
            for values in arms:
                adjusted = holm([test(values[0] - other) for other in values[1:]])
                found += any(p is not None and p <= 0.05 for p in adjusted)
            shares[f"{name}, {shape}"] = found / num_draws
        levels, blocks = np.tile(np.arange(3), 4), np.repeat(np.arange(4), 3)
        trends = SHAPES[shape](random, (num_draws // 4, 5, 12))
        found = 0
        for family in trends:
            adjusted = holm([trend_test(row, levels, blocks=blocks, seed=0).p_value for row in family])
            found += any(p is not None and p <= 0.05 for p in adjusted)
        shares[f"trend, {shape}"] = found / len(trends)
    facts = {
        "families_with_a_false_positive": shares,
        "num_families": num_draws,
        "family": "5 hypotheses, n = 8; trend: 3 levels, n = 4",
    }
    Line("false_positives_after_holm", 0.05 / max(shares.values()), 1.0, facts).emit()


def emit_power(num_draws: int) -> None:
    """Rejections at the stated number of replicates, for effects of .5 to 1.5 standard deviations."""
    from scipy.stats import ttest_1samp

    rows, worst = {}, 1.0
    ways: tuple[Alternative, ...] = ("two-sided", "greater")
    for effect in (0.5, 1.0, 1.5):
        for alternative in ways:
            for name in POWER_TESTS:
                number = minimum_replicates(effect, 1.0, alternative=alternative, test=name)
                assert number is not None
                drawn = np.random.default_rng(len(rows)).normal(effect, size=(num_draws, number))
                if name == "t":
                    p_values = ttest_1samp(drawn, 0, axis=1, alternative=alternative).pvalue
                else:
                    found = [TESTS[name](row, alternative=alternative) for row in drawn]
                    p_values = np.array([1.0 if p is None else p for p in found])
                power = float((p_values <= 0.05).mean())
                rows[f"{name}, {effect} sd, {alternative}"] = {"replicates": number, "power": power}
                worst = min(worst, power)
    # The t test has a power of .80 to the third digit at some of these: two standard errors of leeway.
    leeway = 2 * (0.8 * 0.2 / num_draws) ** 0.5
    facts = {"stated": 0.8, "leeway": leeway, "measured": rows, "num_draws": num_draws}
    Line("power_at_the_stated_replicates", worst / (0.8 - leeway), 1.0, facts).emit()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the draws")
    parser.add_argument("--only", choices=("coverage", "false_positives", "power"))
    asked = parser.parse_args()
    num_draws = 800 if asked.quick else 4_000
    parts = {"coverage": emit_coverage, "false_positives": emit_false_positives, "power": emit_power}
    for name, emit in parts.items():
        if asked.only in (None, name):
            emit(num_draws)


if __name__ == "__main__":
    main()
