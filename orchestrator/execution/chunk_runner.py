"""Run chunks of stages and trials in one slot, one after another, each in a fresh process.

A stage or trial whose process was lost is tried again. Independent of Ray: ``cluster.tune_executor.SlotActor`` is the
actor around a ``ChunkRunner``.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.execution.fork_client import ForkClient, ProcessLostError, make_command, make_socket_path
from orchestrator.execution.heartbeat import Heartbeat
from orchestrator.execution.shared_works import ELSEWHERE
from orchestrator.ledger.attempts import ATTEMPTS, AttemptLog, measure_headroom
from orchestrator.ledger.failures import DISK_FULL, HUNG, ORPHANED, OUT_OF_GPU_MEMORY, OUT_OF_MEMORY, SUPERSEDED
from orchestrator.ledger.lease import claimed, guarded
from orchestrator.ledger.record import begin_record
from trainables.errors import DiskFullError, SupersededError
from trainables.storage.claims import Claim, exchange_claim, find_claim, parse_claim, release_claim, take_claim
from trainables.storage.completeness import is_finished, is_stopped

#: Event of a trial that several processes have trained, and that a slot is to evaluate.
TRAINED = "trained"
#: Setting of ``execution`` that a process may be short of memory for.
EVALUATION_BATCH = "evaluation_batch_size"


class Client(Protocol):
    """Interface to what runs one request at a time for a slot, as ``ForkClient`` does."""

    def begin(self, request: Mapping[str, Any]) -> None: ...  # noqa: D102
    def next_event(self, timeout_seconds: float) -> dict[str, Any] | None: ...  # noqa: D102
    def kill(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class ChunkRunner:
    """Runs the chunks of one slot.

    A chunk is a list of ``works``, each ``{"record": content of config.json, "folder": …, "claims": …, "number": of the
    attempt, "encoder": … | None, "matching": … | None}``, with ``"holder"`` and ``"over"`` if several drivers share the
    study (``SharedWorks.describe``), and their common settings: ``execution``, ``token``,
    ``module`` and ``preload`` (which fork server), ``stall_seconds``, ``orphan_seconds``, ``max_retries``,
    ``chunk_seconds``, ``report_seconds``, ``created_ms``, ``lease``, and ``gpus``, which the slot holds.

    Args:
        chunk: first chunk.
        client: runs the stages and trials; None: the fork server of this node.
    """

    def __init__(self, chunk: dict[str, Any], *, client: Client | None = None) -> None:
        path = make_socket_path(chunk["token"])
        self._heartbeat = Heartbeat(path.with_suffix(f".{uuid.uuid4().hex[:8]}.heard"))
        #: Events that were read while nobody asked for them.
        self._unread: deque[dict[str, Any] | ProcessLostError] = deque()
        self._client = client or ForkClient(
            num_threads=chunk["execution"]["num_threads"],
            path=path,
            preload=chunk["preload"],
            command=make_command(chunk["module"]),
        )
        self.begin(chunk)

    def begin(self, chunk: dict[str, Any]) -> None:
        """Start the next chunk.

        A stage or trial that is complete already, or has failed since the chunk was made, is only reported.
        """
        self._chunk = chunk
        self._heartbeat.beat()
        self._pending = deque(chunk["works"])
        self._current: dict[str, Any] | None = None
        self._claim: Claim | None = None
        self._log: AttemptLog | None = None
        self._events: list[dict[str, Any]] = []
        self._unread.clear()
        self._tries, self._num_starved, self._is_evaluating, self._is_trained = 0, 0, False, False
        self._began = self._tried = self._last_event = 0.0
        self._taken = time.monotonic()
        self._until = self._taken + chunk["chunk_seconds"]

    @property
    def _early_stopping(self) -> bool:
        """Whether trials may be stopped while they run, or before they begin."""
        return bool(self._chunk["execution"]["early_stopping"])

    @property
    def is_done(self) -> bool:
        """Whether no stage or trial of the chunk is left."""
        return self._current is None and not self._pending

    def step(self) -> list[dict[str, Any]]:
        """Return the events since the last call, each with the signature of its stage or trial.

        ``begun``, ``started`` (a second one shows that a process was lost) and ``done`` are always returned, of the
        events between them at most the newest per stage or trial.
        ``returned`` marks a stage or trial that another slot should run, ``out of GPU memory`` one for a slot with a
        larger share of a GPU. ``busy_seconds`` of an event is how long the slot has had the chunk. Returns
        ``report_seconds`` after the call if there are events, after twice that if there are none, and at once when the
        chunk is done.
        """
        self._events = []
        self._heartbeat.beat()
        started, pause = time.monotonic(), self._chunk["report_seconds"]
        while not self.is_done:
            left = started + (pause if self._events else 2 * pause) - time.monotonic()
            if left <= 0:
                break
            self._return_unstarted()
            try:
                if self._current is None:
                    self._begin_next()
                else:
                    self._advance(min(left, pause))
            except DiskFullError as error:  # from writes of this slot; a trial reports its own
                self._end({"event": "done", "status": "failed", "reason": DISK_FULL, "message": str(error)})
            except SupersededError as error:
                self._end({"event": "done", "status": "failed", "reason": SUPERSEDED, "message": str(error)})
        busy_seconds = round(time.monotonic() - self._taken, 3)
        self._heartbeat.beat()
        return [{**event, "busy_seconds": busy_seconds} for event in self._events]

    def stop_after_current(self) -> None:
        """Make ``step`` give back the stages and trials that have not begun, as ``returned`` events."""
        self._until = 0.0

    def _return_unstarted(self) -> None:
        """Give back the stages and trials that have not begun in time, also while a long one runs."""
        if time.monotonic() > self._until and self._current is not None:
            self._return_all()

    def _return_all(self) -> None:
        self._events += [{"signature": work["record"]["signature"], "event": "returned"} for work in self._pending]
        self._pending.clear()

    def _report(self, event: dict[str, Any]) -> None:
        assert self._current is not None
        signature = self._current["record"]["signature"]
        last = self._events[-1] if self._events else {"signature": None}
        if last["signature"] == signature and last["event"] not in ("begun", "started", "scores"):
            self._events.pop()  # only the newest counts
        self._events.append({"signature": signature, **event})

    def _begin_next(self) -> None:
        work, self._log = self._pending.popleft(), None
        self._current = work
        self._folder = guarded(work["folder"], self._chunk["lease"])
        self._claims, self._claim = guarded(work["claims"], self._chunk["lease"]), None
        self._tries, self._num_starved, self._began = 0, 0, time.monotonic()
        self._tried = self._began
        ended = self._find_end()
        if ended is not None:
            found = find_claim(self._claims)  # an actor that was lost, or cut off, could not release it
            is_ours = found is not None and found.number <= work["number"] and not self._is_shared
            self._claim = found if is_ours else None
            self._end(ended)
            return
        if self._is_shared and not self._take_from_others():
            return
        if not self._is_shared:
            self._take_claim()
        begin_record(self._folder, work["record"], early_stopping=self._early_stopping)
        if self._early_stopping and is_stopped(self._folder):
            self._end({"event": "done", "status": "stopped_early"})
            return
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        place = {"host": os.uname().nodename, "devices": devices, "attempt": work["number"]}
        share = {"gpus": self._chunk["gpus"]} if self._chunk["gpus"] else {}
        self._log = AttemptLog(place | {"slot_pid": os.getpid()} | share)
        self._log.add("begun")
        self._report({"event": "begun", **place})
        self._try()

    @property
    def _is_shared(self) -> bool:
        """Whether several drivers share the study."""
        return self._current is not None and "holder" in self._current

    def _take_from_others(self) -> bool:
        """Acquire the first claim unless another driver has one, or has ended the work; return whether it is to run."""
        assert self._current is not None
        over = self._current["over"]
        self._claim = None if over is None else parse_claim(over)
        try:
            self._take_claim()
        except SupersededError:
            self._report({"event": ELSEWHERE})
            self._current = self._claim = None
            return False
        ended = self._find_end()  # between the look before and the claim
        if ended is not None:
            self._end(ended)
        return ended is None

    def _take_claim(self) -> None:
        """Acquire the claim for the next process, which ends the one before, also if it could not be killed."""
        assert self._current is not None
        number, holder = self._current["number"], self._current.get("holder")
        self._claim = (
            take_claim(self._claims, number, before=self._claim)
            if holder is None
            else exchange_claim(self._claims, self._claim, number, holder=holder)
        )
        self._folder = claimed(self._current["folder"], self._claims.uri, self._claim, self._chunk["lease"])

    def _find_end(self) -> dict[str, Any] | None:
        """Return the ``done`` event of a stage or trial that ended already, None if it did not.

        An earlier actor of this slot may have been lost before it reported the end.
        """
        whose = {ELSEWHERE: True} if self._is_shared else {}
        if is_finished(self._folder):
            return {"event": "done", "status": "complete"} | whose
        if self._folder.is_intact("failure.json"):
            failure = self._folder.read_json("failure.json")
            if failure["timestamp_ms"] > self._chunk["created_ms"]:
                said = {key: failure[key] for key in ("status", "reason", "message", "traceback")}
                return {"event": "done"} | said | whose
        return None

    def _try(self) -> None:
        assert self._current is not None
        self._tries += 1
        if self._tries > 1:
            self._take_claim()
        assert self._claim is not None
        self._is_evaluating = self._is_trained = False
        self._tried = self._last_event = time.monotonic()
        names = ("folder", "claims", "encoder", "matching")
        request = {name: self._current[name] for name in names} | {"claim": self._claim.name}
        shared = {"execution": self._shrink(), **{name: self._chunk[name] for name in ("lease", "orphan_seconds")}}
        self._client.begin(request | shared | {"heard": str(self._heartbeat.path)})

    def _shrink(self) -> dict[str, Any]:
        """Return the settings of the next process: half the images per batch in evaluation for each that had no memory.

        The number of images per batch is no part of a trial: its results are the same up to rounding.
        """
        execution = self._chunk["execution"]
        return {**execution, EVALUATION_BATCH: max(1, execution[EVALUATION_BATCH] >> self._num_starved)}

    def _advance(self, timeout_seconds: float) -> None:
        try:
            event = self._next_event(timeout_seconds)
            if event is None:
                self._check_stall()
                return
        except ProcessLostError as error:
            self._handle_loss(error)
            return
        self._last_event = time.monotonic()
        if event.get("reason") == ORPHANED:
            note = {**self._measure_attempt(), "host": os.uname().nodename, "orphaned": True}
            self._folder.append_line(ATTEMPTS, json.dumps({**note, "message": event["message"]}))
            self._note("lost", level="warning", message=event["message"])
            self._tries -= 1  # it was not at fault
            self._try()
        elif event["event"] == TRAINED:  # and the processes are about to end
            self._is_trained = True
        elif event["event"] == "done" and self._is_trained and event["status"] == "complete":
            self._note(TRAINED)
            self._give_back({"event": TRAINED})
        elif event["event"] == "done":
            attempt = self._measure_attempt()
            self._end({**self._verify(event), "attempt": attempt, "seconds": time.monotonic() - self._began})
        else:
            if event["event"] in ("started", "evaluation"):
                self._note(event["event"])
            self._is_evaluating = event["event"] == "evaluation"
            self._report(event)

    def _handle_loss(self, error: ProcessLostError) -> None:
        """Start the next process, give the stage or trial back for a larger share of a GPU, or end it as failed."""
        share = {"gpus": self._chunk["gpus"]} if error.reason == OUT_OF_GPU_MEMORY else {}
        note = {**self._measure_attempt(), "host": os.uname().nodename, **share, "message": str(error)}
        self._folder.append_line(ATTEMPTS, json.dumps(note))
        self._num_starved += error.reason in (OUT_OF_MEMORY, OUT_OF_GPU_MEMORY)
        self._note("lost", level="warning", message=str(error))
        may_retry = self._tries <= self._chunk["max_retries"]
        if self._needs_larger_share(error, may_retry=may_retry):
            self._give_back({"event": OUT_OF_GPU_MEMORY, "gpus": self._chunk["gpus"], "message": str(error)})
        elif may_retry:
            self._try()
        else:
            end = {"reason": error.reason, "message": str(error), "traceback": error.traceback}
            self._end({"event": "done", "status": "failed", **end})

    def _needs_larger_share(self, error: ProcessLostError, *, may_retry: bool) -> bool:
        """Return whether fewer trials on the GPU may help: it is shared, and smaller batches in evaluation do not."""
        is_shared = 0.0 < self._chunk["gpus"] < 1.0
        return error.reason == OUT_OF_GPU_MEMORY and is_shared and not (self._is_evaluating and may_retry)

    def _give_back(self, event: dict[str, Any]) -> None:
        assert self._claim is not None
        self._write_log()
        release_claim(self._claims, self._claim)
        self._report(event)
        self._current = self._claim = None

    def _next_event(self, timeout_seconds: float) -> dict[str, Any] | None:
        if not self._unread:
            return self._client.next_event(timeout_seconds)
        event = self._unread.popleft()
        if isinstance(event, ProcessLostError):
            raise event
        return event

    def disconnect_if_orphaned(self) -> None:
        """Disconnect from the fork server, which then ends, if nobody asks for events and the process has ended.

        Called while ``step`` is not; a later ``step`` goes on where the process has ended.
        """
        if self._current is None or self._heartbeat.silent_seconds() < self._chunk["orphan_seconds"]:
            return
        try:
            while (event := self._client.next_event(0.01)) is not None:
                self._unread.append(event)
                if event["event"] == "done":
                    self._client.close()
                    return
        except ProcessLostError as error:
            self._unread.append(error)
            self._client.close()

    def _measure_attempt(self) -> dict[str, Any]:
        """Return when the attempt that has just ended did so, in ms, and how many seconds it took."""
        return {"timestamp_ms": int(time.time() * 1000), "seconds": round(time.monotonic() - self._tried, 3)}

    def _verify(self, end: dict[str, Any]) -> dict[str, Any]:
        if end["status"] == "complete" and not is_finished(self._folder):
            message = f"its process ended well and left no good result.json in {self._folder.uri}"
            return {"event": "done", "status": "failed", "reason": "error", "message": message}
        return end

    def _end(self, event: dict[str, Any]) -> None:
        if event.get("reason") == SUPERSEDED:
            self._note_superseded(event["message"])
        elif self._claim is not None:
            has_failed = event["status"] == "failed"
            how = {"event": "failed", "level": "error"} if has_failed else {"event": "done"}
            has_run = self._log is not None and event["status"] == "complete"
            measured = measure_headroom(self._folder, self._chunk["gpus"]) if has_run else {}
            self._note(**how, message=event.get("message"), end=measured)
            self._write_log()
        if self._claim is not None and not self._is_kept(event) and event.get("reason") != SUPERSEDED:
            release_claim(self._claims, self._claim)
        self._report({**event, "host": os.uname().nodename})
        self._current = self._claim = None
        if event.get("reason") == DISK_FULL:
            self._return_all()  # the next one would end in the same way

    def _is_kept(self, event: Mapping[str, Any]) -> bool:
        """Return whether the driver releases the claim itself, once the ledger has the failure."""
        has_failed = event["status"] == "failed" and event.get("reason") != DISK_FULL
        return self._is_shared and has_failed and ELSEWHERE not in event

    def _note(self, event: str, **about: Any) -> None:
        """Add a line to the log of the attempt, if it has begun."""
        if self._log is not None:
            self._log.add(event, **about)

    def _write_log(self) -> None:
        if self._log is not None:
            self._log.write(self._folder)

    def _note_superseded(self, message: str) -> None:
        """Add the end of this attempt to the notes, which are the only file that several attempts write."""
        assert self._current is not None
        note = {**self._measure_attempt(), "host": os.uname().nodename, "superseded": self._current["number"]}
        folder = guarded(self._current["folder"], self._chunk["lease"])
        folder.append_line(ATTEMPTS, json.dumps({**note, "message": message}))

    def _check_stall(self) -> None:
        silent = time.monotonic() - self._last_event
        if silent > self._chunk["stall_seconds"]:
            self._client.kill()
            self._client.close()  # later events of the killed process belong to an attempt that is over
            raise ProcessLostError(
                f"no sign of life for {silent:.0f} s (execution.stall_minutes); the process was killed", reason=HUNG
            )

    def close(self) -> None:
        """Kill the running process, and disconnect from the fork server."""
        self._client.close()
        self._heartbeat.close()
