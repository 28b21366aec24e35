"""Masks of manifests: the geometry of their image, small lesions, faults with file and row, and when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.data.dataset import Dataset
from trainables.data.decoding.lesion_masks import decode_mask
from trainables.data.decoding.pixels import PixelSpec
from trainables.data.load import load_dataset
from trainables.data.sources import lesion_masks
from trainables.data.sources.lesion_masks import load_test_masks
from trainables.data_config import CsvData, DigitsData, PhantomData
from trainables.errors import ConfigError, DataError

SIDE = 16


def _write(
    path: Path, box: tuple[int, int, int, int] | None, *, value: int = 255, code: int = 0, size=(40, 30)
) -> None:
    """Write a black image with a box of ``value``: top, left, height, width; the code tells images apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], dtype=np.uint8)
    pixels[26:, 10:30] = code
    if box is not None:
        top, left, height, width = box
        pixels[top : top + height, left : left + width] = value
    Image.fromarray(pixels).save(path)


def make_manifest(root: Path, *, count: int = 30, resize: str = "crop") -> CsvData:
    """Write images that are white where their mask is, every third without a mask."""
    lines = ["file_name,label,group,mask"]
    for index in range(count):
        box = (4 + index % 9, 6 + 2 * index // 3, 8, 6) if index % 2 else None
        _write(root / f"images/{index:02d}.png", box, code=index + 1)
        mask = "" if index % 3 == 0 else f"masks/{index:02d}.png"
        if mask:
            _write(root / mask, box, value=1)
        lines.append(f"images/{index:02d}.png,{'sick' if index % 2 else 'well'},p{index},{mask}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return CsvData(path=root / "manifest.csv", image_size=SIDE, channels=1, resize=resize, test_fraction=0.5)


def load(config: CsvData, cache: Path) -> tuple[Dataset, np.ndarray]:
    dataset = load_dataset(config, cache_dir=cache)
    return dataset, load_test_masks(dataset, config, cache_dir=cache).masks


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_a_mask_moves_exactly_as_its_image_does(resize: str, tmp_path: Path) -> None:
    dataset, masks = load(make_manifest(tmp_path / "data", resize=resize), tmp_path / "cache")
    test = dataset.splits["test"]
    for identifier, image, mask in zip(test.ids, test.images, masks, strict=True):
        number = int(identifier[-6:-4])
        lesion = image[0] >= 128 if number % 3 else np.zeros_like(mask)
        assert np.array_equal(mask, lesion)
        assert mask.any() == bool(number % 2 and number % 3)


def test_masks_are_read_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_manifest(tmp_path / "data")
    dataset, first = load(config, tmp_path / "cache")
    assert isinstance(first, np.memmap)
    monkeypatch.setattr(lesion_masks, "decode_mask", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(load_test_masks(dataset, config, cache_dir=tmp_path / "cache").masks, first)
    assert dataset.splits["train"].masks is None


def test_data_are_the_same_with_and_without_masks(tmp_path: Path) -> None:
    config = make_manifest(tmp_path / "data")
    before = load_dataset(config, cache_dir=tmp_path / "cache")
    sha256 = load_test_masks(before, config, cache_dir=tmp_path / "cache").sha256
    row = next(int(each[-6:-4]) for each in before.splits["test"].ids if int(each[-6:-4]) % 6 in (1, 5))
    _write(tmp_path / f"data/masks/{row:02d}.png", (0, 0, 30, 40))
    after = load_dataset(config, cache_dir=tmp_path / "cache")
    assert after.fingerprint == before.fingerprint
    changed = load_test_masks(after, config, cache_dir=tmp_path / "cache")
    assert changed.sha256 != sha256
    assert changed.masks[list(after.splits["test"].ids).index(f"images/{row:02d}.png")].all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "does not exist or cannot be read"),
        ("size", r"is 20×30 px, and its image 40×30 px; expected a mask of the image's own size"),
        ("jpeg", "is a JPEG, which blurs the edges of a mask"),
        ("alpha", "is partly transparent"),
        ("text", "cannot be read to its end as a mask"),
    ],
)
def test_faults_are_told_with_file_and_row(fault: str, message: str, tmp_path: Path) -> None:
    config = make_manifest(tmp_path / "data")
    dataset = load_dataset(config, cache_dir=tmp_path / "cache")
    number = next(int(each[-6:-4]) for each in dataset.splits["test"].ids if int(each[-6:-4]) % 3)
    mask = tmp_path / f"data/masks/{number:02d}.png"
    if fault == "missing":
        mask.unlink()
    elif fault == "size":
        _write(mask, (1, 1, 3, 3), size=(20, 30))
    elif fault == "jpeg":
        Image.open(mask).save(mask, format="JPEG")
    elif fault == "alpha":
        Image.open(mask).convert("LA").save(mask)
    else:
        mask.write_text("no image")
    with pytest.raises(DataError, match=rf"masks/{number:02d}.png \(row {number + 2}\): {message}"):
        load_test_masks(dataset, config, cache_dir=tmp_path / "cache")


def test_a_mask_outside_the_root_is_refused(tmp_path: Path) -> None:
    config = make_manifest(tmp_path / "data")
    text = config.path.read_text().replace("masks/01.png", "../01.png")
    config.path.write_text(text)
    dataset = load_dataset(config, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match=r"1 mask\(s\) point outside the root"):
        load_test_masks(dataset, config, cache_dir=tmp_path / "cache")


def test_data_without_masks_or_lesions_are_refused(tmp_path: Path) -> None:
    digits = DigitsData(image_size=8)
    dataset = load_dataset(digits, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"the data \(digits\) have no lesion masks"):
        load_test_masks(dataset, digits, cache_dir=tmp_path)
    config = make_manifest(tmp_path / "data")
    for mask in (tmp_path / "data/masks").iterdir():
        _write(mask, None)
    dataset = load_dataset(config, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="no test image has a lesion in its mask"):
        load_test_masks(dataset, config, cache_dir=tmp_path)


def test_a_phantom_has_its_masks_already(tmp_path: Path) -> None:
    config = PhantomData(num_images=60, image_size=32, num_external_sites=0)
    dataset = load_dataset(config, cache_dir=tmp_path)
    found = load_test_masks(dataset, config, cache_dir=tmp_path)
    assert found.masks is dataset.splits["test"].masks
    assert found.sha256 is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "F", "RGB"])
def test_any_value_but_zero_is_a_lesion(mode: str, tmp_path: Path) -> None:
    values = np.zeros((8, 8), dtype=np.uint8)
    values[2:5, 3:6] = 1
    if mode == "1":
        drawn = Image.fromarray(values > 0)
    elif mode == "P":
        drawn = Image.fromarray(values, mode="P")
        drawn.putpalette([0, 0, 0, 200, 10, 10])
    elif mode in ("I;16", "F"):
        drawn = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.float32))
    else:
        drawn = Image.fromarray(values).convert(mode)
    drawn.save(tmp_path / "mask.tif")
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    spec = PixelSpec(8, 3, "crop", 100.0)
    assert np.array_equal(decode_mask(tmp_path / "mask.tif", tmp_path / "image.png", spec), values)


def test_small_lesions_do_not_vanish_and_large_ones_keep_their_area(tmp_path: Path) -> None:
    values = np.zeros((640, 640), dtype=np.uint8)
    values[100:103, 200:204] = 255  # 12 of the 400 px of a stored pixel
    values[300:500, 320:520] = 255  # 10 × 10 stored pixels
    Image.fromarray(values).save(tmp_path / "mask.png")
    Image.new("RGB", (640, 640)).save(tmp_path / "image.png")
    found = decode_mask(tmp_path / "mask.png", tmp_path / "image.png", PixelSpec(32, 3, "crop", 100.0))
    assert found[5, 10] == 1
    assert found[15:25, 16:26].all()
    assert found.sum() == 101


def test_the_orientation_of_camera_images_is_applied(tmp_path: Path) -> None:
    values = np.zeros((8, 12), dtype=np.uint8)
    values[:, :4] = 255
    Image.fromarray(values).save(tmp_path / "mask.png")
    sideways = Image.fromarray(np.zeros((12, 8), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "image.png", exif=exif)
    found = decode_mask(tmp_path / "mask.png", tmp_path / "image.png", PixelSpec(12, 1, "squash", 100.0))
    assert found[:, :4].all()
    assert not found[:, 4:].any()
