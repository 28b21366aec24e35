from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from trainables.data.assembly import sort_naturally
from trainables.data.load import load_dataset
from trainables.data_config import DataConfig
from trainables.errors import ConfigError, DataError

GRADES = ("No_DR", "Mild", "Moderate", "Severe", "Proliferate_DR")


def write_folders(root: Path, classes: tuple[str, ...], number: int = 10) -> Path:
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(number):
            Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(root / name / f"{index}.png")
    return root


def load(cache: Path, **fields: Any) -> tuple[str, ...]:
    config: Any = TypeAdapter(DataConfig).validate_python({"image_size": 8, "channels": 1, **fields})
    return load_dataset(config, cache_dir=cache).classes


@pytest.mark.parametrize(
    "ordered",
    [
        ("0", "1", "2", "10"), ("-2", "-1", "0", "1"), ("1.0", "2.0", "10.0"), ("0.5", "1", "+1.5", "1e1"),
        ("-1.5", "-1", ".5"), ("a", "b10", "b2"), ("1", "10", "2", "x"),
    ],
)  # fmt: skip
def test_numbers_are_sorted_by_value_and_everything_else_by_its_text(ordered: tuple[str, ...]) -> None:
    assert tuple(sort_naturally(set(ordered))) == ordered


def test_long_digits_are_text() -> None:
    assert sort_naturally({"9" * 5000, "10"}) == ["10", "9" * 5000]


def test_grades_in_the_order_of_the_alphabet_are_no_order(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "d", GRADES)
    common = {"kind": "image_folder", "path": folder}
    assert load(tmp_path, **common) == tuple(sorted(GRADES))
    with pytest.raises(ConfigError, match=r"(?s)sorted by their text; expected data.classes.*classes: \[\"Mild\", "):
        load(tmp_path, **common, ordinal=True)  # also from the cache
    assert load(tmp_path, **common, ordinal=True, classes=GRADES) == GRADES


def test_numbers_that_labels_are_mapped_to_give_the_order(tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "d", GRADES)
    mapping = {name: str(grade) for grade, name in enumerate(GRADES)}
    classes = load(tmp_path, kind="image_folder", path=folder, ordinal=True, label_map=mapping)
    assert classes == ("0", "1", "2", "3", "4")
    coarse = {name: "sick" if grade > 1 else "healthy" for grade, name in enumerate(GRADES)}
    with pytest.raises(ConfigError, match="sorted by their text"):
        load(tmp_path, kind="image_folder", path=folder, ordinal=True, label_map=coarse)


def test_classes_of_medmnist_have_names_through_the_map_and_an_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 20), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = generator.integers(0, 255, (number, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(number)[:, None] % 2
    np.savez(tmp_path / "m.npz", **arrays)
    common = {"kind": "medmnist", "path": tmp_path / "m.npz"}
    assert load(tmp_path, **common, ordinal=True) == ("0", "1")
    named = {"label_map": {"0": "normal", "1": "ill"}, "classes": ("normal", "ill")}
    assert load(tmp_path, **common, ordinal=True, **named) == ("normal", "ill")
    assert load(tmp_path, **common, ordinal=True, label_map={"0": "normal", "1": "ill"}) == ("normal", "ill")
    with pytest.raises(DataError, match="has the label '0', expected one of the classes normal, ill"):
        load(tmp_path, **common, classes=("normal", "ill"))
