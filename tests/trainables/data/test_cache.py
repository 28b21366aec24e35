"""What is decoded once stays decoded; the fingerprint follows content and nothing else."""

import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data import cache, cache_writer
from trainables.data.decoding import files
from trainables.data.load import load_dataset
from trainables.data_config import ImageFolderData, PhantomData
from trainables.errors import DiskFullError, StorageError


def _folder(root: Path) -> ImageFolderData:
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / label / f"{index}.png")
    return ImageFolderData(path=root, image_size=8)


@pytest.fixture
def decoded(monkeypatch):
    """Paths handed to the decoder, in order."""
    calls = []
    original = files.decode_file
    monkeypatch.setattr(files, "decode_file", lambda path, spec: calls.append(path) or original(path, spec))
    return calls


@pytest.fixture
def hashed(monkeypatch):
    """Files whose content was read to be hashed."""
    calls = []
    original = cache_writer.hashlib.file_digest
    monkeypatch.setattr(
        cache_writer.hashlib, "file_digest", lambda file, kind: calls.append(file.name) or original(file, kind)
    )
    return calls


def test_second_load_maps_and_neither_decodes_nor_hashes(tmp_path, decoded, hashed):
    config = _folder(tmp_path / "d")
    first = load_dataset(config, cache_dir=tmp_path / "c")
    assert len(decoded) == 20
    assert len(hashed) == 20 + len(first.splits)
    second = load_dataset(config, cache_dir=tmp_path / "c")
    assert len(decoded) == 20
    assert len(hashed) == 20 + len(first.splits)
    assert second.fingerprint == first.fingerprint
    assert isinstance(second.splits["train"].images, np.memmap)
    assert not second.splits["train"].images.flags.writeable
    assert np.array_equal(first.splits["test"].images, second.splits["test"].images)


def test_moved_copied_and_touched_data_are_the_same_data(tmp_path, decoded):
    config = _folder(tmp_path / "d")
    first = load_dataset(config, cache_dir=tmp_path / "c")
    shutil.copytree(tmp_path / "d", tmp_path / "copy")
    (tmp_path / "d").rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "a" / "0.png", (1, 1))
    for place in ("moved", "copy"):
        again = load_dataset(ImageFolderData(path=tmp_path / place, image_size=8), cache_dir=tmp_path / "c")
        assert again.fingerprint == first.fingerprint
        assert again.name == place
    assert len(decoded) == 20
    elsewhere = load_dataset(ImageFolderData(path=tmp_path / "copy", image_size=8), cache_dir=tmp_path / "c2")
    assert elsewhere.fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "change",
    [{"image_size": 4}, {"channels": 1}, {"resize": "pad"}, {"split_seed": 1}, {"label_map": {"a": "b", "b": "a"}}],
)
def test_settings_that_change_the_result_change_the_fingerprint(change, tmp_path):
    config = _folder(tmp_path / "d")
    fingerprints = {
        load_dataset(c, cache_dir=tmp_path / "c").fingerprint for c in (config, config.model_copy(update=change))
    }
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    "change", [{"max_megapixels": 9.0}, {"on_bad": "quarantine"}, {"ordinal": True, "classes": ("a", "b")}]
)
def test_settings_that_change_no_pixel_do_not(change, tmp_path):
    config = _folder(tmp_path / "d")
    fingerprints = {
        load_dataset(c, cache_dir=tmp_path / "c").fingerprint for c in (config, config.model_copy(update=change))
    }
    assert len(fingerprints) == 1


def test_one_changed_pixel_changes_the_fingerprint(tmp_path):
    config = _folder(tmp_path / "d")
    first = load_dataset(config, cache_dir=tmp_path / "c").fingerprint
    path = tmp_path / "d" / "a" / "3.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert load_dataset(config, cache_dir=tmp_path / "c").fingerprint != first


def _load_in_process(start, place, queue):
    start.wait()
    calls = []
    original = cache_writer.write_dataset
    cache_writer.write_dataset = lambda *arguments: (calls.append(1), original(*arguments))
    dataset = load_dataset(PhantomData(num_images=40, num_external_sites=0, image_size=16), cache_dir=Path(place))
    queue.put((len(calls), dataset.fingerprint, int(dataset.splits["train"].images.sum())))


def test_two_processes_prepare_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, queue = context.Event(), context.Queue()
    workers = [context.Process(target=_load_in_process, args=(start, str(tmp_path), queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    start.set()
    results = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(result[0] for result in results) == [0, 1]
    assert results[0][1:] == results[1][1:]


def test_leftover_of_a_killed_process_is_replaced(tmp_path):
    config = _folder(tmp_path / "d")
    load_dataset(config, cache_dir=tmp_path / "c")
    (folder,) = [path for path in (tmp_path / "c" / "data").iterdir() if (path / "index.json").exists()]
    folder.rename(folder.with_name(folder.name + ".tmp"))
    (folder.with_name(folder.name + ".tmp") / "index.json").unlink()
    assert len(load_dataset(config, cache_dir=tmp_path / "c").splits["train"]) == 12


@pytest.mark.parametrize("name", ["0.npy", "index.json"])
@pytest.mark.parametrize("how", ["cut", "emptied", "garbage", "missing"])
def test_what_is_damaged_is_said_and_made_anew(tmp_path, caplog, name, how):
    config = _folder(tmp_path / "d")
    first = load_dataset(config, cache_dir=tmp_path / "c")
    before = {split: np.array(images.images) for split, images in first.splits.items()}
    (path,) = (tmp_path / "c" / "data").glob(f"*/{name}")
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"cut": data[:-10], "emptied": b"", "garbage": bytes(len(data))}[how])
    again = load_dataset(config, cache_dir=tmp_path / "c")
    assert again.fingerprint == first.fingerprint
    assert all(np.array_equal(again.splits[split].images, images) for split, images in before.items())
    assert str(path) in caplog.text or (name, how) == ("index.json", "missing")
    assert path.read_bytes() == data
    with pytest.raises(StorageError, match="could not map the decoded images"):
        cache.read_dataset(tmp_path / "c", "x", "general")


def test_a_disk_that_fills_up_while_images_are_decoded(tmp_path, monkeypatch):
    def full(descriptor, start, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_writer.os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match=r"could not write .*/0\.npy: the disk is full"):
        load_dataset(_folder(tmp_path / "d"), cache_dir=tmp_path / "c")
    assert not list((tmp_path / "c" / "data").glob("*/index.json"))


def test_damaged_digest_memory_is_made_anew(tmp_path, hashed):
    config = _folder(tmp_path / "d")
    first = load_dataset(config, cache_dir=tmp_path / "c")
    (memory,) = (tmp_path / "c" / "data" / "digests").glob("*.json")
    memory.write_text("{")
    assert load_dataset(config, cache_dir=tmp_path / "c").fingerprint == first.fingerprint
    assert len(hashed) == 40 + len(first.splits)
    assert len(json.loads(memory.read_text())) == 20


def test_full_disk_is_said_before_decoding(tmp_path, monkeypatch, decoded):
    config = _folder(tmp_path / "d")
    monkeypatch.setattr(cache_writer.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(StorageError, match="20 images of 8 px need"):
        load_dataset(config, cache_dir=tmp_path / "c")
    assert not decoded


def test_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="choose a cache_dir"):
        load_dataset(PhantomData(), cache_dir=tmp_path / "file")
