"""ViM against its definition, and the last layer found again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from trainables.errors import DataError
from trainables.evaluation.detection.virtual_logit import choose_dimension, find_last_layer, fit_virtual_logit


def draw(seed: int, count: int = 300, size: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    weights, bias = np.random.default_rng(5).normal(size=(3, size)), np.array([0.3, -1.0, 2.0])
    spread = np.linspace(2, 0.1, size)
    features = (np.random.default_rng(seed).normal(size=(count, size)) * spread + 1).astype(np.float32)
    return features, (features @ weights.T + bias).astype(np.float32), weights, bias


def test_the_last_layer_is_found_again() -> None:
    features, logits, weights, bias = draw(0)
    layer, covariance, mean = find_last_layer(features, logits)
    np.testing.assert_allclose(layer.weights, weights, atol=1e-4)
    np.testing.assert_allclose(layer.bias, bias, atol=1e-4)
    np.testing.assert_allclose(covariance, np.cov(features.T, bias=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=1e-5)


def test_features_of_16_bits_that_never_vary_do_no_harm() -> None:
    features, logits, weights, _ = draw(0)
    dead = np.concatenate([features, np.zeros((300, 2), dtype=np.float32)], axis=1).astype(np.float16)
    layer, _, _ = find_last_layer(dead, logits)
    np.testing.assert_allclose(layer.weights[:, :10], weights, atol=0.02)
    np.testing.assert_allclose(layer.weights[:, 10:], 0, atol=1e-9)


def test_logits_of_something_else_are_an_error() -> None:
    features, logits, _, _ = draw(0)
    with pytest.raises(DataError, match="of the logits' variance left over; expected penultimate features"):
        find_last_layer(features, np.tanh(logits))


def test_scores_are_those_of_the_paper() -> None:
    features, logits, weights, bias = draw(0)
    queries, outputs, _, _ = draw(1, count=40)
    fitted = fit_virtual_logit(features, logits, dimension=6)
    # Wang et al. 2022, equations 3 to 5 and their code: the origin solves W·o + b = 0; X = z − o.
    origin = -np.linalg.pinv(weights) @ bias
    values, vectors = np.linalg.eigh((features - origin).T @ (features - origin) / len(features))
    rest = vectors[:, np.argsort(values)[::-1][6:]]
    scale = logits.max(axis=1).mean() / np.linalg.norm((features - origin) @ rest, axis=1).mean()
    expected = logsumexp(outputs, axis=1) - scale * np.linalg.norm((queries - origin) @ rest, axis=1)
    np.testing.assert_allclose(fitted.score(queries, outputs), expected, rtol=1e-3, atol=1e-3)
    assert fitted.scale == pytest.approx(scale, rel=1e-3)


def test_the_principal_space_has_the_published_dimensions() -> None:
    assert [choose_dimension(size) for size in (64, 512, 768, 1024, 2048)] == [32, 256, 512, 512, 1000]


def test_nothing_outside_the_principal_space_is_an_error() -> None:
    features, logits, _, _ = draw(0)
    dead = np.concatenate([features, np.zeros((300, 2), dtype=np.float32)], axis=1)
    with pytest.raises(DataError, match="nothing outside a principal space of 12 of 12"):
        fit_virtual_logit(dead, logits, dimension=12)
