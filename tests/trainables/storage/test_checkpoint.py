from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainables.errors import CheckpointError, DiskFullError, StorageError
from trainables.seeding import seed_everything
from trainables.storage.checkpoint import (
    CURRENT,
    PREVIOUS,
    TrainingState,
    capture_random_state,
    has_best,
    is_trained,
    load_best,
    load_checkpoint,
    load_weights,
    pack_module,
    pack_optimiser,
    remove_best,
    remove_checkpoints,
    restore_module,
    restore_random_state,
    save_best,
    save_checkpoint,
    save_weights,
    unpack,
    unpack_optimiser,
)
from trainables.storage.folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "trial")


def build_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


OPTIMISERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
}


def train(network: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> None:
    network.train()
    for _ in range(steps):
        inputs = torch.randn(6, 4) + random.random() + np.random.normal()
        optimiser.zero_grad()
        network(inputs).square().mean().backward()
        optimiser.step()


def make_state(signature: str = "mine", epoch: int = 1) -> TrainingState:
    tensors = {"model.weight": torch.full((3, 2), float(epoch)), "random.flag": torch.tensor([True, False])}
    history = [{"epoch": index + 1, "metrics": {"val/loss": 0.1}} for index in range(epoch)]
    return TrainingState(signature, epoch, 10 * epoch, epoch, history, tensors)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_training_goes_on_as_if_it_had_not_stopped(folder: Folder, name: str) -> None:
    seed_everything(3)
    network = build_network()
    optimiser = OPTIMISERS[name](network.parameters())
    train(network, optimiser, 3)
    optimiser_tensors, scalars = pack_optimiser(optimiser)
    random_tensors, random_state = capture_random_state()
    tensors = {**pack_module("model", network), **optimiser_tensors, **random_tensors}
    state = TrainingState("mine", 1, 3, tensors=tensors, optimiser_scalars=scalars, random_state=random_state)
    save_checkpoint(folder, state)
    train(network, optimiser, 4)

    seed_everything(99)
    other = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    other_optimiser = OPTIMISERS[name](other.parameters())
    train(other, other_optimiser, 1)
    loaded = load_checkpoint(folder, "mine")
    assert loaded is not None
    restore_module(other, unpack("model", loaded.tensors), origin="test")
    unpack_optimiser(other_optimiser, loaded.tensors, loaded.optimiser_scalars)
    restore_random_state(loaded.tensors, loaded.random_state)
    train(other, other_optimiser, 4)
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_random_state_includes_the_second_half_of_a_gaussian_pair(folder: Folder) -> None:
    seed_everything(1)
    random.gauss(0, 1)
    np.random.normal()
    torch.randn(3)
    tensors, scalars = capture_random_state()
    expected = random.gauss(0, 1), np.random.normal(), np.random.random(700).tolist(), torch.randn(20)
    save_checkpoint(folder, TrainingState("mine", 1, tensors=tensors, random_state=scalars))
    loaded = load_checkpoint(folder, "mine")
    assert loaded is not None
    restore_random_state(loaded.tensors, loaded.random_state)
    found = random.gauss(0, 1), np.random.normal(), np.random.random(700).tolist(), torch.randn(20)
    assert found[:3] == expected[:3]
    assert torch.equal(found[3], expected[3])


def test_round_trip_keeps_everything(folder: Folder) -> None:
    assert load_checkpoint(folder, "mine") is None
    state = make_state(epoch=3)
    state.tensors["empty"] = torch.zeros(0, 2)
    state.tensors["scalar"] = torch.tensor(1.5, dtype=torch.bfloat16)
    save_checkpoint(folder, state)
    loaded = load_checkpoint(folder, "mine")
    assert loaded is not None
    assert loaded.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], state.tensors[name]) for name in state.tensors)
    for name in ("epoch", "step", "best_epoch", "history"):
        assert getattr(loaded, name) == getattr(state, name)


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    digests = {save_weights(Folder(tmp_path / str(i)), "w", make_state().tensors, {"b": 1, "a": 2}) for i in range(8)}
    assert len(digests) == 1


def test_a_file_cut_anywhere_falls_back_to_the_one_before(folder: Folder) -> None:
    save_checkpoint(folder, make_state(epoch=1))
    save_checkpoint(folder, make_state(epoch=2))
    current, previous = folder.read(CURRENT), folder.read(PREVIOUS)
    for length in [*range(0, 64), *range(64, len(current), 37), len(current) - 1]:
        folder.write(CURRENT, current[:length])
        loaded = load_checkpoint(folder, "mine")
        assert loaded is not None, length
        assert (loaded.epoch, loaded.tensors["model.weight"][0, 0].item()) == (1, 1.0), length
        assert folder.read(PREVIOUS) == previous


def test_no_changed_byte_goes_unnoticed(folder: Folder) -> None:
    save_checkpoint(folder, make_state(epoch=1))
    save_checkpoint(folder, make_state(epoch=2))
    current = folder.read(CURRENT)
    for position in range(len(current)):
        damaged = bytearray(current)
        damaged[position] ^= 0x01
        folder.write(CURRENT, bytes(damaged))
        loaded = load_checkpoint(folder, "mine")
        assert loaded is not None
        if loaded.epoch == 2:  # a change that JSON does not read, such as its padding
            assert torch.equal(loaded.tensors["model.weight"], torch.full((3, 2), 2.0)), position
            assert loaded.history == make_state(epoch=2).history
        else:
            assert loaded.epoch == 1


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"\xff" * 5000, b"{}" * 100, (2).to_bytes(8, "little") + b"{}"])
def test_garbage_in_both_files_starts_from_the_beginning(folder: Folder, garbage: bytes) -> None:
    folder.write(CURRENT, garbage)
    folder.write(PREVIOUS, garbage)
    assert load_checkpoint(folder, "mine") is None


def test_a_damaged_file_never_replaces_the_intact_one(folder: Folder) -> None:
    save_checkpoint(folder, make_state(epoch=1))
    save_checkpoint(folder, make_state(epoch=2))
    folder.write(CURRENT, b"torn")
    loaded = load_checkpoint(folder, "mine")
    assert loaded is not None
    assert loaded.epoch == 1
    # Killed again, in the middle of the next save: after the rename, before the write.
    if folder.exists(CURRENT):
        folder.rename(CURRENT, PREVIOUS)
    loaded = load_checkpoint(folder, "mine")
    assert loaded is not None
    assert loaded.epoch == 1


def test_killed_between_rename_and_write(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(folder, make_state(epoch=1))

    def refuse(self: Folder, name: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", refuse)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, make_state(epoch=2))
    loaded = load_checkpoint(folder, "mine")
    assert loaded is not None
    assert loaded.epoch == 1


@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_an_older_good_checkpoint_is_kept_until_a_newer_one_is_known_to_be_good(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    """The disk spoils the last checkpoint, nobody notices, and then it is full."""
    for epoch in (1, 2):
        save_checkpoint(folder, make_state(epoch=epoch))
    data = folder.read(CURRENT)
    folder.write(CURRENT, bytes(len(data)) if damage is None else damage)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(DiskFullError, match=CURRENT):
            save_checkpoint(folder, make_state(epoch=3))
    loaded = load_checkpoint(folder, "mine")
    assert loaded is not None
    assert loaded.epoch == 1
    for epoch in (2, 3):
        save_checkpoint(folder, make_state(epoch=epoch))
    folder.write(CURRENT, b"torn")
    loaded = load_checkpoint(folder, "mine")
    assert loaded is not None
    assert loaded.epoch == 2


def test_another_trials_checkpoint_is_refused(folder: Folder) -> None:
    save_checkpoint(folder, make_state("theirs"))
    with pytest.raises(CheckpointError, match="written by the trial theirs, expected mine"):
        load_checkpoint(folder, "mine")


def test_best_weights(folder: Folder) -> None:
    network = build_network()
    for epoch in (1, 2, 3):
        save_best(folder, network.state_dict(), epoch)
    remove_best(folder, keep=(2, 3))
    assert torch.equal(load_best(folder, 2)["0.weight"], network.state_dict()["0.weight"])
    with pytest.raises(StorageError, match="best-1"):
        load_best(folder, 1)
    data = bytearray(folder.read("best-3.safetensors"))
    data[-1] ^= 1
    folder.write("best-3.safetensors", bytes(data))
    with pytest.raises(CheckpointError, match=r"best-3.safetensors .* damaged"):
        load_best(folder, 3)


def test_forget_checkpoints_leaves_the_rest(folder: Folder) -> None:
    save_checkpoint(folder, make_state())
    save_checkpoint(folder, make_state())
    save_best(folder, build_network().state_dict(), 1)
    save_weights(folder, "model.safetensors", {"a": torch.ones(1)}, {"signature": "mine"})
    remove_checkpoints(folder)
    assert list(folder.children()) == ["model.safetensors"]
    tensors, facts = load_weights(folder, "model.safetensors")
    assert facts == {"signature": "mine"}
    assert torch.equal(tensors["a"], torch.ones(1))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_of_another_network_are_refused(change: str) -> None:
    network = build_network()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    if change == "missing":
        del state["3.bias"]
    elif change == "unknown":
        state["3.other"] = torch.zeros(1)
    else:
        state["3.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"3\.(bias|other)"):
        restore_module(network, state, origin="test")


# ------------------------------------------------------------------ what is damaged is made again


def finish_training(folder: Folder) -> None:
    save_weights(folder, "model.safetensors", make_state().tensors, {"signature": "mine"})
    folder.append_line("epochs.jsonl", json.dumps({"epoch": 1}))


@pytest.mark.parametrize("name", ["model.safetensors", "epochs.jsonl"])
@pytest.mark.parametrize("damage", [b"", b"{\n", b"garbage\n" * 100])
def test_final_weights_count_with_their_history_only(folder: Folder, name: str, damage: bytes) -> None:
    assert not is_trained(folder, "model.safetensors")
    finish_training(folder)
    assert is_trained(folder, "model.safetensors")
    folder.write(name, damage)
    assert not is_trained(folder, "model.safetensors")
    assert list(folder.children()) == []  # so that it is not found again


def test_a_checkpoint_whose_best_weights_are_damaged_is_of_no_use(folder: Folder) -> None:
    state = make_state(epoch=3)
    assert has_best(folder, state)
    state.best_epoch = 2
    save_checkpoint(folder, state)
    save_best(folder, {"weight": torch.zeros(2)}, 2)
    assert has_best(folder, state)
    data = folder.read("best-2.safetensors")
    folder.write("best-2.safetensors", data[:-1])
    assert not has_best(folder, state)
    assert list(folder.children()) == []
