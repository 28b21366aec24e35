"""Operating points as a clinic would deploy them: a threshold fixed on validation, below which images are referred.

A confidence becomes a probability of being right by Platt scaling, also on validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped

from trainables.errors import DataError
from trainables.evaluation.detection.risk_coverage import count_errors

#: Newton's method ends at steps below this share of the parameters, and at the latest after so many.
_STEP, _MAX_STEPS = 1e-12, 100


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold fixed on validation: predictions with at least this confidence are kept, the others referred."""

    threshold: float
    #: Share of validation images that are kept, and share of wrong predictions among them.
    coverage: float
    risk: float
    num_images: int


@dataclass(frozen=True)
class SelectiveRisk:
    """Coverage and risk of an operating point on a set. ``risk`` is None where nothing is kept."""

    coverage: float
    risk: float | None
    num_kept: int
    num_errors: int


def fix_coverage(
    confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"], coverage: float
) -> OperatingPoint:
    """Return the highest threshold that keeps at least this share of the validation images.

    More are kept where images of equal confidence lie at the threshold.

    Args:
        confidence: confidences on validation.
        is_correct: whether each prediction on validation is right.
        coverage: share to keep, in (0, 1]; .8 refers one image in five.

    Raises:
        DataError: if arrays do not fit (``count_errors``), or ``coverage`` is not in (0, 1].
    """
    if not 0 < coverage <= 1:
        raise DataError(f"fixed a threshold at a coverage of {coverage:g}; expected a share in (0, 1]")
    counts = count_errors(confidence, is_correct)
    # Rounded, so that .7 of 10 images is 7 of them and not a little more.
    chosen = int(np.searchsorted(counts.kept, np.round(coverage * len(confidence), 9)))
    return _build_point(confidence, counts.kept[chosen], counts.errors[chosen])


def fix_risk(
    confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"], risk: float
) -> OperatingPoint | None:
    """Return the lowest threshold at which at most this share of the kept validation images is wrong, None if none is.

    It is what was measured on validation, not a bound on what follows: with few images it is optimistic.

    Args:
        confidence: confidences on validation.
        is_correct: whether each prediction on validation is right.
        risk: largest share of wrong predictions among the kept, in [0, 1].

    Raises:
        DataError: if arrays do not fit (``count_errors``), or ``risk`` is not in [0, 1].
    """
    if not 0 <= risk <= 1:
        raise DataError(f"fixed a threshold at a risk of {risk:g}; expected a share in [0, 1]")
    counts = count_errors(confidence, is_correct)
    allowed = np.flatnonzero(counts.errors <= np.round(risk * counts.kept, 9))
    if not len(allowed):
        return None
    return _build_point(confidence, counts.kept[allowed[-1]], counts.errors[allowed[-1]])


def _build_point(confidence: Shaped[np.ndarray, " n"], kept: np.integer, errors: np.integer) -> OperatingPoint:
    threshold = np.partition(confidence, len(confidence) - kept)[len(confidence) - kept]
    return OperatingPoint(float(threshold), int(kept) / len(confidence), int(errors) / int(kept), len(confidence))


def compute_selective_risk(
    point: OperatingPoint, confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"]
) -> SelectiveRisk:
    """Return what an operating point of validation keeps of another set, and how much of it is wrong.

    Args:
        point: threshold fixed on validation.
        confidence: confidences on the set, of the same score and model.
        is_correct: whether each prediction on the set is right.

    Raises:
        DataError: if arrays do not fit (``count_errors``).
    """
    count_errors(confidence, is_correct)
    is_kept = confidence >= point.threshold
    kept, errors = int(is_kept.sum()), int((is_kept & ~is_correct.astype(bool)).sum())
    return SelectiveRisk(kept / len(confidence), errors / kept if kept else None, kept, errors)


@dataclass(frozen=True)
class PlattScaling:
    """A confidence c as a probability of being right, 1 / (1 + exp(−(slope·c + intercept))).

    A slope of 0 or less says that the score does not rank right predictions first on validation.
    """

    slope: float
    intercept: float

    def apply(self, confidence: Shaped[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """Return probabilities of being right."""
        return 0.5 * (1 + np.tanh((self.slope * confidence.astype(np.float64) + self.intercept) / 2))


def fit_platt_scaling(
    confidence: Shaped[np.ndarray, " n"], is_correct: Shaped[np.ndarray, " n"]
) -> tuple[PlattScaling | None, str]:
    """Return the scaling that makes the log loss on validation smallest, and "" or the reason why there is none.

    Targets are (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2) instead of 1 and 0, so that it exists for any ranking.

    Args:
        confidence: confidences on validation, finite.
        is_correct: whether each prediction on validation is right.

    Raises:
        DataError: if arrays do not fit (``count_errors``), or a confidence is infinite.

    Source: Platt 1999, section 2.2.
    """
    counts = count_errors(confidence, is_correct)
    values, correct = confidence.astype(np.float64), is_correct.astype(bool)
    infinite = int((~np.isfinite(values)).sum())
    if infinite:
        raise DataError(f"fitted Platt scaling and found {infinite} infinite confidences; expected finite ones")
    if counts.num_errors in (0, len(values)):
        kind = "wrong" if counts.num_errors == 0 else "right"
        return None, f"none of the {len(values)} predictions on validation is {kind}"
    centre, scale = values.mean(), values.std()
    if scale == 0:
        return None, f"all {len(values)} confidences on validation are equal"
    num_right = int(correct.sum())
    target = np.where(correct, (num_right + 1) / (num_right + 2), 1 / (len(values) - num_right + 2))
    weights = _fit_logistic((values - centre) / scale, target)
    slope = float(weights[1] / scale)
    return PlattScaling(slope, float(weights[0] - slope * centre)), ""


def _fit_logistic(values: Float64[np.ndarray, " n"], target: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " two"]:
    """Return intercept and slope of the logistic regression on targets in (0, 1), by Newton's method with halving."""
    design = np.stack([np.ones_like(values), values], axis=1)
    weights, loss = np.zeros(2), np.inf
    step = np.zeros(2)
    for _ in range(_MAX_STEPS):
        outputs = design @ (weights + step)
        new = float(np.logaddexp(0, outputs).sum() - target @ outputs)
        if new > loss:
            step /= 2
        else:
            weights, loss = weights + step, new
            probability = 0.5 * (1 + np.tanh(outputs / 2))
            hessian = (design * (probability * (1 - probability))[:, None]).T @ design
            step = np.linalg.solve(hessian, design.T @ (target - probability))
        if np.abs(step).max() <= _STEP * max(1.0, np.abs(weights).max()):
            break
    return weights
