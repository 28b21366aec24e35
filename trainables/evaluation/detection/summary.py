"""Failure and out-of-distribution detection of one trial: every confidence score on every set, from stored predictions.

Nothing here needs the network: scores are added to a finished trial as they are computed at its end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from trainables.errors import ConfigError, DataError
from trainables.evaluation.balanced import UNSHIFTED
from trainables.evaluation.classification import compute_ece
from trainables.evaluation.confidence import CONFIDENCE_SCORES, compute_confidence
from trainables.evaluation.detection.operating_points import (
    OperatingPoint,
    PlattScaling,
    compute_selective_risk,
    fit_platt_scaling,
    fix_coverage,
    fix_risk,
)
from trainables.evaluation.detection.risk_coverage import compute_failure_metrics, compute_ood_metrics
from trainables.evaluation.metrics import HEADLINE_FAILURE, HEADLINE_OOD, name_failure, name_ood
from trainables.evaluation.ood import (
    FOREIGN,
    JudgedSet,
    NearestReference,
    TrainingSplit,
    compute_near_far,
    fit_combination,
    fit_detector,
    fit_layer_ensemble,
    fix_rejection,
    measure_rejection,
)
from trainables.evaluation.predictions import Predictions, load_predictions
from trainables.evaluation.shift_means import average_shifts
from trainables.evaluation.validation_fit import fit_on_validation
from trainables.evaluation_config import Role
from trainables.storage.completeness import DETECTION
from trainables.storage.folder import Folder

#: Bins of ``failure_ece``; those of the paper on silent failures (Bungert et al. 2023).
_ECE_BINS = 20


@dataclass
class DetectionSummary:
    """Detection metrics of one trial."""

    #: Name → headline number.
    metrics: dict[str, float] = field(default_factory=dict)
    #: One per score × labelled set × shift × severity.
    failures: list[dict[str, Any]] = field(default_factory=list)
    #: One per score × set (or shifted test set): metrics between the unshifted test set and it.
    ood: list[dict[str, Any]] = field(default_factory=list)
    #: Score → why it is undefined.
    undefined: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the rows as JSON values, a list per column, and the reasons."""
        return {"failures": _pack(self.failures), "ood": _pack(self.ood), "undefined": self.undefined}


def _pack(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return column → values of rows whose metrics become columns of their own; None where one is undefined."""
    flat = [{key: value for key, value in row.items() if key != "metrics"} | row["metrics"] for row in rows]
    return {name: [row.get(name) for row in flat] for name in dict.fromkeys(name for row in flat for name in row)}


def save_detection(folder: Folder, summary: DetectionSummary) -> None:
    """Write ``detection.json``: the rows of ``summary``; its headline numbers belong to ``result.json``."""
    folder.write(DETECTION, json.dumps(summary.as_json(), allow_nan=False, separators=(",", ":")).encode())


def check_scores(names: Iterable[str]) -> None:
    """Check that confidence scores exist, and that one trial can have them.

    Raises:
        ConfigError: there is no such score, or it needs several models.
    """
    known = [name for name, score in CONFIDENCE_SCORES.items() if score.needs != "members"]
    for name in names:
        if name in known or name.startswith(FOREIGN):
            continue
        reason = "is computed from several models, in the report" if name in CONFIDENCE_SCORES else "does not exist"
        raise ConfigError(
            f"evaluation.confidence_scores: found {name!r}, which {reason}; expected some of {', '.join(known)}, or "
            f"{FOREIGN}<class>"
        )


def summarise_detection(
    folder: Folder, names: Sequence[str], *, scores: Sequence[str], roles: Mapping[str, Role]
) -> DetectionSummary:
    """Return the detection metrics of a trial, computed from its stored predictions alone.

    Args:
        folder: folder of the trial.
        names: names of its sets: val, test, external and foreign ones, train if it is there.
        scores: names in ``CONFIDENCE_SCORES``, without those of several models. What the model itself gives
            (``Predictions.scores``) is always included.
        roles: role of every set beside train, val and test: covariate, near or far.
    """
    sets = {name: load_predictions(folder, name) for name in names}
    summary = DetectionSummary()
    stored = {f"scores/{name}" for name in sets["val"].scores}
    given = [name for name, score in CONFIDENCE_SCORES.items() if score.needs in stored]
    for name in dict.fromkeys([*scores, *given]):
        key = name.replace("/", ".")  # a slash would be a level of metric names
        try:
            found = _measure(name, sets)
        except DataError as error:  # too few training images for a detector, for example
            found = str(error)
        if isinstance(found, str):
            summary.undefined[key] = found
            continue
        _add_failures(summary, key, sets, found)
        add_ood(summary, key, found, {each: predictions.shifts for each, predictions in sets.items()}, roles)
    return summary


#: Set → confidences of each of its shifts, the first unshifted; None where features are not stored.
Values = Float[np.ndarray, " n"]
#: What is stored of a layer.
Layer = Float[np.ndarray, "_ _"]
Confidences = dict[str, list[Values | None]]


def _measure(name: str, sets: Mapping[str, Predictions]) -> Confidences | str:
    """Return a score on every set but train, or why there is none."""
    others = {each: found for each, found in sets.items() if each != "train"}
    needs = "features" if name.startswith(FOREIGN) else CONFIDENCE_SCORES[name].needs
    if needs == "logits":
        return _measure_logits(name, sets["val"], others)
    if needs == "features":
        return _measure_features(name, sets, others)
    if needs in ("layers", "images"):
        return _measure_layers(name, sets, others)
    stored = needs.removeprefix("scores/")
    if any(stored not in found.scores for found in others.values()):
        return f"the model gives no {needs}"
    return {each: list(found.scores[stored]) for each, found in others.items()}


def _measure_logits(name: str, validation: Predictions, others: Mapping[str, Predictions]) -> Confidences | str:
    temperature = None
    if CONFIDENCE_SCORES[name].is_scaled:
        fit = fit_on_validation(validation.logits[0], validation.labels)
        if fit.temperature is None:
            return fit.undefined["temperature"]
        temperature = fit.temperature
    return {
        each: list(compute_confidence(name, found.logits, temperature=temperature)) for each, found in others.items()
    }


def _measure_features(
    name: str, sets: Mapping[str, Predictions], others: Mapping[str, Predictions]
) -> Confidences | str:
    train = sets.get("train")
    if train is None or train.features is None:
        return "no features of the training images are stored: add train to evaluation.store_features"
    if any(found.features is None for found in others.values()):
        lacking = ", ".join(each for each, found in others.items() if found.features is None)
        return f"no features of {lacking} are stored: add them to evaluation.store_features"
    detector = fit_detector(name, TrainingSplit(train.features, train.labels, train.logits[0]))
    found: Confidences = {}
    for each, predictions in others.items():
        rows = ((key, predictions.features_of(key)) for key in predictions.shifts)
        found[each] = [None if features is None else detector(features, predictions.of(key)) for key, features in rows]
    return found


def _add_failures(summary: DetectionSummary, name: str, sets: Mapping[str, Predictions], found: Confidences) -> None:
    """Add a score's rows on the sets with labels, and its headline numbers."""
    rows: list[dict[str, Any]] = []
    fit = _fit_on_validation(sets["val"], found["val"][0])
    for each, confidences in found.items():
        predictions = sets[each]
        if (predictions.labels < 0).any():
            continue
        correct = predictions.logits.argmax(axis=2) == predictions.labels
        for key, values, is_correct in zip(predictions.shifts, confidences, correct, strict=True):
            if values is None:
                continue
            metrics = compute_failure_metrics(values, is_correct)
            rows.append(
                describe_row(name, each, key) | {"num_images": len(values), "num_errors": int((~is_correct).sum())}
            )
            rows[-1]["metrics"] = metrics.values | _measure_fixed(fit, values, is_correct)
    summary.failures += rows
    summary.metrics |= summarise_failures(name, rows)


#: Score → kind of arrays that it compares.
_LAYER_ARRAYS = {
    "mahalanobis_layers": "pooled/",
    "spectral_signature": "spectral/",
    "intensity_histogram": "histogram",
}


def _measure_layers(name: str, sets: Mapping[str, Predictions], others: Mapping[str, Predictions]) -> Confidences | str:
    """Return a score of layers, or of pixels, on every set but train, or why there is none."""
    kind, train, validation = _LAYER_ARRAYS[name], sets.get("train"), sets["val"]
    keys = [] if train is None else [key for key in train.layers if key.startswith(kind)]
    if train is None or not keys:
        named = "evaluation.store_layers" if kind.endswith("/") else "evaluation.store_features"
        return f"nothing of the training images is stored for it: {named} lacks it"
    if any(key not in found.layers for found in others.values() for key in keys):
        return "some sets have nothing stored for it: add them to evaluation.store_features"
    own = [validation.layers[key][0] for key in keys]
    score: Callable[[Sequence[Layer]], Values]
    if name == "mahalanobis_layers":
        training = [[(train.layers[key][0], train.labels)] for key in keys]
        score = fit_layer_ensemble(training, own, num_classes=train.logits.shape[-1]).score
    else:
        score = _fit_nearest_of_layers([train.layers[key][0] for key in keys], own)
    found: Confidences = {}
    for each, predictions in others.items():
        stored = [predictions.layers[key] for key in keys]
        found[each] = [
            score([layer[row] for layer in stored]) if row < len(stored[0]) else None
            for row in range(len(predictions.shifts))
        ]
    return found


def _fit_nearest_of_layers(
    training: Sequence[Layer], validation: Sequence[Layer]
) -> Callable[[Sequence[Layer]], Values]:
    """Return the distance to the nearest training image as a function of layers, of several their combination."""
    references = [NearestReference(layer) for layer in training]

    def measure(layers: Sequence[Layer]) -> Float[np.ndarray, "layers n"]:
        return np.stack([reference.score(layer) for reference, layer in zip(references, layers, strict=True)])

    if len(references) == 1:
        return lambda layers: measure(layers)[0]
    combination = fit_combination(measure(validation))
    return lambda layers: combination.apply(measure(layers))


def _fit_on_validation(
    validation: Predictions, confidence: Values | None
) -> tuple[dict[str, OperatingPoint | None], PlattScaling | None]:
    """Return the operating points by the end of their metrics' names, and the scaling to probabilities."""
    assert confidence is not None
    is_correct = validation.logits[0].argmax(axis=1) == validation.labels
    points = {
        "coverage_80": fix_coverage(confidence, is_correct, 0.8),
        "risk_5": fix_risk(confidence, is_correct, 0.05),
    }
    return points, fit_platt_scaling(confidence, is_correct)[0]


def _measure_fixed(
    fit: tuple[dict[str, OperatingPoint | None], PlattScaling | None],
    confidence: Values,
    is_correct: Bool[np.ndarray, " n"],
) -> dict[str, float]:
    """Return the metrics of ``SELECTIVE_METRICS`` that are defined."""
    points, scaling = fit
    found: dict[str, float] = {}
    for suffix, point in points.items():
        if point is None:
            continue
        selective = compute_selective_risk(point, confidence, is_correct)
        found[f"coverage_at_{suffix}"] = selective.coverage
        if selective.risk is not None:
            found[f"risk_at_{suffix}"] = selective.risk
    if scaling is not None:
        found["failure_ece"] = compute_ece(scaling.apply(confidence), is_correct, bins=_ECE_BINS)
    return found


def describe_row(name: str, each: str, key: str) -> dict[str, Any]:
    """Return the first columns of a row: score, set, shift and severity of ``key``, such as ``gaussian_noise/3``."""
    shift, severity = key.rsplit("/", 1)
    return {"score": name, "set": each, "shift": shift, "severity": int(severity)}


def summarise_failures(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the headline numbers of a score: in distribution, over shifts, over external sets, on validation.

    Args:
        name: score, as in names of metrics.
        rows: its rows (``describe_row``) with metrics, among them those of the unshifted val and test.
    """
    value = {(row["set"], row["shift"], row["severity"]): row["metrics"][HEADLINE_FAILURE] for row in rows}
    headline = {
        f"validation/{name_failure(name, HEADLINE_FAILURE)}": value["val", UNSHIFTED, 0],
        name_failure(name, HEADLINE_FAILURE): value["test", UNSHIFTED, 0],
    }
    shifted = [
        (row["shift"], row["metrics"][HEADLINE_FAILURE]) for row in rows if row["set"] == "test" and row["severity"]
    ]
    if shifted:
        means = average_shifts(np.array([[number for _, number in shifted]]), [shift for shift, _ in shifted])
        headline[name_failure(name, HEADLINE_FAILURE, "mean_shifted")] = float(means.mean[0])
    external = [number for (each, _, _), number in value.items() if each not in ("val", "test")]
    if external:
        headline[name_failure(name, HEADLINE_FAILURE, "mean_external")] = float(np.mean(external))
    return headline


def add_ood(
    summary: DetectionSummary,
    name: str,
    found: Mapping[str, Sequence[Values | None]],
    shifts: Mapping[str, Sequence[str]],
    roles: Mapping[str, Role],
) -> None:
    """Add a score's rows between the unshifted test set and every other, and its headline numbers.

    Args:
        summary: summary that is added to.
        name: score, as in names of metrics.
        found: set → confidences under each of its shifts, the first unshifted; "val" and "test" are among them.
        shifts: set → names of its shifts with their severities.
        roles: role of every set beside val and test.
    """
    inside, validation = found["test"][0], found["val"][0]
    judged: dict[str, JudgedSet] = {}
    assert inside is not None
    assert validation is not None
    threshold = fix_rejection(validation)
    for each, confidences in found.items():
        for key, values in zip(shifts[each], confidences, strict=True):
            if values is None or each == "val" or (each == "test" and key == f"{UNSHIFTED}/0"):
                continue
            role: Role = "covariate" if each == "test" else roles[each]
            judged[f"{each} {key}"] = JudgedSet(role, values)
            metrics = compute_ood_metrics(inside, values).values
            row = describe_row(name, each, key) | {"role": role}
            summary.ood.append(row | {"metrics": metrics | measure_rejection(threshold, inside, values)})
            if each != "test":
                summary.metrics[name_ood(name, each, HEADLINE_OOD)] = metrics[HEADLINE_OOD]
    for key, value in compute_near_far(inside, judged).values.items():
        group, _, metric = key.partition("/")
        if metric == HEADLINE_OOD:
            summary.metrics[name_ood(name, group, metric)] = value
