"""Severities matched on a reference arm, from the study file to the report, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.ledger.ledger import Ledger
from tests.support.command_line import call
from trainables.errors import StudyError
from trainables.seeding import hash_ids, mix
from trainables.shifts.shift import Shift

STUDY = """\
study: matched
question: Which augmentation holds where every shift is equally hard?
data: {kind: digits, image_size: 8}
model: {name: timm/test_resnet, stem: original, input_size: 16}
training: {epochs: 3, batch_size: 32, learning_rate: 0.005}
evaluation:
  shifts: [brightness_down, {name: dusk, op: brightness_down, strengths: [0.4]}]
  severities: matched
  matching: {targets: [0.2, 0.6]}
factors: {augmentation: [none, strong]}
execution: {cache_dir: CACHE}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matched")
    (path / "study.yaml").write_text(STUDY.replace("CACHE", str(path / "cache")))
    assert (
        "matched on augmentation=none, on its validation images: severity 1 = −20 %, 2 = −60 %"
        in call(path, "run").stdout
    )
    return path


def test_every_trial_is_evaluated_at_the_strengths_of_the_stage(folder: Path) -> None:
    ledger = Ledger(str(folder / "results"), "matched")
    (stage,) = ledger.records("stage")
    assert stage.result is not None
    found = stage.result["matching"]
    chosen = {level: each["strength"] for level, each in enumerate(found["shifts"]["brightness_down"], 1)}
    assert 1 > chosen[1] > chosen[2] > 0
    table = (folder / "results/matched/report/shifts.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(table.splitlines()))
    used = {
        (row["name"], int(row["severity"])): float(row["strength"]) for row in rows if row["shift"] == "brightness_down"
    }
    arms = ("augmentation=none", "augmentation=strong")
    assert used == {(arm, level): pytest.approx(strength) for arm in arms for level, strength in chosen.items()}
    assert {row["strength"] for row in rows if row["shift"] == "dusk"} == {"0.4"}
    assert not list((folder / "results/matched/stages").glob("*/predictions"))  # no set is predicted but validation
    page = (folder / "results/matched/report/index.html").read_text(encoding="utf-8")
    assert "Severities matched on augmentation=none: strengths chosen on its 360 validation images" in page


def test_the_plan_is_frozen_and_shows_the_strengths(folder: Path) -> None:
    ledger = Ledger(str(folder / "results"), "matched")
    (before,) = ledger.records("stage")
    assert "nothing has changed" in call(folder, "run").stdout
    plan = json.loads(call(folder, "plan", "--json").stdout)
    assert before.result is not None
    assert plan["matched"] == {"severities matched on augmentation=none": before.result["matching"]}
    assert plan["counts"]["complete"] == 2
    assert ledger.records("stage") == [before]
    other = json.loads(
        call(folder, "plan", "--json", "--set", "evaluation.matching.reference={augmentation: strong}").stdout
    )
    assert other["counts"]["complete"] == 0  # another reference is another study, never other numbers in this one
    assert other["matched"] == {}


def test_the_explorer_draws_images_at_the_strengths_of_the_evaluation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.explorer.images import Images, paint_shifted

    ledger = Ledger(str(folder / "results"), "matched")
    signature = ledger.read_plan()["trials"][0]["signature"]
    images = Images(ledger, folder / "cache")
    (stage,) = ledger.records("stage")
    assert stage.result is not None
    chosen = [each["strength"] for each in stage.result["matching"]["shifts"]["brightness_down"]]
    test = images.open_set(signature, "test")
    pixels, seeds = torch.from_numpy(np.array(test.images[3:5])), torch.from_numpy(hash_ids(test.ids[3:5]))
    for key, shift in {
        "brightness_down/2": Shift("brightness_down", 2, chosen[1]),
        "dusk/1": Shift("brightness_down", 1, 0.4),  # brightness needs no random numbers, so that the name is no matter
    }.items():
        expected = shift.apply(pixels, mix(seeds, "shift", 0)).numpy()
        assert np.array_equal(paint_shifted(images, signature, "test", [3, 4], key), expected)
        assert not np.array_equal(expected, pixels.numpy())
    monkeypatch.setattr(
        images, "strengths", lambda signature: {"brightness_down/1": 0.9, "brightness_down/2": 0.3, "dusk/1": 0.5}
    )
    with pytest.raises(StudyError, match=r"evaluated at the strength 0.5, and now it would be 0.4"):
        paint_shifted(images, signature, "test", [3], "dusk/1")
