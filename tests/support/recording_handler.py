"""A listener that remembers, for whoever works at a dispatcher. Tests only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import describe_work
from orchestrator.planning.works import Work

EXECUTION = {"num_threads": 1, "device": "cpu", "early_stopping": False, "evaluation_batch_size": 6}


class RecordingHandler:
    """A listener that remembers, and keeps the ledger as ``run`` does."""

    def __init__(self, ledger: Ledger, on_event: Callable[[Work, dict[str, Any]], None] | None = None) -> None:
        self.ledger, self.on_event = ledger, on_event
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def handle(self, what: str, work: Work, details: dict[str, Any]) -> None:
        self.lines.append((what, work.name, details))
        if what == "ended" and details["status"] == "failed":
            self.ledger.record_failure(work, details, study="s", git_commit=None)
        if what == "event" and self.on_event:
            self.on_event(work, details)

    def started(self) -> list[str]:
        return [name for what, name, _ in self.lines if what == "started"]

    def ends(self) -> dict[str, str]:
        """Name → status, with the reason of what failed."""
        return {
            name: details["status"] + (f": {details['reason']}" if "reason" in details else "")
            for what, name, details in self.lines
            if what == "ended"
        }


def describe(work: Work) -> dict[str, Any]:
    return describe_work(work, study="s", git_commit=None)
