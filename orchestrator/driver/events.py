"""Callbacks of a running study: notifications, the MLflow shipper, Optuna's storage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.driver.notifications import Notifier
from orchestrator.driver.prepare import Prepared, find_git_commit
from orchestrator.driver.progress import StudyProgress
from orchestrator.driver.search_loop import Growth
from orchestrator.ledger.failures import DISK_FULL
from orchestrator.ledger.record import describe_work
from orchestrator.planning.plan import Work
from orchestrator.planning.states import FAILED, INTERRUPTED
from orchestrator.search.early_stopping import EarlyStopping
from trainables.errors import DiskFullError


@dataclass(frozen=True)
class Watch:
    """Who is told while a study is executed."""

    notifier: Notifier
    #: The shipper: kind and signature of what has changed in the ledger.
    notice: Callable[[str, str], None]
    #: Optuna's storage: the search has changed.
    show: Callable[[], None]


class Listener:
    """Hears of every start, event and end at the desk, and passes it on: ledger, MLflow, people, search.

    Args:
        prepared: the study.
        watch: who is told.
        progress: what the terminal shows.
        stop: set when nothing more is to be handed out.
        early: who judges the trials of a search; None: nobody does.
    """

    def __init__(
        self,
        prepared: Prepared,
        watch: Watch,
        progress: StudyProgress,
        stop: threading.Event,
        *,
        early: EarlyStopping | None = None,
    ) -> None:
        self._prepared, self._watch, self._progress, self._stop = prepared, watch, progress, stop
        self._early = early
        self._commit = find_git_commit()
        self._full: str | None = None
        self.growth = Growth(prepared, listen=self.hear, stop=stop, show=watch.show, on_spent=self.tell_spent)

    def describe(self, work: Work) -> dict[str, Any]:
        """Return the content of ``config.json`` of a work."""
        return describe_work(work, study=self._prepared.study.study, git_commit=self._commit)

    def hear(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Take what has happened to a work: started, event or ended."""
        if what == "ended" and details["status"] == FAILED:
            details = self._record_failure(work, details)
        if details.get("reason") == DISK_FULL:
            self._full = self._full or details["message"]
            self._stop.set()
        elif what == "ended" and details["status"] == FAILED:
            self._watch.notifier.tell_failure(work, details)
        if what == "ended":
            self.growth.settle(work, details)
        if self._early is not None:
            self._early.hear(what, work, details)
        self._watch.notice(work.kind, work.signature)
        self._progress.listen(what, work, details)

    def _record_failure(self, work: Work, details: dict[str, Any]) -> dict[str, Any]:
        ledger, study = self._prepared.ledger, self._prepared.study.study
        try:
            ledger.record_failure(work, details, study=study, git_commit=self._commit)
        except DiskFullError as error:
            return {"status": INTERRUPTED, "reason": DISK_FULL, "message": str(error)}
        return details

    def tell_spent(self, num_works: int) -> None:
        """Take that the budget is spent, and how many works are not started because of it."""
        text = f"the budget is spent: what runs goes on to its end, {num_works} stages and trials are not started"
        self._progress.say(text)
        self._watch.notifier.tell("budget", text)

    def check(self) -> None:
        """Raise what has stopped the study, if something has.

        Raises:
            DiskFullError: somebody found no room for what it wrote.
            RobustSweepError: the search cannot go on.
        """
        if self._full is not None:
            raise DiskFullError(self._full)
        if self._early is not None:
            self._early.check()
        self.growth.check()
