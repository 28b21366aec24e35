"""Several drivers of one ledger, each with real slots and acted trials."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.local_executor import LocalExecutor
from orchestrator.execution.shared_works import SharedWorks, find_claims
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.shards.shard import Shard
from orchestrator.planning.works import Work
from tests.support.plans import make_stage, make_trial
from tests.support.processes import wait_until
from tests.support.recording_handler import EXECUTION, RecordingHandler, describe
from tests.support.scripted_fork_server import MODULE
from trainables.storage.claims import exchange_claim, find_claim


class Handler(RecordingHandler):
    """Records only failures of its own driver."""

    def handle(self, what: str, work: Work, details: dict[str, Any]) -> None:
        if "elsewhere" in details:
            self.lines.append((what, work.name, {**details, "status": f"{details['status']} elsewhere"}))
        else:
            super().handle(what, work, details)


class Driver:
    """A driver that shares the works of a ledger with others."""

    def __init__(self, root: Path, name: str, works: Sequence[Work], living: set[str], *, since_ms: int = 0) -> None:
        self.ledger, self.living, self.stop = Ledger(str(root), "s"), living, threading.Event()
        self.handler = Handler(self.ledger)
        self.shared = SharedWorks(self.ledger, driver=name, since_ms=since_ms)
        settings = ChunkSettings(EXECUTION, uuid.uuid4().hex[:8], MODULE, (), 1, 600.0, describe)
        todo = WorkQueue(works, complete=(), num_slots=1)
        self.dispatcher = Dispatcher(
            todo, ledger=self.ledger, settings=settings, on_event=self.handler.handle, shared=self.shared
        )
        self._over = threading.Event()
        self._slots = LocalExecutor(self.dispatcher, 1, stop=self.stop, has_ray=False)
        living.add(name)

    def look(self) -> None:
        """What ``Watch`` does."""
        taken = self.shared.look(self.living.__contains__)
        waiting = self.dispatcher.list_waiting()
        self.dispatcher.update(self.shared.find_ended(waiting, self.ledger.states()), taken)

    def __enter__(self) -> Driver:
        self.look()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        self._slots.__enter__()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.look()

    def __exit__(self, *_: object) -> None:
        try:
            self._slots.__exit__(None, None, None)
        finally:
            self._over.set()
            self._thread.join()

    def run(self) -> dict[str, str]:
        """Run to the end; return name → how it ended."""
        with self:
            self._slots.wait()
        return self.handler.ends()


def make_works(number: int = 6) -> list[Work]:
    stage = make_stage("nap stage")
    return [stage, *(make_trial(f"nap {each}", stage) for each in range(number)), make_trial("nap alone")]


def test_drivers_run_everything_once_and_wait_for_each_other(tmp_path: Path) -> None:
    works, living = make_works(), set[str]()
    drivers = [Driver(tmp_path, f"d{number}", Shard(number, 3).order(works), living) for number in (1, 2, 3)]
    with ExitStack() as stack:
        for driver in drivers:
            stack.enter_context(driver)
    started = Counter(name for driver in drivers for name in driver.handler.started())
    assert started == Counter(work.name for work in works)
    for driver in drivers:
        own = dict.fromkeys(driver.handler.started(), "complete")
        assert driver.handler.ends() == {work.name: own.get(work.name, "complete elsewhere") for work in works}
    assert sum(bool(driver.handler.started()) for driver in drivers) == 3  # while one has the stage, others train
    assert find_claims(drivers[0].ledger) == {}


def test_what_a_living_driver_has_is_waited_for_and_taken_over_when_it_is_dead(tmp_path: Path) -> None:
    works, living = [make_trial("nap 0"), make_trial("nap 1")], {"dead"}
    driver = Driver(tmp_path, "mine", works, living)
    claims = driver.ledger.claims(works[0].signature)
    old = exchange_claim(claims, None, 4, holder="dead")
    with driver:
        wait_until(lambda: driver.handler.ends() == {"nap 1": "complete"}, "the other one is complete")
        time.sleep(0.3)
        assert find_claim(claims) == old
        living.remove("dead")
        wait_until(lambda: driver.handler.started() == ["nap 1", "nap 0"], "it is taken over")
        found = find_claim(claims)
        assert found is not None
        assert (found.number, found.holder) == (5, "mine")
    assert driver.handler.ends() == {"nap 0": "complete", "nap 1": "complete"}


def test_what_has_failed_elsewhere_is_not_tried_again_nor_what_waits_for_it(tmp_path: Path) -> None:
    stage = make_stage("fail")
    works, living = [stage, make_trial("nap 0", stage), make_trial("fail 1"), make_trial("nap 2")], set[str]()
    first = Driver(tmp_path, "first", works[:3], living)
    assert set(first.run().values()) == {"failed: error", "failed: upstream"}
    assert find_claims(first.ledger) == {}  # released once the ledger has the failures
    second = Driver(tmp_path, "second", works, living)
    ends = second.run()
    assert ends["nap 2"] == "complete"
    assert {name: end.partition(":")[0] for name, end in ends.items() if name != "nap 2"} == {
        "fail": "failed elsewhere", "nap 0": "failed elsewhere", "fail 1": "failed elsewhere",
    }  # fmt: skip
    assert second.handler.started() == ["nap 2"]


def test_what_had_failed_before_is_tried_again_once(tmp_path: Path) -> None:
    """By ``--retry-failed``: the failure is older than the drivers that share the study now."""
    work, living = make_trial("fail 1"), set[str]()
    Driver(tmp_path, "before", [work], living).run()
    time.sleep(0.01)
    since_ms = int(time.time() * 1000)
    first, second = (Driver(tmp_path, name, [work], living, since_ms=since_ms) for name in ("first", "second"))
    assert first.run() == {"fail 1": "failed: error"}
    assert first.handler.started() == ["fail 1"]
    assert second.run() == {"fail 1": "failed elsewhere"}
    assert second.handler.started() == []


def test_a_slot_that_comes_too_late_leaves_the_trial_to_the_other_driver(tmp_path: Path) -> None:
    """Between the look at the claims and the start of a trial another driver takes it, or completes it."""
    works, living = [make_trial("nap 0"), make_trial("nap 1"), make_trial("nap 2")], {"other"}
    driver = Driver(tmp_path, "mine", works, living)
    driver.look()
    other = exchange_claim(driver.ledger.claims(works[0].signature), None, 1, holder="other")
    driver.ledger.folder("trial", works[1].signature).write_json("result.json", {})
    driver.look = lambda: None  # type: ignore[method-assign]
    with driver:
        wait_until(lambda: "nap 2" in driver.handler.ends(), "the third is complete")
        assert driver.handler.started() == ["nap 2"]
        assert driver.dispatcher.list_waiting() == [works[0]]
        driver.stop.set()
    assert find_claim(driver.ledger.claims(works[0].signature)) == other
    assert driver.handler.ends() == {"nap 1": "complete elsewhere", "nap 2": "complete"}


def test_an_attempt_that_was_taken_over_is_left_to_the_other_driver(tmp_path: Path) -> None:
    work, living = make_trial("refused"), set[str]()
    driver = Driver(tmp_path, "mine", [work], living)
    with driver:
        wait_until(lambda: ("event", "refused", {"event": "elsewhere"}) in driver.handler.lines, "it is left")
        driver.ledger.folder("trial", work.signature).write_json("result.json", {})
    assert driver.handler.ends() in ({"refused": "complete elsewhere"}, {"refused": "complete"})  # or by the next slot


@pytest.mark.parametrize("kind", ["stage", "trial"])
def test_a_queue_keeps_back_what_others_have(kind: str) -> None:
    make = make_stage if kind == "stage" else make_trial
    works = [make(f"nap {number}") for number in range(3)]
    todo = WorkQueue(works, complete=(), num_slots=1)
    todo.set_taken([works[0].signature])
    assert todo.next_chunk() == [works[1]]
    todo.park(works[1])
    assert todo.next_chunk() == [works[2]]
    assert todo.next_chunk() == []
    todo.set_taken([])
    assert todo.next_chunk() == [works[0]]
    todo.complete(works[1])  # elsewhere, while it was ready
    todo.complete(works[0])
    assert todo.next_chunk() == []
    todo.complete(works[2])
    assert todo.is_finished
