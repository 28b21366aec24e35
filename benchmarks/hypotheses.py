"""Whether verdicts on hypotheses are right: planted effects, none, and effects in the other direction.

    python benchmarks/hypotheses.py           # 2,000 studies a case, about half an hour on one core
    python benchmarks/hypotheses.py --quick   # 200 studies a case

Every study is simulated: trials with normal values, differences of a pair of standard deviation 1, 12 replicates, and
four hypotheses in one family, each on a metric of its own, through the code that writes the report.

- *right*: share of hypotheses that are supported where there is an effect, and contradicted where it is the opposite of
  what is claimed. The effect is the one that the test finds with a power of 97 % in the worst case of Holm's
  correction (α / 4); half of it is the smallest effect that matters.
- *false*: share of studies without any effect in which a hypothesis is supported (or contradicted by significance).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Line

from orchestrator.analysis.inference.verdicts import CONTRADICTED, SUPPORTED, judge
from orchestrator.analysis.results import Results
from orchestrator.planning.states import COMPLETE
from orchestrator.statistics.power import Test, compute_power
from orchestrator.study.hypotheses import describe_hypothesis, read_hypothesis

METRICS = ("id/accuracy", "id/balanced_accuracy", "id/auroc", "val/accuracy")
REPLICATES, ALPHA, POWER = 12, 0.05, 0.97
#: Test → the one whose power is known; Page's test is on ranks, and is given what the sign flips need.
TESTS: dict[str, Test] = {
    "permutation": "permutation",
    "wilcoxon_signed_rank": "wilcoxon",
    "sign": "sign",
    "paired_bootstrap": "t",
    "page": "permutation",
}
LEVELS = {"comparison": ("0", "1"), "interaction": ("0", "1"), "trend": ("0", "1", "2")}


def find_effect(test: str) -> float:
    """Return the effect, in standard deviations of a difference, that is found with the power asked for."""
    low, high = 0.0, 20.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        power = compute_power(middle, 1.0, REPLICATES, alpha=ALPHA / len(METRICS), test=TESTS[test])
        low, high = (low, middle) if power >= POWER else (middle, high)
    return high


def make_hypotheses(kind: str, test: str, smallest_effect: float) -> list[dict[str, Any]]:
    """Return one claim per metric: the effect of the factor is above 0."""
    of_kind: dict[str, dict[str, Any]] = {
        "comparison": {"treatment": {"factor": "1"}, "control": {"factor": "0"}},
        "trend": {"factor": "factor"},
    }
    of_kind["interaction"] = of_kind["comparison"] | {"at": {"other": "b"}, "versus": {"other": "a"}}
    found = []
    for number, metric in enumerate(METRICS):
        content = {"name": f"h{number}", "claim": "more", "metric": metric, "direction": "higher", "kind": kind}
        hypothesis = read_hypothesis(content | {"smallest_effect": smallest_effect, "test": test} | of_kind[kind])
        assert hypothesis is not None
        found.append(describe_hypothesis(hypothesis))
    return found


def simulate(kind: str, effects: Mapping[str, float], *, random: np.random.Generator) -> pd.DataFrame:
    """Return the trials of one study; the difference (of differences, or slope) of a pair has a deviation of 1."""
    others = ("a", "b") if kind == "interaction" else ("a",)
    rows = [
        {"signature": f"{level}{other}{replicate}", "name": f"{level}{other}", "replicate": replicate}
        | {"arm/factor": level, "arm/other": other, "state": COMPLETE}
        for level in LEVELS[kind]
        for other in others
        for replicate in range(REPLICATES)
    ]
    trials = pd.DataFrame(rows)
    level = trials["arm/factor"].astype(float) / float(LEVELS[kind][-1])
    part = level * (trials["arm/other"] == others[-1])
    noise = 0.5 if kind == "interaction" else np.sqrt(0.5)
    for metric, effect in effects.items():
        shared = random.normal(size=REPLICATES)[trials["replicate"]]
        trials[metric] = shared + effect * part + noise * random.normal(size=len(trials))
    return trials


def judge_studies(
    kind: str, test: str, effects: Mapping[str, float], smallest_effect: float, *, num_studies: int
) -> Iterator[list[tuple[str, str]]]:
    """Yield verdict and reason of every hypothesis, study by study."""
    random = np.random.default_rng(0)
    contents = make_hypotheses(kind, test, smallest_effect)
    version = {"registered_ms": 0, "num_complete": 0, "hypotheses": contents}
    plan = {
        "factors": {"factor": list(LEVELS[kind]), "other": ["a", "b"]},
        "seed": 0,
        "trials": [],
        "hypotheses": {"versions": [version]},
    }
    for _ in range(num_studies):
        trials = simulate(kind, effects, random=random)
        shifts = pd.DataFrame(columns=["signature", "set", "shift", "severity"])
        results = Results(plan, "accuracy", {}, [], trials, shifts, ())
        yield [(each.verdict, each.reason) for each in judge(results)]


def measure(kind: str, test: str, num_studies: int) -> dict[str, float]:
    """Return the shares of right and of false verdicts."""
    effect = find_effect(test)

    def count(sizes: tuple[float, ...], smallest: float) -> list[list[tuple[str, str]]]:
        effects = dict(zip(METRICS, sizes, strict=True))
        return list(judge_studies(kind, test, effects, smallest, num_studies=num_studies))

    def share(studies: list[list[tuple[str, str]]], verdict: str) -> float:
        found = Counter(each for study in studies for each, _ in study)
        return found[verdict] / (len(METRICS) * num_studies)

    null = count((0.0,) * 4, 0.0)
    half = count((effect, effect, 0.0, 0.0), 0.0)
    return {
        "effect": effect,
        "supported_where_true": share(count((effect,) * 4, effect / 2), SUPPORTED),
        "contradicted_where_opposite": share(count((-effect,) * 4, effect / 2), CONTRADICTED),
        "studies_with_a_false_support": sum(SUPPORTED in dict(study) for study in null) / num_studies,
        "studies_with_anything_significant": sum(bool({SUPPORTED, CONTRADICTED} & dict(s).keys()) for s in null)
        / num_studies,
        "the_same_where_two_of_four_are_true": sum(
            bool({SUPPORTED, CONTRADICTED} & dict(study[2:]).keys()) for study in half
        )
        / num_studies,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 studies a case")
    num_studies = 200 if parser.parse_args().quick else 2_000
    started = time.perf_counter()
    cases = [("comparison", test) for test in TESTS if test != "page"]
    cases += [("interaction", "permutation"), ("trend", "page"), ("trend", "permutation")]
    found = {f"{kind}, {test}": measure(kind, test, num_studies) for kind, test in cases}
    facts = {"replicates": REPLICATES, "hypotheses": len(METRICS), "num_studies": num_studies, "measured": found}
    seconds = {"seconds": time.perf_counter() - started}
    names = ("supported_where_true", "contradicted_where_opposite")
    right = min(case[name] for case in found.values() for name in names)
    Line("verdicts_right_on_planted_effects", right / 0.95, 1.0, facts | seconds).emit()
    # Simulated shares: three standard errors of leeway.
    leeway = 3 * (0.05 * 0.95 / num_studies) ** 0.5
    names = ("studies_with_anything_significant", "the_same_where_two_of_four_are_true")
    false = max(case[name] for case in found.values() for name in names)
    Line(
        "verdicts_false_without_effects", (0.05 + leeway) / max(false, 1e-9), 1.0, {"leeway": leeway, "worst": false}
    ).emit()


if __name__ == "__main__":
    main()
