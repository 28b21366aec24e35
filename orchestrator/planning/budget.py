"""Usage of a study's budget over all its runs, and the stages and trials that no longer fit into it. Without I/O."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.planning.reconcile import Actions
from orchestrator.planning.works import Work
from orchestrator.study.execution_config import BUDGET_UNITS, Budget


@dataclass(frozen=True)
class Usage:
    """Time that a study has taken, over all its runs."""

    #: Seconds during which a driver executed the study.
    wall_seconds: float = 0.0
    #: Seconds during which slots had work, summed over all slots.
    slot_seconds: float = 0.0
    #: The same sum, each slot weighted by the share of a GPU that it holds.
    gpu_seconds: float = 0.0


@dataclass(frozen=True)
class BudgetStatus:
    """Limits of a study's budget and the amount taken of each."""

    #: Limit → amount that may be taken.
    limits: Mapping[str, float]
    #: Limit → amount that has been taken.
    taken: Mapping[str, float]
    #: Signatures of the trials that have begun.
    begun: frozenset[str] = frozenset()

    @property
    def spent(self) -> tuple[str, ...]:
        """Limits that are reached."""
        return tuple(name for name, limit in self.limits.items() if self.taken[name] >= limit)

    def hold_back(self, actions: Actions) -> Actions:
        """Return the actions that the budget has room for, with all other stages and trials in ``held_back``.

        A trial that has begun continues until a limit of time or money is reached. New trials are kept in the plan's
        order up to the limit ``trials``, and stages only if one of the kept trials needs them.
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

    def begin(self, works: Collection[Work]) -> BudgetStatus:
        """Return the budget status after the trials among ``works`` have begun."""
        new = {work.signature for work in works if work.kind == "trial"} - self.begun
        taken = {**self.taken, "trials": self.taken["trials"] + len(new)}
        return replace(self, taken=taken, begun=self.begun | new)

    def count_held_back(self, *, interrupted: int, missing: int) -> int:
        """Return the number of incomplete trials that would not start if the study was run again."""
        if set(self.spent) - {"trials"}:
            return interrupted + missing
        if "trials" in self.limits:
            return max(0, missing - max(0, int(self.limits["trials"] - self.taken["trials"])))
        return 0

    def describe(self) -> str:
        """Return the amount taken of each limit in words: "3 of 10 trials, 0.25 of 2 GPU-hours"."""
        return ", ".join(
            f"{format_amount(self.taken[name])} of {format_amount(limit)} {BUDGET_UNITS[name]}"
            for name, limit in self.limits.items()
        )

    def as_json(self) -> dict[str, Any]:
        """Return the limits, the amount taken of each and the limits that are reached as JSON values."""
        return {"limits": dict(self.limits), "taken": dict(self.taken), "spent": list(self.spent)}


def format_amount(value: float) -> str:
    """Return a number as text with at most two decimals, or with one significant digit below 0.01."""
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def describe_needs(budget_status: BudgetStatus, needs: Mapping[str, float | None]) -> list[str]:
    """Return one line per limit: the amount taken, the estimate for the rest, and whether both fit together.

    Args:
        budget_status: limits and the amount taken of each.
        needs: limit → estimated amount still to be taken, None if it is unknown.
    """
    lines = []
    for name, limit in budget_status.limits.items():
        taken, more = budget_status.taken[name], needs[name]
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
    """Return limit → amount taken, with ``money`` only if a price is known."""
    hours = usage.gpu_seconds / 3600
    taken = {"trials": float(num_trials), "wall_hours": usage.wall_seconds / 3600, "gpu_hours": hours}
    return taken if price_per_gpu_hour is None else taken | {"money": hours * price_per_gpu_hour}


def describe_budget(budget: Budget | None, price_per_gpu_hour: float | None) -> dict[str, Any] | None:
    """Return a budget as ``plan.json`` stores it for the report, None if the study has no budget."""
    return None if budget is None else {"limits": budget.limits(), "price_per_gpu_hour": price_per_gpu_hour}
