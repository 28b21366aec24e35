"""Assign chunks of stages and trials to slots, and decide how each one ended. Independent of Ray and of processes.

A slot is an actor of Tune, or a thread of the local executor. It takes a chunk, reports its events, and is released.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from orchestrator.execution.chunk_settings import ChunkSettings, Requests
from orchestrator.execution.meter import Meter
from orchestrator.execution.shared_works import ELSEWHERE, SharedWorks
from orchestrator.execution.work_queue import CHUNK_SECONDS, WorkQueue
from orchestrator.ledger.failures import DISK_FULL, SUPERSEDED
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import describe_upstream
from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED, STOPPED
from orchestrator.planning.works import Work
from trainables.storage.completeness import is_finished, is_stopped

#: Called with ("started" | "event" | "ended", work, details), one call at a time: must be quick and never raise.
OnEvent = Callable[[str, Work, dict[str, Any]], None]

#: Trials are short if their mean duration is below this: local slots may then run beside the actors that replace them.
SHORT_SECONDS = 10.0
#: Message of a failure in another driver.
_SEE_THERE = "with another driver; the report says why"
#: Prefix of the names of local slots; the names of Tune's slots have letters and digits only.
_LOCAL = "own-"
#: The same of joint slots, each of which is several processes that train one stage or trial together.
_JOINT = "joint-"


class Dispatcher:
    """Dispatches open stages and trials, one chunk per slot, and decides how each one ended. Thread-safe.

    Args:
        work_queue: open stages and trials.
        ledger: folders that the slots read and write.
        settings: settings that every chunk carries.
        on_event: callback for every start, event and end.
        find_more: returns further stages and trials to run; called after every end; must not raise.
        meter: counts the time of the slots; nothing is dispatched once its budget is spent. None: no budget.
        shared: what other drivers have, if several share the study; None: this is the only one.
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
        shared: SharedWorks | None = None,
    ) -> None:
        self._queue, self._ledger, self._settings, self._on_event = work_queue, ledger, settings, on_event
        self._find_more, self._meter, self._shared = find_more, meter or Meter(), shared
        self._changed = threading.Condition(threading.RLock())
        #: Slot → its stages and trials that have not ended; the first is the one that runs.
        self._running: dict[str, list[Work]] = {}
        #: Slots that have reported an event.
        self._reported: set[str] = set()
        self._begun: set[str] = set()
        #: Signature → number of times that the slot which ran it was lost.
        self._losses: Counter[str] = Counter()
        self._requests = Requests(ledger, settings, shared)
        #: Hosts that are known to write where this driver reads.
        self._shares_storage: set[str] = set()
        self._has_successors = self._may_overlap = self._is_closed = False
        #: Prefix of slots → GPUs that each holds; the others hold what the meter says.
        self._gpus = {_JOINT: 0.0, _LOCAL: 0.0}

    @property
    def is_finished(self) -> bool:
        """Whether every stage and trial has ended or can never start."""
        with self._changed:
            return self._queue.is_finished

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the open stages and trials are done, None while too little is known."""
        with self._changed:
            return 0.0 if self._queue.is_closed else self._queue.seconds_left

    @property
    def num_slots(self) -> int:
        """Number of slots that may run at once."""
        return self._queue.num_slots

    def set_num_slots(self, number: int) -> None:
        """Set how many slots may run at once."""
        with self._changed:
            self._queue.num_slots = number

    def set_gpus(self, number: float, *, joint: float = 0.0, local: float = 0.0) -> None:
        """Set how many GPUs each of Tune's slots holds, each joint slot, and each local slot."""
        with self._changed:
            self._meter.gpus_per_slot, self._gpus = number, {_JOINT: joint, _LOCAL: local}

    def close(self) -> None:
        """Stop dispatching, and ignore further reports. Running slots are not stopped."""
        with self._changed:
            self._is_closed = True
            for slot in self._running:
                self._meter.end(slot)
            self._running.clear()

    def wait(self, seconds: float) -> None:
        """Wait until a slot has reported or was released, at most ``seconds``."""
        with self._changed:
            self._changed.wait(seconds)

    # ------------------------------------------------------------------ local slots

    def next_local_chunk(self, number: int) -> dict[str, Any] | None:
        """Return the next chunk for a local slot, None if nothing is ready or the slot should end."""
        with self._changed:
            if not self.may_continue(number):
                return None
            return self._next_chunk(f"{_LOCAL}{number}", self._queue.next_chunk)

    def report_local(self, number: int, events: Iterable[Mapping[str, Any]]) -> None:
        """Handle the events that a local slot reports (``report_events``)."""
        self.report_events(f"{_LOCAL}{number}", events)

    def release_local(self, number: int) -> None:
        """Remove a local slot (``release``)."""
        self.release(f"{_LOCAL}{number}")

    def expect_tune_slots(self, *, may_overlap: bool = True) -> None:
        """Replace the local slots by Tune's slots.

        Args:
            may_overlap: whether local slots continue, if trials are short (``SHORT_SECONDS``), until Tune's slots have
                reported; else they end after their current trial, and a slot of Tune waits for that.
        """
        with self._changed:
            self._has_successors, self._may_overlap = True, may_overlap

    def may_continue(self, number: int) -> bool:
        """Return whether a local slot should begin another stage or trial."""
        with self._changed:
            if not self._has_successors:
                return True
            return self._is_short() and len(self._reported - {f"{_LOCAL}{number}"}) < self._queue.num_slots

    def _is_short(self) -> bool:
        mean = self._queue.mean_seconds
        return self._may_overlap and mean is not None and mean < SHORT_SECONDS

    def _is_full(self) -> bool:
        """Return whether another slot has to wait for a local one to end, which may take long."""
        is_crowded = len(self._running) >= self._queue.num_slots and not self._is_short()
        return is_crowded and any(name.startswith(_LOCAL) for name in self._running)

    # ------------------------------------------------------------------ joint slots

    def has_joint(self, kind: str) -> bool:
        """Return whether a stage, or a trial, of several processes is ready or runs."""
        with self._changed:
            running = [works for slot, works in self._running.items() if slot.startswith(_JOINT)]
            return kind in self._queue.joint_kinds or any(work.kind == kind for works in running for work in works)

    @property
    def waits_for_joint(self) -> bool:
        """Whether all slots are idle until several processes have trained what is ready for them."""
        with self._changed:
            return self._is_idle() and bool(self._queue.joint_kinds)

    def _is_idle(self) -> bool:
        return not self._queue.is_any_ready and not any(self._running.values())

    def next_joint_chunk(self, number: int, kind: str) -> dict[str, Any] | None:
        """Return the next chunk for a joint slot, None if no stage, or trial, of several processes is ready."""
        with self._changed:
            return self._next_chunk(f"{_JOINT}{number}", partial(self._queue.next_joint, kind))

    def report_joint(self, number: int, events: Iterable[Mapping[str, Any]]) -> None:
        """Handle the events that a joint slot reports (``report_events``)."""
        self.report_events(f"{_JOINT}{number}", events)

    def release_joint(self, number: int) -> None:
        """Remove a joint slot (``release``)."""
        self.release(f"{_JOINT}{number}")

    # ------------------------------------------------------------------ all slots

    def next_chunk(self, slot: str) -> dict[str, Any] | None:
        """Return the next chunk for a slot of Tune (see ``ChunkRunner``).

        None if nothing is ready, or if a local slot has to end first.
        """
        with self._changed:
            return None if self._is_full() else self._next_chunk(slot, self._queue.next_chunk)

    def _next_chunk(self, slot: str, take: Callable[[], list[Work]]) -> dict[str, Any] | None:
        self._close_if_spent()
        works = [] if self._is_closed else take()
        if not works:
            return None
        self._running[slot] = works
        return {
            "works": [self._requests.describe(work) for work in works],
            "created_ms": int(time.time() * 1000) if self._shared is None else self._shared.since_ms,
            "chunk_seconds": min(CHUNK_SECONDS, self._meter.seconds_left()),
            "gpus": self._count_gpus(slot),
            **self._settings.as_json(),
        }

    def _close_if_spent(self) -> None:
        """Close the queue if the budget is spent. Stages and trials that run continue to their end."""
        if self._meter.seconds_left() > 0 or self._queue.is_closed:
            return
        held_back = self._queue.close(work for works in self._running.values() for work in works)
        for work in held_back:
            if work.signature in self._begun:  # begun in a slot that was lost
                self._on_event("ended", work, {"status": INTERRUPTED})
        if held_back:
            self._meter.on_spent(len(held_back))

    def report_events(self, slot: str, events: Iterable[Mapping[str, Any]]) -> None:
        """Handle the events that a slot reports (``ChunkRunner.step``)."""
        with self._changed:
            self._close_if_spent()
            for event in events:
                work = self._queue.get(event["signature"])
                if work is None or work not in self._running.get(slot, ()):
                    continue  # reported before its actor was lost
                self._reported.add(slot)
                self._meter.report(slot, gpus=self._count_gpus(slot), busy_seconds=event["busy_seconds"])
                self._handle_event(slot, work, dict(event))
            if not self._running.get(slot):
                self._meter.end(slot)  # the chunk is done
            self._changed.notify_all()

    def _count_gpus(self, slot: str) -> float:
        return next((gpus for kind, gpus in self._gpus.items() if slot.startswith(kind)), self._meter.gpus_per_slot)

    def _handle_event(self, slot: str, work: Work, event: dict[str, Any]) -> None:
        match event["event"]:
            case "begun":
                self._on_event("event" if work.signature in self._begun else "started", work, {**event, "slot": slot})
                self._begun.add(work.signature)
            case "returned":
                self._running[slot].remove(work)
                self._put_back(work)
            case "elsewhere":
                self._running[slot].remove(work)
                self._leave(work)
            case "out of GPU memory" | "trained" as kind:
                self._running[slot].remove(work)
                self._set_aside(work, event, self._queue.hand_over if kind == "trained" else self._queue.hold)
            case "done":
                self._running[slot].remove(work)
                details = self._determine_end(work, event)
                if self._shared is not None and details.get("reason") == SUPERSEDED:
                    self._leave(work)
                else:
                    self._end(work, details)
            case _:
                self._on_event("event", work, event)

    # ------------------------------------------------------------------ shares of a GPU

    @property
    def waits_for_share(self) -> bool:
        """Whether all that slots could run needs a larger share of a GPU than they hold (``release_held``)."""
        with self._changed:
            return self._is_idle() and self._queue.is_any_held

    def release_held(self) -> int:
        """Hand out again what had no GPU memory; return how many. The caller has set a larger share (``set_gpus``)."""
        with self._changed:
            return self._queue.release_held()

    # ------------------------------------------------------------------ other drivers

    def _leave(self, work: Work) -> None:
        """Leave a stage or trial to the driver that has taken it, until ``update`` tells what has become of it."""
        self._set_aside(work, {"event": ELSEWHERE}, self._queue.park)

    def _set_aside(self, work: Work, event: dict[str, Any], keep: Callable[[Work], None]) -> None:
        """Call ``keep`` with a stage or trial, or drop it if the queue is closed; report why if it had begun."""
        if work.signature in self._begun:
            self._begun.discard(work.signature)
            self._on_event("event", work, event)
        if self._queue.is_closed:
            self._queue.drop(work)
        else:
            keep(work)

    def list_waiting(self) -> list[Work]:
        """Return the stages and trials that have not ended and that no slot of this driver has."""
        with self._changed:
            running = {work.signature for works in self._running.values() for work in works}
            return [work for work in self._queue.works if work.signature not in running]

    def update(self, ended: Mapping[str, str], taken: Collection[str]) -> None:
        """Count what other drivers have ended (signature → state), and what they have now (signatures)."""
        with self._changed:
            for work in self.list_waiting():
                if work.signature in ended and self._queue.get(work.signature) is not None:
                    self._end(work, {"status": ended[work.signature], ELSEWHERE: True, "message": _SEE_THERE})
            self._queue.set_taken({work.signature for work in self.list_waiting()}.intersection(taken))
            self._changed.notify_all()

    def record_loss(self, slot: str) -> dict[str, int]:
        """Count that the actor of a slot was lost. Another actor runs the same chunk again.

        Returns:
            Signature → number of the next attempt, for the other actor: the lost one may be alive, and only cut off.
        """
        with self._changed:
            self._meter.end(slot)  # until the next actor reports
            works = self._running.get(slot, ())
            self._losses.update(work.signature for work in works[:1])
            return {work.signature: self._requests.count_attempt(work) for work in works}

    def release(self, slot: str, *, error: Callable[[], dict[str, str]] | None = None) -> None:
        """Remove a slot; end or put back the rest of its chunk.

        There is a rest only if the slot was stopped, or lost too often.

        Args:
            slot: name of a slot that ends, or will take another chunk.
            error: returns reason, message and traceback of the loss; None if the slot was not lost.
        """
        with self._changed:
            left = self._running.pop(slot, [])
            self._reported.discard(slot)
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
        """Put a stage or trial back into the queue for another slot, or drop it if the queue is closed."""
        if self._queue.is_closed:
            self._drop(work)
        else:
            self._queue.put_back([work])

    def _drop(self, work: Work) -> None:
        """Remove an interrupted stage or trial from the queue; report it as interrupted only if it had begun."""
        if work.signature in self._begun:
            self._end(work, {"status": INTERRUPTED})
        else:
            self._queue.drop(work)

    def _determine_end(self, work: Work, event: dict[str, Any]) -> dict[str, Any]:
        """Return how a stage or trial ended: as its slot reports, unless the disk was full or the ledger disagrees."""
        if event.get("reason") == SUPERSEDED:
            is_complete = is_finished(self._ledger.folder(work.kind, work.signature))
            return {"status": COMPLETE} if is_complete else {**event, "status": INTERRUPTED}
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
        if self._shared is not None and details["status"] == FAILED:
            self._shared.release(work.signature)  # now that the ledger has the failure
        if details["status"] == COMPLETE:
            self._queue.complete(work, seconds=details.get("seconds"))
        else:
            for dependant in self._queue.drop(work):
                if details["status"] == FAILED:
                    said = {ELSEWHERE: True} if ELSEWHERE in details else {}
                    self._on_event("ended", dependant, describe_upstream(work) | said)
        if not self._queue.is_closed:
            self._queue.add(self._find_more())
