"""Seconds that a stage or trial has taken, and seconds that were lost to interruptions."""

from __future__ import annotations

from orchestrator.ledger.record import Record

#: Duration and dates of a call differ by less, unless its machine was suspended or its clock was set. An assumption.
MAX_CLOCK_STEP_SECONDS = 5.0


def took_seconds(record: Record) -> float:
    """Return how long a stage or trial took, without lost attempts; without a result, how long its epochs took.

    With a result, that is the call that wrote ``result.json`` and the earlier epochs from which it continued.
    """
    epochs = _epochs(record)
    total = sum(seconds for _, seconds in epochs)
    if record.result is None:
        return total
    duration = max(0.0, float(record.result["duration_seconds"]))
    if not epochs:
        return duration
    finished_ms = record.result["finished_ms"]
    started_ms = record.result.get("started_ms", finished_ms - 1000 * duration)
    if abs((finished_ms - started_ms) / 1000 - duration) > MAX_CLOCK_STEP_SECONDS:
        return max(total, duration)  # the machine was suspended, or its clock was set: dates tell no order
    before = [seconds for at_ms, seconds in epochs if at_ms <= started_ms]
    return max(total, duration + sum(before))  # clocks of two machines differ


def lost_seconds(record: Record) -> float:
    """Return the seconds that are known to have been spent on a stage or trial without contributing to a result.

    If it is complete: its attempts that were lost or failed, without the epochs from which the next one continued.
    Otherwise: everything, since there is no result yet.
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
    """Return all seconds that are known to have been spent on a stage or trial."""
    return lost_seconds(record) + (took_seconds(record) if record.result is not None else 0.0)


def _epochs(record: Record) -> list[tuple[float, float]]:
    """Return when each epoch ended, in ms, and how many seconds it took."""
    return [
        (float(epoch["timestamp_ms"]), float(epoch["metrics"]["seconds"]))
        for epoch in record.epochs
        if "seconds" in epoch["metrics"]
    ]
