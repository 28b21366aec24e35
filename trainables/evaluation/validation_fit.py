"""Numbers fitted on validation and applied unchanged to every other set: a temperature, and thresholds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

#: Specificity, and sensitivity, that thresholds reach on validation; part of the metrics' names. Our choice.
TARGET = 0.95
#: Newton's method on the temperature stops at steps below this share: near the precision of 64-bit numbers.
_STEP = 1e-14
#: Steps after which it stops at the latest. It takes about ten; halving a bracket alone would take 60.
_MAX_STEPS = 100


@dataclass(frozen=True)
class ValidationFit:
    """Numbers fitted on a model's unshifted validation images. None: undefined there, for the reason in ``undefined``.

    An image is called positive (class 1) if its score f₁ − f₀ is above a threshold.
    """

    #: Divisor of the logits that makes the log loss smallest.
    temperature: float | None
    #: Smallest threshold at which specificity is at least ``TARGET``.
    threshold_at_specificity_95: float | None
    #: Largest threshold at which sensitivity is at least ``TARGET``.
    threshold_at_sensitivity_95: float | None
    #: "temperature" or "threshold" → reason.
    undefined: dict[str, str]

    def as_json(self) -> dict[str, float]:
        """Return the numbers that are defined, by name."""
        names = ("temperature", "threshold_at_specificity_95", "threshold_at_sensitivity_95")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def fit_on_validation(logits: Float[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"]) -> ValidationFit:
    """Return temperature and thresholds fitted on validation. Thresholds exist for two classes, both of them present.

    Args:
        logits: outputs on the unshifted validation images.
        labels: index of the true class.
    """
    outputs = logits.astype(np.float64)
    temperature = fit_temperature(outputs, labels)
    undefined: dict[str, str] = {}
    if temperature is None:
        undefined["temperature"] = (
            "no finite temperature minimises the log loss on validation: every image is classified right, or the "
            "outputs are no better than chance"
        )
    if outputs.shape[1] != 2:
        return ValidationFit(temperature, None, None, undefined)
    score = outputs[:, 1] - outputs[:, 0]
    negative, positive = np.sort(score[labels == 0]), np.sort(score[labels == 1])
    if not (len(negative) and len(positive)):
        undefined["threshold"] = f"validation has no image of class {int(len(negative) > 0)} (counted from 0)"
        return ValidationFit(temperature, None, None, undefined)
    at_specificity = negative[math.ceil(_exactly(TARGET * len(negative))) - 1]
    # The positive with this score has to be above the threshold, which therefore is the number just below.
    at_sensitivity = np.nextafter(positive[len(positive) - math.ceil(_exactly(TARGET * len(positive)))], -np.inf)
    return ValidationFit(temperature, float(at_specificity), float(at_sensitivity), undefined)


def _exactly(number: float) -> float:
    """Return ``number`` without its last digits: .95 · 20 is 19, and not a little more."""
    return round(number, 9)


def fit_temperature(logits: Float64[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"]) -> float | None:
    """Return the T > 0 that makes the mean of −log softmax(f/T)[label] smallest, None if no finite one does.

    None if every image is classified right (the smaller T, the better), and if the outputs are no better than chance
    (the larger T, the better). The loss is convex in 1/T, so that Newton's method inside a bracket finds its minimum.

    Source: Guo et al. 2017, section 4.2.
    """
    difference = logits - logits[np.arange(len(labels)), labels][:, None]
    if (difference <= 0).all() or difference.mean() >= 0:
        return None
    low, high, inverse = 0.0, math.inf, 1.0
    for _ in range(_MAX_STEPS):
        slope, curvature = _differentiate(difference, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        following = inverse - slope / curvature if curvature > 0 else math.nan
        if not low <= following <= high:
            following = 2 * inverse if high == math.inf else (low + high) / 2
        if abs(following - inverse) <= _STEP * inverse:
            break
        inverse = following
    return 1 / inverse


def _differentiate(difference: Float64[np.ndarray, "n classes"], inverse: float) -> tuple[float, float]:
    """Return the first two derivatives of the log loss by the inverse temperature."""
    scaled = inverse * difference
    weight = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    mean = (weight * difference).sum(axis=1)
    return float(mean.mean()), float((weight * np.square(difference - mean[:, None])).sum(axis=1).mean())


def compute_predictive_values(
    sensitivity: float, specificity: float, prevalence: float
) -> tuple[float | None, float | None]:
    """Return the positive and the negative predictive value, in [0, 1], in a population with this prevalence.

    None where nobody would be called positive, or nobody negative.

    Args:
        sensitivity: share of positives that are called so.
        specificity: share of negatives that are called so.
        prevalence: share of positives in the population, in [0, 1]; not that of the test set.

    Source: Bayes' rule (Altman & Bland 1994).
    """
    hit, false_alarm = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    passed, miss = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    positive = hit / (hit + false_alarm) if hit + false_alarm > 0 else None
    return positive, passed / (passed + miss) if passed + miss > 0 else None
