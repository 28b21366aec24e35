"""Random manifests: whatever they hold, no group, content or label crosses a split unseen."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainables.data.dataset import Dataset
from trainables.data.load import load_dataset
from trainables.data_config import CsvData
from trainables.errors import ConfigError, DataError

#: Every picture under two names and in two formats.
PICTURES = 14
SUFFIXES = (".png", ".bmp")


def _spell(number: int, variant: int) -> str:
    """Return one of several spellings that a person reads as the same patient."""
    texts = {0: f"{number}", 1: f"{number:03d}", 2: f"{number}.0", 3: f" {number} ", 4: f"+{number}"}
    return texts.get(variant, f"{number}")


def _spell_name(number: int, variant: int) -> str:
    name = "Müller"
    texts = {
        0: f"{name}{number}",
        1: unicodedata.normalize("NFD", f"{name}{number}"),
        2: f"{name}{number}".upper(),
        3: f"{name}{number} ",
        4: f"{name}0{number}",
    }
    return texts.get(variant, f"{name}{number}")


ROW = st.tuples(
    st.integers(0, PICTURES - 1),
    st.sampled_from(SUFFIXES),
    st.sampled_from(["usual", "usual", "usual", "usual", "other"]),  # label
    st.integers(0, 9),  # patient
    st.sampled_from([0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),  # spelling of the patient
    st.sampled_from(["train", "Training", "val", "test", "external/x", ""]),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        image = Image.fromarray(generator.integers(0, 255, (6, 6), dtype=np.uint8))
        for suffix in SUFFIXES:
            image.save(folder / f"{number}{suffix}")
    return folder


@given(
    rows=st.lists(ROW, min_size=4, max_size=28, unique_by=lambda row: row[:2]),
    spell=st.sampled_from([_spell, _spell_name]),
    is_consistent=st.booleans(),
    on_leak=st.sampled_from(["error", "quarantine"]),
    similar_text=st.sampled_from(["error", "distinct"]),
    labels=st.sampled_from([("0", "1"), ("Zürich", "b"), ("-1", "10.0")]),
)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_nothing_crosses_a_split_unseen(
    *,
    rows: list[tuple[int, str, str, int, int, str]],
    spell: Any,
    is_consistent: bool,
    on_leak: Any,
    similar_text: Any,
    labels: tuple[str, str],
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Half of the manifests have all rows of a patient and of a picture in one set, so that many are accepted."""
    sets = ("train", "train", "val", "test", "external/x")
    lines, truth = ["file_name,label,split,group"], {}
    for picture, suffix, usual, drawn, variant, split in rows:
        patient = picture if is_consistent else drawn
        chosen = sets[picture % len(sets)] if is_consistent else split
        label = labels[(picture + (usual == "other" and not is_consistent)) % 2]
        group = spell(patient, 0 if is_consistent and variant == 4 else variant)
        name = f"{picture}{suffix}"
        lines.append(f'{name},{label},{chosen},"{group}"')
        truth[name] = (picture, patient, label)
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "m.csv").write_text("\n".join(lines), encoding="utf-8")
    config = CsvData(
        path=folder / "m.csv", root=pictures, image_size=6, channels=1, on_leak=on_leak, similar_text=similar_text
    )
    try:
        data = load_dataset(config, cache_dir=folder)
    except (DataError, ConfigError) as error:
        event(f"refused: {str(error)[:30]}")
        return
    event("accepted")
    _check(data, truth, knows_spellings=similar_text == "error")


def _check(data: Dataset, truth: dict[str, tuple[int, int, str]], *, knows_spellings: bool) -> None:
    sets_of: dict[str, dict[Any, set[str]]] = {"picture": defaultdict(set), "patient": defaultdict(set)}
    label_of: dict[int, str] = {}
    kept = 0
    for name, images in (data.splits | data.external).items():
        for identifier, label in zip(images.ids, images.labels, strict=True):
            picture, patient, expected = truth[str(identifier)]
            assert data.classes[label] == unicodedata.normalize("NFC", expected)
            assert label_of.setdefault(picture, expected) == expected
            sets_of["picture"][picture].add(name)
            sets_of["patient"][patient].add(name)
            kept += 1
    assert kept + len(data.quarantined) == len(truth)
    for found in sets_of["picture"].values():
        assert len(found) == 1 or found == {"test", "x"}
    if knows_spellings:
        assert all(len(found) == 1 for found in sets_of["patient"].values())
