"""Slow computations on a prepared trial, kept beside it: the t-SNE map and the clusters."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.analysis.slices.embedding import MAX_FITTED_TSNE, choose_rows, embed_tsne
from orchestrator.explorer.prepared import Prepared
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


KINDS = {"tsne": _compute_tsne}
