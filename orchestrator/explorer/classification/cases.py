"""All that is known about one case: its distribution, itself under other shifts, its nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.explorer.prepared import NO_LABEL, Point, Prepared, SetIndex
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
    training = find_training(prepared)
    if training is None:
        return {"neighbours": [], "no_neighbours": NO_TRAINING}
    if prepared.features(place) is None:
        return {"neighbours": [], "no_neighbours": "no features of this image are stored"}
    (nearest,) = find_nearest(prepared, training, [place])
    labels = prepared.array("labels")
    return {
        "neighbours": [
            {
                "point": training.first_point + row,
                "label": int(labels[training.first_point + row]),
                "distance": distance,
            }
            for row, distance in nearest
        ],
        "no_neighbours": None,
    }


#: Why no case has nearest training images.
NO_TRAINING = "no features of training images are stored"


def find_training(prepared: Prepared) -> SetIndex | None:
    """Return the set of the training images if their features are stored."""
    return next((each for each in prepared.index.sets if each.name == "train" and each.placed), None)


def find_nearest(
    prepared: Prepared, training: SetIndex, places: Sequence[Point], *, most: int = _MOST_NEIGHBOURS
) -> list[list[tuple[int, float]]]:
    """Return row and distance of the training images nearest to each place, nearest first; none is its own neighbour.

    Args:
        prepared: a trial.
        training: its training images (``find_training``).
        places: points whose features are stored.
        most: number of neighbours.
    """
    features = prepared.array(f"features-{training.number}")
    mine = np.stack([np.asarray(prepared.features(place), dtype=np.float32) for place in places])
    squares = np.empty((len(mine), len(features)), dtype=np.float32)
    centre = mine.mean(axis=0)  # of one place itself: then these are the squares of the distances
    for start in range(0, len(features), _CHUNK_ROWS):
        chunk = features[start : start + _CHUNK_ROWS].astype(np.float32) - centre
        squares[:, start : start + len(chunk)] = (chunk**2).sum(axis=1) - 2.0 * (mine - centre) @ chunk.T
    found = []
    for place, own, row_squares in zip(places, mine, squares, strict=True):
        if place.set.number == training.number:
            row_squares[place.row] = np.inf
        # Squares are short of some digits where places lie far apart: twice as many are measured again.
        rows = np.argsort(row_squares, kind="stable")[: 2 * most]
        rows = rows[np.isfinite(row_squares[rows])]
        distances = np.linalg.norm(features[np.sort(rows)].astype(np.float32) - own, axis=1)
        order = np.argsort(distances, kind="stable")[:most]
        found.append([(int(np.sort(rows)[k]), float(distances[k])) for k in order])
    return found
