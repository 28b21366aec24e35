"""The study's own run is deleted in MLflow: its page is whole again, in the same store, without a second copy."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.shipper import Shipper, sync
from tests.support.ledger_records import CREATED_MS, STUDY, begin, finished, make_ledger
from tests.support.mlflow_stores import Server, make_database, make_tracker, run_of, ship

#: Deletes a run of the store at a URI whose database is a file.
Delete = Callable[[str, Path, str], None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "empty.db"


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.long)])
def store(request: pytest.FixtureRequest, tmp_path: Path, template: Path) -> Iterator[tuple[str, Path]]:
    """URI of a store and its database."""
    if request.param == "sqlite":
        yield make_database(tmp_path, template), tmp_path / "mlflow.db"
        return
    server = Server(tmp_path)
    server.start()
    yield server.url, server.folder / "server.db"
    server.kill()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A stage and a trial that are complete."""
    ledger = make_ledger(tmp_path)
    begin(ledger, "s1", "stage")
    result = {"finished_ms": CREATED_MS + 5, "duration_seconds": 1.0, "metrics": {"ssl/final_loss": 0.5}}
    ledger.folder("stage", "s1").write_json("result.json", result | {"environment": {"device": "cpu"}})
    finished(ledger)
    return ledger


def put_into_the_bin(uri: str, _: Path, run_id: str) -> None:
    """Delete a run as the UI does."""
    MlflowClient(uri).delete_run(run_id)


def remove_for_good(_: str, database: Path, run_id: str) -> None:
    """Delete a run as ``mlflow gc`` does: no row is left."""
    with closing(sqlite3.connect(database, timeout=30.0)) as connection, connection:
        for table in ("tags", "metrics", "latest_metrics", "params", "runs"):
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ?", [run_id])


DELETIONS = pytest.mark.parametrize("delete", [put_into_the_bin, remove_for_good])


def find_study_runs(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], "tags.`robustsweep.kind` = 'study'"))


def find_parents(uri: str, *signatures: str) -> set[str]:
    return {run_of(uri, signature).data.tags["mlflow.parentRunId"] for signature in signatures}


@DELETIONS
def test_a_study_that_goes_on_has_all_its_trials_below_its_run(
    store: tuple[str, Path], ledger: Ledger, delete: Delete
) -> None:
    uri, database = store
    first = make_tracker(uri, ledger)
    ship(first, ledger, "s1", "stage")
    ship(first, ledger)
    first.close(is_complete=False)
    before = {signature: run_of(uri, signature).info.run_id for signature in ("s1", "t1")}
    delete(uri, database, first.parent_run_id)
    second = make_tracker(uri, ledger)
    finished(ledger, "t2")
    ship(second, ledger, "t2")
    second.close(is_complete=True)
    (parent,) = find_study_runs(uri)
    assert find_parents(uri, "s1", "t1", "t2") == {parent.info.run_id} == {second.parent_run_id}
    assert {signature: run_of(uri, signature).info.run_id for signature in before} == before
    if delete is put_into_the_bin:  # its notes, its verdicts over time and links to it are the user's
        assert parent.info.run_id == first.parent_run_id


@DELETIONS
def test_a_run_that_is_deleted_while_the_driver_is_up_holds_the_report_in_the_end(
    tmp_path: Path, template: Path, ledger: Ledger, delete: Delete
) -> None:
    uri = make_database(tmp_path, template)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    delete(uri, tmp_path / "mlflow.db", tracker.parent_run_id)
    shipper = Shipper(lambda: tracker, ledger, interval_seconds=0.01)
    shipper.start()
    assert shipper.finish(60.0) == 0
    shipper.conclude(None, is_complete=True)
    (parent,) = find_study_runs(uri)
    assert parent.info.status == "FINISHED"
    assert find_parents(uri, "s1", "t1") == {parent.info.run_id}


@DELETIONS
def test_sync_finds_it(tmp_path: Path, template: Path, ledger: Ledger, delete: Delete) -> None:
    uri = make_database(tmp_path, template)
    sync(ledger, uri)
    (parent,) = find_study_runs(uri)
    delete(uri, tmp_path / "mlflow.db", parent.info.run_id)
    result = sync(ledger, uri)
    assert (result.shipped, result.skipped) == (0, 2)
    (again,) = find_study_runs(uri)
    assert find_parents(uri, "s1", "t1") == {again.info.run_id}
    assert again.info.status == "FAILED"  # t2 of the plan is missing


def test_trials_that_are_deleted_with_it_are_there_again(tmp_path: Path, template: Path, ledger: Ledger) -> None:
    uri = make_database(tmp_path, template)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    for run_id in (tracker.parent_run_id, run_of(uri).info.run_id):
        MlflowClient(uri).delete_run(run_id)
    again = make_tracker(uri, ledger)
    assert not again.has_shipped("t1", "complete")
    assert ship(again, ledger)
    assert find_parents(uri, "t1") == {again.parent_run_id}


def test_trials_of_a_dead_run_are_taken_over_by_the_run_that_lives(
    tmp_path: Path, template: Path, ledger: Ledger
) -> None:
    """As earlier versions left them, or a driver that was killed while it did this."""
    uri = make_database(tmp_path, template)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    MlflowClient(uri).set_tag(run_of(uri).info.run_id, "mlflow.parentRunId", "0" * 32)
    sync(ledger, uri)
    assert find_parents(uri, "s1", "t1") == {tracker.parent_run_id}
