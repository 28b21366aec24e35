"""Results without the images whose label people have marked as wrong, beside those with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from jaxtyping import Bool

from orchestrator.analysis.failure_detection import MAX_TRIALS
from orchestrator.analysis.results import Results
from orchestrator.ledger.annotations import Annotation
from orchestrator.ledger.ledger import Ledger
from trainables.config import read_trial_config
from trainables.errors import StudyError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.predictions import Predictions, load_predictions
from trainables.evaluation.segmentation.cases import average_cases
from trainables.evaluation.segmentation.stored import load_segmented, locate_segmented
from trainables.evaluation.shift_means import average_shifts
from trainables.storage.folder import Folder


def compare_marked(results: Results, ledger: Ledger, annotations: Sequence[Annotation]) -> pd.DataFrame:
    """Return one row per complete trial × set with marked images: the metric with and without them.

    Columns: name, replicate, set, num_marked, ``whole``, ``kept``; for the test set also ``shifted_whole`` and
    ``shifted_kept``, means over its shifts. NaN where the metric is undefined.

    Args:
        results: tables of the study; ``results.metric`` is compared.
        ledger: ledger of the study.
        annotations: what people have said about single images.

    Raises:
        StudyError: the study has more than ``MAX_TRIALS`` complete trials.
        StorageError: predictions are damaged.
    """
    marked = group_marked(annotations)
    if len(results.complete) > MAX_TRIALS:
        raise StudyError(
            f"of {len(results.complete):,} complete trials, predictions are read of {MAX_TRIALS:,} at most"
        )
    rows = []
    for signature, name, replicate in results.complete[["signature", "name", "replicate"]].itertuples(index=False):
        folder = ledger.folder("trial", str(signature))
        for set_name, images in marked.items():
            stored = _open(folder, set_name, results.metric)
            if stored is None:
                continue  # of a data set or a site that this arm is not tested on
            is_kept = ~np.isin(stored.ids, images)
            row = {"name": name, "replicate": replicate, "set": set_name, "num_marked": int((~is_kept).sum())}
            row |= {"whole": stored.measure(0, np.ones_like(is_kept)), "kept": stored.measure(0, is_kept)}
            if set_name == "test" and len(stored.shifts) > 1:
                row["shifted_whole"] = _average(stored, np.ones_like(is_kept))
                row["shifted_kept"] = _average(stored, is_kept)
            rows.append(row)
    return pd.DataFrame([row for row in rows if row["num_marked"]])


def group_marked(annotations: Sequence[Annotation]) -> Mapping[str, list[str]]:
    """Return set → ids of the images whose label is marked as wrong, without training images and foreign ones."""
    found: dict[str, list[str]] = {}
    for each in annotations:
        if each.label_is_wrong and each.set_name != "train":
            found.setdefault(each.set_name, []).append(each.image)
    return found


@dataclass(frozen=True)
class _Stored:
    """A stored set of images: its ids and shifts, and (row of a shift, which images count) → the metric on them."""

    ids: np.ndarray
    shifts: Sequence[str]
    measure: Callable[[int, Bool[np.ndarray, " n"]], float]


def _open(folder: Folder, set_name: str, metric: str) -> _Stored | None:
    """Return a set of a trial, of classifications or segmentations; None if the trial does not have it."""
    if folder.exists(locate_segmented(set_name)):
        cases = load_segmented(folder, set_name)
        foreign = read_trial_config(folder.read_json("config.json")["config"]).evaluation.foreign
        values = None if set_name in foreign else cases.metrics.get(metric)  # its masks are of other classes

        def measure_cases(row: int, is_kept: Bool[np.ndarray, " n"]) -> float:
            return float("nan") if values is None else average_cases(values[row, is_kept])

        return _Stored(cases.ids, cases.shifts, measure_cases)
    if not folder.exists(f"predictions/{set_name}.npz"):
        return None
    predictions = load_predictions(folder, set_name)
    return _Stored(predictions.ids, predictions.shifts, partial(_measure, predictions, metric))


def _measure(predictions: Predictions, metric: str, row: int, is_kept: Bool[np.ndarray, " n"]) -> float:
    labels = predictions.labels[is_kept]
    if not len(labels) or (labels < 0).any():
        return float("nan")
    return compute_metrics(predictions.logits[row, is_kept], labels).values.get(metric, float("nan"))


def _average(stored: _Stored, is_kept: Bool[np.ndarray, " n"]) -> float:
    values = [stored.measure(row, is_kept) for row in range(1, len(stored.shifts))]
    names = [key.rsplit("/", 1)[0] for key in stored.shifts[1:]]
    return float(average_shifts(np.array([values]), names).mean[0])
