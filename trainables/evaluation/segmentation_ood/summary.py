"""Failure and out-of-distribution detection of segmentations: every score on every set, joined with the cases' Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from trainables.errors import DataError
from trainables.evaluation.balanced import UNSHIFTED
from trainables.evaluation.detection.risk_coverage import compute_risk_metrics
from trainables.evaluation.detection.summary import DetectionSummary, add_ood, describe_row, summarise_failures
from trainables.evaluation_config import Role

Values = Float[np.ndarray, " n"]
_UNSHIFTED = f"{UNSHIFTED}/0"


@dataclass(frozen=True)
class JudgedCases:
    """Scores of the cases of one set under one shift, and how well they were segmented.

    Attributes:
        name: name of the set: val, test, or that of an external or foreign one.
        confidences: score → confidence of every case: ``msr/foreground``, ``spectral_signature``, ``pairwise_dice``.
        dice: Dice of every case, NaN where it has none: a foreign image, or no structure in target and prediction;
            None: no case has one.
        shift: name of the shift with its severity.
    """

    name: str
    confidences: Mapping[str, Values]
    dice: Values | None = None
    shift: str = _UNSHIFTED


def summarise_segmentation_detection(cases: Sequence[JudgedCases], *, roles: Mapping[str, Role]) -> DetectionSummary:
    """Return the detection metrics of a segmentation model, in the form of those of a classifier.

    Failures: AURC and AUGRC with the risk 1 − Dice, and Spearman's correlation of score and Dice, over the cases that
    have a Dice. Out of distribution: metrics between the unshifted test set and every other, and the shares on either
    side of the threshold of validation. A slash in the name of a score is a dot in the names of metrics.

    Args:
        cases: sets and shifts, val and test without a shift among them.
        roles: role of every set beside val and test: covariate, near or far.

    Raises:
        DataError: if val or test is missing, or a score is NaN.
    """
    by_key = {(each.name, each.shift): each for each in cases}
    for needed in ("val", "test"):
        if (needed, _UNSHIFTED) not in by_key:
            raise DataError(f"judged scores of segmentations without the set {needed}; expected it, unshifted")
    shifts: dict[str, list[str]] = {}
    for name, shift in sorted(by_key, key=lambda key: key[1] != _UNSHIFTED):  # the unshifted first
        shifts.setdefault(name, []).append(shift)
    summary = DetectionSummary()
    for score in dict.fromkeys(score for each in cases for score in each.confidences):
        key = score.replace("/", ".")
        lacking = [name for name in ("val", "test") if score not in by_key[name, _UNSHIFTED].confidences]
        if lacking:
            summary.undefined[key] = f"{' and '.join(lacking)} have no such score"
            continue
        found = {name: [by_key[name, shift].confidences.get(score) for shift in own] for name, own in shifts.items()}
        _add_failures(summary, key, score, cases)
        add_ood(summary, key, found, shifts, roles)
    return summary


def _add_failures(summary: DetectionSummary, key: str, score: str, cases: Sequence[JudgedCases]) -> None:
    """Add a score's rows on the sets whose cases have a Dice, and its headline numbers."""
    rows: list[dict[str, Any]] = []
    for each in cases:
        if each.dice is None or score not in each.confidences:
            continue
        has_dice = ~np.isnan(each.dice)
        confidence, dice = each.confidences[score][has_dice], each.dice[has_dice]
        if len(dice):
            rows.append(describe_row(key, each.name, each.shift))
            rows[-1] |= {"num_images": len(dice), "mean_dice": float(dice.mean())}
            rows[-1]["metrics"] = compute_risk_metrics(confidence, 1 - dice).values | _correlate(confidence, dice)
    summary.failures += rows
    judged = {row["set"] for row in rows if row["severity"] == 0}
    if {"val", "test"} <= judged:
        summary.metrics |= summarise_failures(key, rows)
    else:
        summary.undefined[key] = "failures: no case of val, or none of test, has a Dice"


def _correlate(confidence: Values, dice: Values) -> dict[str, float]:
    """Return Spearman's correlation, nothing where one of the two does not vary."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) for values in (confidence, dice)]
    if any(each.min() == each.max() for each in ranks):
        return {}
    return {"spearman": float(np.corrcoef(*ranks)[0, 1])}
