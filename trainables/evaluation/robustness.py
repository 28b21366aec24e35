"""A trained model on every set and every shift → stored predictions → metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.config import EvaluationConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.evaluation.metrics import compute_metrics
from trainables.evaluation.predictions import Predictions, load_predictions, predict, save_predictions
from trainables.models import Classifier
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import IDENTITY, Shift, build_shifts
from trainables.storage import Folder

#: Metrics for which the smallest value over the shifts is the worst.
HIGHER_IS_BETTER = ("accuracy", "balanced_accuracy", "auroc", "quadratic_kappa")


@dataclass(frozen=True)
class Evaluation:
    """What ``result.json`` says about a model: one row per set × shift × severity, and the headline numbers."""

    rows: list[dict[str, Any]]
    metrics: dict[str, float]
    undefined: dict[str, str]


def evaluate_model(
    model: Classifier,
    data: Dataset,
    config: EvaluationConfig,
    *,
    folder: Folder,
    batch_size: int,
    precision: torch.dtype,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Shift]:
    """Predict validation, test under every shift, and every external set; store the predictions; return the shifts."""
    modality = data.modality if config.modality == "auto" else config.modality
    shifts = [IDENTITY, *build_shifts(config, modality)]
    sets: list[tuple[ImageSet, list[Shift]]] = [(data.splits["val"], [IDENTITY]), (data.splits["test"], shifts)]
    sets += [(external, [IDENTITY]) for external in data.external.values()]
    total, done = sum(len(todo) for _, todo in sets), 0
    for images, todo in sets:
        seeds = mix(torch.from_numpy(hash_ids(images.ids)).to(model.mean.device), "shift", config.shift_seed)
        logits, features = [], None
        for shift in todo:
            wants_features = config.store_features and shift is IDENTITY
            output, hidden = predict(
                model,
                images,
                batch_size=batch_size,
                precision=precision,
                transform=_shifted(shift, seeds),
                features=wants_features,
            )
            logits.append(output)
            features = hidden if wants_features else features
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        save_predictions(
            folder,
            Predictions(images.name, images.ids, images.labels, tuple(map(_key, todo)), np.stack(logits), features),
        )
    return shifts


def _shifted(shift: Shift, seeds: Tensor) -> Callable[[Tensor, slice], Tensor]:
    return lambda batch, rows: shift.apply(batch, seeds[rows])


def _key(shift: Shift) -> str:
    return f"{shift.name}/{shift.severity}"


def summarise_predictions(
    folder: Folder,
    names: Iterable[str],
    *,
    strengths: dict[str, Any],
    ece_bins: int,
    ordinal: bool,
) -> Evaluation:
    """Return all metrics of a trial, computed from its stored predictions alone.

    Args:
        folder: the trial's folder.
        names: sets to be read: ``val``, ``test``, then the external ones.
        strengths: "<shift>/<severity>" → strength, for the rows.
        ece_bins: bins of the calibration error.
        ordinal: classes are ordered.
    """
    rows: list[dict[str, Any]] = []
    undefined: dict[str, str] = {}
    for name in names:
        predictions = load_predictions(folder, name)
        for key, logits in zip(predictions.shifts, predictions.logits, strict=True):
            shift, severity = key.rsplit("/", 1)
            metrics = compute_metrics(logits, predictions.labels, ece_bins=ece_bins, ordinal=ordinal)
            undefined |= {f"{name}/{key}/{metric}": why for metric, why in metrics.undefined.items()}
            rows.append(
                {
                    "set": name,
                    "shift": shift,
                    "severity": int(severity),
                    "strength": strengths.get(key),
                    "num_images": len(predictions.labels),
                    "metrics": metrics.values,
                }
            )
    return Evaluation(rows, summarise_rows(rows), undefined)


def summarise_rows(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the headline numbers: ``id/…``, ``calibration/…``, ``robustness/mean_…`` and ``worst_…``, ``external/…``.

    Mean and worst are over all shift × severity of the test set, identity excluded. ``worst`` is the smallest value,
    of the calibration error the largest.
    """
    headline: dict[str, float] = {}
    shifted: dict[str, list[float]] = {}
    for row in rows:
        for metric, value in row["metrics"].items():
            if row["set"] == "val":
                headline[f"validation/{metric}"] = value
            elif row["set"] != "test":
                headline[f"external/{row['set']}/{metric}"] = value
            elif row["shift"] == IDENTITY.name:
                group = "id" if metric in HIGHER_IS_BETTER else "calibration"
                headline[f"{group}/{metric}"] = value
            else:
                shifted.setdefault(metric, []).append(value)
    for metric, values in shifted.items():
        if metric in HIGHER_IS_BETTER:
            headline[f"robustness/mean_{metric}"] = float(np.mean(values))
            headline[f"robustness/worst_{metric}"] = min(values)
        else:
            headline[f"calibration/mean_shifted_{metric}"] = float(np.mean(values))
            headline[f"calibration/worst_shifted_{metric}"] = max(values)
    return headline
