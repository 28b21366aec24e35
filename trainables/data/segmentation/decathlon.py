"""Source of volumes with a ``dataset.json``, or of their slices: the Medical Segmentation Decathlon's, or nnU-Net's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainables.data.decoding.pixels import build_pixel_spec
from trainables.data.decoding.threads import map_threads
from trainables.data.identity.file_digests import FileDigests
from trainables.data.identity.texts import normalise
from trainables.data.segmentation.nifti import SlicePixels, Volume, read_labels, read_shape
from trainables.data.segmentation.targets import TARGETS_VERSION, index_values, order_classes
from trainables.data.segmentation.volumes import VolumePixels, order_axes, plan_grid
from trainables.data.table import Source, Table, hash_json
from trainables.errors import DataError
from trainables.segmentation_data_config import DecathlonData

#: nnU-Net's name of the label of pixels that nothing counts.
_IGNORE = "ignore"
_SUFFIX = ".nii.gz"


@dataclass(frozen=True)
class _Listing:
    """Volumes of a ``dataset.json``."""

    volumes: list[Volume]
    #: Split of every volume, "" for those in ``training``.
    splits: list[str]
    #: Label → name.
    labels: dict[int, str]


def build_decathlon_source(config: DecathlonData, digests: FileDigests) -> Source:
    """Return the source of all volumes that have labels, or of their slices.

    Raises:
        DataError: ``dataset.json`` is missing or not of a known form.
    """
    listing = _read_listing(config)
    paths = [path.absolute() for volume in listing.volumes for path in _files(volume)]
    found = dict(zip(paths, digests.read(paths, of=f"volumes {config.path.absolute()}"), strict=True))
    content = [[found[path.absolute()] for path in _files(volume)] for volume in listing.volumes]
    said = [[volume.name for volume in listing.volumes], listing.splits, sorted(listing.labels.items())]
    read = _read_slices if config.dimensions == 2 else _read_volumes
    return Source(hash_json([content, said]), lambda: read(config, listing, content))


def _files(volume: Volume) -> list[Path]:
    return [*dict.fromkeys(path for path, _ in volume.images), volume.label]


def _index_labels(config: DecathlonData, listing: _Listing) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the classes, and label → index of its class or ``UNCOUNTED``."""
    labels = {value: name for value, name in listing.labels.items() if name != _IGNORE}
    ignored = {value: name for value, name in listing.labels.items() if name == _IGNORE}
    classes = order_classes([labels[value] for value in sorted(labels)], config.label_map)
    return classes, index_values(labels, config.label_map, classes) | index_values(ignored, {_IGNORE: None}, classes)


def _read_volumes(config: DecathlonData, listing: _Listing, content: Sequence[Sequence[str]]) -> Table:
    classes, index = _index_labels(config, listing)
    volumes, problems = listing.volumes, {}
    sizes, sides = [(1, 1, 1)] * len(volumes), [(1.0, 1.0, 1.0)] * len(volumes)
    for row, volume in enumerate(volumes):
        try:
            sizes[row], sides[row] = read_shape(volume.label)
        except DataError as error:
            problems[row] = f"has labels, {volume.label.name}, that cannot be used: the file {error}"
    grid = plan_grid(
        [order_axes(size, config.slices.axis) for size in sizes],
        [order_axes(each, config.slices.axis) for each in sides],
        spacing=config.spacing_mm,
        reference=[row for row, split in enumerate(listing.splits) if split != "test" and row not in problems],
    )
    how = [config.window, config.scale, config.modalities, config.slices.axis, grid.spacing]
    settings = [TARGETS_VERSION, how, sorted(index.items()), classes]
    pixels = VolumePixels(
        volumes=volumes,
        grid=grid,
        axis=config.slices.axis,
        digests=[hash_json([settings, each]) for each in content],
        spec=build_pixel_spec(config),
        index=index,
    )
    names = [volume.name for volume in volumes]
    return Table(
        pixels=pixels,
        ids=names,
        labels=[""] * len(names),
        splits=listing.splits,
        groups=names,
        sites=[""] * len(names),
        file_names=[str(volume.images[0][0].relative_to(config.path)) for volume in volumes],
        rows=[None] * len(names),
        metadata=grid.describe(),
        problems=problems,
        conversions=pixels.conversions,
        classes=classes,
        components=("",),
        annotated={"": tuple(range(len(classes)))},
        shape=grid.shape,
    )


def _read_slices(config: DecathlonData, listing: _Listing, content: Sequence[Sequence[str]]) -> Table:
    classes, index = _index_labels(config, listing)
    counted = map_threads(lambda volume: _list_slices(volume, config, index), listing.volumes)
    slices = [(place, number) for place, (numbers, _) in enumerate(counted) for number in numbers]
    owners = [place for place, _ in slices]
    names = [listing.volumes[place].name for place in owners]
    ids = [f"{name}/{number:04d}" for name, (_, number) in zip(names, slices, strict=True)]
    how = [config.window, config.scale, config.modalities, config.slices.axis]
    settings = [TARGETS_VERSION, how, sorted(index.items()), classes]
    spacing: dict[str, list[float | None]] = {name: [None] * len(ids) for name in ("spacing_row", "spacing_column")}
    pixels = SlicePixels(
        volumes=listing.volumes,
        slices=slices,
        axis=config.slices.axis,
        digests=[hash_json([settings, content[place], number]) for place, number in slices],
        spec=build_pixel_spec(config),
        index=index,
        spacing=spacing,
    )
    return Table(
        pixels=pixels,
        ids=ids,
        labels=[""] * len(ids),
        splits=[listing.splits[place] for place in owners],
        groups=names,
        sites=[""] * len(ids),
        file_names=[str(listing.volumes[place].images[0][0].relative_to(config.path)) for place in owners],
        rows=[number for _, number in slices],
        metadata={"volume": names, "slice": [number for _, number in slices], **spacing},
        problems={row: problem for row, place in enumerate(owners) if (problem := counted[place][1]) is not None},
        conversions=pixels.conversions,
        classes=classes,
        components=("",),
        annotated={"": tuple(range(len(classes)))},
    )


def _list_slices(volume: Volume, config: DecathlonData, index: Mapping[int, int]) -> tuple[list[int], str | None]:
    """Return the slices of a volume that become images, or one slice and why the volume cannot be used."""
    try:
        count = read_shape(volume.label)[0][config.slices.axis]
        numbers = list(range(0, count, config.slices.every))
        if config.slices.without_foreground == "drop":
            labels, _ = read_labels(volume.label)
            background = [value for value, place in index.items() if place == 0]
            others = tuple(axis for axis in range(3) if axis != config.slices.axis)
            has_foreground = np.asarray((~np.isin(labels, background)).any(axis=others))
            numbers = [number for number in numbers if has_foreground[number]]
        return numbers, None
    except DataError as error:
        return [0], f"has labels, {volume.label.name}, that cannot be used: the file {error}"


def _read_listing(config: DecathlonData) -> _Listing:
    """Return the volumes with labels, by name, and the names of the labels.

    Raises:
        DataError: ``dataset.json`` cannot be read, or is of neither form.
    """
    path = config.path / "dataset.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"data.path: there is no {path}; expected the folder of a Decathlon or nnU-Net data set"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"data.path: could not read {path} ({error}); expected JSON") from error
    named = said.get("channel_names", said.get("modality")) if isinstance(said, dict) else None
    if not isinstance(named, dict) or not isinstance(said.get("labels"), dict):
        raise DataError(
            f"{path} lacks labels, or channel_names (nnU-Net) or modality (Decathlon); expected a mapping for each"
        )
    wrong = [each for each in config.modalities if each >= len(named)]
    if wrong:
        raise DataError(
            f"data.modalities: found {wrong[0]}; expected numbers below {len(named)}: "
            + ", ".join(f"{number} {name}" for number, name in named.items())
        )
    labels = _read_labels(said["labels"], path)
    volumes = _list_decathlon(said, config) if isinstance(said.get("training"), list) else _list_nnunet(said, config)
    if not volumes:
        raise DataError(f"{path} lists no volume with labels, expected some in imagesTr and labelsTr")
    volumes.sort(key=lambda item: item[0].name)
    return _Listing([volume for volume, _ in volumes], [split for _, split in volumes], labels)


def _read_labels(said: Mapping[str, Any], path: Path) -> dict[int, str]:
    """Return label → name, from name → label (nnU-Net, version 2) or label → name (Decathlon)."""
    labels = {}
    for key, value in said.items():
        number, name = (value, key) if not isinstance(value, str) else (key, value)
        try:
            labels[int(number)] = normalise(name)
        except (TypeError, ValueError):
            raise DataError(
                f"{path} has the label {key!r}: {value!r}; expected one number per class (regions of several are not "
                "read: name the classes, and join them by data.label_map)"
            ) from None
    return labels


def _list_decathlon(said: Mapping[str, Any], config: DecathlonData) -> list[tuple[Volume, str]]:
    """Return the volumes of ``training``, modalities on the fourth axis."""
    volumes = []
    for entry in said["training"]:
        if not isinstance(entry, dict) or not {"image", "label"} <= {*entry}:
            raise DataError(f"{config.path / 'dataset.json'}: found {entry!r} in training; expected image and label")
        image, label = (_inside(config.path, entry[key]) for key in ("image", "label"))
        images = tuple((image, number) for number in config.modalities)
        volumes.append((Volume(normalise(_strip(image.name)), images, label), ""))
    return volumes


def _list_nnunet(said: Mapping[str, Any], config: DecathlonData) -> list[tuple[Volume, str]]:
    """Return the volumes in ``labelsTr`` and ``labelsTs``, one file per modality."""
    ending = str(said.get("file_ending", _SUFFIX))
    volumes = []
    for part, split in (("Tr", ""), ("Ts", "test")):
        folder = config.path / f"labels{part}"
        labels = sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []
        for label in labels:
            case = label.name.removesuffix(ending)
            images = config.path / f"images{part}"
            files = tuple((images / f"{case}_{number:04d}{ending}", 0) for number in config.modalities)
            volumes.append((Volume(normalise(case), files, label), split))
    return volumes


def _inside(root: Path, name: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{root / 'dataset.json'} names {name!r}; expected a path inside {root}")
    return root / path


def _strip(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".nii")
