"""Confidence scores of several predictions of one image: by the members of an ensemble, or by samples of dropout."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float64

from trainables.evaluation.classification import compute_log_softmax
from trainables.evaluation.detection.logit_scores import (
    SMALLEST,
    Values,
    as_confidence,
    compute_log_entropy,
    compute_msr,
    log_sum_exp,
)


def average_members(logits: Float[np.ndarray, "members n classes"]) -> Float64[np.ndarray, "n classes"]:
    """Return log p̄ of a deep ensemble, p̄ the mean of its members' probabilities; its softmax is p̄, so it is logits."""
    total = compute_log_softmax(logits[0].astype(np.float64))
    for member in logits[1:]:
        total = np.logaddexp(total, compute_log_softmax(member.astype(np.float64)))
    return total - math.log(len(logits))


def compute_ensemble_scores(logits: Float[np.ndarray, "members n classes"]) -> dict[str, Values]:
    """Return the scores ``ensemble_…`` of the table; predictions that they judge are those of ``average_members``.

    Source: Lakshminarayanan et al. 2017.
    """
    mean = average_members(logits)
    members = [compute_log_entropy(member.astype(np.float64)) for member in logits]
    expected = log_sum_exp(np.stack(members, axis=1)) - math.log(len(logits))
    entropy = compute_log_entropy(mean)
    return {
        "ensemble_msr": compute_msr(mean),
        "ensemble_entropy": -entropy,
        "ensemble_expected_entropy": -expected,
        "ensemble_mutual_information": as_confidence(np.exp(entropy) - np.exp(expected)),
    }


def compute_mc_dropout_scores(probabilities: Float[np.ndarray, "samples n classes"]) -> dict[str, Values]:
    """Return the scores ``mc_dropout_…`` of the table from the class probabilities of every sample.

    They judge the predictions of the network without dropout, whose logits are stored. Who does not want to hold all
    samples accumulates mean, variance and expected entropy, and calls ``score_samples``.

    Source: Gal & Ghahramani 2016; WAIC: Choi et al. 2018, for probabilities of classes.
    """
    mean = probabilities.mean(axis=0, dtype=np.float64)
    variance = probabilities.var(axis=0, dtype=np.float64)
    entropies = [compute_entropy(sample.astype(np.float64)) for sample in probabilities]
    return score_samples(mean, variance, np.mean(entropies, axis=0))


def score_samples(
    mean: Float64[np.ndarray, "n classes"],
    variance: Float64[np.ndarray, "n classes"],
    expected_entropy: Float64[np.ndarray, " n"],
) -> dict[str, Values]:
    """Return the scores ``mc_dropout_…`` from moments over the samples of dropout.

    Args:
        mean: mean probability of each class.
        variance: its variance over samples, divided by their number.
        expected_entropy: mean over samples of the entropy of their probabilities (``compute_entropy``).
    """
    rows, first = np.arange(len(mean)), mean.argmax(axis=1)
    deviation = np.sqrt(np.maximum(variance, 0.0))
    others = _sum_others(mean)
    entropy = compute_entropy(mean)
    return {
        "mc_dropout_msr": np.log(mean[rows, first]) + as_confidence(others),
        "mc_dropout_entropy": as_confidence(entropy),
        "mc_dropout_expected_entropy": as_confidence(expected_entropy),
        "mc_dropout_mutual_information": as_confidence(entropy - expected_entropy),
        "mc_dropout_score_variance": as_confidence(deviation.mean(axis=1)),
        # 1 − (max p̄ − std) is the sum of the others and std, each image's own: nothing is rounded to 1.
        "mc_dropout_waic": as_confidence(others + deviation[rows, first]),
    }


def compute_entropy(probabilities: Float64[np.ndarray, "n classes"]) -> Values:
    """Return −Σ p·log p in nats; 1 − p of the largest is summed from the others, which keeps its digits near 0."""
    rows, first = np.arange(len(probabilities)), probabilities.argmax(axis=1)
    terms = -probabilities * np.log(np.maximum(probabilities, SMALLEST))
    terms[rows, first] = -probabilities[rows, first] * np.log1p(-np.minimum(_sum_others(probabilities), 1.0))
    return terms.sum(axis=1)


def _sum_others(probabilities: Float64[np.ndarray, "n classes"]) -> Values:
    """Return the sum of all but the largest of each row."""
    others = probabilities.copy()
    others[np.arange(len(others)), probabilities.argmax(axis=1)] = 0.0
    return others.sum(axis=1)
