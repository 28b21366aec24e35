"""Open work → Ray Tune. The only module that names ray.

Tune starts actors where resources are free and tells when one is lost; what is to be done, and what has been done, it
is never asked. A searcher hands out what the desk has, one Tune trial carrying several of ours when they are short, and
says "nothing ready" while all that is left waits for a stage.
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
from collections.abc import Callable, Sequence
from functools import partial
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
# A worker per CPU that is started in case somebody needs it, and imports what ours import: 1.3 CPU s on 2 cores.
os.environ.setdefault("RAY_enable_worker_prestart", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# What Ray prints on a driver's terminal, whatever ``log_to_driver`` says: of a lost node, the log of its raylet.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

import ray
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from orchestrator.desk import Desk
from orchestrator.resources import Slots, num_slots
from orchestrator.slot import ChunkRunner, pack, unpack
from orchestrator.worker import MEMORY_ADVICE, ZYGOTE
from orchestrator.zygote import CRASHED, OUT_OF_MEMORY
from trainables.errors import ClusterLostError, InfrastructureError

# Tune hands the driver's cloud keys to its actors in a runtime environment, and Ray writes those into log files that
# everybody on the machine can read. Actors have the keys of the node that they run on.
class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}

#: A head, or a raylet of this machine, that does not answer for so long is lost. Ray would end this process 60 s after
#: its head (gcs_rpc_server_reconnect_timeout_s), without a word on how to go on, and wait for its raylet for ever.
PATIENCE_SECONDS = 30.0
#: How often they are asked.
_LOOK_SECONDS = 3.0

#: What decides on early stopping (``stopping_rules.py``); named here, where ray is imported as we want it.
SCHEDULERS = tune.schedulers

#: Reports of all slots together that Tune's loop takes without falling behind; it can do some 40 a second.
REPORTS_PER_SECOND = 16.0


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
    if not address.rpartition(":")[2].isdecimal():
        return  # "auto"
    try:
        _knock(address.removeprefix("ray://"))
    except OSError as error:
        raise InfrastructureError(
            f"could not join the Ray cluster at {address}: {error}; is its head running, and may this machine reach it?"
        ) from error


def _knock(address: str) -> None:
    """Connect, and no more."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=10.0).close()


def disconnect() -> None:
    """Leave or stop Ray."""
    ray.shutdown()


class Handing(Searcher):  # type: ignore[misc]  # ray is untyped
    """Hands out the desk's works to Tune, a chunk per Tune trial.

    Args:
        desk: where the work is.
        report_seconds: how often a slot tells what has happened.
        read_error: Tune trial → what is known of its end (``Desk.release``).
    """

    def __init__(self, desk: Desk, *, report_seconds: float, read_error: Callable[[str], dict[str, str]]) -> None:
        super().__init__()
        self._desk, self._report_seconds, self._read_error = desk, report_seconds, read_error

    def suggest(self, trial_id: str) -> Any:
        """Return the next chunk, None when nothing is ready, FINISHED when nothing is left."""
        chunk = self._desk.take(trial_id)
        if chunk is None:
            return Searcher.FINISHED if self._desk.is_finished else None
        signature = chunk["works"][0]["record"]["signature"]
        return {"chunk": pack({**chunk, "report_seconds": self._report_seconds}), "signature": signature}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on what a slot has to tell."""
        self._desk.tell(trial_id, json.loads(result.get("events", "[]")))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Settle what is left of a chunk."""
        self.on_trial_result(trial_id, result or {})
        self._desk.release(trial_id, error=partial(self._read_error, trial_id) if error else None)

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

    def __init__(self, on_recover: Callable[[str], None]) -> None:
        self._trials: Sequence[Any] = ()
        self._on_recover = on_recover

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._trials = trials

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_recover(trial.trial_id)

    def read_error(self, trial_id: str) -> dict[str, str]:
        """Return reason, message and traceback of a Tune trial that ended with an error."""
        trial = next(trial for trial in reversed(self._trials) if trial.trial_id == trial_id)
        text = Path(trial.error_file).read_text(errors="replace")
        reason, message = CRASHED, "the worker was lost; its machine or Ray actor ended"
        if "running low on memory" in text:  # what Ray's memory monitor says
            reason, message = OUT_OF_MEMORY, f"Ray ended its slot, the machine was low on memory: {MEMORY_ADVICE}"
        return {"reason": reason, "message": message, "traceback": text}

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


class _Tuning(threading.Thread):
    """Runs Tune, in a thread of its own: a Ray that has lost its head holds whoever calls it, and no signal helps."""

    def __init__(self, tuner: tune.Tuner) -> None:
        super().__init__(name="tune", daemon=True)
        self._tuner = tuner
        self._error: Exception | None = None

    def run(self) -> None:
        """Body of the thread."""
        try:
            self._tuner.fit()
        except Exception as error:  # noqa: BLE001 - the thread's boundary: ``wait`` raises it where it is waited for
            self._error = error

    def wait(self) -> None:
        """Return when Tune has ended.

        Raises:
            ClusterLostError: Tune may never end.
        """
        answered = dict.fromkeys(_find_peers(), time.monotonic())
        while self.is_alive():
            self.join(_LOOK_SECONDS)
            for peer, last in answered.items():
                try:
                    _knock(peer)
                    answered[peer] = time.monotonic()
                except OSError as error:
                    if time.monotonic() - last > PATIENCE_SECONDS:
                        raise ClusterLostError(
                            f"lost Ray: {peer} has not answered for {PATIENCE_SECONDS:.0f} s ({error}); what is "
                            "finished is in the ledger, and what ran goes on from its last epoch"
                        ) from error
        if self._error is not None:
            raise self._error


def _find_peers() -> set[str]:
    """Return the addresses of those without whom nothing goes on: the head, and the raylet of this machine."""
    context = ray.get_runtime_context()
    own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return {context.gcs_address, f"{own['NodeManagerAddress']}:{own['NodeManagerPort']}"}


def execute(desk: Desk, *, study: str, slots: Slots, max_retries: int, stop: threading.Event) -> None:
    """Work at the desk until each work is complete or failed, or until soon after ``stop`` is set.

    Args:
        desk: where the work is.
        study: its name.
        slots: resources of one trial.
        max_retries: how often a lost actor is replaced.
        stop: ends running trials; they go on from their last checkpoint in a later run.

    Raises:
        ClusterLostError: the head of the cluster, or the raylet of this machine, is gone.
    """
    number = num_slots(ray.cluster_resources(), slots)
    desk.set_num_slots(number)
    desk.expect_successors(may_overlap=slots.max_concurrent is None)
    tidings = _Tidings(desk.lose)
    handing = Handing(desk, report_seconds=max(1.0, number / REPORTS_PER_SECOND), read_error=tidings.read_error)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the ledger, and told to the listener
    scratch = tempfile.mkdtemp(prefix="robustsweep-tune-")  # Tune insists on a place; nothing in it is read again
    tuning = _Tuning(
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
                name=study,
                stop=_StopWhenAsked(stop),
                callbacks=[tidings],
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=max_retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the ledger has them
                verbose=0,
            ),
        )
    )
    tuning.start()
    try:
        tuning.wait()
    finally:
        if tuning.is_alive():
            desk.close()
        shutil.rmtree(scratch, ignore_errors=True)
