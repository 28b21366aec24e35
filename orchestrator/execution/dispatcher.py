"""Where slots get their work and say what became of it, whoever runs them: Tune's actors, or threads of the driver.

A slot takes a chunk of works, tells its events, and is released. Everything is said to one listener. Knows nothing of
Ray and of processes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.execution.meter import Meter
from orchestrator.execution.work_queue import CHUNK_SECONDS, WorkQueue
from orchestrator.ledger.failures import DISK_FULL
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import describe_upstream
from orchestrator.planning.plan import Work
from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED, STOPPED
from trainables.storage.completeness import is_finished, is_stopped

#: Called with ("started" | "event" | "ended", work, details), one call at a time: must be quick and never raise.
OnEvent = Callable[[str, Work, dict[str, Any]], None]

#: A slot of the driver works on beside the actor that is about to replace it if its work will be over this soon.
SHORT_SECONDS = 10.0
#: How the names of the driver's own slots begin; Tune's have letters and digits only.
_LOCAL = "own-"


@dataclass(frozen=True)
class ChunkSettings:
    """What the slots of a run have to know."""

    #: ``trainables.config.Execution`` as JSON.
    execution: dict[str, Any]
    #: Names the fork servers of this run.
    token: str
    #: Module that starts one: ``python -m MODULE``.
    module: str
    #: What they import.
    preload: tuple[str, ...]
    max_retries: int
    stall_seconds: float
    #: Work → content of its ``config.json``.
    describe: Callable[[Work], dict[str, Any]]
    #: ``Lease.ticket`` of the driver: without it nothing is written. None: there is no lease.
    lease: Mapping[str, str] | None = None


class Dispatcher:
    """Hands out open work, a chunk per slot, and judges how each work ended. May be called from any thread.

    Args:
        work_queue: what is to be done.
        ledger: where the slots find and leave everything.
        settings: what they have to know.
        on_event: told of every start, event and end.
        find_more: asked after every end for works that have come up; must not raise.
        meter: counts the time of the slots; when the budget is spent nothing more is handed out. None: no budget.
    """

    def __init__(
        self,
        work_queue: WorkQueue,
        *,
        ledger: Ledger,
        settings: ChunkSettings,
        on_event: OnEvent,
        find_more: Callable[[], Sequence[Work]] = tuple,
        meter: Meter | None = None,
    ) -> None:
        self._open, self._ledger, self._settings, self._on_event = work_queue, ledger, settings, on_event
        self._find_more, self._meter = find_more, meter or Meter()
        self._changed = threading.Condition(threading.RLock())
        #: Slot → its works that have not ended; the first is the one that runs.
        self._running: dict[str, list[Work]] = {}
        #: Slots that have told of a work.
        self._at_work: set[str] = set()
        self._begun: set[str] = set()
        #: Signature → how often the slot was lost that ran it.
        self._losses: Counter[str] = Counter()
        #: Machines that are known to write where this driver reads.
        self._shares_storage: set[str] = set()
        self._has_successors = self._may_overlap = self._is_closed = False

    @property
    def is_finished(self) -> bool:
        """Whether every work has ended or can never start."""
        with self._changed:
            return self._open.is_finished

    @property
    def seconds_left(self) -> float | None:
        """How long the open works will take, None when too little is known."""
        with self._changed:
            return 0.0 if self._open.is_closed else self._open.seconds_left

    def set_num_slots(self, number: int) -> None:
        """Say how many slots may be at work at once."""
        with self._changed:
            self._open.num_slots = number

    def set_gpus(self, number: float) -> None:
        """Say how many GPUs each of Ray's slots holds; the driver's own hold none."""
        with self._changed:
            self._meter.gpus_per_slot = number

    def close(self) -> None:
        """Hand out nothing and listen to nobody any more: whoever still works is left alone."""
        with self._changed:
            self._is_closed = True
            for slot in self._running:
                self._meter.end(slot)
            self._running.clear()

    def wait(self, seconds: float) -> None:
        """Return when a slot has told something, after ``seconds`` at the latest."""
        with self._changed:
            self._changed.wait(seconds)

    # ------------------------------------------------------------------ the driver's own slots

    def take_local(self, number: int) -> dict[str, Any] | None:
        """Return the next chunk of the driver's ``number``-th slot, as ``take`` does."""
        with self._changed:
            return self._take(_local_name(number)) if self.may_continue(number) else None

    def report_local(self, number: int, events: Iterable[Mapping[str, Any]]) -> None:
        """As ``tell``."""
        self.report_events(_local_name(number), events)

    def release_local(self, number: int) -> None:
        """As ``release``."""
        self.release(_local_name(number))

    def expect_tune_slots(self, *, may_overlap: bool = True) -> None:
        """Let Tune's slots replace the driver's own, one by one, as soon as they are at work.

        Args:
            may_overlap: for the rest of a short trial both may be at work; else the first has to end before.
        """
        with self._changed:
            self._has_successors, self._may_overlap = True, may_overlap

    def may_continue(self, number: int) -> bool:
        """Return whether one of the driver's own slots should begin another work."""
        with self._changed:
            if not self._has_successors:
                return True
            return self._is_short() and len(self._at_work - {_local_name(number)}) < self._open.num_slots

    def _is_short(self) -> bool:
        mean = self._open.mean_seconds
        return self._may_overlap and mean is not None and mean < SHORT_SECONDS

    def _is_full(self) -> bool:
        """Whether another slot would have to wait for one of the driver's own, and that may take long."""
        own = [name for name in self._running if name.startswith(_LOCAL)]
        return bool(own) and not self._is_short() and len(self._running) >= self._open.num_slots

    # ------------------------------------------------------------------ all slots

    def take(self, slot: str) -> dict[str, Any] | None:
        """Return the next chunk for a slot (see ``slot.ChunkRunner``), None when nothing is ready."""
        with self._changed:
            return None if self._is_full() else self._take(slot)

    def _take(self, slot: str) -> dict[str, Any] | None:
        self._close_if_spent()
        works = [] if self._is_closed else self._open.take()
        if not works:
            return None
        self._running[slot] = works
        return {
            "works": [self._request(work) for work in works],
            "created_ms": int(time.time() * 1000),
            "execution": self._settings.execution,
            "token": self._settings.token,
            "module": self._settings.module,
            "preload": self._settings.preload,
            "max_retries": self._settings.max_retries,
            "stall_seconds": self._settings.stall_seconds,
            "chunk_seconds": min(CHUNK_SECONDS, self._meter.seconds_left()),
            "lease": self._settings.lease,
        }

    def _request(self, work: Work) -> dict[str, Any]:
        return {
            "record": self._settings.describe(work),
            "folder": self._ledger.folder(work.kind, work.signature).uri,
            "encoder": self._ledger.folder("stage", work.needs[0]).uri if work.needs else None,
        }

    def _close_if_spent(self) -> None:
        """Hand out nothing any more when the budget is spent; what runs goes on to its end."""
        if self._meter.seconds_left() > 0 or self._open.is_closed:
            return
        held_back = self._open.close(work for works in self._running.values() for work in works)
        for work in held_back:
            if work.signature in self._begun:  # and was lost
                self._on_event("ended", work, {"status": INTERRUPTED})
        if held_back:
            self._meter.on_spent(len(held_back))

    def report_events(self, slot: str, events: Iterable[Mapping[str, Any]]) -> None:
        """Take what a slot has to say (``slot.ChunkRunner.step``)."""
        with self._changed:
            self._close_if_spent()
            for event in events:
                work = self._open.get(event["signature"])
                if work is None or work not in self._running.get(slot, ()):
                    continue  # told before its actor was lost
                self._at_work.add(slot)
                gpus = 0.0 if slot.startswith(_LOCAL) else self._meter.gpus_per_slot
                self._meter.report(slot, gpus=gpus, busy_seconds=event["busy_seconds"])
                self._take_event(slot, work, dict(event))
            if not self._running.get(slot):
                self._meter.end(slot)  # the chunk is done
            self._changed.notify_all()

    def _take_event(self, slot: str, work: Work, event: dict[str, Any]) -> None:
        match event["event"]:
            case "begun":
                if work.signature not in self._begun:
                    self._begun.add(work.signature)
                    self._on_event("started", work, {})
            case "returned":
                self._running[slot].remove(work)
                self._put_back(work)
            case "done":
                self._running[slot].remove(work)
                self._end(work, self._judge(work, event))
            case _:
                self._on_event("event", work, event)

    def record_loss(self, slot: str) -> None:
        """Remember that the actor of a slot was lost; another one carries the same chunk out."""
        with self._changed:
            self._meter.end(slot)  # until the next one is at work
            self._losses.update(work.signature for work in self._running.get(slot, ())[:1])

    def release(self, slot: str, *, error: Callable[[], dict[str, str]] | None = None) -> None:
        """Settle what is left of a chunk: nothing, unless the slot was stopped or lost too often.

        Args:
            slot: takes no part any more, or will take another chunk.
            error: if it was lost: reason, message and traceback of that.
        """
        with self._changed:
            left = self._running.pop(slot, [])
            self._at_work.discard(slot)
            self._meter.end(slot)
            for number, work in enumerate(left):
                if is_finished(self._ledger.folder(work.kind, work.signature)):
                    self._end(work, {"status": COMPLETE})  # whatever happened to the slot afterwards
                elif self._may_stop(work) and is_stopped(self._ledger.folder(work.kind, work.signature)):
                    self._end(work, {"status": STOPPED})
                elif error is None:
                    self._drop(work)
                elif number == 0 and self._losses[work.signature] >= self._settings.max_retries:
                    self._end(work, {"status": FAILED, "losses": self._losses[work.signature] + 1, **error()})
                else:
                    self._losses[work.signature] += number == 0
                    self._put_back(work)
            self._changed.notify_all()

    def _may_stop(self, work: Work) -> bool:
        return work.kind == "trial" and bool(self._settings.execution["early_stopping"])

    def _put_back(self, work: Work) -> None:
        """Let another slot do a work, unless nothing is handed out any more."""
        if self._open.is_closed:
            self._drop(work)
        else:
            self._open.put_back([work])

    def _drop(self, work: Work) -> None:
        """Let go of a work that was stopped; of one that had not begun there is nothing to be told."""
        if work.signature in self._begun:
            self._end(work, {"status": INTERRUPTED})
        else:
            self._open.drop(work)

    def _judge(self, work: Work, event: dict[str, Any]) -> dict[str, Any]:
        """Return how a work ended: what its slot says, if that is what lies in the ledger."""
        if event.get("reason") == DISK_FULL:
            return {**event, "status": INTERRUPTED}
        if event["status"] != COMPLETE or event["host"] in self._shares_storage:
            return event
        folder = self._ledger.folder(work.kind, work.signature)
        if not is_finished(folder):
            message = f"{event['host']} finished, and there is no good result.json in {folder.uri}: "
            return {"status": FAILED, "reason": "error", "message": message + "is this storage shared by all machines?"}
        self._shares_storage.add(event["host"])
        return event

    def _end(self, work: Work, details: dict[str, Any]) -> None:
        self._on_event("ended", work, details)
        if details["status"] == COMPLETE:
            self._open.complete(work, seconds=details.get("seconds"))
        else:
            for dependant in self._open.drop(work):
                if details["status"] == FAILED:
                    self._on_event("ended", dependant, describe_upstream(work))
        if not self._open.is_closed:
            self._open.add(self._find_more())


def _local_name(number: int) -> str:
    return f"{_LOCAL}{number}"
