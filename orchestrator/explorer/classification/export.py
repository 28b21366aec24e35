"""Data of one trial of classifications in a page by itself: arrays, thumbnails, all about the worst cases."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.explorer.classification.cases import NO_TRAINING, find_nearest, find_training
from orchestrator.explorer.images import encode_thumbnail
from orchestrator.explorer.prepared import NO_LABEL, Index, Point, Prepared, SetIndex
from orchestrator.explorer.study import ExploredStudy
from trainables.errors import RobustSweepError
from trainables.evaluation.classification import compute_log_softmax

#: Images in a file unless more of them are wrong; a random part of those that are right everywhere is left out.
MAX_IMAGES = 4_000
#: Points in a file with shifts; beyond, it holds the unshifted images alone.
MAX_POINTS = 150_000
#: Failures that are in a file with their nearest training images and, if there are not too many, all shifted versions.
MAX_CASES = 100
#: Shifted images in a file: 2 KB each.
MAX_SHIFTED = 1_500
#: Side of the thumbnails, px: 1 to 2 KB each.
THUMBNAIL_PX = 64
#: Attribution of the failures, and the side of its pictures, px: more than that of the maps that it interpolates.
LOOKED, LOOKED_PX = "grad_cam", 32
#: Classes of an image's distribution that are in the file.
_MOST_CLASSES = 5


@dataclass(frozen=True, eq=False)
class _Part:
    """Part of one set that is in the file."""

    old: SetIndex
    new: SetIndex
    #: Rows of the kept images.
    rows: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """Numbers of the kept points in the whole trial."""
        starts = self.old.first_point + np.arange(len(self.new.shifts)) * self.old.count
        return (starts[:, None] + self.rows).ravel()


def collect_content(explored: ExploredStudy, number: int) -> dict[str, Any]:
    """Return what the page shows of a trial, ready for JSON; ``left_out`` says in words what it lacks.

    Args:
        explored: the study; the trial is prepared if it is not.
        number: number of the trial.

    Raises:
        RobustSweepError: the trial cannot be prepared.
    """
    prepared = explored.prepare_now(number)
    parts, left_out = _choose(prepared)
    cases = _choose_cases(prepared, parts)
    drawn, about_drawn = _draw_cases(explored, number, prepared, cases)
    neighbours, about_neighbours = _collect_neighbours(explored, number, prepared, cases)
    left_out = " ".join(filter(None, [left_out, *about_drawn, about_neighbours])) or None
    return _collect(explored, number, prepared, parts, left_out) | neighbours | drawn


def _choose(prepared: Prepared, *, seed: int = 0) -> tuple[list[_Part], str | None]:
    """Return what is in the file, and in words what is not: every image that is ever wrong is in it."""
    sets = [each for each in prepared.index.sets if each.name != "train"]
    num_points = sum(each.count * len(each.shifts) for each in sets)
    with_shifts = num_points <= MAX_POINTS
    labels, predicted = prepared.array("labels"), prepared.array("predicted")
    wrong, right = [], []
    for each in sets:
        shifts = len(each.shifts) if with_shifts else 1
        points = slice(each.first_point, each.first_point + shifts * each.count)
        is_wrong = (labels[points] != predicted[points]) & (labels[points] != NO_LABEL)
        is_wrong = is_wrong.reshape(shifts, each.count).any(axis=0)
        wrong.append(np.flatnonzero(is_wrong))
        right.append(np.flatnonzero(~is_wrong))
    room = max(0, MAX_IMAGES - sum(map(len, wrong)))
    total_right = sum(map(len, right))
    share = min(1.0, room / total_right) if total_right else 1.0
    generator = np.random.default_rng(seed)
    parts: list[_Part] = []
    first_image = first_point = 0
    for each, bad, good in zip(sets, wrong, right, strict=True):
        kept = good if share == 1.0 else generator.choice(good, int(share * len(good)), replace=False)
        rows = np.sort(np.concatenate([bad, kept])).astype(np.int64)
        shifts_kept = each.shifts if with_shifts else each.shifts[:1]
        placed = tuple(shift for shift in each.placed if shift in shifts_kept)
        new = replace(
            each, number=len(parts), count=len(rows), shifts=shifts_kept, placed=placed,
            first_image=first_image, first_point=first_point,
        )  # fmt: skip
        parts.append(_Part(each, new, rows))
        first_image += len(rows)
        first_point += len(rows) * len(shifts_kept)
    return parts, _describe_left_out(first_image, sum(each.count for each in sets), with_shifts)


def _describe_left_out(kept: int, total: int, with_shifts: bool) -> str | None:
    said = []
    if kept < total:
        said.append(f"{kept:,} of {total:,} images: all that are ever wrong, and a random part of the others")
    if not with_shifts:
        said.append("unshifted images alone")
    if not said:
        return None
    rates = "; error rates in it are not those of the whole sets" if kept < total else ""
    return f"This file holds {', '.join(said)}{rates}."


def _collect(
    explored: ExploredStudy, number: int, prepared: Prepared, parts: Sequence[_Part], left_out: str | None
) -> dict[str, Any]:
    """Return everything that the page shows, arrays in base 64."""
    index = replace(
        prepared.index,
        sets=tuple(part.new for part in parts),
    )
    points = np.concatenate([part.points for part in parts])
    images = np.concatenate([part.old.first_image + part.rows for part in parts])
    arrays = {name: _pack(prepared.array(name)[points]) for name in ("labels", "predicted", "pca")}
    arrays |= {f"score/{k}": _pack(prepared.array(f"score-{k}")[points]) for k in range(len(index.scores))}
    arrays |= {f"column/{k}": _pack(prepared.array(f"column-{k}")[images]) for k in range(len(index.columns))}
    clusters = _read_clusters(explored, number, prepared)
    if prepared.has("clusters"):
        arrays["clusters"] = _pack(prepared.array("clusters")[points])
    if prepared.has("tsne"):
        arrays["tsne"] = _pack(prepared.array("tsne")[points])
    return {
        "index": index.as_json(),
        "arrays": arrays,
        "clusters": clusters,
        "ids": [prepared.ids[image] for image in images],
        "thumbnails": _draw_thumbnails(explored, number, parts),
        "left_out": left_out,
    } | _describe_predictions(prepared, parts, index)


def _read_clusters(explored: ExploredStudy, number: int, prepared: Prepared) -> Any:
    file = prepared.folder / "clusters.json"
    if not file.exists():
        try:
            explored.compute_now(number, "clusters")
        except RobustSweepError as error:
            return {"problem": str(error)}
    return json.loads(file.read_bytes())


def _describe_predictions(prepared: Prepared, parts: Sequence[_Part], index: Index) -> dict[str, str]:
    """Return the largest probability of every point, and the first classes of every unshifted image."""
    size = min(_MOST_CLASSES, len(index.classes))
    top, codes, shares = [], [], []
    for part in parts:
        logits = prepared.array(f"logits-{part.old.number}")
        for position in range(len(part.new.shifts)):
            probabilities = np.exp(compute_log_softmax(np.asarray(logits[position][part.rows], dtype=np.float64)))
            top.append(np.rint(255 * probabilities.max(axis=1)).astype(np.uint8))
            if position == 0:
                order = np.argsort(-probabilities, axis=1, kind="stable")[:, :size]
                codes.append(order.astype(np.uint16))
                shares.append(np.take_along_axis(probabilities, order, axis=1).astype(np.float32))
    return {
        "top": _pack(np.concatenate(top)),
        "distribution_codes": _pack(np.concatenate(codes)),
        "distribution_shares": _pack(np.concatenate(shares)),
    }


def _draw_thumbnails(explored: ExploredStudy, number: int, parts: Sequence[_Part]) -> list[str]:
    """Return one small image each, a JPEG in base 64; "" where a set's images are not on this machine."""
    drawn: list[str] = []
    for part in parts:
        drawn += _draw_rows(explored, number, part.old, part.rows)
    return drawn


def _draw_rows(explored: ExploredStudy, number: int, old: SetIndex, rows: Iterable[int]) -> list[str]:
    if not old.has_images:
        return ["" for _ in rows]
    images = explored.images.open_set(explored.find(number).signature, old.name).images
    return [base64.b64encode(encode_thumbnail(np.asarray(images[row]), THUMBNAIL_PX)).decode() for row in rows]


def _choose_cases(prepared: Prepared, parts: Sequence[_Part]) -> list[tuple[_Part, int]]:
    """Return part and place in it of the cases that are in the file with everything about them.

    They are the failures with the highest confidence, those without a shift first.
    """
    scores = prepared.index.scores
    confidence = prepared.array(f"score-{next((k for k, each in enumerate(scores) if each.name == 'msr'), 0)}")
    labels, predicted = prepared.array("labels"), prepared.array("predicted")
    ranked: list[tuple[bool, float, int, int]] = []
    for which, part in enumerate(parts):
        shape = (len(part.new.shifts), len(part.rows))
        points = part.points
        is_wrong = ((labels[points] != predicted[points]) & (labels[points] != NO_LABEL)).reshape(shape)
        values = np.where(is_wrong, np.nan_to_num(confidence[points], nan=-np.inf).reshape(shape), -np.inf)
        surest = np.where(is_wrong[0], values[0], values.max(axis=0))
        ranked += [
            (not is_wrong[0, place], -float(surest[place]), which, int(place))
            for place in np.flatnonzero(is_wrong.any(axis=0))
        ]
    return [(parts[which], place) for _, _, which, place in sorted(ranked)[:MAX_CASES]]


def _draw_cases(
    explored: ExploredStudy, number: int, prepared: Prepared, cases: Sequence[tuple[_Part, int]]
) -> tuple[dict[str, Any], list[str]]:
    """Return shifted images (point in the file → picture) and attributions (image → picture), and words about them."""
    with_images = [(part, place) for part, place in cases if part.old.has_images]
    kept: list[tuple[_Part, int]] = []
    room = MAX_SHIFTED
    for part, place in with_images:
        if 0 < len(part.new.shifts) - 1 <= room:
            room -= len(part.new.shifts) - 1
            kept.append((part, place))
    shifts = [
        (part, position, places) for part, places in _by_part(kept) for position in range(1, len(part.new.shifts))
    ]
    looks, predicted = _by_part(with_images), prepared.array("predicted")
    if not looks:
        return {"shifted": {}, "looked": {}}, []
    found = explored.draw_cases(
        number,
        shifted=[[part.old.name, part.rows[at].tolist(), part.new.shifts[position]] for part, position, at in shifts],
        side=THUMBNAIL_PX,
        looked=[
            [part.old.name, part.rows[at].tolist(), predicted[part.old.first_point + part.rows[at]].tolist()]
            for part, at in looks
        ],
        looked_side=LOOKED_PX,
        method=LOOKED,
    )
    pictures = {
        "shifted": _number(
            [part.new.first_point + position * part.new.count for part, position, _ in shifts],
            [at for *_, at in shifts],
            found.get("shifted", []),
        ),
        "looked": _number(
            [part.new.first_image for part, _ in looks], [at for _, at in looks], found.get("looked", [])
        ),
    }
    words = []
    if shifts:
        said = f"Shifted images are there of {_word_cases(len(kept))}."
        words.append(found.get("no_shifted", said))
    words.append(found.get("no_looked", f"Where the model looked is there of {_word_cases(len(with_images))}."))
    return pictures, words


def _by_part(cases: Sequence[tuple[_Part, int]]) -> list[tuple[_Part, list[int]]]:
    parts = dict.fromkeys(part for part, _ in cases)
    return [(part, [place for each, place in cases if each is part]) for part in parts]


def _number(firsts: list[int], places: list[list[int]], pictures: list[list[str]]) -> dict[str, str]:
    """Return number in the file → picture; none if none could be drawn."""
    if not pictures:
        return {}
    return {
        str(first + place): picture
        for first, at, drawn in zip(firsts, places, pictures, strict=True)
        for place, picture in zip(at, drawn, strict=True)
    }


def _word_cases(count: int) -> str:
    return f"{count} of the most confident failures"


def _collect_neighbours(
    explored: ExploredStudy, number: int, prepared: Prepared, cases: Sequence[tuple[_Part, int]]
) -> tuple[dict[str, Any], str | None]:
    """Return image in the file → its nearest training images, these each once, and in words whose are not there."""
    training = find_training(prepared)
    chosen = [(part, place) for part, place in cases if part.old.placed]
    if training is None or not chosen:
        why = NO_TRAINING if training is None else "this file has those of failures alone"
        return {"neighbours": {}, "training": {}, "no_neighbours": why}, None
    places = [Point(part.old, int(part.rows[place]), 0) for part, place in chosen]
    found = find_nearest(prepared, training, places)
    rows = sorted({row for nearest in found for row, _ in nearest})
    labels = prepared.array("labels")
    said = f"Nearest training images are there of {_word_cases(len(chosen))}."
    return {
        "neighbours": {
            str(part.new.first_image + place): [{"row": row, "distance": distance} for row, distance in nearest]
            for (part, place), nearest in zip(chosen, found, strict=True)
        },
        "training": {
            str(row): {
                "id": prepared.ids[training.first_image + row],
                "label": int(labels[training.first_point + row]),
                "picture": picture,
            }
            for row, picture in zip(rows, _draw_rows(explored, number, training, rows), strict=True)
        },
        "no_neighbours": f"this file has those of {_word_cases(len(chosen))}",
    }, said


def _pack(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()
