"""The vote of nearest neighbours against a loop over images, and where it is known."""

from __future__ import annotations

import numpy as np
import pytest

from trainables.evaluation.representation.nearest_neighbours import compute_knn_accuracy


def vote(features: np.ndarray, reference: np.ndarray, labels: np.ndarray, k: int) -> list[int]:
    found = []
    for image in features:
        similarity = reference @ image / np.linalg.norm(reference, axis=1) / np.linalg.norm(image)
        nearest = np.argsort(-similarity)[:k]
        votes = [np.exp(similarity[nearest][labels[nearest] == label] / 0.07).sum() for label in range(3)]
        found.append(int(np.argmax(votes)))
    return found


@pytest.mark.parametrize("k", [1, 20, 500])
def test_the_vote_is_that_of_the_definition(k: int) -> None:
    random = np.random.default_rng(0)
    reference, reference_labels = random.normal(size=(200, 4)), random.integers(0, 3, 200)
    features = random.normal(size=(60, 4))
    found = np.array(vote(features, reference, reference_labels, k))
    accuracy = {"reference": reference, "reference_labels": reference_labels, "k": k}
    assert compute_knn_accuracy(features, found, **accuracy) == 1.0
    wrong = np.where(np.arange(60) < 15, (found + 1) % 3, found)
    assert compute_knn_accuracy(features.astype(np.float32), wrong, **accuracy) == 0.75


def test_nearer_ones_count_more() -> None:
    """One reference at the image outweighs three at a right angle: exp(1/.07) against 3."""
    reference = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = compute_knn_accuracy(
        np.array([[2.0, 0.0]]), np.array([0]), reference=reference, reference_labels=np.array([0, 1, 1, 1])
    )
    assert found == 1.0
