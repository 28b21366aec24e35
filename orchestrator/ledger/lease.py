"""Lease for one driver per study: ``lease.json`` names the driver, and no other can write into the ledger.

Drivers that share a study (``run --shard``) have a lease each in ``leases/``, and ``lease.json`` names the one of them
that keeps the books (``shards/leases.py``).

The holder renews it; a driver that has not done so for a minute is taken for dead, and the next one takes over. Every
process that writes for a driver (itself, its slots, the processes of its trials) checks the lease before each write
(``fence``): one that was suspended meanwhile changes nothing when it wakes up.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from orchestrator.ledger.ledger import Ledger
from trainables.errors import LeaseError, StorageError
from trainables.storage.claims import Claim, ClaimedFolder
from trainables.storage.folder import Folder

_logger = logging.getLogger(__name__)

#: Seconds between two signs of life of a driver; it is taken for dead after LEASE_SECONDS.
HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0
#: A sign of life further ahead means that clocks differ. An assumption: clocks that are set by NTP differ by less.
MAX_AHEAD_SECONDS = 5.0
LEASE = "lease.json"
#: Folder of the leases of drivers that share a study; each is named after its driver.
LEASES = "leases"
#: File that is held only for the moment in which the lease is taken.
LOCK = "lease.lock"
#: Time in which two drivers notice each other where nothing can be locked.
CONFIRM_SECONDS = 1.0


class BusyError(LeaseError):
    """Another driver is taking a lease in this moment; a little later it is known whether it has the study."""


def fence(lease: Mapping[str, str]) -> Callable[[], None]:
    """Return a guard for folders (``Folder(…, guard=…)``) that raises ``LeaseError`` unless this lease still holds.

    Args:
        lease: ``Lease.ticket``.
    """
    root = Folder(lease["root"])

    def check() -> None:
        holder = read_lease(root, lease["name"])
        if holder is None or holder["token"] != lease["token"]:
            by = "nobody: another driver has taken over and ended" if holder is None else describe(holder)
            raise LeaseError(f"refused to write into {root.uri}: its lease is now held by {by}; nothing is lost")

    return check


def guarded(uri: str, lease: Mapping[str, str] | None) -> Folder:
    """Return a folder that only the holder of ``lease`` may write into, or any process if it is None."""
    return Folder(uri) if lease is None else Folder(uri, guard=fence(lease))


def claimed(uri: str, claims: str, claim: Claim, lease: Mapping[str, str] | None) -> ClaimedFolder:
    """Return the folder of a stage or trial that only one attempt may write into, on behalf of the holder of ``lease``.

    Args:
        uri: folder of the stage or trial.
        claims: folder of its claims.
        claim: claim of the attempt.
        lease: ``Lease.ticket``; None: of any driver.
    """
    guard = guarded(uri, lease).guard
    return ClaimedFolder(uri, claims=Folder(claims, guard=guard), claim=claim, guard=guard)


class Lease:
    """Context manager that holds ``lease.json``, so that a study has one driver, and renews it from a thread.

    A driver that was taken for dead (a suspended laptop, a partitioned network) and finds that another has taken over
    interrupts itself, as Ctrl-C would.

    Raises:
        LeaseError: on entering, if another driver is alive; on leaving, if another has taken over.
    """

    def __init__(
        self, ledger: Ledger, *, name: str = LEASE, token: str | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        self._name = name
        self._ledger, self._guard_before = ledger, ledger.root.guard
        self._folder = Folder(ledger.root.uri)  # without a guard: writing the lease needs no lease
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        since_ms = int(time.time() * 1000)
        self._entry_base = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since_ms": since_ms,
            "token": token or uuid.uuid4().hex,
            **(about or {}),
        }
        self._is_lost = False
        self._successor: dict[str, Any] | None = None

    @property
    def ticket(self) -> dict[str, str]:
        """Argument of ``fence``, for processes that write on behalf of this driver."""
        return {"root": self._folder.uri, "name": self._name, "token": str(self._entry_base["token"])}

    @property
    def since_ms(self) -> int:
        """When this driver began, in ms."""
        return int(self._entry_base["since_ms"])

    def holder(self) -> dict[str, Any] | None:
        """Return the living holder of the lease (host, pid, since_ms, alive_ms, token), None if there is none."""
        holder = self._read()
        return holder if holder is not None and is_alive(holder) else None

    def check(self) -> None:
        """Raise ``LeaseError`` if another driver is alive. Writes nothing."""
        sharing = [each for each in read_leases(self._folder).values() if is_alive(each)]
        if sharing:
            raise LeaseError(
                f"the study in {self._folder.uri} is being run with --shard, by {', '.join(map(describe, sharing))}; "
                "join in with `run --shard`, wait for them, or stop them first"
            )
        self.check_alone()

    def check_alone(self) -> None:
        """Raise ``LeaseError`` if a driver that runs the study alone is alive."""
        holder = self.holder()
        if holder is None or "driver" in holder:
            return
        silent = age(holder)
        if silent < -MAX_AHEAD_SECONDS:
            raise LeaseError(
                f"the study in {self._folder.uri} is being run by {describe(holder)}, whose last sign of life is "
                f"{-silent:.0f} s in the future: the clocks of the machines differ, or this one was set back. If that "
                f"driver runs, wait for it or stop it; if not, remove {LEASE} in that folder, and set the clocks"
            )
        raise LeaseError(
            f"the study in {self._folder.uri} is being run by {describe(holder)} (last sign of life {silent:.0f} s "
            "ago); wait for it, or stop it first"
        )

    def __enter__(self) -> Self:
        with self._exclusively():
            self.check()
            if not self._entry_base.keys() & {"driver"}:  # drivers that shared the study are dead
                self._folder.remove(LEASES)
            self._write()
        self._ledger.root.guard = fence(self.ticket)  # from here on
        self._thread.start()
        return self

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Keep other drivers from taking the lease between the check for a holder and the write.

        This is a lock on a disk, and a file that only one driver can create on an object store. Without such a step, or
        if the creator was killed in that moment, the last writer wins, and the other notices by reading again.
        """
        if self._folder.is_local:
            with self._locked_on_disk():
                yield
            return
        is_locked = self._lock_by_creating()
        try:
            yield
            if not is_locked:
                self._confirm()
        finally:
            self._folder.remove(LOCK)

    @contextmanager
    def _locked_on_disk(self) -> Iterator[None]:
        from filelock import FileLock  # imported here: most commands take no lease

        # Whoever holds it may be suspended: then this is given up.
        lock = FileLock(f"{self._folder.uri}/{LOCK}", timeout=LEASE_SECONDS)
        try:
            os.makedirs(self._folder.uri, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise StorageError(f"could not write {lock.lock_file}: {error}") from error
        try:
            yield
        finally:
            lock.release()

    def _lock_by_creating(self) -> bool:
        """Return whether this driver holds the lock, False if the lock is unreliable.

        Raises:
            LeaseError: another driver holds it.
        """
        said = json.dumps(self._entry()).encode()
        is_created = self._folder.create(LOCK, said)
        if is_created:
            # Servers that know no conditional requests ignore the condition, and would create it a second time.
            return self._folder.create(LOCK, said) is False
        if is_created is None:
            return False
        other = read_lease(self._folder, LOCK)
        if other is None or age(other) < LEASE_SECONDS:
            by = "another driver" if other is None else describe(other)
            raise BusyError(f"the study in {self._folder.uri} is being taken in this moment by {by}; wait for it")
        return False

    def _confirm(self) -> None:
        time.sleep(CONFIRM_SECONDS)
        holder = self._read()
        if not self._is_mine(holder):
            by = "nobody" if holder is None else describe(holder)
            raise LeaseError(f"the study in {self._folder.uri} was taken in the same moment by {by}; wait for it")

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._ledger.root.guard = self._guard_before
        if self._is_lost:
            by = "another driver" if self._successor is None else describe(self._successor)
            raise LeaseError(
                f"the study in {self._folder.uri} was taken over by {by}: this one had given no sign of life for "
                f"{LEASE_SECONDS:.0f} s. It has stopped, and nothing is lost"
            )
        if self._is_mine(self._read()):
            self._folder.remove(self._name)

    def _is_mine(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder["token"] == self._entry_base["token"]

    def _read(self) -> dict[str, Any] | None:
        return read_lease(self._folder, self._name)

    def _write(self) -> None:
        self._folder.write_json(self._name, self._entry())

    def _entry(self) -> dict[str, Any]:
        return self._entry_base | {"alive_ms": int(time.time() * 1000)}

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                holder = self._read()
                if not self._is_mine(holder):  # if nobody has it, another took over and has ended
                    self._is_lost, self._successor = True, holder
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._write()
            except (LeaseError, StorageError, OSError) as error:
                _logger.warning("could not renew the lease of the study, trying again: %s", error)


def read_leases(root: Folder) -> dict[str, dict[str, Any]]:
    """Return name of each driver that shares the study of a ledger's folder → its lease, whether it lives or not.

    Raises:
        LeaseError: a lease is damaged.
        StorageError: the folder could not be read.
    """
    names = [name for name in (root / LEASES).children() if name.endswith(".json")]
    found = {name.removesuffix(".json"): read_lease(root, f"{LEASES}/{name}") for name in names}
    return {driver: holder for driver, holder in found.items() if holder is not None}


def read_lease(root: Folder, name: str = LEASE) -> dict[str, Any] | None:
    """Return the holder in a lease (or in the lock), None if there is no such file.

    Raises:
        LeaseError: the file is damaged.
        StorageError: the file could not be read.
    """
    try:
        holder: dict[str, Any] = root.read_json(name)
        known = {key: holder[key] for key in ("host", "pid", "since_ms", "alive_ms", "token")}
        return known | {key: holder[key] for key in ("driver", "shard", "plan") if key in holder}
    except (StorageError, KeyError, TypeError) as error:
        if isinstance(error.__cause__, FileNotFoundError):  # no check beforehand: that is one more request
            return None
        if error.__cause__ is not None and not isinstance(error.__cause__, ValueError):
            raise  # an error of the storage, not of the content
        raise LeaseError(
            f"could not find out who runs the study in {root.uri}: {name} is damaged ({error}); "
            "if no driver works on it, remove that file"
        ) from error


def age(holder: Mapping[str, Any]) -> float:
    """Return the seconds since the last sign of life."""
    return time.time() - float(holder["alive_ms"]) / 1000


def describe(holder: Mapping[str, Any]) -> str:
    """Return in words which process holds a lease, and since when."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since_ms"] / 1000))
    return f"process {holder['pid']} on {holder['host']} since {since}"


def is_alive(holder: Mapping[str, Any]) -> bool:
    """Return whether the holder of a lease has given a sign of life lately, and its process is not known to be gone."""
    return age(holder) < LEASE_SECONDS and not is_gone(holder)


def is_gone(holder: Mapping[str, Any]) -> bool:
    """Return whether the holder ran on this host and its process is gone: no need to wait for the expiry."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
