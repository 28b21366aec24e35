"""(plan, ledger) → what to do. Pure, and the only place that decides whether something runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.planning.plan import Plan, Work
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, STOPPED


@dataclass(frozen=True)
class Actions:
    """What ``run`` will do, each in the plan's order."""

    start: tuple[Work, ...]
    resume: tuple[Work, ...]
    #: Complete; or a stage that nothing needs any more.
    skip: tuple[Work, ...]
    #: Failed before, and not to be tried again; nor is a trial whose stage is among them.
    failed: tuple[Work, ...]
    #: In the ledger, no longer planned. Never deleted.
    orphaned: tuple[str, ...]
    #: Would be started or resumed if the budget had room for them (``budget.Standing.hold_back``).
    held_back: tuple[Work, ...] = ()
    #: Stopped early, and to be left so.
    stopped: tuple[Work, ...] = ()

    @property
    def open(self) -> tuple[Work, ...]:
        """Everything to be handed out: stages first, interrupted before new."""
        todo = self.resume + self.start
        return tuple(sorted(todo, key=lambda work: work.kind != "stage"))


def reconcile(
    plan: Plan, states: Mapping[str, str], *, retry_failed: bool = False, early_stopping: bool = False
) -> Actions:
    """Compare what should exist with what does.

    Args:
        plan: stages and trials of the study as it is now.
        states: signature → state, for everything in the ledger.
        retry_failed: hand out what failed before as well.
        early_stopping: what was stopped early stays so; else it goes on where it was stopped.
    """
    start, resume, skip, failed, stopped = [], [], [], [], []
    done = {COMPLETE} | ({STOPPED} if early_stopping else set()) | (set() if retry_failed else {FAILED})
    needed = {need for trial in plan.trials if states.get(trial.signature) not in done for need in trial.needs}
    dead: set[str] = set()
    for work in plan.works:
        state = states.get(work.signature, ABSENT)
        if state == COMPLETE:
            skip.append(work)
        elif (state == FAILED and not retry_failed) or dead & set(work.needs):
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
