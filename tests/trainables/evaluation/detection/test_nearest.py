"""Distances to the k-th nearest reference, against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.errors import DataError
from trainables.evaluation.detection import nearest
from trainables.evaluation.detection.nearest import compute_nearest_distances, normalise


@given(seed=st.integers(0, 10_000), k=st.integers(1, 9), block=st.sampled_from([3, 7, 100]))
@settings(max_examples=60, deadline=None)
def test_distances_are_those_of_all_pairs_whatever_the_blocks(seed: int, k: int, block: int) -> None:
    random = np.random.default_rng(seed)
    queries, reference = random.normal(size=(11, 4)), random.normal(size=(20, 4))
    expected = np.sort(np.linalg.norm(queries[:, None] - reference[None], axis=2), axis=1)[:, k - 1]
    own = np.linalg.norm(reference[:, None] - reference[None], axis=2)
    own[np.diag_indices(20)] = np.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_QUERIES", block)
        patch.setattr(nearest, "_REFERENCES", block + 1)
        np.testing.assert_allclose(compute_nearest_distances(queries, reference, k=k), expected, rtol=1e-9)
        left_out = compute_nearest_distances(reference, reference, k=k, leave_one_out=True)
    np.testing.assert_allclose(left_out, np.sort(own, axis=1)[:, k - 1], rtol=1e-9)


def test_features_of_16_bits_find_themselves_at_no_distance() -> None:
    features = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float16) * 100
    np.testing.assert_array_equal(compute_nearest_distances(features, features), np.zeros(300))
    unit = normalise(features)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(compute_nearest_distances(unit, unit), np.zeros(300))


def test_too_few_neighbours_are_an_error() -> None:
    with pytest.raises(DataError, match="neighbour number 50 among 20 reference images"):
        compute_nearest_distances(np.zeros((2, 3)), np.zeros((20, 3)), k=50)
    with pytest.raises(DataError, match="neighbour number 1 among 0"):
        compute_nearest_distances(np.zeros((1, 3)), np.zeros((1, 3)), leave_one_out=True)


def test_features_of_zeros_stay_so() -> None:
    np.testing.assert_array_equal(normalise(np.zeros((2, 3), dtype=np.float16)), np.zeros((2, 3)))
