"""The driver's own slots, with real processes and acted trials."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.execution import local_executor
from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.local_executor import LocalExecutor
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.works import Work
from tests.support.plans import make_stage, make_trial
from tests.support.processes import is_running, wait_until
from tests.support.recording_handler import EXECUTION, RecordingHandler, describe
from tests.support.scripted_fork_server import MODULE
from trainables.errors import StorageError


class Place:
    """A dispatcher, its handler, and slots that act."""

    def __init__(self, root: Path) -> None:
        self.ledger = Ledger(str(root / "results"), "s")
        self.handler = RecordingHandler(self.ledger)
        self.stop = threading.Event()

    def start(self, *works: Work, num_slots: int = 2) -> LocalExecutor:
        settings = ChunkSettings(EXECUTION, uuid.uuid4().hex[:8], MODULE, (), 1, 600.0, describe)
        todo = WorkQueue(works, complete=(), num_slots=1)
        self.dispatcher = Dispatcher(todo, ledger=self.ledger, settings=settings, on_event=self.handler.handle)
        return LocalExecutor(self.dispatcher, num_slots, stop=self.stop)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_short_study_needs_nobody_else(place: Place) -> None:
    stage = make_stage("good stage")
    works = [
        stage,
        *(make_trial(f"finish {number}", stage) for number in range(3)),
        make_trial("fail"),
        make_trial("dies"),
    ]
    with place.start(*works) as start:
        assert start.wait() is False
    assert place.handler.ends() == {
        "good stage": "complete",
        **{f"finish {number}": "complete" for number in range(3)},
        "fail": "failed: error",
        "dies": "failed: crashed",
    }
    result = place.ledger.read("trial", works[1].signature).result
    assert result is not None
    assert result["slot"] == os.getpid()
    assert result["encoder"] == "good"


def test_what_takes_longer_than_ray_needs_calls_for_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_executor, "WORTH_SECONDS", 0.5)
    with place.start(*(make_trial(f"nap {number}") for number in range(12))) as start:
        assert start.wait() is True  # about 1.8 s in two slots
    assert set(place.handler.ends().values()) == {"complete"}  # leaving waits


def test_what_nobody_knows_is_waited_for_a_while(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_executor, "PATIENCE_SECONDS", 0.5)
    with place.start(make_trial("hang")) as start:
        assert start.wait() is True
        place.stop.set()
    assert place.handler.ends() == {"hang": "interrupted"}


def pid_of(handler: RecordingHandler) -> int:
    wait_until(lambda: any(what == "event" for what, _, _ in handler.lines), "the trial has told its pid")
    return next(int(details["pid"]) for what, _, details in handler.lines if what == "event")


def test_stopping_ends_what_runs(place: Place) -> None:
    with place.start(make_trial("hang"), make_trial("finish"), num_slots=1) as start:
        pid = pid_of(place.handler)
        place.stop.set()
        assert start.wait() is False
    wait_until(lambda: not is_running(pid), "its process is gone")
    assert place.handler.ends() == {"hang": "interrupted"}


def test_an_exception_that_passes_ends_what_runs(place: Place) -> None:
    start = place.start(make_trial("hang")).__enter__()
    pid = pid_of(place.handler)
    start.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    wait_until(lambda: not is_running(pid), "its process is gone")


def test_a_slot_that_fails_stops_the_others_and_says_why(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space left")

    start = place.start(make_trial("hang"), make_trial("finish"))
    begun: Callable[..., None] = local_executor.ChunkRunner._begin_next

    def begin(runner: local_executor.ChunkRunner) -> None:
        begun(runner)
        if runner._current is not None and runner._current["record"]["name"] == "finish":
            full()

    monkeypatch.setattr(local_executor.ChunkRunner, "_begin_next", begin)
    start.__enter__()
    wait_until(place.stop.is_set, "a slot has failed")
    with pytest.raises(StorageError, match="no space left"):
        start.__exit__(None, None, None)
    assert place.handler.ends()["hang"] == "interrupted"
