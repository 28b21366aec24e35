"""A team's MLflow: PostgreSQL, a password for each user, several drivers at once; nothing lost, nothing told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import text

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.addresses import make_absolute
from orchestrator.tracking.client import MlflowClient, connect_database
from tests.conftest import FinishedStudy
from tests.support.busy_driver import NUM_EPOCHS, NUM_SLOTS
from tests.support.mlflow_auth import (
    ADMIN,
    OPTIONS,
    USERS,
    ask_as_admin,
    check_secret,
    create_user,
    login,
    write_settings,
)
from tests.support.mlflow_stores import Server, check_records, check_shown, show
from tests.support.postgres import Postgres
from tests.support.tiny_study import copy_place, make_place

ROOT = Path(__file__).parents[2]


class Point(NamedTuple):
    """A value in MLflow's database."""

    key: str
    step: int
    value: float
    timestamp: int


@dataclass(frozen=True)
class Team:
    """A running server and its database."""

    url: str
    database: str

    @property
    def as_admin(self) -> str:
        """The server's address for somebody who may see everything."""
        return self.url.replace("://", "://" + ":".join(ADMIN) + "@")

    def points(self) -> dict[str, list[Point]]:
        """Return run ID → all its values."""
        found: dict[str, list[Point]] = defaultdict(list)
        with connect_database(make_absolute(self.database)) as connection:
            for run_id, *point in connection.execute(text("SELECT run_uuid, key, step, value, timestamp FROM metrics")):
                found[run_id].append(Point(*point))
        return found

    def check_once(self) -> None:
        """No run of a signature is there twice in a study, not even as a deleted one."""
        query = (
            "SELECT experiment_id, value, count(*) FROM runs JOIN tags USING (run_uuid) "
            "WHERE key = 'robustsweep.signature' GROUP BY 1, 2 HAVING count(*) > 1"
        )
        with connect_database(make_absolute(self.database)) as connection:
            assert connection.execute(text(query)).fetchall() == []


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    pytest.importorskip("psycopg2")
    folder = tmp_path_factory.mktemp("server")
    variables = write_settings(folder)
    with Postgres() as postgres:
        server = Server(
            folder,
            store=make_absolute(postgres.uri),
            num_workers=2,
            options=OPTIONS,
            variables=variables,
        )
        try:
            server.start()
            for name, password in USERS.items():
                create_user(server.url, name, password)
            yield Team(server.url, postgres.uri)
        finally:
            server.kill()


def start_driver(team: Team, folder: Path, study: str, user: str, trials_per_slot: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.busy_driver", str(folder), study, team.url, str(trials_per_slot)]
    environment = os.environ | login(user)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)  # fmt: skip


def check_busy(team: Team, folder: Path, study: str, trials_per_slot: int, points: dict[str, list[Any]]) -> int:
    """Return the number of values of a study of made-up trials, all of which MLflow has, once."""
    shown = show(team.as_admin, study, points)
    ledger = Ledger(str(folder), study)
    check_records(shown, ledger)
    trials = [each for signature, each in shown.items() if signature.startswith("t")]
    assert len(trials) == NUM_SLOTS * trials_per_slot
    # Two metrics an epoch; 9 evaluations of 2 metrics each, 2 results, and what the trial took.
    (number,) = {len(each.points) for each in trials}
    assert number > 2 * NUM_EPOCHS + 9 * 2 + 2
    return number * len(trials)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sixteen_slots_of_one_driver(team: Team, tmp_path: Path) -> None:
    started = time.monotonic()
    driver = start_driver(team, tmp_path, "sixteen", "ada", 6)
    said, _ = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    number = check_busy(team, tmp_path, "sixteen", 6, team.points())
    team.check_once()
    check_secret(tmp_path, said)
    print(f"{NUM_SLOTS * 6} runs, {number} values in {time.monotonic() - started:.0f} s")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_four_studies_at_once(team: Team, finished_study: FinishedStudy, tmp_path: Path) -> None:
    """One that trains, and three of 16 slots each, every one by another user."""
    place = make_place(tmp_path / "place", finished_study.place.study.parent / "cache")
    owners = {"busy-1": "ben", "busy-2": "cleo", "busy-3": "dan"}
    run = place.start("run", "--mlflow", team.url, **login("ada"))
    drivers = {study: start_driver(team, tmp_path, study, user, 2) for study, user in owners.items()}
    said = {study: driver.communicate(timeout=500)[0] for study, driver in drivers.items()}
    out, err = run.communicate(timeout=500)
    assert {study: driver.returncode for study, driver in drivers.items()} == dict.fromkeys(owners, 0), said
    assert run.returncode == 0, out + err
    assert "not shipped" not in out + err
    points = team.points()
    for study in owners:
        check_busy(team, tmp_path, study, 2, points)
    check_shown(show(team.as_admin, "tiny", points), Ledger(str(place.storage), "tiny"))
    team.check_once()
    check_secret(tmp_path, out, err, *said.values())


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_wrong_password_and_the_study_of_somebody_else(
    team: Team, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    place = copy_place(finished_study.place, tmp_path / "place")
    wrong = place.call("run", "--mlflow", team.url, **login("ada", "wrong-password-77"))
    assert (wrong.returncode, "HTTP 401" in wrong.stderr) == (3, True), wrong.stdout + wrong.stderr
    create_user(team.url, "eve", "eve-password-c0de")
    right = place.call("sync", "--mlflow", team.url, **login("ada"))
    assert right.returncode == 0, right.stderr
    before = show(team.as_admin, "tiny", team.points())
    foreign = place.call("sync", "--mlflow", team.url, **login("eve", "eve-password-c0de"))
    assert (foreign.returncode, "HTTP 403" in foreign.stderr) == (3, True), foreign.stdout + foreign.stderr
    assert "have whoever runs the server grant the permission" in " ".join(foreign.stderr.split())
    assert "Traceback" not in wrong.stderr + foreign.stderr
    assert show(team.as_admin, "tiny", team.points()) == before
    experiment = MlflowClient(team.as_admin).get_experiment_by_name("tiny")
    assert experiment is not None
    granted = {"resource_type": "experiment", "resource_id": experiment.experiment_id, "permission": "MANAGE"}
    ask_as_admin(team.url, "3.0/mlflow/users/permissions/grant", username="eve", **granted)
    friendly = place.call("sync", "--mlflow", team.url, **login("eve", "eve-password-c0de"))
    assert friendly.returncode == 0, friendly.stderr
    check_secret(tmp_path, *(each.stdout + each.stderr for each in (wrong, right, foreign, friendly)))
