"""Attempts that came to nothing, as ``attempts.jsonl`` beside a work keeps them, and what time they took.

One line per attempt whose process was lost, written by its slot; one per failure that was tried again, with ``failed``:
its reason. How long the attempt that ended in ``failure.json`` took lies there, under ``attempt``. An attempt that was
cut off together with its driver or machine leaves no line: what is known of it are the epochs that the next one went on
from.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from trainables.errors import StorageError
from trainables.storage import Folder

if TYPE_CHECKING:
    from orchestrator.ledger import Record

ATTEMPTS = "attempts.jsonl"
FAILURE = "failure.json"


def read_attempts(folder: Folder) -> list[dict[str, Any]]:
    """Return the notes on attempts that came to nothing, none if they are damaged: no result depends on them."""
    try:
        return [note for note in folder.read_lines(ATTEMPTS) if isinstance(note, dict)]
    except StorageError:
        return []


def count_lost(notes: list[dict[str, Any]]) -> int:
    """Return how many attempts were lost since the last failure that was tried again."""
    return next((number for number, note in enumerate(reversed(notes)) if "failed" in note), len(notes))


def forget_failure(folder: Folder) -> None:
    """Remove ``failure.json`` because its work is tried again; what its attempts took stays noted."""
    notes = read_attempts(folder)
    if not notes:
        folder.remove(ATTEMPTS)  # missing or damaged
    if folder.is_intact(FAILURE):
        failure = folder.read_json(FAILURE)
        attempt = failure.get("attempt", {"timestamp_ms": failure["timestamp_ms"]})
        note = {**attempt, "message": failure["message"], "failed": failure["reason"]}
        # Whoever was killed between the two has noted it already.
        if (count_lost(notes) or "attempt" in failure) and note not in notes:
            folder.append_line(ATTEMPTS, json.dumps(note))
    folder.remove(FAILURE)


# ------------------------------------------------------------------ time


def took_seconds(record: Record) -> float:
    """Return how long a stage or trial took without what was lost; of one without a result, the epochs it has.

    That is the call that wrote ``result.json``, and the epochs before it that it went on from.
    """
    epochs = _epochs(record)
    total = sum(seconds for _, seconds in epochs)
    if record.result is None:
        return total
    duration = float(record.result["duration_seconds"])
    before = [seconds for at_ms, seconds in epochs if at_ms <= record.result["finished_ms"] - 1000 * duration]
    return max(total, duration + sum(before))  # clocks of two machines differ


def lost_seconds(record: Record) -> float:
    """Return how much more than ``took_seconds`` is known to have been spent on a stage or trial.

    Of one that is complete: its attempts that were lost or failed, without the epochs that the next one went on from.
    Of any other: everything, since there is nothing to show for it yet.
    """
    notes = [*record.attempts, *([record.failure.get("attempt", {})] if record.failure is not None else [])]
    spans = [(float(note["timestamp_ms"]), float(note["seconds"])) for note in notes if "seconds" in note]
    noted = sum(seconds for _, seconds in spans)
    epochs = _epochs(record)
    kept = sum(s for at_ms, s in epochs if any(end - 1000 * long < at_ms <= end for end, long in spans))
    if record.result is not None:
        return max(0.0, noted - kept)
    return noted + sum(seconds for _, seconds in epochs) - kept


def spent_seconds(record: Record) -> float:
    """Return all that is known to have been spent on a stage or trial."""
    return lost_seconds(record) + (took_seconds(record) if record.result is not None else 0.0)


def _epochs(record: Record) -> list[tuple[float, float]]:
    """Return when each epoch ended, in ms, and how many seconds it took."""
    return [
        (float(epoch["timestamp_ms"]), float(epoch["metrics"]["seconds"]))
        for epoch in record.epochs
        if "seconds" in epoch["metrics"]
    ]
