"""Attempts without a result, as ``attempts.jsonl`` of a stage or trial keeps them, and the time they took.

One line per attempt whose process was lost, written by its slot; one per failure that was tried again, with its reason
as ``failed``; one per attempt that a newer one has taken over, with its number as ``superseded``; one per attempt that
ended because nobody asked for its events, as ``orphaned``. The duration of the
attempt that ended in ``failure.json`` is stored there, under ``attempt``. An attempt that was cut off together with its
driver or machine leaves no line, only the epochs from which the next one continued.
"""

from __future__ import annotations

import json
from typing import Any

from trainables.errors import StorageError
from trainables.storage.folder import Folder

ATTEMPTS = "attempts.jsonl"
FAILURE = "failure.json"


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
