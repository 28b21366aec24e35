"""Measure wall time and GPU time while a study runs, and save them in the ledger every ``SAVE_SECONDS``."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from orchestrator.ledger.usage import SHARED_USAGE, USAGE
from orchestrator.planning.budget import Usage
from trainables.errors import LeaseError, StorageError
from trainables.storage.folder import Folder

_logger = logging.getLogger(__name__)
#: Seconds between two saves: a driver that is killed loses at most this much of each slot's time.
SAVE_SECONDS = 10.0


# ------------------------------------------------------------------ time


class Meter:
    """Counts the time of a run on top of that of earlier runs. Thread-safe.

    Args:
        before: usage of earlier runs.
        limits: limits of the budget (``Budget.limits``).
        price_per_gpu_hour: price that turns a limit of money into GPU hours; None if there is no such limit.
        on_spent: called once, with the number of stages and trials that will not start because of the budget.
        clock: returns seconds; stands still while the machine is suspended.
        others: usage that counts towards the limits and is stored elsewhere (``count_others``).
    """

    def __init__(
        self,
        before: Usage | None = None,
        *,
        limits: Mapping[str, float] | None = None,
        price_per_gpu_hour: float | None = None,
        on_spent: Callable[[int], None] = lambda number: None,
        clock: Callable[[], float] = time.monotonic,
        others: Usage | None = None,
    ) -> None:
        limits, hourly = limits or {}, price_per_gpu_hour
        self._wall_limit = 3600 * limits.get("wall_hours", math.inf)
        money = limits["money"] / hourly if "money" in limits and hourly is not None else math.inf
        self._gpu_limit = 3600 * min(limits.get("gpu_hours", math.inf), money)
        self.on_spent = on_spent
        #: GPUs that a slot of Tune holds.
        self.gpus_per_slot = 0.0
        self._clock, self._lock = clock, threading.Lock()
        self._usage, self._others = before or Usage(), others or Usage()
        self._since = clock()
        #: Slot → GPUs that it holds, and the time from which it is counted.
        self._slots: dict[str, tuple[float, float]] = {}
        #: GPUs that a slot holds → number of such slots.
        self._num_holding: Counter[float] = Counter()
        self._gpus = 0.0

    def report(self, slot: str, *, gpus: float, busy_seconds: float) -> None:
        """Count the time of a slot until its ``end``. The clock counts between reports; each report corrects it.

        Args:
            slot: name of the slot.
            gpus: GPUs that it holds; a fraction where several slots share one.
            busy_seconds: how long it has been busy since it began, or since its last ``end``.
        """
        with self._lock:
            self._advance()
            began = self._since - busy_seconds
            held, counted_from = self._slots.get(slot, (0.0, self._since))
            if slot not in self._slots or held != gpus:
                self._hold(slot, gpus)
            self._slots[slot] = gpus, began
            self._add(0.0, counted_from - began, (counted_from - began) * gpus)

    def end(self, slot: str) -> None:
        """Stop counting the time of a slot."""
        with self._lock:
            self._advance()
            self._hold(slot, None)
            self._slots.pop(slot, None)

    def _hold(self, slot: str, gpus: float | None) -> None:
        """Count a slot that holds some GPUs from now on, None: that ends. The sum is made anew: no rounding adds up."""
        if slot in self._slots:
            self._num_holding[self._slots[slot][0]] -= 1
        if gpus is not None:
            self._num_holding[gpus] += 1
        self._gpus = sum(held * number for held, number in self._num_holding.items())

    def count_others(self, others: Usage) -> None:
        """Set the usage of other drivers that share the study, as the ledger has it now."""
        with self._lock:
            self._others = others

    def read(self) -> Usage:
        """Return the usage until now, earlier runs included, and without that of ``others``."""
        with self._lock:
            self._advance()
            return self._usage

    def seconds_left(self) -> float:
        """Return the seconds until the budget is spent if all slots continue, 0 if it is spent, inf without one."""
        with self._lock:
            self._advance()
            gpus = max(self._gpus, self.gpus_per_slot)
            gpu_left = self._gpu_limit - self._usage.gpu_seconds - self._others.gpu_seconds
            left = gpu_left / gpus if gpus else math.inf if gpu_left > 0 else 0.0
            wall_left = self._wall_limit - self._usage.wall_seconds - self._others.wall_seconds
            return max(0.0, min(wall_left, left))

    def _advance(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        self._add(passed, passed * len(self._slots), passed * self._gpus)

    def _add(self, wall: float, slots: float, gpus: float) -> None:
        usage = self._usage
        self._usage = Usage(usage.wall_seconds + wall, usage.slot_seconds + slots, usage.gpu_seconds + gpus)


@contextmanager
def saving_usage(meter: Meter, root: Folder, *, driver: str | None = None) -> Iterator[Meter]:
    """Write the usage that a meter counts into a ledger's folder: at first, from a thread, and after the body.

    Args:
        meter: meter of the run.
        root: folder of the ledger.
        driver: name of the driver if it shares the study with others: its usage has a file of its own.

    Raises:
        StorageError: the first write fails. A later failure is a warning, since a study should not end because of its
            accounts.
    """
    since = None if driver is None else (driver, int(time.time() * 1000))
    _write(root, meter.read(), since)
    over = threading.Event()

    def save() -> None:
        while not over.wait(SAVE_SECONDS):
            _try_to_write(root, meter.read(), since)

    thread = threading.Thread(target=save, name="usage", daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        over.set()
        thread.join()
        _try_to_write(root, meter.read(), since)


def _try_to_write(root: Folder, usage: Usage, since: tuple[str, int] | None) -> None:
    try:
        _write(root, usage, since)
    except (StorageError, LeaseError) as error:
        _logger.warning("could not write down what the study has taken, trying again later: %s", error)


def _write(root: Folder, usage: Usage, since: tuple[str, int] | None) -> None:
    """Write the usage; ``since``: name of a driver that shares the study, and when it began, in ms."""
    content: dict[str, Any] = {name: round(seconds, 3) for name, seconds in asdict(usage).items()}
    if since is None:
        root.write_json(USAGE, content)
        return
    driver, since_ms = since
    del content["wall_seconds"]  # in which others run, too
    span = {"since_ms": since_ms, "until_ms": int(time.time() * 1000)}
    root.write_json(f"{SHARED_USAGE}/{driver}.json", content | span)
