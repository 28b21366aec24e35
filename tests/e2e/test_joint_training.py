"""A study whose stages and trials two processes train through Ray Train, run as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.ledger.ledger import Ledger
from tests.support.command_line import call
from tests.support.processes import find_descendants, wait_until
from trainables.storage.checkpoint import load_weights
from trainables.storage.folder import Folder

STUDY = """\
study: joint
data: {kind: digits, image_size: 8, channels: 3}
model: {name: timm/test_resnet}
training: {epochs: 2, batch_size: 64, optimiser: sgd, learning_rate: 1e-3}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors:
  pretraining:
    scratch: scratch
    both:
    - {kind: supervised, data: {kind: coloured_digits}, epochs: 1, batch_size: 256, learning_rate: 1e-6}
    - {kind: contrastive, epochs: 2, batch_size: 500, method: {learning_rate: 1e-9}}
replicates: 1
execution: {cache_dir: CACHE, processes_per_stage: PROCESSES, processes_per_trial: PROCESSES, device: cpu}
"""


@pytest.mark.long
def test_two_processes_train_stages_and_trials_and_slots_of_one_evaluate(tmp_path: Path) -> None:
    found = {}
    for count in (2, 1):
        text = STUDY.replace("CACHE", str(tmp_path / "cache")).replace("PROCESSES", str(count))
        folder = tmp_path / str(count)
        folder.mkdir()
        (folder / "study.yaml").write_text(text)
        call(folder, "run")
        ledger = Ledger(str(folder / "results"), "joint")
        records = [*ledger.records("stage"), *ledger.records("trial")]
        assert [record.state for record in records] == ["complete"] * 4
        for record in records:
            assert record.result is not None
            assert record.result["environment"]["processes"] == count
        found[count] = {record.signature: record.result["files"].keys() for record in records if record.result}
    assert found[1] == found[2]  # the number of processes is no part of the signature
    one, two = (Ledger(str(tmp_path / str(count) / "results"), "joint") for count in (1, 2))
    for kind, weights in (("stage", "encoder.safetensors"), ("trial", "model.safetensors")):
        for record in one.records(kind):
            own, other = (ledger.folder(kind, record.signature) for ledger in (one, two))
            check_alike(own, other, weights)
            if kind == "trial":
                events = [line["event"] for line in other.read_lines("log.jsonl")]
                assert events == ["begun", "started", "trained", "begun", "started", "evaluation", "done"]


def check_alike(own: Folder, other: Folder, weights: str) -> None:
    """Check that two trainings agree but for the order of sums, which 40 steps and what follows them make larger."""
    tensors, found = (load_weights(folder, weights)[0] for folder in (own, other))
    for name, tensor in tensors.items():
        assert found[name].numpy() == pytest.approx(tensor.numpy(), rel=1e-2, abs=1e-2)
    histories = (folder.read_lines("epochs.jsonl") for folder in (own, other))
    for line, same in zip(*histories, strict=True):
        for name, value in line["metrics"].items():
            if name.startswith(("train/", "val/", "ssl/loss")):
                assert same["metrics"][name] == pytest.approx(value, rel=1e-2, abs=1e-2)


KILLED = """\
study: killed
data: {kind: digits, image_size: 8, channels: 3}
model: {name: timm/test_resnet}
training: {epochs: 12, batch_size: 64}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors: {regulariser: [dropout]}
replicates: 1
execution: {cache_dir: CACHE, processes_per_trial: 2, device: cpu}
"""


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_process_of_a_trial_is_killed_and_the_result_is_the_same(tmp_path: Path) -> None:
    folders = []
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "study.yaml").write_text(KILLED.replace("CACHE", str(tmp_path / "cache")))
        words = ["run", "study.yaml", "--storage", "results"]
        with open(folder / "output.txt", "w") as output:
            driver = subprocess.Popen(
                [sys.executable, "-m", "robustsweep", *words], cwd=folder, stdout=output, stderr=output
            )
        ledger = Ledger(str(folder / "results"), "killed")
        if name == "killed":
            epochs = folder / "results" / "killed" / "trials"
            wait_until(lambda at=epochs: sum(map(_count_lines, at.glob("*/epochs.jsonl"))) >= 3, "3 epochs", 120.0)
            processes = [pid for pid, command in find_descendants(driver.pid).items() if "RayTrainWorker" in command]
            assert len(processes) == 2
            os.kill(max(processes), signal.SIGKILL)
        assert driver.wait(180) == 0, (folder / "output.txt").read_text()
        (record,) = ledger.records("trial")
        folders.append(ledger.folder("trial", record.signature))
    own, other = folders
    assert own.read("model.safetensors") == other.read("model.safetensors")
    events = [line["event"] for line in other.read_lines("log.jsonl")]
    assert events == ["begun", "started", "lost", "started", "trained", "begun", "started", "evaluation", "done"]
    assert [line["epoch"] for line in other.read_lines("epochs.jsonl")] == list(range(1, 13))


def _count_lines(path: Path) -> int:
    return len(path.read_text().splitlines())
