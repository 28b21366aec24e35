"""Run the dispatcher's chunks in actors of Ray Tune.

Tune starts actors where resources are free and reports lost actors. It does not decide which stages and trials are open
or done. A searcher gives it one chunk per Tune trial, several short trials in one chunk, and answers "nothing ready"
while all open trials wait for a stage.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.cluster.cluster_size import ClusterSize
from orchestrator.cluster.connection import ray, tune
from orchestrator.cluster.late_nodes import RETRY_SECONDS, LateSlot, make_runner
from orchestrator.cluster.ray_thread import CHECK_SECONDS, RayThread
from orchestrator.execution.chunk_settings import pack, unpack
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.fork_client import MEMORY_ADVICE
from orchestrator.execution.resources import Slots, num_slots
from orchestrator.ledger.failures import CRASHED, OUT_OF_MEMORY

#: Reports per second, of all slots together, with which Tune's loop does not fall behind; it can do some 40.
REPORTS_PER_SECOND = 16.0
#: Limit on concurrent trials that Tune is given: it fixes its own at the start, and nodes join later.
_NO_LIMIT = 10**9


class DispatchSearcher(tune.search.Searcher):  # type: ignore[misc]  # ray is untyped
    """Gives Tune the dispatcher's chunks, one per Tune trial.

    Args:
        dispatcher: source of chunks and receiver of events.
        count_slots: returns how many trials may run at once, which changes as nodes join and are lost.
        read_error: Tune trial → reason, message and traceback of its error (``Dispatcher.release``).
        print_line: prints that a node gets no trial.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        count_slots: Callable[[], int],
        read_error: Callable[[str], dict[str, str]],
        print_line: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._dispatcher, self._count_slots, self._read_error = dispatcher, count_slots, read_error
        self._print_line = print_line
        #: Tune trials that have a slot; of these, those whose node cannot use the storage.
        self._live: set[str] = set()
        self._refused: set[str] = set()
        #: Nodes that were named.
        self._named: set[str] = set()

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Return True: ``suggest`` limits what runs at once."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Return the next chunk, None if nothing is ready.

        FINISHED if nothing is left, or all of it waits for joint slots, or for a larger share of a GPU.
        """
        number = self._count_slots()
        self._dispatcher.set_num_slots(max(1, number - len(self._refused)))
        if len(self._live) >= number:
            return None
        chunk = self._dispatcher.next_chunk(trial_id)
        if chunk is None:
            return tune.search.Searcher.FINISHED if _is_over(self._dispatcher) else None
        self._live.add(trial_id)
        signature, report_seconds = chunk["works"][0]["record"]["signature"], max(1.0, number / REPORTS_PER_SECOND)
        return {"chunk": pack({**chunk, "report_seconds": report_seconds}), "signature": signature}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass the events of a slot to the dispatcher; name a node, once, that cannot use the storage."""
        self._dispatcher.report_events(trial_id, json.loads(result.get("events", "[]")))
        if "refusal" in result:
            self._refused.add(trial_id)
            if result["refusing_node"] not in self._named:
                self._named.add(result["refusing_node"])
                self._print_line(
                    f"{result['refusal']}. It joined late; until it can, which is tried every {RETRY_SECONDS:.0f} s, "
                    "no trial runs there"
                )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass the last events to the dispatcher, and release the slot."""
        self._live.discard(trial_id)
        self._refused.discard(trial_id)
        self.on_trial_result(trial_id, result or {})
        self._dispatcher.release(trial_id, error=partial(self._read_error, trial_id) if error else None)

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune pickles its searcher into a file that is never read."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is the state."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: the ledger is the state."""


class SlotActor(tune.Trainable):  # type: ignore[misc]
    """Actor around a ``ChunkRunner``. Tune starts it where resources are free, and reuses it for further chunks."""

    def setup(self, config: dict[str, Any], probed: Collection[str] | None = None) -> None:
        """Start the first chunk; a node that is not among ``probed`` tries the storage before (``late_nodes``)."""
        self._runner, self._lock = make_runner(unpack(config["chunk"]), probed), threading.Lock()
        threading.Thread(target=self._watch, name="orphan", daemon=True).start()

    def _watch(self) -> None:
        """End the fork server of a machine that was cut off: nobody calls ``step``, and no trial runs any more."""
        while True:
            time.sleep(CHECK_SECONDS)
            with self._lock:
                self._runner.disconnect_if_orphaned()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next chunk."""
        with self._lock:
            self._runner.begin(unpack(new_config["chunk"]))
        return True

    def step(self) -> dict[str, Any]:
        """Return the new events, as text, since Tune would flatten nested events into keys of its own."""
        with self._lock:
            said = {"events": json.dumps(self._runner.step()), "done": self._runner.is_done}
            if isinstance(self._runner, LateSlot) and self._runner.refusal is not None:
                said |= {"refusal": self._runner.refusal, "refusing_node": ray.get_runtime_context().get_node_id()}
            return said

    def cleanup(self) -> None:
        """Kill the running process, if any."""
        with self._lock:
            self._runner.close()


class SlotCallback(tune.Callback):  # type: ignore[misc]
    """Callback that counts lost actors, which Tune does not tell its searchers, and clears what it keeps of chunks.

    Args:
        on_recover: called with the id of the Tune trial that lost its actor; returns signature → number of the next
            attempt.
    """

    def __init__(self, on_recover: Callable[[str], dict[str, int]]) -> None:
        self._trials: Sequence[Any] = ()
        self._on_recover = on_recover

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Keep the list of Tune's trials, for ``read_error``."""
        self._trials = trials

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count the loss of an actor; the next one gets the rest of its chunk."""
        numbers = self._on_recover(trial.trial_id)
        chunk = unpack(trial.config["chunk"])
        # What has ended, or was given back, is not run again.
        works = [
            {**work, "number": numbers[work["record"]["signature"]]}
            for work in chunk["works"]
            if work["record"]["signature"] in numbers
        ]
        trial.config["chunk"] = pack({**chunk, "works": works})  # for the next actor, which Tune starts later

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Clear what Tune keeps of a chunk until its end, and then writes, several times each, into one string.

        Of 10,000 trials that were some 70 MiB.
        """
        trial.config.clear()
        trial.evaluated_params.clear()
        trial.set_experiment_tag(trial.trial_id)
        for kept in (
            trial.run_metadata.last_result,
            trial.run_metadata.metric_analysis,
            trial.run_metadata.metric_n_steps,
        ):
            kept.clear()
        trial.run_metadata.invalidate_cache()

    def read_error(self, trial_id: str) -> dict[str, str]:
        """Return reason, message and traceback of a Tune trial that ended with an error."""
        trial = next(trial for trial in reversed(self._trials) if trial.trial_id == trial_id)
        text = Path(trial.error_file).read_text(errors="replace")
        reason, message = CRASHED, "the client was lost; its machine or Ray actor ended"
        if "running low on memory" in text:  # words of Ray's memory monitor
            reason, message = OUT_OF_MEMORY, f"Ray ended its slot, the machine was low on memory: {MEMORY_ADVICE}"
        return {"reason": reason, "message": message, "traceback": text}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for the searcher: pickled into a file that we never read


def _is_over(dispatcher: Dispatcher) -> bool:
    """Return whether nothing is left for these slots: all is finished, or waits for slots of another kind."""
    return dispatcher.is_finished or dispatcher.waits_for_joint or dispatcher.waits_for_share


class _EventStopper(tune.Stopper):  # type: ignore[misc]
    def __init__(self, asked: threading.Event, is_over: Callable[[], bool]) -> None:
        self._asked, self._is_over = asked, is_over

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for the searcher: pickled into a file that we never read

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return "refusal" in result and self._is_over()  # a slot without work would never end

    def stop_all(self) -> bool:
        return self._asked.is_set()


def execute(
    dispatcher: Dispatcher,
    *,
    study: str,
    slots: Slots,
    max_retries: int,
    stop: threading.Event,
    probed: Collection[str] | None = None,
    print_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Run the dispatcher's chunks until every stage and trial is complete or failed, or soon after ``stop`` is set.

    Also ends where all that is left waits for several processes (``joint_trainer``), or for a larger share
    of a GPU (``Dispatcher.waits_for_share``).

    Args:
        dispatcher: source of chunks and receiver of events.
        study: name of the study.
        slots: resources of one trial.
        max_retries: how often a lost actor is replaced.
        stop: event that ends running trials; they continue from their last checkpoint in a later run.
        probed: ids of the nodes that can use the storage, others try it first; None: all can.
        print_line: prints which node that joined late cannot.

    Raises:
        ClusterLostError: the head of the cluster, or the raylet of this machine, is gone.
    """
    size = ClusterSize(partial(num_slots, slots=slots))
    dispatcher.set_num_slots(size.count())
    dispatcher.expect_tune_slots(may_overlap=slots.max_concurrent is None)
    losses = SlotCallback(dispatcher.record_loss)
    searcher = DispatchSearcher(dispatcher, count_slots=size.count, read_error=losses.read_error, print_line=print_line)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are in the ledger, and reported as events
    scratch = tempfile.mkdtemp(prefix="robustsweep-tune-")  # Tune needs a folder; nothing in it is read again
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(SlotActor, probed=probed), {"cpu": slots.cpus, "gpu": slots.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=_NO_LIMIT,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["signature"],
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=study,
            stop=_EventStopper(stop, lambda: _is_over(dispatcher)),
            callbacks=[losses],
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=max_retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the ledger has them
            verbose=0,
        ),
    )
    tuning = RayThread(tuner.fit, name="tune")
    tuning.start()
    try:
        tuning.wait()
    finally:
        if tuning.is_alive():
            dispatcher.close()
        shutil.rmtree(scratch, ignore_errors=True)
