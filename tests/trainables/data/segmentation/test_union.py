"""Several data sets in one: splits, classes, patients, what the fingerprint covers, levels of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.study.data_sets import is_same_source
from tests.trainables.data.segmentation.test_image_masks import write_folder
from trainables.data.dataset import Dataset
from trainables.data.describe import describe_dataset
from trainables.data.load import load_dataset
from trainables.data.segmentation.extents import find_sides
from trainables.data_config import DataConfig
from trainables.errors import DataError

SIDE = 32
_ADAPTER: TypeAdapter[Any] = TypeAdapter(DataConfig)


def build(root: Path, **fields: object) -> Any:
    parts = {
        "eyes": {"kind": "image_mask_folder", "path": root / "eyes", "group_pattern": "(p\\d+)_"},
        "scans": {"kind": "organs", "organ": "ct", "num_images": 30, "seed": 3},
    }
    common = {"kind": "datasets", "datasets": parts, "image_size": SIDE, "channels": 1}
    return _ADAPTER.validate_python(common | fields)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("union")
    write_folder(root / "eyes")
    return root


def load(root: Path, **fields: object) -> Dataset:
    return load_dataset(build(root, **fields), cache_dir=root / "cache")


def test_images_without_a_spacing_beside_others_with_one_are_measured_in_pixels(root: Path) -> None:
    parts = build(root).model_dump()["datasets"]
    parts["eyes"]["spacing_mm"] = 0.25
    test = load(root, datasets=parts).splits["test"]
    spacing = find_sides(test)
    assert (spacing[test.labels == 1] == 1.0).all()
    assert (spacing[test.labels == 0] != 1.0).any()
    assert (spacing > 0.0).all()


def test_all_are_trained_on_and_merged_by_default(root: Path) -> None:
    data, eyes = load(root), load_dataset(build(root).parts["eyes"], cache_dir=root / "cache")
    assert data.classes == ("background", "foreground")
    assert data.components == ("eyes", "scans")
    assert data.external == {}
    assert {name: np.bincount(images.labels).tolist() for name, images in data.splits.items()} == {
        "train": [8, 18],
        "val": [2, 6],
        "test": [4, 6],
    }
    for name, images in data.splits.items():
        own = images.labels == 0
        assert {*images.sites[own]} == {"eyes"}
        assert [each.removeprefix("eyes/") for each in images.ids[own]] == eyes.splits[name].ids.tolist()
        assert [each.removeprefix("eyes/") for each in images.groups[own]] == eyes.splits[name].groups.tolist()
        assert np.array_equal(images.images[own], eyes.splits[name].images)
        assert images.targets is not None
        assert eyes.splits[name].targets is not None
        assert np.array_equal(images.targets[own], eyes.splits[name].targets)
        assert {*np.unique(images.targets[~own])} == {0, 1}
    groups = [{*images.groups.tolist()} for images in data.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert describe_dataset(data)["train"].startswith("26 images: eyes 8, scans 18; ")


def test_what_is_not_trained_on_is_an_external_set(root: Path) -> None:
    data, both = load(root, train_on=["eyes"]), load(root)
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 8, "val": 2, "test": 4}
    assert list(data.external) == ["scans"]
    assert data.external["scans"].labels.tolist() == [1] * 6
    test = both.splits["test"]
    assert data.external["scans"].ids.tolist() == test.ids[test.labels == 1].tolist()  # the same images in all arms
    assert data.fingerprint != both.fingerprint


def test_separate_classes_say_which_of_them_are_annotated(root: Path) -> None:
    data = load(root, labels="separate")
    assert data.classes == ("background", "eyes:foreground", "scans:organ", "scans:lesion")
    assert data.annotated == {"eyes": (0, 1), "scans": (0, 2, 3)}
    train = data.splits["train"]
    assert train.targets is not None
    assert {*np.unique(train.targets[train.labels == 0])} == {0, 1}
    assert {*np.unique(train.targets[train.labels == 1])} == {0, 2, 3}


def test_weights_change_no_stored_byte(root: Path) -> None:
    assert load(root, weights="balanced").fingerprint == load(root).fingerprint
    assert build(root, weights={"eyes": 1, "scans": 2}).weights == {"eyes": 1, "scans": 2}


def test_a_data_set_takes_size_and_channels_from_all(root: Path) -> None:
    config = build(root)
    assert {(part.image_size, part.channels) for part in config.parts.values()} == {(SIDE, 1)}
    larger = config.model_copy(update={"image_size": 48})
    assert {part.image_size for part in larger.parts.values()} == {48}
    again = _ADAPTER.validate_python(config.model_dump() | {"image_size": 48})
    assert {part.image_size for part in again.parts.values()} == {48}
    assert is_same_source(config, config.model_copy(update={"train_on": ("eyes",)}))
    assert not is_same_source(config, config.model_copy(update={"datasets": {"eyes": config.datasets["eyes"]}}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_on": ["nose"]}, "found train_on .*nose.*; expected some of eyes, scans, each once"),
        ({"weights": {"eyes": 1}}, "expected one for each data set that is trained on"),
        ({"labels": "separate", "train_on": ["eyes"]}, "whose classes nothing learns"),
        ({"val_fraction": 0.4}, "found val_fraction for all data sets"),
        ({"datasets": {"a": {"kind": "organs", "image_size": 64}}}, "found image_size 64 in datasets.a and 32 for all"),
        ({"held_out_classes": ["vessel"]}, "found held_out_classes for a segmentation"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], message: str, root: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        build(root, **fields)


def test_errors_name_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.datasets.eyes: data.path: there is no folder"):
        load(tmp_path)
    write_folder(tmp_path / "eyes", splits={"train": 2})
    with pytest.raises(DataError, match=r"data.datasets.eyes: no image is in val, test"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"data.datasets.eyes: no image is in test .* a data set that is not in"):
        load(tmp_path, train_on=["scans"])
    write_folder(tmp_path / "eyes")
    path = next((tmp_path / "eyes/train/masks").iterdir())
    path.unlink()
    with pytest.raises(DataError, match=r"eyes: train/images/p\d_\d\d.png: has no file of its name in masks"):
        load(tmp_path)


def test_one_image_in_two_data_sets_is_a_leak(tmp_path: Path) -> None:
    write_folder(tmp_path / "eyes")
    write_folder(tmp_path / "more", splits={"train": 4, "test": 12})
    parts = {name: {"kind": "image_mask_folder", "path": tmp_path / name} for name in ("eyes", "more")}
    with pytest.raises(DataError, match=r"eyes: train/images/.* in train is a copy of more: test/images/.* in"):
        load(tmp_path, datasets=parts, train_on=["eyes"], near_duplicates="ignore")
