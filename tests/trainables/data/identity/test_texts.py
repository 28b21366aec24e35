from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainables.data.dataset import Dataset
from trainables.data.identity.texts import check_single, find_similar, make_key
from trainables.data.load import load_dataset
from trainables.data_config import CsvData, ImageFolderData
from trainables.errors import DataError

SPLITS = ("train", "train", "val", "test")


@pytest.mark.parametrize(
    ("one", "other"),
    [("007", "7"), ("1", "1.0"), ("1", "01"), ("p07", "P7"), ("Müller", "müller"), ("-1", "-1.00"), ("1.50", "1.5"),
     ("a  b", "A b"), ("Ｐ7", "p7"), ("+3", "3")],
)  # fmt: skip
def test_spellings_of_one_thing_have_one_key(one: str, other: str) -> None:
    assert make_key(one) == make_key(other)
    assert find_similar([one, "x", other]) == [tuple(sorted((one, other)))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "2"),
        ("p7", "p70"),
        ("a", "b"),
        ("-1", "1"),
        ("1.5", "15"),
        ("", "0"),
        ("0.05 mm", "0.5 mm"),
        ("9" * 40 + "1", "9" * 40 + "2"),
    ],
)
def test_different_things_have_different_keys(one: str, other: str) -> None:
    assert make_key(one) != make_key(other)


def write(folder: Path, groups: list[str], labels: list[str] | None = None, names: list[str] | None = None) -> CsvData:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    lines = ["file_name,label,split,group"]
    for row, group in enumerate(groups):
        name = names[row] if names else f"{row:02d}.png"
        Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / name)
        lines.append(f"{name},{labels[row] if labels else row % 2},{SPLITS[row // 2 % 4]},{group}")
    (folder / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    return CsvData(path=folder / "m.csv", image_size=8)


def load(config: Any, cache: Path, **changes: Any) -> Dataset:
    return load_dataset(config.model_copy(update=changes), cache_dir=cache)


def split_of(row: int) -> str:
    return SPLITS[row // 2 % 4]


def test_a_patient_spelt_in_both_forms_of_unicode_is_one(tmp_path: Path) -> None:
    forms = {"train": "NFC", "val": "NFD", "test": "NFD"}
    groups = [unicodedata.normalize(forms[split_of(row)], f"Müller{row % 4}") for row in range(24)]  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"2 group\(s\) straddle|4 group\(s\) straddle"):
        load(write(tmp_path / "d", groups), tmp_path)


def test_groups_that_differ_in_leading_zeros_are_named(tmp_path: Path) -> None:
    groups = [f"{row % 4:03d}" if split_of(row) == "train" else f"{row % 4}" for row in range(24)]
    config = write(tmp_path / "d", groups)
    with pytest.raises(DataError, match=r"(?s)4 group\(s\) are spelt in several ways.*'0' and '000'"):
        load(config, tmp_path)
    unique = write(tmp_path / "e", [f"P{row}" if row % 2 else f"q{row}" for row in range(24)])
    assert load(unique, tmp_path).num_classes == 2
    distinct = write(tmp_path / "f", [f"{row // 2:02d}" if row % 2 else f"{row // 2}" for row in range(24)])
    assert load(distinct, tmp_path, similar_text="distinct").num_classes == 2


def test_labels_that_are_equal_as_numbers_are_named_unless_the_classes_say_so(tmp_path: Path) -> None:
    labels = [f"{row % 2}" + (".0" if row % 3 == 0 else "") for row in range(24)]
    config = write(tmp_path / "d", [f"p{row}" for row in range(24)], labels)
    with pytest.raises(DataError, match=r"(?s)2 label\(s\) are spelt in several ways.*'0' and '0.0'"):
        load(config, tmp_path)
    mapping = {"0": "0", "0.0": "0", "1": "1", "1.0": "1"}
    assert load(config, tmp_path, label_map=mapping).classes == ("0", "1")
    assert load(config, tmp_path, classes=("0", "1", "0.0", "1.0")).num_classes == 4


def test_folders_that_differ_in_case_are_named(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("Mild", "mild", "Severe"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / f"d/{name}/{index}.png")
    with pytest.raises(DataError, match=r"(?s)1 label\(s\) are spelt in several ways.*'Mild' and 'mild'"):
        load_dataset(ImageFolderData(path=tmp_path / "d", image_size=8), cache_dir=tmp_path)


def test_a_label_that_lists_others_is_no_class(tmp_path: Path) -> None:
    labels = ["effusion" if row % 2 else "mass|effusion" if row % 4 else "mass" for row in range(24)]
    config = write(tmp_path / "d", [f"p{row}" for row in range(24)], labels)
    with pytest.raises(DataError, match=r"several labels of one image, such as 'mass\|effusion' beside 'mass'"):
        load(config, tmp_path)
    assert load(config, tmp_path, classes=("mass", "effusion", "mass|effusion")).num_classes == 3
    check_single(["a/b", "c/d", "x & y"])  # no part of them is a label of its own
    for text in ("a;b", "a, b", "b|c|d", "a & z"):
        with pytest.raises(DataError, match="several labels of one image"):
            check_single(["a", "b", text])


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("in_file", ["NFC", "NFD"])
def test_a_file_is_found_in_the_other_normal_form(on_disk: Any, in_file: Any, tmp_path: Path) -> None:
    names = [unicodedata.normalize(on_disk, f"Müller_{row}.png") for row in range(24)]
    config = write(tmp_path / "d", [f"p{row}" for row in range(24)], names=names)
    text = config.path.read_text(encoding="utf-8")
    config.path.write_text(unicodedata.normalize(in_file, text), encoding="utf-8")
    assert sum(len(images) for images in load(config, tmp_path).splits.values()) == 24


def write_classes(folder: Path, names: dict[str, tuple[str, ...]], *, suffix: str = "") -> Path:
    """Write five random images per class folder of each split."""
    generator = np.random.default_rng(0)
    for split, classes in names.items():
        for label in classes:
            (folder / split / label).mkdir(parents=True)
            for index in range(5):
                name = f"{split if suffix else ''}p{index}{suffix if split == 'test' else ''}_{index}.png"
                pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / name)
    return folder


def test_class_folders_and_study_files_are_compared_in_the_composed_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Zürich") for form in ("NFC", "NFD"))
    folder = write_classes(
        tmp_path / "d", {"train": (composed, "b"), "val": (decomposed, "b"), "test": (decomposed, "b")}
    )
    for classes in (None, (decomposed, "b"), (composed, "b")):
        config = ImageFolderData(path=folder, image_size=8, classes=classes)
        assert set(load_dataset(config, cache_dir=tmp_path).classes) == {composed, "b"}
    assert ImageFolderData(path=folder, external_sites=(decomposed,)).external_sites == (composed,)


def test_groups_of_a_pattern_are_compared_as_those_of_a_manifest(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "d", dict.fromkeys(("train", "val", "test"), ("a", "b")), suffix="X")
    config = ImageFolderData(path=folder, image_size=8, group_pattern=r"([a-z]+p\d)", val_fraction=0.2)
    assert load_dataset(config, cache_dir=tmp_path).num_classes == 2
    for file in folder.glob("test/*/testp*_*.png"):
        file.rename(file.with_name(file.name.replace("testp", "Trainp")))
    config = ImageFolderData(path=folder, image_size=8, group_pattern=r"([A-Za-z]+p\d)")
    with pytest.raises(DataError, match=r"(?s)5 group\(s\) are spelt in several ways.*'Trainp0' and 'trainp0'"):
        load_dataset(config, cache_dir=tmp_path)


NAMES = {"train": "abcdef", "val": "ghijkl", "test": "mnopqr"}


@given(
    picks=st.lists(st.integers(0, 5), min_size=24, max_size=24),
    stray=st.none() | st.tuples(st.integers(0, 23), st.sampled_from(["{}", " {}", "{} ", "{}\u0308"]), st.booleans()),
)
@settings(max_examples=40, deadline=None)
def test_no_group_crosses_a_split_unseen_however_it_is_spelt(
    picks: list[int], stray: tuple[int, str, bool] | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Groups of every split are its own, but for one row that is spelt like a group of another split."""
    groups = [f"{NAMES[split_of(row)][pick]}\u0308" for row, pick in enumerate(picks)]
    crosses = False
    if stray is not None:
        row, form, upper = stray
        other = next(each for each in range(24) if split_of(each) != split_of(row))
        text = unicodedata.normalize("NFC", groups[other])
        groups[row] = form.format(text.upper() if upper else text)
        crosses = not form.endswith("\u0308")
    folder = tmp_path_factory.mktemp("groups")
    config = write(folder / "d", groups)
    if crosses:
        with pytest.raises(DataError, match=r"straddle|spelt in several ways"):
            load(config, folder)
    else:
        assert load(config, folder).num_classes == 2
