"""State of a study for ``robustsweep top``: of its drivers' snapshots, or of the whole ledger while nobody runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.cli.status import compute_status
from orchestrator.driver.live.publish import is_fresh, read_snapshots
from orchestrator.driver.live.state import MAX_FAILURES, MAX_MESSAGE
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import Record
from orchestrator.ledger.usage import find_usage
from orchestrator.planning.budget import Usage, measure
from orchestrator.planning.states import FAILED
from orchestrator.study.study_file import Study
from orchestrator.tracking.projection import label_arm

#: The whole ledger is read again after so many times the seconds that this takes.
_REST = 10.0


class FrameReader:
    """Reader of the state of one study.

    Args:
        study: the study, of which the name, the budget and the price count.
        storage: root of the ledger.
        clock: returns the time in seconds since 1970.
    """

    def __init__(self, study: Study, *, storage: str, clock: Callable[[], float] = time.time) -> None:
        self._study, self._storage, self._clock = study, storage, clock
        self._ledger = Ledger(storage, study.study)
        self._idle: dict[str, Any] = {}
        self._read_again = 0.0

    def read(self) -> dict[str, Any]:
        """Return the present state as JSON values.

        ``trials`` (state → number), ``running`` (one entry for each stage and trial that runs: host, slot, devices,
        attempt, since_ms, epoch, epochs, phase), ``slots``, ``busy_slots``, ``utilisation`` (0 to 1), ``eta_seconds``,
        ``usage`` and ``taken`` (time and money of all runs), ``limits``, ``failures`` (the last ones), ``drivers`` with
        their last sign of life. Without a driver, slots and what follows from them are None.

        Raises:
            StorageError: the ledger cannot be read.
        """
        now = self._clock()
        snapshots = read_snapshots(self._ledger.root)
        alive = [snapshot for snapshot in snapshots if is_fresh(snapshot, now)]
        # Drivers write down their usage every 10 s, and know it in between.
        usage = _find_largest([find_usage(self._ledger) or Usage(), *(Usage(**each["usage"]) for each in alive)])
        execution = self._study.execution
        taken = measure(usage, num_trials=0, price_per_gpu_hour=execution.price_per_gpu_hour)
        del taken["trials"]  # how many have begun is not known without reading all of them
        return {
            "study": self._study.study,
            "now_ms": int(now * 1000),
            "drivers": [
                {name: snapshot[name] for name in ("host", "pid", "since_ms", "alive_ms")}
                | {"is_alive": snapshot in alive}
                for snapshot in snapshots
            ],
            **(merge_snapshots(alive) if alive else self._read_idle()),
            "usage": vars(usage),
            "taken": taken,
            "limits": {} if execution.budget is None else execution.budget.limits(),
        }

    def _read_idle(self) -> dict[str, Any]:
        """Return counts and failures of a study that nobody runs; from memory if reading them has just taken long."""
        if time.monotonic() >= self._read_again:
            began = time.monotonic()
            self._idle = {
                "trials": compute_status(self._study, storage=self._storage),
                "stages": None,
                "running": [],
                "slots": None,
                "busy_slots": 0,
                "utilisation": None,
                "eta_seconds": None,
                "failures": self._read_failures(),
            }
            self._read_again = time.monotonic() + _REST * (time.monotonic() - began)
        return self._idle

    def _read_failures(self) -> list[dict[str, Any]]:
        """Return the last failures, earliest first, without those for which a stage is to blame."""
        records = [record for kind in ("stage", "trial") for record in self._ledger.records(kind, states=(FAILED,))]
        found = [_describe_failure(record) for record in records]
        own = [failure for failure in found if failure["reason"] != "upstream"]
        return sorted(own, key=lambda failure: failure["timestamp_ms"])[-MAX_FAILURES:]


def _find_largest(usages: Sequence[Usage]) -> Usage:
    """Return the largest wall, slot and GPU time of several usages, none of which has more than all runs took."""
    names = vars(usages[0])
    return Usage(**{name: max(getattr(usage, name) for usage in usages) for name in names})


def _describe_failure(record: Record) -> dict[str, Any]:
    """Return the failure of a record as the snapshots of a driver list it."""
    failure, config = record.failure, record.config
    assert failure is not None
    trial = record.kind == "trial"
    return {
        "timestamp_ms": failure["timestamp_ms"],
        "signature": record.signature,
        "label": f"{label_arm(config)} · r{config['replicate']}" if trial else config["name"],
        "host": failure.get("attempt", {}).get("host"),
        "reason": failure["reason"],
        "message": failure["message"].partition("\n")[0][:MAX_MESSAGE],
    }


def merge_snapshots(snapshots: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state that the snapshots of all living drivers of a study show together.

    Counts are those of the latest one, with what the other drivers run; the time left is the longest.

    Args:
        snapshots: snapshots, latest first; not empty.
    """
    first, *others = snapshots
    running = [row for snapshot in snapshots for row in snapshot["running"]]
    counts = {kind: dict(first[kind]) for kind in ("trials", "stages")}
    for kind, found in counts.items():
        elsewhere = sum(snapshot[kind]["running"] for snapshot in others)
        found["running"] += elsewhere
        found["missing"] = max(0, found["missing"] - elsewhere)
    slots = sum(snapshot["slots"] for snapshot in snapshots)
    busy = sum(snapshot["utilisation"] * snapshot["slots"] for snapshot in snapshots)
    left = [snapshot["eta_seconds"] for snapshot in snapshots if snapshot["eta_seconds"] is not None]
    failures = [failure for snapshot in snapshots for failure in snapshot["failures"]]
    return {
        **counts,
        "running": running,
        "slots": slots,
        "busy_slots": len(running),
        "utilisation": busy / slots if slots else 0.0,
        "eta_seconds": max(left, default=None),
        "failures": sorted(failures, key=lambda failure: failure["timestamp_ms"])[-MAX_FAILURES:],
    }
