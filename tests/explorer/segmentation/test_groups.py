"""Clusters and sites of segmented cases as the page gets them, on planted ones."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from orchestrator.explorer.segmentation import groups
from orchestrator.explorer.segmentation.index import MAPPED
from trainables.errors import StudyError
from trainables.evaluation.segmentation.stored import SegmentedSet


def make_set(name: str, features: np.ndarray, dice: np.ndarray | None) -> SegmentedSet:
    """Return a set of two cases a patient; without Dice it has no truth."""
    n = len(features)
    areas = np.repeat(np.arange(1.0, n + 1)[:, None, None], 2, axis=2).astype(np.float32)
    return SegmentedSet(
        name=name,
        ids=np.array([f"{name}-{k}" for k in range(n)]),
        groups=np.arange(n) // 2,
        sources=np.zeros(n, dtype=np.int64),
        shifts=("identity/0",),
        classes=("organ",),
        metrics={} if dice is None else {"dice": dice.astype(np.float32)[None, :, None]},
        layers={MAPPED: features.astype(np.float32)},
        areas=None if dice is None else areas,
    )


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Every third patient of the test set is of another site, elsewhere in the features, and segmented worse."""
    random = np.random.default_rng(0)
    is_other = np.arange(240) // 2 % 3 == 0
    features = 0.6 * random.normal(size=(300, 5))
    features[:240] += 8 * is_other[:, None]
    dice = 0.85 - 0.3 * is_other + 0.03 * random.normal(size=240)
    dice[5] = np.nan  # neither truth nor prediction has an organ
    sets = {
        "test": make_set("test", features[:240], dice),
        "far": make_set("far", features[240:280], None),
        "train": make_set("train", features[280:], np.full(20, 0.2)),
    }
    sites = {"test": ["b" if other else "a" for other in is_other], "far": [""] * 40, "train": ["a"] * 20}
    monkeypatch.setattr(groups, "load_sets", lambda ledger, signature: sets)
    monkeypatch.setattr(groups, "find_sites", lambda images, signature, found: (sites, None))
    return is_other


def test_a_worse_site_and_its_cluster_are_called_and_named(planted: np.ndarray, tmp_path: Path) -> None:
    found = groups.cluster_cases(Mock(), "", cache_dir=tmp_path)
    json.dumps(found, allow_nan=False)
    assert found["num_cases"] == 239
    names = {each["name"]: each for each in found["parts"]}
    assert {name: each["is_elevated"] for name, each in names.items()} == {"test · a": False, "test · b": True}
    assert names["test · b"]["risk"] == pytest.approx(0.45, abs=0.02)
    assert (names["test · b"]["num_judged"], names["test · b"]["num_patients"]) == (80, 40)
    first, *others = found["clusters"]
    codes = np.array(found["codes"])
    assert planted[codes[:240] == first["number"]].all()
    assert (first["is_elevated"], [each["is_elevated"] for each in others]) == (True, [False] * len(others))
    assert {key: value for key, value in first["more"][0].items() if key != "outside"} == {
        "column": "site",
        "level": "b",
        "inside": 1.0,
    }
    assert len(codes) == len(found["part_codes"]) == 300
    assert set(codes[240:]) == {-1}  # foreign and training images
    assert codes[5] == found["part_codes"][5] == -1


def test_without_a_dice_there_are_no_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    far = {"far": make_set("far", np.zeros((4, 2)), None)}
    monkeypatch.setattr(groups, "load_sets", lambda ledger, signature: far)
    monkeypatch.setattr(groups, "find_sites", lambda images, signature, found: ({"far": [""] * 4}, None))
    with pytest.raises(StudyError, match="no case has Dice"):
        groups.cluster_cases(Mock(), "", cache_dir=tmp_path)
