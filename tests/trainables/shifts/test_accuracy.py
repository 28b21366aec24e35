"""``benchmarks/shift_accuracy.py`` measures what it says; what it measures is not asserted here, nothing is timed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.paths import BENCHMARKS
from trainables.shifts.tables import load_aliases, load_groups

NAMES = ("common", "shift_images", "shift_parity", "shift_accuracy", "shift_draws", "table")


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module; it and what it imports are gone again afterwards: their names are plain words."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("shift_accuracy")
    for name in NAMES:
        sys.modules.pop(name, None)


def make_cell(accuracy: ModuleType, name: str, severity: int, ours: list[float], theirs: list[float]) -> Any:
    shift = SimpleNamespace(name=name, severity=severity)
    return accuracy.Cell(shift, [np.array(ours)], [np.array(theirs)])


def test_mosaics_are_cut_where_they_were_joined(accuracy: ModuleType) -> None:
    mosaics, labels = accuracy.make_mosaics(2)
    tiles, classes = accuracy.make_tiles(32, np.random.default_rng(1), training=False)
    assert mosaics.shape == (2, 224, 224, 3)
    assert labels.ravel().tolist() == classes.tolist()
    cut = accuracy.cut_mosaics(mosaics).permute(0, 2, 3, 1).numpy()
    assert np.abs((cut + 1.0) * 127.5 - tiles).max() < 1e-3


def test_a_mosaic_is_scored_by_the_share_of_its_tiles(accuracy: ModuleType) -> None:
    mosaics, labels = accuracy.make_mosaics(2)
    network = accuracy.train_network(num_images=256, epochs=1)
    predicted = network(accuracy.cut_mosaics(mosaics)).argmax(1).numpy().reshape(2, 16)
    wrong = (predicted[1:] + 1) % 10
    assert accuracy.score(network, mosaics, np.concatenate([predicted[:1], wrong])).tolist() == [1.0, 0.0]
    assert accuracy.score(network, mosaics, labels).shape == (2,)


def test_a_difference_has_the_standard_error_of_paired_mosaics(accuracy: ModuleType) -> None:
    cell = make_cell(accuracy, "fog", 3, [0.5, 1.0, 0.75, 0.75], [0.5, 0.5, 0.75, 0.25])
    row = cell.as_row()
    assert (row["ours"], row["peer"], row["difference"], row["mosaics"]) == (75.0, 50.0, 25.0, 4)
    assert row["error"] == pytest.approx(np.std([0, 50, 0, 50], ddof=1) / 2)


@pytest.mark.parametrize(
    ("difference", "error", "expected"), [(0.3, 0.0, True), (-0.31, 0.0, False), (0.9, 0.2, True), (-1.2, 0.2, False)]
)
def test_a_cell_is_kept_as_far_as_chance_allows(
    accuracy: ModuleType, difference: float, error: float, expected: bool
) -> None:
    # 75 cells at 5 %: 3.4 standard errors
    assert accuracy.is_kept({"difference": difference, "error": error}, 75) is expected


def test_exceptions_are_shown_and_not_judged(accuracy: ModuleType) -> None:
    cells = [
        make_cell(accuracy, "fog", 1, [0.5, 0.5, 0.6], [0.6, 0.5, 0.5]),
        make_cell(accuracy, "jpeg", 1, [0.5, 0.5], [0.6, 0.6]),
        make_cell(accuracy, "frost", 1, [0.1, 0.1], [0.9, 0.9]),
    ]
    said = accuracy.summarise(cells, {}, 97.0).as_json()
    assert (said["ratio"], said["ok"], said["num_judged"], said["outside"]) == (0.5, False, 2, ["jpeg/1"])
    assert said["difference"]["frost/1"] == pytest.approx(-80.0)
    assert "| frost* | 2 | 90.0 -80.00 ± 0.00 | -80.00 ± 0.00 |" in accuracy.make_table(cells)


def test_severities_are_averaged_per_mosaic(accuracy: ModuleType) -> None:
    cells = [
        make_cell(accuracy, "fog", 1, [0.5, 0.9], [0.4, 0.6]),
        make_cell(accuracy, "fog", 2, [0.5, 0.3], [0.4, 0.4]),
    ]
    # 10 and 30 points, 10 and -10: each mosaic gains 10
    assert accuracy.average_severities(cells) == {"fog": pytest.approx({"difference": 10.0, "error": 0.0}, abs=1e-9)}


def test_every_corruption_of_imagenet_c_is_compared_under_its_published_name(accuracy: ModuleType) -> None:
    counts = accuracy.count_mosaics(1000)
    assert set(counts) == set(load_groups("general")["imagenet-c"])
    assert counts["fog"] == 1000
    assert counts["glass_blur"] == accuracy.NUM_GLASS
    assert counts["zoom_blur"] == accuracy.NUM_FEW
    assert load_aliases()["jpeg_compression"] == "jpeg"


def test_the_table_knows_every_script_of_the_shifts_and_only_what_is_there(accuracy: ModuleType) -> None:
    scripts = {words[0] for words in importlib.import_module("table").FULL}
    assert {"shifts.py", "shift_parity.py", "shift_draws.py", "shift_accuracy.py", "evaluation.py"} <= scripts
    assert {"augmentation.py", "augmentation_parity.py"} <= scripts
    assert all((BENCHMARKS / script).exists() for script in scripts)


def test_the_peer_is_given_what_our_operations_draw(accuracy: ModuleType) -> None:
    draws = importlib.import_module("shift_draws").collect_draws(torch.arange(2))
    assert draws["angle"].shape == (2,)
    assert draws["moves"].shape == (2, 2, 224, 224)
    assert np.abs(draws["moves"]).max() <= 1.0
    assert (draws["angle"] >= -45.0).all()
    assert (draws["angle"] < 45.0).all()
    assert np.allclose(draws["fall"], -90.0 - draws["angle"])
    assert draws["fog"].shape == (2, 256, 256)
    assert draws["normals"].shape == draws["uniforms"].shape == (2, 224, 224, 3)
    assert abs(draws["liquid"].std() - 1.0) < 0.01
    assert [draws[f"flakes/{n}"].shape[1] for n in range(1, 6)] == [75, 112, 56, 50, 90]  # 224 / 3, 2, 4, 4.5, 2.5
    for severity, (reach, rounds) in enumerate([(1, 2), (2, 1), (2, 3), (3, 2), (4, 2)], start=1):  # ImageNet-C
        pairs = draws[f"glass/{severity}"]
        assert pairs.shape == (rounds, 2, 224, 224, 2)
        assert (pairs.min(), pairs.max()) == (-reach, reach - 1)


def test_noise_is_what_the_draws_say(accuracy: ModuleType) -> None:
    draws = importlib.import_module("shift_draws")
    seeds, images = draws.make_seeds(0, 1), np.full((1, 224, 224, 3), 100, np.uint8)
    given = draws.collect_draws(seeds)
    ours = draws.corrupt(images, seeds, ["gaussian_noise", "impulse_noise"])
    expected = np.clip(np.floor(100 + 255 * 0.08 * given["normals"].astype(float)), 0, 255)  # ImageNet-C, severity 1
    assert np.abs(ours["gaussian_noise", 1] - expected).max() <= 1
    assert ((ours["impulse_noise", 1] == 0) == (given["uniforms"] < 0.015)).all()


def test_pixels_differ_by_what_is_inside_the_border(accuracy: ModuleType) -> None:
    draws = importlib.import_module("shift_draws")
    ours = np.full((1, 224, 224, 3), 7, np.uint8)
    theirs = ours.copy()
    theirs[0, 3, 3] = 200
    theirs[0, 100, 100, 0] = 9
    theirs[0, 100, 101, 0] = 6
    inside = 3 * (224 - 32) ** 2
    assert draws.describe_pixels(ours, theirs) == {
        "largest": 2,
        "mean": pytest.approx(-1 / inside),
        "different": pytest.approx(2 / inside),
    }
