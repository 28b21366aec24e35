"""Comparison of plan and ledger: the only place that decides which stages and trials run. Without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.planning.plan import Plan
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, STOPPED
from orchestrator.planning.works import Work


@dataclass(frozen=True)
class Actions:
    """Stages and trials by what ``run`` does with them, each group in the plan's order."""

    start: tuple[Work, ...]
    resume: tuple[Work, ...]
    #: Complete, or a stage that no open trial needs.
    skip: tuple[Work, ...]
    #: Failed before and not retried; includes stages and trials that are built on one of them.
    failed: tuple[Work, ...]
    #: Signatures in the ledger that are no longer planned. Never deleted.
    orphaned: tuple[str, ...]
    #: Not started or resumed, because the budget has no room for them (``budget.BudgetStatus.hold_back``).
    held_back: tuple[Work, ...] = ()
    #: Stopped early and not resumed.
    stopped: tuple[Work, ...] = ()

    @property
    def open(self) -> tuple[Work, ...]:
        """Stages and trials to dispatch: stages first, interrupted before new."""
        todo = self.resume + self.start
        return tuple(sorted(todo, key=lambda work: work.kind != "stage"))


def reconcile(
    plan: Plan, states: Mapping[str, str], *, retry_failed: bool = False, early_stopping: bool = False
) -> Actions:
    """Return the actions that turn the ledger into the plan.

    Args:
        plan: stages and trials of the study as it is now.
        states: signature → state of every stage and trial in the ledger.
        retry_failed: whether failed stages and trials run again.
        early_stopping: whether trials that were stopped early stay so; otherwise they resume where they stopped.
    """
    start, resume, skip, failed, stopped = [], [], [], [], []
    done = {COMPLETE} | ({STOPPED} if early_stopping else set()) | (set() if retry_failed else {FAILED})
    needed = {need for trial in plan.trials if states.get(trial.signature) not in done for need in trial.waits_for}
    for stage in reversed(plan.stages):  # a stage comes after the one that it starts from
        if stage.signature in needed and states.get(stage.signature) not in done:
            needed |= set(stage.waits_for)
    dead: set[str] = set()
    for work in plan.works:
        state = states.get(work.signature, ABSENT)
        if state == COMPLETE:
            skip.append(work)
        elif (state == FAILED and not retry_failed) or dead & set(work.waits_for):
            failed.append(work)
            dead.add(work.signature)
        elif state == STOPPED and early_stopping:
            stopped.append(work)
        elif work.kind == "stage" and work.signature not in needed:
            skip.append(work)  # no trial that will run starts from it
        elif state == ABSENT:
            start.append(work)
        else:
            resume.append(work)
    planned = {work.signature for work in plan.works}
    orphaned = tuple(sorted(set(states) - planned))
    return Actions(tuple(start), tuple(resume), tuple(skip), tuple(failed), orphaned, stopped=tuple(stopped))
