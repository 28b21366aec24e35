"""Evaluation of a trained model on every set and shift: stored predictions, and metrics from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from trainables.config import Execution
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.errors import ConfigError
from trainables.evaluation.classification import Metrics, compute_metrics
from trainables.evaluation.layers import LayerRecorder
from trainables.evaluation.metrics import (
    AGGREGATES,
    EVALUATED,
    name_over_shifts,
    name_over_validation_shifts,
    name_unshifted,
)
from trainables.evaluation.predictions import (
    Predictions,
    predict_each,
    save_predictions,
)
from trainables.evaluation.shift_means import average_shifts
from trainables.evaluation.site_means import summarise_sites
from trainables.evaluation.validation_fit import fit_on_validation
from trainables.evaluation_config import EvaluationConfig, FeatureSet
from trainables.models.model_scores import build_model_scores
from trainables.models.networks import Classifier
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import IDENTITY, Shift, build_shifts, build_validation_shifts
from trainables.shifts.cache import ShiftedCopies
from trainables.storage.folder import Folder


@runtime_checkable
class EvaluatedSet(Protocol):
    """One evaluated set of images, of any task."""

    @property
    def name(self) -> str:
        """Name of the set."""

    @property
    def ids(self) -> np.ndarray:
        """Ids of its images."""

    @property
    def shifts(self) -> tuple[str, ...]:
        """ "<shift>/<severity>" of each evaluation, the unshifted one first."""


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a model in ``result.json``: one row per set × shift × severity, and the headline numbers."""

    rows: list[dict[str, Any]]
    metrics: dict[str, float]
    undefined: dict[str, str]
    #: Temperature and thresholds fitted on validation (``ValidationFit``), with which metrics were computed.
    validation_fit: dict[str, float]


def choose_shifts(data: Dataset, config: EvaluationConfig) -> tuple[list[Shift], dict[str, str]]:
    """Return the identity and all shifts of the test set's evaluation, and the reasons why other shifts are left out.

    A shift that does not change grey images tests nothing and would bias the mean upwards. It is left out, with an
    entry ``{"shift/<name>": reason}``.

    Raises:
        ConfigError: if a shift, severity or modality is unknown or repeated, or a shift means nothing for volumes.
    """
    return _leave_out(data, build_shifts(config, data.modality), "shift")


def choose_validation_shifts(data: Dataset, config: EvaluationConfig) -> tuple[list[Shift], dict[str, str]]:
    """Return the identity and all shifts of the validation images; a reason is ``{"validation/shift/<name>": …}``.

    What is left out, and the errors, are those of ``choose_shifts``.
    """
    return _leave_out(data, build_validation_shifts(config, data.modality), "validation/shift")


def _leave_out(data: Dataset, shifts: Sequence[Shift], prefix: str) -> tuple[list[Shift], dict[str, str]]:
    test = data.splits["test"]
    is_grey = test.images.shape[1] == 1
    left_out = {
        f"{prefix}/{shift.name}": "changes nothing in grey images, so it is left out of the evaluation and of every "
        "mean"
        for shift in shifts
        if is_grey and shift.needs_colour
    }
    chosen = [shift for shift in shifts if f"{prefix}/{shift.name}" not in left_out]
    flat = list(dict.fromkeys(shift.name for shift in chosen if test.holds_volumes and not shift.fits_volumes))
    if flat:
        raise ConfigError(
            f"evaluation.{'validation_' * prefix.startswith('validation')}shifts: found {', '.join(flat)} with volumes "
            "(data.dimensions: 3), whose slices would be changed one by one as if each were a picture of its own; "
            "expected noise, blur, brightness, contrast, gamma, jpeg, pixelate, zoom_blur or elastic_transform"
        )
    return [IDENTITY, *chosen], left_out


def check_shifts(data: Dataset, config: EvaluationConfig) -> None:
    """Check that the shifts of an evaluation exist, change something, and work at the strengths that the study defines.

    Shifts that the study defines by ``op`` are applied to two test images.

    Raises:
        ConfigError: if a shift, severity or modality is unknown or repeated, all shifts are left out, or one fails.
    """
    shifts, left_out = choose_shifts(data, config)
    of_validation, left_out_of_validation = choose_validation_shifts(data, config)
    for key, found, reasons in (
        ("shifts", shifts, left_out),
        ("validation_shifts", of_validation, left_out_of_validation),
    ):
        if reasons and found == [IDENTITY]:
            raise ConfigError(
                f"evaluation.{key}: found {len(reasons)} shifts, none of which changes anything in grey images; "
                "expected some that do, or data.channels: 3 if the files have colour"
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


def list_sets(data: Dataset, config: EvaluationConfig) -> list[str]:
    """Return the names of the sets that have predictions: val, test, external and foreign ones, and maybe train."""
    return ["val", "test", *data.external, *data.ood, *(["train"] if "train" in config.store_features else [])]


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
    """Predict validation and test under their shifts, and every external set; write the predictions.

    Shifted copies that this node lacks are built first and cached for later models; predictions do not depend on them.

    Args:
        model: model on the device of the evaluation.
        data: data set; its val, test and external sets are read.
        config: shifts (``choose_shifts``, ``choose_validation_shifts``), their seed, whether features are stored, and
            MC dropout.
        folder: folder of the trial; ``predictions/<set>.npz`` are written here.
        execution: images per forward pass; location and size limit of the shifted copies.
        precision: dtype of the forward pass; bfloat16 runs under autocast.
        on_progress: callback with the numbers of finished and of all passes, after each pass and each built copy.

    Raises:
        DivergedError: if an output is not finite.
        StorageError: if the storage refuses a write.
    """
    shifts, _ = choose_shifts(data, config)
    of_validation, _ = choose_validation_shifts(data, config)
    sets: list[tuple[ImageSet, list[Shift], FeatureSet]] = [
        (data.splits["val"], of_validation, "val"),
        (data.splits["test"], shifts, "test"),
        *((images, [IDENTITY], "external") for images in data.external.values()),
        *((images, [IDENTITY], "ood") for images in data.ood.values()),
    ]
    if "train" in config.store_features:
        sets.append((data.splits["train"], [IDENTITY], "train"))
    recorder = LayerRecorder(model.backbone, config.store_layers)
    scores = build_model_scores(model, mc_dropout=config.mc_dropout, seed=config.shift_seed)
    total, done = sum(len(todo) for _, todo, _ in sets), 0

    def count() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    for images, todo, kind in sets:
        num_with_features = 0
        if kind in config.store_features:
            num_with_features = len(todo) if kind == "test" and "shifts" in config.store_features else 1
        feed = ImageFeed(images, model.mean.device)
        with recorder.attached(), open_copies(feed, data, config, execution) as copies:
            copies.build(todo, batch_size=execution.evaluation_batch_size, on_built=lambda: on_progress(done, total))
            found = predict_each(
                model,
                feed,
                [copies.transform(shift) for shift in todo],
                batch_size=execution.evaluation_batch_size,
                precision=precision,
                num_with_features=num_with_features,
                scores=scores,
                recorder=recorder,
                on_pass=count,
            )
        _, groups = np.unique(images.groups, return_inverse=True)
        keys = tuple(map(name_shift, todo))
        predictions = Predictions(images.name, images.ids, images.labels, keys, found.logits, groups=groups)
        predictions = replace(predictions, scores=found.scores, layers=found.layers)
        if found.features is not None:
            shifted = found.features[1:] if len(found.features) > 1 else None
            predictions = replace(predictions, features=found.features[0], shifted_features=shifted)
        save_predictions(folder, predictions)


def open_copies(feed: ImageFeed, data: Dataset, config: EvaluationConfig, execution: Execution) -> ShiftedCopies:
    """Return the cached shifted copies of a set on this node, with the seeds of the evaluation."""
    images = feed.images
    return ShiftedCopies(
        execution.cache_dir.expanduser() / "shifts",
        # Volumes are shifted without the padding that they are stored with.
        budget_bytes=0 if images.holds_volumes else int(execution.shift_cache_gib * 2**30),
        feed=feed,
        seeds=mix(torch.from_numpy(hash_ids(images.ids)).to(feed.device), "shift", config.shift_seed),
        content=(data.fingerprint, images.name, config.shift_seed),
    )


@contextmanager
def open_shifted_validation(
    model: Classifier, data: Dataset, config: EvaluationConfig, *, execution: Execution, precision: torch.dtype
) -> Iterator[Callable[[], dict[str, float]]]:
    """Yield a function that returns the model's present means over the shifted validation images.

    Their names are those of the headline numbers: ``robustness/mean_auroc``, …, without those that are undefined or
    take a number fitted on validation. The copies are built first, and kept until the context ends.

    Arguments and errors are those of ``evaluate_model``.
    """
    shifts, feed = choose_validation_shifts(data, config)[0][1:], ImageFeed(data.splits["val"], model.mean.device)
    batch_size = execution.evaluation_batch_size
    with open_copies(feed, data, config, execution) as copies:
        copies.build(shifts, batch_size=batch_size)

        def measure() -> dict[str, float]:
            transforms = [copies.transform(shift) for shift in shifts]
            logits = predict_each(model, feed, transforms, batch_size=batch_size, precision=precision).logits
            labels = feed.images.labels
            rows = [
                {"shift": shift.name, "metrics": compute_metrics(each, labels, ece_bins=config.ece_bins).values}
                for shift, each in zip(shifts, logits, strict=True)
            ]
            return {name: value for name, value in summarise_shifts(rows, name_over_shifts).items() if "/mean_" in name}

        yield measure


def name_shift(shift: Shift) -> str:
    """Return "<shift>/<severity>", as in stored predictions."""
    return f"{shift.name}/{shift.severity}"


def summarise_predictions(
    sets: Sequence[Predictions], *, strengths: Mapping[str, Any], ece_bins: int, ordinal: bool
) -> Evaluation:
    """Return all metrics of a trial, computed from its stored predictions alone.

    Args:
        sets: predictions on ``val``, from which temperature and thresholds come, on ``test``, and on external sets.
        strengths: "<shift>/<severity>" → strength, for the rows.
        ece_bins: number of bins of the calibration error.
        ordinal: whether classes are ordered.
    """
    validation = next(each for each in sets if each.name == "val")
    fit = fit_on_validation(validation.of(f"{IDENTITY.name}/0"), validation.labels)
    rows = describe_rows(sets, strengths)
    found = [
        compute_metrics(logits, predictions.labels, ece_bins=ece_bins, ordinal=ordinal, fit=fit)
        for predictions in sets
        for logits in predictions.logits
    ]
    return build_evaluation(rows, found, fit.as_json())


def describe_rows(sets: Sequence[EvaluatedSet], strengths: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row without metrics for every set × shift × severity, in the order of the predictions."""
    return [
        {
            "set": predictions.name,
            "shift": key.rpartition("/")[0],
            "severity": int(key.rpartition("/")[2]),
            "strength": strengths.get(key),
            "num_images": len(predictions.ids),
        }
        for predictions in sets
        for key in predictions.shifts
    ]


def build_evaluation(
    about: Sequence[Mapping[str, Any]], found: Sequence[Metrics], validation_fit: dict[str, float]
) -> Evaluation:
    """Return rows with their metrics, headline numbers, and what is undefined.

    Args:
        about: rows without metrics (``describe_rows``).
        found: metrics of each.
        validation_fit: numbers fitted on validation with which they were computed.
    """
    rows = [{**row, "metrics": metrics.values} for row, metrics in zip(about, found, strict=True)]
    undefined: dict[str, list[str]] = {}
    for row, metrics in zip(rows, found, strict=True):
        for metric, why in metrics.undefined.items():
            undefined.setdefault(_name(row, metric), []).append(why)
    return Evaluation(rows, summarise_rows(rows), _explain(undefined, rows), validation_fit)


def _name(row: Mapping[str, Any], metric: str) -> str:
    """Return the name of the headline number that ``metric`` of a row is, or of the mean that it is part of."""
    is_shifted = row["shift"] != IDENTITY.name
    if row["set"] == "val":
        return name_over_validation_shifts("mean", metric) if is_shifted else f"validation/{metric}"
    if row["set"] != "test":
        return f"external/{row['set']}/{metric}"
    if is_shifted:
        return name_over_shifts("mean", metric)
    return name_unshifted(metric)


def _explain(whys: Mapping[str, Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return headline number → reason why it is undefined."""
    totals = {
        name("mean", metric): sum(_is_shifted(row, of) for row in rows)
        for of, name in _OVER_SHIFTS.items()
        for metric in EVALUATED
    }
    return {
        name: found[0]
        if name not in totals or len(found) == totals[name]
        else f"{found[0]}: under {len(found)} of {totals[name]} shifts × severities, so mean and worst are undefined"
        for name, found in whys.items()
    }


#: Sets that are evaluated under shifts → name of a headline number over them.
_OVER_SHIFTS = {"test": name_over_shifts, "val": name_over_validation_shifts}


def _is_shifted(row: Mapping[str, Any], of: str) -> bool:
    return bool(row["set"] == of and row["shift"] != IDENTITY.name)


def summarise_rows(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the headline numbers of an evaluation's rows.

    ``validation/…``, ``id/…``, ``external/<set>/…``, ``calibration/…`` for errors in distribution, and mean,
    ``worst_cell`` and ``worst_shift`` over the shifts (``name_over_shifts``, ``average_shifts``), for validation images
    under ``validation/…`` again. The latter are absent for a metric that is undefined under a shift.
    """
    headline = summarise_sites(rows)
    for row in rows:
        if row["shift"] == IDENTITY.name or row["set"] not in _OVER_SHIFTS:
            headline |= {_name(row, metric): value for metric, value in row["metrics"].items()}
    for of, name in _OVER_SHIFTS.items():
        headline |= summarise_shifts([row for row in rows if _is_shifted(row, of)], name)
    return headline


def summarise_shifts(shifted: Sequence[Mapping[str, Any]], name: Callable[[str, str], str]) -> dict[str, float]:
    """Return the headline numbers over the shifts of one set; none without rows.

    Args:
        shifted: rows of the set's shifted copies.
        name: function from aggregate and metric to the name of a headline number.
    """
    if not shifted:
        return {}
    headline: dict[str, float] = {}
    metrics = tuple(dict.fromkeys(metric for row in shifted for metric in row["metrics"]))
    values = np.array([[row["metrics"].get(metric, np.nan) for row in shifted] for metric in metrics], dtype=np.float64)
    means = average_shifts(values, [row["shift"] for row in shifted])
    found = {is_higher_better: means.aggregate(is_higher_better) for is_higher_better in (True, False)}
    for index, metric in enumerate(metrics):
        for aggregate, each in zip(AGGREGATES, found[EVALUATED[metric].higher_is_better], strict=True):
            if not np.isnan(each[index]):
                headline[name(aggregate, metric)] = float(each[index])
    return headline
