"""A study whose contrastive stage two processes train through Ray Train, run as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ledger.ledger import Ledger
from tests.support.command_line import call
from trainables.storage.checkpoint import load_weights

STUDY = """\
study: joint
data: {kind: digits, image_size: 8, channels: 3}
model: {name: shufflenet_v2_x0_5, input_size: 16}
training: {epochs: 1, batch_size: 64}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors:
  pretraining:
    scratch: scratch
    both:
    - {kind: supervised, data: {kind: coloured_digits}, epochs: 1, batch_size: 256}
    - {kind: contrastive, epochs: 2, batch_size: 500, method: {learning_rate: 1e-9}}
replicates: 1
execution: {cache_dir: CACHE, processes_per_stage: 2, device: cpu}
"""


@pytest.mark.long
def test_two_processes_train_a_stage_between_slots_of_one(tmp_path: Path) -> None:
    """The supervised step runs in a slot, then the contrastive one in two processes, then the trial in a slot."""
    weights, losses = {}, []
    for count in (2, 1):
        text = STUDY.replace("CACHE", str(tmp_path / "cache")).replace("stage: 2", f"stage: {count}")
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "study.yaml").write_text(text)
        call(folder, "run")
        ledger = Ledger(str(folder / "results"), "joint")
        stages = {record.config["config"]["kind"]: record for record in ledger.records("stage")}
        assert [record.state for record in (*stages.values(), *ledger.records("trial"))] == ["complete"] * 4
        result = stages["contrastive"].result
        assert result is not None
        assert result["environment"]["processes"] == count
        signature = stages["contrastive"].signature
        folder_of_stage = ledger.folder("stage", signature)
        weights[signature, count] = load_weights(folder_of_stage, "encoder.safetensors")[0]
        losses.append([line["metrics"]["ssl/loss"] for line in folder_of_stage.read_lines("epochs.jsonl")])
    two, one = weights.values()
    assert len({signature for signature, _ in weights}) == 1  # the number of processes is not part of it
    for name, tensor in one.items():
        assert two[name].numpy() == pytest.approx(tensor.numpy(), rel=1e-3, abs=1e-3)
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
