"""Callbacks of a running study: notifications, the MLflow shipper, Optuna's storage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.driver.live.state import LiveState
from orchestrator.driver.notifications import Notifier
from orchestrator.driver.prepare import Prepared, find_git_commit
from orchestrator.driver.search_loop import SearchLoop
from orchestrator.driver.terminal.progress import StudyProgress
from orchestrator.execution.shared_works import ELSEWHERE
from orchestrator.ledger.failures import DISK_FULL
from orchestrator.ledger.record import describe_work
from orchestrator.planning.states import FAILED, INTERRUPTED
from orchestrator.planning.works import Work
from orchestrator.search.early_stopping import EarlyStopping
from trainables.errors import DiskFullError


@dataclass(frozen=True)
class Observers:
    """Callbacks that the event handler of a running study calls."""

    notifier: Notifier
    #: Callback of the MLflow shipper, called with kind and signature of each stage or trial that has changed.
    notify_shipper: Callable[[str, str], None]
    #: Callback of Optuna's storage, called when the search has changed.
    show: Callable[[], None]


class EventHandler:
    """Handler of the dispatcher's events: forwards each to the ledger, MLflow, notifications, search and terminal.

    Args:
        prepared: the study.
        observers: callbacks for notifications, MLflow and Optuna's storage.
        progress: progress display of the terminal.
        stop: stops dispatching once it is set; set here when a disk is full.
        early: early stopping of the search's trials, None if the study has none.
    """

    def __init__(
        self,
        prepared: Prepared,
        observers: Observers,
        progress: StudyProgress,
        stop: threading.Event,
        *,
        early: EarlyStopping | None = None,
    ) -> None:
        self._prepared, self._observers, self._progress, self._stop = prepared, observers, progress, stop
        self._early = early
        self._commit = find_git_commit()
        self._full: str | None = None
        self.live = LiveState(prepared.plan.works, prepared.states, num_to_come=prepared.plan.num_to_come)
        self.search_loop = SearchLoop(
            prepared, on_event=self.handle, stop=stop, show=observers.show, on_spent=self.report_spent
        )

    def describe(self, work: Work) -> dict[str, Any]:
        """Return the content of ``config.json`` of a stage or trial."""
        return describe_work(work, study=self._prepared.study.study, git_commit=self._commit)

    def handle(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Process an event of a stage or trial; ``what`` is "started", "event" or "ended"."""
        is_elsewhere = ELSEWHERE in details  # another driver records it, and notifies
        if what == "ended" and details["status"] == FAILED and not is_elsewhere:
            details = self._record_failure(work, details)
        if details.get("reason") == DISK_FULL:
            self._full = self._full or details["message"]
            self._stop.set()
        elif what == "ended" and details["status"] == FAILED and not is_elsewhere:
            self._observers.notifier.notify_failure(work, details)
        if what == "ended":
            self.search_loop.record_end(work, details)
        if self._early is not None:
            self._early.handle(what, work, details)
        self._observers.notify_shipper(work.kind, work.signature)
        self.live.handle(what, work, details)
        self._progress.handle_event(what, work, details)

    def _record_failure(self, work: Work, details: dict[str, Any]) -> dict[str, Any]:
        ledger, study = self._prepared.ledger, self._prepared.study.study
        try:
            ledger.record_failure(work, details, study=study, git_commit=self._commit)
        except DiskFullError as error:
            return {"status": INTERRUPTED, "reason": DISK_FULL, "message": str(error)}
        return details

    def report_spent(self, num_works: int, *, notifies: bool = True) -> None:
        """Report to the terminal and the notification targets that the budget is spent.

        Args:
            num_works: number of stages and trials that will not start.
            notifies: whether the notification targets get it, and not only the terminal.
        """
        text = f"the budget is spent: what runs goes on to its end, {num_works} stages and trials are not started"
        self._progress.print_line(text)
        if notifies:
            self._observers.notifier.notify("budget", text)

    def check(self) -> None:
        """Raise the error that has stopped the study, if there is one.

        Raises:
            DiskFullError: a disk is full.
            RobustSweepError: the search cannot continue.
        """
        if self._full is not None:
            raise DiskFullError(self._full)
        if self._early is not None:
            self._early.check()
        self.search_loop.check()
