"""Several processes train a trial as one does, within the order of floating-point sums, and go on bit for bit."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.process_group import LOST, run_processes
from tests.support.tiny_configs import random_dataset, random_set, tiny_trial
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset
from trainables.storage.checkpoint import load_checkpoint
from trainables.storage.folder import Folder
from trainables.tasks.find import find_task
from trainables.training.acceleration import Choice
from trainables.training.joint.processes import find_processes
from trainables.training.loop import train_learner
from trainables.training.optimisation import Descent
from trainables.training.stopping import StopTraining, with_stop_check
from trainables.trial import build_initial_model

#: Plain descent at a low rate: an adaptive rate makes much of a rounding error in a gradient that is nearly 0.
PLAIN = {"epochs": 2, "batch_size": 19, "label_fraction": 1.0, "optimiser": "sgd", "learning_rate": 0.01}
SEGMENTATION = {"kind": "segmentation", "depth": 3, "width": 16, "patch_size": 16}
#: Batches of 19, 19 and 10 images, but for the last ones: 23, 23 and 2, which three processes cannot divide.
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "strong augmentation": (2, {"augmentation": {"kind": "trivialaugment", "erasing": 0.5}}),
    "weighed classes": (
        3,
        {"regulariser": {"kind": "label_smoothing"}, "training": {"class_weights": "balanced"}},
    ),
    "mixup": (2, {"regulariser": {"kind": "mixup"}}),
    "sam of groups, clipped": (
        2,
        {
            "regulariser": {
                "kind": "combined",
                "sam": {"rho": 0.01},
                "spectral_decoupling": {"weight": (0.1, 0.2, 0.3)},
            },
            "training": {"gradient_clip_norm": 0.1},
        },
    ),
    "group dro": (3, {"regulariser": {"kind": "group_dro", "group_by": ["class", "site"]}}),
    "dropout": (2, {"regulariser": {"kind": "dropout"}}),
    "hints": (2, {"training": {"confidence": {"kind": "devries"}}}),
    "segmentation": (2, {"task": SEGMENTATION, "regulariser": {"kind": "spectral_decoupling", "weight": 0.1}}),
    "a batch of two": (3, {"training": {"batch_size": 23}}),
    "a segmentation with a batch of two": (3, {"training": {"batch_size": 23}, "task": SEGMENTATION}),
}


def make_trial(name: str) -> tuple[TrialConfig, Dataset]:
    sections = dict(SETTINGS[name][1])
    training = PLAIN | sections.pop("training", {})
    sections |= {"model": {"name": "timm/test_resnet", "input_size": None}}
    if "task" not in sections:
        return tiny_trial(training=training, **sections), random_dataset(channels=3)
    sets = {kind: random_set(kind, number, channels=3, num_classes=1) for kind, number in (("train", 48), ("val", 6))}
    data = Dataset(
        name="random",
        classes=("background", "bright"),
        fingerprint="0" * 16,
        splits={kind: replace(each, targets=(each.images[:, 0] > 127).astype("uint8")) for kind, each in sets.items()},
        external={},
    )
    return tiny_trial(training=training, **sections), data


def train(name: str, folder: Path, rank: int = 0) -> None:
    """Train, keep the weights, the records of epochs and what is told."""
    torch.set_num_threads(1)
    config, data = make_trial(name)
    model = build_initial_model(config, data, encoder=None)
    told: list[dict[str, Any]] = []
    place = Folder(folder / name)
    with find_task(config.task).open_learner(model, data, config, Choice(), Execution()) as learner:
        outcome = train_learner(learner, config, signature="mine", folder=place, report=told.append)
    state = load_checkpoint(place, "mine")
    assert state is not None
    assert outcome.epochs == state.epoch == config.training.epochs
    torch.save((model.state_dict(), told), folder / f"{name} {rank}.pt")


def train_all(folder: Path, count: int, rank: int = 0) -> None:
    for name in SETTINGS:
        if count in (1, SETTINGS[name][0]):
            train(name, folder, rank)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what one process has trained in ``one``, and several in ``several``."""
    folder = tmp_path_factory.mktemp("processes")
    train_all(folder / "one", 1)
    for count in (2, 3):
        assert (
            run_processes(partial(train_all, folder / "several", count), count, folder / f"group {count}")
            == [0] * count
        )
    return folder


def measures(record: dict[str, Any]) -> dict[str, float]:
    """Return what a record of an epoch says of the model."""
    parts = ("train/", "val/", "group")
    return {name: value for name, value in record["metrics"].items() if name.startswith(parts)}


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"dropout"}))  # which every process draws for itself
def test_several_processes_train_as_one_does(trained: Path, name: str) -> None:
    weights, told = torch.load(trained / "one" / f"{name} 0.pt")
    found, found_told = torch.load(trained / "several" / f"{name} 0.pt")
    for key, value in weights.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
    for own, other in zip(found_told, told, strict=True):
        assert measures(own) == pytest.approx(measures(other), rel=1e-4, abs=1e-5)
    count = SETTINGS[name][0]
    for rank in range(1, count):
        others, others_told = torch.load(trained / "several" / f"{name} {rank}.pt")
        assert all(torch.equal(others[key], value) for key, value in found.items())
        assert others_told == found_told
    lines = Folder(trained / "several" / name).read_lines("epochs.jsonl")
    assert [line["processes"] for line in lines] == [count] * 2
    assert lines == found_told


def train_killed(name: str, folder: Path, rank: int) -> None:
    """Kill process 1 before the last step of the second epoch."""
    steps = 0

    def run(self: Descent, *arguments: Any, **settings: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 6 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **settings)

    original, Descent.run = Descent.run, run  # type: ignore[method-assign]
    train(name, folder, rank)


@pytest.mark.parametrize("name", ["dropout", "hints"])
def test_a_process_is_killed_and_all_go_on_from_the_last_epoch(trained: Path, tmp_path: Path, name: str) -> None:
    assert run_processes(partial(train_killed, name, tmp_path), 2, tmp_path / "group 1") == [LOST, -signal.SIGKILL]
    assert [line["epoch"] for line in Folder(tmp_path / name).read_lines("epochs.jsonl")] == [1]
    assert run_processes(partial(train, name, tmp_path), 2, tmp_path / "group 2") == [0, 0]
    for rank in (0, 1):
        weights, told = torch.load(trained / "several" / f"{name} {rank}.pt")
        found, found_told = torch.load(tmp_path / f"{name} {rank}.pt")
        assert all(torch.equal(found[key], value) for key, value in weights.items())
        assert [measures(record) for record in found_told] == [measures(record) for record in told[1:]]


def stop_early(folder: Path, rank: int) -> None:
    """Stop after the first epoch, where only the first process sees the file; exit with 0 if all are told."""
    torch.set_num_threads(1)
    config, data = make_trial("mixup")
    model, place, processes = build_initial_model(config, data, encoder=None), Folder(folder), find_processes()

    def report(record: dict[str, Any]) -> None:
        if rank == 0:
            place.write("stop.json", json.dumps({"epoch": record["epoch"]}).encode())

    told = with_stop_check(report, place if rank == 0 else Folder(folder / "other"), num_epochs=2, processes=processes)
    with (
        find_task(config.task).open_learner(model, data, config, Choice(), Execution()) as learner,
        pytest.raises(StopTraining) as stopped,
    ):
        train_learner(learner, config, signature="mine", folder=place, report=told)
    assert stopped.value.epoch == 1


def test_all_processes_stop_where_the_first_one_is_told_to(tmp_path: Path) -> None:
    assert run_processes(partial(stop_early, tmp_path), 2, tmp_path / "group") == [0, 0]
