from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from trainables.evaluation.validation_fit import (
    TARGET,
    compute_predictive_values,
    fit_on_validation,
    fit_temperature,
)


def draw(seed: int, *, classes: int, count: int = 50, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, count - classes)])
    return scale * (np.eye(classes)[labels] + random.normal(size=(count, classes))), labels


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e4]))
@settings(max_examples=60, deadline=None)
def test_the_temperature_minimises_the_log_loss(seed: int, classes: int, scale: float) -> None:
    logits, labels = draw(seed, classes=classes, scale=scale)

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean())

    found = fit_temperature(logits, labels)
    middle = np.log(scale)
    expected = minimize_scalar(loss, bounds=(middle - 12, middle + 12), method="bounded", options={"xatol": 1e-10})
    assert found is not None
    assert np.log(found) == pytest.approx(expected.x, abs=1e-4)
    assert loss(np.log(found)) <= expected.fun + 1e-12


def test_temperature_undoes_a_known_factor() -> None:
    logits, labels = draw(1, classes=3)
    once, tenfold = fit_temperature(logits, labels), fit_temperature(10 * logits, labels)
    assert once is not None
    assert tenfold == pytest.approx(10 * once, rel=1e-12)


@pytest.mark.parametrize(
    "logits",
    [
        [[3.0, 0.0], [0.0, 1.0]],  # all right: the smaller, the better
        [[0.0, 2.0], [2.0, 0.0]],  # all wrong: the larger, the better
        [[1.0, 1.0], [1.0, 1.0]],  # no temperature changes anything
    ],
)
def test_no_temperature_where_no_finite_one_is_best(logits: list[list[float]]) -> None:
    fit = fit_on_validation(np.array(logits, dtype=np.float32), np.array([0, 1]))
    assert fit.temperature is None
    assert "no finite temperature" in fit.undefined["temperature"]
    assert "temperature" not in fit.as_json()


def test_a_single_wrong_image_among_many_is_enough() -> None:
    logits, labels = np.tile([[8.0, 0.0]], (1000, 1)), np.zeros(1000, dtype=np.int64)
    labels[0] = 1
    # All are alike: the confidence becomes the share of right ones.
    assert fit_temperature(logits, labels) == pytest.approx(8.0 / np.log(999), rel=1e-9)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 80), ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_thresholds_reach_their_target_and_no_better_one_does(seed: int, count: int, ties: bool) -> None:
    logits, labels = draw(seed, classes=2, count=count)
    logits = np.round(logits, 0 if ties else 12)
    fit = fit_on_validation(logits.astype(np.float32), labels)
    score = logits.astype(np.float32).astype(np.float64) @ [-1.0, 1.0]
    specific, sensitive = fit.threshold_at_specificity_95, fit.threshold_at_sensitivity_95
    assert specific is not None
    assert sensitive is not None
    negative, positive = score[labels == 0], score[labels == 1]
    assert (negative <= specific).mean() >= TARGET > (negative < specific).mean()
    assert (positive > sensitive).mean() >= TARGET
    assert (positive > np.nextafter(sensitive, np.inf)).mean() < TARGET


def test_thresholds_by_hand() -> None:
    # 20 negatives with scores 1 to 20, 20 positives with 11 to 30: of 20, 19 are 95 %.
    score = np.concatenate([np.arange(1, 21), np.arange(11, 31)]).astype(np.float32)
    fit = fit_on_validation(np.stack([-score, 0 * score], axis=1), np.repeat([0, 1], 20))
    assert fit.threshold_at_specificity_95 == 19.0
    assert fit.threshold_at_sensitivity_95 == np.nextafter(12.0, 0.0)


def test_thresholds_need_both_classes() -> None:
    fit = fit_on_validation(np.float32([[0, 1], [1, 0]]), np.array([0, 0]))
    assert fit.threshold_at_specificity_95 is None
    assert fit.undefined["threshold"] == "validation has no image of class 1 (counted from 0)"
    assert "threshold" not in fit_on_validation(np.eye(3, dtype=np.float32), np.arange(3)).undefined


def test_predictive_values_are_those_of_a_population() -> None:
    # Of 10,000 people 100 are ill; 90 of them and 495 of the others are called positive.
    positive, negative = compute_predictive_values(0.9, 0.95, 0.01)
    assert positive == pytest.approx(90 / (90 + 495))
    assert negative == pytest.approx(9405 / (9405 + 10))
    assert compute_predictive_values(0.0, 1.0, 0.2) == (None, 0.8)
    assert compute_predictive_values(1.0, 0.0, 0.2) == (pytest.approx(0.2), None)
