"""Digits and MedMNIST: layout, faults, bombs, and the real file where it is there."""

import pwd
import re
import sys
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import DATA
from trainables.data.load import load_dataset
from trainables.data.sources import arrays
from trainables.data_config import DigitsData, MedmnistData
from trainables.errors import ConfigError, DataError, StorageError


def _npz(path: Path, *, shape=(28, 28), **replaced) -> Path:
    rng = np.random.default_rng(0)
    members = {}
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        members[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        members[f"{split}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    members |= replaced
    np.savez_compressed(path, **{key: value for key, value in members.items() if value is not None})
    return path


def _load(path, tmp_path, **settings):
    return load_dataset(MedmnistData(path=path, **settings), cache_dir=tmp_path / "cache")


def test_digits_are_those_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    dataset = load_dataset(DigitsData(image_size=8), cache_dir=tmp_path)
    digits = load_digits()
    train = dataset.splits["train"]
    row = int(train.ids[5].removeprefix("image-"))
    assert np.array_equal(train.images[5, 0], np.round(digits.images[row] * 255 / 16))
    assert train.labels[5] == digits.target[row]
    assert dataset.classes == tuple("0123456789")
    assert sum(len(images) for images in dataset.splits.values()) == 1797


@pytest.mark.parametrize("fault", ["not installed", "no file", "damaged"])
def test_digits_that_cannot_be_read(fault, tmp_path, monkeypatch):
    spec = None
    if fault != "not installed":
        spec = ModuleSpec("sklearn", None, is_package=True)
        spec.submodule_search_locations = [str(tmp_path)]
    if fault == "damaged":
        (tmp_path / "datasets" / "data").mkdir(parents=True)
        (tmp_path / "datasets" / "data" / "digits.csv.gz").write_bytes(b"no gzip")
    monkeypatch.setattr("trainables.data.sources.arrays.find_spec", lambda name: spec)
    with pytest.raises(DataError, match="scikit-learn"):
        load_dataset(DigitsData(image_size=8), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(("shape", "channels"), [((28, 28), 1), ((28, 28, 3), 3), ((28, 28), 3), ((28, 28, 3), 1)])
def test_npz_is_read_row_by_row(shape, channels, tmp_path):
    path = _npz(tmp_path / "x.npz", shape=shape)
    dataset = _load(path, tmp_path, channels=channels)
    val = dataset.splits["val"]
    assert val.images.shape == (6, channels, 28, 28)
    assert val.labels.shape == (6,)
    assert val.labels.tolist() == [0, 1] * 3
    assert val.ids[4] == "val-000004"
    raw = np.load(path)["val_images"][4]
    if raw.ndim == 2 or channels == 3:
        assert np.array_equal(val.images[4, 0], raw if raw.ndim == 2 else raw[..., 0])


def test_images_are_resized(tmp_path):
    assert _load(_npz(tmp_path / "x.npz"), tmp_path, image_size=40).splits["test"].images.shape == (6, 1, 40, 40)


@pytest.mark.parametrize(
    ("flag", "modality"),
    [("chestmnist", "chest_xray"), ("retinamnist", "fundus"), ("dermamnist", "dermoscopy"), ("pathmnist", "pathology"),
     ("bloodmnist", "blood"), ("my_own", "general")],
)  # fmt: skip
def test_modality_follows_the_flag(flag, modality, tmp_path):
    dataset = _load(_npz(tmp_path / "x.npz"), tmp_path, flag=flag)
    assert (dataset.name, dataset.modality) == (flag, modality)


OBJECTS = np.array([{"a": 1}] * 12, dtype=object)
FAULTS = {
    "missing_key": ({"val_images": None}, "no array 'val_images'"),
    "objects": ({"train_images": OBJECTS}, "holds Python objects"),
    "object_labels": ({"train_labels": OBJECTS}, "holds Python objects"),
    "float": ({"train_images": np.zeros((12, 28, 28))}, "expected uint8"),
    "volume": ({"train_images": np.zeros((12, 28, 28, 28), np.uint8)}, "expected uint8"),
    "multi_label": ({"train_labels": np.zeros((12, 14), np.uint8)}, "several labels per image"),
    "too_few_labels": ({"train_labels": np.zeros((5, 1), np.uint8)}, "one for each of the 12 images"),
    "float_labels": ({"train_labels": np.full((12, 1), np.nan)}, "expected whole numbers"),
    "class_not_in_train": ({"train_labels": np.zeros((12, 1), np.uint8)}, "train has no image of some classes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_npz(fault, tmp_path):
    replaced, message = FAULTS[fault]
    with pytest.raises(DataError, match=message):
        _load(_npz(tmp_path / "x.npz", **replaced), tmp_path)


def test_npz_that_is_missing_truncated_or_none(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        _load(tmp_path / "gone.npz", tmp_path)
    path = _npz(tmp_path / "x.npz")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="could not read"):
        _load(path, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="could not read"):
        _load(path, tmp_path)


def test_damaged_member_is_refused(tmp_path):
    path = _npz(tmp_path / "x.npz")
    data = bytearray(path.read_bytes())
    data[3000:3100] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(DataError, match="could not read"):
        _load(path, tmp_path)


def test_bomb_is_refused_before_it_is_decompressed(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "HARMLESS_BYTES", 2**20)
    monkeypatch.setattr(arrays, "_load_member", lambda *_: pytest.fail("decompressed"))
    path = _npz(tmp_path / "x.npz", train_images=np.zeros((4000, 28, 28), np.uint8))
    with pytest.raises(DataError, match="not decompressed"):
        _load(path, tmp_path)


def test_header_that_claims_more_than_the_member_holds(tmp_path):
    path = tmp_path / "x.npz"
    header = str({"descr": "|u1", "fortran_order": False, "shape": (10**9, 28, 28)}).ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(DataError, match="claims the shape"):
        _load(path, tmp_path)


def test_file_in_medmnists_own_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".medmnist").mkdir()
    _npz(tmp_path / ".medmnist" / "breastmnist_64.npz", shape=(64, 64))
    dataset = _load(None, tmp_path, flag="breastmnist", source_size=64, image_size=64)
    assert dataset.splits["train"].images.shape == (12, 1, 64, 64)


def test_a_missing_file_gets_the_command_that_fetches_it(tmp_path):
    path = tmp_path / "my images" / "p.npz"
    fetch = "curl --fail --location --output '{}' https://zenodo.org/records/10519652/files/{}"
    for settings, name in (({}, "pneumoniamnist.npz"), ({"source_size": 64}, "pneumoniamnist_64.npz")):
        with pytest.raises(DataError, match=re.escape(f"Fetch it with: {fetch.format(path, name)}")):
            _load(path, tmp_path, **settings)
    with pytest.raises(DataError, match=r"Set data\.path to where it lies"):
        _load(path, tmp_path, flag="ours")


def test_without_file_flag_package_or_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="nearest: 'breastmnist'"):
        _load(None, tmp_path, flag="brestmnist")
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(ConfigError, match="pip install"):
        _load(None, tmp_path)

    class Offline:
        INFO = {"pneumoniamnist": {"python_class": "PneumoniaMNIST"}}  # noqa: RUF012

        @staticmethod
        def PneumoniaMNIST(**settings):  # noqa: N802
            raise RuntimeError("\n  Automatic download failed!\n")

    monkeypatch.setitem(sys.modules, "medmnist", Offline)
    with pytest.raises(DataError, match=r"could not download pneumoniamnist.npz \(Automatic download failed!\)"):
        _load(None, tmp_path)


def test_a_home_folder_that_cannot_hold_a_download(tmp_path, monkeypatch):
    (tmp_path / "home").touch()  # root may write everywhere, but not below a file
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(StorageError, match=r"could not write into .*/.medmnist .*Not a directory.* set data.path"):
        _load(None, tmp_path)

    def getpwuid(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    with pytest.raises(
        ConfigError, match=r"data.path is not set, .* Could not determine home directory. Set data.path"
    ):
        _load(None, tmp_path)


@pytest.mark.real_data
def test_pneumoniamnist(tmp_path):
    path = DATA / "pneumoniamnist.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: set ROBUSTSWEEP_DATA to the folder with pneumoniamnist.npz")
    with pytest.raises(DataError, match=r"10 image\(s\) have a copy .* \(10 between train and val\)"):
        _load(path, tmp_path)
    dataset = _load(path, tmp_path, on_leak="quarantine")
    assert {name: len(images) for name, images in dataset.splits.items()} == {"train": 3872, "val": 524, "test": 624}
    assert {bad.problem for bad in dataset.quarantined} == {"has a copy with the same pixels in val"}
    assert dataset.copies == {"train": 15, "test": 3}
    assert dataset.modality == "chest_xray"
    train = dataset.splits["train"]
    assert np.bincount(train.labels).tolist() == [388, 3484]
    gone = {bad.row for bad in dataset.quarantined}
    kept = [row for row in range(3882) if row not in gone]
    with np.load(path) as raw:
        assert np.array_equal(train.images[:, 0], raw["train_images"][kept])
        assert np.array_equal(train.labels, raw["train_labels"][kept, 0])


@pytest.mark.parametrize("size", [64, 224])
def test_a_larger_file_is_not_shrunk_without_a_word(size, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 12), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (number, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number)[:, None] % 2
    np.savez(tmp_path / "m.npz", **arrays)
    with pytest.raises(ConfigError, match=rf"image_size is not set, and m.npz holds images of {size} px"):
        _load(tmp_path / "m.npz", tmp_path)
    for settings, side in (({"source_size": size}, size), ({"image_size": 28}, 28), ({"image_size": size}, size)):
        images = _load(tmp_path / "m.npz", tmp_path, **settings).splits["train"].images
        assert images.shape == (12, 1, side, side)
    assert MedmnistData(source_size=64, image_size=32).image_size == 32
    assert MedmnistData().image_size == 28
