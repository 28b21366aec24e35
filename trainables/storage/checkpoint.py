"""One training state in one safetensors file: weights, optimiser, random states, history. Never pickled.

Every file is sealed: its metadata holds a checksum of all names, types, shapes, values and facts. The checkpoint before
the last is kept as ``checkpoint.previous.safetensors`` until the last one has been read back and found intact; training
continues from it if the last one is damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from trainables.errors import CheckpointError, StorageError
from trainables.storage.completeness import EPOCHS
from trainables.storage.folder import Folder

CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
#: Folder of the checkpoints of what is trained after the classifier, whose own stay until the end.
CONFIDENCE = "confidence"

_LOG = logging.getLogger(__name__)
#: The only metadata key: safetensors writes several keys in random order, and equal weights should give equal files.
_SEAL = "robustsweep"


@dataclass
class TrainingState:
    """State from which training continues as if it had never stopped."""

    signature: str
    epoch: int = 0  # finished epochs
    step: int = 0  # optimiser steps
    best_epoch: int = 0  # the selected one (``training.selection``)
    history: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    optimiser_scalars: dict[str, Any] = field(default_factory=dict)
    random_state: dict[str, Any] = field(default_factory=dict)


def pack_module(prefix: str, module: nn.Module, *, without: Collection[str] = ()) -> dict[str, Tensor]:
    """Return a copy of a module's state on the CPU, with every name as ``<prefix>.<name>``.

    Args:
        prefix: start of the names.
        module: module whose weights and buffers are copied.
        without: names of those that never change, and are left out.
    """
    state = module.state_dict()
    return {f"{prefix}.{name}": state[name].detach().cpu().clone() for name in state if name not in without}


def unpack(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, under their names without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def restore_module(
    module: nn.Module, state: Mapping[str, Tensor], *, origin: str, without: Collection[str] = ()
) -> None:
    """Copy weights and buffers into ``module``, in place; those that ``pack_module`` left out stay as they are.

    Unlike ``load_state_dict``, it runs no version hooks: MNASNet's refuse a plain dict.

    Raises:
        CheckpointError: names or shapes differ from the module's.
    """
    mine = module.state_dict()
    wrong = sorted((mine.keys() - set(without)) ^ state.keys())
    wrong += [name for name in mine if name in state and state[name].shape != mine[name].shape]
    if wrong:
        raise CheckpointError(
            f"read {origin}: {len(wrong)} tensors are missing, unknown, or of another shape than in this network "
            f"({', '.join(wrong[:3])} …); remove the folder to start again"
        )
    for name, tensor in state.items():
        mine[name].copy_(tensor)


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
    """Load the output of ``pack_optimiser`` into an optimiser over the same parameters."""
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
    """Restore the global generators from the output of ``capture_random_state``."""
    torch.set_rng_state(tensors["random.torch"])
    for index in range(_num_used_gpus()):
        if f"random.cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"random.cuda{index}"], index)
    position, has_gauss, gauss = scalars["numpy"]
    np.random.set_state(("MT19937", tensors["random.numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    version, gauss_next = scalars["python"]
    random.setstate((version, tuple(tensors["random.python"].tolist()), gauss_next))


def save_checkpoint(folder: Folder, state: TrainingState) -> None:
    """Write ``state`` atomically and keep the newest intact checkpoint before it.

    Raises:
        StorageError: the storage refused the write; the checkpoint of the last epoch is kept.
    """
    plain = {
        "signature": state.signature,
        "epoch": state.epoch,
        "step": state.step,
        "best_epoch": state.best_epoch,
        "history": state.history,
        "optimiser_scalars": state.optimiser_scalars,
        "random_state": state.random_state,
    }
    data = _seal(state.tensors, plain)
    # A file on disk is read back before it replaces an older intact one. An object store never holds part of a file.
    if folder.exists(CURRENT) and (not folder.is_local or _unseal(folder.read(CURRENT)) is not None):
        folder.rename(CURRENT, PREVIOUS)
    folder.write(CURRENT, data)


def load_checkpoint(folder: Folder, signature: str) -> TrainingState | None:
    """Return the newest intact state, None if there is none and training has to start from the beginning.

    A damaged file is removed, so that it can never replace the intact one before it.

    Raises:
        CheckpointError: an intact checkpoint belongs to another trial.
    """
    for name in (CURRENT, PREVIOUS):
        if not folder.exists(name):
            continue
        unsealed = _unseal(folder.read(name))
        if unsealed is None:
            _LOG.warning("%s in %s is damaged; going on from the one before it", name, folder.uri)
            folder.remove(name)
            continue
        tensors, facts = unsealed
        if facts["signature"] != signature:
            raise CheckpointError(
                f"read {name} in {folder.uri}: it was written by the trial {facts['signature']}, expected {signature}; "
                "remove the folder to start this trial again"
            )
        return TrainingState(tensors=tensors, **facts)
    return None


def remove_checkpoints(folder: Folder) -> None:
    """Remove the files that only training needs: checkpoints and the weights selected so far."""
    for name in (CURRENT, PREVIOUS, CONFIDENCE):
        folder.remove(name)
    remove_best(folder, keep=())


def save_weights(folder: Folder, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Write tensors and JSON facts about them into one sealed safetensors file; return its SHA-256.

    Raises:
        StorageError: the storage refused the write; an earlier file is unchanged.
    """
    data = _seal({key: value.detach().cpu() for key, value in tensors.items()}, facts)
    folder.write(name, data)
    return hashlib.sha256(data).hexdigest()


def load_weights(folder: Folder, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts that ``save_weights`` wrote.

    Raises:
        CheckpointError: the file is damaged.
        StorageError: the file is missing.
    """
    unsealed = _unseal(folder.read(name))
    if unsealed is None:
        raise CheckpointError(
            f"read {name} in {folder.uri} and found it damaged, expected what was written; "
            "remove the folder to start again"
        )
    return unsealed


def is_trained(folder: Folder, name: str) -> bool:
    """Return whether the final weights ``name`` and the history of their training exist and are intact.

    If the weights exist and one of the two is damaged, both are removed, so that training creates them again.
    """
    if not folder.exists(name):
        return False
    try:
        load_weights(folder, name)
        if not folder.read_lines(EPOCHS):
            raise StorageError(f"{folder.uri}/{EPOCHS} is missing or empty")
    except (CheckpointError, StorageError) as error:
        _LOG.warning("%s; training again", error)
        folder.remove(name)
        folder.remove(EPOCHS)
        return False
    return True


def save_best(folder: Folder, weights: Mapping[str, Tensor], epoch: int) -> None:
    """Write the weights selected at ``epoch``; ``remove_best`` removes older ones.

    Call it before the first checkpoint of a later epoch, which refers to these weights but does not hold them.
    """
    save_weights(folder, _best_name(epoch), weights, {"epoch": epoch})


def load_best(folder: Folder, epoch: int) -> dict[str, Tensor]:
    """Return the weights selected at ``epoch``.

    Raises:
        CheckpointError: the weights are damaged.
        StorageError: the weights are missing.
    """
    return load_weights(folder, _best_name(epoch))[0]


def has_best(folder: Folder, state: TrainingState) -> bool:
    """Return whether the best weights to which ``state`` refers are intact; if not, remove all checkpoints."""
    if state.best_epoch in (0, state.epoch):
        return True  # there are none yet, or ``state`` holds them
    try:
        load_best(folder, state.best_epoch)
    except (CheckpointError, StorageError) as error:
        _LOG.warning("%s; training starts again", error)
        remove_checkpoints(folder)
        return False
    return True


def remove_best(folder: Folder, *, keep: Collection[int]) -> None:
    """Remove the selected weights of all epochs except those in ``keep``."""
    names = {_best_name(epoch) for epoch in keep}
    for name in list(folder.children()):
        if name.startswith("best-") and name not in names:
            folder.remove(name)


def _best_name(epoch: int) -> str:
    return f"best-{epoch}.safetensors"


def _seal(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    return save_safetensors(plain, {_SEAL: json.dumps({"facts": text, "sha256": _digest(plain, text)})})


def _unseal(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and facts of a sealed file, None if it is not exactly as it was written."""
    try:
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        seal = json.loads(header["__metadata__"][_SEAL])
        if seal["sha256"] != _digest(tensors, seal["facts"]):
            return None
        return tensors, json.loads(seal["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
