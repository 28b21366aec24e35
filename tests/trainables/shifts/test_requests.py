"""What ``evaluation.shifts`` may say, and the shifts that other packages bring."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest
import torch

from trainables.config import EvaluationConfig
from trainables.data.sources.arrays import MEDMNIST_MODALITY
from trainables.errors import ConfigError
from trainables.seeding import hash_ids, mix
from trainables.shifts import registry
from trainables.shifts.bank import DEFAULT_NAMES, SHIFT_NAMES, Shift, build_shifts, stain_name
from trainables.shifts.operation import Operation
from trainables.shifts.registry import RegisteredShift, register_shift
from trainables.shifts.tables import ENTRY_POINTS, load_groups, load_tables

IMAGES = torch.arange(4 * 3 * 31 * 29, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(4, 3, 31, 29)
SEEDS = mix(torch.from_numpy(hash_ids("abcd")), 0)
INVERT = RegisteredShift(Operation(lambda images, strength, seeds: 255 - images, 0.0), (1.0, 2.0))


def build(
    *shifts: str | dict[str, Any], modality: str = "general", severities: tuple[int, ...] = (1, 3)
) -> list[Shift]:
    return build_shifts(EvaluationConfig(shifts=shifts, severities=severities), modality)


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_registered", {})
    registry._load_entry_points.cache_clear()
    yield
    registry._load_entry_points.cache_clear()


def keys(shifts: list[Shift]) -> list[str]:
    return [f"{shift.name}/{shift.severity}" for shift in shifts]


def test_groups_stand_for_their_shifts() -> None:
    for scalar in ("all", "imagenet-c"):
        alone = build_shifts(EvaluationConfig(shifts=scalar, severities=(2,)), "general")
        assert alone == build(scalar, severities=(2,))
    assert {shift.name for shift in build("imagenet-c")} == set(load_groups("general")["imagenet-c"])
    assert {shift.name for shift in build("medmnist-c", modality="blood")} == set(load_groups("blood")["medmnist-c"])
    together = [shift.name for shift in build("all", "imagenet-c", severities=(1,))]
    assert together[:16] == list(DEFAULT_NAMES)
    assert len(together) == len(set(together)) == 16 + 19 - 9  # 9 are in both


def test_every_medmnist_set_has_its_group() -> None:
    assert len(MEDMNIST_MODALITY) == 12
    for modality in MEDMNIST_MODALITY.values():
        assert build("medmnist-c", modality=modality)


def test_every_modality_can_be_asked_for() -> None:
    for modality in load_tables():
        assert build_shifts(EvaluationConfig(modality=modality, shifts=("jpeg",)), "general")


def test_published_names_find_ours() -> None:
    assert build("jpeg_compression", "gamma_corr_up") == build("jpeg", "gamma_up")


def test_the_stain_grid_has_99_cells_and_its_middle_is_the_identity() -> None:
    cells = build("stain-grid", modality="pathology")
    assert len(cells) == 99
    assert {cell.severity for cell in cells} == {1}
    assert cells[0].name == "stain_h0_e0.1"
    assert "stain_h0_e0" not in {cell.name for cell in cells}
    (middle,) = [cell for cell in cells if cell.strength == (1.0, 1.0)]
    assert torch.equal(middle.apply(IMAGES, SEEDS), IMAGES)
    assert sum(not torch.equal(cell.apply(IMAGES, SEEDS), IMAGES) for cell in cells) == 98


def test_stains_can_be_any() -> None:
    cells = build({"stain": {"haematoxylin": [0.25, 1], "eosin": 7}}, "stain_h3_e0.5")
    assert [cell.strength for cell in cells] == [(0.25, 7.0), (1.0, 7.0), (3.0, 0.5)]
    assert [cell.name for cell in cells] == ["stain_h0.25_e7", "stain_h1_e7", stain_name(3.0, 0.5)]


def test_two_shifts_follow_each_other() -> None:
    (both,) = build({"compose": ["brightness_down/2", "contrast_up/3"]})
    first, second = build("brightness_down", severities=(2,))[0], build("contrast_up", severities=(3,))[0]
    assert (both.name, both.severity) == ("brightness_down2_then_contrast_up3", 1)
    assert torch.equal(both.apply(IMAGES, SEEDS), second.apply(first.apply(IMAGES, SEEDS), SEEDS))


def test_a_composition_can_follow_the_severities() -> None:
    named = build({"compose": ["gaussian_noise", "jpeg_compression", "stain_h2_e1"], "name": "scan"})
    assert keys(named) == ["scan/1", "scan/3"]
    assert named[1].strength == (3.0, 3.0, 1.0)
    assert not torch.equal(named[0].apply(IMAGES, SEEDS), named[1].apply(IMAGES, SEEDS))
    alone = torch.cat([named[0].apply(IMAGES[i : i + 1], SEEDS[i : i + 1]) for i in range(4)])
    assert torch.equal(named[0].apply(IMAGES, SEEDS), alone)


def test_own_shifts_have_the_severities_that_they_were_given() -> None:
    own = build(
        {"name": "dusk", "op": "brightness_down", "strengths": [0.4, 0.1]},
        {"name": "violet", "op": "strong_hue", "strengths": [0.3]},
        {"name": "shake", "op": "motion_blur", "strengths": [[9, 4]]},
        {"compose": ["dusk/2", "jpeg/1"]},
    )
    assert keys(own) == ["dusk/1", "dusk/2", "violet/1", "shake/1", "dusk2_then_jpeg1/1"]
    expected = Shift("brightness_down", 1, 0.1).apply(IMAGES, SEEDS)
    assert torch.equal(own[1].apply(IMAGES, SEEDS), expected)
    assert not torch.equal(own[2].apply(IMAGES, SEEDS), IMAGES)


@pytest.mark.usefixtures("clean_registry")
def test_registered_shifts_are_part_of_the_bank() -> None:
    register_shift("negative", INVERT)
    assert keys(build("negative", "jpeg")) == ["negative/1", "negative/2", "jpeg/1", "jpeg/3"]
    assert torch.equal(build("negative")[0].apply(IMAGES, SEEDS), 255 - IMAGES)
    assert build({"compose": ["negative/2", "jpeg/1"]})
    with pytest.raises(ConfigError, match="found 0 strengths, expected 1 to 5"):
        register_shift("none", RegisteredShift(INVERT.operation, ()))


@pytest.mark.usefixtures("clean_registry")
def test_entry_points_are_found_and_broken_ones_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [metadata.EntryPoint("negative", f"{__name__}:INVERT", ENTRY_POINTS)]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)
    assert keys(build("negative")) == ["negative/1", "negative/2"]
    points[:] = [metadata.EntryPoint("gone", "no_such_module:SHIFT", ENTRY_POINTS)]
    registry._load_entry_points.cache_clear()
    with pytest.raises(ConfigError, match=r"entry point gone = 'no_such_module:SHIFT'.*reinstall"):
        build("jpeg")
    points[:] = [metadata.EntryPoint("wrong", f"{__name__}:IMAGES", ENTRY_POINTS)]
    registry._load_entry_points.cache_clear()
    with pytest.raises(ConfigError, match=r"'wrong': found Tensor, expected .*RegisteredShift"):
        build("jpeg")


@pytest.mark.usefixtures("clean_registry")
def test_registered_shifts_cannot_take_the_banks_names() -> None:
    register_shift("jpeg", INVERT)
    with pytest.raises(ConfigError, match="registered shifts: 'jpeg' is taken"):
        build("snow")


@pytest.mark.usefixtures("clean_registry")
def test_a_registered_shift_that_returns_something_else_is_named() -> None:
    register_shift("halved", RegisteredShift(Operation(lambda images, strength, seeds: images[..., ::2], 0.0), (1.0,)))
    with pytest.raises(ConfigError, match=r"'halved' returned torch.uint8 \(4, 3, 31, 15\), expected"):
        build("halved")[0].apply(IMAGES, SEEDS)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("snoww", r"evaluation.shifts: found 'snoww'.*did you mean 'snow'"),
        ({"compose": ["jpeg/1"]}, r"evaluation.shifts\[0\].compose: found \['jpeg/1'\], expected two or more"),
        ({"compose": ["jpeg/1", "snoww/1"]}, r"evaluation.shifts\[0\].compose: found 'snoww'.*did you mean 'snow'"),
        ({"compose": ["jpeg/1", "snow/6"]}, r"found 'snow/6', expected snow with a severity from 1 to 5"),
        ({"compose": ["jpeg/1", "snow/x"]}, r"found 'snow/x', expected name/severity"),
        ({"compose": ["jpeg/1", "snow/1"], "name": "a b"}, r"\.name: found 'a b', expected a letter"),
        ({"compose": ["jpeg/1", "snow/1"], "name": "fog"}, r"\.name: 'fog' is taken"),
        ({"name": "x", "op": "jpeg", "strength": [3]}, r"\[0\]: found 'strength'.*did you mean 'strengths'"),
        ({"name": "x", "op": "jpeg"}, r"\[0\]: strengths is missing"),
        ({"name": "x", "op": "jepg", "strengths": [3]}, r"\[0\].op: found 'jepg'.*did you mean 'jpeg'"),
        ({"name": "x", "op": "jpeg", "strengths": 3}, r"strengths: found 3, expected a list of 1 to 5.*a number"),
        ({"name": "x", "op": "fog", "strengths": [3]}, r"strengths: found \[3\].*each a list of 2 numbers"),
        ({"name": "jpeg", "op": "jpeg", "strengths": [3]}, r"\[0\].name: 'jpeg' is taken"),
        ({"name": "identity", "op": "jpeg", "strengths": [3]}, r"\[0\].name: 'identity' is taken"),
        ({"compose": ["jpeg/1", "snow/1"], "name": "identity"}, r"\[0\].name: 'identity' is taken"),
        (
            {"name": "x", "op": "pixelate", "strengths": [0.5, -5]},
            r"strengths: found -5, expected a number from 0 to 800",
        ),
        (
            {"name": "x", "op": "gaussian_blur", "strengths": [1e30]},
            r"strengths: found 1e\+30, expected a number from 0",
        ),
        (
            {"name": "x", "op": "fog", "strengths": [[1, 1e9]]},
            r"strengths: found 1e\+09, expected a number from 0 to 2000",
        ),
        (
            {"name": "x", "op": "strong_hue", "strengths": [1e9]},
            r"strengths: found 1e\+09, expected a number from -1000",
        ),
        ({"stain": {"eosin": 1}}, r"\[0\].stain: haematoxylin is missing"),
        ({"stain": {"eosin": [-1], "haematoxylin": 1}}, r"stain.eosin: found \[-1\], expected a list of numbers ≥ 0"),
        ({"brightness": 2}, r"\[0\]: found a mapping with brightness, expected one with compose"),
        ("medmnist-c", r"no table for the modality 'general': set evaluation.modality"),
    ],
)
def test_wrong_requests_say_where_and_what(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(entry)


def test_names_are_unique() -> None:
    with pytest.raises(ConfigError, match="jpeg is listed more than once"):
        build("jpeg", "jpeg_compression")
    with pytest.raises(ConfigError, match="'dusk' is taken"):
        build(*[{"name": "dusk", "op": "jpeg", "strengths": [5]}] * 2)
    assert len(set(SHIFT_NAMES)) == len(SHIFT_NAMES)
