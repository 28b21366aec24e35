"""Publish the state of a running study while it runs: snapshots in the ledger, and metrics where they are asked for.

A snapshot is one small file per driver, ``running/<host>-<process>.json``, that the driver replaces every few seconds
and removes at its end: who looks at a study of 10,000 trials from another machine reads a file, not 10,000 folders.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.driver.live.prometheus import exposing
from orchestrator.driver.live.state import LiveState
from orchestrator.execution.meter import Meter
from orchestrator.ledger.lease import LEASE_SECONDS
from orchestrator.planning.budget import Usage
from orchestrator.study.execution_config import ExecutionConfig
from trainables.errors import LeaseError, StorageError
from trainables.storage.folder import Folder

_logger = logging.getLogger(__name__)

#: Folder of the snapshots in a study's ledger.
RUNNING = "running"
#: Seconds between two snapshots: on a disk, and in an object store, which charges for every write.
SAVE_SECONDS, SAVE_SECONDS_REMOTE = 2.0, 10.0


@dataclass
class Source:
    """Everything that a snapshot is made of."""

    study: str
    live: LiveState
    meter: Meter
    #: Returns the estimated seconds until everything has ended, None while that is unknown.
    seconds_left: Callable[[], float | None]
    #: Returns how many stages and trials may run at once.
    num_slots: Callable[[], int]
    execution: ExecutionConfig
    #: Usage of earlier runs.
    before: Usage
    since_ms: int

    def take(self) -> dict[str, Any]:
        """Return the snapshot of this moment as JSON values.

        ``utilisation`` is the share of the slots' time that stages and trials took in this run (0 to 1), ``usage`` the
        time of all runs, ``cost`` its GPU hours times the price, None without a price.
        """
        usage, before, slots = self.meter.read(), self.before, self.num_slots()
        price = self.execution.price_per_gpu_hour
        slot_seconds = (usage.wall_seconds - before.wall_seconds) * slots
        busy = (usage.slot_seconds - before.slot_seconds) / slot_seconds if slot_seconds > 0 else 0.0
        budget = self.execution.budget
        return {
            "study": self.study,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since_ms": self.since_ms,
            "alive_ms": int(time.time() * 1000),
            **self.live.as_json(),
            "slots": slots,
            "busy_slots": self.live.num_running,
            "utilisation": round(min(1.0, busy), 4),
            "eta_seconds": self.seconds_left(),
            "usage": asdict(usage),
            "cost": None if price is None else usage.gpu_seconds / 3600 * price,
            "limits": {} if budget is None else budget.limits(),
        }


@contextmanager
def publishing(source: Source, root: Folder, *, print_line: Callable[[str], None]) -> Iterator[None]:
    """Publish snapshots from a thread while the body runs, and metrics if ``execution`` asks for them.

    Args:
        source: what a snapshot is made of.
        root: folder of the study.
        print_line: prints a line on the terminal.

    Raises:
        InfrastructureError: the metrics cannot be served or written.
    """
    name, over = _name_snapshot(), threading.Event()
    folder = root / RUNNING
    pause = SAVE_SECONDS if root.is_local else SAVE_SECONDS_REMOTE
    with exposing(source.execution, source.take, print_line=print_line) as write_metrics:

        def save() -> None:
            _guarded(lambda: _remove_stale(folder))
            while True:
                _guarded(lambda: folder.write_json(name, source.take()))
                if over.wait(pause):
                    return
                write_metrics()

        thread = threading.Thread(target=save, name="snapshots", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            write_metrics()
            _guarded(lambda: folder.remove(name))


def read_snapshots(root: Folder) -> list[dict[str, Any]]:
    """Return the snapshots of the drivers of a study, also of dead ones that could not remove theirs, latest first.

    Raises:
        StorageError: the storage cannot be read.
    """
    folder = root / RUNNING
    found = []
    for name in folder.children():
        try:
            found.append(folder.read_json(name))
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # its driver has ended since
                raise
    return sorted(found, key=lambda snapshot: -int(snapshot["alive_ms"]))


def is_fresh(snapshot: dict[str, Any], now: float) -> bool:
    """Return whether the driver of a snapshot has given a sign of life within ``LEASE_SECONDS``.

    Args:
        snapshot: a snapshot.
        now: seconds since 1970.
    """
    return now - snapshot["alive_ms"] / 1000 < LEASE_SECONDS


def _name_snapshot() -> str:
    return f"{re.sub(r'[^A-Za-z0-9.-]', '_', socket.gethostname())}-{os.getpid()}.json"


def _remove_stale(folder: Folder) -> None:
    """Remove the snapshots of drivers that are dead."""
    for name in folder.children():
        if not folder.is_intact(name) or not is_fresh(folder.read_json(name), time.time()):
            folder.remove(name)


def _guarded(write: Callable[[], None]) -> None:
    """Call ``write``; its failure is a warning, since a study should not end because nobody can watch it."""
    try:
        write()
    except (StorageError, LeaseError) as error:
        _logger.warning("could not write the state of the running study, trying again later: %s", error)
