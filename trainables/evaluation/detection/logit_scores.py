"""Confidence scores of logits, none of which ties where logits are large.

Values rank as the published formula does, without its saturation: a probability p is given as its log odds
log(p / (1 − p)), an uncertainty u ≥ 0 as −log u.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float64

from trainables.evaluation.classification import compute_one_vs_rest

#: Smallest uncertainty that is told from 0: the smallest normal number of 64 bits, whose −log is 708.
SMALLEST = float(np.finfo(np.float64).tiny)

Logits = Float64[np.ndarray, "n classes"]
Values = Float64[np.ndarray, " n"]


def compute_msr(logits: Logits) -> Values:
    """Return the log odds of the largest softmax probability; for two classes |f₁ − f₀|."""
    return compute_one_vs_rest(logits).max(axis=1)


def compute_max_logit(logits: Logits) -> Values:
    """Return the largest logit."""
    return logits.max(axis=1)


def compute_energy(logits: Logits) -> Values:
    """Return log Σ exp(f), the negated free energy."""
    largest = logits.max(axis=1)
    return largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))


def compute_margin(logits: Logits) -> Values:
    """Return the log odds of (1 + p₁ − p₂)/2, p₁ and p₂ the two largest probabilities; for two classes |f₁ − f₀|."""
    ordered = np.sort(logits, axis=1)[:, ::-1] - logits.max(axis=1, keepdims=True)
    # Both in units of exp(f₁): 1 + p₁ − p₂ = 2 + Σ others, 1 − p₁ + p₂ = 2·second + Σ others; others from the third on.
    others = log_sum_exp(ordered[:, 2:])
    second = math.log(2) + ordered[:, 1]
    return np.logaddexp(math.log(2), others) - np.logaddexp(second, others)


def compute_predictive_entropy(logits: Logits) -> Values:
    """Return −log of the entropy −Σ p·log p (nats), summed as logarithms, so that tiny entropies differ."""
    return -compute_log_entropy(logits)


def compute_log_entropy(logits: Logits) -> Values:
    """Return log(−Σ p·log p) of the softmax.

    With f_j − f_max = −d_j and L = log Σ exp(−d_j) the entropy is L + Σ_(j≠max) exp(−d_j − L)·d_j: no term cancels.
    """
    rows, first = np.arange(len(logits)), logits.argmax(axis=1)
    below = logits - logits[rows, first][:, None]
    below[rows, first] = -np.inf
    others = log_sum_exp(below)
    total = np.logaddexp(0.0, others)
    # log(1 + x) is x to the last digit where x < 1e-17, and log(log(1 + x)) then log x.
    log_total = np.where(others < -39.0, others, np.log(np.maximum(np.log1p(np.exp(others)), SMALLEST)))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = below - total[:, None] + np.log(-below)
    terms[~np.isfinite(terms)] = -np.inf  # of equal logits, d = 0, and of impossible classes
    return np.logaddexp(log_total, log_sum_exp(terms))


def log_sum_exp(values: Float64[np.ndarray, "n columns"]) -> Values:
    """Return log Σ exp per row; −∞ of nothing."""
    if not values.shape[1]:
        return np.full(len(values), -np.inf)
    largest = values.max(axis=1)
    base = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return base + np.log(np.exp(values - base[:, None]).sum(axis=1))


def as_confidence(uncertainty: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Return −log of an uncertainty ≥ 0, finite also where it is 0 (or, by rounding, a little less)."""
    return -np.log(np.maximum(uncertainty.astype(np.float64), SMALLEST))
