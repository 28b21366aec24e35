"""Two processes train a stage as one does, within the order of floating-point sums, and go on bit for bit."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.process_group import LOST, run_processes
from tests.support.tiny_configs import random_set, tiny_stage
from tests.trainables.pretraining.test_methods import network
from trainables.errors import ConfigError
from trainables.pretraining import contrastive
from trainables.pretraining.methods import ContrastiveTrainer, MoCoTrainer
from trainables.storage.folder import Folder
from trainables.training.joint.processes import Processes

MOCO = {"kind": "moco", "queue_size": 22, "hidden_dim": 16, "projection_dim": 8}
BYOL = {"kind": "byol", "hidden_dim": 16, "projection_dim": 8, "warmup_epochs": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "simclr": {},
    "simclr in parts": {"micro_batch_size": 7},
    "moco, two groups a process": {"method": MOCO | {"batch_norm_groups": 4}},
    "moco in parts": {"method": MOCO, "micro_batch_size": 6},
    "byol in parts": {"method": BYOL, "micro_batch_size": 8},
}


def train(name: str, folder: Path, rank: int = 0) -> None:
    """Train 2 epochs of 2 batches of 23 images, of which one process has more; keep the weights, and what is told."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = tiny_stage(epochs=2, batch_size=23, **SETTINGS[name])
    model, images = network(batch_norm=True), random_set("train", 47, channels=3, size=8)
    told: list[int] = []
    arguments: dict[str, Any] = {"signature": "mine", "report": lambda record: told.append(record["epoch"])}
    history = contrastive.pretrain_encoder(model, images, config, folder=Folder(folder / name), **arguments)
    metrics = [{key: each["metrics"][key] for key in each["metrics"] if key.startswith("ssl/")} for each in history]
    torch.save((model.state_dict(), metrics, told), folder / f"{name} {rank}.pt")


def train_all(folder: Path, rank: int = 0) -> None:
    for name in SETTINGS:
        train(name, folder, rank)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what one process has trained in ``one``, and two processes in ``two``."""
    folder = tmp_path_factory.mktemp("processes")
    train_all(folder / "one")
    assert run_processes(partial(train_all, folder / "two"), 2, folder / "group") == [0, 0]
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_train_as_one_does(trained: Path, name: str) -> None:
    """In float32, after 4 steps: weights, statistics and all that is recorded, to 5 digits."""
    weights, metrics, _ = torch.load(trained / "one" / f"{name} 0.pt")
    found, found_metrics, told = torch.load(trained / "two" / f"{name} 0.pt")
    for key, value in weights.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5)
    for own, other in zip(found_metrics, metrics, strict=True):
        assert own == pytest.approx(other, rel=1e-5)
    other_weights, other_metrics, other_told = torch.load(trained / "two" / f"{name} 1.pt")
    assert all(torch.equal(other_weights[key], value) for key, value in found.items())
    assert other_metrics == found_metrics
    lines = Folder(trained / "two" / name).read_lines("epochs.jsonl")
    assert [line["epoch"] for line in lines] == told == [1, 2]  # the first process alone writes and reports
    assert other_told == []


def train_killed(name: str, folder: Path, rank: int) -> None:
    """Kill process 1 after the first step of the second epoch."""

    def finish(self: ContrastiveTrainer, step: int, num_steps: int) -> None:
        if step == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, step, num_steps)

    original, MoCoTrainer.finish_step = MoCoTrainer.finish_step, finish  # type: ignore[method-assign]
    train(name, folder, rank)


def test_a_process_is_killed_and_all_go_on_from_the_last_epoch(trained: Path, tmp_path: Path) -> None:
    name = "moco, two groups a process"
    assert run_processes(partial(train_killed, name, tmp_path), 2, tmp_path / "group 1") == [LOST, -signal.SIGKILL]
    assert [line["epoch"] for line in Folder(tmp_path / name).read_lines("epochs.jsonl")] == [1]
    assert run_processes(partial(train, name, tmp_path), 2, tmp_path / "group 2") == [0, 0]
    for rank in (0, 1):
        weights, metrics, _ = torch.load(trained / "two" / f"{name} {rank}.pt")
        found, found_metrics, told = torch.load(tmp_path / f"{name} {rank}.pt")
        assert all(torch.equal(found[key], value) for key, value in weights.items())
        assert found_metrics == metrics
        assert told == ([2] if rank == 0 else [])


@pytest.mark.parametrize(
    ("settings", "count", "message"),
    [
        (
            {"method": MOCO | {"batch_norm_groups": 4}},
            3,
            "divided the 4 groups of .* among 3 processes; .* divisor of 4",
        ),
        ({"micro_batch_size": 4}, 5, r"divided 3 images, .* among 5 processes; expected 3 processes or fewer"),
    ],
)
def test_processes_that_cannot_divide_a_batch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], count: int, message: str
) -> None:
    monkeypatch.setattr(contrastive, "find_processes", lambda: Processes(0, count))
    config, images = tiny_stage(epochs=1, batch_size=23, **settings), random_set("train", 47, channels=3, size=8)
    arguments: dict[str, Any] = {"signature": "mine", "folder": Folder(tmp_path), "report": print}
    with pytest.raises(ConfigError, match=message):
        contrastive.pretrain_encoder(network(batch_norm=True), images, config, **arguments)
