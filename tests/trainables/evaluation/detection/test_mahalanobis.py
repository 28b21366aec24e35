"""Mahalanobis distances against the definition and scikit-learn; pieces; memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import empirical_covariance, oas

from trainables.errors import DataError
from trainables.evaluation.detection.mahalanobis import Chunk, choose_shrinkage, fit_mahalanobis


def draw(seed: int, count: int, classes: int = 3, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    labels[:classes] = np.arange(classes)
    mixing = np.random.default_rng(5).normal(size=(size, size))
    centres = 20 * np.random.default_rng(6).normal(size=(classes, size)) + 100
    return centres[labels] + random.normal(size=(count, size)) @ mixing, labels


def direct(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, shrinkage: float) -> tuple:
    """Scores from the definition: centred features of all classes, one covariance, its inverse."""

    def distances(centred: np.ndarray, means: np.ndarray) -> np.ndarray:
        covariance = empirical_covariance(centred, assume_centered=True)
        mean_variance = np.trace(covariance) / len(covariance)
        precision = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * mean_variance * np.eye(len(covariance)))
        difference = queries[:, None] - means
        return np.einsum("nkd,de,nke->nk", difference, precision, difference)

    means = np.stack([features[labels == each].mean(axis=0) for each in np.unique(labels)])
    to_classes = distances(features - means[np.unique(labels, return_inverse=True)[1]], means).min(axis=1)
    mean = features.mean(axis=0)
    return -to_classes, distances(features - mean, mean[None])[:, 0] - to_classes


@given(seed=st.integers(0, 10_000), pieces=st.integers(1, 7), shrinkage=st.sampled_from([0.0, 0.1, 1.0]))
@settings(max_examples=40, deadline=None)
def test_scores_are_those_of_the_definition_however_the_images_come(seed: int, pieces: int, shrinkage: float) -> None:
    features, labels = draw(seed, 80)
    queries = draw(seed + 1, 15)[0] + 2
    chunks = list(zip(np.array_split(features, pieces), np.array_split(labels, pieces), strict=True))
    fitted = fit_mahalanobis(chunks, num_classes=3, shrinkage=shrinkage)
    plain, relative = direct(features, labels, queries, shrinkage)
    np.testing.assert_allclose(fitted.score(queries), plain, rtol=1e-8)
    np.testing.assert_allclose(fitted.score_relative(queries), relative, rtol=1e-7, atol=1e-6)


def test_features_of_16_bits_give_the_same_to_four_digits() -> None:
    features, labels = draw(0, 500)
    half = features.astype(np.float16)
    fitted = fit_mahalanobis([(half, labels)], num_classes=3, shrinkage=0.05)
    plain, relative = direct(half.astype(np.float64), labels, half.astype(np.float64), 0.05)
    np.testing.assert_allclose(fitted.score(half), plain, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fitted.score_relative(half), relative, rtol=1e-3, atol=1e-2)


def test_a_class_that_is_first_seen_late_counts() -> None:
    features, labels = draw(0, 90)
    order = np.argsort(labels, kind="stable")
    features, labels = features[order], labels[order]
    chunks = list(zip(np.array_split(features, 9), np.array_split(labels, 9), strict=True))
    fitted = fit_mahalanobis(chunks, num_classes=3, shrinkage=0.1)
    np.testing.assert_allclose(fitted.score(features), direct(features, labels, features, 0.1)[0], rtol=1e-8)


def test_a_class_without_training_images_has_no_distribution() -> None:
    features, labels = draw(0, 60)
    fitted = fit_mahalanobis([(features, labels * 2)], num_classes=6, shrinkage=0.1)
    assert len(fitted.classes.centres) == 3
    np.testing.assert_allclose(fitted.score(features), direct(features, labels, features, 0.1)[0], rtol=1e-8)


@pytest.mark.parametrize(("count", "size"), [(5, 3), (40, 60), (400, 10)])
def test_shrinkage_is_that_of_scikit_learn(count: int, size: int) -> None:
    features = np.random.default_rng(0).normal(size=(count, size)) @ np.random.default_rng(1).normal(size=(size, size))
    covariance = empirical_covariance(features, assume_centered=True)
    assert choose_shrinkage(covariance, count) == pytest.approx(oas(features, assume_centered=True)[1], rel=1e-9)
    assert choose_shrinkage(np.eye(3), 10) == 1.0


def test_more_features_than_images_and_features_that_never_vary_have_finite_scores() -> None:
    features, labels = draw(0, 12, size=40)
    features[:, 7] = 3.0
    fitted = fit_mahalanobis([(features.astype(np.float16), labels)], num_classes=3)
    assert 0 < fitted.classes.shrinkage <= 1
    moved = features.copy()
    moved[:, 7] += 50
    assert np.isfinite(fitted.score(features)).all()
    assert (fitted.score(moved) < fitted.score(features)).all()


def test_what_cannot_be_fitted_is_refused() -> None:
    features, labels = draw(0, 30)
    with pytest.raises(DataError, match="no training images"):
        fit_mahalanobis([], num_classes=3)
    with pytest.raises(DataError, match="labels from -1 to 1; expected"):
        fit_mahalanobis([(features, labels - 1)], num_classes=3)
    with pytest.raises(DataError, match="do not vary within classes"):
        fit_mahalanobis([(np.ones((4, 3)), np.arange(4))], num_classes=4)
    constant = np.concatenate([features, np.ones((30, 1))], axis=1)
    with pytest.raises(DataError, match="larger shrinkage"):
        fit_mahalanobis([(constant, labels)], num_classes=3, shrinkage=0.0)


def test_memory_does_not_depend_on_the_number_of_images() -> None:
    def images(count: int) -> Iterator[Chunk]:
        random = np.random.default_rng(0)
        for _ in range(count):
            yield random.normal(size=(256, 64)).astype(np.float16), random.integers(0, 4, 256)

    peaks = []
    for count in (4, 64):
        tracemalloc.start()
        fit_mahalanobis(images(count), num_classes=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
