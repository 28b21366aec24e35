"""Open work → Ray Tune. The only module that names ray.

Tune starts actors where resources are free and tells when one is lost; what is to be done, and what has been done, it
is never asked. A searcher hands out open work, one Tune trial carrying several of ours when they are short, and says
"nothing ready" while all that is left waits for a stage.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before ray is imported. The ledger is the truth: no snapshots, no log files per trial, no usage report; signals are
# the driver's business.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(10**9))
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # only the older output is silent when told so
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.ledger import Ledger, describe_upstream
from orchestrator.open_work import CHUNK_SECONDS, OpenWork
from orchestrator.plan import Work
from orchestrator.reconcile import COMPLETE, FAILED, INTERRUPTED
from orchestrator.slot import ChunkRunner, pack, unpack
from orchestrator.worker import ZYGOTE
from trainables.errors import InfrastructureError, StudyError

#: Reports of all slots together that Tune's loop takes without falling behind; it can do some 40 a second.
REPORTS_PER_SECOND = 16.0

#: Called in the scheduling loop with ("started" | "event" | "ended", work, details): must be quick and never raise.
Listener = Callable[[str, Work, dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What the workers of a run have to know."""

    #: ``trainables.config.Execution`` as JSON.
    execution: dict[str, Any]
    #: Names the zygotes of this run.
    token: str
    #: What they import.
    preload: tuple[str, ...]
    #: Work → content of its ``config.json``.
    describe: Callable[[Work], dict[str, Any]]


@dataclass(frozen=True)
class Slots:
    """What one trial takes, and how trials are retried."""

    cpus: float
    gpus: float
    max_concurrent: int | None
    max_retries: int
    stall_seconds: float


def connect(address: str | None) -> dict[str, float]:
    """Start a local Ray, or join the cluster at ``address``; return its resources.

    Without an address a Ray that happens to run on this machine is never joined.

    Raises:
        InfrastructureError: Ray does not start, or the cluster does not answer.
    """
    if address is not None:
        _check_listens(address)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False if address is None else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
            # Nothing of size passes through the object store.
            **({"object_store_memory": 100 * 2**20} if address is None else {}),
        )
        resources: dict[str, float] = ray.cluster_resources()
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        what = f"could not join the Ray cluster at {address}" if address else "could not start Ray on this machine"
        raise InfrastructureError(f"{what}: {error}; robustsweep doctor looks at what is there") from error
    return resources


def _check_listens(address: str) -> None:
    """Ray itself tries for several minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto"
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise InfrastructureError(
            f"could not join the Ray cluster at {address}: {error}; is its head running, and may this machine reach it?"
        ) from error


def check_fits(resources: Mapping[str, float], slots: Slots) -> None:
    """Refuse a trial larger than this machine: Ray would wait for ever for a machine to be added.

    Raises:
        StudyError: a trial asks for more CPUs or GPUs than there are.
    """
    for key, asked, found in (
        ("cpus_per_trial", slots.cpus, resources.get("CPU", 0.0)),
        ("gpus_per_trial", slots.gpus, resources.get("GPU", 0.0)),
    ):
        if asked > found:
            raise StudyError(
                f"execution.{key}: a trial asks for {asked:g}, and this machine has {found:g}; "
                "ask for less, or join a cluster with --address"
            )


def disconnect() -> None:
    """Leave or stop Ray."""
    ray.shutdown()


def num_slots(resources: Mapping[str, float], slots: Slots) -> int:
    """Return how many trials fit at once; at least 1, so that an empty autoscaling cluster is asked to grow."""
    if slots.max_concurrent is not None:
        return slots.max_concurrent
    fits = [resources.get("CPU", 0.0) / slots.cpus] if slots.cpus else []
    if slots.gpus:
        fits.append(resources.get("GPU", 0.0) / slots.gpus)
    return max(1, int(min(fits, default=1.0) + 1e-9))


class Handing(Searcher):  # type: ignore[misc]  # ray is untyped
    """Hands out open work to Tune, a chunk per Tune trial, and judges how each work ended.

    Args:
        open_work: what is to be done.
        ledger: where the workers find and leave everything.
        chunk: what all chunks have in common.
        describe: work → content of its ``config.json``.
        listen: told of every start, event and end.
        read_error: Tune trial → what Tune knows of its end.
    """

    def __init__(
        self,
        open_work: OpenWork,
        *,
        ledger: Ledger,
        chunk: dict[str, Any],
        describe: Callable[[Work], dict[str, Any]],
        listen: Listener,
        read_error: Callable[[str], str] = lambda trial_id: "",
    ) -> None:
        super().__init__()
        self._open, self._ledger, self._chunk, self._describe = open_work, ledger, chunk, describe
        self._listen, self._read_error = listen, read_error
        #: Tune trial → its works that have not ended; the first is the one that runs.
        self._running: dict[str, list[Work]] = {}
        self._begun: set[str] = set()
        #: Signature → how often the actor was lost that ran it.
        self._losses: Counter[str] = Counter()
        #: Machines that are known to write where this driver reads.
        self._shares_storage: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        """Return the next chunk, None when nothing is ready, FINISHED when nothing is left."""
        works = self._open.take()
        if not works:
            return Searcher.FINISHED if self._open.is_finished else None
        self._running[trial_id] = works
        created = {"created_ms": int(time.time() * 1000), "works": [self._request(work) for work in works]}
        return {"chunk": pack({**self._chunk, **created}), "signature": works[0].signature}

    def _request(self, work: Work) -> dict[str, Any]:
        return {
            "record": self._describe(work),
            "folder": self._ledger.folder(work.kind, work.signature).uri,
            "encoder": self._ledger.folder("stage", work.needs[0]).uri if work.needs else None,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on what a slot has to tell."""
        for event in json.loads(result.get("events", "[]")):
            work = self._open.get(event["signature"])
            if work is None or work not in self._running.get(trial_id, ()):
                continue  # told before its actor was lost
            if event["event"] == "begun":
                if work.signature not in self._begun:
                    self._begun.add(work.signature)
                    self._listen("started", work, {})
            elif event["event"] == "returned":
                self._running[trial_id].remove(work)
                self._open.give_back([work])
            elif event["event"] == "done":
                self._running[trial_id].remove(work)
                self._end(work, self._judge(work, event))
            else:
                self._listen("event", work, event)

    def on_trial_recover(self, trial_id: str) -> None:
        """Remember whose actor was lost; Tune starts another one with the same chunk."""
        self._losses.update(work.signature for work in self._running.get(trial_id, ())[:1])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Settle what is left of a chunk: nothing, unless it was stopped or its actor was lost too often."""
        self.on_trial_result(trial_id, result or {})
        left = self._running.pop(trial_id, [])
        for number, work in enumerate(left):
            if self._ledger.folder(work.kind, work.signature).exists("result.json"):
                self._end(work, {"status": COMPLETE})  # whatever happened to the actor afterwards
            elif not error:
                self._end(work, {"status": INTERRUPTED})
            elif number == 0 and self._losses[work.signature] >= self._chunk["max_retries"]:
                self._end(work, {"status": FAILED, "reason": "crashed", "traceback": self._read_error(trial_id)})
            else:
                self._losses[work.signature] += number == 0
                self._open.give_back([work])

    def _judge(self, work: Work, event: dict[str, Any]) -> dict[str, Any]:
        """Return how a work ended: what its slot says, if that is what lies in the ledger."""
        if event["status"] != COMPLETE or event["host"] in self._shares_storage:
            return event
        folder = self._ledger.folder(work.kind, work.signature)
        if not folder.exists("result.json"):
            message = f"{event['host']} finished, and there is no result.json in {folder.uri}: "
            return {"status": FAILED, "reason": "error", "message": message + "is this storage shared by all machines?"}
        self._shares_storage.add(event["host"])
        return event

    def _end(self, work: Work, details: dict[str, Any]) -> None:
        self._listen("ended", work, details)
        if details["status"] == COMPLETE:
            self._open.complete(work, seconds=details.get("seconds"))
            return
        for dependant in self._open.drop(work):
            if details["status"] == FAILED:
                self._listen("ended", dependant, describe_upstream(work))

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher into a file that we never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: the ledger is the state."""


class Slot(tune.Trainable):  # type: ignore[misc]
    """The actor around a ``ChunkRunner``: Tune starts it where resources are free, and uses it again."""

    #: How the zygote of its node is started.
    command: Sequence[str] = ZYGOTE

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first chunk."""
        self._runner = ChunkRunner(unpack(config["chunk"]), command=self.command)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next chunk."""
        self._runner.begin(unpack(new_config["chunk"]))
        return True

    def step(self) -> dict[str, Any]:
        """Return what has happened; as text: Tune would flatten nested events into keys of its own."""
        return {"events": json.dumps(self._runner.step()), "done": self._runner.is_done}

    def cleanup(self) -> None:
        """End whatever runs."""
        self._runner.close()


class _Tidings(tune.Callback):  # type: ignore[misc]
    """What Tune tells callbacks and not searchers: that an actor was lost, and what it knows of the reason."""

    def __init__(self) -> None:
        self._trials: Sequence[Any] = ()
        self.on_recover: Callable[[str], None] = lambda trial_id: None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._trials = trials

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.on_recover(trial.trial_id)

    def read_error(self, trial_id: str) -> str:
        """Return the traceback of a Tune trial that ended with an error."""
        trial = next(trial for trial in reversed(self._trials) if trial.trial_id == trial_id)
        return Path(trial.error_file).read_text(errors="replace")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for the searcher: pickled into a file that we never read


class _StopWhenAsked(tune.Stopper):  # type: ignore[misc]
    def __init__(self, asked: threading.Event) -> None:
        self._asked = asked

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for the searcher: pickled into a file that we never read

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._asked.is_set()


def execute(
    works: Sequence[Work],
    *,
    complete: Iterable[str],
    ledger: Ledger,
    job: Job,
    slots: Slots,
    listen: Listener,
    stop: threading.Event,
) -> None:
    """Run all ``works`` and return when each is complete or failed, or soon after ``stop`` is set.

    Args:
        works: open work in the order of preference.
        complete: signatures that count as done already.
        ledger: where the workers find and leave everything.
        job: what the workers have to know.
        slots: resources of one trial.
        listen: told of every start, event and end.
        stop: ends running trials; they go on from their last checkpoint in a later run.
    """
    number = min(len(works), num_slots(ray.cluster_resources(), slots))
    tidings = _Tidings()
    handing = Handing(
        OpenWork(works, complete=complete, num_slots=number),
        ledger=ledger,
        chunk={
            "execution": job.execution,
            "token": job.token,
            "preload": job.preload,
            "stall_seconds": slots.stall_seconds,
            "max_retries": slots.max_retries,
            "chunk_seconds": CHUNK_SECONDS,
            "report_seconds": max(1.0, number / REPORTS_PER_SECOND),
        },
        describe=job.describe,
        listen=listen,
        read_error=tidings.read_error,
    )
    tidings.on_recover = handing.on_trial_recover
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the ledger, and told by ``listen``
    scratch = tempfile.mkdtemp(prefix="robustsweep-tune-")  # Tune insists on a place; nothing in it is read again
    try:
        tune.Tuner(
            tune.with_resources(Slot, {"cpu": slots.cpus, "gpu": slots.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=handing,
                num_samples=-1,
                max_concurrent_trials=number,
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["signature"],
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=ledger.study,
                stop=_StopWhenAsked(stop),
                callbacks=[tidings],
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=slots.max_retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the ledger has them
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
