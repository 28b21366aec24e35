"""A study with two independent contrastive encoders for four replicates, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.results import load_results
from orchestrator.ledger.ledger import Ledger
from tests.support.command_line import call
from trainables.storage.checkpoint import load_weights

STUDY = """\
study: encoders
data: {kind: digits, image_size: 8}
model: {name: timm/test_resnet, stem: original, input_size: 16}
training: {epochs: 1, batch_size: 64}
evaluation: {shifts: [gaussian_noise], severities: [1]}
pretraining: {kind: contrastive, epochs: 1, batch_size: 512, horizontal_flip: false, encoders: 2}
replicates: 4
execution: {cache_dir: CACHE}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoders")
    (path / "study.yaml").write_text(STUDY.replace("CACHE", str(path / "cache")))
    call(path, "run")
    return path


def test_replicates_start_from_their_encoder(folder: Path) -> None:
    ledger = Ledger(str(folder / "results"), "encoders")
    stages = {record.config["config"]["encoder"]: record.signature for record in ledger.records("stage")}
    assert sorted(stages) == [0, 1]
    trials = {record.config["replicate"]: record for record in ledger.records("trial")}
    assert {number: trial.config["needs"] for number, trial in trials.items()} == {
        0: [stages[0]], 1: [stages[1]], 2: [stages[0]], 3: [stages[1]],
    }  # fmt: skip
    assert [trials[number].config["config"]["encoder"] for number in range(4)] == [0, 1, 0, 1]
    first, second = (
        load_weights(ledger.folder("stage", stages[number]), "encoder.safetensors")[0] for number in (0, 1)
    )
    assert not any((first[name] == second[name]).all() for name in first if name.endswith("conv1.weight"))
    accuracies = load_results(ledger).trials["id/accuracy"]
    assert len(accuracies) == 4
    assert not accuracies.isna().any()


def test_plan_says_what_more_encoders_cost(folder: Path) -> None:
    said = call(folder, "plan").stdout
    assert "2 encoders for 4 replicates of base (simclr on digits from scratch): 2 units, not 4;" in said
    assert "pretraining.encoders: per_replicate costs +2 stages and 2 complete trials anew, ≈ " in said
    more: dict[str, Any] = json.loads(
        call(folder, "plan", "--json", "--set", "pretraining.encoders=per_replicate").stdout
    )
    assert [row["state"] for row in more["stages"]] == ["complete", "complete", "to run", "to run"]
    assert [row["state"] for row in more["trials"]] == ["complete", "complete", "to run", "to run"]
    assert more["encoders"][0]["encoders"] == more["encoders"][0]["replicates"] == 4
