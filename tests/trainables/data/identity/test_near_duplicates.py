"""Near-duplicates: planted copies are found, images that are merely alike are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import DATA
from trainables.data.contact_sheet import draw_pairs
from trainables.data.dataset import SimilarPair
from trainables.data.describe import describe_dataset
from trainables.data.identity.near_duplicates import _build_blur, find_near_duplicates, shrink_images
from trainables.data.load import load_dataset
from trainables.data_config import ImageFolderData


def _jpeg(pixels: np.ndarray) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=50)
    return np.asarray(Image.open(data))


def _shift(down: int, right: int) -> Callable[[np.ndarray], np.ndarray]:
    def shift(pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape
        padded = np.pad(pixels, 1, mode="edge")
        return padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]

    return shift


def _scale(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pixels: np.clip(pixels * factor + 0.5, 0, 255).astype(np.uint8)


PLANTS = {
    "JPEG of quality 50": _jpeg,
    "one pixel to the right": _shift(0, 1),
    "one pixel up": _shift(-1, 0),
    "one pixel down and left": _shift(1, -1),
    "2 % brighter": _scale(1.02),
    "2 % darker": _scale(0.98),
}


def _make_images(number: int, size: int = 64) -> np.ndarray:
    """Images of a few smooth structures on a background that all of them share."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    shared = 80 * np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.1)
    images = []
    for _ in range(number):
        centres, widths = generator.uniform(0, 1, (12, 2)), generator.uniform(0.02, 0.1, 12)
        parts = (
            40 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / w**2) for (cx, cy), w in zip(centres, widths, strict=True)
        )
        images.append(shared + sum(parts) + 40)
    return np.clip(images, 0, 255).astype(np.uint8)


@pytest.mark.real_data
def test_the_bar_on_radiographs() -> None:
    path = DATA / "pneumoniamnist.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with np.load(path) as arrays:
        images = np.concatenate([arrays[f"{split}_images"] for split in ("train", "val", "test")])
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    images = images[np.sort(first)]  # exact copies are found elsewhere
    assert len(images) == 5002
    assert len(find_near_duplicates(shrink_images(images[:, None]))) <= len(images) / 1000
    chosen = np.random.default_rng(0).choice(len(images), 300, replace=False)
    for name, change in PLANTS.items():
        copies = np.stack([change(images[row]) for row in chosen])
        pairs = find_near_duplicates(shrink_images(np.concatenate([images, copies])[:, None]))
        found = {(pair.first, pair.second) for pair in pairs}
        share = np.mean([(row, len(images) + place) in found for place, row in enumerate(chosen)])
        assert share >= 0.95, f"{name}: {share:.3f}"


@pytest.mark.parametrize("size", [28, 50, 64, 120, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_found_at_every_size(size: int, channels: int) -> None:
    images = _make_images(60, size)
    copies = np.stack([list(PLANTS.values())[row % len(PLANTS)](images[row]) for row in range(30)])
    stack = np.repeat(np.concatenate([images, copies])[:, None], channels, axis=1)
    pairs = find_near_duplicates(shrink_images(stack))
    assert {(pair.first, pair.second) for pair in pairs} == {(row, 60 + row) for row in range(30)}
    assert all(pair.correlation > 0.95 for pair in pairs)


def test_equal_pixels_are_left_out() -> None:
    images = _make_images(20)
    stack = np.concatenate([images, images[:3]])[:, None]
    same = np.array([*range(20), 0, 1, 2])
    assert find_near_duplicates(shrink_images(stack), same) == []


@pytest.mark.parametrize("number", [0, 1, 2, 3, 6])
def test_a_few_images(number: int) -> None:
    assert find_near_duplicates(shrink_images(_make_images(10)[:number, None])) == []


def test_images_without_structure_are_no_copies_of_each_other() -> None:
    flat = np.full((30, 1, 32, 32), 7, dtype=np.uint8)
    flat += np.arange(30, dtype=np.uint8)[:, None, None, None]
    noise = np.random.default_rng(0).integers(0, 255, (30, 1, 32, 32), dtype=np.uint8)
    assert find_near_duplicates(shrink_images(flat)) == []
    assert find_near_duplicates(shrink_images(noise)) == []


def test_thumbnails_are_means_of_blocks() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 113, 113), dtype=np.uint8)
    thumbnails = shrink_images(images)
    assert thumbnails.shape == (5, 37, 37)
    expected = images[:, :, :111, :111].reshape(5, 3, 37, 3, 37, 3).mean(axis=(1, 3, 5))
    assert np.abs(thumbnails - expected).max() <= 0.51
    large = np.full((1, 3, 16 * 56, 16 * 56), 255, dtype=np.uint8)
    assert shrink_images(large).min() == 255  # no overflow


@pytest.mark.parametrize(("side", "sigma"), [(28, 0.7), (28, 2.52), (56, 5.04)])
def test_the_filter_is_scipys(side: int, sigma: float) -> None:
    from scipy.ndimage import gaussian_filter1d

    assert np.abs(_build_blur(side, sigma) - gaussian_filter1d(np.eye(side), sigma, axis=0)).max() < 1e-7


# ------------------------------------------------------------------ in a data set


def _write(root: Path) -> ImageFolderData:
    images = _make_images(48)
    for number, pixels in enumerate(images):
        path = root / ("train", "val", "test")[number % 3] / "ab"[number // 3 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    Image.fromarray(_shift(0, 1)(images[0])).save(root / "test" / "a" / "shifted.png")  # 0 is in train
    Image.fromarray(_scale(1.02)(images[6])).save(root / "train" / "a" / "brighter.png")  # as is 6
    return ImageFolderData(path=root, image_size=64, channels=1)


def test_pairs_are_counted_by_their_sets_and_those_of_two_sets_come_first(tmp_path: Path) -> None:
    data = load_dataset(_write(tmp_path / "d"), cache_dir=tmp_path / "c")
    assert data.similar.counts == {"test and train": 1, "train": 1}
    across, inside = data.similar.pairs
    assert {_name(data, across.first), _name(data, across.second)} == {"train/a/0.png", "test/a/shifted.png"}
    assert {_name(data, inside.first), _name(data, inside.second)} == {"train/a/6.png", "train/a/brighter.png"}
    line = describe_dataset(data)["near-duplicates"]
    assert line == "2 pairs of images look like copies of each other: 1 in test and train, 1 in train"
    again = load_dataset(_write_config(tmp_path / "d"), cache_dir=tmp_path / "c")
    assert again.similar == data.similar


def _write_config(root: Path) -> ImageFolderData:
    return ImageFolderData(path=root, image_size=64, channels=1)


def _name(data: object, place: tuple[str, int]) -> str:
    return str(data.splits[place[0]].ids[place[1]])  # type: ignore[attr-defined]


def test_places_are_right_after_a_copy_was_set_aside(tmp_path: Path) -> None:
    config = _write(tmp_path / "d")
    Image.open(tmp_path / "d" / "test" / "a" / "2.png").save(tmp_path / "d" / "train" / "a" / "00-copy.png")
    data = load_dataset(config.model_copy(update={"on_leak": "quarantine"}), cache_dir=tmp_path / "c")
    assert len(data.quarantined) == 1
    assert {_name(data, place) for pair in data.similar.pairs for place in (pair.first, pair.second)} == {
        "train/a/0.png", "test/a/shifted.png", "train/a/6.png", "train/a/brighter.png",
    }  # fmt: skip


def test_what_was_not_compared_is_said(tmp_path: Path) -> None:
    config = _write(tmp_path / "d")
    small = load_dataset(config.model_copy(update={"image_size": 16}), cache_dir=tmp_path / "c")
    assert describe_dataset(small)["near-duplicates"] == "not looked for: images of 16 px, at least 28 are needed"
    ignored = load_dataset(config.model_copy(update={"near_duplicates": "ignore"}), cache_dir=tmp_path / "c")
    assert describe_dataset(ignored)["near-duplicates"] == "not looked for: data.near_duplicates: ignore"


def test_the_sheet_shows_both_images(tmp_path: Path) -> None:
    data = load_dataset(_write(tmp_path / "d"), cache_dir=tmp_path / "c")
    sheet = draw_pairs(data)
    pair: SimilarPair = data.similar.pairs[0]
    left = np.asarray(sheet)[12 : 12 + 128, 12 : 12 + 128, 0]
    expected = data.splits[pair.first[0]].images[pair.first[1], 0].repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(left, expected)
