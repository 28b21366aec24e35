"""Images with masks in folders and manifests: pairs, classes, field of view, geometry, faults, fingerprints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.paths import DATA
from trainables.data.dataset import UNCOUNTED, Dataset
from trainables.data.decoding.pixels import PixelSpec
from trainables.data.describe import describe_dataset
from trainables.data.load import load_dataset
from trainables.data.segmentation.targets import fit_targets, read_mask
from trainables.errors import DataError
from trainables.segmentation_data_config import ImageMaskCsvData, ImageMaskFolderData

SIDE = 32
RETINA = DATA / "retina-vessels"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def draw(number: int, *, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, np.ndarray]:
    """Return an image that is white in a box, and the box as a mask of 0 and 255; the number tells images apart."""
    mask = np.zeros(size, dtype=np.uint8)
    mask[4 + number % 9 : 16 + number % 9, 6 + number % 7 : 18 + number % 7] = 255
    image = mask.copy()
    image[-2:, :] = 40 + number
    return image, mask


def write_folder(root: Path, *, splits: dict[str, int] | None = None, suffix: str = "_manual1") -> None:
    number = 0
    for split, count in (splits or {"train": 10, "test": 4}).items():
        for _ in range(count):
            image, mask = draw(number)
            save(root / split / "images" / f"p{number // 2}_{number:02d}.png", image)
            save(root / split / "masks" / f"p{number // 2}_{number:02d}{suffix}.png", mask)
            number += 1


def beside(root: Path) -> Path:
    """Return a folder for the cache that is not below the images."""
    return root.with_name(f"{root.name}-cache")


def load(root: Path, cache: Path, **fields: object) -> Dataset:
    config = ImageMaskFolderData.model_validate({"path": root, "image_size": SIDE, "channels": 1, **fields})
    return load_dataset(config, cache_dir=cache)


def test_a_folder_of_splits_becomes_images_with_targets(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", splits={"train": 10, "test": 4, "external/lyon": 3})
    data = load(tmp_path / "data", tmp_path, group_pattern="(p\\d+)_", foreground="vessel")
    assert data.classes == ("background", "vessel")
    assert data.components == ("data",)
    assert data.annotated == {"data": (0, 1)}
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 8, "val": 2, "test": 4}
    groups = {name: {*images.groups.tolist()} for name, images in data.splits.items()}
    assert not groups["train"] & groups["val"]
    assert data.external["lyon"].sites.tolist() == ["lyon"] * 3
    for images in (*data.splits.values(), data.external["lyon"]):
        assert isinstance(images.targets, np.memmap)
        assert images.masks is None
        assert images.labels.tolist() == [0] * len(images)
        for row, identifier in enumerate(images.ids):
            image, mask = draw(int(identifier[-6:-4]))
            assert np.array_equal(images.images[row, 0], image)
            assert np.array_equal(images.targets[row], mask // 255)
        assert images.metadata["foreground_px"] == [144] * len(images)


@pytest.mark.parametrize("name", ["images", "masks"])
def test_content_decides_the_fingerprint_and_places_do_not(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    before = load(tmp_path / "data", tmp_path / "a").fingerprint
    (tmp_path / "data").rename(tmp_path / "moved")
    assert load(tmp_path / "moved", tmp_path / "a").fingerprint == before
    path = next((tmp_path / "moved/train" / name).iterdir())
    pixels = np.array(Image.open(path))
    pixels[0, 0] = 255
    save(path, pixels)
    assert load(tmp_path / "moved", tmp_path / "a").fingerprint != before


def test_unsplit_folders_are_split_by_group(tmp_path: Path) -> None:
    write_folder(tmp_path, splits={".": 20}, suffix="")
    data = load(tmp_path, beside(tmp_path), group_pattern="(p\\d+)_", val_fraction=0.2, test_fraction=0.3)
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 10, "val": 4, "test": 6}
    groups = [{*images.groups.tolist()} for images in data.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10


def test_values_have_classes_and_null_is_uncounted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for path in tmp_path.glob("*/masks/*"):
        mask = np.array(Image.open(path)) // 255
        mask[:2, :3], mask[-1, :5] = 2, 3
        save(path, mask)
    values = {0: "background", 1: "organ", 2: "cyst", 3: "unsure"}
    data = load(tmp_path, beside(tmp_path), mask_values=values, label_map={"unsure": None, "cyst": "lesion"})
    assert data.classes == ("background", "organ", "lesion")
    targets = data.splits["train"].targets
    assert targets is not None
    assert (targets[:, :2, :3] == 2).all()
    assert (targets[:, -1, :5] == UNCOUNTED).all()
    assert data.splits["train"].metadata["foreground_px"] == [150] * len(targets)
    with pytest.raises(DataError, match=r"p\d_\d\d_manual1.png holds the values 0, 1, 2, 3; expected 0 and one other"):
        load(tmp_path, beside(tmp_path))


def test_outside_of_the_field_of_view_and_in_borders_nothing_is_counted(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for path in [*tmp_path.glob("*/images/*")]:
        inside = np.zeros((SIDE, SIDE), dtype=bool)
        inside[:, 2:30] = True
        save(tmp_path / path.parent.parent.name / "fov" / f"{path.stem}_mask.gif", inside)
    targets = load(tmp_path, beside(tmp_path)).splits["test"].targets
    assert targets is not None
    assert (targets[:, :, [0, 1, 30, 31]] == UNCOUNTED).all()
    assert (targets[:, :, 2:30] != UNCOUNTED).all()
    wide = np.zeros((20, 40), dtype=np.uint8)
    wide[5:15, 10:20] = 1
    padded = fit_targets(wide, PixelSpec(20, 1, "pad", 200))
    assert (padded[:5] == UNCOUNTED).all()
    assert (padded[5:15] != UNCOUNTED).all()
    assert (padded == 1).sum() == 25


def test_the_pattern_pairs_names_that_differ(tmp_path: Path) -> None:
    for number in range(8):
        image, mask = draw(number)
        folder = tmp_path / ("training" if number < 5 else "test")
        save(folder / "images" / f"{number:02d}_training.png", image)
        save(folder / "1st_manual" / f"{number:02d}_manual1.gif", mask > 0)
        save(folder / "mask" / f"{number:02d}_training_mask.gif", np.ones_like(mask) > 0)
    names = {"mask_folder": "1st_manual", "fov_folder": "mask"}
    with pytest.raises(DataError, match="has no file of its name in 1st_manual, expected one: name what"):
        load(tmp_path, beside(tmp_path), **names)
    data = load(tmp_path, beside(tmp_path), pair_pattern=r"^\d+", **names)
    assert sorted(len(images) for images in data.splits.values()) == [1, 3, 4]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("size", r"p0_00.png: has a mask, p0_00_manual1.png, .* it is 32×30 px, and its image 32×32 px"),
        ("value", r"p0_00.png: has a mask, .* it holds the value\(s\) 7, expected 0, 255 \(data.mask_values\)"),
        ("no mask", r"train/images/p0_00.png: has no file of its name in masks, expected one"),
        ("no image", r"train/masks/p0_00_manual1.png: is a mask of no image in train, expected one"),
        ("two masks", r"p0_00.png: has 2 files in masks \(train/masks/p0_00.png, train/masks/p0_00_manual1.png\)"),
        ("damaged", r"p0_00.png: has a mask, .* it cannot be read to its end as a mask"),
        ("colours", r"p0_00.png: has a mask, .* it holds colours"),
    ],
)
def test_faults_are_named_or_set_aside(fault: str, message: str, tmp_path: Path) -> None:
    write_folder(tmp_path)
    image, mask = (tmp_path / "train" / name for name in ("images/p0_00.png", "masks/p0_00_manual1.png"))
    pixels = np.array(Image.open(mask))
    pixels[0, 0] = 7 if fault == "value" else 0
    save(mask, pixels[:30] if fault == "size" else pixels)
    if fault == "no mask":
        mask.unlink()
    elif fault == "no image":
        image.unlink()
    elif fault == "two masks":
        save(mask.with_name("p0_00.png"), pixels)
    elif fault == "damaged":
        mask.write_bytes(mask.read_bytes()[:60])
    elif fault == "colours":
        save(mask, np.stack([pixels, pixels, pixels // 2], axis=-1))
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, beside(tmp_path))
    assert "1 image(s) cannot be used" in str(error.value)
    data = load(tmp_path, beside(tmp_path), on_bad="quarantine")
    assert len(data.quarantined) == 1
    assert sum(map(len, data.splits.values())) == 13


def test_empty_masks_are_counted_and_a_class_without_pixels_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    first = sorted((tmp_path / "test/masks").iterdir())[0]
    save(first, np.zeros((SIDE, SIDE), dtype=np.uint8))
    lines = describe_dataset(load(tmp_path, beside(tmp_path)))
    assert lines["test"] == "4 images: 10.5% of all pixels are not background; 1 image without any"
    assert lines["classes"] == "2, in this order: background, foreground"
    for path in (tmp_path / "train/masks").iterdir():
        save(path, np.zeros((SIDE, SIDE), dtype=np.uint8))
    with pytest.raises(DataError, match="no training image has a pixel of foreground"):
        load(tmp_path, beside(tmp_path))


def test_a_manifest_names_masks_fields_of_view_and_spacing(tmp_path: Path) -> None:
    lines = ["file_name,mask,split,group,site,spacing_mm,age"]
    for number in range(9):
        image, mask = draw(number, size=(2 * SIDE, 3 * SIDE))
        save(tmp_path / f"i/{number}.png", image)
        save(tmp_path / f"m/{number}.png", mask)
        split, spacing = ("train", "0.5") if number < 4 else ("test" if number < 7 else "val", "0.5x0.25")
        lines.append(f"i/{number}.png,m/{number}.png,{split},g{number},oslo,{spacing},{40 + number}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    config = ImageMaskCsvData(path=tmp_path / "list.csv", image_size=SIDE, channels=1, resize="squash")
    data = load_dataset(config, cache_dir=tmp_path)
    assert data.components == ("list",)
    train, test = data.splits["train"], data.splits["test"]
    assert train.metadata["spacing_row"] == [1.0] * 4  # 64 rows of 0.5 mm become 32
    assert train.metadata["spacing_column"] == [1.5] * 4  # 96 columns become 32
    assert (test.metadata["spacing_row"], test.metadata["spacing_column"]) == ([1.0] * 3, [0.75] * 3)
    assert test.metadata["age"] == [44, 45, 46]
    assert test.sites.tolist() == ["oslo"] * 3
    (tmp_path / "list.csv").write_text("\n".join(lines).replace("0.5x0.25", "thin"))
    with pytest.raises(DataError, match=r"list.csv line 6: found the spacing_mm 'thin'; expected one number above 0"):
        load_dataset(config, cache_dir=tmp_path)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_shrinking_keeps_the_area_of_every_class(resize: str) -> None:
    rows, columns = np.mgrid[:300, :420]
    mask = np.zeros((300, 420), dtype=np.uint8)
    mask[np.hypot(rows - 150, columns - 210) < 90] = 1
    mask[np.abs(rows - 60 - 0.4 * columns) < 2] = 2  # a line of 4 px, half a stored pixel
    mask[149:151, 209:211] = 3
    fitted = fit_targets(mask, PixelSpec(40, 1, resize, 200))
    scale = {"crop": 300**2 / 40**2, "squash": 300 * 420 / 40**2, "pad": 300 * 420 / (29 * 40)}[resize]
    part = mask[:, 60:360] if resize == "crop" else mask
    for value in (1, 2):
        assert abs((fitted == value).sum() - (part == value).sum() / scale) <= 1
    assert (fitted == 3).sum() == 1  # it covers less than a tenth of a pixel


def test_a_disc_stays_where_it_is() -> None:
    rows, columns = np.mgrid[:256, :256]
    mask = (np.hypot(rows - 90.5, columns - 140.5) < 50).astype(np.uint8)
    fitted = fit_targets(mask, PixelSpec(64, 1, "crop", 200))
    centre = np.argwhere(fitted == 1).mean(axis=0)
    assert np.abs((centre + 0.5) * 4 - (91, 141)).max() < 1  # a quarter of a stored pixel


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "side"), [("drive", 128), ("chase_db1", 64)])
def test_vessels_of_real_eyes_keep_their_area(name: str, side: int) -> None:
    paths = sorted((RETINA / name / "test" / "masks").glob("*.png"))[:2]
    if not paths:
        pytest.skip(f"no {RETINA}: set ROBUSTSWEEP_DATA to the folder with retina-vessels")
    for path in paths:
        mask = (read_mask(path) > 0).astype(np.uint8)
        fitted = fit_targets(mask, PixelSpec(side, 3, "squash", 200))
        assert (fitted == 1).mean() == pytest.approx(mask.mean(), rel=0.01)


@pytest.mark.real_data
def test_both_eyes_of_a_child_stay_together(tmp_path: Path) -> None:
    if not RETINA.is_dir():
        pytest.skip(f"no {RETINA}: set ROBUSTSWEEP_DATA to the folder with retina-vessels")
    data = load(RETINA / "chase_db1", tmp_path, group_pattern=r"Image_(\d+)")
    assert {name: len(images) for name, images in data.splits.items()} == {"train": 16, "val": 4, "test": 8}
    assert all((np.unique(each.groups, return_counts=True)[1] == 2).all() for each in data.splits.values())
