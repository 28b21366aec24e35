"""Summary of a study at the end of a run, which ``run`` prints, returns and sends as a notification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.driver.prepare import Prepared
from orchestrator.ledger.usage import read_budget_status
from orchestrator.planning.plan import Plan
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, INTERRUPTED, STOPPED


@dataclass(frozen=True)
class Summary:
    """Numbers of a study's trials at the end of a run. ``missing`` trials have never begun."""

    planned: int
    complete: int
    failed: int
    interrupted: int
    missing: int
    skipped_arms: int
    unshipped: int
    report: str | None
    #: Number of trials that are not complete and that the budget has no room for.
    held_back: int = 0
    #: Usage of each limit in words, None if there is no budget.
    budget: str | None = None
    #: Number of trials that a search has stopped; they will not be continued.
    stopped_early: int = 0
    #: Whether another driver that shares the study has written the report.
    is_concluded_elsewhere: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial is complete, or was stopped early."""
        return self.complete + self.stopped_early == self.planned

    @property
    def is_only_failed(self) -> bool:
        """Whether all trials that are not complete have failed, so that another run would start nothing."""
        return self.failed > 0 and self.interrupted == self.missing == 0

    @property
    def is_out_of_budget(self) -> bool:
        """Whether trials are missing or interrupted, and another run would start none without a larger budget."""
        return 0 < self.held_back == self.interrupted + self.missing

    def describe(self) -> str:
        """Return the summary in one line."""
        if self.is_complete and self.stopped_early:
            return f"{self.complete} of {self.planned} trials are complete, {self.stopped_early} were stopped early"
        if self.is_complete:
            return f"all {self.planned} trials are complete"
        text = f"{self.failed} failed, {self.interrupted} interrupted, {self.missing} missing of {self.planned} trials"
        return text + (f"; the budget is spent: {self.budget}" if self.held_back else "")


def summarise(
    plan: Plan,
    states: Mapping[str, str],
    *,
    report: str | None = None,
    unshipped: int = 0,
    early_stopping: bool = False,
) -> Summary:
    """Return the summary over planned trials. Without early stopping, stopped trials count as interrupted."""
    counts = Counter(states.get(trial.signature, ABSENT) for trial in plan.trials)
    stopped = counts.pop(STOPPED, 0)
    counts[INTERRUPTED] += 0 if early_stopping else stopped
    return Summary(
        planned=len(plan.trials) + plan.num_to_come,
        complete=counts[COMPLETE],
        failed=counts[FAILED],
        interrupted=counts[INTERRUPTED],
        missing=counts[ABSENT] + plan.num_to_come,
        skipped_arms=len(plan.skipped),
        unshipped=unshipped,
        report=report,
        stopped_early=stopped if early_stopping else 0,
    )


def add_budget(summary: Summary, prepared: Prepared, states: Mapping[str, str]) -> Summary:
    """Return the summary with the usage of the budget added, unchanged if there is no budget."""
    budget_status = read_budget_status(prepared.ledger, prepared.about["budget"], states)
    if budget_status is None:
        return summary
    held_back = budget_status.count_held_back(interrupted=summary.interrupted, missing=summary.missing)
    return replace(summary, held_back=held_back, budget=budget_status.describe())
