"""Distance to the k-th nearest reference image, in blocks: memory does not depend on the number of images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64

from trainables.errors import DataError

#: Images that are compared at a time; their products take 32 MiB of 32-bit numbers.
_QUERIES, _REFERENCES = 1024, 8192


def compute_nearest_distances(
    queries: Float[np.ndarray, "n features"],
    reference: Float[np.ndarray, "m features"],
    *,
    k: int = 1,
    leave_one_out: bool = False,
) -> Float64[np.ndarray, " n"]:
    """Return the Euclidean distance of every query to its k-th nearest reference.

    Neighbours are found by inner products in 32 bits (in 64 if the arrays are), the distance to the k-th is then
    computed from the difference, in 64: it is 0 for equal vectors.

    Args:
        queries: one vector per image.
        reference: one vector per reference image.
        k: number of the neighbour, from 1.
        leave_one_out: whether query i is reference i, which is then no neighbour of its own.

    Raises:
        DataError: if there are fewer than k neighbours.
    """
    num_neighbours = len(reference) - leave_one_out
    if not 1 <= k <= num_neighbours:
        raise DataError(
            f"looked for the neighbour number {k} among {max(num_neighbours, 0)} reference images; expected as many "
            "images, or a smaller k"
        )
    kind = np.result_type(np.float32, queries.dtype, reference.dtype)
    found = np.empty(len(queries))
    for start in range(0, len(queries), _QUERIES):
        block = queries[start : start + _QUERIES]
        chosen = _find_kth(block.astype(kind), reference, k, start if leave_one_out else None)
        difference = block.astype(np.float64) - reference[chosen].astype(np.float64)
        found[start : start + _QUERIES] = np.sqrt(np.square(difference).sum(axis=1))
    return found


def _find_kth(
    queries: Float[np.ndarray, "b features"], reference: Float[np.ndarray, "m features"], k: int, own: int | None
) -> Int64[np.ndarray, " b"]:
    """Return the index of each query's k-th nearest reference; query i is not compared with reference ``own`` + i."""
    rows = np.arange(len(queries))[:, None]
    best = np.full((len(queries), k), -np.inf, dtype=queries.dtype)
    index = np.zeros((len(queries), k), dtype=np.int64)
    for start in range(0, len(reference), _REFERENCES):
        block = reference[start : start + _REFERENCES].astype(queries.dtype)
        # The largest q·r − ‖r‖²/2 is the smallest distance.
        nearness = queries @ block.T - np.einsum("ij,ij->i", block, block) / 2
        if own is not None:
            column = rows[:, 0] + own - start
            inside = (column >= 0) & (column < len(block))
            nearness[rows[inside, 0], column[inside]] = -np.inf
        # The k best of this block alone, then of these and those before.
        few = min(k, len(block))
        local = np.argpartition(-nearness, few - 1, axis=1)[:, :few] if few > 1 else nearness.argmax(axis=1)[:, None]
        merged = np.concatenate([best, nearness[rows, local]], axis=1)
        order = np.argsort(-merged, axis=1, kind="stable")[:, :k]
        index = np.concatenate([index, local + start], axis=1)[rows, order]
        best = merged[rows, order]
    return index[:, -1]


def normalise(features: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n features"]:
    """Return features of length 1, in 32 bits (64 if they are); features that are all 0 stay so."""
    values = features.astype(np.result_type(np.float32, features.dtype))
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1)
