"""Several data sets in one: their images under one set of splits, their masks in one set of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8

from trainables.data.assembly import Assignment, assign_components
from trainables.data.dataset import UNCOUNTED
from trainables.data.splits import EXTERNAL, SPLITS, check_no_empty_split
from trainables.data.table import Source, Table, hash_json
from trainables.errors import ConfigError, DataError
from trainables.segmentation_data_config import BACKGROUND, DatasetsData, SegmentationSource

Result = TypeVar("Result")
BuildSource = Callable[[SegmentationSource], Source]


@dataclass(frozen=True)
class _Part:
    """One data set of a union."""

    name: str
    table: Table
    #: Rows of ``table`` that are used or have a problem.
    rows: list[int]
    #: Set of each of ``rows`` in the union.
    sets: list[str]
    #: Class of this data set → class of the union, 256 entries.
    classes: UInt8[np.ndarray, " 256"]


@dataclass(frozen=True)
class UnionPixels:
    """Images of several tables, one after another."""

    parts: Sequence[_Part]
    #: Number of the first row of each part.
    starts: Int64[np.ndarray, " parts"]
    #: Row → in words how its intensities were converted, filled in by ``decode``.
    conversions: dict[int, str]
    #: Columns of the union, to which ``decode`` copies what its parts find out.
    metadata: dict[str, list[Any]]
    has_masks: bool = True

    def decode(
        self,
        rows: Int64[np.ndarray, " n"],
        images: UInt8[np.ndarray, "n channels height width"],
        masks: UInt8[np.ndarray, "n height width"] | None,
    ) -> tuple[list[str], dict[int, str]]:
        """Decode ``rows`` part by part, see ``Pixels.decode``; ids begin with the part, so its rows are adjacent."""
        assert masks is not None
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(rows)] if len(rows) else []
        digests: list[str] = []
        problems: dict[int, str] = {}
        for start, stop in pairwise(edges):
            part, first = self.parts[owner[start]], int(self.starts[owner[start]])
            inner = np.array(part.rows)[rows[start:stop] - first]
            outer = dict(zip(inner.tolist(), rows[start:stop].tolist(), strict=True))
            found, bad = part.table.pixels.decode(inner, images[start:stop], masks[start:stop])
            masks[start:stop] = part.classes[masks[start:stop]]
            digests += [hash_json([part.name, part.classes.tolist(), digest]) for digest in found]
            problems |= {outer[row]: problem for row, problem in bad.items()}
            self.conversions.update({outer[row]: how for row, how in part.table.conversions.items() if row in outer})
            for name, values in part.table.metadata.items():
                for row, place in outer.items():
                    self.metadata[name][place] = values[row]
        return digests, problems


def build_datasets_source(config: DatasetsData, build_source: BuildSource, not_stored: set[str]) -> Source:
    """Return the source of several data sets.

    Args:
        config: the data sets, and which of them are for training.
        build_source: returns the source of one of them.
        not_stored: fields that change no stored byte.

    Raises:
        DataError: see the sources.
    """
    sources = {name: _name_failures(name, build_source, part) for name, part in config.parts.items()}
    content = [
        [name, sources[name].content, part.model_dump(mode="json", exclude=not_stored)]
        for name, part in config.parts.items()
    ]
    return Source(hash_json(content), lambda: _read_table(config, sources))


def _name_failures(name: str, read: Callable[..., Result], *arguments: Any) -> Result:
    """Return what ``read`` returns; its errors name the data set."""
    try:
        return read(*arguments)
    except (ConfigError, DataError) as error:
        raise type(error)(f"data.datasets.{name}: {error}") from error


def _read_table(config: DatasetsData, sources: Mapping[str, Source]) -> Table:
    tables = {name: _name_failures(name, source.read_table) for name, source in sources.items()}
    classes, annotated, luts = _join_classes(config, {name: table.classes or () for name, table in tables.items()})
    parts = [_name_failures(name, _select, config, name, table, luts[name]) for name, table in tables.items()]
    columns: dict[str, list[Any]] = {"site": []} if any(any(part.table.sites) for part in parts) else {}
    columns |= {key: [] for part in parts for key in part.table.metadata}
    for part in parts:
        known = part.table.metadata | {"site": part.table.sites}
        for key, column in columns.items():
            column.extend([known[key][row] for row in part.rows] if key in known else [None] * len(part.rows))
    starts = np.cumsum([0] + [len(part.rows) for part in parts])[:-1]
    pixels = UnionPixels(parts, starts, {}, columns)

    def join(read: Callable[[_Part, int], Any]) -> list[Any]:
        return [read(part, row) for part in parts for row in part.rows]

    return Table(
        pixels=pixels,
        ids=join(lambda part, row: f"{part.name}/{part.table.ids[row]}"),
        labels=join(lambda part, _: part.name),
        splits=[name for part in parts for name in part.sets],
        groups=join(lambda part, row: f"{part.name}/{part.table.groups[row]}"),
        sites=join(lambda part, _: part.name),
        file_names=join(lambda part, row: f"{part.name}: {part.table.file_names[row]}"),
        rows=join(lambda part, row: part.table.rows[row]),
        metadata=columns,
        problems={
            int(start) + place: part.table.problems[row]
            for start, part in zip(starts, parts, strict=True)
            for place, row in enumerate(part.rows)
            if row in part.table.problems
        },
        conversions=pixels.conversions,
        classes=classes,
        components=tuple(tables),
        annotated=annotated,
    )


def _join_classes(
    config: DatasetsData, classes: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]], dict[str, UInt8[np.ndarray, " 256"]]]:
    """Return the classes of the union, data set → those that it tells apart, and data set → its classes in the union.

    Raises:
        ConfigError: there are more classes than a byte can number.
    """
    if config.labels == "merged":
        joined: tuple[str, ...] = (BACKGROUND, config.foreground)
        index = {name: [0, *[1] * (len(own) - 1)] for name, own in classes.items()}
    else:
        joined = (BACKGROUND, *(f"{name}:{each}" for name, own in classes.items() for each in own[1:]))
        index = {name: [0, *(joined.index(f"{name}:{each}") for each in own[1:])] for name, own in classes.items()}
    if len(joined) > UNCOUNTED:
        raise ConfigError(f"data.labels: separate makes {len(joined)} classes, expected at most {UNCOUNTED}")
    luts = {}
    for name, places in index.items():
        luts[name] = np.full(256, UNCOUNTED, dtype=np.uint8)
        luts[name][: len(places)] = places
    return joined, {name: tuple(sorted({*places})) for name, places in index.items()}, luts


def _select(config: DatasetsData, name: str, table: Table, classes: UInt8[np.ndarray, " 256"]) -> _Part:
    """Return a data set with its rows and their sets: train, val, test if it is trained on, else its test set alone."""
    part = config.parts[name]
    assignment = assign_components(table, part)
    is_trained = name in config.trained
    if not assignment.problems:
        _check_sets(assignment, is_trained)
    names = {
        each: EXTERNAL + f"{name}-{each.removeprefix(EXTERNAL)}" for each in {*assignment.sets} if EXTERNAL in each
    }
    names |= {each: each for each in SPLITS} if is_trained else {"test": EXTERNAL + name}
    sets = [names.get(each, "") for each in assignment.sets]
    rows = [row for row, each in enumerate(sets) if each or row in table.problems]
    return _Part(name, table, rows, [sets[row] for row in rows], classes)


def _check_sets(assignment: Assignment, is_trained: bool) -> None:
    """Check that a data set has the images that its part in the union needs.

    Raises:
        DataError: it has none in train, val or test, or in test.
    """
    if is_trained:
        check_no_empty_split(assignment.sets, assignment.labels, ())
    elif not (assignment.sets == "test").any():
        raise DataError(
            f"no image is in test ({len(assignment.sets)} images in all); expected some, since a data set that is not "
            "in data.train_on is only tested on: raise its test_fraction, or check its folders"
        )
