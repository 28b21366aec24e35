"""Evaluation of a trained model on every set and shift: stored predictions, and metrics from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainables.config import EvaluationConfig, Execution
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.errors import ConfigError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.metrics import METRICS
from trainables.evaluation.predictions import (
    Predictions,
    load_predictions,
    predict_each,
    save_predictions,
)
from trainables.evaluation.site_means import summarise_sites
from trainables.models.networks import Classifier
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import IDENTITY, Shift, build_shifts
from trainables.shifts.cache import ShiftedCopies
from trainables.storage.folder import Folder


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a model in ``result.json``: one row per set × shift × severity, and the headline numbers."""

    rows: list[dict[str, Any]]
    metrics: dict[str, float]
    undefined: dict[str, str]


def choose_shifts(data: Dataset, config: EvaluationConfig) -> tuple[list[Shift], dict[str, str]]:
    """Return the identity and all shifts of the test set's evaluation, and the reasons why other shifts are left out.

    A shift that does not change grey images tests nothing and would bias the mean upwards. It is left out, with an
    entry ``{"shift/<name>": reason}``.

    Raises:
        ConfigError: if a shift, severity or modality is unknown or repeated.
    """
    shifts = build_shifts(config, data.modality)
    is_grey = data.splits["test"].images.shape[1] == 1
    left_out = {
        f"shift/{shift.name}": "changes nothing in grey images, so it is left out of the evaluation and of every mean"
        for shift in shifts
        if is_grey and shift.needs_colour
    }
    return [IDENTITY, *(shift for shift in shifts if f"shift/{shift.name}" not in left_out)], left_out


def check_shifts(data: Dataset, config: EvaluationConfig) -> None:
    """Check that the shifts of an evaluation exist, change something, and work at the strengths that the study defines.

    Shifts that the study defines by ``op`` are applied to two test images.

    Raises:
        ConfigError: if a shift, severity or modality is unknown or repeated, all shifts are left out, or one fails.
    """
    shifts, left_out = choose_shifts(data, config)
    if left_out and shifts == [IDENTITY]:
        raise ConfigError(
            f"evaluation.shifts: found {len(left_out)} shifts, none of which changes anything in grey images; expected "
            "some that do, or data.channels: 3 if the files have colour"
        )
    own = {entry["name"] for entry in config.shifts if isinstance(entry, dict) and "op" in entry}
    test = data.splits["test"]
    images, seeds = torch.from_numpy(test.images[:2].copy()), hash_ids(test.ids[:2])
    for shift in shifts:
        if shift.name in own:
            try:
                shift.apply(images, mix(torch.from_numpy(seeds), "shift", config.shift_seed))
            except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"evaluation.shifts: applied {shift.name} with the strength {shift.strength} to two test images "
                    f"and failed ({type(error).__name__}: {error}); expected strengths like those of its operation in "
                    "the bank"
                ) from error


def evaluate_model(
    model: Classifier,
    data: Dataset,
    config: EvaluationConfig,
    *,
    folder: Folder,
    execution: Execution,
    precision: torch.dtype,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Predict validation, test under every shift, and every external set; write the predictions.

    Shifted copies that this node lacks are built first and cached for later models; predictions do not depend on them.

    Args:
        model: model on the device of the evaluation.
        data: data set; its val, test and external sets are read.
        config: shifts (``choose_shifts``), their seed, and whether features are stored.
        folder: folder of the trial; ``predictions/<set>.npz`` are written here.
        execution: images per forward pass; location and size limit of the shifted copies.
        precision: dtype of the forward pass; bfloat16 runs under autocast.
        on_progress: callback with the numbers of finished and of all passes, after each pass and each built copy.

    Raises:
        DivergedError: if an output is not finite.
        StorageError: if the storage refuses a write.
    """
    shifts, _ = choose_shifts(data, config)
    sets: list[tuple[ImageSet, list[Shift]]] = [(data.splits["val"], [IDENTITY]), (data.splits["test"], shifts)]
    sets += [(external, [IDENTITY]) for external in data.external.values()]
    total, done = sum(len(todo) for _, todo in sets), 0

    def count() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    for images, todo in sets:
        feed = ImageFeed(images, model.mean.device)
        seeds = mix(torch.from_numpy(hash_ids(images.ids)).to(feed.device), "shift", config.shift_seed)
        with ShiftedCopies(
            execution.cache_dir.expanduser() / "shifts",
            budget_bytes=int(execution.shift_cache_gib * 2**30),
            feed=feed,
            seeds=seeds,
            content=(data.fingerprint, images.name, config.shift_seed),
        ) as copies:
            copies.build(todo, batch_size=execution.evaluation_batch_size, on_built=lambda: on_progress(done, total))
            logits, features = predict_each(
                model,
                feed,
                [copies.transform(shift) for shift in todo],
                batch_size=execution.evaluation_batch_size,
                precision=precision,
                features=config.store_features,  # of the first pass, the identity
                on_pass=count,
            )
        _, groups = np.unique(images.groups, return_inverse=True)
        keys = tuple(map(_key, todo))
        save_predictions(folder, Predictions(images.name, images.ids, images.labels, keys, logits, features, groups))


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
        folder: folder of the trial.
        names: names of the sets: ``val``, ``test``, then the external sets.
        strengths: "<shift>/<severity>" → strength, for the rows.
        ece_bins: number of bins of the calibration error.
        ordinal: whether classes are ordered.
    """
    rows: list[dict[str, Any]] = []
    undefined: dict[str, list[str]] = {}
    for name in names:
        predictions = load_predictions(folder, name)
        for key, logits in zip(predictions.shifts, predictions.logits, strict=True):
            shift, severity = key.rsplit("/", 1)
            metrics = compute_metrics(logits, predictions.labels, ece_bins=ece_bins, ordinal=ordinal)
            for metric, why in metrics.undefined.items():
                undefined.setdefault(_prefix(name, shift, metric) + metric, []).append(why)
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
    num_shifted = sum(row["set"] == "test" and row["shift"] != IDENTITY.name for row in rows)
    return Evaluation(
        rows, summarise_rows(rows), {key: _explain(key, whys, num_shifted) for key, whys in undefined.items()}
    )


def _prefix(name: str, shift: str, metric: str) -> str:
    """Return the prefix of ``metric`` in the headline number that a row gives or contributes to."""
    if name == "val":
        return "validation/"
    if name != "test":
        return f"external/{name}/"
    if shift == IDENTITY.name:
        return "id/" if METRICS[metric].higher_is_better else "calibration/"
    return "robustness/mean_" if METRICS[metric].higher_is_better else "calibration/mean_shifted_"


def _explain(key: str, whys: list[str], num_shifted: int) -> str:
    if not key.startswith("robustness/") or len(whys) == num_shifted:
        return whys[0]
    return f"{whys[0]}: under {len(whys)} of {num_shifted} shifts, which are left out of mean and worst"


def summarise_rows(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the headline numbers: ``id/…``, ``calibration/…``, ``robustness/mean_…`` and ``worst_…``, ``external/…``.

    Mean and worst are over all shift × severity of the test set, identity excluded. ``worst`` is the smallest value,
    for errors (``ece``, ``nll``, ``brier``) the largest.
    """
    headline = summarise_sites(rows)
    shifted: dict[str, list[float]] = {}
    for row in rows:
        for metric, value in row["metrics"].items():
            if row["set"] == "test" and row["shift"] != IDENTITY.name:
                shifted.setdefault(metric, []).append(value)
            else:
                headline[_prefix(row["set"], row["shift"], metric) + metric] = value
    for metric, values in shifted.items():
        if METRICS[metric].higher_is_better:
            headline[f"robustness/mean_{metric}"] = float(np.mean(values))
            headline[f"robustness/worst_{metric}"] = min(values)
        else:
            headline[f"calibration/mean_shifted_{metric}"] = float(np.mean(values))
            headline[f"calibration/worst_shifted_{metric}"] = max(values)
    return headline
