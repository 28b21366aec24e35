"""Seconds that a stage or trial has taken, and what of them was lost to interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.ledger.record import Record

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
