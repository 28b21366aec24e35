"""Similarity of the arms of a study: CKA and Procrustes distance of what their trained networks make of test images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from trainables.evaluation.predictions import load_predictions
from trainables.evaluation.representation.similarity import MIN_IMAGES, CrossMoments, compute_cka
from trainables.evaluation.representation.summary import choose_rows

#: Most arms, replicates of each, and pairs of trained networks that are compared; a pair takes about 50 ms.
MAX_ARMS, MAX_REPLICATES, MAX_PAIRS = 16, 4, 150
#: Most test images that are compared, evenly spaced. CKA has no bias at few images.
MAX_IMAGES = 500


@dataclass(frozen=True)
class ArmSimilarity:
    """Similarity of arms, mean over pairs of independent trainings; NaN where there is no pair."""

    #: Names of the arms.
    arms: tuple[str, ...]
    #: In [−1, 1].
    cka: Float64[np.ndarray, "arms arms"]
    #: In [0, 2].
    procrustes: Float64[np.ndarray, "arms arms"]
    num_pairs: Int64[np.ndarray, "arms arms"]
    num_images: int
    #: Whether trainings of some pairs start from the same trained step, because their arms have no others.
    has_shared: bool
    #: Number of arms that are left out (``MAX_ARMS``).
    num_left_out: int


@dataclass(frozen=True)
class _Trained:
    replicate: int
    features: Tensor
    own: CrossMoments
    #: Signatures of the stages that it starts from.
    needs: frozenset[str]


def compare_arms(results: Results, ledger: Ledger) -> ArmSimilarity | None:
    """Return the similarity of the penultimate features of all arms, None if fewer than two networks have some.

    Networks of different replicates are compared, also of two arms: those of one replicate share initial weights and
    batches, and would be nearer than two trainings of one arm are. So would those that start from one trained step:
    they are compared only where two arms have no others (``has_shared``). Of a study with one replicate there is no
    choice.

    Args:
        results: tables of the study.
        ledger: ledger of the study; the stored features of unshifted test images are read.

    Raises:
        StorageError: predictions are damaged.
    """
    chosen = list(dict.fromkeys(map(str, results.complete["name"])))
    wanted: np.ndarray | None = None
    stored: dict[str, list[tuple[tuple[int, frozenset[str]], np.ndarray, np.ndarray]]] = {}
    for name in chosen[:MAX_ARMS]:
        for about, ids, features in _load(results, ledger, name):
            wanted = ids[choose_rows(len(ids), MAX_IMAGES)] if wanted is None else wanted
            rows = np.flatnonzero(np.isin(ids, wanted))
            stored.setdefault(name, []).append((about, ids[rows], features[rows]))
    every = [ids for own in stored.values() for _, ids, _ in own]
    common = reduce(np.intersect1d, every) if len(every) > 1 else np.empty(0)
    if len(common) < MIN_IMAGES:
        return None
    trained = {
        name: [_prepare(*about, features[_find(ids, common)]) for about, ids, features in own]
        for name, own in stored.items()
    }
    return _compare(trained, len(common), max(0, len(chosen) - MAX_ARMS))


def _load(
    results: Results, ledger: Ledger, name: str
) -> Iterator[tuple[tuple[int, frozenset[str]], np.ndarray, np.ndarray]]:
    """Yield replicate and stages, ids of test images and their features of the first trials of an arm with features."""
    own = results.complete[results.complete["name"] == name].sort_values("replicate")
    for signature, replicate in own[["signature", "replicate"]].head(MAX_REPLICATES).itertuples(index=False):
        predictions = load_predictions(ledger.folder("trial", str(signature)), "test")
        if predictions.features is not None:
            yield (int(replicate), results.needs[str(signature)]), predictions.ids, predictions.features


def _find(ids: np.ndarray, wanted: np.ndarray) -> Int64[np.ndarray, " n"]:
    order = np.argsort(ids)
    return order[np.searchsorted(ids, wanted, sorter=order)]


def _prepare(replicate: int, needs: frozenset[str], features: Shaped[np.ndarray, "n d"]) -> _Trained:
    """Return features of which there are no more than images: a rotation, which both measures are blind to."""
    values = torch.from_numpy(features.astype(np.float64))
    if values.shape[1] > len(values):
        values = torch.linalg.qr(values.T, mode="r").R.T
    own = CrossMoments()
    own.update(values, values)
    return _Trained(replicate, values, own, needs)


def _compare(trained: dict[str, list[_Trained]], num_images: int, num_left_out: int) -> ArmSimilarity:
    arms = tuple(trained)
    cells = list(combinations_with_replacement(range(len(arms)), 2))
    most = max(1, MAX_PAIRS // len(cells))
    cka, procrustes = (np.full((len(arms), len(arms)), np.nan) for _ in range(2))
    counts = np.zeros((len(arms), len(arms)), np.int64)
    has_shared = False
    for a, b in cells:
        pairs = _list_pairs(trained[arms[a]], trained[arms[b]], same=a == b)[:most]
        has_shared |= any(one.needs & other.needs for one, other in pairs)
        found = [_measure(*pair) for pair in pairs]
        values = np.array(found, dtype=np.float64).reshape(-1, 2)
        counts[a, b] = counts[b, a] = len(values)
        if len(values):
            cka[a, b], procrustes[a, b] = cka[b, a], procrustes[b, a] = values.mean(axis=0)
    return ArmSimilarity(arms, cka, procrustes, counts, num_images, has_shared, num_left_out)


def _list_pairs(first: list[_Trained], second: list[_Trained], *, same: bool) -> list[tuple[_Trained, _Trained]]:
    """Return pairs of independent trainings, each network of ``first`` once before any twice.

    Those of different replicates without a trained step in common; without such a pair those of different replicates,
    and of two arms without such a pair all.
    """
    if same:
        number = len(first)
        apart = [(first[i], first[i + step]) for step in range(1, number) for i in range(number - step)]
    else:
        steps = range(1, len(second) + 1)
        pairs = [(one, second[(i + step) % len(second)]) for step in steps for i, one in enumerate(first)]
        apart = [pair for pair in pairs if pair[0].replicate != pair[1].replicate] or pairs
    return [pair for pair in apart if pair[0].needs.isdisjoint(pair[1].needs)] or apart


def _measure(one: _Trained, other: _Trained) -> tuple[float | None, float | None]:
    cross = CrossMoments()
    cross.update(one.features, other.features)
    return compute_cka(cross, one.own, other.own), cross.compute_procrustes()
