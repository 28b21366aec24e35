"""Arrays that the page needs of one trial, memory-mapped from this node's disk: memory stays flat.

    <cache_dir>/explorer/<key>/
      index.json               ``Index``
      labels.npy predicted.npy  one uint16 per point; ``NO_LABEL`` where the class is none of the study's
      score-<k>.npy            one float32 per point: higher is more confident
      column-<k>.npy           one uint16 (level) or float32 per image
      pca.npy                  two float32 per point, NaN where features are not stored
      groups.npy               one int64 per image: patient or other group, in all sets together
      logits-<s>.npy features-<s>.npy shifted_features-<s>.npy ids.json

A point is one image of one set under one shift. Points lie set by set, in a set shift by shift, and in these in the
order of the set's images. Written by ``prepare.py`` under a key that is a hash of the stored predictions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainables.errors import StudyError

#: Stands for a class that is none of the study's: images of held-out classes and of other data sources.
NO_LABEL = 65_535
#: Changes whenever the files mean something else.
FORMAT = 1


@dataclass(frozen=True)
class SetIndex:
    """One image set of a trial."""

    number: int
    name: str
    count: int
    shifts: tuple[str, ...]
    #: Number of the set's first image among all images, and of its first point among all points.
    first_image: int
    first_point: int
    #: Shifts whose features are stored, so that they are on the map.
    placed: tuple[str, ...]
    #: Why not all of it is on the map, or has no images; None if all is there.
    problem: str | None = None
    has_images: bool = True


@dataclass(frozen=True)
class Column:
    """One metadata column: a level (category) or a number per image."""

    name: str
    #: Levels of a category; None of numbers.
    levels: tuple[str, ...] | None


@dataclass(frozen=True)
class ScoreIndex:
    """One confidence score of a trial."""

    name: str
    title: str
    formula: str
    #: What the values are: "as is", "log odds" of the formula, or "−log" of it.
    scale: str


@dataclass(frozen=True)
class Index:
    """Table of contents of a prepared trial."""

    key: str
    signature: str
    name: str
    replicate: int
    classes: tuple[str, ...]
    sets: tuple[SetIndex, ...]
    scores: tuple[ScoreIndex, ...]
    columns: tuple[Column, ...]
    #: Set that the map's axes were fitted on; None without any features.
    fitted_on: str | None
    explained: tuple[float, ...] = ()
    problems: tuple[str, ...] = field(default=())

    @property
    def num_points(self) -> int:
        """Number of points, those without a place on the map included."""
        return sum(each.count * len(each.shifts) for each in self.sets)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(each.count for each in self.sets)

    def as_json(self) -> dict[str, Any]:
        """Return the index for ``index.json`` and for the page."""
        return asdict(self) | {"num_points": self.num_points, "num_images": self.num_images}

    @classmethod
    def read(cls, text: bytes) -> Index:
        """Return the index from the content of ``index.json``."""
        found = json.loads(text)
        del found["num_points"], found["num_images"]
        found["sets"] = tuple(
            SetIndex(**each | {"shifts": tuple(each["shifts"]), "placed": tuple(each["placed"])})
            for each in found["sets"]
        )
        found["scores"] = tuple(ScoreIndex(**each) for each in found["scores"])
        found["columns"] = tuple(
            Column(each["name"], None if each["levels"] is None else tuple(each["levels"])) for each in found["columns"]
        )
        for key in ("classes", "explained", "problems"):
            found[key] = tuple(found[key])
        return cls(**found)


@dataclass(frozen=True)
class Point:
    """Place of a point in its set."""

    set: SetIndex
    #: Number of the image in its set, and of its shift in ``set.shifts``.
    row: int
    shift: int

    @property
    def image(self) -> int:
        """Number of the image among all images of the trial."""
        return self.set.first_image + self.row


class Prepared:
    """A prepared trial; every array is memory-mapped when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index.read((folder / "index.json").read_bytes())

    def array(self, name: str) -> np.ndarray:
        """Return an array by the name of its file, without its ending."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def has(self, name: str) -> bool:
        """Return whether there is such an array."""
        return (self.folder / f"{name}.npy").exists()

    @cached_property
    def ids(self) -> Sequence[str]:
        """Ids of all images."""
        found: list[str] = json.loads((self.folder / "ids.json").read_bytes())
        return found

    def find(self, point: int) -> Point:
        """Return the place of a point by its number.

        Raises:
            StudyError: there is no such point.
        """
        for each in self.index.sets:
            inside = point - each.first_point
            if 0 <= inside < each.count * len(each.shifts):
                return Point(each, inside % each.count, inside // each.count)
        raise StudyError(f"asked for point {point}, expected 0 to {self.index.num_points - 1}")

    def features(self, place: Point) -> np.ndarray | None:
        """Return the features of a point, None if they are not stored."""
        key = place.set.shifts[place.shift]
        if key not in place.set.placed:
            return None
        if place.shift == 0:
            return np.asarray(self.array(f"features-{place.set.number}")[place.row])
        return np.asarray(self.array(f"shifted_features-{place.set.number}")[place.shift - 1, place.row])
