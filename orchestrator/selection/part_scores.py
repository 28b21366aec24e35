"""Scores of an arm on parts of the test set, from what its trials stored: per site and per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.analysis.results import Results
from orchestrator.analysis.wording import plural
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection.ranking import Selection
from orchestrator.statistics.intervals import Summary, summarise
from trainables.evaluation.metrics import EVALUATED
from trainables.storage.folder import Folder

#: Metrics of cases, by the name of the metric.
_OF_CASES = ("dice", "hd95", "missed")


@dataclass(frozen=True)
class Score:
    """One metric over replicates."""

    title: str
    summary: Summary
    is_share: bool = True


@dataclass(frozen=True)
class PartScore:
    """Part of the unshifted test set with the arm's scores on it, over its complete replicates."""

    name: str
    num_images: int
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class PartScores:
    """Scores per site and per class of the test set."""

    #: Empty if fewer than two sites are known.
    sites: tuple[PartScore, ...]
    #: Of a classification the accuracy of a class, its recall (sensitivity); of a segmentation those that have pixels.
    classes: tuple[PartScore, ...]
    #: Says which replicates these are of, where not of all; with a comma before it.
    of_replicates: str = ""


#: Scores of one trial on the images of a site (rows, None), or on a class (all rows, its index): title → value.
Measure = Callable[[np.ndarray, int | None], Mapping[str, float]]


@dataclass(frozen=True)
class _Stored:
    """Stored predictions of a trial on its test images."""

    ids: np.ndarray
    #: Images of each class that is shown, by its index.
    num_images: Mapping[int, int]
    measure: Measure


def score_parts(
    ledger: Ledger, results: Results, selection: Selection, sites: np.ndarray, classes: Sequence[str]
) -> PartScores:
    """Return the scores of the selected arm per site and per class, over its replicates with the same test images.

    Args:
        ledger: ledger of the study.
        results: results of the study.
        selection: the selected arm and trial.
        sites: site of every test image of the selected trial, in order; "" if unknown.
        classes: names in the order of the labels.

    Raises:
        StorageError: stored predictions are missing or damaged.
    """
    rows = results.complete
    signatures = rows[rows["name"] == selection.arm.name]["signature"]
    every = {signature: _load(ledger.folder("trial", signature)) for signature in signatures}
    own = every[selection.signature]
    same = [each for each in every.values() if np.array_equal(each.ids, own.ids)]

    def score(name: str, chosen: np.ndarray, index: int | None, number: int) -> PartScore:
        found = [each.measure(chosen, index) for each in same]
        return PartScore(name, number, tuple(_summarise(title, [each[title] for each in found]) for title in found[0]))

    known = sorted(set(sites.tolist()) - {""})
    everything = np.ones(len(own.ids), dtype=bool)
    return PartScores(
        sites=tuple(score(site, sites == site, None, int((sites == site).sum())) for site in known)
        if len(known) > 1
        else (),
        classes=tuple(score(classes[index], everything, index, number) for index, number in own.num_images.items()),
        of_replicates=""
        if len(same) == len(every)
        else f", over {plural(len(same), 'replicate')} with these test images",
    )


def _summarise(name: str, values: Sequence[float]) -> Score:
    metric = EVALUATED.get(name)
    return Score(name if metric is None else metric.title, summarise(values), metric is None or metric.is_share)


def _load(trial: Folder) -> _Stored:
    """Return what a trial stored: masks, if it is a segmentation, else logits."""
    from trainables.evaluation.segmentation.stored import locate_segmented

    return _load_cases(trial) if trial.exists(locate_segmented("test")) else _load_logits(trial)


def _load_logits(trial: Folder) -> _Stored:
    from trainables.evaluation.classification import compute_balanced_accuracy
    from trainables.evaluation.predictions import load_predictions

    stored = load_predictions(trial, "test")
    labels, predicted = stored.labels, stored.of("identity/0").argmax(axis=1)

    def measure(chosen: np.ndarray, index: int | None) -> dict[str, float]:
        if index is not None:
            own = labels == index
            return {"recall": float((predicted[own] == index).mean())}
        accuracy = float((predicted[chosen] == labels[chosen]).mean())
        return {
            "accuracy": accuracy,
            "balanced_accuracy": compute_balanced_accuracy(predicted[chosen], labels[chosen]),
        }

    return _Stored(
        stored.ids, {int(index): int((labels == index).sum()) for index in np.unique(labels) if index >= 0}, measure
    )


def _load_cases(trial: Folder) -> _Stored:
    from trainables.evaluation.segmentation.cases import average_cases
    from trainables.evaluation.segmentation.stored import load_segmented

    stored = load_segmented(trial, "test")
    values = {name: stored.metrics[name][0] for name in _OF_CASES}

    def measure(chosen: np.ndarray, index: int | None) -> dict[str, float]:
        column = slice(None) if index is None else slice(index - 1, index)  # the background has none
        return {name: average_cases(each[chosen, column]) for name, each in values.items()}

    has_case = ~np.isnan(values["dice"])
    numbers = {1 + int(column): int(has_case[:, column].sum()) for column in np.flatnonzero(has_case.any(0))}
    return _Stored(stored.ids, numbers, measure)
