"""Attempts at running a study as a job: ``jobs/<number>.json`` in its ledger, each claimed by one submitter.

A claim is made in one step, and its submitter renews it until the cluster has the job. One that was not renewed for a
minute (``lease.LEASE_SECONDS``) is void, and its number is used up: a cluster takes a submission id only once.

Beside it ``jobs/<number>.stop.json`` says that somebody asked to stop: whoever watches that attempt, or an earlier one,
submits no other. It is written before the attempts are looked at once more, and read after the next attempt is claimed,
so that one of the two always sees the other.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from orchestrator.ledger.lease import HEARTBEAT_SECONDS, is_alive
from orchestrator.ledger.ledger import Ledger
from trainables.errors import StorageError, StudyError
from trainables.storage.folder import Folder

_logger = logging.getLogger(__name__)

#: Folder of the attempts in the ledger.
JOBS = "jobs"
#: End of the name of the file that says that somebody asked to stop.
_STOP = ".stop.json"


class StopAskedError(StudyError):
    """Somebody asked to stop the study since the attempt that is watched."""


@dataclass(frozen=True)
class Attempt:
    """One attempt: its number, the submission id, the job server, and who submits or has submitted it."""

    number: int
    job: str
    address: str
    host: str
    pid: int
    token: str
    since_ms: int
    alive_ms: int
    submitted_ms: int | None = None

    @property
    def is_being_submitted(self) -> bool:
        """Whether its submitter lives and has not handed it over yet."""
        return self.submitted_ms is None and is_alive(asdict(self))


class Attempts:
    """The attempts at one study."""

    def __init__(self, ledger: Ledger) -> None:
        self._study = ledger.study
        #: Without the guard of a driver: who submits is none.
        self._folder = Folder(ledger.root.uri) / JOBS

    def read(self, number: int) -> Attempt | None:
        """Return an attempt, None if its number is not taken.

        One that is just being claimed, or whose file is damaged, is known by its number and the age of its file alone.
        """
        name = name_file(number)
        try:
            return Attempt(**self._folder.read_json(name))
        except (StorageError, TypeError) as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            if not isinstance(error, TypeError) and not isinstance(error.__cause__, ValueError | None):
                raise  # an error of the storage, not of the content
        stat = self._folder.stat(name)
        written_ms = stat[1] // 1_000_000 if stat is not None else 0
        here = socket.gethostname()
        return Attempt(number, self.name(number), "", here, os.getpid(), "", written_ms, written_ms)

    def latest(self) -> Attempt | None:
        """Return the attempt with the highest number, None if there is none."""
        numbers = [int(name.removesuffix(".json")) for name in self._folder.children() if _is_attempt(name)]
        return self.read(max(numbers)) if numbers else None

    def name(self, number: int) -> str:
        """Return the submission id of an attempt."""
        return f"{self._study}-{number}"

    def number(self, job: str) -> int:
        """Return the number of the attempt with this submission id."""
        return int(job.removeprefix(f"{self._study}-"))

    def claim(self, number: int, address: str) -> Attempt | None:
        """Return the attempt of this number, now claimed by this process; None if somebody has it.

        Where a storage cannot create in one step the cluster decides, which takes each submission id once.
        """
        now = int(time.time() * 1000)
        attempt = Attempt(
            number, self.name(number), address, socket.gethostname(), os.getpid(), uuid.uuid4().hex, now, now
        )
        name = name_file(number)
        is_created = self._folder.create(name, json.dumps(asdict(attempt)).encode())
        if is_created is False or (is_created is None and self._folder.exists(name)):
            return None
        self._write(attempt)  # with a seal
        return attempt

    def ask_to_stop(self, number: int) -> None:
        """Make all who watch this attempt, or an earlier one, submit no other."""
        asked = {"host": socket.gethostname(), "pid": os.getpid(), "since_ms": int(time.time() * 1000)}
        self._folder.write_json(f"{number:06d}{_STOP}", asked)

    def check_not_stopped(self, since: int | None) -> None:
        """Raise ``StopAskedError`` if somebody asked to stop this attempt or a later one; None: nobody minds."""
        if since is None:
            return
        stems = [name.removesuffix(_STOP) for name in self._folder.children() if name.endswith(_STOP)]
        if any(stem.isdecimal() and int(stem) >= since for stem in stems):
            raise StopAskedError(f"somebody asked to stop the study {self._study} since its attempt {since}")

    @contextmanager
    def kept(self, attempt: Attempt) -> Iterator[None]:
        """Renew the claim of an attempt while the body submits it, and mark it as submitted; as void if it raises."""
        stop = threading.Event()

        def renew() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                try:
                    self._write(replace(attempt, alive_ms=int(time.time() * 1000)))
                except StorageError as error:
                    _logger.warning("could not renew the claim of the job %s, trying again: %s", attempt.job, error)

        thread = threading.Thread(target=renew, name="job claim", daemon=True)
        thread.start()
        ended = replace(attempt, alive_ms=0)
        try:
            yield
            now = int(time.time() * 1000)
            ended = replace(attempt, alive_ms=now, submitted_ms=now)
        finally:
            stop.set()
            thread.join()
            self._write(ended)

    def _write(self, attempt: Attempt) -> None:
        self._folder.write_json(name_file(attempt.number), asdict(attempt))


def name_file(number: int) -> str:
    """Return the name of the file of an attempt in ``JOBS``."""
    return f"{number:06d}.json"


def _is_attempt(name: str) -> bool:
    return name.endswith(".json") and name.removesuffix(".json").isdecimal()
