"""Strengths of matched severities: planted losses, scales of every shift, and validation images alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import random_dataset, random_set
from trainables.config import Execution, MatchingConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.errors import ConfigError
from trainables.evaluation.severities import matching
from trainables.evaluation.severities.matching import (
    FOUND,
    find_positions,
    match_strengths,
    read_matched,
    with_strengths,
)
from trainables.evaluation.severities.strength_scales import STRONGEST, build_scale
from trainables.evaluation_config import TARGETS, EvaluationConfig
from trainables.models.networks import Classifier
from trainables.shifts.bank import SHIFT_NAMES, build_shifts
from trainables.shifts.shift import Shift
from trainables.shifts.tables import load_tables
from trainables.storage.folder import Folder


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_positions_of_a_monotone_loss_are_its_inverse(power: float) -> None:
    found = find_positions(lambda position: (position / 6) ** power, TARGETS, 6, tolerance=1e-9)
    assert all(each.is_reached for each in found)
    expected = [6 * target ** (1 / power) for target in TARGETS]
    np.testing.assert_allclose([each.position for each in found], expected, atol=1 / 64)
    np.testing.assert_allclose([each.loss for each in found], [(each.position / 6) ** power for each in found])


def test_a_position_is_measured_once_and_a_close_loss_ends_the_search() -> None:
    tried: list[float] = []

    def measure(position: float) -> float:
        tried.append(position)
        return position / 10

    found = find_positions(measure, [0.1, 0.15, 0.3], 6)
    assert [each.position for each in found] == [1.0, 1.5, 3.0]
    assert tried == [1.0, 2.0, 1.5, 3.0]


def test_a_target_beyond_the_scale_is_not_reached_and_gets_the_strongest() -> None:
    found = find_positions(lambda position: min(0.12, position / 10), [0.05, 0.1, 0.2, 0.5], 6)
    assert [each.is_reached for each in found] == [True, True, False, False]
    assert [each.position for each in found[2:]] == [6.0, 6.0]
    assert found[3].loss == 0.12


def test_a_loss_that_turns_back_counts_at_its_first_crossing() -> None:
    losses = {1.0: 0.1, 2.0: 0.4, 3.0: 0.2, 4.0: 0.6}
    found = find_positions(lambda p: float(np.interp(p, [0, *losses], [0, *losses.values()])), [0.3, 0.5], 4)
    assert 1 < found[0].position < 2
    assert 3 < found[1].position < 4
    np.testing.assert_allclose([each.loss for each in found], [0.3, 0.5], atol=0.006)


def test_every_shift_of_the_bank_has_a_scale_through_its_table() -> None:
    assert STRONGEST.keys() == set(SHIFT_NAMES)
    for modality, tables in load_tables().items():
        for name in SHIFT_NAMES:
            scale = build_scale(name, modality)
            knots = [scale.at(float(knot)) for knot in range(1, scale.end)]
            if name in ("saturate", "spatter"):
                assert len(knots) >= 2
                assert all(any(np.allclose(knot, row) for row in tables[name]) for knot in knots)
            else:
                np.testing.assert_allclose(np.array(knots, float), np.array(tables[name], float))
            np.testing.assert_allclose(scale.at(float(scale.end)), STRONGEST[name])


@pytest.mark.parametrize("name", SHIFT_NAMES)
def test_a_scale_can_be_applied_from_almost_nothing_to_its_end(name: str) -> None:
    scale = build_scale(name, "general")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8))
    seeds = torch.arange(3)
    for position in (0.02, 0.6, 2.5, scale.end - 0.5, float(scale.end)):
        shifted = Shift(name, 1, scale.at(position)).apply(images, seeds)
        assert shifted.shape == images.shape
    assert not torch.equal(shifted, images)


CONFIG = MatchingConfig.model_validate(
    {
        "targets": [0.2, 0.5],
        "evaluation": {
            "severities": "matched",
            "matching": {"targets": [0.2, 0.5]},
            "shifts": ["brightness_down", "saturation", {"name": "dusk", "op": "brightness_down", "strengths": [0.4]}],
            "validation_shifts": ["gamma_up"],
        },
    }
)


def planted() -> Dataset:
    """Return 160 grey images per set, each of one grey level from 100 to 252, of class 1 from 176 on."""

    def paint(name: str) -> ImageSet:
        images = random_set(name, 160, num_classes=2)
        levels = np.linspace(100, 252, len(images)).astype(np.uint8)
        pixels = np.broadcast_to(levels[:, None, None, None], images.images.shape).copy()
        return dataclasses.replace(images, images=pixels, labels=(levels >= 176).astype(np.int64))

    data = random_dataset(num_classes=2)
    return dataclasses.replace(data, splits={name: paint(name) for name in data.splits})


class Threshold(Classifier):
    """Network that says class 1 from a mean grey level of 176 on."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(1))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.mean(dim=(1, 2, 3)) - 175.5
        return torch.stack([-level, level], dim=1)


def match(data: Dataset, folder: Path, config: MatchingConfig = CONFIG) -> dict[str, object]:
    execution = Execution(cache_dir=folder / "cache")
    return match_strengths(
        Threshold(), data, config, folder=Folder(folder), execution=execution, precision=torch.float32
    )


def test_strengths_reach_their_targets_and_are_those_of_the_evaluation(tmp_path: Path) -> None:
    """Darkening to the factor f makes the levels from 176 to 176/f class 0: half a balanced accuracy of their share."""
    data = planted()
    found = match(data, tmp_path)
    assert found["clean"] == 1.0
    assert found["chance"] == 0.5
    shifts: dict = found["shifts"]  # type: ignore[type-arg, assignment]
    assert set(shifts) == {"brightness_down", "gamma_up"}  # grey images: no saturation; dusk has strengths of its own
    levels = data.splits["val"].images[:, 0, 0, 0].astype(float)
    for target, each in zip(CONFIG.targets, shifts["brightness_down"], strict=True):
        dark = np.round(levels * each["strength"]) < 176
        assert each["loss"] == pytest.approx(dark[levels >= 176].mean(), abs=0.02)
        assert each["loss"] == pytest.approx(target, abs=0.04)
        assert each["reached"]
    evaluation = with_strengths(CONFIG.evaluation, found)
    built = {(shift.name, shift.severity): shift.strength for shift in build_shifts(evaluation, data.modality)}
    assert built["brightness_down", 1] == shifts["brightness_down"][0]["strength"]
    assert built["brightness_down", 2] == shifts["brightness_down"][1]["strength"]
    assert built["dusk", 1] == 0.4
    assert ("saturation", 2) in built  # left out of grey images later, with its reason


def test_the_same_images_give_the_same_strengths_whatever_the_test_images_are(tmp_path: Path) -> None:
    data = planted()
    test = data.splits["test"]
    other = dataclasses.replace(test, images=255 - test.images, labels=1 - test.labels)
    changed = dataclasses.replace(data, splits=data.splits | {"test": other})
    assert match(data, tmp_path / "a") == match(data, tmp_path / "b") == match(changed, tmp_path / "c")


def test_an_interrupted_search_goes_on_after_its_last_shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = planted()
    whole = match(data, tmp_path / "whole")
    calls: list[str] = []
    real = matching.build_scale

    def build(name: str, modality: str) -> object:
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(name, modality)

    monkeypatch.setattr(matching, "build_scale", build)
    with pytest.raises(KeyboardInterrupt):
        match(data, tmp_path / "cut")
    assert list(Folder(tmp_path / "cut").read_json(FOUND)) == calls[:1]
    monkeypatch.setattr(matching, "build_scale", real)
    assert match(data, tmp_path / "cut") == whole


def test_a_reference_at_chance_is_an_error(tmp_path: Path) -> None:
    data = planted()
    val = data.splits["val"]
    guessed = dataclasses.replace(val, labels=np.arange(len(val)) % 2)
    with pytest.raises(ConfigError, match=r"where chance is 0\.500; expected 0\.1 more"):
        match(dataclasses.replace(data, splits=data.splits | {"val": guessed}), tmp_path)


def test_without_a_finished_stage_there_are_no_strengths(tmp_path: Path) -> None:
    assert read_matched(EvaluationConfig(), None) == EvaluationConfig()
    with pytest.raises(ConfigError, match="no finished stage that has chosen the strengths"):
        read_matched(CONFIG.evaluation, Folder(tmp_path))
    found = {"shifts": {"gamma_up": [{"strength": 2.0}] * 5}}
    known = with_strengths(EvaluationConfig(severities="matched", shifts=("jpeg",)), found)
    with pytest.raises(ConfigError, match="'jpeg' and found those of gamma_up"):
        build_shifts(known, "general")
