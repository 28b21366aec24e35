"""Outcome of one simulated run, and the way through stages, trials and slots that decided how long it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.planning.works import Work


@dataclass(frozen=True)
class Step:
    """One stage or trial on the critical path."""

    kind: str
    label: str
    #: Seconds from its first start to its end, lost attempts included.
    seconds: float
    #: Whether it waited for the step before because it is built on it; otherwise it waited for its slot.
    is_built_on: bool


@dataclass(frozen=True)
class Outcome:
    """One simulated run. Seconds unless a name says otherwise."""

    #: From the start of ``run`` until the last stage or trial has ended; without the report.
    makespan: float
    #: Seconds that have contributed to results, over all slots.
    useful: float
    #: Seconds of attempts that were lost with their node, since their last checkpoint.
    lost: float
    #: Slot seconds until the end, of nodes that were up.
    available: float
    node_hours: float
    gpu_hours: float
    complete: int
    failed: int
    stopped_early: int
    #: Stages and trials that did not start because the budget was spent.
    held_back: int
    #: Nodes that were lost, and attempts that were lost with them.
    nodes_lost: int
    attempts_lost: int
    #: Chunks that were handed out.
    chunks: int
    #: Share of the time during which Tune's loop was busy; 0 if the driver's own slots did everything.
    driver_busy: float
    #: How long after the last end MLflow has everything.
    tracking_behind: float
    #: Longest chain of stages and a trial, each with its own time: no cluster is faster.
    longest_chain: float
    path: tuple[Step, ...] = ()

    @property
    def utilisation(self) -> float:
        """Share of the slots' time that has contributed to results."""
        return self.useful / self.available if self.available else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the fields and the utilisation as JSON values."""
        return asdict(self) | {"utilisation": self.utilisation}


@dataclass
class Trace:
    """Times and places at which every stage and trial ran."""

    #: Signature → stage or trial, of all that have begun.
    works: dict[str, Work] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    #: Signature → the one that ran in the same slot before.
    before: dict[str, str | None] = field(default_factory=dict)

    def begin(self, work: Work, now: float, *, before: str | None) -> None:
        """Record the first start of a stage or trial."""
        if work.signature not in self.began:
            self.works[work.signature] = work
            self.began[work.signature], self.before[work.signature] = now, before

    def find_path(self) -> tuple[Step, ...]:
        """Return the critical path: from the last end back to what it waited for, stage or slot."""
        if not self.ended:
            return ()
        steps: list[Step] = []
        current: str | None = max(self.ended, key=self.ended.__getitem__)
        while current is not None:
            work = self.works[current]
            needs = [need for need in work.waits_for if need in self.ended]
            built_on = max(needs, key=self.ended.__getitem__, default=None)
            before = self.before[current]
            waited = built_on if self._end(built_on) >= self._end(before) else before
            seconds = self.ended[current] - self.began[current]
            steps.append(Step(work.kind, work.label, seconds, built_on is not None and waited == built_on))
            current = waited
        return tuple(reversed(steps))

    def find_longest_chain(self, find_seconds: Callable[[Work], float]) -> float:
        """Return the seconds of the longest way from a stage that nothing waits before to a trial, waiting aside."""
        ends: dict[str, float] = {}
        for work in sorted(self.works.values(), key=lambda work: (work.kind != "stage", len(work.needs))):
            before = max((ends.get(need, 0.0) for need in work.waits_for), default=0.0)
            ends[work.signature] = before + find_seconds(work)
        return max(ends.values(), default=0.0)

    def _end(self, signature: str | None) -> float:
        return -1.0 if signature is None else self.ended.get(signature, -1.0)
