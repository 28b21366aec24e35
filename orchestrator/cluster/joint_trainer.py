"""Train stages and trials in several processes together, each with a GPU of its own, through Ray Train.

Every attempt is one ``TorchTrainer`` in an actor of ours: with the actor its processes end. Claims, retries and fences
are those of all attempts (``ChunkRunner``); Ray Train only places the processes and joins them by
``torch.distributed``. A trial is evaluated in a slot afterwards: evaluation needs one process.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from orchestrator.cluster.cluster_size import ClusterSize
from orchestrator.cluster.connection import ray
from orchestrator.cluster.ray_thread import CHECK_SECONDS, RayThread
from orchestrator.execution.chunk_runner import ChunkRunner, Client
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.fork_client import ProcessLostError, interpret_failure
from orchestrator.execution.resources import JointSlots, num_joint_slots
from orchestrator.ledger.failures import describe_failure
from trainables.errors import PeerLostError

#: Function that carries out a request in every process; its second argument is called with each progress event.
Handle = Callable[[Mapping[str, Any], Callable[[dict[str, Any]], None]], None]
#: Seconds between two reports of a joint slot, and longest wait for the events of its processes.
_REPORT_SECONDS, _WAIT_SECONDS = 1.0, 0.5


def run_process(config: dict[str, Any]) -> None:
    """Carry out a request in one of the processes (``train_loop_per_worker`` of ``TorchTrainer``).

    Args:
        config: ``request``, ``handle``, and ``attempt``: the actor that takes the events.
    """
    from ray import train

    def report(event: dict[str, Any]) -> None:
        if train.get_context().get_world_rank() == 0:
            send(event)

    def send(event: dict[str, Any]) -> None:
        ray.get(config["attempt"].put.remote(event))

    report({"event": "placed", "group": ray.util.get_current_placement_group()})
    try:
        config["handle"](config["request"], report)
    except PeerLostError:  # which may be tried again, and is not the failure that began it
        raise
    except Exception as error:
        send({"event": "failed", **describe_failure(error)})
        raise


class IsOver(Protocol):
    """Function that returns whether a joint slot is to end, at once, or once it is idle."""

    def __call__(self, *, is_idle: bool) -> bool: ...  # noqa: D102


class _Attempt:
    """Actor that runs a ``TorchTrainer`` and hands its events on."""

    def __init__(self) -> None:
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()

    def run(self, request: dict[str, Any], handle: Handle, slots: JointSlots) -> None:
        """Carry out a request in several processes; raise if one of them fails or is lost."""
        from ray import train
        from ray.train.torch import TorchConfig, TorchTrainer

        own = ray.get_runtime_context().current_actor
        scratch = tempfile.mkdtemp(prefix="robustsweep-train-")  # Ray Train needs a folder; nothing in it is read
        has_gpu = slots.gpus > 0
        try:
            TorchTrainer(
                run_process,
                train_loop_config={"request": request, "handle": handle, "attempt": own},
                torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if has_gpu else "gloo"),
                scaling_config=train.ScalingConfig(
                    num_workers=slots.num_processes,
                    use_gpu=has_gpu,
                    resources_per_worker={"CPU": slots.cpus, **({"GPU": slots.gpus} if has_gpu else {})},
                ),
                run_config=train.RunConfig(storage_path=scratch),
            ).fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def put(self, event: dict[str, Any]) -> None:
        """Add an event of a process."""
        self._events.put(event)

    def take(self, seconds: float) -> list[dict[str, Any]]:
        """Return the events since the last call; waits for one for ``seconds`` at most."""
        try:
            events = [self._events.get(timeout=seconds)]
        except queue.Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        return events


class JointClient:
    """Runs one request at a time in several processes, for a ``ChunkRunner``.

    Args:
        handle: carries out a request, in every process.
        slots: number and resources of the processes.
    """

    def __init__(self, handle: Handle, slots: JointSlots) -> None:
        self._handle, self._slots = handle, slots
        self._attempt: Any = None
        self._run: Any = None
        self._events: deque[dict[str, Any]] = deque()
        self._failure: dict[str, Any] | None = None
        self._stopped: dict[str, Any] | None = None
        self._group: Any = None

    def begin(self, request: Mapping[str, Any]) -> None:
        """Send a request (see ``driver.child_process.run_request``). Does not wait for free resources."""
        self.close()
        # Processes on other nodes cannot see the slot's sign of life, and end with the actor that they report to.
        own = {name: value for name, value in request.items() if name != "heard"}
        self._attempt = ray.remote(num_cpus=0, max_concurrency=4)(_Attempt).remote()
        self._run = self._attempt.run.remote(own, self._handle, self._slots)

    def next_event(self, timeout_seconds: float) -> dict[str, Any] | None:
        """Return the next event of the processes, None if none came in time; the last one is ``done``.

        Raises:
            ProcessLostError: a process is gone, or there was no memory.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            while self._events:
                event = self._events.popleft()
                match event["event"]:
                    case "placed":
                        self._group = event["group"]
                    case "failed":
                        self._failure = self._failure or {key: value for key, value in event.items() if key != "event"}
                    case "stopped_early":
                        self._stopped = {"event": "done", "status": "stopped_early", "epoch": event["epoch"]}
                    case _:
                        return event
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            if not self._receive(min(remaining, _WAIT_SECONDS)):
                return self._interpret_end()

    def _receive(self, seconds: float) -> bool:
        """Wait for events; return False if there are none, and will be none."""
        has_ended = bool(ray.wait([self._run], timeout=0)[0])
        try:
            self._events += ray.get(self._attempt.take.remote(0.0 if has_ended else seconds))
        except ray.exceptions.RayActorError as error:
            raise ProcessLostError(f"the actor that runs the processes was lost: {error}") from error
        return bool(self._events) or not has_ended

    def _interpret_end(self) -> dict[str, Any]:
        try:
            ray.get(self._run)
        except ray.exceptions.RayError as error:
            if self._failure is not None:
                return interpret_failure(self._failure)
            count = self._slots.num_processes
            raise ProcessLostError(f"one of the {count} processes was lost: {error}") from error
        return self._stopped or {"event": "done", "status": "complete"}

    def kill(self) -> None:
        """End the processes, if any: Ray ends them with the actor that owns them."""
        if self._attempt is not None:
            ray.kill(self._attempt)
        if self._group is not None:  # Ray frees it with the driver's job only, Ray Train where there is a dashboard
            ray.util.remove_placement_group(self._group)

    def close(self) -> None:
        """End the processes, if any, and forget their events."""
        self.kill()
        self._attempt = self._run = self._failure = self._stopped = self._group = None
        self._events.clear()


def execute(dispatcher: Dispatcher, handle: Handle, *, kind: str, slots: JointSlots, stop: threading.Event) -> None:
    """Train stages, or trials, of several processes until none is ready, several at once where there is room.

    Args:
        dispatcher: source of stages and trials, and receiver of events.
        handle: carries out a request, in every process.
        kind: stage or trial.
        slots: number and resources of the processes of one.
        stop: event that ends what is running; it continues from its last checkpoint in a later run.

    Raises:
        ClusterLostError: the head of the cluster, or the raylet of this machine, is gone.
    """
    over, threads = threading.Event(), dict[int, RayThread]()
    body = partial(
        run_slots,
        dispatcher,
        partial(JointClient, handle, slots),
        kind=kind,
        count=ClusterSize(partial(num_joint_slots, slots=slots)).count,
        is_over=lambda: stop.is_set() or over.is_set(),
        threads=threads,
    )
    keeper = RayThread(body, name="joint")
    keeper.start()
    try:
        keeper.wait()
    finally:
        over.set()
        for thread in (keeper, *threads.values()):
            thread.join(CHECK_SECONDS)
        if any(thread.is_alive() for thread in (keeper, *threads.values())):  # in a call of a Ray that is lost
            dispatcher.close()


def run_slots(
    dispatcher: Dispatcher,
    make_client: Callable[[], Client],
    *,
    kind: str,
    count: Callable[[], int],
    is_over: Callable[[], bool],
    threads: dict[int, RayThread],
) -> None:
    """Train stages, or trials, in joint slots, a thread each, until none is ready and none runs.

    Args:
        dispatcher: source of stages and trials, and receiver of events.
        make_client: makes what trains one.
        kind: stage or trial.
        count: returns how many slots there is room for; looked at again and again, since nodes join and are lost.
        is_over: returns whether what is running is to end.
        threads: number of a slot → its thread; filled here, for the caller to wait for.
    """

    def is_slot_over(number: int, *, is_idle: bool) -> bool:
        return is_over() or (is_idle and number >= count())

    while dispatcher.has_joint(kind) and not is_over():
        for number in [number for number, thread in threads.items() if not thread.is_alive()]:
            threads.pop(number).wait()  # raises the error that has ended it
        for number in range(count()):
            if number not in threads:
                body = partial(_run_slot, dispatcher, kind, number, make_client, partial(is_slot_over, number))
                threads[number] = RayThread(body, name=f"joint-{number}")
                threads[number].start()
        dispatcher.wait(_REPORT_SECONDS)
    for thread in threads.values():
        thread.wait()


def _run_slot(
    dispatcher: Dispatcher, kind: str, number: int, make_client: Callable[[], Client], is_over: IsOver
) -> None:
    """Train one after another in a joint slot, until none is ready and none runs in another joint slot."""
    while dispatcher.has_joint(kind) and not is_over(is_idle=True):
        chunk = dispatcher.next_joint_chunk(number, kind)
        if chunk is None:
            dispatcher.wait(_REPORT_SECONDS)  # for an end in another slot, which something here may wait for
            continue
        runner = ChunkRunner({**chunk, "report_seconds": _REPORT_SECONDS}, client=make_client())
        try:
            while not runner.is_done and not is_over(is_idle=False):
                dispatcher.report_joint(number, runner.step())
        finally:
            runner.close()
            dispatcher.release_joint(number)
