"""All that is known about one case: its distribution, itself under other shifts, its nearest training images."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.explorer.prepared import NO_LABEL, Point, Prepared
from trainables.evaluation.classification import compute_log_softmax

#: Classes of the distribution, and training images, that are shown at most.
_MOST_CLASSES, _MOST_NEIGHBOURS = 8, 8
#: Rows of training features that are compared at a time.
_CHUNK_ROWS = 16_384


def describe_case(prepared: Prepared, point: int) -> dict[str, Any]:
    """Return a case for the page: numbers of points, codes of classes.

    Raises:
        StudyError: there is no such point.
    """
    place = prepared.find(point)
    logits = np.asarray(prepared.array(f"logits-{place.set.number}")[:, place.row])
    probabilities = np.exp(compute_log_softmax(logits.astype(np.float64)))
    mine = probabilities[place.shift]
    order = np.argsort(-mine, kind="stable")[:_MOST_CLASSES]
    return {
        "point": point,
        "id": prepared.ids[place.image],
        "label": _label(prepared, point),
        "distribution": [{"class": int(code), "probability": float(mine[code])} for code in order],
        "metadata": _read_metadata(prepared, place),
        "versions": [
            {
                "point": place.set.first_point + position * place.set.count + place.row,
                "shift": shift,
                "predicted": int(each.argmax()),
                "probability": float(each.max()),
            }
            for position, (shift, each) in enumerate(zip(place.set.shifts, probabilities, strict=True))
        ],
        **_find_neighbours(prepared, place),
    }


def _label(prepared: Prepared, point: int) -> int | None:
    label = int(prepared.array("labels")[point])
    return None if label == NO_LABEL else label


def _read_metadata(prepared: Prepared, place: Point) -> dict[str, str]:
    found = {}
    for number, column in enumerate(prepared.index.columns):
        value = prepared.array(f"column-{number}")[place.image]
        if column.levels is None:
            if np.isfinite(value):
                found[column.name] = f"{float(value):g}"
        elif value != NO_LABEL:
            found[column.name] = column.levels[value]
    return found


def _find_neighbours(prepared: Prepared, place: Point) -> dict[str, Any]:
    """Return the training images nearest in feature space, or why there are none."""
    training = next((each for each in prepared.index.sets if each.name == "train"), None)
    if training is None or not training.placed:
        return {"neighbours": [], "no_neighbours": "no features of training images are stored"}
    mine = prepared.features(place)
    if mine is None:
        return {"neighbours": [], "no_neighbours": "no features of this image are stored"}
    features, labels = prepared.array(f"features-{training.number}"), prepared.array("labels")
    distances = np.empty(len(features), dtype=np.float32)
    for start in range(0, len(features), _CHUNK_ROWS):
        chunk = features[start : start + _CHUNK_ROWS].astype(np.float32)
        distances[start : start + len(chunk)] = np.linalg.norm(chunk - mine.astype(np.float32), axis=1)
    if place.set.number == training.number:
        distances[place.row] = np.inf
    rows = np.argsort(distances, kind="stable")[:_MOST_NEIGHBOURS]
    return {
        "neighbours": [
            {
                "point": training.first_point + int(row),
                "label": int(labels[training.first_point + row]),
                "distance": float(distances[row]),
            }
            for row in rows
            if np.isfinite(distances[row])
        ],
        "no_neighbours": None,
    }
