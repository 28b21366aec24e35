"""Makes of a trial's stored predictions the arrays of ``prepared.py``. Imports torch: runs in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.analysis.slices.embedding import NUM_COMPONENTS, fit_axes
from orchestrator.explorer.images import Images
from orchestrator.explorer.prepared import FORMAT, NO_LABEL, Column, Index, ScoreIndex, SetIndex
from orchestrator.ledger.ledger import Ledger
from trainables.data.dataset import ImageSet
from trainables.data.table import hash_json
from trainables.errors import DataError, RobustSweepError, StudyError
from trainables.evaluation.confidence import CONFIDENCE_SCORES, compute_confidence
from trainables.evaluation.ood import DETECTORS, Scorer, TrainingSplit, fit_detector
from trainables.evaluation.predictions import Predictions, load_predictions
from trainables.evaluation.validation_fit import fit_temperature
from trainables.storage.completeness import RESULT
from trainables.storage.folder import Folder

#: Sets in this order, all others after them, training images last.
_FIRST, _LAST = ("test", "val"), ("train",)
#: The set that axes are fitted on: in-distribution images that no training has seen.
REFERENCE = "test"
#: A column of more levels than this is no use as a colour: an id, a file name.
MAX_LEVELS = 200
#: Numbers with at most so many values are levels, 0 and 1 for example.
_MAX_NUMBER_LEVELS = 8


def list_sets(folder: Folder) -> list[str]:
    """Return the names of the sets that a trial has predictions of, in-distribution first and training last."""
    stored = folder / "predictions"
    names = [name.removesuffix(".npz") for name in stored.children() if name.endswith(".npz")]
    order = {name: number for number, name in enumerate(_FIRST)} | dict.fromkeys(_LAST, len(names) + len(_FIRST))
    return sorted(names, key=lambda name: (order.get(name, len(_FIRST)), name))


def compute_key(folder: Folder) -> str:
    """Return a hash of everything that a prepared trial is made from.

    Raises:
        StudyError: the trial is not complete, or has no predictions.
    """
    if not folder.exists(RESULT):
        raise StudyError(f"asked for the images of trial {folder.name}, which is not complete; run the study first")
    names = list_sets(folder)
    if not names:
        raise StudyError(f"looked for predictions in {folder.uri} and found none; run the study again")
    stats = {name: folder.stat(f"predictions/{name}.npz") for name in names}
    return str(hash_json([FORMAT, sorted(CONFIDENCE_SCORES), folder.name, stats]))[:24]


def prepare_trial(
    ledger: Ledger,
    signature: str,
    *,
    cache_dir: Path,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Path:
    """Return the folder of a prepared trial, which is made unless it is there.

    Args:
        ledger: of the study.
        signature: of a complete trial.
        cache_dir: folder on this node's disk.
        on_progress: callback with the finished share, in [0, 1].

    Raises:
        StudyError: the trial is not complete.
        StorageError: its predictions are damaged.
    """
    folder = ledger.folder("trial", signature)
    key = compute_key(folder)
    target = cache_dir / "explorer" / key
    if (target / "index.json").exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    try:
        index = _write(ledger, signature, made, cache_dir, on_progress)
        (made / "index.json").write_text(json.dumps(replace(index, key=key).as_json()))
        try:
            os.replace(made, target)
        except OSError:  # another process was faster
            if not (target / "index.json").exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _write(
    ledger: Ledger, signature: str, target: Path, cache_dir: Path, on_progress: Callable[[float], None]
) -> Index:
    folder = ledger.folder("trial", signature)
    about = folder.read_json("config.json")
    names = list_sets(folder)
    opened = Images(ledger, cache_dir)
    images, problem = _find_images(opened, signature, names)
    classes = ledger.read_plan()["data"]["classes"] if problem is not None else opened.dataset(signature).classes
    writer = _Writer(target, images, _fit_temperature(folder, names), _fit_detectors(folder, names))
    for number, name in enumerate(names):
        writer.add(load_predictions(folder, name))
        on_progress(0.7 * (number + 1) / len(names))
    fitted_on, explained = writer.write_maps()
    on_progress(0.9)
    columns = writer.write_columns()
    scores = writer.write_scores()
    return Index(
        key="",
        signature=signature,
        name=about["name"],
        replicate=int(about["replicate"] or 0),
        classes=tuple(map(str, classes)),
        sets=tuple(writer.sets),
        scores=scores,
        columns=columns,
        fitted_on=fitted_on,
        explained=explained,
        problems=(problem,) if problem else (),
    )


def _find_images(opened: Images, signature: str, names: Sequence[str]) -> tuple[dict[str, ImageSet], str | None]:
    """Return the sets' images, and why some are not there: the map does not need them."""
    try:
        found = opened.list_sets(signature)
    except RobustSweepError as error:
        return {}, f"Images and metadata are not shown, because they could not be had here: {error}"
    return {name: found[name] for name in names if name in found}, None


def _fit_temperature(folder: Folder, names: Sequence[str]) -> float | None:
    """Return the temperature of validation, None where there is none: scores that need it are left out."""
    if "val" not in names:
        return None
    validation = load_predictions(folder, "val")
    return fit_temperature(validation.logits[0].astype(np.float64), validation.labels)


def _fit_detectors(folder: Folder, names: Sequence[str]) -> dict[str, Scorer]:
    """Return the detectors that can be fitted to the stored features of the training images; without them none."""
    train = load_predictions(folder, "train") if "train" in names else None
    if train is None or train.features is None:
        return {}
    split, found = TrainingSplit(train.features, train.labels, train.logits[0]), {}
    for name in DETECTORS:
        try:
            scorer = fit_detector(name, split)
            scorer(train.features[:1], train.logits[0, :1])
        except DataError:
            continue  # too few images, for example: the report of the study has the reason
        found[name] = scorer
    return found


class _Writer:
    """Writes one set after the other; what is held grows with the number of points, not with that of features."""

    def __init__(
        self, target: Path, images: dict[str, ImageSet], temperature: float | None, detectors: dict[str, Scorer]
    ) -> None:
        self._target, self._images, self._temperature, self._detectors = target, images, temperature, detectors
        self.sets: list[SetIndex] = []
        self._labels: list[np.ndarray] = []
        self._predicted: list[np.ndarray] = []
        self._of_logits = [
            score.name
            for score in CONFIDENCE_SCORES.values()
            if score.function is not None and not (score.is_scaled and temperature is None)
        ]
        #: Score → first point and values of each part that has it.
        self._scores: dict[str, list[tuple[int, np.ndarray]]] = {}
        self._groups: list[np.ndarray] = []
        self._ids: list[str] = []
        self._num_points = self._num_groups = 0

    def _save(self, name: str, array: np.ndarray) -> None:
        np.save(self._target / f"{name}.npy", array, allow_pickle=False)

    def add(self, predictions: Predictions) -> None:
        """Add a set: its points, logits and features."""
        number, count = len(self.sets), len(predictions.labels)
        self._save(f"logits-{number}", predictions.logits)
        placed = []
        if predictions.features is not None:
            self._save(f"features-{number}", predictions.features)
            placed.append(predictions.shifts[0])
        shifted = predictions.shifted_features
        if shifted is not None:
            self._save(f"shifted_features-{number}", shifted)
            placed += predictions.shifts[1:]
        labels = np.where(predictions.labels < 0, NO_LABEL, predictions.labels).astype(np.uint16)
        for position, logits in enumerate(predictions.logits):
            self._labels.append(labels)
            self._predicted.append(logits.argmax(axis=1).astype(np.uint16))
            first = self._num_points + position * count
            for name in self._of_logits:
                values = compute_confidence(name, logits, temperature=self._temperature)
                self._scores.setdefault(name, []).append((first, values.astype(np.float32)))
            features = predictions.features_of(predictions.shifts[position])
            if features is not None:
                for name, scorer in self._detectors.items():
                    found = scorer(features, logits).astype(np.float32)
                    self._scores.setdefault(name, []).append((first, found))
        for name, stored in predictions.scores.items():
            self._scores.setdefault(name, []).append((self._num_points, stored.reshape(-1)))
        groups = np.arange(count) if predictions.groups is None else predictions.groups
        self._groups.append(groups + self._num_groups)
        self._num_groups += int(groups.max(initial=-1)) + 1
        missing = [shift for shift in predictions.shifts if shift not in placed]
        self.sets.append(
            SetIndex(
                number=number,
                name=predictions.name,
                count=count,
                shifts=predictions.shifts,
                first_image=len(self._ids),
                first_point=self._num_points,
                placed=tuple(placed),
                problem=_describe_missing(predictions, missing),
                has_images=self._has_images(predictions),
            )
        )
        self._ids += map(str, predictions.ids)
        self._num_points += count * len(predictions.shifts)

    def _has_images(self, predictions: Predictions) -> bool:
        images = self._images.get(predictions.name)
        return images is not None and np.array_equal(images.ids, predictions.ids)

    def write_maps(self) -> tuple[str | None, tuple[float, ...]]:
        """Write the principal components of all sets, and return what they were fitted on and what they explain."""
        with_features = [each for each in self.sets if each.placed]
        places = np.full((self._num_points, NUM_COMPONENTS), np.nan, dtype=np.float32)
        if with_features:
            fitted_on = next((each for each in with_features if each.name == REFERENCE), with_features[0])
            axes = fit_axes(self._load(f"features-{fitted_on.number}"), num_components=NUM_COMPONENTS)
            for each in with_features:
                self._place(each, axes.place, places)
        self._save("components", places)
        self._save("pca", np.ascontiguousarray(places[:, :2]))
        if not with_features:
            return None, ()
        return fitted_on.name, tuple(float(share) for share in axes.explained[:2])

    def _load(self, name: str) -> np.ndarray:
        return np.load(self._target / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def _place(self, each: SetIndex, place: Callable[[np.ndarray], np.ndarray], places: np.ndarray) -> None:
        start = each.first_point
        places[start : start + each.count] = place(self._load(f"features-{each.number}"))
        if len(each.placed) > 1:
            for features in self._load(f"shifted_features-{each.number}"):
                start += each.count
                places[start : start + each.count] = place(features)

    def write_scores(self) -> tuple[ScoreIndex, ...]:
        """Write labels, predictions, groups, ids and all scores; return the scores."""
        self._save("labels", np.concatenate(self._labels))
        self._save("predicted", np.concatenate(self._predicted))
        self._save("groups", np.concatenate(self._groups))
        (self._target / "ids.json").write_text(json.dumps(self._ids))
        scores: list[ScoreIndex] = []
        for name in (name for name in CONFIDENCE_SCORES if name in self._scores):
            values = np.full(self._num_points, np.nan, dtype=np.float32)
            for first, part in self._scores[name]:
                values[first : first + len(part)] = part
            self._save(f"score-{len(scores)}", values)
            score = CONFIDENCE_SCORES[name]
            scores.append(ScoreIndex(name, score.title, score.formula, score.scale))
        return tuple(scores)

    def write_columns(self) -> tuple[Column, ...]:
        """Write the metadata that every image can have: site, and the columns of the data set."""
        values: dict[str, list[Any]] = {}
        for each in self.sets:
            images = self._images.get(each.name) if each.has_images else None
            columns = {} if images is None else {"site": images.sites.tolist()} | images.metadata
            for name, column in columns.items():
                values.setdefault(name, [None] * each.first_image).extend(column)
            for known in values.values():
                known.extend([None] * (each.first_image + each.count - len(known)))
        written: list[Column] = []
        for name, column in values.items():
            described = _describe_column(name, column)
            if described is not None:
                self._save(f"column-{len(written)}", described[1])
                written.append(described[0])
        return tuple(written)


def _describe_missing(predictions: Predictions, missing: Sequence[str]) -> str | None:
    """Return why part of a set is not on the map, None if all of it is."""
    if predictions.features is None:
        return f"no features are stored of {predictions.name}: name it in evaluation.store_features"
    if missing:
        return (
            f"no features are stored of {len(missing)} shifts of {predictions.name}, which are in the lists but not on "
            "the map: add shifts to evaluation.store_features"
        )
    return None


def _describe_column(name: str, values: Sequence[Any]) -> tuple[Column, np.ndarray] | None:
    """Return a metadata column and its values, None if it says nothing: one value, or one per image."""
    known = [value for value in values if value is not None and value != ""]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)
    levels = sorted({str(value) for value in known})
    if numbers and len(levels) > _MAX_NUMBER_LEVELS:
        return Column(name, None), np.array([np.nan if v in (None, "") else v for v in values], dtype=np.float32)
    if len(levels) < 2 or len(levels) > MAX_LEVELS:
        return None
    if numbers:
        levels.sort(key=float)
    code = {level: number for number, level in enumerate(levels)}
    codes = [NO_LABEL if value in (None, "") else code[str(value)] for value in values]
    return Column(name, tuple(levels)), np.array(codes, dtype=np.uint16)
