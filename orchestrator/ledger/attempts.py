"""Attempts at a stage or trial: those without a result, and the log of all that have ended.

``attempts.jsonl`` has the attempts without a result, and the time they took: one line per attempt whose process was
lost, written by its slot, with ``gpus``, what the slot held, if the memory of a GPU was missing; one per failure that
was tried again, with its reason as ``failed``; one per attempt that a newer one has taken over, with its number as
``superseded``; one per attempt that ended because nobody asked for its events, as ``orphaned``. The duration of the
attempt that ended in ``failure.json`` is stored there, under ``attempt``. An attempt that was cut off together with its
driver or machine leaves no line, only the epochs from which the next one continued.

``log.jsonl`` has what other files do not: where and when every attempt ran, and its steps (``AttemptLog``).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from trainables.errors import StorageError
from trainables.storage.folder import Folder

ATTEMPTS = "attempts.jsonl"
FAILURE = "failure.json"
LOG = "log.jsonl"
#: Characters of a message in the log, and lines that the log of one attempt has at most: its first ones, and its end.
MAX_LOGGED, MAX_LINES = 300, 20

_logger = logging.getLogger(__name__)


class AttemptLog:
    """Log of one attempt, kept by its slot and written into the folder of the stage or trial when the attempt ends.

    A line is a JSON object: ``time`` (UTC, ISO 8601 with milliseconds), ``level`` (info, warning, error), ``event``
    (begun, started, trained, evaluation, lost, done, failed), ``attempt`` and the place: ``host``, ``slot_pid``,
    ``devices``, ``gpus`` (what the slot holds, if it holds any). With a GPU, done also has ``peak_gpu_memory_mib`` and
    ``gpu_headroom_mib``: the slot's share of the GPU's memory minus the peak, negative if that was larger.
    Epochs, each with its checkpoint, have their times in ``epochs.jsonl``.

    Args:
        place: attempt and place, which every line has.
    """

    def __init__(self, place: Mapping[str, Any]) -> None:
        self._place, self._lines = {key: value for key, value in place.items() if value is not None}, list[str]()
        self._last: str | None = None

    def add(
        self,
        event: str,
        *,
        level: str = "info",
        message: str | None = None,
        end: Mapping[str, float] | None = None,
    ) -> None:
        """Add a line, the first of several for the same event; also none before the end if there are ``MAX_LINES``.

        Args:
            event: event of the line.
            level: info, warning or error.
            message: text of which the first line is kept; None: the line has none.
            end: measured values if this is the last line, perhaps none; None: another may follow.
        """
        if end is None and (event == self._last or len(self._lines) >= MAX_LINES - 1):
            return
        self._last = event
        now = time.time()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        said = {} if message is None else {"message": message.partition("\n")[0][:MAX_LOGGED]}
        line = {"time": moment, "level": level, "event": event, **self._place, **(end or {}), **said}
        self._lines.append(json.dumps(line))

    def write(self, folder: Folder) -> None:
        """Append the lines to ``log.jsonl``: one write per attempt. If that fails, a warning: the attempt counts."""
        if not self._lines:
            return
        try:
            folder.append_line(LOG, "\n".join(self._lines))
        except StorageError as error:
            _logger.warning("the log of an attempt is lost: %s", error)
        self._lines.clear()


def measure_headroom(folder: Folder, gpus: float) -> dict[str, float]:
    """Return the peak GPU memory of a complete stage or trial, and what its share of the GPU had left then, in MiB.

    Nothing if it has taken no GPU, or more than one.

    Args:
        folder: folder of the stage or trial.
        gpus: share of a GPU that its slot holds.
    """
    result = folder.read_json("result.json") if 0.0 < gpus <= 1.0 else {}
    if "peak_gpu_memory_mib" not in result:
        return {}
    peak, whole = result["peak_gpu_memory_mib"], result["gpu_memory_mib"]
    return {"peak_gpu_memory_mib": peak, "gpu_headroom_mib": round(gpus * whole - peak, 1)}


def read_attempts(folder: Folder) -> list[dict[str, Any]]:
    """Return the notes on attempts without a result, none if they are damaged: no result depends on them."""
    try:
        return [note for note in folder.read_lines(ATTEMPTS) if isinstance(note, dict)]
    except StorageError:
        return []


def count_lost(notes: list[dict[str, Any]]) -> int:
    """Return how many attempts were lost since the last failure that was tried again.

    Those that a newer attempt has taken over, or that ended because their machine was cut off, were not.
    """
    lost = [note for note in notes if "superseded" not in note and "orphaned" not in note]
    return next((number for number, note in enumerate(reversed(lost)) if "failed" in note), len(lost))


def archive_failure(folder: Folder) -> None:
    """Remove ``failure.json`` because its stage or trial is tried again. The time of the attempt is noted first."""
    notes = read_attempts(folder)
    if not notes:
        folder.remove(ATTEMPTS)  # missing or damaged
    if folder.is_intact(FAILURE):
        failure = folder.read_json(FAILURE)
        attempt = failure.get("attempt", {"timestamp_ms": failure["timestamp_ms"]})
        note = {**attempt, "message": failure["message"], "failed": failure["reason"]}
        # A process that was killed between the two steps has noted it already.
        if (count_lost(notes) or "attempt" in failure) and note not in notes:
            folder.append_line(ATTEMPTS, json.dumps(note))
    folder.remove(FAILURE)
