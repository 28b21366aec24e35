"""The checkpoint from which several processes go on together."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainables.errors import CheckpointError
from trainables.storage.checkpoint import TrainingState, load_checkpoint
from trainables.storage.folder import Folder
from trainables.training.joint.processes import Processes


def load_common_checkpoint(
    folder: Folder,
    signature: str,
    processes: Processes,
    *,
    is_usable: Callable[[Folder, TrainingState], bool] = lambda folder, state: True,
) -> TrainingState | None:
    """Return the state of the last checkpoint, None if there is none; the same in all processes.

    Args:
        folder: folder of the trial or stage.
        signature: its identity.
        processes: those that call this.
        is_usable: returns whether what the state refers to is there; called by the first process alone.

    Raises:
        CheckpointError: it belongs to another trial or stage, or the processes have read different ones.
    """
    state = load_checkpoint(folder, signature) if processes.is_first else None
    if state is not None and not is_usable(folder, state):
        state = None
    is_found = processes.agree(state is not None)  # the first one has removed damaged files
    if is_found and not processes.is_first:
        state = load_checkpoint(folder, signature)
    epochs = [int(each) for each in processes.gather(torch.tensor(0 if state is None else state.epoch))]
    if len(set(epochs)) > 1:
        raise CheckpointError(
            f"read the checkpoint in {folder.uri}: the processes of the training found it after the epochs "
            f"{', '.join(map(str, epochs))}, expected the same; is this storage shared by all machines?"
        )
    return state
