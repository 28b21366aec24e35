"""Groups of segmented cases with their risk, 1 − Dice: clusters in feature space, judged where they were not formed,
and groups that are known beforehand. Patients are the units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from orchestrator.analysis.slices.clusters import LEVEL, form_clusters, sort_clusters
from orchestrator.statistics.intervals import t_interval
from orchestrator.statistics.paired_tests import NUM_PERMUTATIONS, holm, tail_p

#: Numbers that are permuted at once: bounds the memory to 64 MiB.
_CHUNK = 8_000_000


@dataclass(frozen=True)
class RiskGroup:
    """Cases that belong together, and their risk: the mean over patients of the mean over a patient's cases."""

    number: int
    #: Cases, and those that are judged, of so many patients.
    size: int
    num_judged: int
    num_patients: int
    #: Risk of the judged cases, in [0, 1], NaN without any, and its 95 % t interval; None for too few patients.
    risk: float
    low: float | None
    high: float | None
    #: One-sided p of "not worse than the rest", after Holm over all groups.
    p: float

    @property
    def is_elevated(self) -> bool:
        """Whether cases are worse here than elsewhere, at the level of all groups together."""
        return self.p <= LEVEL


@dataclass(frozen=True)
class RiskClusters:
    """All clusters of a trial's cases, the worst first."""

    #: Cluster of every case, −1 for none.
    codes: Int64[np.ndarray, " n"]
    clusters: tuple[RiskGroup, ...]
    #: Whether each case is of the judging half.
    judges: Bool[np.ndarray, " n"]
    #: Risk of the whole judging half.
    risk: float


def find_risk_clusters(
    features: Float32[np.ndarray, "n components"],
    risks: Float64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    *,
    seed: int = 0,
) -> RiskClusters:
    """Return the clusters of cases in feature space, with the risk of each on patients that it was not formed on.

    Args:
        features: principal components of the features.
        risks: 1 − Dice of every case, without NaN.
        groups: patient or other group of each case: all of it is in one half.
        seed: seed of the halves.
    """
    codes, judges = form_clusters(features, groups, seed=seed)
    found = judge_groups(codes, risks, groups, judges)
    codes, order = sort_clusters(codes, [each.low or 0.0 for each in found])
    clusters = tuple(replace(found[old], number=number) for number, old in enumerate(order))
    return RiskClusters(codes, clusters, judges, measure_risk(risks[judges], groups[judges]))


def judge_groups(
    codes: Int64[np.ndarray, " n"],
    risks: Float64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    judges: Bool[np.ndarray, " n"] | None = None,
) -> list[RiskGroup]:
    """Return the groups 0, 1, … of cases with their risk, and whether it is higher than that of all others.

    The p-value is that of a permutation test between the patients' means inside and outside. A patient with cases on
    both sides counts on both, as two: a patient's cases are alike, which makes a difference less likely, not more.

    Args:
        codes: group of every case, −1 for none.
        risks: 1 − Dice of every case, without NaN.
        groups: patient or other group of each case.
        judges: whether a case is judged; None: all are.

    Source: Pitman 1937; Phipson & Smyth 2010 for random permutations.
    """
    judged = np.ones(len(codes), dtype=np.bool_) if judges is None else judges
    found: list[RiskGroup] = []
    for number in range(int(codes.max(initial=-1)) + 1):
        inside, outside = judged & (codes == number), judged & (codes != number)
        units = _average_patients(risks[inside], groups[inside])
        interval = t_interval(units)
        p = _compare(units, _average_patients(risks[outside], groups[outside]), seed=number)
        found.append(
            RiskGroup(
                number=number,
                size=int((codes == number).sum()),
                num_judged=int(inside.sum()),
                num_patients=len(units),
                risk=float(units.mean()) if len(units) else np.nan,
                low=None if interval is None else max(0.0, interval.low),
                high=None if interval is None else min(1.0, interval.high),
                p=p,
            )
        )
    adjusted = holm([each.p for each in found])
    return [replace(each, p=1.0 if p is None else p) for each, p in zip(found, adjusted, strict=True)]


def measure_risk(risks: Float64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"]) -> float:
    """Return the mean over patients of the mean risk of their cases, NaN without any."""
    return float(_average_patients(risks, groups).mean()) if len(risks) else float("nan")


def _average_patients(
    risks: Float64[np.ndarray, " n"], groups: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " patients"]:
    _, positions, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    averaged: Float64[np.ndarray, " patients"] = np.bincount(positions, risks, minlength=len(sizes)) / sizes
    return averaged


def _compare(inside: Float64[np.ndarray, " patients"], outside: Float64[np.ndarray, " others"], *, seed: int) -> float:
    """Return the one-sided p of a permutation test of the difference of means; 1 where a side has fewer than 2."""
    if min(len(inside), len(outside)) < 2:
        return 1.0
    generator, pooled = np.random.default_rng(seed), np.concatenate([inside, outside])
    rows = max(1, _CHUNK // len(pooled))
    sums = []
    for start in range(0, NUM_PERMUTATIONS, rows):
        drawn = generator.permuted(np.tile(pooled, (min(rows, NUM_PERMUTATIONS - start), 1)), axis=1)
        sums.append(drawn[:, : len(inside)].sum(axis=1))
    # With all values fixed, the difference of the means rises with the sum inside.
    return tail_p(np.concatenate(sums), float(inside.sum()), "greater", num_more=1)
