"""Scores of the cases of a segmentation: those of its layers are added to those of its pixels, and all are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Float64

from trainables.errors import DataError
from trainables.evaluation.detection.summary import DetectionSummary
from trainables.evaluation.segmentation.stored import SegmentedSet
from trainables.evaluation.segmentation_ood.detectors import DETECTORS, score_sets
from trainables.evaluation.segmentation_ood.summary import JudgedCases, summarise_segmentation_detection
from trainables.evaluation_config import Role
from trainables.models.segmenter import BOTTLENECK


def add_detectors(
    sets: Mapping[str, SegmentedSet], layers: Sequence[str]
) -> tuple[dict[str, SegmentedSet], dict[str, str]]:
    """Return the sets with the scores of all detectors of their unshifted images, and why some have none.

    Args:
        sets: evaluated sets by name, "train" and "val" among them.
        layers: recorded layers beside the bottleneck; with some, detectors compare each of them, and all together.
    """
    names = [*DETECTORS]
    if layers:
        names += [f"{name}/{layer}" for name in ("spectral_signature",) for layer in (*layers, "all")]
    recorded = {name: each.layers for name, each in sets.items()}
    found: dict[str, dict[str, Float64[np.ndarray, " n"]]] = {}
    undefined: dict[str, str] = {}
    for name in names:
        try:
            found[name] = score_sets(name, recorded, bottleneck=BOTTLENECK)
        except DataError as error:
            undefined[name] = str(error)
    return {
        name: replace(
            each,
            scores={
                **each.scores,
                **{key: _put_first(scores[name], len(each.shifts)) for key, scores in found.items() if name in scores},
            },
        )
        for name, each in sets.items()
    }, undefined


def _put_first(values: Float64[np.ndarray, " n"], num_shifts: int) -> Float32[np.ndarray, "shifts n"]:
    """Return values of the unshifted images as a row per shift; layers are recorded of unshifted images alone."""
    rows = np.full((num_shifts, len(values)), np.nan, dtype=np.float32)
    rows[0] = values
    return rows


def measure_metric(cases: SegmentedSet, metric: str, row: int = 0) -> Float64[np.ndarray, " n"]:
    """Return a metric of every case, mean over the classes that it or its prediction has; NaN without any.

    Args:
        cases: evaluation on one set, with targets.
        metric: key of ``cases.metrics``.
        row: which shift; 0 is none.
    """
    values = cases.metrics[metric][row].astype(np.float64)
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0.0).sum(1), defined.sum(1)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def measure_dice(cases: SegmentedSet, row: int = 0) -> Float64[np.ndarray, " n"]:
    """Return Dice of every case, see ``measure_metric``."""
    return measure_metric(cases, "dice", row)


def judge_sets(sets: Mapping[str, SegmentedSet], roles: Mapping[str, Role]) -> DetectionSummary:
    """Return the detection metrics of all scores, in the form of those of a classifier.

    Args:
        sets: evaluated sets by name; those of training images are not judged.
        roles: role of every set beside val and test.
    """
    judged: list[JudgedCases] = []
    for name, each in sets.items():
        if name == "train":
            continue
        for row, shift in enumerate(each.shifts):
            confidences = {
                key: v[row].astype(np.float64) for key, v in each.scores.items() if not np.isnan(v[row]).any()
            }
            dice = measure_dice(each, row) if each.metrics else None
            judged.append(JudgedCases(name, confidences, dice, shift))
    return summarise_segmentation_detection(judged, roles=roles)
