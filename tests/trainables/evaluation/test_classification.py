from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import rankdata
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from trainables.evaluation.classification import (
    compute_auroc,
    compute_balanced_accuracy,
    compute_ece,
    compute_log_softmax,
    compute_metrics,
    compute_midranks,
    compute_one_vs_rest,
    compute_quadratic_kappa,
)


def draw(seed: int, *, num_classes: int, count: int = 60, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (with many ties) and labels in which every class occurs."""
    generator = np.random.default_rng(seed)
    raw = generator.random((count, num_classes)) + 1e-3
    scores = np.round(raw, 1) + 0.05 if ties else raw
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, count - num_classes)])
    return scores / scores.sum(axis=1, keepdims=True), labels


@given(seed=st.integers(0, 10_000), shape=st.tuples(st.integers(1, 70), st.integers(1, 12)), ties=st.booleans())
@settings(max_examples=30, deadline=None)
def test_ranks_and_log_softmax_are_scipys_bit_for_bit(seed: int, shape: tuple[int, int], ties: bool) -> None:
    values = 30 * np.random.default_rng(seed).standard_normal(shape)
    values = np.round(values / 10) if ties else values
    assert np.array_equal(compute_midranks(values), rankdata(values, axis=0))
    assert np.array_equal(compute_log_softmax(values), log_softmax(values, axis=1))


@given(seed=st.integers(0, 10_000), ties=st.booleans())
@settings(max_examples=30, deadline=None)
def test_binary_auroc_is_sklearns(seed: int, ties: bool) -> None:
    scores, labels = draw(seed, num_classes=2, ties=ties)
    assert compute_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores[:, 1]), abs=1e-12)


@given(seed=st.integers(0, 10_000), num_classes=st.integers(3, 6), ties=st.booleans())
@settings(max_examples=30, deadline=None)
def test_multiclass_auroc_is_sklearns_macro_one_vs_rest(seed: int, num_classes: int, ties: bool) -> None:
    scores, labels = draw(seed, num_classes=num_classes, ties=ties)
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert compute_auroc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_auroc_does_not_saturate() -> None:
    """Probabilities of these logits are 1 for every image; their AUROC is .5."""
    random = np.random.default_rng(0)
    labels = np.tile([0, 1], 200)
    score = 60.0 + 10.0 * labels + random.normal(scale=20.0, size=400)
    logits = np.stack([-score, score], axis=1).astype(np.float32)
    assert roc_auc_score(labels, softmax(logits.astype(np.float64), axis=1)[:, 1]) == pytest.approx(0.5, abs=0.05)
    found = compute_metrics(logits, labels).values["auroc"]
    assert found == roc_auc_score(labels, score.astype(np.float32))
    assert 0.6 < found < 0.7


@given(seed=st.integers(0, 10_000), num_classes=st.integers(2, 7), scale=st.sampled_from([1.0, 100.0, 1e30]))
@settings(max_examples=30, deadline=None)
def test_one_vs_rest_is_the_logit_of_the_probability(seed: int, num_classes: int, scale: float) -> None:
    logits = scale * np.random.default_rng(seed).normal(size=(20, num_classes))
    found = compute_one_vs_rest(logits)
    expected = [logits[:, k] - logsumexp(np.delete(logits, k, axis=1), axis=1) for k in range(num_classes)]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-12, atol=1e-12)
    if scale == 1.0:
        p = softmax(logits, axis=1)
        np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10_000), num_classes=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_balanced_accuracy_and_kappa_are_sklearns(seed: int, num_classes: int) -> None:
    scores, labels = draw(seed, num_classes=num_classes)
    predicted = scores.argmax(axis=1)
    assert compute_balanced_accuracy(predicted, labels) == pytest.approx(balanced_accuracy_score(labels, predicted))
    kappa = compute_quadratic_kappa(predicted, labels, num_classes=num_classes)
    assert kappa == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"), abs=1e-12)


def test_balanced_accuracy_ignores_absent_classes() -> None:
    # Recall of class 0: 1/2, of class 2: 1; class 1 is predicted but never true.
    assert compute_balanced_accuracy(np.array([0, 1, 2]), np.array([0, 0, 2])) == 0.75


def test_ece_by_hand() -> None:
    confidence = np.array([0.95, 0.85, 0.65, 0.55])
    correct = np.array([True, False, True, True])
    # Five bins: (.8, 1] has accuracy .5 and confidence .9; (.6, .8] 1 and .65; (.4, .6] 1 and .55.
    assert compute_ece(confidence, correct, bins=5) == pytest.approx(0.5 * 0.4 + 0.25 * 0.35 + 0.25 * 0.45)


def test_ece_bins_are_closed_above() -> None:
    # .5 belongs to (0, .5]: alone there it is off by .5; together with 1.0 it would be .25.
    assert compute_ece(np.array([0.5, 1.0]), np.array([True, True]), bins=2) == pytest.approx(0.25)
    assert compute_ece(np.array([0.5, 0.5]), np.array([True, False]), bins=2) == 0.0
    assert compute_ece(np.array([1.0]), np.array([True]), bins=15) == 0.0


def test_nll_brier_and_accuracy_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    values = compute_metrics(np.log(probabilities).astype(np.float32), np.array([0, 1])).values
    assert values["accuracy"] == 0.5
    assert values["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2, rel=1e-6)
    first, second = 0.3**2 + 0.2**2 + 0.1**2, 0.1**2 + 0.7**2 + 0.6**2
    assert values["brier"] == pytest.approx((first + second) / 2, rel=1e-6)


def test_extreme_logits_stay_finite() -> None:
    values = compute_metrics(np.array([[3e38, -3e38], [-3e38, 3e38]], dtype=np.float32), np.array([0, 0])).values
    assert all(math.isfinite(value) for value in values.values())
    assert values["brier"] == pytest.approx(1.0)


@pytest.mark.parametrize(("labels", "absent"), [([0, 0, 0], "1, 2"), ([0, 1, 1], "2")])
def test_auroc_is_undefined_with_a_reason(labels: list[int], absent: str) -> None:
    metrics = compute_metrics(np.eye(3, dtype=np.float32), np.array(labels))
    assert "auroc" not in metrics.values
    assert metrics.undefined == {"auroc": f"no image of class {absent} (counted from 0)"}


def test_kappa_is_undefined_when_everything_is_one_class() -> None:
    metrics = compute_metrics(np.tile(np.float32([5, 0]), (3, 1)), np.zeros(3, dtype=np.int64), ordinal=True)
    assert metrics.undefined["quadratic_kappa"] == "all labels and predictions are one class"
    assert "quadratic_kappa" not in metrics.values


def test_kappa_only_where_classes_are_ordered() -> None:
    logits, labels = np.eye(3, dtype=np.float32), np.arange(3)
    assert "quadratic_kappa" not in compute_metrics(logits, labels).values
    assert compute_metrics(logits, labels, ordinal=True).values["quadratic_kappa"] == 1.0


@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_metrics_ignore_order_and_a_constant(seed: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(40, 3)).astype(np.float32)
    labels = np.arange(40) % 3
    order = generator.permutation(40)
    first = compute_metrics(logits, labels, ordinal=True).values
    second = compute_metrics((logits[order].astype(np.float64) + shift), labels[order], ordinal=True).values
    assert second == pytest.approx(first, abs=1e-9)
    assert all(0 <= first[name] <= 1 for name in ("accuracy", "balanced_accuracy", "auroc", "ece"))
