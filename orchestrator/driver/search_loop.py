"""Adaptive search during a run: new proposals extend the plan. A study without a search keeps its plan."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console

from orchestrator.driver.prepare import Prepared, update_actions
from orchestrator.driver.terminal.announce import warn
from orchestrator.execution.dispatcher import OnEvent
from orchestrator.ledger.usage import read_budget_status
from orchestrator.planning.budget import BudgetStatus
from orchestrator.planning.reconcile import Actions
from orchestrator.planning.works import Work
from orchestrator.search.optuna_storage import PATIENCE_SECONDS, Exporter, StorageWriter, resolve_storage
from trainables.errors import RobustSweepError

#: How long a driver that is interrupted still waits for Optuna's storage.
_INTERRUPT_TIMEOUT_SECONDS = 1.0


def refresh(prepared: Prepared, *, retry_failed: bool) -> Prepared:
    """Read the ledger again under the lease, add the search's next proposals and return the updated study."""
    states, search, plan = prepared.ledger.states(), prepared.search, prepared.plan
    if search is not None:
        search.update_states(states, retry_failed=retry_failed)
        plan = search.plan
    if search is not None and replace(prepared, budget_status=read_budget(prepared, states)).grows:
        search.next_works(lambda work, details: None)  # trials that cannot start are recorded with the whole plan
        plan = search.plan
    prepared = update_actions(replace(prepared, plan=plan), states, retry_failed=retry_failed)
    if search is not None:
        search.mark_dispatched(prepared.actions)
    return prepared


def read_budget(prepared: Prepared, states: Mapping[str, str]) -> BudgetStatus | None:
    """Return the current usage of the budget, None if the study has no budget."""
    return read_budget_status(prepared.ledger, prepared.about["budget"], states)


def write_extended_plan(prepared: Prepared) -> Prepared:
    """Write the plan with the search's new proposals; return the study with this plan."""
    if prepared.search is None:
        return prepared
    prepared = replace(prepared, plan=prepared.search.plan)
    prepared.ledger.write_plan(prepared.plan, prepared.about)
    return prepared


class SearchLoop:
    """Source of further stages and trials for a dispatcher, which makes one call at a time.

    Args:
        prepared: the study.
        on_event: callback for trials that cannot start because their stage has failed.
        stop: stops proposing once it is set; set here when the search cannot continue.
        show: callback for changes of the search, which Optuna's storage shows.
        on_spent: called once, with the number of stages and trials that are not dispatched because the budget has no
            room for their trials.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        on_event: OnEvent,
        stop: threading.Event,
        show: Callable[[], None],
        on_spent: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._prepared, self._on_event, self._stop, self._show = prepared, on_event, stop, show
        self._on_spent: Callable[[int], None] | None = on_spent
        self._budget_status = prepared.budget_status and prepared.budget_status.begin(prepared.actions.open)
        self._problem: RobustSweepError | None = None

    def record_end(self, work: Work, details: dict[str, Any]) -> None:
        """Record in the search how a stage or trial has ended."""
        if self._prepared.search is not None:
            self._prepared.search.record_end(work.signature, details["status"])

    def find_more(self) -> list[Work]:
        """Return further stages and trials to run. Raises no RobustSweepError: ``check`` does."""
        search = self._prepared.search
        if search is None or self._stop.is_set():
            return []
        if self._budget_status is not None and "trials" in self._budget_status.spent:
            self._report_spent(search.plan.num_to_come)
            return []
        try:
            works = self._limit_to_budget(search.next_works(partial(self._on_event, "ended")))
            if works:
                write_extended_plan(self._prepared)
            self._show()
        except RobustSweepError as error:
            self._problem = error
            self._stop.set()
            return []
        return works

    def _limit_to_budget(self, works: list[Work]) -> list[Work]:
        """Return the stages and trials that fit the budget. The others stay proposed, for a larger budget."""
        if self._budget_status is None:
            return works
        actions = self._budget_status.hold_back(Actions(tuple(works), (), (), (), ()))
        self._budget_status = self._budget_status.begin(actions.open)
        self._report_spent(len(actions.held_back))
        return list(actions.open)

    def _report_spent(self, number: int) -> None:
        if number and self._on_spent is not None:
            self._on_spent(number)
            self._on_spent = None

    def check(self) -> None:
        """Raise the error that has stopped the search, if there is one."""
        if self._problem is not None:
            raise self._problem


@contextmanager
def exporting(prepared: Prepared, console: Console) -> Iterator[Callable[[], None]]:
    """Keep Optuna's storage up to date while the body runs; yield a function to call when the search has changed."""
    search = prepared.search
    uri = resolve_storage(prepared.ledger, prepared.study.execution.optuna) if search is not None else None
    if search is None or uri is None:
        yield lambda: None
        return
    database = Exporter(StorageWriter(uri, prepared.study.study, search.config, search.space))
    patience = _INTERRUPT_TIMEOUT_SECONDS
    try:
        database.show(search.show())
        yield lambda: database.show(search.show())
        database.show(search.show())
        patience = PATIENCE_SECONDS
    finally:
        problem = database.finish(patience)
        if problem is not None:
            warn(console, "the search is not in Optuna's storage yet", f"{problem}; the next run tries again")
