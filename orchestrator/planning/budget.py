"""What all runs of a study have used of its budget, and which stages and trials no longer fit into it. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.planning.reconcile import Actions
from orchestrator.study.execution_config import BUDGET_UNITS, Budget

if TYPE_CHECKING:
    from orchestrator.planning.plan import Work


@dataclass(frozen=True)
class Usage:
    """The time that a study has taken, over all its runs."""

    #: While a driver executed.
    wall_seconds: float = 0.0
    #: Of all slots together, while they had work.
    slot_seconds: float = 0.0
    #: The same, times the share of a GPU that each slot holds.
    gpu_seconds: float = 0.0


@dataclass(frozen=True)
class Standing:
    """How a study stands to its budget."""

    #: Limit → how much of it may be taken.
    limits: Mapping[str, float]
    #: Limit → how much of it has been taken.
    taken: Mapping[str, float]
    #: Trials that have begun.
    begun: frozenset[str] = frozenset()

    @property
    def spent(self) -> tuple[str, ...]:
        """The limits that are reached."""
        return tuple(name for name, limit in self.limits.items() if self.taken[name] >= limit)

    def hold_back(self, actions: Actions) -> Actions:
        """Return the actions that the budget has room for; what it has not is ``held_back``.

        A trial that has begun goes on as long as there is time; of new ones there are as many as ``trials`` allows, in
        the plan's order, and only the stages that they need.
        """
        allowed: float = math.inf
        if set(self.spent) - {"trials"}:
            return replace(actions, start=(), resume=(), held_back=actions.open)
        if "trials" in self.limits:
            allowed = self.limits["trials"] - self.taken["trials"]
        kept: set[str] = set()
        for work in actions.open:
            if work.kind == "trial" and (work.signature in self.begun or allowed > 0):
                allowed -= work.signature not in self.begun
                kept |= {work.signature, *work.needs}
        return replace(
            actions,
            start=tuple(work for work in actions.start if work.signature in kept),
            resume=tuple(work for work in actions.resume if work.signature in kept),
            held_back=tuple(work for work in actions.open if work.signature not in kept),
        )

    def begin(self, works: Collection[Work]) -> Standing:
        """Return how the study stands once the trials among ``works`` have begun."""
        new = {work.signature for work in works if work.kind == "trial"} - self.begun
        taken = {**self.taken, "trials": self.taken["trials"] + len(new)}
        return replace(self, taken=taken, begun=self.begun | new)

    def count_held_back(self, *, interrupted: int, missing: int) -> int:
        """Return how many of the trials that are not complete would not start if the study was run again."""
        if set(self.spent) - {"trials"}:
            return interrupted + missing
        if "trials" in self.limits:
            return max(0, missing - max(0, int(self.limits["trials"] - self.taken["trials"])))
        return 0

    def describe(self) -> str:
        """Return how much of each limit has been taken: "3 of 10 trials, 0.25 of 2 GPU-hours"."""
        return ", ".join(
            f"{format_amount(self.taken[name])} of {format_amount(limit)} {BUDGET_UNITS[name]}"
            for name, limit in self.limits.items()
        )

    def as_json(self) -> dict[str, Any]:
        """Return limits, what has been taken of each, and which are spent, as JSON values."""
        return {"limits": dict(self.limits), "taken": dict(self.taken), "spent": list(self.spent)}


def format_amount(value: float) -> str:
    """Return a number of at most two decimals, more only where all of them would be zero."""
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def describe_needs(standing: Standing, needs: Mapping[str, float | None]) -> list[str]:
    """Return one line per limit: what is taken, what the rest is estimated to take, and whether that fits.

    Args:
        standing: to the budget.
        needs: limit → what is still to be taken; None where it is not known.
    """
    lines = []
    for name, limit in standing.limits.items():
        taken, more = standing.taken[name], needs[name]
        of = f"{BUDGET_UNITS[name]}: {format_amount(taken)} taken"
        if more is None:
            lines.append(f"{of}, of {format_amount(limit)}; whether the rest fits is not known")
        else:
            fits = "fits" if taken + more <= limit else "does NOT fit"
            lines.append(
                f"{of} + {format_amount(more)} to come = {format_amount(taken + more)} of {format_amount(limit)}: "
                f"{fits}"
            )
    return lines


def measure(usage: Usage, *, num_trials: int, price_per_gpu_hour: float | None) -> dict[str, float]:
    """Return limit → how much of it has been taken; ``money`` only where a price is known."""
    hours = usage.gpu_seconds / 3600
    taken = {"trials": float(num_trials), "wall_hours": usage.wall_seconds / 3600, "gpu_hours": hours}
    return taken if price_per_gpu_hour is None else taken | {"money": hours * price_per_gpu_hour}


def describe_budget(budget: Budget | None, price_per_gpu_hour: float | None) -> dict[str, Any] | None:
    """Return a budget as ``plan.json`` holds it, for the report."""
    return None if budget is None else {"limits": budget.limits(), "price_per_gpu_hour": price_per_gpu_hour}
