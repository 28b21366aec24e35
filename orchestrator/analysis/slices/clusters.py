"""Clusters in feature space, formed on one half of the patients and judged on the other, so that no error rate is one
that its own cluster was chosen by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from orchestrator.analysis.slices.embedding import choose_rows
from orchestrator.statistics.intervals import wilson_interval
from orchestrator.statistics.paired_tests import holm

#: Images that clusters are formed on at most; density estimates of more cost minutes and say the same.
MAX_FORMED = 4_000
#: Smallest cluster: so many images, or this share of the forming half. Below, an error rate says nothing.
MIN_IMAGES, MIN_SHARE = 15, 0.01
#: Nearest images of the forming half that vote on the cluster of every other image.
_NUM_VOTES = 5
#: Level at which a cluster's errors are called elevated, over all clusters together.
LEVEL = 0.05


@dataclass(frozen=True)
class Cluster:
    """One cluster; its error rate comes from the judging half alone."""

    #: Its code in ``Clusters.codes``: 0 is the one of the highest lower limit.
    number: int
    #: Images of both halves.
    size: int
    num_judged: int
    num_wrong: int
    #: Share of wrong predictions among the judged images, and its 95 % interval.
    error_rate: float
    low: float
    high: float
    #: One-sided p of "not more errors than the rest", after Holm over all clusters.
    p: float

    @property
    def is_elevated(self) -> bool:
        """Whether more is wrong here than elsewhere, at the level of all clusters together."""
        return self.p <= LEVEL


@dataclass(frozen=True)
class Clusters:
    """All clusters of a trial's images, those with most errors first."""

    #: Cluster of every image, −1 for none.
    codes: Int64[np.ndarray, " n"]
    clusters: tuple[Cluster, ...]
    #: Whether each image is of the judging half.
    judges: Bool[np.ndarray, " n"]
    #: Error rate of the whole judging half.
    error_rate: float


def find_clusters(
    features: Float32[np.ndarray, "n components"],
    is_wrong: Bool[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    *,
    seed: int = 0,
) -> Clusters:
    """Return the clusters of images in feature space, with the error rate of each.

    Args:
        features: principal components of the features.
        is_wrong: whether each prediction is wrong.
        groups: patient or other group of each image: all of it is in one half.
        seed: seed of the halves.

    Source: HDBSCAN, Campello et al. 2013; judged apart from where they were formed as in Eyuboglu et al. 2022 (Domino).
    """
    codes, judges = form_clusters(features, groups, seed=seed)
    correlation = estimate_correlation(is_wrong[judges], groups[judges])
    found = [_judge(number, codes, is_wrong, groups, judges, correlation) for number in range(int(codes.max()) + 1)]
    adjusted = [1.0 if p is None else p for p in holm([each.p for each in found])]
    codes, order = sort_clusters(codes, [each.low for each in found])
    clusters = tuple(Cluster(number, *_numbers(found[old]), p=adjusted[old]) for number, old in enumerate(order))
    return Clusters(codes, clusters, judges, float(is_wrong[judges].mean()) if judges.any() else np.nan)


def sort_clusters(codes: Int64[np.ndarray, " n"], lows: Sequence[float]) -> tuple[Int64[np.ndarray, " n"], list[int]]:
    """Return the codes that count clusters from the highest lower limit down, and the old code of each new one.

    Args:
        codes: cluster of every image, −1 for none.
        lows: lower limit of each cluster.
    """
    order = sorted(range(len(lows)), key=lambda number: (-lows[number], number))
    renumbered = np.full(len(lows) + 1, -1, dtype=np.int64)  # the last stays: −1 is its index as well
    renumbered[order] = np.arange(len(lows))
    return renumbered[codes], order


def _numbers(each: Cluster) -> tuple[int, int, int, float, float, float]:
    return each.size, each.num_judged, each.num_wrong, each.error_rate, each.low, each.high


def _choose_half(groups: Int64[np.ndarray, " n"], seed: int) -> Bool[np.ndarray, " n"]:
    """Return whether each image is of the judging half of the groups."""
    names, positions = np.unique(groups, return_inverse=True)
    is_judge = np.zeros(len(names), dtype=bool)
    is_judge[np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]] = True
    return is_judge[positions]


def form_clusters(
    features: Float32[np.ndarray, "n components"], groups: Int64[np.ndarray, " n"], *, seed: int = 0
) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return the cluster of every image, −1 for none, and whether it is of the half that is judged.

    Clusters are formed without the judging half, whose images follow their neighbours.

    Args:
        features: principal components of the features.
        groups: patient or other group of each image: all of it is in one half.
        seed: seed of the halves.

    Source: HDBSCAN, Campello et al. 2013.
    """
    judges = _choose_half(groups, seed)
    return _form(features, judges, seed), judges


def _form(
    features: Float32[np.ndarray, "n components"], judges: Bool[np.ndarray, " n"], seed: int
) -> Int64[np.ndarray, " n"]:
    from sklearn.cluster import HDBSCAN
    from sklearn.neighbors import NearestNeighbors

    forming = np.flatnonzero(~judges)
    forming = forming[choose_rows(len(forming), MAX_FORMED, seed)]
    smallest = max(MIN_IMAGES, int(np.ceil(MIN_SHARE * len(forming))))
    codes = np.full(len(features), -1, dtype=np.int64)
    if len(forming) < 2 * smallest:
        return codes
    model = HDBSCAN(min_cluster_size=smallest, min_samples=_NUM_VOTES, cluster_selection_method="leaf", copy=True)
    formed = model.fit_predict(features[forming]).astype(np.int64)
    codes[forming] = formed
    others = np.setdiff1d(np.arange(len(features)), forming)
    near = NearestNeighbors(n_neighbors=min(_NUM_VOTES, len(forming))).fit(features[forming])
    for start in range(0, len(others), 4_096):
        rows = others[start : start + 4_096]
        votes = formed[near.kneighbors(features[rows], return_distance=False)]
        ballots = np.stack([(votes == code).sum(axis=1) for code in range(-1, int(formed.max()) + 1)], axis=1)
        codes[rows] = ballots.argmax(axis=1) - 1
    return codes


def estimate_correlation(is_wrong: Bool[np.ndarray, " n"], groups: Int64[np.ndarray, " n"]) -> float:
    """Return how alike the images of one group are in being wrong: the intraclass correlation, in [0, 1].

    Source: one-way analysis of variance, Donner 1986; 0 where every group has one image.
    """
    _, positions, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    n, num_groups = len(groups), len(sizes)
    if num_groups < 2 or n == num_groups:
        return 0.0
    wrong = is_wrong.astype(np.float64)
    means = np.bincount(positions, wrong) / sizes
    between = float((sizes * (means - wrong.mean()) ** 2).sum() / (num_groups - 1))
    within = float(((wrong - means[positions]) ** 2).sum() / (n - num_groups))
    typical = (n - (sizes**2).sum() / n) / (num_groups - 1)
    total = between + (typical - 1) * within
    return float(np.clip((between - within) / total, 0.0, 1.0)) if total > 0 else 0.0


def _judge(
    number: int,
    codes: Int64[np.ndarray, " n"],
    is_wrong: Bool[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
    judges: Bool[np.ndarray, " n"],
    correlation: float,
) -> Cluster:
    inside = judges & (codes == number)
    outside = judges & (codes != number)
    n, wrong = int(inside.sum()), int(is_wrong[inside].sum())
    size = int((codes == number).sum())
    if n == 0:
        return Cluster(number, size, 0, 0, np.nan, 0.0, 1.0, 1.0)
    effect = _count_effect(groups[inside], correlation)
    low, high = wilson_interval(wrong / effect, n / effect)
    rest = (int(is_wrong[outside].sum()) / effect, int(outside.sum()) / effect)
    return Cluster(number, size, n, wrong, wrong / n, low, high, _compare(wrong / effect, n / effect, *rest))


def _count_effect(groups: Int64[np.ndarray, " n"], correlation: float) -> float:
    """Return by how much the images of groups count less than as many of different groups: the design effect, ≥ 1.

    Source: Kish 1965, with the mean group size weighted by images.
    """
    _, sizes = np.unique(groups, return_counts=True)
    return 1.0 + (float((sizes**2).sum() / sizes.sum()) - 1.0) * correlation


def _compare(wrong: float, n: float, wrong_outside: float, outside: float) -> float:
    """Return the one-sided p of Fisher's exact test; parts of images are rounded towards no difference."""
    from scipy.stats import hypergeom

    inside, errors = int(np.floor(n)), int(np.floor(wrong))
    rest, rest_errors = int(np.floor(outside)), int(np.ceil(wrong_outside))
    if inside == 0 or rest == 0:
        return 1.0
    return float(hypergeom.sf(errors - 1, inside + rest, min(errors + rest_errors, inside + rest), inside))


@dataclass(frozen=True)
class Overrepresented:
    """A level of a metadata column that a cluster has more of than the rest."""

    column: str
    level: str
    #: Share of the cluster's images, and of all others.
    inside: float
    outside: float


def find_overrepresented(
    inside: Bool[np.ndarray, " n"], columns: Sequence[tuple[str, Sequence[str], np.ndarray]], *, most: int = 3
) -> list[Overrepresented]:
    """Return the levels that stand out most in a cluster, by the G statistic of inside against outside.

    Args:
        inside: whether each image is in the cluster.
        columns: name, levels, and the code of each image's level, beyond the levels where it is not known.
        most: number of levels at most; none is named that is less than half as frequent again as outside.

    Source: Dunning 1993.
    """
    num_inside, num_outside = int(inside.sum()), int((~inside).sum())
    if not num_inside or not num_outside:
        return []
    scored = []
    for name, levels, codes in columns:
        known = codes < len(levels)
        within = np.bincount(codes[inside & known], minlength=len(levels)).astype(float)
        without = np.bincount(codes[~inside & known], minlength=len(levels)).astype(float)
        for code, level in enumerate(levels):
            shares = within[code] / num_inside, without[code] / num_outside
            if within[code] >= 5 and shares[0] >= 1.5 * shares[1]:
                expected = (within[code] + without[code]) / (num_inside + num_outside)
                statistic = within[code] * np.log(shares[0] / expected)
                if without[code]:
                    statistic += without[code] * np.log(shares[1] / expected)
                scored.append((statistic, Overrepresented(name, str(level), *shares)))
    scored.sort(key=lambda each: -each[0])
    return [each for _, each in scored[:most]]
