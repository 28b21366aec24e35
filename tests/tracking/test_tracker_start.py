"""What opening a tracker asks MLflow for, and what it takes from the ledger's index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.shipped import is_shipped
from orchestrator.tracking.tracker import Tracker
from tests.support.ledger_records import finished, make_ledger
from tests.support.mlflow_stores import make_database, make_tracker, run_of, ship

#: The search for runs of arms, of which there are few.
ARMS = "tags.`robustsweep.kind` = 'arm'"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "empty.db"


@pytest.fixture
def uri(tmp_path: Path, template: Path) -> str:
    return make_database(tmp_path, template)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return make_ledger(tmp_path)


def open_counting(uri: str, ledger: Ledger, **options: Any) -> tuple[Tracker, list[str]]:
    """Open a tracker; return it, and what its searches asked for."""
    asked: list[str] = []

    class Client(MlflowClient):
        def search_runs(self, experiments: list[str], filter_string: str = "", *args: Any, **kwargs: Any) -> Any:
            asked.append(filter_string)
            return super().search_runs(experiments, filter_string, *args, **kwargs)

    tracker = Tracker(uri, ledger, about=ledger.read_plan())
    tracker._client = Client(uri)
    tracker.open(**options)
    return tracker, asked


def test_opening_asks_for_what_runs_and_not_for_what_has_ended(uri: str, ledger: Ledger) -> None:
    first = make_tracker(uri, ledger)
    for signature in ("t1", "t2", "t3"):
        finished(ledger, signature)
        ship(first, ledger, signature)
    first.close_interrupted()
    tracker, asked = open_counting(uri, ledger)
    assert asked == ["tags.`robustsweep.kind` = 'study'", "attributes.status = 'RUNNING'", ARMS]
    assert not any(ship(tracker, ledger, signature) for signature in ("t1", "t2", "t3"))
    assert all(tracker.has_shipped(signature, "complete") for signature in ("t1", "t2", "t3"))


def test_what_a_killed_driver_could_not_note_is_found_by_its_tag(uri: str, ledger: Ledger) -> None:
    finished(ledger, "t1")
    finished(ledger, "t2")
    first = make_tracker(uri, ledger)
    ship(first, ledger, "t1")
    first.close_interrupted()
    ship(first, ledger, "t2")  # and killed before the next lines are written
    tracker, asked = open_counting(uri, ledger)
    assert asked[2:] == ["tags.`robustsweep.signature` = 't2'", ARMS]
    assert not ship(tracker, ledger, "t2")
    assert run_of(uri, "t2").info.status == "FINISHED"


def test_many_unknown_records_are_looked_for_at_once(uri: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.tracking.tracker._MAX_SINGLE_QUERIES", 1)
    first = make_tracker(uri, ledger)
    for signature in ("t1", "t2"):
        finished(ledger, signature)
        ship(first, ledger, signature)
    tracker, asked = open_counting(uri, ledger)
    assert asked[2:] == ["", ARMS]
    assert not any(ship(tracker, ledger, signature) for signature in ("t1", "t2"))


def test_another_store_is_not_taken_for_the_one_that_was_noted(
    uri: str, ledger: Ledger, tmp_path: Path, template: Path
) -> None:
    finished(ledger)
    first = make_tracker(uri, ledger)
    ship(first, ledger)
    first.close_interrupted()
    (tmp_path / "other").mkdir()
    other = make_tracker(make_database(tmp_path / "other", template), ledger)
    assert not other.has_shipped("t1", "complete")
    assert ship(other, ledger)
    assert not ship(make_tracker(uri, ledger), ledger)  # and back: found, not made again
    run_of(uri)


def test_a_run_deleted_by_hand_is_made_again_when_all_are_looked_at(uri: str, ledger: Ledger) -> None:
    finished(ledger)
    first = make_tracker(uri, ledger)
    ship(first, ledger)
    first.close_interrupted()
    MlflowClient(uri).delete_run(run_of(uri).info.run_id)
    tracker, asked = open_counting(uri, ledger, query_all=True)
    assert asked[1:] == ["", ARMS]
    assert ship(tracker, ledger)
    assert run_of(uri).info.status == "FINISHED"


def test_opening_forgets_that_everything_was_shipped(uri: str, ledger: Ledger) -> None:
    tracker = make_tracker(uri, ledger)
    tracker.write_shipped(state="s", page_sha256="p")
    assert is_shipped(ledger.root, uri, state="s", page_sha256="p")
    tracker.open()
    assert not is_shipped(ledger.root, uri, state="s", page_sha256="p")
