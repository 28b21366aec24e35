"""Open work → Ray Tune. The only module that names ray.

Tune starts actors where resources are free and tells when one is lost; what is to be done, and what has been done, it
is never asked. A searcher hands out one open piece of work per Tune trial, stages before their dependants, and says
"nothing ready" while all that is left waits for a stage.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
import shutil
import tempfile
import threading
import time
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
from orchestrator.plan import Work
from orchestrator.reconcile import COMPLETE, FAILED, INTERRUPTED
from orchestrator.worker import ZYGOTE, Worker, WorkerLostError
from trainables.errors import InfrastructureError, StudyError
from trainables.storage import Folder

#: A slot reports at most this often: Tune's loop handles some 40 results a second.
REPORT_SECONDS = 1.0
#: A slot with nothing to report says so this often: between two reports it hears of nothing, a stop included.
ALIVE_SECONDS = 5.0

#: Called in the scheduling loop with ("started" | "event" | "ended", work, details): must be quick and never raise.
Listener = Callable[[str, Work, dict[str, Any]], None]


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


class OpenWork(Searcher):  # type: ignore[misc]  # ray is untyped
    """Hands out open work: by rank, and only when everything it needs is complete."""

    def __init__(self, works: Sequence[Work], *, complete: Iterable[str], ledger: Ledger, execution: dict[str, Any],
                 listen: Listener, read_error: Callable[[str], str] = lambda trial_id: "") -> None:  # fmt: skip
        super().__init__()
        self._read_error = read_error
        self._ledger, self._execution, self._listen = ledger, execution, listen
        done = set(complete)
        self._rank = {work.signature: rank for rank, work in enumerate(works)}
        self._works = {work.signature: work for work in works}
        self._missing = {work.signature: set(work.needs) - done for work in works}
        self._ready = [rank for rank, work in enumerate(works) if not self._missing[work.signature]]
        self._order = list(works)
        self._num_open = len(works)
        self._running: dict[str, Work] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return the request for the next work, None when nothing is ready, FINISHED when nothing is left."""
        if not self._ready:
            return None if self._num_open - len(self._running) > 0 else Searcher.FINISHED
        work = self._order[heapq.heappop(self._ready)]
        self._running[trial_id] = work
        self._listen("started", work, {})
        folder = self._ledger.folder(work.kind, work.signature)
        encoder = self._ledger.folder("stage", work.needs[0]).uri if work.needs else None
        return {"folder": folder.uri, "encoder": encoder, "execution": self._execution, "signature": work.signature}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass progress on."""
        if trial_id in self._running and not result.get("done") and result.get("event"):
            self._listen("event", self._running[trial_id], json.loads(result["event"]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a work and release what waited for it."""
        work = self._running.pop(trial_id, None)
        if work is None:
            return
        self._num_open -= 1
        folder = self._ledger.folder(work.kind, work.signature)
        details = _judge_end(result, error=error, is_complete=folder.exists("result.json"), uri=folder.uri)
        if details.get("reason") == "crashed":
            details["traceback"] = self._read_error(trial_id)
        self._listen("ended", work, details)
        if details["status"] == COMPLETE:
            self._release(work.signature)
        else:
            self._drop_dependants(work, is_failed=details["status"] == FAILED)

    def _release(self, signature: str) -> None:
        for dependant, missing in self._missing.items():
            if signature in missing:
                missing.discard(signature)
                if not missing:
                    heapq.heappush(self._ready, self._rank[dependant])

    def _drop_dependants(self, work: Work, *, is_failed: bool) -> None:
        """What waits for ``work`` cannot start in this run, and would otherwise be waited for without end."""
        for signature, missing in self._missing.items():
            if work.signature in missing:
                missing.clear()
                missing.add("never")
                self._num_open -= 1
                if is_failed:
                    self._listen("ended", self._works[signature], describe_upstream(work))

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher into a file that we never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: the ledger is the state."""


def _judge_end(result: dict[str, Any] | None, *, error: bool, is_complete: bool, uri: str) -> dict[str, Any]:
    """Return how a work ended: its last event, corrected by what lies in the ledger."""
    details: dict[str, Any] = json.loads(result["event"]) if result and result.get("event") else {}
    if is_complete:
        return details | {"status": COMPLETE}  # whatever happened to the actor afterwards
    if error:
        return {"status": FAILED, "reason": "crashed"}
    if details.get("status") == COMPLETE:
        message = f"the worker finished, and there is no result.json in {uri}: is this storage shared by all machines?"
        return {"status": FAILED, "reason": "error", "message": message}
    return details if details.get("status") == FAILED else {"status": INTERRUPTED}


class Slot(tune.Trainable):  # type: ignore[misc]
    """One long-lived actor: passes works to its ``Worker`` and its events to Tune."""

    #: How its zygote is started.
    command: Sequence[str] = ZYGOTE

    def setup(self, config: dict[str, Any]) -> None:
        """Start the zygote and the first work."""
        self._worker = Worker(num_threads=config["execution"]["num_threads"], command=self.command)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next work in this slot."""
        self._stall_seconds = new_config["execution"]["stall_seconds"]
        execution = {key: value for key, value in new_config["execution"].items() if key != "stall_seconds"}
        self._worker.begin({**new_config, "execution": execution})
        self._folder = Folder(new_config["folder"])
        self._last_sign = time.monotonic()
        return True

    def step(self) -> dict[str, Any]:
        """Return the newest event, at most one per ``REPORT_SECONDS``; none when nothing happened."""
        try:
            return self._next_report()
        except WorkerLostError as error:
            note = {"timestamp_ms": int(time.time() * 1000), "host": os.uname().nodename, "message": str(error)}
            self._folder.append_line("attempts.jsonl", json.dumps(note))
            raise

    def _next_report(self) -> dict[str, Any]:
        newest: dict[str, Any] | None = None
        started = time.monotonic()
        until = started + ALIVE_SECONDS
        while (left := until - time.monotonic()) > 0:
            event = self._worker.next_event(min(left, REPORT_SECONDS))
            if event is None:
                self._check_stall()
                continue
            self._last_sign = time.monotonic()
            newest, until = event, started + REPORT_SECONDS
            if event["event"] == "done":
                break
        done = newest is not None and newest["event"] == "done"
        # As text: Tune would flatten a nested event into keys of its own.
        return {"event": newest and json.dumps(newest), "done": done}

    def _check_stall(self) -> None:
        silent = time.monotonic() - self._last_sign
        if silent > self._stall_seconds:
            self._worker.kill()
            raise WorkerLostError(
                f"no sign of life for {silent:.0f} s (execution.stall_minutes); the process was killed"
            )

    def cleanup(self) -> None:
        """End the zygote and whatever runs in it."""
        self._worker.close()


class _Errors(tune.Callback):  # type: ignore[misc]
    """Reads what Tune knows of a trial's errors: of an actor that died before it could tell, there is nothing else."""

    def __init__(self) -> None:
        self._trials: Sequence[Any] = ()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._trials = trials

    def read(self, trial_id: str) -> str:
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
    execution: dict[str, Any],
    slots: Slots,
    listen: Listener,
    stop: threading.Event,
) -> None:
    """Run all ``works`` and return when each is complete or failed, or soon after ``stop`` is set.

    Args:
        works: open work in the order of preference.
        complete: signatures that count as done already.
        ledger: where the workers find and leave everything.
        execution: ``trainables.config.Execution`` as JSON.
        slots: resources of one trial.
        listen: told of every start (right before a work is handed out: writes its ``config.json``), event and end.
        stop: ends running trials; they go on from their last checkpoint in a later run.
    """
    errors = _Errors()
    searcher = OpenWork(
        works,
        complete=complete,
        ledger=ledger,
        execution={**execution, "stall_seconds": slots.stall_seconds},
        listen=listen,
        read_error=errors.read,
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the ledger, and told by ``listen``
    scratch = tempfile.mkdtemp(prefix="robustsweep-tune-")  # Tune insists on a place; nothing in it is read again
    try:
        tune.Tuner(
            tune.with_resources(Slot, {"cpu": slots.cpus, "gpu": slots.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=min(len(works), num_slots(ray.cluster_resources(), slots)),
                reuse_actors=True,
                trial_name_creator=lambda trial: trial.config["signature"],
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=ledger.study,
                stop=_StopWhenAsked(stop),
                callbacks=[errors],
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=slots.max_retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the ledger has them
                verbose=0,
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
