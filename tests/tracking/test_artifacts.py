"""Where artifacts lie after a ledger, its store, or both were moved or copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.addresses import make_absolute
from orchestrator.tracking.client import MlflowClient
from tests.support.ledger_records import STUDY, fail, finished, make_ledger
from tests.support.mlflow_stores import make_database, make_tracker, ship
from tests.support.postgres import Postgres


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "empty.db"


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg2")
    with Postgres() as postgres:
        yield postgres


def fill(ledger: Ledger, uri: str) -> None:
    """Ship a trial with an artifact."""
    finished(ledger)
    ledger.folder("trial", "t1").remove("result.json")
    fail(ledger)
    tracker = make_tracker(uri, ledger)
    ship(tracker, ledger)
    tracker.close(is_complete=False)


def take(how: str, old: Path, new: Path) -> None:
    """Move or copy a folder."""
    if how == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)


def find_experiment(uri: str) -> Any:
    (experiment,) = [each for each in MlflowClient(uri).search_experiments() if each.name == STUDY]
    return experiment


def check_lies_in(ledger: Ledger, uri: str) -> None:
    """Everything that the store shows lies in this ledger, and can be read."""
    client, experiment = MlflowClient(uri), find_experiment(uri)
    assert experiment.artifact_location == f"{Path(ledger.root.uri).as_uri()}/mlartifacts"
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 2
    assert {run.info.artifact_uri for run in runs} == {
        f"{experiment.artifact_location}/{run.info.run_id}/artifacts" for run in runs
    }
    (trial,) = [run for run in runs if run.data.tags["robustsweep.kind"] == "trial"]
    assert [artifact.path for artifact in client.list_artifacts(trial.info.run_id)] == ["config.yaml", "traceback.txt"]


@pytest.mark.parametrize("how", ["moved", "copied"])
@pytest.mark.parametrize("place", ["of the ledger", "above it"])
def test_artifacts_follow_a_ledger_that_was_taken_along_with_its_store(
    how: str, place: str, tmp_path: Path, template: Path
) -> None:
    old, new = tmp_path / "old 50%", tmp_path / "new"
    ledger = make_ledger(old)
    again = Ledger(str(new), ledger.study)
    is_own = place == "of the ledger"
    folder, later = (Path(ledger.root.uri), Path(again.root.uri)) if is_own else (old, new)
    fill(ledger, make_database(folder, template))
    take(how, old, new)
    uri = f"sqlite:///{later}/mlflow.db"
    make_tracker(uri, again)
    check_lies_in(again, uri)
    if how == "copied":  # the original is left alone
        check_lies_in(ledger, f"sqlite:///{folder}/mlflow.db")
    else:
        assert not old.exists()


def test_artifacts_follow_a_ledger_that_was_moved_alone(tmp_path: Path, template: Path) -> None:
    ledger = make_ledger(tmp_path / "old")
    uri = make_database(tmp_path, template)
    fill(ledger, uri)
    (tmp_path / "old").rename(tmp_path / "new")
    again = Ledger(str(tmp_path / "new"), ledger.study)
    make_tracker(uri, again)
    check_lies_in(again, uri)


def test_artifacts_of_a_database_server_follow_a_ledger_that_was_moved(postgres: Postgres, tmp_path: Path) -> None:
    uri = make_absolute(postgres.uri)
    ledger = make_ledger(tmp_path / "old")
    fill(ledger, uri)
    stranger = make_ledger(tmp_path / "elsewhere")  # of another machine: it has none of the artifacts
    (tmp_path / "old").rename(tmp_path / "new")
    make_tracker(uri, stranger)
    assert find_experiment(uri).artifact_location == f"{Path(ledger.root.uri).as_uri()}/mlartifacts"
    again = Ledger(str(tmp_path / "new"), ledger.study)
    make_tracker(uri, again)
    check_lies_in(again, uri)


def test_artifacts_in_a_store_that_two_ledgers_share_stay_where_they_are(tmp_path: Path, template: Path) -> None:
    uri = make_database(tmp_path, template)
    first, second = make_ledger(tmp_path / "a"), make_ledger(tmp_path / "b")
    fill(first, uri)
    make_tracker(uri, second)
    check_lies_in(first, uri)
    take("copied", tmp_path / "a", tmp_path / "c")  # a copy without its store shows what the original does
    make_tracker(uri, Ledger(str(tmp_path / "c"), STUDY))
    check_lies_in(first, uri)


def test_a_location_that_somebody_else_has_chosen_stays(tmp_path: Path, template: Path) -> None:
    uri = make_database(tmp_path, template)
    chosen = (tmp_path / "elsewhere").as_uri()
    MlflowClient(uri).create_experiment(STUDY, artifact_location=chosen)
    fill(make_ledger(tmp_path / "a"), uri)
    assert find_experiment(uri).artifact_location == chosen
