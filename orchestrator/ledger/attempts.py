"""Attempts that came to nothing, as ``attempts.jsonl`` beside a work keeps them, and what time they took.

One line per attempt whose process was lost, written by its slot; one per failure that was tried again, with ``failed``:
its reason. How long the attempt that ended in ``failure.json`` took lies there, under ``attempt``. An attempt that was
cut off together with its driver or machine leaves no line: what is known of it are the epochs that the next one went on
from.
"""

from __future__ import annotations

import json
from typing import Any

from trainables.errors import StorageError
from trainables.storage.folder import Folder

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
