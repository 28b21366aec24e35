"""Classification metrics on plain arrays. Every number in a report is computed here, from stored logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from trainables.evaluation.validation_fit import ValidationFit


@dataclass(frozen=True)
class Metrics:
    """Metric values by name, and for each metric undefined on these labels the reason."""

    values: dict[str, float]
    undefined: dict[str, str]


def compute_metrics(
    logits: Float[np.ndarray, "n classes"],
    labels: Int64[np.ndarray, " n"],
    *,
    ece_bins: int = 15,
    ordinal: bool = False,
    fit: ValidationFit | None = None,
) -> Metrics:
    """Return the metrics of the table (``metrics.METRICS``) on one set.

    Args:
        logits: unnormalised outputs.
        labels: index of the true class.
        ece_bins: number of equal-width bins of the expected calibration error.
        ordinal: whether classes are ordered; without order there is no quadratic_kappa.
        fit: temperature and thresholds from the validation set; None: without the metrics that need them.
    """
    outputs = logits.astype(np.float64)
    predicted = logits.argmax(axis=1)
    correct = predicted == labels
    calibration = _measure_calibration(outputs, labels, correct, ece_bins)
    values = {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": compute_balanced_accuracy(predicted, labels),
        **calibration,
    }
    undefined: dict[str, str] = {}
    auroc = compute_auroc(compute_one_vs_rest(outputs), labels)
    if auroc is None:
        absent = np.flatnonzero(np.bincount(labels, minlength=logits.shape[1]) == 0)
        undefined["auroc"] = f"no image of class {', '.join(map(str, absent))} (counted from 0)"
    else:
        values["auroc"] = auroc
    if ordinal:
        kappa = compute_quadratic_kappa(predicted, labels, num_classes=logits.shape[1])
        if kappa is None:
            undefined["quadratic_kappa"] = "all labels and predictions are one class"
        else:
            values["quadratic_kappa"] = kappa
    if fit is not None:
        if fit.temperature is None:
            undefined |= {f"{name}_scaled": fit.undefined["temperature"] for name in calibration}
        else:
            scaled = _measure_calibration(outputs / fit.temperature, labels, correct, ece_bins)
            values |= {f"{name}_scaled": value for name, value in scaled.items()}
        if logits.shape[1] == 2:
            found, missing = _apply_thresholds(outputs, labels, fit)
            values, undefined = values | found, undefined | missing
    return Metrics(values, undefined)


def _measure_calibration(
    logits: Float64[np.ndarray, "n classes"],
    labels: Int64[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    bins: int,
) -> dict[str, float]:
    log_probabilities = compute_log_softmax(logits)
    probabilities = np.exp(log_probabilities)
    ece = compute_ece(probabilities.max(axis=1), correct, bins=bins)
    own = (np.arange(len(labels)), labels)
    nll = float(-log_probabilities[own].mean())
    probabilities[own] -= 1.0  # the one-hot labels
    return {"ece": ece, "nll": nll, "brier": float(np.square(probabilities).sum(axis=1).mean())}


def _apply_thresholds(
    logits: Float64[np.ndarray, "n two"], labels: Int64[np.ndarray, " n"], fit: ValidationFit
) -> tuple[dict[str, float], dict[str, str]]:
    """Return sensitivity and specificity at each threshold of validation; where undefined, the reasons."""
    thresholds = {
        "at_specificity_95": fit.threshold_at_specificity_95,
        "at_sensitivity_95": fit.threshold_at_sensitivity_95,
    }
    score = logits[:, 1] - logits[:, 0]
    values: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for name, label in (("sensitivity", 1), ("specificity", 0)):
        own = score[labels == label]
        for at, threshold in thresholds.items():
            if threshold is None:
                undefined[f"{name}_{at}"] = fit.undefined["threshold"]
            elif not len(own):
                undefined[f"{name}_{at}"] = f"no image of class {label} (counted from 0)"
            else:
                values[f"{name}_{at}"] = float(((own > threshold) == (label == 1)).mean())
    return values, undefined


def compute_one_vs_rest(logits: Float64[np.ndarray, "n classes"]) -> Float64[np.ndarray, "n classes"]:
    """Return f_k − log Σ_(j≠k) exp(f_j), the logit of each class's probability; for two classes f₁ − f₀ and f₀ − f₁.

    It orders images as the probability does, but does not saturate: probabilities round to 1 from a difference of 37
    on, and to ties in 32 bits from 17 on.
    """
    num_classes = logits.shape[1]
    if num_classes == 2:
        return logits - logits[:, ::-1]
    rows, first = np.arange(len(logits)), logits.argmax(axis=1)
    largest = logits[rows, first][:, None]
    terms = np.exp(logits - largest)
    others = terms.sum(axis=1, keepdims=True) - terms
    # Where the largest is left out, nothing but rounding may be left: the others are summed on a scale of their own.
    rest = logits.copy()
    rest[rows, first] = -np.inf
    second = rest.max(axis=1)
    others[rows, first] = np.exp(rest - second[:, None]).sum(axis=1)
    scale = np.broadcast_to(largest, logits.shape).copy()
    scale[rows, first] = second
    return logits - scale - np.log(others)


def compute_log_softmax(logits: Float64[np.ndarray, "n classes"]) -> Float64[np.ndarray, "n classes"]:
    """Return log(exp(f) / Σ exp(f)) per row; the largest logit is subtracted first to avoid overflow.

    The result is that of ``scipy.special.log_softmax``, without the second that importing SciPy takes in every trial.
    """
    centred = logits - logits.max(axis=1, keepdims=True)
    return centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))


def compute_midranks(values: Float64[np.ndarray, "n columns"]) -> Float64[np.ndarray, "n columns"]:
    """Return the rank of each value in its column, from 1; equal values share the mean of their ranks."""
    order = values.argsort(axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    differs = ordered[1:] != ordered[:-1]
    edge = np.ones((1, values.shape[1]), dtype=bool)
    position = np.arange(len(values))[:, None]
    first = np.maximum.accumulate(np.where(np.concatenate([edge, differs]), position, 0), axis=0)
    last = np.where(np.concatenate([differs, edge]), position, len(values))
    last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=0)
    return ranks


def compute_balanced_accuracy(predicted: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"]) -> float:
    """Return the mean recall over the classes present in ``labels``, in [0, 1]."""
    _, inverse = np.unique(labels, return_inverse=True)
    return float((np.bincount(inverse, weights=predicted == labels) / np.bincount(inverse)).mean())


def compute_auroc(scores: Float64[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"]) -> float | None:
    """Return the area under the ROC curve, macro one-vs-rest for more than two classes; ties count ½.

    ``scores`` rank the images per class (``compute_one_vs_rest``); of two classes only the second column counts. None
    if a class of ``scores`` has no label. Source: Mann–Whitney U from midranks (Hanley & McNeil 1982).
    """
    counts = np.bincount(labels, minlength=scores.shape[1])
    if (counts == 0).any():
        return None
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    ranks = compute_midranks(scores[:, columns])
    positive = labels[:, None] == np.asarray(columns)
    num_positive = positive.sum(axis=0)
    u = (ranks * positive).sum(axis=0) - num_positive * (num_positive + 1) / 2
    return float((u / (num_positive * (len(labels) - num_positive))).mean())


def compute_ece(confidence: Float64[np.ndarray, " n"], correct: np.ndarray, *, bins: int = 15) -> float:
    """Return the expected calibration error Σ (n_m/N)·|acc_m − conf_m| over equal-width bins, in [0, 1].

    Source: Guo et al. 2017, eq. 3; bins are (low, high], as there.
    """
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    accuracy = np.bincount(index, weights=correct, minlength=bins)
    mean_confidence = np.bincount(index, weights=confidence, minlength=bins)
    return float(np.abs(accuracy - mean_confidence).sum() / len(confidence))


def compute_quadratic_kappa(
    predicted: Int64[np.ndarray, " n"], labels: Int64[np.ndarray, " n"], *, num_classes: int
) -> float | None:
    """Return Cohen's kappa with quadratic weights, in [−1, 1]; None if chance agreement is perfect.

    Source: Cohen 1968.
    """
    observed = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = observed.reshape(num_classes, num_classes) / len(labels)
    weights = np.square(np.subtract.outer(np.arange(num_classes), np.arange(num_classes)))
    expected = np.outer(confusion.sum(axis=1), confusion.sum(axis=0))
    chance = float((weights * expected).sum())
    return None if chance == 0.0 else 1.0 - float((weights * confusion).sum()) / chance
