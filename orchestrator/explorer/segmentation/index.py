"""All cases of a trained segmentation for the page: place, metrics, scores and areas of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from orchestrator.analysis.segmentation.panels import PANELS
from orchestrator.explorer.images import Images
from orchestrator.ledger.ledger import Ledger
from trainables.config import read_trial_config
from trainables.errors import RobustSweepError, StudyError
from trainables.evaluation.confidence import find_title
from trainables.evaluation.metrics import SEGMENTATION_METRICS
from trainables.evaluation.segmentation.judged import measure_dice, measure_metric
from trainables.evaluation.segmentation.stored import SegmentedSet, load_segmented, locate_segmented
from trainables.models.segmenter import BOTTLENECK
from trainables.storage.completeness import RESULT

#: Features that the map is made of, and the set that it is fitted on.
MAPPED, FITTED_ON = f"pooled/{BOTTLENECK}", "test"


def list_cases(ledger: Ledger, signature: str, *, cache_dir: Path) -> dict[str, Any]:
    """Return what the page shows of a trial, ready for JSON; numbers that are undefined are None.

    Args:
        ledger: ledger of the study.
        signature: signature of a complete trial.
        cache_dir: folder of this node's decoded images.

    Raises:
        StudyError: the trial has no stored cases.
        StorageError: a file of the ledger is damaged.
    """
    sets = load_sets(ledger, signature)
    places, explained = map_sets(sets)
    sites, no_images = find_sites(Images(ledger, cache_dir), signature, sets)
    metrics = [
        name for name in SEGMENTATION_METRICS if any(name in {*s.metrics, *s.calibration} for s in sets.values())
    ]
    scores = sorted({name for each in sets.values() for name in each.scores}, key=find_title)
    cases: list[dict[str, Any]] = []
    for number, (name, each) in enumerate(sets.items()):
        columns = {
            "metrics": np.stack([_measure(each, metric) for metric in metrics], axis=1) if metrics else None,
            "scores": _stack_scores(each, scores),
            "shifted": _stack_dice(each),
            "areas": None if each.areas is None else each.areas.sum(axis=1).astype(np.float64),
            "place": places.get(name),
        }
        lists = {key: None if values is None else _as_json(values) for key, values in columns.items()}
        for row, identifier in enumerate(each.ids):
            own = {key: None if values is None else values[row] for key, values in lists.items()}
            cases.append({"id": str(identifier), "set": number, "row": row, "site": sites[name][row], **own})
    return {
        "sets": [{"name": n, "count": len(e.ids), "has_targets": bool(e.metrics)} for n, e in sets.items()],
        "classes": list(next(iter(sets.values())).classes),
        "metrics": [
            {"name": name, "title": SEGMENTATION_METRICS[name].title, "formula": SEGMENTATION_METRICS[name].formula}
            for name in metrics
        ],
        "scores": [{"name": name, "title": find_title(name)} for name in scores],
        "shifts": {name: list(each.shifts) for name, each in sets.items()},
        "explained": explained,
        "measure": next(iter(sets.values())).measure,
        "fitted_on": FITTED_ON if places else None,
        "panels": list(PANELS),
        "no_images": no_images,
        "cases": cases,
    }


def load_sets(ledger: Ledger, signature: str) -> dict[str, SegmentedSet]:
    """Return the evaluated sets of a trial by name: test, validation, others with a truth, others, training images.

    Foreign sets have no truth here: what is annotated in them is none of the study's classes.

    Raises:
        StudyError: it has none.
        StorageError: a file is damaged.
    """
    folder = ledger.folder("trial", signature)
    prefix, _, suffix = locate_segmented("*").partition("*")
    names = [
        each.removeprefix(prefix).removesuffix(suffix)
        for each in folder.read_json(RESULT)["files"]
        if each.startswith(prefix) and each.endswith(suffix)
    ]
    if not names:
        raise StudyError(
            f"looked for the segmented cases of trial {signature} of {ledger.study} and found none; run the study again"
        )
    foreign = read_trial_config(folder.read_json("config.json")["config"]).evaluation.foreign
    loaded = {name: load_segmented(folder, name) for name in names}
    loaded |= {name: replace(loaded[name], metrics={}, calibration={}, areas=None) for name in names if name in foreign}
    first = {"test": 0, "val": 1, "train": 3}
    order = sorted(names, key=lambda name: (first.get(name, 2), not loaded[name].metrics, name))
    return {name: loaded[name] for name in order}


def map_sets(sets: Mapping[str, SegmentedSet]) -> tuple[dict[str, Float64[np.ndarray, "n 2"]], list[float]]:
    """Return the places of every set on one map, and the shares of variance of its axes; nothing without features.

    The axes are the first two principal components of the pooled features of the bottleneck of the test images; all
    other sets are placed on them, because maps of several sets of their own could not be compared.
    """
    fitted = sets[FITTED_ON].layers.get(MAPPED) if FITTED_ON in sets else None
    if fitted is None or min(fitted.shape) < 2:
        return {}, []
    mean = fitted.mean(axis=0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(fitted - mean, full_matrices=False)
    # The sign of a component is arbitrary: its largest weight is positive.
    axes = axes[:2] * np.sign(axes[[0, 1], np.abs(axes[:2]).argmax(axis=1)])[:, None]
    total = float((lengths**2).sum())
    shares = [float(length**2) / total if total > 0 else 0.0 for length in lengths[:2]]
    return {name: (each.layers[MAPPED] - mean) @ axes.T for name, each in sets.items() if MAPPED in each.layers}, shares


def _measure(each: SegmentedSet, metric: str) -> Float64[np.ndarray, " n"]:
    """Return a metric of every unshifted case, mean over the classes that have it; NaN without any."""
    if metric in each.calibration:
        return each.calibration[metric][0].astype(np.float64)
    if metric not in each.metrics:
        return np.full(len(each.ids), np.nan)
    return measure_metric(each, metric)


def _stack_scores(each: SegmentedSet, names: list[str]) -> Float64[np.ndarray, "n scores"]:
    missing = np.full((1, len(each.ids)), np.nan)
    columns = [each.scores.get(name, missing)[0].astype(np.float64) for name in names]
    return np.stack(columns, axis=1) if columns else np.zeros((len(each.ids), 0))


def _stack_dice(each: SegmentedSet) -> Float64[np.ndarray, "n shifts"] | None:
    if not each.metrics:
        return None
    return np.stack([measure_dice(each, row) for row in range(len(each.shifts))], axis=1)


def _as_json(values: Float64[np.ndarray, "n k"]) -> list[list[float | None]]:
    return [[float(f"{each:.6g}") if np.isfinite(each) else None for each in row] for row in values]


def find_sites(
    images: Images, signature: str, sets: Mapping[str, SegmentedSet]
) -> tuple[dict[str, list[str]], str | None]:
    """Return the site of every case by set, and why there are no images here, None if there are."""
    try:
        opened = images.list_sets(signature)
    except RobustSweepError as error:
        return {name: [""] * len(each.ids) for name, each in sets.items()}, str(error)
    return {name: [str(site) for site in opened[name].sites] for name in sets}, None
