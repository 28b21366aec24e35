from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import Record
from orchestrator.tracking.addresses import RefusedError, TrackingError
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.shipper import Shipper, SyncResult, sync
from orchestrator.tracking.tracker import Tracker
from tests.support.ledger_records import add_epochs, begin, complete, finished, make_ledger
from tests.support.mlflow_stores import Server, make_database


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "empty.db"


class FakeTracker:
    """Answers as told: the names of the faults to come, in order."""

    def __init__(self, *faults: type[TrackingError]) -> None:
        self.faults = list(faults)
        self.is_open = False
        self.num_opened = 0
        self.shipped: list[str] = []
        self.num_closed = self.num_shown = 0
        self.ends: list[bool] = []
        self.entered = threading.Event()
        self.block = threading.Event()
        self.block.set()

    def open(self) -> None:
        self.is_open = True
        self.num_opened += 1

    def ship(self, record: Record) -> bool:
        self.entered.set()
        self.block.wait()
        if self.faults:
            raise self.faults.pop(0)("asked MLflow: fault")
        self.shipped.append(record.signature)
        return True

    def has_shipped(self, signature: str, state: str) -> bool:
        return signature in self.shipped

    def show_arms(self) -> None:
        self.num_shown += 1

    def close_interrupted(self, resumed: Any = ()) -> int:
        self.num_closed += 1
        return 0

    def close(self, *, is_complete: bool) -> None:
        if self.faults:
            raise self.faults.pop(0)("asked MLflow: fault")
        self.ends.append(is_complete)


def make_shipper(tracker: Any, ledger: Ledger, **options: Any) -> Shipper:
    shipper = Shipper(lambda: tracker, ledger, interval_seconds=0.01, **options)
    shipper.start()
    return shipper


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited 30 s"
        time.sleep(0.01)


def test_notices_are_collected_and_finish_ships_the_last(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger, "t1")
    begin(ledger, "t2")
    tracker = FakeTracker()
    shipper = Shipper(lambda: tracker, ledger, interval_seconds=60)  # type: ignore[arg-type]
    shipper.start()
    for _ in range(5):
        shipper.notify("trial", "t1")
    shipper.notify("trial", "t2")
    assert shipper.finish(30) == 0
    assert tracker.shipped == ["t1", "t2"]


def test_a_notice_during_a_shipment_is_not_lost(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger)
    tracker = FakeTracker()
    tracker.block.clear()
    shipper = make_shipper(tracker, ledger)
    shipper.notify("trial", "t1")
    assert tracker.entered.wait(30)
    shipper.notify("trial", "t1")
    tracker.block.set()
    assert shipper.finish(30) == 0
    assert tracker.shipped == ["t1", "t1"]
    assert tracker.num_closed == 2  # what a crash left at first, what was interrupted at last


def test_after_a_fault_the_state_is_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger)
    tracker = FakeTracker(TrackingError, TrackingError)
    shipper = make_shipper(tracker, ledger)
    shipper.notify("trial", "t1")
    with caplog.at_level(logging.WARNING):
        assert shipper.finish(30) == 0
    assert tracker.shipped == ["t1"]
    assert tracker.num_opened == 4  # at first, after each fault, and to look for lost answers at the end
    assert [record.getMessage().startswith("shipping to MLflow pauses") for record in caplog.records].count(True) == 1


def test_a_record_that_is_refused_twice_holds_up_nobody(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger, "t1")
    begin(ledger, "t2")
    tracker = FakeTracker(RefusedError, RefusedError)
    shipper = make_shipper(tracker, ledger)
    shipper.notify("trial", "t1")
    wait_until(lambda: not tracker.faults)
    shipper.notify("trial", "t2")
    assert shipper.finish(30) == 1
    assert tracker.shipped == ["t2"]


def test_a_damaged_record_holds_up_nobody(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger, "t1")
    begin(ledger, "t2")
    ledger.folder("trial", "t1").write("config.json", b"{")
    tracker = FakeTracker()
    shipper = make_shipper(tracker, ledger)
    shipper.notify("trial", "t1")
    shipper.notify("trial", "t2")
    started = time.monotonic()
    assert shipper.finish(1000) == 1
    assert time.monotonic() < started + 500  # nobody is waited for
    assert set(tracker.shipped) == {"t2"}
    assert "config.json" in shipper.problem


def test_finish_gives_up_in_time_and_counts(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger, "t1")
    tracker = FakeTracker(*[TrackingError] * 1000)
    shipper = make_shipper(tracker, ledger)
    shipper.notify("trial", "t1")
    assert shipper.finish(0.2) == 1


def test_what_an_earlier_driver_could_not_ship_is_counted_too(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    for signature in ("t1", "t2", "t3"):
        finished(ledger, signature)
    tracker = FakeTracker()
    tracker.open = lambda: (_ for _ in ()).throw(TrackingError("connection refused"))  # type: ignore[method-assign]
    shipper = make_shipper(tracker, ledger)
    shipper.notify("trial", "t3")
    assert shipper.finish(0.2) == 3
    assert shipper.problem == "connection refused"


def test_a_slow_server_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = make_ledger(tmp_path)
    tracker = FakeTracker()
    ship = tracker.ship
    monkeypatch.setattr(tracker, "ship", lambda record: (time.sleep(0.1), ship(record))[1])
    shipper = make_shipper(tracker, ledger)
    for number in range(100):
        begin(ledger, f"t{number}")
        shipper.notify("trial", f"t{number}")
    assert shipper.finish(60, max_seconds=0.5) > 0  # 10 s would ship all


def test_the_end_of_a_study_is_tried_again(tmp_path: Path) -> None:
    tracker = FakeTracker(TrackingError, TrackingError)
    shipper = Shipper(lambda: tracker, make_ledger(tmp_path))  # type: ignore[arg-type]
    shipper.conclude(None, is_complete=True)
    assert tracker.ends == [True]
    assert tracker.num_opened == 2
    tracker.faults = [RefusedError]  # as of a run that was deleted, which opening restores
    shipper.conclude(None, is_complete=False)
    assert (tracker.ends, tracker.num_opened) == ([True, False], 3)
    tracker.faults = [RefusedError, RefusedError]
    with pytest.raises(RefusedError):
        shipper.conclude(None, is_complete=False)


def test_finish_waits_as_long_as_records_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signatures = [f"t{number}" for number in range(8)]
    ledger = make_ledger(tmp_path)
    tracker = FakeTracker()
    shipper = make_shipper(tracker, ledger)
    ship = tracker.ship
    monkeypatch.setattr(tracker, "ship", lambda record: (time.sleep(0.2), ship(record))[1])
    for signature in signatures:
        begin(ledger, signature)
        shipper.notify("trial", signature)
    assert shipper.finish(0.6) == 0
    assert set(tracker.shipped) == set(signatures)


def test_what_an_earlier_driver_did_not_ship_is_caught_up(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger, "t1")
    finished(ledger, "t2")
    begin(ledger, "t3")
    tracker = FakeTracker()
    tracker.shipped = ["t1"]
    assert make_shipper(tracker, ledger).finish(30) == 0
    assert tracker.shipped == ["t1", "t2"]


def test_a_deleted_store_is_rebuilt_from_the_ledger(tmp_path: Path, template: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger, "t1")
    begin(ledger, "t2")
    add_epochs(ledger, "t2")
    uri = make_database(tmp_path, template)
    assert sync(ledger, uri) == SyncResult(shipped=2, skipped=0)
    before = content(uri)
    assert sync(ledger, uri) == SyncResult(shipped=0, skipped=2)
    assert content(uri) == before
    (tmp_path / "again").mkdir()
    other = make_database(tmp_path / "again", template)
    assert sync(ledger, other) == SyncResult(shipped=2, skipped=0)
    assert content(other) == before
    assert {status for status, _ in before.values()} == {"FINISHED", "KILLED"}


def test_a_server_killed_while_shipping_gets_everything_exactly_once(tmp_path: Path, server: Server) -> None:
    ledger = make_ledger(tmp_path)
    tracker = Tracker(server.url, ledger, about=ledger.read_plan())
    shipper = make_shipper(tracker, ledger, resumed=("t1", "t2", "t3"))
    begin(ledger, "t1")
    add_epochs(ledger, "t1", last=2)
    finished(ledger, "t2")
    shipper.notify("trial", "t1")
    shipper.notify("trial", "t2")
    wait_until(lambda: tracker.is_open and tracker.has_shipped("t2", "complete"))
    server.kill()
    try:
        add_epochs(ledger, "t1", first=3, last=3)
        complete(ledger, "t1")
        finished(ledger, "t3")
        shipper.notify("trial", "t1")
        shipper.notify("trial", "t3")
        wait_until(lambda: not tracker.is_open)  # it has tried, in vain
    finally:
        server.start()
    assert shipper.finish(60) == 0
    shown = content(server.url)
    assert {signature: status for signature, (status, _) in shown.items()} == dict.fromkeys(
        ("t1", "t2", "t3"), "FINISHED"
    )
    assert shown["t1"][1] == shown["t2"][1] == shown["t3"][1]
    assert [step for step, _, _ in shown["t1"][1]["train/loss"]] == [1, 2, 3]
    tracker.log_report(b"<html></html>", summary={"complete": 3}, is_complete=True)
    (artifact,) = MlflowClient(server.url).list_artifacts(tracker.parent_run_id)
    assert artifact.path == "report.html"
    shutil.rmtree(tmp_path / "demo")


def content(uri: str) -> dict[str, tuple[str, dict[str, list[tuple[int, float, int]]]]]:
    """Signature → status and all metric histories, of every trial."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("demo")
    shown = {}
    for run in client.search_runs([experiment.experiment_id], "tags.`robustsweep.kind` = 'trial'"):
        keys = ["train/loss", "validation/accuracy", "shift/jpeg/accuracy", "id/accuracy"]
        histories = {
            key: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, key)]
            for key in keys
        }
        signature = run.data.tags["robustsweep.signature"]
        assert signature not in shown
        shown[signature] = (run.info.status, histories)
    return shown
