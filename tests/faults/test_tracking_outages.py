"""MLflow goes away, hangs, is slow, talks nonsense, loses answers: no trial waits for it, and each value arrives once.

A real server behind a proxy that treats requests badly. Where the study is complete before the outage begins, only what
is shipped is at stake: that takes seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.client import MlflowClient
from tests.conftest import FinishedStudy
from tests.support.faulty_proxy import (
    AWAY,
    CLOSE,
    ERROR_500,
    ERROR_503,
    GARBAGE,
    HANG,
    LATE,
    LOSE,
    PASS,
    SLOW,
    FaultyProxy,
)
from tests.support.mlflow_stores import Server, Shown, check_shown, show
from tests.support.processes import lines, wait_until
from tests.support.tiny_study import NUM_STAGES, NUM_TRIALS, Place, copy_place, make_place, stamps

NUM_RECORDS = NUM_STAGES + NUM_TRIALS
#: How long the driver waits for an answer.
IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    """Before a server that knows nothing of the study."""
    with FaultyProxy(server.url) as proxy:
        yield proxy
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("tiny")
    if experiment is not None:
        client.rename_experiment(experiment.experiment_id, uuid.uuid4().hex)


@pytest.fixture
def place(finished_study: FinishedStudy, tmp_path: Path) -> Place:
    """A complete study of which MLflow knows nothing."""
    return copy_place(finished_study.place, tmp_path)


@pytest.fixture
def new_place(finished_study: FinishedStudy, tmp_path: Path) -> Place:
    return make_place(tmp_path, finished_study.place.study.parent / "cache")


def sync(place: Place, url: str) -> str:
    done = place.call("sync", "--mlflow", url)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def end(process: subprocess.Popen[str], seconds: float = 500.0) -> str:
    """Wait until the study has ended well; return what was said."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, out + err
    assert "Traceback" not in out + err
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in out
    return out + err


def check_whole(place: Place, url: str, finished_study: FinishedStudy) -> None:
    """Results as undisturbed, and in MLflow each value once, with its own time."""
    ledger, undisturbed = (Ledger(str(each.storage), "tiny") for each in (place, finished_study.place))
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(undisturbed))
    check_shown(show(url, "tiny"), ledger)


def count_unshipped(said: str) -> int:
    found = re.search(r"^(\d+) records are not shipped to MLflow yet; .*: robustsweep sync ", said, re.MULTILINE)
    return int(found[1]) if found else 0


# ------------------------------------------------------------------ while only shipping is left


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "times"),
    [(LOSE, 8), (LATE, 8), (ERROR_500, 3), (ERROR_503, 3), (CLOSE, 3), (GARBAGE, 3), (HANG, 2)],
)
def test_requests_that_fail_cost_nothing_but_time(
    place: Place, server: Server, proxy: FaultyProxy, finished_study: FinishedStudy, fault: str, times: int
) -> None:
    """The last two thirds of the records are shipped to a server that does this to ``times`` requests."""
    before = stamps(place)
    process = place.start("run", "--mlflow", proxy.url, **IMPATIENT)
    wait_until(lambda: proxy.counts[PASS] > 12, "some of it is in MLflow")
    proxy.switch(fault)
    wait_until(lambda: proxy.counts[fault] >= times or process.poll() is not None, f"{times} requests met: {fault}")
    proxy.switch(PASS)
    assert count_unshipped(end(process)) == 0
    assert proxy.counts[fault] >= times
    check_whole(place, server.url, finished_study)
    assert stamps(place) == before


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_server_that_dies_while_the_last_records_are_shipped(
    place: Place, server: Server, proxy: FaultyProxy, finished_study: FinishedStudy
) -> None:
    process = place.start("run", "--mlflow", proxy.url)
    wait_until(lambda: proxy.counts[PASS] > 12, "some of it is in MLflow")
    server.kill()
    try:
        said = end(process)  # it has waited for a minute
    finally:
        server.start()
    left = count_unshipped(said)
    assert 0 < left <= NUM_RECORDS
    assert f"waiting until MLflow has the last {left} records" in said
    assert f"{left} records shipped" in sync(place, proxy.url)
    check_whole(place, server.url, finished_study)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_server_that_lost_everything_is_given_it_again(
    place: Place, server: Server, proxy: FaultyProxy, finished_study: FinishedStudy
) -> None:
    check_rebuilding(place, proxy.url, lose=server.lose_everything, look=lambda: show(server.url, "tiny"))
    check_whole(place, server.url, finished_study)


@pytest.mark.long
def test_a_database_that_is_deleted_is_rebuilt_as_it_was(place: Place) -> None:
    database, artifacts = place.ledger / "mlflow.db", place.ledger / "mlartifacts"

    def lose() -> None:
        database.unlink()
        shutil.rmtree(artifacts)

    def look() -> dict[str, Shown]:
        """At a copy: MLflow keeps a file open, also one that is deleted."""
        return show(f"sqlite:///{shutil.copy(database, place.ledger.parent / f'{uuid.uuid4().hex}.db')}", "tiny")

    check_rebuilding(place, f"sqlite:///{database}", lose=lose, look=look)
    check_shown(look(), Ledger(str(place.storage), "tiny"))


def check_rebuilding(place: Place, url: str, *, lose: Callable[[], None], look: Callable[[], dict[str, Shown]]) -> None:
    """What ``sync`` ships is the same every time, and the second time it ships nothing."""
    assert f"{NUM_RECORDS} records shipped to {url}, 0 were there already" in sync(place, url)
    before = look()
    assert f"0 records shipped to {url}, {NUM_RECORDS} were there already" in sync(place, url)
    assert look() == before
    lose()
    assert f"{NUM_RECORDS} records shipped to {url}, 0 were there already" in sync(place, url)
    assert look() == before


# ------------------------------------------------------------------ while trials run


def say_when(process: subprocess.Popen[str], number: int, what: str = ": epoch ") -> str:
    """Read what a study says until that many epochs (of short ones not all are told), or other lines, have come."""
    said = []
    for line in lines(process):
        said.append(line)
        if sum(what in each for each in said) >= number:
            break
    return "".join(said)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_server_that_is_not_there_at_all(
    new_place: Place, server: Server, proxy: FaultyProxy, finished_study: FinishedStudy
) -> None:
    proxy.switch(AWAY)
    said = end(new_place.start("run", "--mlflow", proxy.url))
    assert count_unshipped(said) == NUM_RECORDS
    assert said.count("shipping to MLflow pauses, the study goes on: asked MLflow at http://127.0.0.1:") == 1
    before = stamps(new_place)
    again = end(new_place.start("run", "--mlflow", proxy.url))
    assert count_unshipped(again) == NUM_RECORDS  # those of the run before
    refused = new_place.call("sync", "--mlflow", proxy.url)
    assert refused.returncode == 3
    assert "error: asked MLflow at" in refused.stderr
    assert "Traceback" not in refused.stderr
    proxy.switch(PASS)
    assert f"{NUM_RECORDS} records shipped" in sync(new_place, proxy.url)
    assert f"0 records shipped to {proxy.url}, {NUM_RECORDS} were there already" in sync(new_place, proxy.url)
    assert stamps(new_place) == before
    check_whole(new_place, server.url, finished_study)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_killed_in_mid_study(
    new_place: Place, server: Server, proxy: FaultyProxy, finished_study: FinishedStudy, comes_back: bool
) -> None:
    process = new_place.start("run", "--mlflow", proxy.url)
    said = say_when(process, 2 * NUM_STAGES + 2)
    wait_until(lambda: proxy.counts[PASS] > 0, "shipping has begun")
    server.kill()
    try:
        said += say_when(process, 4)
    finally:
        server.start() if comes_back else None
    said += end(process)
    if comes_back:
        assert count_unshipped(said) == 0
    else:
        assert count_unshipped(said) > 0
        server.start()
        assert count_unshipped(end(new_place.start("run", "--mlflow", proxy.url))) == 0  # as sync would
    check_whole(new_place, server.url, finished_study)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_minutes_without_a_server(
    new_place: Place, server: Server, proxy: FaultyProxy, finished_study: FinishedStudy
) -> None:
    """The trials are suspended meanwhile, as if their epochs took so long; the driver is not."""
    process = new_place.start("run", "--mlflow", proxy.url, "--set", "execution.stall_minutes=60")
    said = say_when(process, 2 * NUM_STAGES + 1)
    wait_until(lambda: proxy.counts[PASS] > 0, "shipping has begun")
    server.kill()
    suspended = new_place.training().values()
    try:
        for pid in suspended:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(600)
    finally:
        server.start()
        for pid in suspended:
            os.kill(pid, signal.SIGCONT)
    said += end(process, 900.0)
    assert suspended
    assert said.count("shipping to MLflow pauses, the study goes on: ") == 1
    assert said.count("shipping to MLflow goes on") == 1
    assert count_unshipped(said) == 0
    check_whole(new_place, server.url, finished_study)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_server_that_takes_five_seconds_for_everything(
    new_place: Place, server: Server, proxy: FaultyProxy, finished_study: FinishedStudy
) -> None:
    proxy.switch(SLOW)
    started = time.time()
    said = end(new_place.start("run", "--mlflow", proxy.url))
    last = max(
        record.result["finished_ms"] / 1000 for record in Ledger(str(new_place.storage), "tiny").records("trial")
    )
    print(f"trials complete after {last - started:.0f} s, the study after {time.time() - started:.0f} s")
    if count_unshipped(said):
        proxy.switch(PASS)
        sync(new_place, proxy.url)
    check_whole(new_place, server.url, finished_study)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_everything_that_can_happen_to_a_server_in_one_study(
    new_place: Place, server: Server, proxy: FaultyProxy, finished_study: FinishedStudy
) -> None:
    process = new_place.start("run", "--mlflow", proxy.url, **IMPATIENT)
    said = say_when(process, 1)
    proxy.switch(LOSE)
    said += say_when(process, NUM_STAGES + NUM_TRIALS - 1, " done ")
    for fault in (ERROR_500, LATE, CLOSE, HANG, GARBAGE, ERROR_503, LOSE):
        goal = proxy.counts[fault] + 2
        proxy.switch(fault)
        wait_until(lambda: proxy.counts[fault] >= goal or process.poll() is not None, f"2 requests met: {fault}")  # noqa: B023
    proxy.switch(AWAY)
    time.sleep(2)
    proxy.switch(PASS)
    said += end(process)
    assert proxy.counts.total() - proxy.counts[PASS] >= 10
    if count_unshipped(said):
        sync(new_place, proxy.url)
    check_whole(new_place, server.url, finished_study)
