"""A training that others may end before its time: before each epoch it looks whether they want that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainables.storage.completeness import EPOCHS, STOP
from trainables.storage.folder import Folder


class StopTraining(Exception):  # noqa: N818 - no error, as StopIteration is none
    """Leaves a training between two epochs; its checkpoint is written.

    Args:
        epoch: the last one that was trained, 0 for none.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"stopped after epoch {epoch}")
        self.epoch = epoch


def stop_if_asked(
    report: Callable[[dict[str, Any]], None], folder: Folder, *, num_epochs: int
) -> Callable[[dict[str, Any]], None]:
    """Return ``report`` for ``train_model``, which also leaves the training when the folder has a ``stop.json``.

    Args:
        report: called with the record of each epoch.
        folder: of the trial.
        num_epochs: after the last one there is nothing to be stopped.

    Raises:
        StopTraining: there is one now; and later, in what is returned, when there is one after an epoch.
    """
    if folder.exists(STOP):
        raise StopTraining(len(folder.read_lines(EPOCHS)))

    def tell(record: dict[str, Any]) -> None:
        report(record)
        if record["epoch"] < num_epochs and folder.exists(STOP):
            raise StopTraining(record["epoch"])

    return tell
