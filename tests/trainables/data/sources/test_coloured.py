from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainables.data.dataset import Dataset, ImageSet
from trainables.data.load import load_dataset
from trainables.data_config import ColouredDigitsData


def load(cache: Path, **settings: object) -> Dataset:
    return load_dataset(ColouredDigitsData.model_validate({"image_size": 8, **settings}), cache_dir=cache)


def agreement(images: ImageSet) -> float:
    return float((np.array(images.metadata["nuisance"]) == images.labels).mean())


def test_colour_label_and_digit_are_what_the_metadata_say(cache_dir: Path) -> None:
    data = load(cache_dir, label_noise=0.0, rho=0.8)
    assert data.classes == ("0 to 4", "5 to 9")
    train = data.splits["train"]
    assert np.array_equal(train.labels, np.array(train.metadata["digit"]) >= 5)
    assert train.metadata["clean_label"] == train.labels.tolist()
    colour = np.array(train.metadata["nuisance"])
    lit = train.images.reshape(len(train), 3, -1).any(axis=2)
    assert np.array_equal(lit[:, 0], colour == 0)
    assert np.array_equal(lit[:, 1], colour == 1)
    assert not lit[:, 2].any()


def test_rho_holds_in_training_and_rho_test_in_test(cache_dir: Path) -> None:
    data = load(cache_dir, rho=0.9, rho_test=0.1)
    assert agreement(data.splits["train"]) == pytest.approx(0.9, abs=0.03)
    assert agreement(data.splits["val"]) == pytest.approx(0.9, abs=0.05)
    assert agreement(data.splits["test"]) == pytest.approx(0.1, abs=0.05)
    data = load(cache_dir, rho=0.9)
    assert agreement(data.splits["test"]) == pytest.approx(0.9, abs=0.05)


def test_labels_are_wrong_as_often_as_asked(cache_dir: Path) -> None:
    for images in load(cache_dir, label_noise=0.25).splits.values():
        wrong = images.labels != np.array(images.metadata["clean_label"])
        assert wrong.mean() == pytest.approx(0.25, abs=0.06)


def test_only_the_test_colours_depend_on_rho_test(cache_dir: Path) -> None:
    first, second = load(cache_dir, rho_test=0.5), load(cache_dir, rho_test=0.1)
    for name in ("train", "val"):
        assert np.array_equal(first.splits[name].images, second.splits[name].images)
        assert np.array_equal(first.splits[name].labels, second.splits[name].labels)
    assert not np.array_equal(first.splits["test"].images, second.splits["test"].images)
    assert first.splits["test"].ids.tolist() == second.splits["test"].ids.tolist()
    assert first.fingerprint != second.fingerprint


def test_a_tint_dims_the_other_channels(cache_dir: Path) -> None:
    pure, tinted = load(cache_dir), load(cache_dir, tint=0.25)
    train = tinted.splits["train"]
    colour = np.array(train.metadata["nuisance"])
    rows = np.arange(len(train))
    assert np.array_equal(train.images[rows, colour], pure.splits["train"].images[rows, colour])
    assert np.array_equal(train.images[rows, 1 - colour], train.images[rows, 2])
    assert np.abs(train.images[rows, 2] - 0.75 * train.images[rows, colour]).max() <= 0.5
