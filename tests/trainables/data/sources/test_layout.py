from __future__ import annotations

import itertools

import pytest

from trainables.data.sources.layout import is_external, parse_split, read_places
from trainables.errors import DataError

USUAL = {
    "train": (
        "train",
        "TRAIN",
        "Training",
        "training",
        "train_set",
        "training_set",
        "TrainData",
        "train-images",
        "trn",
    ),
    "val": ("val", "Val", "valid", "Validation", "VALIDATION", "dev", "val_set", "validation_data"),
    "test": ("test", "Testing", "TEST", "test_set", "testset", "holdout", "hold_out", "Test-Images"),
}


def paths(*folders: str, classes: tuple[str, ...] = ("glioma", "notumor"), number: int = 2) -> list[str]:
    return [f"{folder}/{name}/{index}.png" for folder in folders for name in classes for index in range(number)]


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in USUAL.items() for name in names])
def test_usual_names_of_splits_are_known_in_any_case(split: str, name: str) -> None:
    assert parse_split(name) == split
    assert parse_split(f" {name} ") == split


@pytest.mark.parametrize(
    "name",
    ["trains", "tester", "values", "invalid", "0", "", "devices", "contrast", "latest", "set", "train2", "testé"],
)
def test_other_names_are_no_splits(name: str) -> None:
    assert parse_split(name) is None


@pytest.mark.parametrize(
    "splits", [("Training", "Testing"), ("TRAIN", "TEST"), ("Train", "Val", "Test"), ("train", "valid", "test"),
               ("training", "validation", "testing"), ("train", "dev"), ("train",), ("train_set", "holdout"),
               ("val", "test")],
)  # fmt: skip
@pytest.mark.parametrize("around", ["", "brain/", "archive (1)/"])
def test_splits_are_read_as_splits_with_or_without_a_folder_around(splits: tuple[str, ...], around: str) -> None:
    files = paths(*(f"{around}{split}" for split in splits))
    places = read_places(files, layout="auto", folder="d")
    assert {split for split, _ in places} == {parse_split(split) for split in splits}
    assert {label for _, label in places} == {"glioma", "notumor"}
    if not around:
        by_hand = read_places(files, layout="classes", folder="d")
        assert {label for _, label in by_hand} == set(splits)
        assert {split for split, _ in by_hand} == {""}


def test_external_sets_keep_their_names() -> None:
    files = paths("Train", "External/Lyon", "External/Ghent 2")
    assert {split for split, _ in read_places(files, layout="auto", folder="d")} == {
        "train", "external/Lyon", "external/Ghent 2",
    }  # fmt: skip
    assert is_external("EXTERNAL")
    assert not is_external("externals_of_x")


@pytest.mark.parametrize(
    "files",
    [
        [
            f"{name}/{index}.png" for name in ("Training", "Testing") for index in range(3)
        ],  # no folder of a class inside
        paths("train", "extra"),  # a folder too many
        paths("val", "a", "b"),
        [*paths("external/x"), "cat/1.png", "dog/2.png"],
        ["val/p1/1.png", "val/p2/1.png", "test/p3/1.png", "test/p4/1.png"],  # the folders inside are patients
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_both_and_the_key(files: list[str]) -> None:
    with pytest.raises(DataError, match=r"can be read as splits: .* or as classes: .*data\.layout"):
        read_places(files, layout="auto", folder="d")
    assert {split for split, _ in read_places(files, layout="classes", folder="d")} == {""}


@pytest.mark.parametrize("classes", [("valid", "invalid"), ("test", "control"), ("cat", "dog"), ("dev", "0", "1")])
def test_a_class_may_be_called_like_a_split(classes: tuple[str, ...]) -> None:
    files = [f"{name}/{index}.png" for name in classes for index in range(3)]
    assert [label for _, label in read_places(files, layout="auto", folder="d")] == [f.split("/")[0] for f in files]


def test_one_split_has_one_folder() -> None:
    with pytest.raises(DataError, match=r"holds 'val' and 'valid', which all name the split val"):
        read_places(paths("train", "val", "valid"), layout="auto", folder="d")


@pytest.mark.parametrize("order", [*itertools.permutations(["train/a/1.png", "test/a/2.png", "train/b/3.png"])])
def test_the_order_of_files_decides_nothing(order: tuple[str, ...]) -> None:
    places = dict(zip(order, read_places(order, layout="auto", folder="d"), strict=True))
    assert places == {"train/a/1.png": ("train", "a"), "test/a/2.png": ("test", "a"), "train/b/3.png": ("train", "b")}


@pytest.mark.parametrize("files", [["external/lyon/a/1.png"], ["Ext/1.png"], ["ext/a/1.png", "ext/b/2.png"]])
def test_external_sets_alone_are_no_traceback(files: list[str]) -> None:
    with pytest.raises(DataError, match=r"can be read as splits: 'external' holds sets"):
        read_places(files, layout="auto", folder="d")
