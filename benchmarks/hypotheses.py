"""Whether verdicts on hypotheses are right: planted effects, none, and effects in the other direction.

    python benchmarks/hypotheses.py           # 2,000 studies a case, about half an hour on one core
    python benchmarks/hypotheses.py --quick   # 200 studies a case
    python benchmarks/hypotheses.py --only sites

Every study is simulated and judged by the code that writes the report.

*Designs*: one claim without an effect, for R replicates × cells × correlation of a replicate's cells × pretrained
encoders × a pattern of true differences over shift types whose mean is 0. Shares of studies with a verdict (supported,
also in direction only, or contradicted), and of those found with an effect of 1.5 standard deviations.

*Sites*: one claim over external sites (``over: sites``) without an effect, for S sites × R replicates × a standard
deviation of the true differences from site to site, in those of a training, which differs by site (half to one and a
half times) and whose mean over sites is 0. A training's own difference is the same at all sites, but for half as much
again at each. Beside the verdicts: the share in which a test over sites alone is significant.

*Families*: four claims in one family, each on a metric of its own, 12 replicates.

- *right*: share of hypotheses that are supported where the effect is twice the claimed size, and contradicted where it
  is the opposite. The claimed size is the effect that the test finds with a power of 97 % in the worst case of Holm's
  correction (α / 4).
- *false*: share of studies without any effect, or of effects that are exactly the claimed size, in which a hypothesis
  is supported or contradicted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Line

from orchestrator.analysis.inference.verdicts import CONTRADICTED, SUPPORTED, SUPPORTED_DIRECTION, judge
from orchestrator.analysis.results import Results
from orchestrator.planning.states import COMPLETE
from orchestrator.statistics.paired_tests import permutation_test
from orchestrator.statistics.power import Test, compute_power
from orchestrator.study.hypotheses import describe_hypothesis, read_hypothesis
from trainables.evaluation.metrics import METRICS as METRICS_OF_TRIALS

METRICS = ("id/accuracy", "id/balanced_accuracy", "id/auroc", "val/accuracy")
REPLICATES, ALPHA, POWER = 12, 0.05, 0.97
#: Test → the one whose power is known; Page's test is on ranks, and is given what the sign flips need.
TESTS: dict[str, Test] = {
    "permutation": "permutation",
    "wilcoxon_signed_rank": "wilcoxon",
    "sign": "sign",
    "page": "permutation",
}
#: Standard deviation of an encoder's share of a difference, in those of a fine-tuning: measured 1.05 and 1.10 points.
ENCODER_SD = 1.05 / 1.10
NUM_SHIFTS, POWER_EFFECT = 15, 1.5
#: With 1 and 3 no verdict over sites is to be had.
SITE_REPLICATES = (1, 3, 5, 6, 12)
#: Pandas takes longer for a small table than the verdicts on it do.
STUDIES_AT_ONCE = 100
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


def make_plan(trials: pd.DataFrame, contents: list[dict[str, Any]], factors: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return what ``judge`` reads of a plan."""
    version = {"registered_ms": 0, "num_complete": 0, "hypotheses": contents}
    rows = (
        [{"signature": row.signature, "needs": row.needs} for row in trials.itertuples()] if "needs" in trials else []
    )
    return {"factors": dict(factors), "seed": 0, "trials": rows, "hypotheses": {"versions": [version]}}


def judge_trials(plan: dict[str, Any], trials: pd.DataFrame) -> list[str]:
    """Return the verdict on every hypothesis."""
    shifts = pd.DataFrame(columns=["signature", "set", "shift", "severity"])
    return [each.verdict for each in judge(Results(plan, "accuracy", {}, [], trials, shifts, ()))]


# --------------------------------------------------------------------------- designs


@dataclass(frozen=True)
class Design:
    """One cell of the table."""

    replicates: int
    cells: int
    correlation: float
    #: "own": every replicate has one; "two": two replicates share one; "one": all share one; "none": no pretraining.
    encoders: str
    pattern_sd: float

    def list_encoders(self) -> list[int] | None:
        """Return the number of each replicate's encoder."""
        sizes = {"own": 1, "two": 2, "one": self.replicates}
        size = sizes.get(self.encoders)
        return None if size is None else [replicate // size for replicate in range(self.replicates)]


def list_designs() -> list[Design]:
    """Return all combinations."""
    factors = ((2, 3, 4, 6, 8, 12), (1, 4), (0.0, 0.5), ("none", "own", "two", "one"), (0.0, 1.0, 3.0))
    return [Design(*values) for values in itertools.product(*factors)]


def draw_differences(design: Design, effect: float, random: np.random.Generator) -> np.ndarray:
    """Return cell × replicate differences of the mean over shifts; that of a replicate has a deviation of about 1."""
    shape = (design.cells, design.replicates)
    shared, own = random.normal(size=design.replicates), random.normal(size=shape)
    differences = np.sqrt(design.correlation) * shared + np.sqrt(1 - design.correlation) * own
    encoders = design.list_encoders()
    if encoders is not None:  # two contrastive arms, each of an encoder of its own
        differences = differences + ENCODER_SD * np.sqrt(2) * random.normal(size=design.replicates)[encoders]
    # True differences under single shifts whose mean is 0; each replicate sees the same pattern, and noise.
    pattern = design.pattern_sd * random.normal(size=NUM_SHIFTS)
    noise = random.normal(size=(*shape, NUM_SHIFTS))
    over_shifts = differences[..., None] + (pattern - pattern.mean()) + noise - noise.mean(axis=-1, keepdims=True)
    return over_shifts.mean(axis=-1) + effect


def judge_design(design: Design, effect: float, num_studies: int) -> float:
    """Return the share of studies with a verdict on the claim."""
    random = np.random.default_rng(zlib.crc32(repr((design, effect)).encode()))
    encoders = design.list_encoders()
    rows = [
        {"signature": f"{level}{cell}{replicate}", "name": f"{level}{cell}", "replicate": replicate}
        | {"arm/factor": level, "arm/other": str(cell), "state": COMPLETE}
        | ({"needs": [f"{level}{encoders[replicate]}"]} if encoders else {"needs": []})
        for level in ("0", "1")
        for cell in range(design.cells)
        for replicate in range(design.replicates)
    ]
    trials = pd.DataFrame(rows)
    factors = {"factor": ["0", "1"], "other": [str(cell) for cell in range(design.cells)]}
    found = 0
    for start in range(0, num_studies, STUDIES_AT_ONCE):
        # Each study is a claim on a metric of its own, in a family of its own.
        names = [f"external/s{number}/accuracy" for number in range(min(STUDIES_AT_ONCE, num_studies - start))]
        differences = [draw_differences(design, effect, random).ravel() for _ in names]
        values = {name: np.concatenate([0 * each, each]) for name, each in zip(names, differences, strict=True)}
        contents = [
            content | {"name": f"h{number}", "family": f"f{number}", "metric": name}
            for number, name in enumerate(names)
            for content in make_hypotheses("comparison", "permutation", 0.0)[:1]
        ]
        table = pd.concat([trials, pd.DataFrame(values)], axis=1)
        verdicts = judge_trials(make_plan(table, contents, factors), table)
        found += sum(verdict in (SUPPORTED, SUPPORTED_DIRECTION, CONTRADICTED) for verdict in verdicts)
    return found / num_studies


def measure_designs(num_studies: int) -> list[dict[str, Any]]:
    """Return the share of false verdicts and the power of every design that yields a verdict, 0 for the others."""
    rows = []
    for design in list_designs():
        # Too few units never yield a verdict; that is looked at, but not 2,000 times.
        has_verdict = judge_design(design, 100.0, 5) > 0
        false = judge_design(design, 0.0, num_studies if has_verdict else 50)
        power = judge_design(design, POWER_EFFECT, num_studies // 10) if has_verdict else None
        rows.append(vars(design) | {"has_verdict": has_verdict, "false": false, "power": power})
        print(*rows[-1].values(), sep=" | ", flush=True)
    return rows


# --------------------------------------------------------------------------- sites


def draw_at_sites(
    num_sites: int, replicates: int, site_sd: float, effect: float, random: np.random.Generator
) -> np.ndarray:
    """Return replicate × site differences; that of a training has a deviation of 1."""
    of_sites = site_sd * np.linspace(0.5, 1.5, num_sites) * random.normal(size=num_sites)
    of_trainings = random.normal(size=(replicates, 1))
    return effect + of_trainings + of_sites + 0.5 * random.normal(size=(replicates, num_sites))


def judge_sites(num_sites: int, replicates: int, site_sd: float, effect: float, num_studies: int) -> tuple[float, ...]:
    """Return the share of studies with a verdict over sites, and of those significant over sites alone."""
    random = np.random.default_rng(zlib.crc32(repr((num_sites, replicates, site_sd, effect)).encode()))
    rows = [
        {"signature": f"{level}{replicate}", "name": level, "replicate": replicate, "arm/factor": level}
        | {"state": COMPLETE}
        for level in ("0", "1")
        for replicate in range(replicates)
    ]
    trials, metrics = pd.DataFrame(rows), list(METRICS_OF_TRIALS)
    found = alone = 0
    for start in range(0, num_studies, len(metrics)):
        # Each study is a claim on a metric of its own, in a family of its own.
        values: dict[str, np.ndarray] = {}
        contents = []
        for number, metric in enumerate(metrics[: num_studies - start]):
            differences = draw_at_sites(num_sites, replicates, site_sd, effect, random)
            for site in range(num_sites):
                values[f"external/s{site}/{metric}"] = np.concatenate([np.zeros(replicates), differences[:, site]])
            changes = {"name": f"h{number}", "family": f"f{number}", "metric": f"external/mean_{metric}"}
            contents += [make_hypotheses("comparison", "permutation", 0.0)[0] | changes | {"over": "sites"}]
            alone += (permutation_test(differences.mean(axis=0), seed=0) or 1.0) <= ALPHA
        table = pd.concat([trials, pd.DataFrame(values)], axis=1)
        verdicts = judge_trials(make_plan(table, contents, {"factor": ["0", "1"]}), table)
        found += sum(verdict in (SUPPORTED, SUPPORTED_DIRECTION, CONTRADICTED) for verdict in verdicts)
    return found / num_studies, alone / num_studies


def measure_sites(num_studies: int) -> list[dict[str, Any]]:
    """Return the share of false verdicts over sites and the power, as ``measure_designs`` does."""
    rows = []
    for replicates, num_sites, site_sd in itertools.product(SITE_REPLICATES, (5, 6, 8, 12), (0.0, 1.0, 3.0)):
        has_verdict = judge_sites(num_sites, replicates, site_sd, 100.0, 5)[0] > 0
        false, alone = judge_sites(num_sites, replicates, site_sd, 0.0, num_studies if has_verdict else 200)
        power = judge_sites(num_sites, replicates, site_sd, POWER_EFFECT, num_studies // 10)[0] if has_verdict else None
        rows.append({"replicates": replicates, "sites": num_sites, "site_sd": site_sd, "has_verdict": has_verdict})
        rows[-1] |= {"false": false, "power": power, "over_sites_alone": alone}
        print(*rows[-1].values(), sep=" | ", flush=True)
    return rows


def emit_sites(num_studies: int, leeway: float) -> None:
    """Measure and print the designs over sites."""
    started = time.perf_counter()
    found = measure_sites(num_studies)
    worst = max(found, key=lambda row: row["false"])
    facts = {"num_studies": num_studies, "leeway": leeway, "seconds": time.perf_counter() - started, "worst": worst}
    Line("verdicts_false_over_sites", (0.05 + leeway) / max(worst["false"], 1e-9), 1.0, facts).emit()


# --------------------------------------------------------------------------- families


def judge_studies(
    kind: str, test: str, effects: Mapping[str, float], smallest_effect: float, *, num_studies: int
) -> Iterator[list[str]]:
    """Yield the verdict on every hypothesis, study by study."""
    random = np.random.default_rng(0)
    contents = make_hypotheses(kind, test, smallest_effect)
    factors = {"factor": list(LEVELS[kind]), "other": ["a", "b"]}
    for _ in range(num_studies):
        trials = simulate(kind, effects, random=random)
        yield judge_trials(make_plan(trials, contents, factors), trials)


def measure(kind: str, test: str, num_studies: int) -> dict[str, float]:
    """Return the shares of right and of false verdicts."""
    size = find_effect(test)
    decided = {SUPPORTED, SUPPORTED_DIRECTION, CONTRADICTED}

    def count(sizes: tuple[float, ...], smallest: float) -> list[list[str]]:
        effects = dict(zip(METRICS, sizes, strict=True))
        return list(judge_studies(kind, test, effects, smallest, num_studies=num_studies))

    def share(studies: list[list[str]], verdict: str) -> float:
        return Counter(each for study in studies for each in study)[verdict] / (len(METRICS) * num_studies)

    def any_of(studies: list[list[str]], verdicts: set[str], first: int = 0) -> float:
        return sum(bool(verdicts & set(study[first:])) for study in studies) / num_studies

    return {
        "claimed_size": size,
        "supported_where_twice_the_size": share(count((2 * size,) * 4, size), SUPPORTED),
        "contradicted_where_opposite": share(count((-size,) * 4, size), CONTRADICTED),
        "false_without_effects": any_of(count((0.0,) * 4, 0.0), decided),
        "false_for_two_of_four": any_of(count((size, size, 0.0, 0.0), 0.0), decided, first=2),
        # The direction is true here, a larger or a smaller effect is not.
        "false_size_at_the_size": any_of(count((size,) * 4, size), {SUPPORTED, CONTRADICTED}),
    }


def emit_designs(num_studies: int, leeway: float) -> None:
    """Measure and print the designs over replicates."""
    started = time.perf_counter()
    designs = measure_designs(num_studies)
    facts: dict[str, Any] = {"num_studies": num_studies, "leeway": leeway, "seconds": time.perf_counter() - started}
    worst = max(designs, key=lambda row: row["false"])
    Line(
        "verdicts_false_over_designs", (0.05 + leeway) / max(worst["false"], 1e-9), 1.0, facts | {"worst": worst}
    ).emit()


def emit_families(num_studies: int, leeway: float) -> None:
    """Measure and print the families of four claims."""
    started = time.perf_counter()
    cases = [("comparison", test) for test in TESTS if test != "page"]
    cases += [("interaction", "permutation"), ("trend", "page"), ("trend", "permutation")]
    found = {f"{kind}, {test}": measure(kind, test, num_studies) for kind, test in cases}
    facts = {"replicates": REPLICATES, "hypotheses": len(METRICS), "num_studies": num_studies, "measured": found}
    names: tuple[str, ...] = ("supported_where_twice_the_size", "contradicted_where_opposite")
    right = min(case[name] for case in found.values() for name in names)
    facts |= {"seconds": time.perf_counter() - started}
    Line("verdicts_right_on_planted_effects", right / 0.95, 1.0, facts).emit()
    names = ("false_without_effects", "false_for_two_of_four", "false_size_at_the_size")
    false = max(case[name] for case in found.values() for name in names)
    Line(
        "verdicts_false_in_families", (0.05 + leeway) / max(false, 1e-9), 1.0, {"leeway": leeway, "worst": false}
    ).emit()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 studies a case")
    parser.add_argument("--only", choices=("designs", "sites", "families"))
    asked = parser.parse_args()
    num_studies = 200 if asked.quick else 2_000
    # Simulated shares: two standard errors of leeway.
    leeway = 2 * (0.05 * 0.95 / num_studies) ** 0.5
    parts = {"designs": emit_designs, "sites": emit_sites, "families": emit_families}
    for name, emit in parts.items():
        if asked.only in (None, name):
            emit(num_studies, leeway)


if __name__ == "__main__":
    main()
