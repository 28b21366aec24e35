"""Results without the images whose label people have marked as wrong, beside those with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool

from orchestrator.analysis.failure_detection import MAX_TRIALS
from orchestrator.analysis.results import Results
from orchestrator.ledger.annotations import Annotation
from orchestrator.ledger.ledger import Ledger
from trainables.errors import StudyError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.predictions import Predictions, load_predictions
from trainables.evaluation.shift_means import average_shifts


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
            if not folder.exists(f"predictions/{set_name}.npz"):
                continue  # of a data set or a site that this arm is not tested on
            predictions = load_predictions(folder, set_name)
            is_kept = ~np.isin(predictions.ids, images)
            row = {"name": name, "replicate": replicate, "set": set_name, "num_marked": int((~is_kept).sum())}
            row |= {"whole": _measure(predictions, results.metric, 0, np.ones_like(is_kept))}
            row |= {"kept": _measure(predictions, results.metric, 0, is_kept)}
            if set_name == "test" and len(predictions.shifts) > 1:
                row["shifted_whole"] = _average(predictions, results.metric, np.ones_like(is_kept))
                row["shifted_kept"] = _average(predictions, results.metric, is_kept)
            rows.append(row)
    return pd.DataFrame([row for row in rows if row["num_marked"]])


def group_marked(annotations: Sequence[Annotation]) -> Mapping[str, list[str]]:
    """Return set → ids of the images whose label is marked as wrong, without training images and foreign ones."""
    found: dict[str, list[str]] = {}
    for each in annotations:
        if each.label_is_wrong and each.set_name != "train":
            found.setdefault(each.set_name, []).append(each.image)
    return found


def _measure(predictions: Predictions, metric: str, row: int, is_kept: Bool[np.ndarray, " n"]) -> float:
    labels = predictions.labels[is_kept]
    if not len(labels) or (labels < 0).any():
        return float("nan")
    return compute_metrics(predictions.logits[row, is_kept], labels).values.get(metric, float("nan"))


def _average(predictions: Predictions, metric: str, is_kept: Bool[np.ndarray, " n"]) -> float:
    values = [_measure(predictions, metric, row, is_kept) for row in range(1, len(predictions.shifts))]
    names = [key.rsplit("/", 1)[0] for key in predictions.shifts[1:]]
    return float(average_shifts(np.array([values]), names).mean[0])
