"""Shifts as files: what is written is what models are given."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.tiny_configs import random_set
from trainables.config import EvaluationConfig
from trainables.data.dataset import ImageSet
from trainables.errors import StorageError
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import Shift, build_shifts
from trainables.shifts.export import draw_sheet, write_folders, write_npz

CONFIG = EvaluationConfig(shifts=("gaussian_noise", "jpeg"), severities=(2, 5))
SHIFTS = build_shifts(CONFIG, "general")


def make_set(channels: int) -> ImageSet:
    """Five images that are not square."""
    images = random_set("test", 5, channels=channels, size=20)
    return replace(images, images=np.ascontiguousarray(images.images[..., :14]))


def expected(images: ImageSet, shift: Shift) -> np.ndarray:
    seeds = mix(torch.from_numpy(hash_ids(images.ids)), "shift", 3)
    pixels = shift.apply(torch.from_numpy(images.images), seeds).permute(0, 2, 3, 1).numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_has_all_severities_one_after_the_other(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.shifts.export._BATCH", 2)
    images = make_set(channels)
    paths = write_npz(tmp_path / "out", images, SHIFTS, shift_seed=3)
    assert paths == [tmp_path / "out" / "gaussian_noise.npz", tmp_path / "out" / "jpeg.npz"]
    for path, pair in zip(paths, (SHIFTS[:2], SHIFTS[2:]), strict=True):
        with np.load(path, allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays["test_images"], np.concatenate([expected(images, s) for s in pair]))
            assert arrays["test_labels"].tolist() == [[label] for label in [*images.labels, *images.labels]]
            assert arrays["test_severities"].tolist() == [2] * 5 + [5] * 5


@pytest.mark.parametrize("channels", [1, 3])
def test_folders_have_a_png_per_shift_severity_class_and_id(channels: int, tmp_path: Path) -> None:
    images = make_set(channels)
    paths = write_folders(tmp_path, images, ("a", "b", "c"), SHIFTS, shift_seed=3)
    assert paths == [tmp_path / "gaussian_noise", tmp_path / "jpeg"]
    assert len(list(tmp_path.rglob("*.png"))) == 4 * 5
    for row, name in enumerate(("a/test-0", "b/test-1", "c/test-2", "a/test-3", "b/test-4")):
        with Image.open(tmp_path / "jpeg" / "5" / f"{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected(images, SHIFTS[3])[row])


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    images = replace(make_set(1), ids=np.array(["../../a", "b/c.png", "..", "ü", "plain 1"]))
    write_folders(tmp_path / "out", images, ("..", "x/y", "."), SHIFTS[:1], shift_seed=0)
    found = {str(path.relative_to(tmp_path / "out" / "gaussian_noise" / "2")) for path in tmp_path.rglob("*.png")}
    assert found == {
        "%2E%2E/..%2F..%2Fa.png",
        "x%2Fy/b%2Fc.png.png",
        "%2E/%2E%2E.png",
        "%2E%2E/%C3%BC.png",
        "x%2Fy/plain 1.png",
    }


@pytest.mark.parametrize("layout", ["npz", "folder"])
def test_a_folder_that_cannot_be_made_is_said(layout: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write = write_npz if layout == "npz" else partial(write_folders, classes=("a", "b", "c"))
    with pytest.raises(StorageError, match=r"could not write .*file.*; choose a folder"):
        write(tmp_path / "file", make_set(1), shifts=SHIFTS, shift_seed=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_shows_what_models_are_given(channels: int) -> None:
    images = make_set(channels)
    sheet = np.asarray(draw_sheet(images, [4, 1], SHIFTS, shift_seed=3).convert("RGB" if channels == 3 else "L"))
    scale = 96 // 14
    assert sheet.shape[0] == 2 * 2 * 20 * scale
    left = sheet.shape[1] - 3 * 14 * scale
    cells = sheet[::scale, left::scale]
    np.testing.assert_array_equal(cells[:20, :14], np.asarray(expected(images, Shift("identity", 0, 0.0)))[4])
    np.testing.assert_array_equal(cells[20:40, 28:], expected(images, SHIFTS[1])[1])
    np.testing.assert_array_equal(cells[40:60, 14:28], expected(images, SHIFTS[2])[4])
    assert (sheet[:40, :left] < 128).any()  # the name


def test_large_images_are_reduced_on_a_sheet() -> None:
    images = random_set("test", 1, size=500)
    sheet = draw_sheet(images, [0], SHIFTS[:2], shift_seed=0)
    assert sheet.height == 224
