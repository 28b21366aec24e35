"""Processes on a simulated clock. A process is a generator that yields the time until which it sleeps."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator

#: Yields the time until which it sleeps, or None: until it is woken.
Body = Generator[float | None, None, None]


class Process:
    """A running generator. ``turn`` counts its steps, so that a time which it no longer waits for is recognised."""

    __slots__ = ("body", "turn")

    def __init__(self, body: Body) -> None:
        self.body, self.turn = body, 0


class EventLoop:
    """Clock, and processes in the order of the times that they wait for; those of the same time in order of arrival."""

    def __init__(self) -> None:
        #: Seconds since the start.
        self.now = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Process, int]] = []
        #: Processes that wait to be woken, the one that has waited longest first.
        self._idle: dict[Process, None] = {}

    def start(self, body: Body) -> Process:
        """Start a process now, after those that are due now."""
        process = Process(body)
        self._schedule(process, self.now)
        return process

    def wake(self) -> None:
        """Wake the process that has waited longest, if any; it wakes the next one if there is enough for both."""
        if self._idle:
            process = next(iter(self._idle))
            del self._idle[process]
            self._schedule(process, self.now)

    def end(self, process: Process) -> None:
        """End a process wherever it is."""
        process.turn += 1
        self._idle.pop(process, None)
        process.body.close()

    def run(self, is_over: Callable[[], bool]) -> None:
        """Run the processes until ``is_over`` returns True after a step.

        Raises:
            RuntimeError: nothing is due any more, and it is not over.
        """
        while not is_over():
            if not self._due:
                raise RuntimeError(f"the simulation is stuck after {self.now:.0f} s: all processes wait for each other")
            at, _, process, turn = heapq.heappop(self._due)
            if turn == process.turn:
                self.now = at
                self._step(process)

    def _step(self, process: Process) -> None:
        process.turn += 1
        try:
            until = next(process.body)
        except StopIteration:
            return
        if until is None:
            self._idle[process] = None
        else:
            self._schedule(process, max(until, self.now))

    def _schedule(self, process: Process, at: float) -> None:
        heapq.heappush(self._due, (at, next(self._order), process, process.turn))
