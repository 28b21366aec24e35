"""Which stages and trials run where, how many have ended and how: kept from the dispatcher's events."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.execution.shared_works import ELSEWHERE
from orchestrator.ledger.failures import OUT_OF_GPU_MEMORY
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, INTERRUPTED, STOPPED
from orchestrator.planning.works import Work
from trainables.config import TrialConfig

#: State in this display of what a slot has begun and not ended.
RUNNING = "running"
#: State in the ledger → its name in counts, which are those of ``robustsweep status``.
_NAMES = {
    COMPLETE: "complete",
    FAILED: "failed",
    STOPPED: "stopped_early",
    INTERRUPTED: "interrupted",
    ABSENT: "missing",
    RUNNING: "running",
}
#: Number of failures that a snapshot lists, the latest, and of characters of the message of each.
MAX_FAILURES, MAX_MESSAGE = 10, 300


@dataclass
class RunningWork:
    """A stage or trial that a slot runs."""

    signature: str
    kind: str
    label: str
    #: Machine, slot, and the devices that are visible to it (``CUDA_VISIBLE_DEVICES``), as far as they are known.
    host: str | None
    slot: str | None
    devices: str | None
    #: Number of the attempt, from 1.
    attempt: int | None
    since_ms: int
    epochs: int
    epoch: int = 0
    phase: str = "starting"


class LiveState:
    """State of a running study. Thread-safe; a handler of events like the dispatcher's others.

    Args:
        works: all planned stages and trials.
        states: signature → state in the ledger before the run.
        num_to_come: number of trials that a search has yet to propose.
        clock: returns the time in seconds since 1970.
    """

    def __init__(
        self,
        works: Sequence[Work],
        states: Mapping[str, str],
        *,
        num_to_come: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lock, self._clock, self._num_to_come = threading.Lock(), clock, num_to_come
        self._states = {work.signature: states.get(work.signature, ABSENT) for work in works}
        self._counts: dict[str, Counter[str]] = {"stage": Counter(), "trial": Counter()}
        for work in works:
            self._counts[work.kind][self._states[work.signature]] += 1
        self._running: dict[str, RunningWork] = {}
        self._failures: deque[dict[str, Any]] = deque(maxlen=MAX_FAILURES)
        self._reasons: Counter[str] = Counter()
        self._num_lost = 0

    def handle(self, what: str, work: Work, details: Mapping[str, Any]) -> None:
        """Process an event of a stage or trial (``dispatcher.OnEvent``)."""
        with self._lock:
            if what == "started":
                self._begin(work, details)
            elif what == "event":
                self._advance(work, details)
            else:
                self._end(work, details)

    def _begin(self, work: Work, details: Mapping[str, Any]) -> None:
        config = work.config
        epochs = config.training.total_epochs if isinstance(config, TrialConfig) else config.pretraining.epochs
        self._running[work.signature] = RunningWork(
            work.signature,
            work.kind,
            work.label,
            host=details.get("host"),
            slot=details.get("slot"),
            devices=details.get("devices"),
            attempt=details.get("attempt"),
            since_ms=self._now_ms(),
            epochs=epochs,
        )
        self._set(work, RUNNING)

    def _advance(self, work: Work, event: Mapping[str, Any]) -> None:
        row = self._running.get(work.signature)
        if row is None:
            return
        match event.get("event"):
            case "begun":  # in another slot, after the first one was lost
                self._num_lost += 1
                self._begin(work, event)
            case "started":
                self._num_lost += row.phase != "starting"
                row.phase = "training"
            case "epoch":
                row.epoch, row.phase = event["epoch"], "training"
            case "evaluation":
                row.phase = f"evaluating {event['done']}/{event['total']}"
            # Another driver has taken it, it waits for a larger share, or for a slot that evaluates it.
            case "elsewhere" | "out of GPU memory" | "trained" as kind:
                self._num_lost += kind == OUT_OF_GPU_MEMORY
                del self._running[work.signature]
                self._set(work, INTERRUPTED)

    def _end(self, work: Work, details: Mapping[str, Any]) -> None:
        row = self._running.pop(work.signature, None)
        self._set(work, details["status"])
        if details["status"] != FAILED or ELSEWHERE in details:  # another driver counts its own
            return
        reason = str(details["reason"])
        self._reasons[reason] += 1
        if reason != "upstream":  # of which there may be hundreds, for one stage
            self._failures.append(
                {
                    "timestamp_ms": self._now_ms(),
                    "signature": work.signature,
                    "label": work.label,
                    "host": details.get("host") or (row.host if row is not None else None),
                    "reason": reason,
                    "message": str(details.get("message") or "").partition("\n")[0][:MAX_MESSAGE],
                }
            )

    def _set(self, work: Work, state: str) -> None:
        counts, before = self._counts[work.kind], self._states.get(work.signature)
        if before is not None:
            counts[before] -= 1
        elif self._num_to_come and work.kind == "trial":
            self._num_to_come -= 1  # proposed meanwhile
        self._states[work.signature] = state
        counts[state] += 1

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    @property
    def num_running(self) -> int:
        """Number of stages and trials that slots run."""
        with self._lock:
            return len(self._running)

    def as_json(self) -> dict[str, Any]:
        """Return the state as JSON values: counts of stages and trials, what runs where, the last failures.

        The counts of a kind are planned = complete + failed + stopped_early + interrupted + missing + running.
        ``failures_by_reason`` and ``num_lost`` (processes and slots that ended without a result, and were started
        again) are of this driver's run.
        """
        with self._lock:
            return {
                "stages": self._describe_counts("stage"),
                "trials": self._describe_counts("trial"),
                "running": [asdict(row) for row in self._running.values()],
                "failures": list(self._failures),
                "failures_by_reason": dict(self._reasons),
                "num_lost": self._num_lost,
            }

    def _describe_counts(self, kind: str) -> dict[str, int]:
        counts = {name: self._counts[kind][state] for state, name in _NAMES.items()}
        counts["missing"] += self._num_to_come if kind == "trial" else 0
        return {"planned": sum(counts.values()), **counts}
