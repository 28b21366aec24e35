"""Data sets of a study: which arms are trained and tested on images of the same source, in the same classes.

Numbers of different data sets are not compared with each other: every one has its own baseline, reference and ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.study.grid import Arm
from trainables.data_config import DataConfig
from trainables.frozen import canonical_json
from trainables.segmentation_data_config import DatasetsData

#: Fields that name the source of images, and those that decide its classes. Sizes, splits and left-out sites do not
#: make another data set.
_SOURCE, _CLASSES = ("flag", "path", "name"), ("classes", "num_classes", "label_map")


def find_data_sets(arms: Sequence[Arm]) -> dict[str, str]:
    """Return name of an arm → label of its data set: a level of the factor that decides it, or the source's own name.

    Args:
        arms: arms of a study, at least one.
    """
    keys = {arm.name: _identify(arm.config.data) for arm in arms}
    distinct = list(dict.fromkeys(keys.values()))
    for factor in arms[0].levels if len(distinct) > 1 else ():
        found: dict[str, set[str]] = {}
        for arm in arms:
            found.setdefault(arm.levels[factor], set()).add(keys[arm.name])
        if len(found) == len(distinct) and all(len(each) == 1 for each in found.values()):
            return {arm.name: arm.levels[factor] for arm in arms}
    labels: dict[str, str] = {}
    for arm in arms:
        if keys[arm.name] not in labels:
            name = _name(arm.config.data)
            number = sum(label == name or label.startswith(f"{name} (") for label in labels.values()) + 1
            labels[keys[arm.name]] = name if number == 1 else f"{name} ({number})"
    return {arm.name: labels[keys[arm.name]] for arm in arms}


def group_by_data_set(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """Return label of a data set → its arms, in the order of the arms."""
    labels, found = find_data_sets(arms) if arms else {}, dict[str, list[Arm]]()
    for arm in arms:
        found.setdefault(labels[arm.name], []).append(arm)
    return found


def find_counterpart(arm: Arm, others: Sequence[Arm]) -> Arm | None:
    """Return the arm of another data set that has most levels in common with ``arm``, None if there are several."""
    shared = [sum(other.levels[factor] == level for factor, level in arm.levels.items()) for other in others]
    best = [other for other, number in zip(others, shared, strict=True) if number == max(shared)]
    return best[0] if len(best) == 1 else None


def is_same_source(first: DataConfig, second: DataConfig) -> bool:
    """Return whether two configurations are of the same data set."""
    return _identify(first) == _identify(second)


def _identify(data: DataConfig) -> str:
    fields = {name: _plain(getattr(data, name, None)) for name in (*_SOURCE, *_CLASSES)}
    if isinstance(data, DatasetsData):
        fields = {"datasets": {name: _identify(part) for name, part in data.datasets.items()}, "labels": data.labels}
    return canonical_json({"kind": data.kind, **fields})


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _name(data: DataConfig) -> str:
    source = next((value for name in _SOURCE if (value := getattr(data, name, None)) is not None), data.kind)
    return source.stem if isinstance(source, Path) else str(source)
