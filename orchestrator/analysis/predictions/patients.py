"""Difference of two groups of arms over replicates and patients, from the predictions that their trials have stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int64

from orchestrator.ledger.ledger import Ledger
from orchestrator.statistics.patient_resampling import (
    Resamples,
    draw_resamples,
    resample_auroc,
    resample_balanced_accuracy,
)
from orchestrator.statistics.patient_variance import (
    Components,
    PatientInterval,
    compute_interval,
    estimate_components_of_means,
    estimate_components_of_resamples,
    is_covered,
)
from trainables.errors import StudyError
from trainables.evaluation.classification import compute_one_vs_rest
from trainables.evaluation.predictions import Predictions, load_predictions
from trainables.storage.completeness import RESULT

#: "<shift>/<severity>" → weight, of the set as it is.
UNSHIFTED: Mapping[str, float] = {"identity/0": 1.0}
#: Resamples for a variance; its square root then has a standard error of 1.6 %.
NUM_RESAMPLES = 2_000
#: Counts of patients held at once: 128 MiB.
_CHUNK = 32_000_000

#: Per replicate, the signatures of one side's complete trials; a replicate's value is their mean.
Side = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Measurement:
    """A number of a trial: the weighted mean of one metric over shifts of one set."""

    #: accuracy, balanced_accuracy or auroc; no other has an interval.
    metric: str
    #: ``test`` or an external set.
    set_name: str = "test"
    #: "<shift>/<severity>" → weight.
    cells: Mapping[str, float] = field(default_factory=lambda: UNSHIFTED)

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the cells, which add up to 1."""
        total = sum(self.cells.values())
        return {cell: weight / total for cell, weight in self.cells.items()}


@dataclass(frozen=True)
class PatientAssessment:
    """The interval of a difference over replicates and patients, or the reason why there is none."""

    interval: PatientInterval | None
    problem: str | None
    num_replicates: int
    #: Patients (groups) of the set; None before they are known.
    num_patients: int | None = None


def assess_patients(
    ledger: Ledger,
    treatment: Side,
    control: Side,
    measurement: Measurement,
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> PatientAssessment:
    """Return the interval of mean(treatment) − mean(control) over replicates and patients, or why there is none.

    Args:
        ledger: of the study.
        treatment: one side's trials.
        control: the other side's, with as many replicates in the same order.
        measurement: the number that is compared.
        seed: seed of the resampling of patients.
        num_resamples: number of resamples of metrics that are no means over images.

    Raises:
        StudyError: a trial is not complete.
        StorageError: predictions are missing or damaged.
        ValueError: the sides have different numbers of replicates, or a replicate has no trial.
    """
    num_replicates = len(treatment)
    if len(control) != num_replicates or not all(map(len, (*treatment, *control))):
        raise ValueError(f"got {num_replicates} and {len(control)} replicates; expected as many, each with a trial")
    signatures = sorted({signature for side in (treatment, control) for trials in side for signature in trials})
    stored = _load(ledger, signatures, measurement.set_name)
    problem = stored.find_problem(measurement.metric)
    if problem is not None:
        return PatientAssessment(None, f"no interval over patients: {problem}", num_replicates)
    size = {"num_replicates": num_replicates, "num_patients": stored.num_patients, "num_rarest": stored.num_rarest}
    if not is_covered(measurement.metric, **size):
        problem = (
            f"no interval over patients: for {measurement.metric} with {num_replicates} replicates and "
            f"{stored.num_patients} patients, {stored.num_rarest} of the rarest class, it is not known to hold the "
            "truth in 93 to 97 % of studies"
        )
        return PatientAssessment(None, problem, num_replicates, stored.num_patients)
    # Replicates × trials: the mean of one side minus the mean of the other.
    weights = _weigh(treatment, signatures) - _weigh(control, signatures)
    if measurement.metric == "accuracy":
        correct = sum(share * stored.correct(cell) for cell, share in measurement.shares.items())
        components = estimate_components_of_means(weights @ correct, stored.patients)
    else:
        components = _resample(stored, weights, measurement, seed=seed, num_resamples=num_resamples)
    return PatientAssessment(compute_interval(components), None, num_replicates, stored.num_patients)


@dataclass(frozen=True)
class _Stored:
    """Predictions of several trials on one set."""

    trials: Sequence[Predictions]

    @property
    def labels(self) -> Int64[np.ndarray, " images"]:
        return self.trials[0].labels

    @property
    def patients(self) -> Int64[np.ndarray, " images"]:
        groups = self.trials[0].groups
        assert groups is not None  # ``find_problem`` has said so otherwise
        return groups

    @property
    def num_patients(self) -> int:
        return int(self.patients.max()) + 1

    @property
    def num_rarest(self) -> int:
        """Number of patients with an image of the class that fewest patients have."""
        return min(len(np.unique(self.patients[self.labels == label])) for label in np.unique(self.labels))

    def find_problem(self, metric: str) -> str | None:
        """Return why there can be no interval, None if there can."""
        first = self.trials[0]
        if any(each.groups is None for each in self.trials):
            return "the predictions were stored without the patient of each image"
        for name in ("ids", "labels", "groups"):
            if not all(np.array_equal(getattr(each, name), getattr(first, name)) for each in self.trials):
                return "the trials were tested on different images"
        if self.num_patients < 2:
            return "all images are of one patient"
        if metric == "auroc" and len(np.unique(self.labels)) < first.logits.shape[2]:
            return "a class has no image"
        return None

    def correct(self, cell: str) -> Bool[np.ndarray, "trials images"]:
        """Return whether each prediction is right."""
        return np.stack([each.of(cell).argmax(axis=1) == self.labels for each in self.trials])

    def resample(self, drawn: Resamples, cell: str, metric: str) -> Float[np.ndarray, "trials resamples"]:
        """Return balanced accuracy or AUROC on every resample."""
        if metric == "balanced_accuracy":
            return resample_balanced_accuracy(drawn, self.correct(cell), self.labels).astype(np.float64)
        scores = np.stack([compute_one_vs_rest(each.of(cell).astype(np.float64)) for each in self.trials])
        classes = [1] if scores.shape[2] == 2 else range(scores.shape[2])
        areas = np.stack([resample_auroc(drawn, scores[:, :, label], self.labels == label) for label in classes])
        mean: Float[np.ndarray, "trials resamples"] = areas.mean(axis=0)
        return mean


def _load(ledger: Ledger, signatures: Sequence[str], set_name: str) -> _Stored:
    folders = [ledger.folder("trial", signature) for signature in signatures]
    for signature, folder in zip(signatures, folders, strict=True):
        if not folder.exists(RESULT):
            raise StudyError(
                f"asked for the predictions of trial {signature}, which is not complete; run the study first"
            )
    return _Stored([load_predictions(folder, set_name) for folder in folders])


def _weigh(side: Side, signatures: Sequence[str]) -> Float[np.ndarray, "replicates trials"]:
    position = {signature: number for number, signature in enumerate(signatures)}
    weights = np.zeros((len(side), len(signatures)))
    for row, trials in zip(weights, side, strict=True):
        for signature in trials:
            row[position[signature]] += 1 / len(trials)
    return weights


def _resample(
    stored: _Stored,
    weights: Float[np.ndarray, "replicates trials"],
    measurement: Measurement,
    *,
    seed: int,
    num_resamples: int,
) -> Components:
    """Return the components of a metric that is no mean over images."""
    parts = []
    largest = max(1, _CHUNK // stored.num_patients)
    for number, start in enumerate(range(0, num_resamples, largest)):
        size = min(largest, num_resamples - start)
        drawn = draw_resamples(stored.patients, stored.labels, seed=(seed, number), num_resamples=size)
        cells = [
            share * (weights @ stored.resample(drawn, cell, measurement.metric))
            for cell, share in measurement.shares.items()
        ]
        parts.append(np.sum(cells, axis=0))
    # Column 0 of every part is the metric of the patients as they are.
    resampled = np.concatenate([part[:, 1:] for part in parts], axis=1)
    return estimate_components_of_resamples(parts[0][:, 0], resampled, stored.num_patients)
