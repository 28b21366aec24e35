"""PostgreSQL as MLflow's store, written to by the driver itself: killed in mid study, and its password kept secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.addresses import make_absolute
from tests.conftest import FinishedStudy
from tests.support.mlflow_stores import check_shown, show
from tests.support.postgres import PASSWORD, Postgres
from tests.support.processes import lines
from tests.support.tiny_study import NUM_TRIALS, Place, copy_place, make_place


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg2")
    with Postgres() as postgres:
        yield postgres


def check_secret(place: Place, said: str) -> None:
    """The password is in no file of the study, and in nothing that was said."""
    assert PASSWORD not in said
    for path in place.storage.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path


def check_whole(place: Place, uri: str, finished_study: FinishedStudy) -> None:
    ledger, undisturbed = (Ledger(str(each.storage), "tiny") for each in (place, finished_study.place))
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(undisturbed))
    shown = show(make_absolute(uri), "tiny")
    check_shown(shown, ledger)
    assert PASSWORD not in repr(shown)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_database_killed_in_mid_study(postgres: Postgres, finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    process = place.start("run", "--mlflow", postgres.uri)
    said, coming = "", lines(process)
    while said.count(": epoch ") < 3:
        said += next(coming)
    postgres.kill()
    said += next(coming) + next(coming)
    postgres.start()
    out, err = process.communicate(timeout=280)
    said += out + err
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in said
    assert "not shipped" not in said
    check_secret(place, said)
    check_whole(place, postgres.uri, finished_study)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_database_that_is_away(postgres: Postgres, finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = copy_place(finished_study.place, tmp_path)
    postgres.kill()
    done = place.call("run", "--mlflow", postgres.uri)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "5 records are not shipped to MLflow yet; " in said
    assert f"--mlflow 'postgresql://***@127.0.0.1:{postgres.port}/postgres'" in said
    failed = place.call("sync", "--mlflow", postgres.uri)
    assert failed.returncode == 3
    postgres.start()
    done = place.call("sync", "--mlflow", postgres.uri)
    assert done.returncode == 0, done.stderr
    said += failed.stdout + failed.stderr + done.stdout + done.stderr
    assert "Traceback" not in said
    check_secret(place, said)
    check_whole(place, postgres.uri, finished_study)
