"""Copies of images across and within sets, by their decoded pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainables.data.dataset import Dataset
from trainables.data.identity.copies import digest_images, find_copies
from trainables.data.load import load_dataset
from trainables.data_config import CsvData, ImageFolderData, MedmnistData
from trainables.errors import DataError


def write_folder(root: Path, *, number: int = 8) -> Path:
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test", "external/Lyon"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(0, 255, (16, 16), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{index}.png")
    return root


def load(folder: Path, cache: Path, **fields: Any) -> Dataset:
    return load_dataset(ImageFolderData(path=folder, image_size=16, channels=1, **fields), cache_dir=cache)


def copy(folder: Path, source: str, target: str) -> None:
    """Copy an image into whatever format the target's name says."""
    Image.open(folder / source).save(folder / target)


@pytest.mark.parametrize("target", ["test/a/copy.png", "test/a/copy.bmp", "val/a/0.tiff", "external/Lyon/a/x.png"])
def test_a_copy_in_another_set_is_refused_in_whatever_format(target: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    copy(folder, "train/a/3.png", target)
    other = target.rsplit("/", 2)[0]
    with pytest.raises(DataError) as caught:
        load(folder, tmp_path)
    message = str(caught.value)
    assert f"1 image(s) have a copy with the same pixels in another set (1 between train and {other})" in message
    assert f"train/a/3.png in train is a copy of {target} in {other}" in message
    assert "data.on_leak: quarantine" in message


def test_many_copies_are_counted_and_ten_pairs_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    for index in range(8):
        copy(folder, f"train/a/{index}.png", f"test/a/t{index}.png")
        copy(folder, f"train/b/{index}.png", f"val/b/v{index}.png")
    with pytest.raises(DataError, match=r"(?s)^16 image.*8 between train and test, 8 between train and val") as caught:
        load(folder, tmp_path)
    assert str(caught.value).count(" is a copy of ") == 10
    assert "and 6 more" in str(caught.value)


def test_quarantine_sets_the_training_copies_aside_and_counts_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    copy(folder, "train/a/3.png", "test/a/copy.png")
    copy(folder, "train/a/4.png", "external/Lyon/a/copy.png")
    copy(folder, "val/b/1.png", "test/b/copy.png")
    copy(folder, "train/b/5.png", "train/b/copy.png")
    data = load(folder, tmp_path, on_leak="quarantine")
    assert {(bad.file_name, bad.problem) for bad in data.quarantined} == {
        ("train/a/3.png", "has a copy with the same pixels in test"),
        ("train/a/4.png", "has a copy with the same pixels in external/Lyon"),
        ("val/b/1.png", "has a copy with the same pixels in test"),
    }
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 15, "val": 15, "test": 18}
    assert len(data.external["Lyon"]) == 17
    assert data.copies == {"train": 1}
    train = data.splits["train"]
    assert not {"train/a/3.png", "train/a/4.png"} & set(train.ids)
    for row, name in enumerate(train.ids):  # arrays and lists lost the same rows
        assert np.array_equal(train.images[row, 0], np.asarray(Image.open(folder / name)))
        assert data.classes[train.labels[row]] == name.split("/")[1]
    assert load(folder, tmp_path, on_leak="quarantine").fingerprint == data.fingerprint  # mapped, not made again


@pytest.mark.parametrize("on_leak", ["error", "quarantine"])
@pytest.mark.parametrize("target", ["train/b/copy.png", "test/b/copy.png"])
def test_one_image_with_two_labels_is_always_an_error(target: str, on_leak: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    copy(folder, "train/a/3.png", target)
    with pytest.raises(
        DataError, match=r"(?s)1 image\(s\) have the same pixels .* a different label.*('a'.*'b'|'b'.*'a')"
    ):
        load(folder, tmp_path, on_leak=on_leak)


def test_a_quarantine_that_empties_a_class_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    for index in range(8):
        copy(folder, f"train/a/{index}.png", f"test/a/t{index}.png")
    with pytest.raises(DataError, match=r"(?s)train has no image of some classes.*'a'"):
        load(folder, tmp_path, on_leak="quarantine")


def test_arrays_are_looked_at_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 20), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = generator.integers(0, 255, (number, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number)[:, None] % 2
    arrays["test_images"][2] = arrays["train_images"][4]
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(DataError, match=r"m.npz train \(row 4\) in train is a copy of m.npz test \(row 2\) in test"):
        load_dataset(MedmnistData(path=tmp_path / "m.npz"), cache_dir=tmp_path)


@given(
    contents=st.lists(st.integers(0, 12), min_size=6, max_size=30),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_no_content_crosses_a_set_unseen(contents: list[int], seed: int) -> None:
    """Whatever lies where: a pair is found exactly if its pixels are equal and its sets or labels differ."""
    generator = np.random.default_rng(seed)
    pool = generator.integers(0, 255, (13, 1, 4, 4), dtype=np.uint8)
    images = pool[contents]
    sets = generator.choice(np.array(["train", "val", "test", "external/x"], dtype=object), len(contents))
    labels = generator.integers(0, 2, len(contents))
    found = find_copies(dict(enumerate(digest_images(images))), sets, labels)
    rows = range(len(contents))
    pairs = {(i, j) for i in rows for j in rows if i < j and np.array_equal(images[i], images[j])}
    gone = {row for row, _ in found.across}
    crossing = [pair for pair in pairs if sets[pair[0]] != sets[pair[1]] and not gone & set(pair)]
    assert all({sets[i], sets[j]} == {"test", "external/x"} for i, j in crossing)
    assert bool(crossing) == ("external/x and test" in found.repeats)
    assert all(np.array_equal(images[row], images[kept]) and sets[row] != sets[kept] for row, kept in found.across)
    assert bool(found.contradicting) == any(labels[i] != labels[j] for i, j in pairs)


def test_a_manifest_with_one_file_content_twice(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = ["file_name,label,split,group"]
    for row in range(24):
        Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / f"{row}.png")
        lines.append(f"{row}.png,{row % 2},{('train', 'train', 'val', 'test')[row // 2 % 4]},g{row}")
    (tmp_path / "6.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "m.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"0.png \(row 2\) in train is a copy of 6.png \(row 8\) in test"):
        load_dataset(CsvData(path=tmp_path / "m.csv", image_size=8), cache_dir=tmp_path)


def test_copies_among_test_and_external_sets_stop_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    copy(folder, "test/a/0.png", "external/Lyon/a/same.png")
    data = load(folder, tmp_path)
    assert (len(data.splits["test"]), len(data.external["Lyon"])) == (16, 17)
    assert data.copies == {"external/Lyon and test": 1}


def test_copies_that_are_set_aside_are_not_counted_within_a_set(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    for target in ("train/a/one.png", "train/a/two.png"):
        copy(folder, "test/a/0.png", target)
    data = load(folder, tmp_path, on_leak="quarantine")
    assert (len(data.splits["train"]), len(data.quarantined), data.copies) == (16, 2, {})


def test_an_unreadable_image_beside_copies_is_set_aside(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    (folder / "train/a/0.png").write_bytes(b"no image")
    copy(folder, "train/a/3.png", "train/a/again.png")
    data = load(folder, tmp_path, on_bad="quarantine")
    assert (len(data.splits["train"]), len(data.quarantined), data.copies) == (16, 1, {"train": 1})
