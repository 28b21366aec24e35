"""The ledger on an object store: a real server with the protocol of S3, and the command line as on a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.faulty_proxy import ERROR_503, LOSE, THROTTLE, FaultyProxy
from tests.support.object_stores import SECRET, connect, serve_s3
from tests.support.processes import lines
from tests.support.tiny_study import NUM_TRIALS, make_place
from trainables.errors import SupersededError
from trainables.storage.claims import Claim, exchange_claim, find_claim, release_claim
from trainables.storage.folder import Folder

BUCKET = "studies"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """A store with a bucket; what to put into the environment to reach it."""
    pytest.importorskip("moto", reason="the server comes with the extra dev")
    pytest.importorskip("s3fs", reason="its client comes with the extra cluster")
    with serve_s3() as environment:
        connect(environment).mkdir(BUCKET)
        yield environment


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_study_on_an_object_store_survives_the_death_of_its_driver(
    finished_study: FinishedStudy, store: dict[str, str], tmp_path: Path
) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    where = ("--storage", f"s3://{BUCKET}/some/where", "--mlflow", f"sqlite:///{tmp_path}/mlflow.db")
    driver = place.start("run", *where, **store)
    for line in lines(driver):
        if ": epoch 2" in line:
            break
    driver.kill()
    driver.communicate()
    place.wait_for_silence()
    done = place.call("run", *where, **store)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in said
    assert SECRET not in said
    assert f"report   s3://{BUCKET}/some/where/tiny/report/index.html" in said
    files = connect(store)
    names = {name.rsplit("/", 1)[-1] for name in files.ls(f"{BUCKET}/some/where/tiny", detail=False)}
    assert {"plan.json", "report", "trials", "stages"} <= names
    assert not names & {"lease.json", "lease.lock"}
    files.get(f"{BUCKET}/some/where/tiny", str(tmp_path / "copy" / "tiny"), recursive=True)
    again, whole = Ledger(str(tmp_path / "copy"), "tiny"), Ledger(str(finished_study.place.storage), "tiny")
    assert results_sha256(load_results(again)) == results_sha256(load_results(whole))
    settled = place.call("run", *where, **store)
    assert (settled.returncode, "settled" in settled.stdout) == (0, True), settled.stdout + settled.stderr


# ------------------------------------------------------------------------------------------------ a busy store

#: Whatever a trial does with its folder.
WORK = """
import sys
from trainables.storage.folder import Folder
from trainables.storage.probe import probe_storage
root = Folder(sys.argv[1])
for number in range(3):
    root.write_json(f"trials/aa/{number}.json", {"number": number})
    root.append_line("lines.jsonl", str(number))
probe_storage(root, "here")
print(root.read_lines("lines.jsonl"), (root / "trials").grandchildren("abcdef"), sorted(root.children()))
"""
DONE = "[0, 1, 2] {'aa': {"


def work(environment: dict[str, str], storage: str, **more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", WORK, storage]
    return subprocess.run(
        words, env=os.environ | environment | more, check=False, capture_output=True, text=True, timeout=300
    )


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [THROTTLE, LOSE])
def test_a_store_that_refuses_or_loses_every_fourth_request_is_only_slower(
    store: dict[str, str], tmp_path: Path, fault: str
) -> None:
    with FaultyProxy(store["AWS_ENDPOINT_URL"]) as proxy:
        proxy.share = 0.25  # six tries that all fail: once in 4,000 requests
        proxy.switch(fault)
        through = store | {"AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "1"}
        done = work(through, f"s3://{BUCKET}/{tmp_path.name}-{fault}")
        assert done.stdout.startswith(DONE), done.stdout + done.stderr[-3000:]
        assert done.stdout.rstrip().endswith("['lines.jsonl', 'trials']")
        assert proxy.counts[fault] > 5


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_store_that_refuses_every_request_is_told_with_the_number_of_tries(
    store: dict[str, str], tmp_path: Path
) -> None:
    with FaultyProxy(store["AWS_ENDPOINT_URL"]) as proxy:
        proxy.switch(ERROR_503)
        through = store | {"AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": "1"}
        done = work(through, f"s3://{BUCKET}/{tmp_path.name}")
    assert f"could not write s3://{BUCKET}/{tmp_path.name}/trials/aa/0.json, tried 6 times in " in done.stderr
    assert SECRET not in done.stderr


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_study_on_a_throttled_store_has_the_same_results(
    finished_study: FinishedStudy, store: dict[str, str], tmp_path: Path
) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    with FaultyProxy(store["AWS_ENDPOINT_URL"]) as proxy:
        proxy.share = 0.1  # of thousands: each costs a wait
        proxy.switch(THROTTLE)
        where = ("--storage", f"s3://{BUCKET}/throttled", "--mlflow", f"sqlite:///{tmp_path}/mlflow.db")
        done = place.call("run", *where, **store | {"AWS_ENDPOINT_URL": proxy.url})
        assert proxy.counts[THROTTLE] > 40
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in said
    connect(store).get(f"{BUCKET}/throttled/tiny", str(tmp_path / "copy" / "tiny"), recursive=True)
    again, whole = Ledger(str(tmp_path / "copy"), "tiny"), Ledger(str(finished_study.place.storage), "tiny")
    assert results_sha256(load_results(again)) == results_sha256(load_results(whole))


# ------------------------------------------------------------------------------------------------ a probe from nodes

#: Says what is wrong with the storage as seen from the nodes of a cluster.
PROBE_NODES = """
import sys
from orchestrator.cluster import connection
from orchestrator.cluster.storage_probe import probe_nodes
from trainables.errors import StorageError
from trainables.storage.folder import Folder
connection.connect(sys.argv[1])
try:
    probe_nodes(Folder(sys.argv[2]))
except StorageError as error:
    print("refused:", error)
else:
    print("all can use it")
"""


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_node_without_access_to_the_storage_is_named_before_anything_runs(
    store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.ray_clusters import running_cluster

    for name, value in store.items():
        monkeypatch.setenv(name, value)
    storage = f"s3://{BUCKET}/{tmp_path.name}"
    with running_cluster(uuid.uuid4().hex, num_workers=1) as machines:

        def probe() -> str:
            words = [sys.executable, "-c", PROBE_NODES, machines.address, storage]
            return subprocess.run(words, check=False, capture_output=True, text=True, timeout=120).stdout

        assert probe() == "all can use it\n"
        assert connect(store).find(f"{BUCKET}/{tmp_path.name}") == []
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        machines.add_worker()
        monkeypatch.setenv("AWS_ENDPOINT_URL", store["AWS_ENDPOINT_URL"])
        said = probe()
    assert said.startswith(f"refused: the storage {storage} cannot be used from the node "), said
    assert "tried to find what the driver has written: could not look for s3://" in said
    assert SECRET not in said


#: Runs trials on a cluster until a node has been refused, and some more; prints how they ended, and their slots' pids.
RUN_UNTIL_REFUSED = """
import json, sys, threading, uuid
from orchestrator.cluster import connection, tune_executor
from orchestrator.cluster.storage_probe import probe_nodes
from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.resources import Slots
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from tests.support.plans import make_trial
from tests.support.recording_handler import EXECUTION, RecordingHandler, describe
from tests.support.scripted_fork_server import MODULE

ledger, said, works = Ledger(sys.argv[2], "s"), [], []

def add(number):
    begin = len(works)
    works.extend(make_trial(f"nap {begin + each}") for each in range(number))
    return works[-number:]

def find_more():
    if len(works) >= 1000 or find_more.is_last:
        return []
    find_more.is_last = bool(said)
    return add(4 if said else 1)

find_more.is_last = False

def say(line):
    said.append(line)
    print("said:", line, flush=True)

connection.connect(sys.argv[1])
probed = probe_nodes(ledger.root)
print("ready", flush=True)
with Lease(ledger) as lease:
    handler = RecordingHandler(ledger)
    settings = ChunkSettings(EXECUTION, uuid.uuid4().hex[:8], MODULE, (), 0, 600.0, describe, lease.ticket)
    dispatcher = Dispatcher(WorkQueue(add(4), complete=(), num_slots=1), ledger=ledger, settings=settings,
                            on_event=handler.handle, find_more=find_more)
    tune_executor.execute(dispatcher, study="s", slots=Slots(1.0, 0.0, None), max_retries=0, stop=threading.Event(),
                          probed=probed, print_line=say)
results = [ledger.read("trial", work.signature).result for work in works]
print(json.dumps({"ends": handler.ends(), "slots": [result["slot"] for result in results], "works": len(works)}))
"""


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_node_that_joins_late_without_access_gets_no_trial_and_is_named_once(
    store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.ray_clusters import running_cluster

    for name, value in store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the nodes, which run acted trials
    storage, theirs = f"s3://{BUCKET}/{tmp_path.name}", set[int]()
    with running_cluster(uuid.uuid4().hex, num_workers=1) as machines:
        words = [sys.executable, "-c", RUN_UNTIL_REFUSED, machines.address, storage]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "ready\n", driver.communicate()
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            late = machines.add_worker(num_cpus=2)
            while driver.poll() is None:
                theirs |= late.processes().keys()
                time.sleep(0.2)
            *said, last = driver.stdout.read().splitlines()
    assert len(said) == 1, said
    assert said[0].startswith(f"said: the storage {storage}/s cannot be used from the node "), said
    assert said[0].endswith("until it can, which is tried every 60 s, no trial runs there")
    end = json.loads(last)
    assert set(end["ends"].values()) == {"complete"}
    assert len(end["ends"]) == end["works"]
    assert not theirs & set(end["slots"])
    assert SECRET not in said[0]


# ------------------------------------------------------------------------------------------------ the lease

#: Takes the lease at a given moment, and says whether it got it.
TAKE = """
import sys, time
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from trainables.errors import LeaseError
ledger = Ledger(sys.argv[1], "s")
ledger.root.exists("connected")
while time.time() < float(sys.argv[2]):
    pass
try:
    Lease(ledger).__enter__()
except LeaseError as error:
    print("refused:", error)
else:
    print("took it")
    time.sleep(4)
"""


def take_at_once(store: dict[str, str], storage: str, *, number: int) -> list[str]:
    """Return what so many drivers say that take the lease in the same moment."""
    words = [sys.executable, "-c", TAKE, storage, str(time.time() + 6.0)]
    drivers = [
        subprocess.Popen(words, env=os.environ | store, stdout=subprocess.PIPE, text=True) for _ in range(number)
    ]
    return sorted(driver.communicate(timeout=60)[0] for driver in drivers)


@pytest.mark.parametrize("before", [pytest.param("nobody", marks=pytest.mark.long), "a driver taken for dead"])
def test_of_drivers_that_start_in_the_same_moment_one_runs(store: dict[str, str], tmp_path: Path, before: str) -> None:
    storage = f"s3://{BUCKET}/{tmp_path.name}"
    if before != "nobody":
        dead = '{"host": "elsewhere", "pid": 7, "since_ms": 0, "alive_ms": 0, "token": "theirs"}'
        connect(store).pipe_file(f"{BUCKET}/{tmp_path.name}/s/lease.json", dead.encode())
    said = take_at_once(store, storage, number=4)
    assert [line.startswith("refused: the study in") for line in said] == [True] * 3 + [False], said
    assert said[-1] == "took it\n"


def test_a_store_that_cannot_be_reached_is_told(tmp_path: Path, finished_study: FinishedStudy) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": SECRET}
    done = place.call("status", "--storage", f"s3://{BUCKET}/x", **away, AWS_MAX_ATTEMPTS="1")
    assert done.returncode == 3
    assert f"error: could not look for s3://{BUCKET}/x/tiny/plan.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------ claims


@pytest.mark.parametrize("before", ["nobody", "a dead driver"])
def test_of_drivers_that_take_a_trial_in_the_same_moment_one_gets_it(
    store: dict[str, str], tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    claims = Folder(f"s3://{BUCKET}/{tmp_path.name}") / "claims" / "abc"
    found = None if before == "nobody" else exchange_claim(claims, None, 1, holder="dead")
    got: list[Claim] = []

    def take(number: int) -> None:
        with suppress(SupersededError):
            got.append(exchange_claim(claims, found, 2, holder=f"d{number}"))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(take, range(6)))
    assert got == [find_claim(claims)]
    release_claim(claims, got[0])
    assert list(claims.children()) == []
