"""Confidence scores: ranking as the published formula, no ties where it saturates, worked values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, log_softmax, logsumexp, softmax

from trainables.errors import ConfigError
from trainables.evaluation.confidence import CONFIDENCE_SCORES, compute_confidence
from trainables.evaluation.detection.sample_scores import (
    average_members,
    compute_ensemble_scores,
    compute_mc_dropout_scores,
    score_samples,
)
from trainables.evaluation.validation_fit import fit_temperature

PLAIN = [name for name, score in CONFIDENCE_SCORES.items() if score.function and not score.is_scaled]


def formulas(logits: np.ndarray) -> dict[str, np.ndarray]:
    """The published formulas, with SciPy."""
    probabilities = softmax(logits, axis=1)
    ordered = np.sort(probabilities, axis=1)
    return {
        "msr": ordered[:, -1],
        "max_logit": logits.max(axis=1),
        "predictive_entropy": entr(probabilities).sum(axis=1),
        "energy": logsumexp(logits, axis=1),
        "margin": (1 + ordered[:, -1] - ordered[:, -2]) / 2,
    }


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 9), scale=st.sampled_from([0.0, 1e-3, 1.0, 8.0]))
@settings(max_examples=60, deadline=None)
def test_scores_read_back_as_the_published_formulas(seed: int, classes: int, scale: float) -> None:
    logits = scale * np.random.default_rng(seed).normal(size=(20, classes))
    expected = formulas(logits)
    assert set(expected) == set(PLAIN)
    for name in PLAIN:
        values = compute_confidence(name, logits)
        np.testing.assert_allclose(CONFIDENCE_SCORES[name].read(values), expected[name], rtol=1e-9, atol=1e-12)
        scaled = f"{name}_scaled"
        if scaled in CONFIDENCE_SCORES:
            np.testing.assert_allclose(
                CONFIDENCE_SCORES[scaled].read(compute_confidence(scaled, logits, temperature=2.5)),
                formulas(logits / 2.5)[name], rtol=1e-9, atol=1e-12,
            )  # fmt: skip


@pytest.mark.parametrize("name", ["msr", "predictive_entropy", "margin"])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("scale", [10.0, 1e3, 1e6])
def test_huge_logits_do_not_tie(name: str, classes: int, scale: float) -> None:
    """The published formula is 1, or 0, for several of these in 64 bits."""
    gaps = np.arange(5.0, 15.0)
    logits = np.zeros((10, classes))
    logits[:, 0] = scale * gaps
    values = compute_confidence(name, logits)
    assert np.isfinite(values).all()
    assert (np.diff(values) > 0).all()
    if scale >= 1e3 or name != "predictive_entropy":
        assert len(np.unique(formulas(logits)[name])) < 10


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_equal_logits_have_the_least_confidence(classes: int) -> None:
    logits = np.full((1, classes), 3.0)
    assert compute_confidence("msr", logits)[0] == pytest.approx(math.log(1 / (classes - 1)))
    assert compute_confidence("margin", logits)[0] == pytest.approx(0.0, abs=1e-12)
    assert compute_confidence("predictive_entropy", logits)[0] == pytest.approx(-math.log(math.log(classes)))
    assert compute_confidence("energy", logits)[0] == pytest.approx(3 + math.log(classes))


def test_two_classes_rank_by_the_difference_whatever_the_score() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 2)) * 5
    difference = np.abs(logits[:, 0] - logits[:, 1])
    np.testing.assert_allclose(compute_confidence("msr", logits), difference)
    np.testing.assert_allclose(compute_confidence("margin", logits), difference, atol=1e-12)
    order = np.argsort(compute_confidence("predictive_entropy_scaled", logits, temperature=3.0))
    np.testing.assert_array_equal(order, np.argsort(difference))


def test_the_temperature_changes_the_ranking_where_a_scaled_variant_exists() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 300)
    logits = 4 * (np.eye(4)[labels] + random.normal(size=(300, 4)))
    temperature = fit_temperature(logits, labels)
    assert temperature is not None
    for name in PLAIN:
        plain = np.argsort(formulas(logits)[name])
        scaled = np.argsort(formulas(logits / temperature)[name])
        assert (f"{name}_scaled" in CONFIDENCE_SCORES) == bool((plain != scaled).any())


def test_float32_logits_of_several_shifts_give_one_row_each() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    values = compute_confidence("msr", logits)
    assert values.shape == (3, 5)
    np.testing.assert_array_equal(values[1], compute_confidence("msr", logits[1]))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("entropi", "which the table does not have"),
        ("mahalanobis", "which needs features"),
        ("mc_dropout_waic", "which needs scores/mc_dropout_waic"),
        ("msr_scaled", "without a temperature"),
    ],
)
def test_what_logits_do_not_give_is_an_error(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compute_confidence(name, np.zeros((2, 3)))


def test_the_table_names_each_score_once_and_says_what_it_needs() -> None:
    assert {score.needs for score in CONFIDENCE_SCORES.values() if score.function} == {"logits"}
    for name, score in CONFIDENCE_SCORES.items():
        assert score.name == name
        assert score.needs in ("logits", "features", "members", f"scores/{name}")
        assert score.title
        assert score.source


def samples(seed: int, spread: float = 1.0) -> np.ndarray:
    """Probabilities of 50 samples of dropout: samples × images × classes."""
    random = np.random.default_rng(seed)
    return softmax(3 * random.normal(size=(40, 5)) + spread * random.normal(size=(50, 40, 5)), axis=2)


def test_mc_dropout_scores_are_the_formulas_of_the_paper() -> None:
    drawn = samples(0)
    mean = drawn.mean(axis=0)
    entropy, expected = entr(mean).sum(axis=1), entr(drawn).sum(axis=2).mean(axis=0)
    deviation = drawn.std(axis=0)
    waic = mean.max(axis=1) - deviation[np.arange(40), mean.argmax(axis=1)]
    found = {name: CONFIDENCE_SCORES[name].read(values) for name, values in compute_mc_dropout_scores(drawn).items()}
    published = {
        "mc_dropout_msr": mean.max(axis=1),
        "mc_dropout_entropy": entropy,
        "mc_dropout_expected_entropy": expected,
        "mc_dropout_mutual_information": entropy - expected,
        "mc_dropout_score_variance": deviation.mean(axis=1),
        "mc_dropout_waic": 1 - waic,
    }
    assert set(found) == set(published) == {name for name in CONFIDENCE_SCORES if name.startswith("mc_dropout")}
    for name, values in published.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-14)


def test_waic_takes_each_image_s_own_deviation() -> None:
    """fd-shifts takes them from the flattened array: the first image's classes for all images."""
    drawn = np.zeros((2, 2, 2))
    drawn[:, 0] = [[0.9, 0.1], [0.9, 0.1]]  # samples agree
    drawn[:, 1] = [[1.0, 0.0], [0.8, 0.2]]  # same mean, samples differ by .1
    found = CONFIDENCE_SCORES["mc_dropout_waic"].read(compute_mc_dropout_scores(drawn)["mc_dropout_waic"])
    np.testing.assert_allclose(1 - found, [0.9, 0.8])


def test_moments_accumulated_sample_by_sample_give_the_same_scores() -> None:
    drawn = samples(1)
    mean, squares, entropy = np.zeros((40, 5)), np.zeros((40, 5)), np.zeros(40)
    for count, sample in enumerate(drawn, start=1):  # Welford
        step = sample - mean
        mean = mean + step / count
        squares = squares + step * (sample - mean)
        entropy += entr(sample).sum(axis=1)
    streamed = score_samples(mean, squares / 50, entropy / 50)
    for name, values in compute_mc_dropout_scores(drawn).items():
        np.testing.assert_allclose(streamed[name], values, rtol=1e-9)


def test_samples_that_agree_and_are_certain_have_finite_scores() -> None:
    certain = np.broadcast_to(np.array([[1.0, 0.0], [0.5, 0.5]]), (3, 2, 2))
    for values in compute_mc_dropout_scores(certain).values():
        assert np.isfinite(values).all()
        assert values[0] >= values[1]


def test_mc_dropout_scores_of_saturated_samples_do_not_tie() -> None:
    small = np.array([1e-20, 1e-25, 1e-30])
    drawn = np.stack([np.stack([1 - small, small], axis=1), np.stack([1 - small, small / 2], axis=1)])
    for name in ("mc_dropout_msr", "mc_dropout_entropy", "mc_dropout_expected_entropy", "mc_dropout_waic"):
        assert (np.diff(compute_mc_dropout_scores(drawn)[name]) > 1).all()


def test_ensemble_scores_are_those_of_the_mean_probability() -> None:
    logits = 3 * np.random.default_rng(0).normal(size=(6, 30, 4)).astype(np.float32)
    drawn = softmax(logits.astype(np.float64), axis=2)
    mean = drawn.mean(axis=0)
    np.testing.assert_allclose(softmax(average_members(logits), axis=1), mean, rtol=1e-9)
    entropy, expected = entr(mean).sum(axis=1), entr(drawn).sum(axis=2).mean(axis=0)
    published = {
        "ensemble_msr": mean.max(axis=1),
        "ensemble_entropy": entropy,
        "ensemble_expected_entropy": expected,
        "ensemble_mutual_information": entropy - expected,
    }
    found = compute_ensemble_scores(logits)
    assert set(found) == set(published) == {name for name in CONFIDENCE_SCORES if name.startswith("ensemble")}
    for name, values in published.items():
        np.testing.assert_allclose(CONFIDENCE_SCORES[name].read(found[name]), values, rtol=1e-9, atol=1e-14)


def test_an_ensemble_of_one_is_its_member() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 10, 3))
    found = compute_ensemble_scores(logits)
    np.testing.assert_allclose(average_members(logits), log_softmax(logits[0], axis=1))
    np.testing.assert_allclose(found["ensemble_msr"], compute_confidence("msr", logits[0]))
    np.testing.assert_allclose(found["ensemble_expected_entropy"], compute_confidence("predictive_entropy", logits[0]))
