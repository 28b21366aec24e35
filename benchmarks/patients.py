"""The interval over replicates and patients: its coverage on simulated logits, and the time that resampling takes.

    python benchmarks/patients.py                            # both; coverage takes about 10 minutes on one core
    python benchmarks/patients.py --only speed
    python benchmarks/patients.py --only coverage --patients 200 --draws 500

*Coverage*: two arms are trained R times each and tested on the same patients, 30 % of whom are ill. A patient's logit
has a part that all trainings share (some patients are hard), one that all trainings of an arm share, and one of its
own; a training has its own separation, threshold and scale of logits. The true difference is that over all trainings
and patients there could be, by quadrature. Three scenarios: trainings differ much; as much as patients do at 200 of
them; little. In the first and the last the arms differ in separation, threshold and calibration. A cell of the table
holds if the coverage is within 93 to 97 % in all three; the product shows intervals from ``FEWEST_PATIENTS`` of
``orchestrator.statistics.patient_variance`` on.

*Speed*: 12 arms × 6 replicates on 2,000 patients, 10,000 resamples.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import Line
from scipy.special import expit, ndtr

from orchestrator.statistics.patient_resampling import (
    Resamples,
    draw_resamples,
    resample_auroc,
    resample_balanced_accuracy,
)
from orchestrator.statistics.patient_variance import (
    FEWEST_PATIENTS,
    compute_interval,
    estimate_components_of_means,
    estimate_components_of_resamples,
)

REPLICATES = (5, 6, 8, 12)
PATIENTS = (50, 200, 2_000)
METRICS = ("accuracy", "balanced_accuracy", "auroc", "ece")
LOW, HIGH = 0.93, 0.97
PREVALENCE = 0.3
BINS = 15
#: Standard deviations of a patient's logit: shared by all trainings, by those of one arm, of one training.
SHARED, OF_ARM, OF_TRAINING = 0.7, 0.35, 0.5
SPREAD = (SHARED**2 + OF_ARM**2 + OF_TRAINING**2) ** 0.5
#: Fewer than the product's 10,000, for time: the standard error of a standard deviation is 3.5 %.
NUM_RESAMPLES = 400


@dataclass(frozen=True)
class Scenario:
    """How much trainings differ, and the two arms: mean separation, threshold and log scale of their logits."""

    training_sd: float
    treatment: tuple[float, float, float]
    control: tuple[float, float, float] = (1.6, -0.5, 0.4)


SCENARIOS = {
    "trainings differ much": Scenario(0.3, (1.9, -0.4, 0.65)),
    "no true difference": Scenario(0.12, (1.6, -0.5, 0.4)),
    "trainings differ little": Scenario(0.036, (1.9, -0.4, 0.65)),
}


def compute_truth(arm: tuple[float, float, float], training_sd: float) -> dict[str, float]:
    """Return an arm's metrics over all trainings and patients: Gauss–Hermite over the former, exact or a grid below."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(9)
    weights = weights / weights.sum()
    separation, threshold, scale = (part.ravel() for part in np.meshgrid(*(mean + training_sd * nodes for mean in arm)))
    weight = np.multiply.outer(np.multiply.outer(weights, weights), weights).ravel()
    sensitivity = ndtr((separation / 2 + threshold) / SPREAD)
    specificity = ndtr((separation / 2 - threshold) / SPREAD)
    grid = np.linspace(-9, 9, 4_001)
    ece = [_integrate_ece(grid, *training) for training in zip(separation, threshold, scale, strict=True)]
    return {
        "accuracy": float(weight @ (PREVALENCE * sensitivity + (1 - PREVALENCE) * specificity)),
        "balanced_accuracy": float(weight @ (sensitivity + specificity) / 2),
        "auroc": float(weight @ ndtr(separation / SPREAD / 2**0.5)),
        "ece": float(weight @ np.array(ece)),
    }


def _integrate_ece(grid: np.ndarray, separation: float, threshold: float, scale: float) -> float:
    ill = PREVALENCE * np.exp(-0.5 * ((grid - separation / 2 - threshold) / SPREAD) ** 2)
    healthy = (1 - PREVALENCE) * np.exp(-0.5 * ((grid + separation / 2 - threshold) / SPREAD) ** 2)
    confidence = expit(np.abs(grid) * np.exp(scale))
    gap = np.where(grid > 0, ill, healthy) - confidence * (ill + healthy)
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    density = SPREAD * (2 * np.pi) ** 0.5
    return float(np.abs(np.bincount(index, weights=gap)).sum() * (grid[1] - grid[0]) / density)


def draw_logits(
    random: np.random.Generator, scenario: Scenario, num_patients: int, num_replicates: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return differences of the two logits (treatment's replicates, then the control's; × patients) and labels."""
    labels = (random.random(num_patients) < PREVALENCE).astype(np.int64)
    shared = SHARED * random.normal(size=num_patients)
    arms = []
    for arm in (scenario.treatment, scenario.control):
        separation, threshold, scale = (
            mean + scenario.training_sd * random.normal(size=(num_replicates, 1)) for mean in arm
        )
        patients = shared + OF_ARM * random.normal(size=num_patients)
        own = OF_TRAINING * random.normal(size=(num_replicates, num_patients))
        arms.append(((labels - 0.5) * separation + threshold + patients + own) * np.exp(scale))
    return np.concatenate(arms), labels


def resample_mean(resamples: Resamples, values: np.ndarray) -> np.ndarray:
    """Return the mean of values over the images of each resample."""
    mean: np.ndarray = resamples.sum(values) / resamples.sum(np.ones((1, values.shape[1])))
    return mean


def resample_ece(
    resamples: Resamples,
    confidence: np.ndarray,
    correct: np.ndarray,
    *,
    bins: int = 15,
) -> np.ndarray:
    """Return the expected calibration error Σ (n_m/N)·|acc_m − conf_m| on each resample, in [0, 1].

    Bins are those of ``trainables.evaluation.classification.compute_ece``.
    """
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = correct - confidence
    error = np.zeros((len(gap), resamples.counts.shape[1]), np.float32)
    for number in np.unique(index):
        error += np.abs(resamples.sum(gap * (index == number)))
    total: np.ndarray = error / resamples.sum(np.ones((1, gap.shape[1])))
    return total


def resample_metrics(resamples: Resamples, logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return all metrics (models × resamples) of the differences of two logits."""
    correct, confidence = (logits > 0) == (labels == 1), expit(np.abs(logits))
    return {
        "accuracy": resample_mean(resamples, correct),
        "balanced_accuracy": resample_balanced_accuracy(resamples, correct, labels),
        "auroc": resample_auroc(resamples, logits, labels == 1),
        "ece": resample_ece(resamples, confidence, correct, bins=BINS),
    }


def measure_coverage(scenario: Scenario, num_patients: int, num_draws: int) -> dict[tuple[str, int], float]:
    """Return the share of 95 % intervals that hold the true difference, by metric and number of replicates."""
    treatment, control = (compute_truth(arm, scenario.training_sd) for arm in (scenario.treatment, scenario.control))
    random = np.random.default_rng(num_patients)
    patients, most = np.arange(num_patients), max(REPLICATES)
    hits = dict.fromkeys(((metric, number) for metric in METRICS for number in REPLICATES), 0)
    for seed in range(num_draws):
        logits, labels = draw_logits(random, scenario, num_patients, most)
        drawn = draw_resamples(patients, labels, seed=seed, num_resamples=NUM_RESAMPLES)
        resampled = resample_metrics(drawn, logits, labels)
        right = ((logits > 0) == (labels == 1)).astype(float)
        for metric, number in hits:
            # Fewer replicates are the first of the most.
            if metric == "accuracy":
                components = estimate_components_of_means(right[:number] - right[most : most + number], patients)
            else:
                values = resampled[metric].astype(float)
                differences = values[:number] - values[most : most + number]
                components = estimate_components_of_resamples(differences[:, 0], differences[:, 1:], num_patients)
            interval = compute_interval(components)
            hits[metric, number] += interval.low <= treatment[metric] - control[metric] <= interval.high
    return {cell: count / num_draws for cell, count in hits.items()}


def print_table(found: Mapping[int, Mapping[str, Mapping[tuple[str, int], float]]]) -> None:
    """Print coverages in percent as a Markdown table: one number per scenario; failing cells in bold."""
    print(f"\nper cell: {'; '.join(next(iter(found.values())))}\n")
    print("| metric | patients | " + " | ".join(f"{number} replicates" for number in REPLICATES) + " |")
    print("|---|---|" + "---|" * len(REPLICATES))
    for metric in METRICS:
        for num_patients, scenarios in found.items():
            cells = []
            for number in REPLICATES:
                shares = [shares[metric, number] for shares in scenarios.values()]
                text = " ".join(f"{100 * share:.1f}" for share in shares)
                cells.append(text if all(LOW <= share <= HIGH for share in shares) else f"**{text}**")
            print(f"| {metric} | {num_patients:,} | " + " | ".join(cells) + " |")
    print(flush=True)


def emit_coverage(numbers: Sequence[int], scenarios: Sequence[str], num_draws: int) -> None:
    """Measure every cell; the ratio is the share of cells that hold among those for which the product has intervals."""
    started = time.perf_counter()
    found = {
        num_patients: {name: measure_coverage(SCENARIOS[name], num_patients, num_draws) for name in scenarios}
        for num_patients in numbers
    }
    print_table(found)
    # Simulated shares: two standard errors of leeway for fewer draws than those of the table in the docs.
    leeway = 2 * (0.05 * 0.95 / num_draws) ** 0.5 if num_draws < 2_000 else 0.0
    shown = [
        all(LOW - leeway <= shares[metric, number] <= HIGH + leeway for shares in by_scenario.values())
        for num_patients, by_scenario in found.items()
        for metric in METRICS
        for number in REPLICATES
        if num_patients >= FEWEST_PATIENTS[metric][number]
    ]
    facts = {
        "shown_cells": len(shown),
        "cells": len(found) * len(METRICS) * len(REPLICATES),
        "num_draws": num_draws,
        "seconds": time.perf_counter() - started,
    }
    Line("coverage_over_patients", sum(shown) / max(len(shown), 1), 1.0, facts).emit()


def emit_speed(num_resamples: int = 10_000, num_patients: int = 2_000) -> None:
    """Time the resamples of 12 arms × 6 replicates."""
    logits, labels = draw_logits(
        np.random.default_rng(0), Scenario(0.3, (1.9, -0.4, 0.65)), num_patients, num_replicates=36
    )
    patients, seconds = np.arange(num_patients), {}
    correct, confidence = (logits > 0) == (labels == 1), expit(np.abs(logits))
    started = time.perf_counter()
    drawn = draw_resamples(patients, labels, seed=0, num_resamples=num_resamples)
    seconds["draw"] = time.perf_counter() - started
    for name, measure in {
        "accuracy": lambda: resample_mean(drawn, correct),
        "balanced_accuracy": lambda: resample_balanced_accuracy(drawn, correct, labels),
        "ece": lambda: resample_ece(drawn, confidence, correct, bins=BINS),
        "auroc": lambda: resample_auroc(drawn, logits, labels == 1),
    }.items():
        begun = time.perf_counter()
        assert measure().shape == (len(logits), drawn.counts.shape[1])
        seconds[name] = time.perf_counter() - begun
    total = time.perf_counter() - started
    facts = {"models": len(logits), "patients": num_patients, "resamples": num_resamples, "seconds": total}
    Line("patient_resampling_12_arms", 10 / total, 1.0, facts | {"seconds_of": seconds}).emit()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("coverage", "speed"))
    parser.add_argument("--patients", type=int, choices=PATIENTS, help="coverage at this number of patients alone")
    parser.add_argument("--scenario", choices=tuple(SCENARIOS), help="coverage in this scenario alone")
    parser.add_argument(
        "--draws", type=int, default=2_000, help="simulated studies per scenario and number of patients"
    )
    asked = parser.parse_args()
    if asked.only in (None, "speed"):
        emit_speed()
    if asked.only in (None, "coverage"):
        numbers = PATIENTS if asked.patients is None else (asked.patients,)
        emit_coverage(numbers, tuple(SCENARIOS) if asked.scenario is None else (asked.scenario,), asked.draws)


if __name__ == "__main__":
    main()
