"""Early stop of a training by a ``stop.json`` in its folder, which is checked before each epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainables.storage.completeness import EPOCHS, STOP
from trainables.storage.folder import Folder
from trainables.training.joint.processes import ALONE, Processes


class StopTraining(Exception):  # noqa: N818 - no error, as StopIteration is none
    """Raised between two epochs to stop a training early; its checkpoint has been written.

    Args:
        epoch: last trained epoch; 0 if there is none.
    """

    def __init__(self, epoch: int) -> None:
        super().__init__(f"stopped after epoch {epoch}")
        self.epoch = epoch


def with_stop_check(
    report: Callable[[dict[str, Any]], None], folder: Folder, *, num_epochs: int, processes: Processes = ALONE
) -> Callable[[dict[str, Any]], None]:
    """Return a callback for ``train_model`` that calls ``report``, then stops the training if there is a ``stop.json``.

    Args:
        report: callback with the record of each epoch.
        folder: folder of the trial.
        num_epochs: epochs of the training; it is not stopped after the last.
        processes: those that train together; the first one's look into the folder counts.

    Raises:
        StopTraining: if there is a ``stop.json`` now. The callback raises it if there is one after an epoch.
    """

    def has_stop() -> bool:
        return processes.agree(processes.is_first and folder.exists(STOP))

    if has_stop():
        raise StopTraining(len(folder.read_lines(EPOCHS)))

    def tell(record: dict[str, Any]) -> None:
        report(record)
        if record["epoch"] < num_epochs and has_stop():
            raise StopTraining(record["epoch"])

    return tell
