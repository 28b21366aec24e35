"""CSV manifests and class folders: every fault named with file and row."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from trainables.data.describe import describe_dataset
from trainables.data.load import load_dataset
from trainables.data_config import CsvData, ImageFolderData
from trainables.errors import ConfigError, DataError

HEADER = "file_name,label,group,site,age"


def _image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _study(root: Path, *, count: int = 40, extra: tuple[str, ...] = (), header: str = HEADER) -> CsvData:
    """A manifest of ``count`` good images, two per patient, two sites, and ``extra`` lines after them."""
    lines = [header]
    for index in range(count):
        _image(root / "images" / f"{index:02d}.png", index)
        lines.append(
            f"images/{index:02d}.png,{'sick' if index // 2 % 2 else 'well'},p{index // 2},s{index // 20},{index}"
        )
    (root / "manifest.csv").write_text("\n".join([*lines, *extra]) + "\n")
    return CsvData(path=root / "manifest.csv", image_size=8)


def _load(config, tmp_path):
    return load_dataset(config, cache_dir=tmp_path / "cache")


def test_manifest_is_split_by_group_and_keeps_what_it_says(tmp_path):
    dataset = _load(_study(tmp_path / "data"), tmp_path)
    assert dataset.classes == ("sick", "well")
    assert sum(len(images) for images in dataset.splits.values()) == 40
    groups = [set(images.groups) for images in dataset.splits.values()]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    train = dataset.splits["train"]
    row = int(train.ids[3][-6:-4])
    expected = np.asarray(Image.open(tmp_path / "data" / train.ids[3])).transpose(2, 0, 1)
    assert np.array_equal(train.images[3], expected)
    assert train.metadata["age"][3] == row
    assert train.sites[3] == f"s{row // 20}"
    assert dataset.classes[train.labels[3]] == ("sick" if row // 2 % 2 else "well")


def test_external_site_leaves_the_splits(tmp_path):
    config = _study(tmp_path / "data").model_copy(update={"external_sites": ("s1",)})
    dataset = _load(config, tmp_path)
    assert len(dataset.external["s1"]) == 20
    assert dataset.external["s1"].name == "s1"
    assert all(set(images.sites) == {"s0"} for images in dataset.splits.values())


def test_a_site_is_left_out_beside_the_external_ones(tmp_path):
    config = _study(tmp_path / "data").model_copy(update={"leave_out": "s1"})
    dataset = _load(config, tmp_path)
    assert list(dataset.external) == ["s1"]
    assert len(dataset.external["s1"]) == 20
    assert all(set(images.sites) == {"s0"} for images in dataset.splits.values())
    external = config.model_copy(update={"leave_out": None, "external_sites": ("s1",)})
    assert dataset.fingerprint == _load(external, tmp_path).fingerprint
    with pytest.raises(ConfigError, match=r"data\.leave_out names 's11'.*nearest: 's1'.*sites are s0, s1"):
        _load(config.model_copy(update={"leave_out": "s11"}), tmp_path)
    with pytest.raises(ValueError, match="found 's1' as leave_out and in external_sites"):
        CsvData(path=tmp_path, leave_out="s1", external_sites=("s0", "s1"))


def test_unknown_external_site_names_the_nearest(tmp_path):
    config = _study(tmp_path / "data").model_copy(update={"external_sites": ("s11",)})
    with pytest.raises(ConfigError, match=r"'s11'.*nearest: 's1'.*sites are s0, s1"):
        _load(config, tmp_path)


def test_all_bad_rows_are_reported_together(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "empty.png").touch()
    (tmp_path / "data" / "text.png").write_text("x")
    _image(tmp_path / "data" / "nan.png")
    extra = ("empty.png,well,q1,s0,1", "text.png,well,q2,s0,1", "gone.png,well,q3,s0,1", "nan.png,NaN,q4,s0,1")
    config = _study(tmp_path / "data", extra=extra)
    with pytest.raises(DataError) as caught:
        _load(config, tmp_path)
    message = str(caught.value)
    for part in (
        "4 image(s) cannot be used",
        "empty.png (row 42): is empty",
        "text.png (row 43): cannot be read",
        "gone.png (row 44): does not exist",
        "nan.png (row 45): has no value (or NaN) for label in manifest.csv line 45",
        "data.on_bad: quarantine",
    ):
        assert part in message
    assert not list((tmp_path / "cache" / "data").glob("*.tmp"))

    dataset = _load(config.model_copy(update={"on_bad": "quarantine"}), tmp_path)
    assert sorted((bad.file_name, bad.row) for bad in dataset.quarantined) == [
        ("empty.png", 42), ("gone.png", 44), ("nan.png", 45), ("text.png", 43),
    ]  # fmt: skip
    assert sum(len(images) for images in dataset.splits.values()) == 40
    for images in dataset.splits.values():
        assert len(images.images) == len(images.labels) == len(images.ids)
        for pixels, identifier in zip(images.images, images.ids, strict=True):
            expected = np.asarray(Image.open(tmp_path / "data" / identifier)).transpose(2, 0, 1)
            assert np.array_equal(pixels, expected)


def test_only_the_first_bad_rows_are_listed(tmp_path):
    extra = tuple(f"gone{index}.png,well,q{index},s0,1" for index in range(25))
    with pytest.raises(DataError, match=r"(?s)25 image\(s\) cannot be used.*and 5 more"):
        _load(_study(tmp_path / "data", extra=extra), tmp_path)


def test_label_outside_the_classes_is_a_bad_row(tmp_path):
    _image(tmp_path / "data" / "odd.png", 99)
    config = _study(tmp_path / "data", extra=("odd.png,odd,q,s0,1",)).model_copy(update={"classes": ("well", "sick")})
    with pytest.raises(DataError, match=r"odd.png \(row 42\): has the label 'odd', expected one of .* well, sick"):
        _load(config, tmp_path)
    dataset = _load(config.model_copy(update={"on_bad": "quarantine"}), tmp_path)
    assert dataset.classes == ("well", "sick")
    assert len(dataset.quarantined) == 1


def test_quarantine_that_empties_a_class_in_train_is_an_error(tmp_path):
    config = _study(tmp_path / "data", extra=("gone.png,rare,q,s0,1",)).model_copy(update={"on_bad": "quarantine"})
    with pytest.raises(DataError, match=r"(?s)train has no image of some classes.*'rare'"):
        _load(config, tmp_path)


def test_label_map(tmp_path):
    config = _study(tmp_path / "data").model_copy(update={"label_map": {"well": "no", "sick": "yes"}})
    assert _load(config, tmp_path).classes == ("yes", "no")
    with pytest.raises(
        DataError, match=r"(?s)no class for the label of 20 image\(s\).*images/02.png \(row 4\): 'sick'"
    ):
        _load(config.model_copy(update={"label_map": {"well": "no"}}), tmp_path)


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "C:\\out.png", "..\\out.png"])
def test_paths_out_of_the_root_are_refused_even_with_quarantine(name, tmp_path):
    config = _study(tmp_path / "data", extra=(f"{name},well,q,s0,1",))
    with pytest.raises(DataError, match=r"(?s)outside the root.*manifest.csv line 42"):
        _load(config.model_copy(update={"on_bad": "quarantine"}), tmp_path)


def _split_study(root: Path, last: str, header: str = "file_name,label,split,group") -> CsvData:
    lines = [header]
    for index, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
        _image(root / f"{index}.png", index)
        lines.append(f"{index}.png,{index % 2},{split},g{index}")
    _image(root / "last.png", 77)
    (root / "m.csv").write_text("\n".join([*lines, last]))
    return CsvData(path=root / "m.csv", image_size=8)


def test_given_splits_and_external_sets_are_kept(tmp_path):
    dataset = _load(_split_study(tmp_path / "d", "last.png,1,external/Ghent,g99"), tmp_path)
    assert {name: len(images) for name, images in dataset.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert dataset.external["Ghent"].ids.tolist() == ["last.png"]


def test_unknown_split_names_row_and_nearest(tmp_path):
    with pytest.raises(DataError, match=r"(?s)m.csv line 10: 'trian' \(nearest: 'train'\)"):
        _load(_split_study(tmp_path / "d", "last.png,1,trian,g99"), tmp_path)


def test_group_in_train_and_external_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"(?s)1 group\(s\) straddle.*'g0' is in external/x, train"):
        _load(_split_study(tmp_path / "d", "last.png,1,external/x,g0"), tmp_path)


def test_id_in_two_splits_is_refused(tmp_path):
    config = _split_study(tmp_path / "d", "last.png,1,test,g0", header="file_name,label,split,id")
    with pytest.raises(DataError, match=r"(?s)1 id\(s\) straddle.*'g0' is in test, train"):
        _load(config, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'file_name'"),
        ("file_name,labels\na.png,1\n", "no column 'label' .nearest: 'labels'"),
        ("file_name,label,label\na.png,1,1\n", "no name twice"),
        ("file_name,label\na.png,1,2\n", "line 2 has 3 cells"),
        ('file_name,label\n"a.png,1\n', "data.path: could not read"),
        ("file_name,label\n", "found no image"),
        ("file_name,label\na.png,1\n./a.png,2\n", r"(?s)repeat the file_name.*'a.png': line 2 and line 3"),
    ],
)
def test_faulty_manifest(text, message, tmp_path):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        _load(CsvData(path=tmp_path / "m.csv"), tmp_path)


def test_manifest_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        _load(CsvData(path=tmp_path / "no.csv"), tmp_path)
    (tmp_path / "b.csv").write_bytes(b"file_name,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="expected CSV in UTF-8"):
        _load(CsvData(path=tmp_path / "b.csv"), tmp_path)


def _folder(root: Path, splits: tuple[str, ...]) -> ImageFolderData:
    for number, split in enumerate(splits):
        for label in ("cat", "dog"):
            for index in range(10):
                _image(root / split / label / f"{index}.png", 100 * number + index + (50 if label == "dog" else 0))
    (root / ".DS_Store").touch()
    return ImageFolderData(path=root, image_size=8)


def test_folder_with_splits(tmp_path):
    dataset = _load(_folder(tmp_path / "d", ("train", "val", "test", "external/Leeds")), tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert {name: len(images) for name, images in dataset.splits.items()} == {"train": 20, "val": 20, "test": 20}
    assert len(dataset.external["Leeds"]) == 20
    assert set(dataset.external["Leeds"].sites) == {"Leeds"}


def test_folder_without_splits_is_split_by_fraction(tmp_path):
    dataset = _load(_folder(tmp_path / "d", ("",)), tmp_path)
    assert {name: len(images) for name, images in dataset.splits.items()} == {"train": 12, "val": 4, "test": 4}


def test_folder_faults(tmp_path):
    config = _folder(tmp_path / "d", ("train", "val", "test"))
    (tmp_path / "d" / "train" / "cat" / "scan.nii").write_text("x")
    with pytest.raises(DataError, match=r"train/cat/scan.nii: is not of a known image format"):
        _load(config, tmp_path)
    (tmp_path / "d" / "train" / "cat" / "scan.nii").unlink()
    _image(tmp_path / "d" / "train" / "stray.png")
    with pytest.raises(DataError, match=r"(?s)outside <split>/<class>/<image>.*train/stray.png"):
        _load(config, tmp_path)
    (tmp_path / "d" / "train" / "stray.png").unlink()
    _image(tmp_path / "d" / "tests" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"'tests' .nearest: 'test'"):
        _load(config, tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        _load(ImageFolderData(path=tmp_path / "none"), tmp_path)


def test_class_only_in_test_is_refused(tmp_path):
    config = _folder(tmp_path / "d", ("train", "val", "test"))
    _image(tmp_path / "d" / "test" / "owl" / "0.png", 7)
    with pytest.raises(DataError, match=r"(?s)train has no image.*'owl': 1 image\(s\) elsewhere \(test\)"):
        _load(config, tmp_path)


@pytest.mark.parametrize("spelling", ["Train", "TRAINING", "training"])
def test_usual_names_in_the_split_column_are_known(spelling, tmp_path):
    config = _split_study(tmp_path / "d", f"last.png,1,{spelling},g99")
    assert len(_load(config, tmp_path).splits["train"]) == 5


def test_images_of_an_external_site_need_no_split(tmp_path):
    config = _split_study(tmp_path / "d", "last.png,1,,g99,lyon", header="file_name,label,split,group,site").model_copy(
        update={"external_sites": ("lyon",)}
    )
    assert _load(config, tmp_path).external["lyon"].ids.tolist() == ["last.png"]
    other = _split_study(tmp_path / "e", "last.png,1,,g99,ghent", header="file_name,label,split,group,site")
    with pytest.raises(DataError, match=r"no value \(or NaN\) for split in m.csv line 10"):
        _load(other, tmp_path)


def test_group_pattern_finds_the_patient_in_the_path(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "d" / label).mkdir(parents=True)
        for patient in range(10):
            for side in ("left", "right"):
                path = tmp_path / "d" / label / f"{label}{patient:02d}_{side}.png"
                Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    config = ImageFolderData(path=tmp_path / "d", image_size=8, group_pattern=r"(?P<group>[ab]\d+)_(left|right)")
    data = _load(config, tmp_path)
    patients = {name: set(images.groups) for name, images in data.splits.items()}
    assert set.union(*patients.values()) == {f"{label}{patient:02d}" for label in "ab" for patient in range(10)}
    assert sum(map(len, patients.values())) == 20
    assert describe_dataset(data)["groups"] == "20, each in one set"
    assert (
        "one per image"
        in describe_dataset(_load(ImageFolderData(path=tmp_path / "d", image_size=8), tmp_path))["groups"]
    )
    with pytest.raises(DataError, match=r"(?s)finds no group in 40 of 40 paths.*a/a00_left.png"):
        _load(config.model_copy(update={"group_pattern": r"(p\d+)_"}), tmp_path)
    with pytest.raises(ValidationError, match="no regular expression"):
        ImageFolderData(path=tmp_path / "d", group_pattern="(p")


def _write_patients(root: Path) -> list[str]:
    """Four images of each of ten patients, whose names are not in the paths."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(40):
        names.append(f"{'ab'[number % 2]}/{number:02d}.png")
        (root / names[-1]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / names[-1])
    return names


def test_groups_from_a_file_beside_the_folder(tmp_path):
    names = _write_patients(tmp_path / "d")
    rows = [f"{name.replace('/', chr(92))},p{number // 4}" for number, name in enumerate(names)]
    (tmp_path / "groups.csv").write_text("\n".join(["file_name,group", *rows, "a/not-there.png,p9"]))
    config = ImageFolderData(path=tmp_path / "d", image_size=8, group_file=tmp_path / "groups.csv")
    data = _load(config, tmp_path)
    groups = [set(images.groups) for images in data.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 10
    moved = config.model_copy(update={"group_file": (tmp_path / "groups.csv").rename(tmp_path / "moved.csv")})
    assert _load(moved, tmp_path).fingerprint == data.fingerprint
    (tmp_path / "moved.csv").write_text("\n".join(["file_name,group", *(f"{name},{name}" for name in names)]))
    assert _load(moved, tmp_path).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"data.group_file: there is no file .*groups.csv"),
        ("file_name,patient\na/00.png,1\n", r"groups.csv has no column 'group'"),
        ("file_name,group\na/00.png,1\n", r"(?s)names no group for 39 of 40 images.*'a/00.png'.*b/01.png"),
        ("file_name,group\na/00.png,\n", r"groups.csv line 2 has no group; expected one for 'a/00.png'"),
        ("file_name,group\na/00.png,1\n./a/00.png,2\n", r"gives 'a/00.png' the group '1' in line 2 and '2' in line 3"),
    ],
)
def test_faulty_group_file(text, message, tmp_path):
    _write_patients(tmp_path / "d")
    if text is not None:
        (tmp_path / "groups.csv").write_text(text)
    config = ImageFolderData(path=tmp_path / "d", image_size=8, group_file=tmp_path / "groups.csv")
    with pytest.raises(DataError, match=message):
        _load(config, tmp_path)


def test_groups_have_one_source(tmp_path):
    with pytest.raises(ValidationError, match="found both group_pattern and group_file"):
        ImageFolderData(path=tmp_path, group_pattern="p", group_file=tmp_path / "g.csv")
