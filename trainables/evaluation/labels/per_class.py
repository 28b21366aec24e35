"""Metrics of each class by itself: sensitivity, and one-vs-rest AUROC."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64

from trainables.evaluation.classification import Metrics, compute_midranks, compute_one_vs_rest


def compute_class_metrics(logits: Float[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"]) -> list[Metrics]:
    """Return the metrics of ``metric_tables.views.CLASS_METRICS`` for every class.

    Args:
        logits: unnormalised outputs.
        labels: index of the true class.
    """
    num_classes = logits.shape[1]
    counts = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels, weights=logits.argmax(axis=1) == labels, minlength=num_classes)
    aurocs = _compute_aurocs(logits.astype(np.float64), labels, counts)
    found = []
    for index in range(num_classes):
        values: dict[str, float] = {}
        undefined: dict[str, str] = {}
        if counts[index] == 0:
            undefined = dict.fromkeys(("sensitivity", "auroc"), f"no image of class {index} (counted from 0)")
        else:
            values["sensitivity"] = float(right[index] / counts[index])
            if counts[index] == len(labels):
                undefined["auroc"] = f"no image of a class other than {index} (counted from 0)"
            else:
                values["auroc"] = float(aurocs[index])
        found.append(Metrics(values, undefined))
    return found


def _compute_aurocs(
    logits: Float64[np.ndarray, "n classes"], labels: Int64[np.ndarray, " n"], counts: Int64[np.ndarray, " classes"]
) -> Float64[np.ndarray, " classes"]:
    """Return the area under the ROC curve of each class against the rest; NaN where only one side has images."""
    ranks = compute_midranks(compute_one_vs_rest(logits))
    of_class = (ranks * (labels[:, None] == np.arange(len(counts)))).sum(axis=0)
    pairs = counts * (len(labels) - counts)
    with np.errstate(invalid="ignore"):
        return (of_class - counts * (counts + 1) / 2) / np.where(pairs > 0, pairs, np.nan)
