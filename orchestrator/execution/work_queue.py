"""Priority queue of open stages and trials with dependencies. Independent of Ray, processes and files."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from orchestrator.planning.works import Work

#: A slot that has had a chunk for this long returns the trials it has not begun. Dispatching costs some 0.2 s (Tune's
#: event loop), and a slot begins the next trial of its chunk at once; chunks of long trials have one trial in effect.
CHUNK_SECONDS = 20.0
#: Most stages and trials in a chunk: the chunk carries the ``config.json`` of each.
MAX_CHUNK = 64


class WorkQueue:
    """Open stages and trials by rank; each is ready once everything that it waits for is complete.

    Args:
        works: stages and trials, in the order of preference.
        complete: signatures that count as complete already.
        num_slots: how many chunks can run at once.
        is_joint: whether several processes train a stage or trial together, outside the slots.
    """

    def __init__(
        self,
        works: Sequence[Work],
        *,
        complete: Iterable[str],
        num_slots: int,
        is_joint: Callable[[Work], bool] = lambda work: False,
    ) -> None:
        self.num_slots, self._is_joint = num_slots, is_joint
        self._done = set(complete)
        self._works: dict[str, Work] = {}
        self._rank: dict[str, int] = {}
        self._missing: dict[str, set[str]] = {}
        self._dependants: dict[str, list[Work]] = defaultdict(list)
        self._ready: list[int] = []
        self._ready_joint: dict[str, list[int]] = {"stage": [], "trial": []}
        #: Signatures of trials that several processes have trained: slots evaluate them.
        self._trained: set[str] = set()
        self._order: list[Work] = []
        #: Signatures of what other drivers have, and of what was ready and is not handed out because of that.
        self._taken: frozenset[str] = frozenset()
        self._parked: set[str] = set()
        #: Signatures of what needs slots with a larger share of a GPU (``hold``).
        self._held: list[str] = []
        self._num_timed, self._seconds = 0, 0.0
        #: Number of open stages: the queue may hold 100,000 trials, and is asked several times a second.
        self._num_stages = 0
        #: Whether dispatching has ended (``close``).
        self.is_closed = False
        self.add(works)

    def add(self, works: Sequence[Work]) -> None:
        """Add stages and trials after all others in the order of preference.

        What they wait for is complete or queued.
        """
        for work in works:
            self._num_stages += work.kind == "stage" and work.signature not in self._works
            self._works[work.signature] = work
            self._rank[work.signature] = len(self._order)
            self._order.append(work)
            self._missing[work.signature] = set(work.waits_for) - self._done
            for need in self._missing[work.signature]:
                self._dependants[need].append(work)
            if not self._missing[work.signature]:
                self._push(work)

    def _push(self, work: Work) -> None:
        is_joint = self._is_joint(work) and work.signature not in self._trained
        heapq.heappush(self._ready_joint[work.kind] if is_joint else self._ready, self._rank[work.signature])

    @property
    def is_any_ready(self) -> bool:
        """Whether a slot would get a chunk."""
        return bool(self._ready)

    @property
    def joint_kinds(self) -> list[str]:
        """Kinds (stage, trial) of which something is ready that several processes train together."""
        return [kind for kind, ready in self._ready_joint.items() if ready]

    @property
    def is_finished(self) -> bool:
        """Whether every stage and trial has ended or can never start."""
        return not self._works

    @property
    def mean_seconds(self) -> float | None:
        """Mean duration of the trials that were timed, None before the first."""
        return self._seconds / self._num_timed if self._num_timed else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds for which all slots will be busy, None if a stage is open or no trial has been timed."""
        if self.mean_seconds is None or self._num_stages:
            return None
        return self.mean_seconds * len(self._works) / self.num_slots

    def get(self, signature: str) -> Work | None:
        """Return the stage or trial with a signature, None if it has ended."""
        return self._works.get(signature)

    def next_chunk(self) -> list[Work]:
        """Return the next chunk for one slot, in the order to run; empty if everything left waits or runs."""
        self._park_taken()
        if not self._ready:
            return []
        first = self._order[heapq.heappop(self._ready)]
        taken = [first]
        size = self._chunk_size()
        while first.kind == "trial" and len(taken) < size:
            self._park_taken()
            if not self._ready or self._order[self._ready[0]].kind != "trial":
                break  # trials wait for a stage, so it never waits in a chunk
            taken.append(self._order[heapq.heappop(self._ready)])
        return taken

    def _park_taken(self) -> None:
        """Remove what has ended, or is taken, elsewhere from the head of what is ready."""
        while self._ready:
            signature = self._order[self._ready[0]].signature
            if signature in self._works and signature not in self._taken:
                return
            heapq.heappop(self._ready)
            if signature in self._works:
                self._parked.add(signature)

    @property
    def works(self) -> list[Work]:
        """Stages and trials that have not ended, in the order of preference."""
        return list(self._works.values())

    def park(self, work: Work) -> None:
        """Put back a stage or trial that another driver turned out to have, until ``set_taken``."""
        self._taken |= {work.signature}
        self._parked.add(work.signature)

    def set_taken(self, signatures: Iterable[str]) -> None:
        """Set which stages and trials other drivers have: they are not handed out."""
        self._taken = frozenset(signatures)
        free = [self._works[signature] for signature in self._parked - self._taken if signature in self._works]
        self._parked &= self._taken
        for work in free:
            self._push(work)

    @property
    def is_any_held(self) -> bool:
        """Whether something is kept back (``hold``) and has not ended elsewhere."""
        return any(signature in self._works for signature in self._held)

    def hold(self, work: Work) -> None:
        """Keep back a stage or trial that a slot took, and that needs a larger share of a GPU."""
        self._held.append(work.signature)

    def release_held(self) -> int:
        """Hand out again everything that was kept back; return how many stages and trials."""
        works = [self._works[signature] for signature in self._held if signature in self._works]
        self._held.clear()
        self.put_back(works)
        return len(works)

    def next_joint(self, kind: str) -> list[Work]:
        """Return the next stage or trial that several processes train together; empty if none is ready."""
        ready = self._ready_joint[kind]
        return [self._order[heapq.heappop(ready)]] if ready else []

    def hand_over(self, work: Work) -> None:
        """Make a trial ready for a slot, which evaluates it: several processes have trained it."""
        self._trained.add(work.signature)
        self._push(work)

    def _chunk_size(self) -> int:
        """Return half a fair share of the ready stages and trials, so that all slots end at about the same time.

        At most what one slot begins within ``CHUNK_SECONDS``, once the mean duration is known.
        """
        fair = math.ceil((len(self._ready) + 1) / (2 * self.num_slots))
        mean = self.mean_seconds
        return min(fair, MAX_CHUNK, int(CHUNK_SECONDS / mean) + 1 if mean else MAX_CHUNK)

    def put_back(self, works: Iterable[Work]) -> None:
        """Put back stages and trials that a slot took and did not end."""
        for work in works:
            self._push(work)

    def complete(self, work: Work, *, seconds: float | None = None) -> None:
        """Mark ``work`` as complete, and make ready the stages and trials that waited only for it.

        Args:
            work: stage or trial that was taken before.
            seconds: duration, if its slot measured it; None otherwise.
        """
        if seconds is not None and work.kind == "trial":
            self._num_timed, self._seconds = self._num_timed + 1, self._seconds + seconds
        self._remove(work)
        self._done.add(work.signature)
        for dependant in self._dependants.pop(work.signature, ()):
            missing = self._missing[dependant.signature]
            missing.discard(work.signature)
            if not missing and dependant.signature in self._works:
                self._push(dependant)

    def close(self, running: Iterable[Work]) -> list[Work]:
        """Close the queue; return the stages and trials that will not start.

        Args:
            running: stages and trials that slots have taken; they may still complete.
        """
        before, self.is_closed = self._works, True
        self._works = {work.signature: work for work in running}
        self._num_stages = sum(work.kind == "stage" for work in self._works.values())
        self._ready.clear()
        for ready in self._ready_joint.values():
            ready.clear()
        self._parked.clear()
        self._held.clear()
        self._dependants.clear()
        return [work for work in before.values() if work.signature not in self._works]

    def drop(self, work: Work) -> list[Work]:
        """Remove a stage or trial that will not complete in this run; return those that can never start without it."""
        self._remove(work)
        lost: list[Work] = []
        gone = [work]
        while gone:  # what waits for a stage that can never start is lost, too
            waiting = [each for each in self._dependants.pop(gone.pop().signature, ()) if each.signature in self._works]
            for each in waiting:
                self._remove(each)
            lost += waiting
            gone += waiting
        return lost

    def _remove(self, work: Work) -> None:
        del self._works[work.signature]
        self._num_stages -= work.kind == "stage"
