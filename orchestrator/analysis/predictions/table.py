"""Stored predictions of one trial as a tidy table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from orchestrator.ledger.ledger import Ledger
from trainables.errors import StudyError
from trainables.evaluation.classification import compute_log_softmax
from trainables.evaluation.predictions import Predictions, load_predictions
from trainables.storage.completeness import RESULT


def predictions_table(ledger: Ledger, signature: str, classes: Sequence[str]) -> pd.DataFrame:
    """Return one row per image, set, shift and severity: what one model predicted.

    Columns: ``set``, ``id``, ``shift`` ("identity" for unshifted images), ``severity``, ``label`` and ``predicted``
    (names of classes), and ``probability/<class>``, in [0, 1].

    Args:
        ledger: of the study.
        signature: of a complete trial.
        classes: names of the classes, by index.

    Raises:
        StudyError: the trial is not complete.
        StorageError: its predictions are damaged.
    """
    folder = ledger.folder("trial", signature)
    if not folder.exists(RESULT):
        raise StudyError(f"asked for the predictions of trial {signature}, which is not complete; run the study first")
    names = dict.fromkeys(row["set"] for row in folder.read_json(RESULT)["evaluations"])
    titles = np.asarray(classes, dtype=object)
    parts = [part for name in names for part in _rows(load_predictions(folder, name), titles)]
    return pd.concat(parts, ignore_index=True)


def _rows(predictions: Predictions, classes: np.ndarray) -> Iterator[pd.DataFrame]:
    for key, logits in zip(predictions.shifts, predictions.logits, strict=True):
        shift, severity = key.rsplit("/", 1)
        probabilities = np.exp(compute_log_softmax(logits.astype(np.float64)))
        columns = {
            "set": predictions.name,
            "id": predictions.ids,
            "shift": shift,
            "severity": int(severity),
            "label": classes[predictions.labels],
            "predicted": classes[logits.argmax(axis=1)],
        }
        columns |= {f"probability/{name}": probabilities[:, index] for index, name in enumerate(classes)}
        yield pd.DataFrame(columns)
