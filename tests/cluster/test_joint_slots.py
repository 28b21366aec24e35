"""Joint slots follow the size of the cluster: acted stages, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import cluster_size, ray_thread
from orchestrator.cluster.cluster_size import ClusterSize
from orchestrator.cluster.joint_trainer import run_slots
from orchestrator.cluster.ray_thread import RayThread
from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.resources import JointSlots, num_joint_slots
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.ledger import Ledger
from tests.support.plans import make_stage
from tests.support.processes import wait_until
from tests.support.recording_handler import EXECUTION, RecordingHandler, describe
from trainables.storage.folder import Folder


class Stages:
    """Acted stages of several processes, each of which ends once the test says so."""

    def __init__(self) -> None:
        #: Name of a running stage → what ends it.
        self.running: dict[str, threading.Event] = {}
        self.error: Exception | None = None

    def make_client(self) -> Client:
        return Client(self)

    def finish(self, name: str) -> None:
        self.running.pop(name).set()


class Client:
    """``chunk_runner.Client`` of one joint slot."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def begin(self, request: Mapping[str, Any]) -> None:
        self._folder, self._may_end = Folder(request["folder"]), threading.Event()
        self._stages.running[self._folder.read_json("config.json")["name"]] = self._may_end

    def next_event(self, timeout_seconds: float) -> dict[str, Any] | None:
        if self._stages.error is not None:
            raise self._stages.error
        if not self._may_end.wait(min(timeout_seconds, 0.05)):
            return None
        self._folder.write_json("result.json", {})
        return {"event": "done", "status": "complete"}

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Joint:
    """A dispatcher of four stages, and the thread that runs them in joint slots on a cluster of ``size``."""

    def __init__(self, root: Path) -> None:
        self.stages, self.size, self.stop = Stages(), 1, threading.Event()
        ledger = Ledger(str(root), "s")
        self.handler, self.threads = RecordingHandler(ledger), dict[int, RayThread]()
        works = [make_stage(name) for name in "abcd"]
        self.dispatcher = Dispatcher(
            WorkQueue(works, complete=(), num_slots=1, is_joint=lambda work: True),
            ledger=ledger,
            settings=ChunkSettings(EXECUTION, "token", "none", (), 0, 600.0, describe),
            on_event=self.handler.handle,
        )
        body = partial(
            run_slots,
            self.dispatcher,
            self.stages.make_client,
            kind="stage",
            count=lambda: self.size,
            is_over=self.stop.is_set,
            threads=self.threads,
        )
        self.keeper = RayThread(body, name="joint")
        self.keeper.start()

    def wait_for(self, *names: str) -> None:
        wait_until(lambda: set(self.stages.running) == set(names), f"{names} run")


@pytest.fixture
def joint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joint]:
    monkeypatch.setattr(ray_thread, "find_peers", set)
    made = Joint(tmp_path)
    yield made
    made.stop.set()
    made.keeper.join()


def test_joint_slots_are_added_as_nodes_join_and_end_as_they_are_lost(joint: Joint) -> None:
    joint.wait_for("a")
    assert sorted(joint.threads) == [0]
    joint.size = 3  # nodes have joined
    joint.wait_for("a", "b", "c")
    joint.size = 1  # they are lost again: what runs there is not ended, and nothing follows it
    joint.stages.finish("b")
    joint.stages.finish("c")
    wait_until(lambda: not any(joint.threads[number].is_alive() for number in (1, 2) if number in joint.threads),
               "the slots have ended")  # fmt: skip
    joint.wait_for("a")
    joint.stages.finish("a")
    joint.wait_for("d")
    joint.stages.finish("d")
    joint.keeper.wait()
    assert joint.handler.ends() == dict.fromkeys("abcd", "complete")


def test_an_error_in_a_joint_slot_is_raised_where_it_is_waited_for(joint: Joint) -> None:
    joint.wait_for("a")
    joint.stages.error = RuntimeError("Ray said so")
    with pytest.raises(RuntimeError, match="Ray said so"):
        joint.keeper.wait()


@pytest.mark.parametrize("stops", [True, False])
def test_joint_slots_end_with_the_study(joint: Joint, stops: bool) -> None:
    joint.wait_for("a")
    if stops:
        joint.stop.set()
    else:
        joint.size = 2
        joint.wait_for("a", "b")
        joint.dispatcher.close()
    joint.stop.set()
    joint.keeper.wait()
    assert all(not thread.is_alive() for thread in joint.threads.values())


def test_the_size_of_a_cluster_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"CPU": 4.0}
    look: Callable[[], Mapping[str, float]] = lambda: dict(resources)  # noqa: E731 - a stand-in for Ray's function
    monkeypatch.setattr(cluster_size.ray, "cluster_resources", look)
    monkeypatch.setattr(cluster_size, "RESIZE_SECONDS", 0.0)
    size = ClusterSize(partial(num_joint_slots, slots=JointSlots(num_processes=2, cpus=1.0, gpus=0.0)))
    assert size.count() == 2
    resources["CPU"] = 9.0
    assert size.count() == 4
    monkeypatch.setattr(cluster_size, "RESIZE_SECONDS", 3600.0)
    resources["CPU"] = 2.0
    assert size.count() == 4
