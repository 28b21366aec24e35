"""Sign of life of a slot for the processes of its trials: the driver still asks for their events.

On a machine that was cut off, or whose driver is gone, nobody does. The trial ends after its epoch, whose checkpoint it
has written, instead of training on unseen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainables.errors import OrphanedError

#: Callback for the events of a trial.
Report = Callable[[dict[str, Any]], None]


class Heartbeat:
    """File with the moment in which the slot was last asked for events, in seconds of this machine's monotonic clock.

    Args:
        path: path of the file, on a disk of this machine.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = 0.0

    def beat(self) -> None:
        """Note that the slot was asked for events."""
        self._last = time.monotonic()
        with suppress(OSError):  # a full disk: then trials end too early, and go on once they are asked again
            self.path.write_text(repr(self._last))

    def silent_seconds(self) -> float:
        """Return for how long the slot has not been asked."""
        return time.monotonic() - self._last

    def close(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def ending_if_orphaned(report: Report, path: Path, seconds: float) -> Report:
    """Return a callback that passes events on, and raises ``OrphanedError`` after an epoch that nobody asks for.

    Args:
        report: callback for the events.
        path: file of the slot's ``Heartbeat``.
        seconds: how long the slot may not have been asked.
    """

    def checked(event: dict[str, Any]) -> None:
        report(event)
        if event["event"] != "epoch":
            return
        try:
            silent = time.monotonic() - float(path.read_text())
        except (OSError, ValueError):  # removed, or being written in this moment: the next epoch looks again
            return
        if silent > seconds:
            raise OrphanedError(
                f"the driver has not asked for {silent:.0f} s how this trial is doing (execution.orphan_minutes): its "
                f"machine was cut off, or the driver is gone; it ends after epoch {event['epoch']}, where it goes on"
            )

    return checked
