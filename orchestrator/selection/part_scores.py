"""Scores of an arm on parts of the test set, from stored predictions: per site and per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from orchestrator.statistics.intervals import Summary, summarise


@dataclass(frozen=True)
class PartScore:
    """Part of the unshifted test set with the arm's scores on it, over its complete replicates."""

    name: str
    num_images: int
    accuracy: Summary
    #: None for a class, where it equals the accuracy.
    balanced_accuracy: Summary | None = None


@dataclass(frozen=True)
class PartScores:
    """Scores per site and per class of the test set."""

    #: Empty if fewer than two sites are known.
    sites: tuple[PartScore, ...]
    #: The accuracy of a class is its recall (sensitivity).
    classes: tuple[PartScore, ...]


def score_parts(ledger: Ledger, results: Results, arm: str, sites: np.ndarray, classes: Sequence[str]) -> PartScores:
    """Return the scores of ``arm`` per site and per class, over all its complete replicates.

    Args:
        ledger: ledger of the study.
        results: results of the study.
        arm: name of the arm.
        sites: site of every test image, in order; "" if unknown.
        classes: names in the order of the labels.

    Raises:
        StorageError: stored predictions are missing or damaged.
    """
    from trainables.evaluation.classification import compute_balanced_accuracy
    from trainables.evaluation.predictions import load_predictions

    rows = results.complete
    signatures = rows[rows["name"] == arm]["signature"]
    every = [load_predictions(ledger.folder("trial", signature), "test") for signature in signatures]
    labels = every[0].labels
    predicted = [each.of("identity/0").argmax(axis=1) for each in every]

    def score(name: str, chosen: np.ndarray, *, is_class: bool) -> PartScore:
        accuracy = summarise([float((each[chosen] == labels[chosen]).mean()) for each in predicted])
        if is_class:
            return PartScore(name, int(chosen.sum()), accuracy)
        balanced = summarise([compute_balanced_accuracy(each[chosen], labels[chosen]) for each in predicted])
        return PartScore(name, int(chosen.sum()), accuracy, balanced)

    known = sorted(set(sites.tolist()) - {""})
    present = [index for index in range(len(classes)) if (labels == index).any()]
    return PartScores(
        sites=tuple(score(site, sites == site, is_class=False) for site in known) if len(known) > 1 else (),
        classes=tuple(score(classes[index], labels == index, is_class=True) for index in present),
    )
