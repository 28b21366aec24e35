"""Several drivers share a study (``run --shard``), and most of them die, are cut off, or fall asleep."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.support.hosts import Hosts, running_hosts
from tests.support.object_stores import connect, serve_s3
from tests.support.processes import is_running, lines, wait_until
from tests.support.tiny_study import NUM_STAGES, Place, make_place, stamps

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

EPOCHS = 12
NUM_REPLICATES = 2
NUM_TRIALS = 4 * NUM_REPLICATES
#: One slot each, as many replicates and epochs as it takes to find something to kill.
OPTIONS = (
    *("--set", f"training.epochs={EPOCHS}", "--set", "training.batch_size=256"),
    *("--set", f"replicates={NUM_REPLICATES}", "--set", "execution.max_concurrent_trials=1"),
)
SECONDS = 400.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The study, run by one driver."""
    folder = tmp_path_factory.mktemp("undisturbed")
    place = make_place(folder, folder / "cache")
    done = place.call("run", *OPTIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def start(place: Place, number: int, of: int) -> subprocess.Popen[str]:
    """Start a driver with its part."""
    return place.start("run", "--shard", f"{number}/{of}", *OPTIONS)


def count_epochs(place: Place) -> int:
    """Return how many epochs of trials and stages are in the ledger."""
    return sum(file.read_bytes().count(b"\n") for file in place.ledger.glob("*s/*/epochs.jsonl"))


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait until a driver has ended with this code; return all that it has printed."""
    out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == code, out + errors
    assert "Traceback" not in out + errors
    return out + errors


def list_runs(address: str) -> list[Any]:
    """Return the runs that MLflow has of the study."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def check_whole(place: Place, undisturbed: Place) -> None:
    """Everything is as if one driver had run it alone, in the ledger and in MLflow."""
    ledger, whole = (Ledger(str(each.storage), "tiny") for each in (place, undisturbed))
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(whole))
    for file in place.ledger.glob("trials/*/epochs.jsonl"):
        written = file.read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in written] == list(range(1, EPOCHS + 1))
    assert not list((place.ledger / "claims").iterdir())
    assert not (place.ledger / "lease.json").exists()
    address = f"sqlite:///{place.ledger}/mlflow.db"
    runs, client = list_runs(address), MlflowClient(address)
    assert {run.info.status for run in runs} == {"FINISHED"}
    kinds = Counter(run.data.tags["robustsweep.kind"] for run in runs)
    assert (kinds["study"], kinds["stage"], kinds["trial"]) == (1, NUM_STAGES, NUM_TRIALS)
    own = [run for run in runs if run.data.tags["robustsweep.kind"] in ("stage", "trial")]
    assert len({run.data.tags["robustsweep.signature"] for run in own}) == len(own)
    for run in own:
        if run.data.tags["robustsweep.kind"] == "trial":
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert sorted(point.step for point in history) == list(range(1, EPOCHS + 1))


def test_with_three_of_four_drivers_killed_the_fourth_finishes_everything(undisturbed: Place, tmp_path: Path) -> None:
    place = make_place(tmp_path, undisturbed.study.parent / "cache")
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    drivers = [start(place, number, 4) for number in range(1, 5)]
    *victims, survivor = chance.sample(range(4), 4)
    goals = sorted(chance.randint(1, NUM_TRIALS * EPOCHS // 2) for _ in victims)
    print(f"drivers {victims} killed after {goals} epochs (seed {seed})")
    for victim, goal in zip(victims, goals, strict=True):
        wait_until(lambda goal=goal: count_epochs(place) >= goal, f"{goal} epochs are done", SECONDS)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 0.5))
        assert drivers[victim].poll() is None, drivers[victim].communicate()
        drivers[victim].kill()
    said = finish(drivers[survivor])
    for victim in victims:
        drivers[victim].communicate()
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in said
    place.wait_for_silence()
    check_whole(place, undisturbed)


def test_four_drivers_train_each_trial_once(undisturbed: Place, tmp_path: Path) -> None:
    place = make_place(tmp_path, undisturbed.study.parent / "cache")
    drivers = [start(place, number, 4) for number in range(1, 5)]
    said = [finish(driver) for driver in drivers]
    started = Counter(line.split(" [")[1][:8] for each in said for line in each.splitlines() if ": started" in line)
    assert set(started.values()) == {1}
    assert len(started) == NUM_TRIALS + NUM_STAGES
    check_whole(place, undisturbed)
    assert not list((place.ledger / "leases").iterdir())


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with running_hosts(uuid.uuid4().hex) as hosts:
        yield hosts


def test_a_host_without_power_is_waited_for_until_its_lease_has_run_out(
    undisturbed: Place, hosts: Hosts, tmp_path: Path
) -> None:
    """The drivers share the disk and nothing else: hosts, names, processes and caches are their own."""
    place = replace(make_place(tmp_path, hosts.scratch / "tmp" / "cache"), marker=hosts.marker)
    a, b = hosts.hosts
    first, second = (start(replace(place, prefix=host.prefix), number, 2) for number, host in ((1, a), (2, b)))
    wait_until(lambda: len(place.training()) == 2 and count_epochs(place) > 4, "both hosts train", SECONDS)
    b.power_off()
    second.communicate()
    finish(first)
    check_whole(place, undisturbed)


def test_a_driver_that_sleeps_too_long_changes_nothing_when_it_wakes_up(undisturbed: Place, tmp_path: Path) -> None:
    place = make_place(tmp_path, undisturbed.study.parent / "cache")
    sleeper = start(place, 1, 2)
    wait_until(lambda: count_epochs(place) > 2, "it trains", SECONDS)
    (trial,) = place.training().values()
    for pid in (trial, sleeper.pid):
        os.kill(pid, signal.SIGSTOP)
    other = start(place, 2, 2)
    finish(other)
    before = stamps(place)
    for pid in (sleeper.pid, trial):
        os.kill(pid, signal.SIGCONT)
    said = finish(sleeper, code=2)
    assert "taken over" in said
    wait_until(lambda: not is_running(trial), "its trial has ended")
    place.wait_for_silence()
    after = stamps(place)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {Path(name).name for name in changed} <= {"log.txt", "attempts.jsonl"}
    check_whole(place, undisturbed)


def test_drivers_share_a_study_on_an_object_store(undisturbed: Place, tmp_path: Path) -> None:
    pytest.importorskip("moto", reason="the server comes with the extra dev")
    pytest.importorskip("s3fs", reason="its client comes with the extra cluster")
    place = make_place(tmp_path, undisturbed.study.parent / "cache")
    where = ("--storage", "s3://studies/some/where", "--mlflow", f"sqlite:///{tmp_path}/mlflow.db")
    with serve_s3() as store:
        files = connect(store)
        files.mkdir("studies")
        first, second = (place.start("run", "--shard", f"{n}/2", *OPTIONS, *where, **store) for n in (1, 2))
        for line in lines(second):
            if ": epoch 3" in line:
                break
        second.kill()
        finish(first)
        second.communicate()
        files.get("studies/some/where/tiny", str(tmp_path / "copy" / "tiny"), recursive=True)
    again, whole = Ledger(str(tmp_path / "copy"), "tiny"), Ledger(str(undisturbed.storage), "tiny")
    assert results_sha256(load_results(again)) == results_sha256(load_results(whole))
    assert not {"claims", "lease.json", "lease.lock"} & set(again.root.children())
    runs = list_runs(f"sqlite:///{tmp_path}/mlflow.db")
    own = [run for run in runs if run.data.tags["robustsweep.kind"] in ("stage", "trial")]
    assert len({run.data.tags["robustsweep.signature"] for run in own}) == len(own) == NUM_TRIALS + NUM_STAGES
    assert {run.info.status for run in runs} == {"FINISHED"}
