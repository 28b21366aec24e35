"""Leases of drivers that share a study: one for each, and one for the driver that keeps the books.

    leases/<driver>.json   lease of a driver, which renews it; its name is in the claims of what it runs
    lease.json             the same of the driver that keeps the books: plan, MLflow, report
    conclusion.json        the state of the study for which the books are closed

A driver is taken for dead when its lease has not changed for a minute, as another has seen it: while the storage cannot
be reached, nobody sees anything, and no minute passes. Its lease is then removed, so that it stops if it wakes up. What
it was running is free from that moment on.
"""

from __future__ import annotations

import hashlib
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.ledger.lease import (
    HEARTBEAT_SECONDS,
    LEASE_SECONDS,
    LEASES,
    BusyError,
    Lease,
    age,
    describe,
    is_alive,
    is_gone,
    read_lease,
    read_leases,
)
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.shards.shard import Shard
from orchestrator.planning.plan import Plan
from trainables.errors import LeaseError
from trainables.storage.folder import Folder

CONCLUSION = "conclusion.json"
#: Least time for which a lease has to be watched before its driver is taken for dead: two of its renewals.
_WATCH_SECONDS = 2 * HEARTBEAT_SECONDS


def compute_plan_sha256(plan: Plan) -> str:
    """Return the digest of the stages and trials of a plan: drivers share a study if theirs are the same."""
    text = "\n".join(sorted(work.signature for work in plan.works))
    return hashlib.sha256(text.encode()).hexdigest()


class DriverLease(Lease):
    """Lease of one of the drivers that share a study; several are held at the same time.

    Args:
        ledger: ledger of the study.
        shard: part of the study that the driver begins with.
        plan_sha256: digest of its plan (``compute_plan_sha256``).

    Raises:
        LeaseError: on entering, if a driver runs the study alone, or others share it with another plan; on leaving, if
            others have taken this one for dead.
    """

    def __init__(self, ledger: Ledger, *, shard: Shard, plan_sha256: str) -> None:
        self.driver = uuid.uuid4().hex[:12]
        about = {"driver": self.driver, "shard": str(shard), "plan": plan_sha256}
        super().__init__(ledger, name=f"{LEASES}/{self.driver}.json", token=self.driver, about=about)
        self._plan_sha256 = plan_sha256
        #: Since when drivers that live share the study, in ms; known once the lease is held.
        self.since_all_ms = 0

    def __enter__(self) -> Self:
        deadline = time.monotonic() + LEASE_SECONDS
        while True:  # on an object store the lock refuses, and all drivers of an array start together
            try:
                return super().__enter__()
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.1, 1.0))

    def check(self) -> None:
        """Raise ``LeaseError`` if a driver runs the study alone, or others share it with another plan."""
        Lease(self._ledger).check_alone()
        others = [each for each in read_leases(self._folder).values() if is_alive(each)]
        different = [each for each in others if each["plan"] != self._plan_sha256]
        if different:
            raise LeaseError(
                f"the study in {self._folder.uri} is being run with --shard by {describe(different[0])}, whose stages "
                "and trials are others than those of this study file; give all drivers the same file and options, or "
                "stop the others first"
            )
        self.since_all_ms = min([self.since_ms, *(int(each["since_ms"]) for each in others)])


class BooksLease(Lease):
    """Lease of the driver that keeps the books of a shared study, in ``lease.json``.

    Args:
        ledger: ledger of the study; its writes are refused once the lease is lost.
        driver: name of the driver.
        lives: whether the driver of a name lives (``Drivers.lives``).

    Raises:
        LeaseError: on entering, if a driver that lives keeps the books.
    """

    def __init__(self, ledger: Ledger, *, driver: str, lives: Callable[[str], bool]) -> None:
        super().__init__(ledger, about={"driver": driver})
        self._lives = lives

    def check(self) -> None:
        """Raise ``LeaseError`` if a driver that lives has the lease."""
        self.check_alone()
        holder = self._read()
        if holder is not None and "driver" in holder and self._lives(holder["driver"]):
            raise LeaseError(f"the books of the study in {self._folder.uri} are kept by {describe(holder)}")


@dataclass
class _Watched:
    """Lease of another driver, as it was seen last."""

    alive_ms: int
    #: For how long it has been seen unchanged.
    seconds: float = 0.0


class Drivers:
    """Drivers that share a study, watched by one of them.

    Args:
        root: folder of the ledger.
        driver: name of the watching driver, which lives.
        clock: returns seconds; stands still while the machine is suspended.
    """

    def __init__(self, root: Folder, driver: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._driver, self._clock = root, driver, clock
        self._watched: dict[str, _Watched] = {}
        self._last: float | None = None
        #: Name → lease of the drivers that live, this one included.
        self.living: Mapping[str, Mapping[str, Any]] = {}

    def look(self) -> frozenset[str]:
        """Read all leases, remove those of drivers that are dead, and return the names of those that live.

        Raises:
            StorageError: the leases could not be read: nothing is known of anybody.
            LeaseError: a lease is damaged.
        """
        found = read_leases(self._root)
        now = self._clock()
        # Between two looks that are far apart the storage was away, or this driver was suspended.
        passed = 0.0 if self._last is None else min(now - self._last, HEARTBEAT_SECONDS)
        self._last = now
        dead = [name for name, lease in found.items() if name != self._driver and self._is_dead(name, lease, passed)]
        for name in dead:
            self._root.remove(f"{LEASES}/{name}.json")
        self._watched = {name: each for name, each in self._watched.items() if name in found and name not in dead}
        self.living = {name: lease for name, lease in found.items() if name not in dead}
        return frozenset(self.living) | {self._driver}

    def lives(self, name: str) -> bool:
        """Return whether a driver lives; one that has joined since the last look does.

        Raises:
            StorageError: its lease could not be read.
        """
        return (
            name == self._driver or name in self.living or read_lease(self._root, f"{LEASES}/{name}.json") is not None
        )

    def _is_dead(self, name: str, lease: Mapping[str, Any], passed: float) -> bool:
        seen = self._watched.get(name)
        if seen is None or seen.alive_ms != lease["alive_ms"]:
            self._watched[name] = _Watched(lease["alive_ms"])
            return False
        seen.seconds += passed
        # What the clocks say counts only after watching: they may differ, and a number of a process may be another's.
        is_suspect = is_gone(lease) or age(lease) >= LEASE_SECONDS
        return seen.seconds >= (_WATCH_SECONDS if is_suspect else LEASE_SECONDS)
