"""Slow computations on a prepared trial, kept beside it: the t-SNE map and the clusters."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.analysis.slices.clusters import find_clusters, find_overrepresented
from orchestrator.analysis.slices.embedding import MAX_FITTED_TSNE, choose_rows, embed_tsne
from orchestrator.explorer.prepared import NO_LABEL, Prepared
from trainables.errors import StudyError


def compute(request: dict[str, Any], on_progress: Callable[[float], None]) -> Any:
    """Return the result of a job of the kind tsne or clusters, which is computed unless it is there.

    Raises:
        StudyError: there are no features, or openTSNE is not installed.
    """
    prepared = Prepared(Path(request["folder"]))
    return KINDS[request["kind"]](prepared, request, on_progress)


def _compute_tsne(prepared: Prepared, request: dict[str, Any], on_progress: Callable[[float], None]) -> str:
    """Return the name of the array with the t-SNE map: fitted on the unshifted reference, all others placed on it."""
    if not prepared.has("tsne"):
        fitted = next((each for each in prepared.index.sets if each.name == prepared.index.fitted_on), None)
        if fitted is None:
            raise StudyError("asked for a t-SNE map, and no features are stored")
        components = prepared.array("components")
        rows = fitted.first_point + choose_rows(fitted.count, MAX_FITTED_TSNE, seed=0)
        placed = np.flatnonzero(np.isfinite(components[:, 0]))
        others = np.setdiff1d(placed, rows)
        map_, others_map = embed_tsne(
            np.asarray(components[rows]), np.asarray(components[others]), on_progress=on_progress
        )
        places = np.full((len(components), 2), np.nan, dtype=np.float32)
        places[rows], places[others] = map_, others_map
        _save(prepared, "tsne", places)
    return "tsne"


def _save(prepared: Prepared, name: str, array: np.ndarray) -> None:
    temporary = prepared.folder / f"{name}.{os.getpid()}.tmp.npy"
    np.save(temporary, array, allow_pickle=False)
    os.replace(temporary, prepared.folder / f"{name}.npy")


def _compute_clusters(prepared: Prepared, request: dict[str, Any], on_progress: Callable[[float], None]) -> str:
    """Return the name of the files with the clusters: codes per point, and a JSON of what is known about each."""
    if not (prepared.folder / "clusters.json").exists():
        points = _list_clustered(prepared)
        if not len(points):
            raise StudyError("asked for clusters, and no features of labelled images are stored")
        labels, predicted = prepared.array("labels")[points], prepared.array("predicted")[points]
        images = _list_images(prepared, points)
        on_progress(0.1)
        found = find_clusters(
            np.asarray(prepared.array("components")[points]), labels != predicted, prepared.array("groups")[images]
        )
        on_progress(0.8)
        columns = _list_columns(prepared, points, images)
        described = [
            asdict(each)
            | {"is_elevated": each.is_elevated}
            | {"more": [asdict(level) for level in find_overrepresented(found.codes == each.number, columns)]}
            for each in found.clusters
        ]
        codes = np.full(prepared.index.num_points, -1, dtype=np.int16)
        codes[points] = found.codes
        _save(prepared, "clusters", codes)
        text = json.dumps({"clusters": described, "error_rate": found.error_rate, "num_images": len(points)})
        (prepared.folder / "clusters.json").write_text(text)
    return "clusters"


def _list_clustered(prepared: Prepared) -> np.ndarray:
    """Return the points that clusters are made of: unshifted, with features and a class, of no training image."""
    parts = [
        np.arange(each.first_point, each.first_point + each.count)
        for each in prepared.index.sets
        if each.placed and each.name != "train"
    ]
    points = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    return points[prepared.array("labels")[points] != NO_LABEL]


def _list_images(prepared: Prepared, points: np.ndarray) -> np.ndarray:
    images = np.empty(len(points), dtype=np.int64)
    for each in prepared.index.sets:
        inside = (points >= each.first_point) & (points < each.first_point + each.count)
        images[inside] = points[inside] - each.first_point + each.first_image
    return images


def _list_columns(
    prepared: Prepared, points: np.ndarray, images: np.ndarray
) -> list[tuple[str, Sequence[str], np.ndarray]]:
    """Return set, class, prediction and all metadata, as levels; of numbers the lowest and the highest quarter."""
    index = prepared.index
    starts = np.array([each.first_point for each in index.sets])
    columns: list[tuple[str, Sequence[str], np.ndarray]] = [
        ("set", [each.name for each in index.sets], np.searchsorted(starts, points, side="right") - 1),
        ("class", index.classes, prepared.array("labels")[points]),
        ("predicted", index.classes, prepared.array("predicted")[points]),
    ]
    for number, column in enumerate(index.columns):
        values = prepared.array(f"column-{number}")[images]
        if column.levels is not None:
            columns.append((column.name, column.levels, values))
        elif np.isfinite(values).any():
            low, high = np.nanquantile(values, [0.25, 0.75])
            codes = np.where(values <= low, 0, np.where(values >= high, 1, 2))
            columns.append((column.name, (f"≤ {low:g}", f"≥ {high:g}"), codes))
    return columns


KINDS = {"tsne": _compute_tsne, "clusters": _compute_clusters}
