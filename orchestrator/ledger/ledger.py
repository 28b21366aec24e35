"""State of a study on storage: one folder per stage and per trial. The only truth; MLflow is a projection of it.

    <storage>/<study>/
      plan.json            the last plan: arms, factors, data, skipped
      hypotheses.json      all versions of the hypotheses (``preregistration.py``)
      jobs/<number>.json   attempts at running it as a job of a cluster (``cluster/jobs/attempts.py``)
      lease.json           driver that runs the study, and its last sign of life (``lease.py``)
      leases/<driver>.json conclusion.json   drivers that share the study, and the end of it (``shards/leases.py``)
       running/             what each driver runs now, where (``driver/live/publish.py``)
       cluster.json         the last cluster (``usage.py``)
      stages/<signature>/  config.json epochs.jsonl encoder.safetensors result.json | failure.json log.txt
      trials/<signature>/  config.json epochs.jsonl checkpoint.safetensors model.safetensors
                           predictions/<set>.npz result.json | failure.json | stop.json log.txt
                           log.jsonl; attempts.jsonl, if one was lost (``attempts.py``)
                           added/<signature>.json (``added_metrics.py``)
      report/  mlflow.db
      usage.json usage/<driver>.json   time that the study has taken (``usage.py``)
      shipped.json mlflow_runs.jsonl   state that MLflow has (``tracking/shipped.py``, ``tracking/run_index.py``)

``config.json`` is written first and ``result.json`` last: a trial is complete when ``result.json`` exists and neither
it nor a file it lists is damaged. A damaged stage or trial counts as interrupted, and is run again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from orchestrator.ledger.added_metrics import ADDED, merge_metrics, read_added
from orchestrator.ledger.attempts import ATTEMPTS, FAILURE, count_lost, read_attempts
from orchestrator.ledger.derived import invalidate
from orchestrator.ledger.failures import LOST
from orchestrator.ledger.record import STARTED, Record, begin_record, describe_work
from orchestrator.planning.plan import Plan
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, INTERRUPTED, STOPPED
from orchestrator.planning.works import Work
from trainables.errors import StorageError, StudyError
from trainables.storage.attempt_counts import SIGNATURE_DIGITS
from trainables.storage.claims import CLAIMS
from trainables.storage.completeness import CONFIG, RESULT, STOP, find_damage
from trainables.storage.folder import Folder

T = TypeVar("T")


class Ledger:
    """The folders of one study.

    Args:
        storage: local path or fsspec URI under which all studies lie.
        study: name of the study.
    """

    def __init__(self, storage: str, study: str) -> None:
        self.root = Folder(storage) / study
        self.storage, self.study = storage, study
        #: Signature → damage that ``states`` has found, in words.
        self.damaged: dict[str, str] = {}
        #: Signatures that this process has found intact; each is checked once.
        self._intact: set[str] = set()
        self._find_damage: Callable[[Folder], str | None] = find_damage

    def folder(self, kind: str, signature: str) -> Folder:
        """Return the folder of a stage or trial."""
        return self.root / f"{kind}s" / signature  # each part is checked: a plan may be hostile

    def claims(self, signature: str) -> Folder:
        """Return the folder of the claims of a stage or trial (``trainables.storage.claims``)."""
        return self.root / CLAIMS / signature

    def states(self, *, every_byte: bool = False) -> dict[str, str]:
        """Return signature → state of everything in the ledger, from file names, sizes and the seals of results.

        Args:
            every_byte: compare the content of all files of complete stages and trials, which reads the whole ledger.
        """
        self.damaged = {}
        if every_byte:
            self._intact.clear()
            self._find_damage = partial(find_damage, every_byte=True)
        return {signature: state for kind in ("stage", "trial") for signature, state in self._states(kind)}

    def _states(self, kind: str) -> Iterator[tuple[str, str]]:
        folder = self.root / f"{kind}s"
        listed = folder.grandchildren(SIGNATURE_DIGITS)
        states = self._each(lambda signature: self._state(folder / signature, listed[signature]), list(listed))
        yield from zip(listed, states, strict=True)

    def _state(self, folder: Folder, files: set[str]) -> str:
        """Return the state of a stage or trial.

        Args:
            folder: folder of the stage or trial.
            files: names in it. An object store's listing may lag behind: of what it shows as begun and not ended, the
                result is looked for by its name.
        """
        damage = None
        is_begun = CONFIG in files and not files & {RESULT, FAILURE, STOP}
        if is_begun and not folder.is_local and folder.exists(RESULT):
            files = files | {RESULT}
        if RESULT in files:
            damage = None if folder.name in self._intact else self._find_damage(folder)
        elif FAILURE in files or {CONFIG, STOP} <= files:
            bad = [name for name in (CONFIG, FAILURE if FAILURE in files else STOP) if not folder.is_intact(name)]
            damage = f"{folder.uri}/{bad[0]} is damaged or was changed by hand" if bad else None
        if RESULT in files and damage is None:
            self._intact.add(folder.name)
            return COMPLETE
        if FAILURE in files and damage is None:
            return FAILED
        if damage is not None:
            self.damaged[folder.name] = damage
        elif {CONFIG, STOP} <= files:  # without a config it has not begun, and ends as soon as it does
            return STOPPED
        return INTERRUPTED if files & {CONFIG, RESULT, FAILURE} else ABSENT

    def _each(self, look: Callable[[str], T], signatures: Sequence[str]) -> list[T]:
        """Return ``look`` of each signature, from several threads if the storage answers in tens of ms, not µs."""
        if self.root.is_local:
            return list(map(look, signatures))
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(look, signatures))

    def begin(self, work: Work, *, study: str, git_commit: str | None) -> None:
        """Write ``config.json`` of a new stage or trial, and remove an earlier failure."""
        invalidate(self.root)
        begin_record(self.folder(work.kind, work.signature), describe_work(work, study=study, git_commit=git_commit))

    def record_failure(self, work: Work, details: dict[str, Any], *, study: str, git_commit: str | None) -> None:
        """Write ``failure.json``, also for a trial that never began because its stage failed."""
        self.begin(work, study=study, git_commit=git_commit)
        folder = self.folder(work.kind, work.signature)
        failure = {
            "signature": work.signature,
            "status": FAILED,
            "reason": details["reason"],
            "message": details["message"],
            "traceback": details.get("traceback", ""),
            # The notes have lost processes, but neither an attempt that raised nor lost slots.
            "attempts": max(
                1, count_lost(read_attempts(folder)) + details.get("losses", details["reason"] not in LOST)
            ),
            "timestamp_ms": int(time.time() * 1000),
        }
        if "attempt" in details:  # it raised, and its slot has measured how long it took
            failure["attempt"] = details["attempt"]
        folder.write_json(FAILURE, failure)

    def read(self, kind: str, signature: str) -> Record:
        """Return the record of one stage or trial.

        Raises:
            StorageError: a file is missing or damaged; the message names it.
        """
        folder = self.folder(kind, signature)
        files = set(folder.children())
        result = folder.read_json(RESULT) if RESULT in files else None
        added = read_added(folder) if ADDED in files and result is not None else ()
        has_ended = bool(files & {RESULT, FAILURE})
        return Record(
            signature=signature,
            kind=kind,
            config=folder.read_json("config.json"),
            epochs=folder.read_lines("epochs.jsonl"),
            result=merge_metrics(result, added) if result is not None and added else result,
            failure=folder.read_json(FAILURE) if FAILURE in files else None,
            attempts=read_attempts(folder) if ATTEMPTS in files else (),
            stop=folder.read_json(STOP) if STOP in files and not has_ended else None,
            added=added,
        )

    def records(
        self, kind: str, *, signatures: Container[str] | None = None, states: Container[str] = STARTED
    ) -> list[Record]:
        """Return the records of stages or trials, sorted by signature.

        Args:
            kind: stage or trial.
            signatures: signatures to read, of those that have started; None: all.
            states: states to read.

        Raises:
            StorageError: a record is damaged; the message names the file.
        """
        wanted = [
            signature
            for signature, state in self._states(kind)
            if state in states and (signatures is None or signature in signatures)
        ]
        return list(self.read_each(kind, wanted))

    def read_each(self, kind: str, signatures: Sequence[str]) -> Iterator[Record]:
        """Yield the records with these signatures one after another: all of them at once may be gigabytes.

        Raises:
            StorageError: ``states`` has found a record damaged, or it is damaged now; the message names the file.
        """
        damaged = [self.damaged[signature] for signature in signatures if signature in self.damaged]
        if damaged:
            raise StorageError(f"{damaged[0]}: `robustsweep run` makes it again")
        look = partial(self.read, kind)
        if self.root.is_local:
            yield from map(look, signatures)
            return
        with ThreadPoolExecutor(16) as pool:
            yield from pool.map(look, signatures)

    def write_plan(self, plan: Plan, about: dict[str, Any]) -> None:
        """Write ``plan.json``: the plan, and the facts about the study that the report and the explorer need."""
        self.root.write_json("plan.json", about | plan.as_json())

    def read_plan(self) -> dict[str, Any]:
        """Return the content of ``plan.json``.

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
