"""One training state in one safetensors file: weights, optimiser, random states, history. Never pickled.

The file before it is kept as ``checkpoint.previous.safetensors``; a damaged file is recognised by its checksum and
the previous one is taken.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from trainables.errors import CheckpointError
from trainables.storage import Folder

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


@dataclass
class TrainingState:
    """Everything that training needs to go on as if it had never stopped."""

    signature: str
    epoch: int = 0  # finished epochs
    step: int = 0  # optimiser steps
    best_epoch: int = 0
    best_value: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    optimiser_scalars: dict[str, Any] = field(default_factory=dict)
    random_state: dict[str, Any] = field(default_factory=dict)


def pack_module(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state on the CPU, every name prefixed."""
    return {f"{prefix}.{name}": value.detach().cpu().clone() for name, value in module.state_dict().items()}


def unpack(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under ``prefix``, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def pack_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimiser's state as tensors (``optimiser.<parameter>.<name>``) and scalars."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in optimiser.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value.detach().cpu().clone()
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, scalars


def unpack_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Put a packed state back into an optimiser over the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**unpack("optimiser", tensors), **scalars}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _num_used_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]


def capture_random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of Python's, NumPy's and torch's global generators."""
    tensors = {"random.torch": torch.get_rng_state()}
    for index in range(_num_used_gpus()):
        tensors[f"random.cuda{index}"] = torch.cuda.get_rng_state(index)
    mersenne: Any = np.random.get_state(legacy=False)
    tensors["random.numpy"] = torch.from_numpy(mersenne["state"]["key"].astype(np.int64))
    version, internal, gauss_next = random.getstate()
    tensors["random.python"] = torch.tensor(internal, dtype=torch.int64)
    numpy_scalars = [int(mersenne["state"]["pos"]), int(mersenne["has_gauss"]), float(mersenne["gauss"])]
    return tensors, {"numpy": numpy_scalars, "python": [version, gauss_next]}


def restore_random_state(tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
    """Put captured states back."""
    torch.set_rng_state(tensors["random.torch"])
    for index in range(_num_used_gpus()):
        if f"random.cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda{index}"], index)
    position, has_gauss, gauss = scalars["numpy"]
    np.random.set_state(("MT19937", tensors["random.numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, gauss_next = scalars["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss_next))


def save_checkpoint(folder: Folder, state: TrainingState) -> None:
    """Write ``state`` atomically and keep the one before it.

    Raises:
        StorageError: the storage refused; the checkpoint of the last epoch is still there.
    """
    plain = {
        "signature": state.signature,
        "epoch": state.epoch,
        "step": state.step,
        "best_epoch": state.best_epoch,
        "best_value": state.best_value,
        "history": state.history,
        "optimiser_scalars": state.optimiser_scalars,
        "random_state": state.random_state,
    }
    text = json.dumps(plain, sort_keys=True)
    metadata = {"state": text, "sha256": _digest(state.tensors, text)}
    data = save_safetensors({name: tensor.contiguous() for name, tensor in state.tensors.items()}, metadata)
    if folder.exists(CURRENT):
        folder.rename(CURRENT, PREVIOUS)
    folder.write(CURRENT, data)


def save_best(folder: Folder, module: nn.Module, epoch: int) -> None:
    """Write the weights selected so far, before the checkpoint that says so; ``forget_best`` removes older ones."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    folder.write(_best_name(epoch), save_safetensors(state))


def load_best(folder: Folder, epoch: int) -> dict[str, Tensor]:
    """Return the weights selected at ``epoch``.

    Raises:
        CheckpointError: they are damaged.
        StorageError: they are missing.
    """
    try:
        return load_safetensors(folder.read(_best_name(epoch)))
    except SafetensorError as error:
        raise CheckpointError(
            f"read {_best_name(epoch)} in {folder.uri} and found it damaged ({error}); "
            "remove the folder to start this trial again"
        ) from error


def forget_best(folder: Folder, *, keep: int) -> None:
    """Remove the selected weights of all epochs but ``keep``."""
    for name in folder.children():
        if name.startswith("best-") and name != _best_name(keep):
            folder.remove(name)


def _best_name(epoch: int) -> str:
    return f"best-{epoch}.safetensors"


def load_checkpoint(folder: Folder, signature: str) -> TrainingState | None:
    """Return the newest intact state, None when training has to start from the beginning.

    Raises:
        CheckpointError: an intact checkpoint belongs to another trial.
    """
    for name in (CURRENT, PREVIOUS):
        if not folder.exists(name):
            continue
        state = _parse(folder.read(name))
        if state is None:
            continue
        if state.signature != signature:
            raise CheckpointError(
                f"read {name} in {folder.uri}: it was written by the trial {state.signature}, expected {signature}; "
                "remove the folder to start this trial again"
            )
        return state
    return None


def _parse(data: bytes) -> TrainingState | None:
    """Return None for anything that is not exactly what was written."""
    try:
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        text = header["state"]
    except (SafetensorError, ValueError, KeyError):
        return None
    return TrainingState(tensors=tensors, **json.loads(text)) if header["sha256"] == _digest(tensors, text) else None


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
