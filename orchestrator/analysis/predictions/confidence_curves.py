"""Numbers behind the figures of failure detection of one arm: risk over coverage, reliability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from orchestrator.analysis.failure_detection import ALL_SHIFTS, IN_DISTRIBUTION
from orchestrator.ledger.ledger import Ledger
from trainables.evaluation.classification import compute_log_softmax
from trainables.evaluation.confidence import CONFIDENCE_SCORES, compute_confidence
from trainables.evaluation.detection.risk_coverage import compute_risk_coverage_curve
from trainables.evaluation.predictions import Predictions, load_predictions
from trainables.evaluation.validation_fit import fit_temperature

#: Coverages at which the curves of models are averaged.
COVERAGES = np.linspace(0.02, 1.0, 50)
#: Equal-width bins of the confidence in reliability diagrams and histograms; as for the ECE.
BINS = 15
#: Outputs of one model that are held at a time; of larger test sets every n-th image is read. 400 MB.
MAX_OUTPUTS = 50_000_000


@dataclass
class Bins:
    """Predictions in bins of the largest probability, over all models of an arm."""

    num: Float64[np.ndarray, " bins"] = field(default_factory=lambda: np.zeros(BINS))
    right: Float64[np.ndarray, " bins"] = field(default_factory=lambda: np.zeros(BINS))
    confidence: Float64[np.ndarray, " bins"] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, confidence: Float64[np.ndarray, " n"], is_correct: Bool[np.ndarray, " n"]) -> None:
        """Count predictions, in bins (low, high] as for the ECE."""
        index = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        self.num += np.bincount(index, minlength=BINS)
        self.right += np.bincount(index, weights=is_correct, minlength=BINS)
        self.confidence += np.bincount(index, weights=confidence, minlength=BINS)


@dataclass(frozen=True)
class ConfidenceCurves:
    """Curves of one arm; conditions are the unshifted test images and all shifted ones together."""

    #: (condition, score) → risk at ``COVERAGES``, mean over models.
    risks: dict[tuple[str, str], Float64[np.ndarray, " coverages"]]
    #: (condition, whether temperature-scaled) → bins over all models.
    reliability: dict[tuple[str, bool], Bins]
    num_models: int
    #: Every n-th test image was read.
    step: int


def compute_confidence_curves(
    ledger: Ledger, signatures: Sequence[str], scores: Sequence[str]
) -> ConfidenceCurves | None:
    """Return the curves of the complete trials of one arm, None without trials.

    Args:
        ledger: ledger of the study.
        signatures: signatures of the trials.
        scores: names in ``CONFIDENCE_SCORES``; only those of logits and those that the model gives have curves.

    Raises:
        StorageError: predictions are damaged.
    """
    risks: dict[tuple[str, str], list[Float64[np.ndarray, " coverages"]]] = {}
    reliability: dict[tuple[str, bool], Bins] = {}
    step = 1
    for signature in signatures:
        folder = ledger.folder("trial", signature)
        validation, test = load_predictions(folder, "val"), load_predictions(folder, "test")
        temperature = fit_temperature(validation.logits[0].astype(np.float64), validation.labels)
        step = max(1, -(-test.logits.size // MAX_OUTPUTS))
        for condition, rows in _conditions(test):
            logits, labels = _pool(test.logits[rows, ::step], test.labels[::step])
            is_correct = logits.argmax(axis=1) == labels
            for score in scores:
                values = _read_score(score, test, rows, step, logits, temperature)
                if values is not None:
                    curve = compute_risk_coverage_curve(values, is_correct)
                    risks.setdefault((condition, score), []).append(np.interp(COVERAGES, curve.coverage, curve.risk))
            for is_scaled in (False, True):
                divisor = temperature if is_scaled else 1.0
                if divisor is not None:
                    largest = np.exp(compute_log_softmax(logits / divisor).max(axis=1))
                    reliability.setdefault((condition, is_scaled), Bins()).add(largest, is_correct)
    if not risks:
        return None
    means = {key: np.mean(values, axis=0) for key, values in risks.items() if len(values) == len(signatures)}
    return ConfidenceCurves(means, reliability, len(signatures), step)


def _conditions(test: Predictions) -> Iterator[tuple[str, slice]]:
    yield IN_DISTRIBUTION, slice(0, 1)
    if len(test.shifts) > 1:
        yield ALL_SHIFTS, slice(1, None)


def _pool(
    logits: Float[np.ndarray, "shifts n classes"], labels: Int64[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, "rows classes"], Int64[np.ndarray, " rows"]]:
    return logits.reshape(-1, logits.shape[-1]).astype(np.float64), np.tile(labels, len(logits))


def _read_score(
    name: str,
    test: Predictions,
    rows: slice,
    step: int,
    logits: Float64[np.ndarray, "rows classes"],
    temperature: float | None,
) -> Float[np.ndarray, " rows"] | None:
    """Return a score of the pooled predictions, None if it comes from features or lacks a temperature."""
    score = CONFIDENCE_SCORES[name]
    if score.function is not None:
        if score.is_scaled and temperature is None:
            return None
        return compute_confidence(name, logits, temperature=temperature)
    stored = score.needs.removeprefix("scores/")
    return test.scores[stored][rows, ::step].reshape(-1) if stored in test.scores else None


def select_curves(scores: Sequence[str], leaders: Mapping[str, str], *, most: int = 6) -> list[str]:
    """Return the scores to draw: those that lead under some condition first, then in the given order."""
    return list(dict.fromkeys([*leaders.values(), *scores]))[:most]
