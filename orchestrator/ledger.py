"""What has happened, on storage: one folder per stage and per trial. The only truth; MLflow is a projection of it.

    <storage>/<study>/
      plan.json            the last plan: arms, factors, data, skipped
      lease.json           which driver works on the study, and when it was last alive
      stages/<signature>/  config.json epochs.jsonl encoder.safetensors result.json | failure.json log.txt
      trials/<signature>/  config.json epochs.jsonl checkpoint.safetensors model.safetensors
                           predictions/<set>.npz result.json | failure.json log.txt
      report/  mlflow.db
      shipped.json mlflow_runs.jsonl   what MLflow has already (``settled.py``, ``run_index.py``)

``config.json`` is written first and ``result.json`` last: a trial is complete when ``result.json`` exists.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.identity import compute_identity
from orchestrator.plan import Plan, Work
from orchestrator.reconcile import ABSENT, COMPLETE, FAILED, INTERRUPTED
from orchestrator.settled import forget
from trainables.errors import LeaseError, StorageError, StudyError
from trainables.storage import Folder

_logger = logging.getLogger(__name__)

T = TypeVar("T")

#: A driver writes a sign of life this often; it is taken for dead after LEASE_SECONDS.
HEARTBEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Record:
    """All that the ledger says about one stage or trial, except its large files."""

    signature: str
    kind: str
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    result: dict[str, Any] | None
    failure: dict[str, Any] | None

    @property
    def state(self) -> str:
        """complete, failed or interrupted."""
        if self.result is not None:
            return COMPLETE
        return FAILED if self.failure is not None else INTERRUPTED


class Ledger:
    """The folders of one study.

    Args:
        storage: local path or fsspec URI under which all studies lie.
        study: name of the study.
    """

    def __init__(self, storage: str, study: str) -> None:
        self.root = Folder(storage) / study
        self.storage, self.study = storage, study

    def folder(self, kind: str, signature: str) -> Folder:
        """Return the folder of a stage or trial."""
        return self.root / f"{kind}s" / signature

    def states(self) -> dict[str, str]:
        """Return signature → state of everything in the ledger, from file names alone."""
        return {signature: state for kind in ("stage", "trial") for signature, state in self._states(kind)}

    def _states(self, kind: str) -> Iterator[tuple[str, str]]:
        folder = self.root / f"{kind}s"
        signatures = list(folder.children())
        yield from zip(signatures, self._each(lambda signature: _state(folder / signature), signatures), strict=True)

    def _each(self, look: Callable[[str], T], signatures: Sequence[str]) -> list[T]:
        """Return what ``look`` says of each; several at once where the storage answers in tens of ms, not µs."""
        if self.root.is_local:
            return list(map(look, signatures))
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(look, signatures))

    def begin(self, work: Work, *, study: str, git_commit: str | None) -> None:
        """Write ``config.json`` if this work is new, and forget an earlier failure."""
        forget(self.root)
        begin_record(self.folder(work.kind, work.signature), describe_work(work, study=study, git_commit=git_commit))

    def record_failure(self, work: Work, details: dict[str, Any], *, study: str, git_commit: str | None) -> None:
        """Write ``failure.json``; also for a trial that never began because its stage failed."""
        self.begin(work, study=study, git_commit=git_commit)
        folder = self.folder(work.kind, work.signature)
        attempts = folder.read_lines("attempts.jsonl")
        lost = attempts[-1]["message"] if attempts else "the worker was lost; its machine or Ray actor ended"
        failure = {
            "signature": work.signature,
            "status": FAILED,
            "reason": details.get("reason", "crashed"),
            "message": details.get("message", lost),
            "traceback": details.get("traceback", ""),
            "attempts": max(1, len(attempts) + (details.get("reason") != "crashed")),
            "timestamp_ms": int(time.time() * 1000),
        }
        folder.write_json("failure.json", failure)

    def read(self, kind: str, signature: str) -> Record:
        """Return the record of one stage or trial.

        Raises:
            StorageError: a file is missing or damaged; the message names it.
        """
        folder = self.folder(kind, signature)
        return Record(
            signature=signature,
            kind=kind,
            config=folder.read_json("config.json"),
            epochs=folder.read_lines("epochs.jsonl"),
            result=folder.read_json("result.json") if folder.exists("result.json") else None,
            failure=folder.read_json("failure.json") if folder.exists("failure.json") else None,
        )

    def records(self, kind: str) -> list[Record]:
        """Return the records of all stages or all trials that have started, sorted by signature."""
        started = [signature for signature, state in self._states(kind) if state != ABSENT]
        return self._each(lambda signature: self.read(kind, signature), started)

    def write_plan(self, plan: Plan, about: dict[str, Any]) -> None:
        """Write ``plan.json``: the plan and what report and explorer need to know about the study."""
        self.root.write_json("plan.json", about | plan.as_json())

    def read_plan(self) -> dict[str, Any]:
        """Return ``plan.json``.

        Raises:
            StudyError: the study has never been run with this storage.
        """
        if not self.root.exists("plan.json"):
            raise StudyError(
                f"looked for the study {self.study!r} in {self.root.uri} and found no plan.json; "
                "run it first, or say where it lies with --storage"
            )
        plan: dict[str, Any] = self.root.read_json("plan.json")
        return plan


def _state(folder: Folder) -> str:
    files = set(folder.children())
    if "result.json" in files:
        return COMPLETE
    if "failure.json" in files:
        return FAILED
    return INTERRUPTED if "config.json" in files else ABSENT


def describe_work(work: Work, *, study: str, git_commit: str | None) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return {
        "signature": work.signature,
        "kind": work.kind,
        "study": study,
        "name": work.name,
        "arm": dict(work.levels or {}),
        "replicate": work.replicate,
        "needs": list(work.needs),
        "config": work.config.model_dump(mode="json"),
        "identity": compute_identity(work.config),
        "data_fingerprint": work.data_fingerprint,
        "git_commit": git_commit,
        "created_ms": int(time.time() * 1000),
    }


def begin_record(folder: Folder, record: dict[str, Any]) -> None:
    """Write ``config.json`` into the folder of a work if it is new, and forget an earlier failure."""
    if folder.exists("failure.json"):  # in this order: attempts belong to the failure
        folder.remove("attempts.jsonl")
        folder.remove("failure.json")
    if not folder.exists("config.json"):
        folder.write_json("config.json", record)


def describe_upstream(stage: Work) -> dict[str, str]:
    """Return the details of the failure of a trial whose stage failed, for ``record_failure``."""
    message = f"the stage it starts from failed: {stage.name} ({stage.signature})"
    return {"status": FAILED, "reason": "upstream", "message": message}


class Lease:
    """One driver per study: a context manager that holds ``lease.json`` and renews it from a thread.

    A driver that was taken for dead (a suspended laptop, a partitioned network) and finds that another has taken over
    interrupts itself, as Ctrl-C would.

    Raises:
        LeaseError: on entering, when another driver is alive; on leaving, when another has taken over.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._folder = ledger.root
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        since_ms = int(time.time() * 1000)
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "since_ms": since_ms, "token": uuid.uuid4().hex}
        self._successor: dict[str, Any] | None = None

    def holder(self) -> dict[str, Any] | None:
        """Return who holds the lease (host, pid, since_ms, alive_ms), None when nobody alive does."""
        holder = self._read()
        if holder is None:
            return None
        age = time.time() - holder["alive_ms"] / 1000
        return holder if age < LEASE_SECONDS and _is_alive(holder) else None

    def check(self) -> None:
        """Raise ``LeaseError`` when another driver is alive; writes nothing."""
        holder = self.holder()
        if holder is not None:
            age = time.time() - holder["alive_ms"] / 1000
            raise LeaseError(
                f"the study in {self._folder.uri} is being run by {_describe(holder)} (last sign of life {age:.0f} s "
                "ago); wait for it, or stop it first"
            )

    def __enter__(self) -> Lease:
        self.check()
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._successor is not None:
            raise LeaseError(
                f"the study in {self._folder.uri} was taken over by {_describe(self._successor)}, since this driver "
                f"had given no sign of life for {LEASE_SECONDS:.0f} s; it has stopped, and nothing is lost"
            )
        if self._is_mine(self._read()):
            self._folder.remove("lease.json")

    def _is_mine(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder["token"] == self._me["token"]

    def _read(self) -> dict[str, Any] | None:
        if not self._folder.exists("lease.json"):
            return None
        holder: dict[str, Any] = self._folder.read_json("lease.json")
        return holder

    def _write(self) -> None:
        self._folder.write_json("lease.json", self._me | {"alive_ms": int(time.time() * 1000)})

    def _renew(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                holder = self._read()
                if holder is not None and not self._is_mine(holder):
                    self._successor = holder
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._write()
            except (StorageError, OSError) as error:
                _logger.warning("could not renew the lease of the study, trying again: %s", error)


def _describe(holder: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since_ms"] / 1000))
    return f"process {holder['pid']} on {holder['host']} since {since}"


def _is_alive(holder: dict[str, Any]) -> bool:
    """Return False only when the holder ran on this host and its process is gone: no need to wait for the expiry."""
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
