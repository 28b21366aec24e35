"""torchvision's classes by name, on files generated here (no network)."""

import struct

import numpy as np
import pytest
from PIL import Image

from trainables.data.load import load_dataset
from trainables.data.sources import torchvision_sets
from trainables.data_config import TorchvisionData
from trainables.errors import ConfigError, DataError


def _mnist(root):
    """The idx files of MNIST, 60 + 20 images."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())


def test_train_and_test_are_kept_and_val_is_cut_from_train(tmp_path, monkeypatch):
    _mnist(tmp_path / "d")
    config = TorchvisionData(name="MNIST", path=tmp_path / "d", image_size=28, channels=1)
    dataset = load_dataset(config, cache_dir=tmp_path / "c")
    assert {name: len(images) for name, images in dataset.splits.items()} == {"train": 50, "val": 10, "test": 20}
    assert dataset.classes[3] == "3 - three"
    test = dataset.splits["test"]
    raw = np.frombuffer((tmp_path / "d/MNIST/raw/t10k-images-idx3-ubyte").read_bytes()[16:], dtype=np.uint8)
    assert np.array_equal(test.images[:, 0], raw.reshape(20, 28, 28))
    assert test.labels.tolist() == [index % 10 for index in range(20)]

    monkeypatch.setattr(torchvision_sets, "_open_datasets", lambda config: pytest.fail("opened again"))
    assert load_dataset(config, cache_dir=tmp_path / "c").fingerprint == dataset.fingerprint


def test_class_with_split_names(tmp_path):
    """Country211 is folders of images below train, valid and test."""
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        for label in ("be", "fr"):
            folder = tmp_path / "d" / "country211" / split / label
            folder.mkdir(parents=True)
            for index in range(3):
                Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")
    dataset = load_dataset(TorchvisionData(name="Country211", path=tmp_path / "d"), cache_dir=tmp_path / "c")
    assert {name: len(images) for name, images in dataset.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert dataset.classes == ("be", "fr")


def test_unknown_name_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"'CIFAR11' .nearest: 'CIFAR1"):
        load_dataset(TorchvisionData(name="CIFAR11", path=tmp_path), cache_dir=tmp_path / "c")


def test_absent_data_are_not_downloaded_unasked(tmp_path):
    with pytest.raises(DataError, match=r"set data.download: true"):
        load_dataset(TorchvisionData(name="CIFAR10", path=tmp_path / "no"), cache_dir=tmp_path / "c")


@pytest.mark.parametrize("name", ["EMNIST", "DatasetFolder"])
def test_classes_that_need_more_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="kind csv or image_folder"):
        load_dataset(TorchvisionData(name=name, path=tmp_path), cache_dir=tmp_path / "c")
