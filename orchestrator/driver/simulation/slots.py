"""A slot of a simulation: runs the stages and trials of a chunk in turn, and reports as ``ChunkRunner`` does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.driver.simulation.cluster import Overheads
from orchestrator.driver.simulation.durations import Draw
from orchestrator.driver.simulation.event_loop import Body, EventLoop
from orchestrator.driver.simulation.outcome import Trace
from orchestrator.planning.states import COMPLETE, STOPPED
from orchestrator.planning.works import Work

#: Events that are all reported; of those between them only the newest (``ChunkRunner.step``).
_KEPT = ("begun", "returned", "done")


@dataclass
class Hooks:
    """Additions of a study to the course of its trials."""

    #: Returns whether a trial is to stop; called before each epoch.
    is_stopped: Callable[[Work], bool] = lambda work: False
    #: Returns the event of an epoch of a trial that has just ended. None: epochs are not reported.
    end_epoch: Callable[[Work, int, float], dict[str, Any]] | None = None
    #: Called when a stage or trial has its result, before its end is reported.
    finish: Callable[[Work, str], None] = lambda work, host: None


@dataclass
class World:
    """State that all slots of a simulation share."""

    loop: EventLoop
    draw: Draw
    overheads: Overheads
    hooks: Hooks
    trace: Trace = field(default_factory=Trace)
    #: Signature → seconds of its work that its last checkpoint has saved.
    saved: dict[str, float] = field(default_factory=dict)
    #: Signatures that have their result, whether or not the driver knows.
    finished: set[str] = field(default_factory=set)
    #: Seconds that have contributed to results, and seconds that were lost since the last checkpoint.
    useful: float = 0.0
    lost: float = 0.0
    #: Seconds during which Tune's loop has handled messages, and when it is free again.
    driver_busy: float = 0.0
    driver_free_at: float = 0.0

    def serve(self, latency: float = 0.0) -> float:
        """Return when Tune's loop, which handles one message after another, has handled one more."""
        seconds = self.overheads.message
        self.driver_free_at = max(self.driver_free_at, self.loop.now) + seconds
        self.driver_busy += seconds
        return self.driver_free_at + latency


class Runner:
    """A chunk, and the slots that run it one after another if they are lost.

    Args:
        world: what all slots share.
        name: name of the slot for the dispatcher.
        content: chunk of the dispatcher.
        works: its stages and trials.
        report: passes events to the dispatcher.
        pause: seconds between two reports.
        is_tune: whether Tune's loop handles the reports.
    """

    def __init__(
        self,
        world: World,
        content: Mapping[str, Any],
        works: Sequence[Work],
        report: Callable[[list[dict[str, Any]]], None],
        *,
        pause: float,
        is_tune: bool,
    ) -> None:
        self._world, self._seconds, self._report = world, content["chunk_seconds"], report
        self._pause, self._is_tune = pause, is_tune
        #: Stages and trials that the dispatcher has not heard the end of, in the order to run.
        self.left = list(works)
        #: How often a slot that ran it was lost.
        self.num_losses = 0
        #: Signature of the stage or trial that ran last.
        self.last: str | None = None
        self._begin("")

    def _begin(self, host: str) -> None:
        now = self._world.loop.now
        self._host, self._taken, self._step_began, self._until = host, now, now, now + self._seconds
        self._pending: deque[Work] = deque(self.left)
        self._events: list[dict[str, Any]] = []
        self._due = math.inf
        self._current: Work | None = None
        self._tried: float | None = None

    def run(self, host: str, *, last: str | None, may_continue: Callable[[], bool] = lambda: True) -> Body:
        """Run what is left; nothing is left afterwards.

        Args:
            host: name of the node.
            last: signature of what ran in this place before, for the critical path.
            may_continue: whether the slot should begin another stage or trial after a report.
        """
        self._begin(host)
        self.last, self._may_continue = last, may_continue
        while self._pending:
            work = self._current = self._pending.popleft()
            self._world.trace.begin(work, self._world.loop.now, before=self.last)
            yield from self._run_work(work)
            self.last, self._current, self._tried = work.signature, None, None
        yield from self._send()

    def lose(self) -> bool:
        """Count the loss of the slot now; return whether an attempt was lost with it."""
        self.num_losses += 1
        work, world = self._current, self._world
        if work is None or self._tried is None or work.signature in world.finished:
            return False
        done = world.saved.get(work.signature, 0.0) + world.loop.now - self._tried
        saved = self._round_down(work, done)
        world.lost += done - saved
        world.saved[work.signature] = saved
        self._tried = None
        return True

    def _round_down(self, work: Work, done: float) -> float:
        """Return the seconds of work that the last checkpoint has saved, one after every epoch."""
        epochs, share = self._world.draw.epochs(work)
        each = self._world.draw(work) * share / epochs
        return min(math.floor(done / each + 1e-9), epochs) * each

    # ------------------------------------------------------------------ stages and trials

    def _run_work(self, work: Work) -> Body:
        world, began = self._world, self._world.loop.now
        if work.signature in world.finished:  # its node was lost before it could say so
            world.hooks.finish(work, self._host)
            self._add(work, {"event": "done", "status": COMPLETE, "host": self._host})
            return
        if world.hooks.is_stopped(work):
            self._add(work, {"event": "done", "status": STOPPED, "host": self._host})
            return
        self._add(work, {"event": "begun"})
        yield from self._wait(began + world.overheads.per_trial)
        self._tried = world.loop.now
        zero = self._tried - world.saved.get(work.signature, 0.0)
        if world.hooks.end_epoch is not None and work.kind == "trial":
            yield from self._run_epochs(work, zero)
            if work.signature in world.finished:
                return
        yield from self._wait(zero + world.draw(work))
        world.useful += world.draw(work)
        world.finished.add(work.signature)
        world.hooks.finish(work, self._host)
        seconds = world.loop.now - began
        self._add(work, {"event": "done", "status": COMPLETE, "host": self._host, "seconds": seconds})

    def _run_epochs(self, work: Work, zero: float) -> Body:
        """Train epoch by epoch; a trial that is stopped counts as finished."""
        world = self._world
        assert world.hooks.end_epoch is not None
        epochs, share = world.draw.epochs(work)
        each = world.draw(work) * share / epochs
        for epoch in range(round(world.saved.get(work.signature, 0.0) / each) + 1, epochs + 1):
            if world.hooks.is_stopped(work):
                world.useful += (epoch - 1) * each
                world.finished.add(work.signature)
                self._add(work, {"event": "done", "status": STOPPED, "host": self._host})
                return
            yield from self._wait(zero + epoch * each)
            world.saved[work.signature], self._tried = epoch * each, zero + epoch * each
            self._add(work, world.hooks.end_epoch(work, epoch, epoch / epochs))

    # ------------------------------------------------------------------ reports

    def _add(self, work: Work, event: dict[str, Any]) -> None:
        if self._events and self._events[-1]["event"] not in _KEPT:
            self._events.pop()
        if not self._events:  # a step without events takes twice as long
            silent, now = 2 * self._pause, self._world.loop.now
            began = self._step_began + silent * math.floor((now - self._step_began) / silent)
            self._due = max(now, began + self._pause)
        self._events.append({"signature": work.signature, **event})

    def _wait(self, until: float) -> Body:
        """Wait, and report and give back what is due meanwhile."""
        loop = self._world.loop
        while True:
            give_back = self._until if self._pending else math.inf
            at = min(until, self._due, give_back)
            if at > loop.now:
                yield at
            if at == until:
                return
            if at == give_back:
                self._give_back()
            else:
                yield from self._send()

    def _give_back(self) -> None:
        for work in self._pending:
            self._add(work, {"event": "returned"})
        self._pending.clear()

    def _send(self) -> Body:
        if self._is_tune:
            yield self._world.serve()
        busy_seconds = self._world.loop.now - self._taken
        events = [{**event, "busy_seconds": busy_seconds} for event in self._events]
        gone = {event["signature"] for event in events if event["event"] in ("returned", "done")}
        self.left = [work for work in self.left if work.signature not in gone]
        self._events, self._due, self._step_began = [], math.inf, self._world.loop.now
        self._report(events)
        self._world.loop.wake()  # for what has become ready
        if not self._may_continue():
            self._until = 0.0
