"""Two hosts that share a disk, and a network between them that is cut: what is cut off goes on working."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.support.hosts import IMPATIENT, Host, Hosts, running_hosts
from tests.support.processes import is_running, wait_until
from tests.support.tiny_study import Place, stamps

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

#: Two trials, each of more than a minute.
EPOCHS = 250
#: Two trials that outlast Ray's own patience (63 s) and what is done after it, and twenty cuts: three minutes.
MANY_EPOCHS = 700
STUDY = """\
study: tiny
question: Does strong augmentation help?
data: {kind: digits, image_size: 16}
model: {name: shufflenet_v2_x0_5, input_size: 16}
training: {epochs: EPOCHS, batch_size: 256, learning_rate: 0.005}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors:
  augmentation: [none, strong]
hypotheses:
- {name: strong, claim: It helps., treatment: {augmentation: strong}, control: {augmentation: none},
   direction: higher, smallest_effect: 0.01, over: shifts}
execution: {cache_dir: CACHE, local_executor: false}
"""
#: Longest that a study takes of which one trial begins when the other has ended.
SECONDS = 600.0


def make_place(folder: Path, marker: str, cache_dir: Path, epochs: int) -> Place:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(STUDY.replace("CACHE", str(cache_dir)).replace("EPOCHS", str(epochs)))
    return Place(folder / "tiny.yaml", folder / "results", marker)


def run_undisturbed(folder: Path, epochs: int) -> Place:
    place = make_place(folder, uuid.uuid4().hex, folder / "cache", epochs)
    finish(place, place.start("run"))
    return place


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The study, run on one machine."""
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"), EPOCHS)


@pytest.fixture(scope="module")
def long_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The study of many epochs, run on one machine."""
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"), MANY_EPOCHS)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with running_hosts(uuid.uuid4().hex) as hosts:
        yield hosts


def place_on(hosts: Hosts, folder: Path, epochs: int) -> Place:
    """Return the study, to be run on the first host: the results are shared, the cache is each host's own."""
    place = make_place(folder, hosts.marker, hosts.scratch / "tmp" / "cache", epochs)
    return replace(place, prefix=hosts.hosts[0].prefix)


@pytest.fixture
def place(undisturbed: Place, hosts: Hosts, tmp_path: Path) -> Place:
    return place_on(hosts, tmp_path, EPOCHS)


@pytest.fixture
def long_place(long_undisturbed: Place, hosts: Hosts, tmp_path: Path) -> Place:
    return place_on(hosts, tmp_path, MANY_EPOCHS)


def start(place: Place, hosts: Hosts, *options: str, free_cpus: int = 0, **variables: str) -> subprocess.Popen[str]:
    """Start Ray on both hosts, and the study; return its driver once each host trains one of the trials.

    Args:
        place: the study.
        hosts: both hosts.
        options: further options of ``run``.
        free_cpus: CPUs of the first host that are free once the trials run.
        variables: environment variables of Ray's head.
    """
    a, b = hosts.hosts
    hosts.start_head(num_cpus=1 + free_cpus, **variables)
    hosts.start_worker(b)
    with hosts.holding(free_cpus, of=2 + free_cpus):
        process = place.start("run", "--address", hosts.address, *options)
        wait_for(process, lambda: all(find_trial(place, host) for host in (a, b)), "each host trains a trial")
    return process


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Wait until a condition holds, not longer than the driver runs."""
    wait_until(lambda: condition() or process.poll() is not None, what, seconds)
    if process.poll() is not None:
        raise AssertionError(f"the driver ended before {what}: " + "".join(process.communicate()))


def find_trial(place: Place, host: Host) -> tuple[str, int] | None:
    """Return signature and pid of the trial that trains on a host and has three epochs behind it, None if none does."""
    for signature, pid in place.training().items():
        if host.has(pid) and count_epochs(place, signature) >= 3:
            return signature, pid
    return None


def get_trial(place: Place, host: Host) -> tuple[str, int]:
    """Return signature and pid of the trial that trains on a host."""
    found = find_trial(place, host)
    assert found is not None
    return found


def trials_on(place: Place, host: Host) -> dict[int, str]:
    """Return pid → signature of all processes of trials on a host; of one trial, both hosts may have one."""
    found = {}
    for pid, line in place.survivors().items():
        if "orchestrator.driver.child_process" in line and host.has(pid):
            try:
                log = Path(os.readlink(f"/proc/{pid}/fd/1"))
            except OSError:  # it has just ended
                continue
            if log.name == "log.txt":
                found[pid] = log.parent.name
    return found


def epochs_of(place: Place, signature: str) -> bytes:
    """Return the lines of a trial's epochs."""
    try:
        return (place.ledger / "trials" / signature / "epochs.jsonl").read_bytes()
    except FileNotFoundError:
        return b""


def count_epochs(place: Place, signature: str) -> int:
    return epochs_of(place, signature).count(b"\n")


def notes_of(place: Place) -> list[dict[str, Any]]:
    """Return what the ledger has noted about attempts without a result."""
    files = place.ledger.glob("trials/*/attempts.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def finish(place: Place, process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait until the driver has ended with this code; return all that it has printed."""
    out, errors = process.communicate(timeout=SECONDS)
    (place.storage.parent / "printed.txt").write_text(out + errors)  # pytest shows only the end of so long a text
    assert process.returncode == code, out + errors
    assert "Traceback" not in out + errors
    return out + errors


def check_whole(place: Place, undisturbed: Place, epochs: int = EPOCHS) -> None:
    """Everything is as if nothing had happened, in the ledger and in MLflow."""
    ledger, whole = (Ledger(str(each.storage), "tiny") for each in (place, undisturbed))
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(whole))
    signatures = {folder.name for folder in (undisturbed.ledger / "trials").iterdir()}
    assert {folder.name for folder in (place.ledger / "trials").iterdir()} == signatures
    for signature in signatures:
        folder, other = (each.ledger / "trials" / signature for each in (place, undisturbed))
        lines = (folder / "epochs.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, epochs + 1))
        results = [json.loads((each / "result.json").read_text()) for each in (folder, other)]
        assert results[0]["checkpoint_sha256"] == results[1]["checkpoint_sha256"]
        assert results[0]["evaluations"] == results[1]["evaluations"]
        allowed = {path.name for path in other.iterdir()} | {"attempts.jsonl"}
        assert {path.name for path in folder.iterdir()} <= allowed
    assert not list((place.ledger / "claims").iterdir())
    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags.get("robustsweep.signature") for run in runs}) == len(runs)
    trials = [run for run in runs if run.data.tags["robustsweep.kind"] == "trial"]
    assert len(trials) == len(signatures)
    for run in trials:
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(point.step for point in history) == list(range(1, epochs + 1))


def await_refusal(process: subprocess.Popen[str], place: Place, hosts: Hosts, signature: str, pid: int) -> None:
    """Wait until the head's host trains the trial, and the process of the host that is cut off is refused and ends."""
    a, b = hosts.hosts
    wait_for(process, lambda: signature in trials_on(place, a).values(), "the head's host trains it, too", SECONDS)
    assert is_running(pid)  # it has not noticed
    wait_for(process, lambda: not is_running(pid), "the attempt of the host that is cut off is refused")
    assert b.ray is not None
    assert b.ray.poll() is None  # nobody has ended it


def test_a_host_cut_off_for_good_is_refused_while_another_goes_on(
    place: Place, hosts: Hosts, undisturbed: Place
) -> None:
    b = hosts.hosts[1]
    process = start(place, hosts, free_cpus=1, **IMPATIENT)
    signature, pid = get_trial(place, b)
    hosts.cut(b)
    await_refusal(process, place, hosts, signature, pid)
    assert f"[{signature[:8]}]: its process ended; started again" in finish(place, process)
    check_whole(place, undisturbed)


def test_a_trial_that_is_cut_off_waits_for_room_on_the_head(place: Place, hosts: Hosts, undisturbed: Place) -> None:
    a, b = hosts.hosts
    process = start(place, hosts, **IMPATIENT)
    (other, _), (signature, pid) = get_trial(place, a), get_trial(place, b)
    os.kill(pid, signal.SIGSTOP)  # or it would be complete by the time that there is room
    wait_for(process, lambda: count_epochs(place, other) >= 2 * EPOCHS // 3, "the head's own trial is well ahead")
    hosts.cut(b)
    os.kill(pid, signal.SIGCONT)
    await_refusal(process, place, hosts, signature, pid)
    assert f"[{signature[:8]}]: its process ended; started again" in finish(place, process)
    check_whole(place, undisturbed)


def test_a_trial_that_is_completed_by_a_host_cut_off_is_not_repeated(
    place: Place, hosts: Hosts, undisturbed: Place
) -> None:
    a, b = hosts.hosts
    process = start(place, hosts, **IMPATIENT)
    (_, head_pid), (signature, _) = get_trial(place, a), get_trial(place, b)
    hosts.cut(b)
    wait_for(process, lambda: count_epochs(place, signature) >= EPOCHS // 2, "it is half done")
    os.kill(head_pid, signal.SIGSTOP)  # or there would be room before it is complete
    result = place.ledger / "trials" / signature / "result.json"
    wait_for(process, result.exists, "the host that is cut off has completed it")
    time.sleep(5)
    before = stamps(place, [signature])
    os.kill(head_pid, signal.SIGCONT)
    finish(place, process)
    assert stamps(place, [signature]) == before
    check_whole(place, undisturbed)


def test_nothing_happens_when_a_cut_is_short(place: Place, hosts: Hosts, undisturbed: Place) -> None:
    """Ray's connections stand it."""
    b = hosts.hosts[1]
    process = start(place, hosts)
    pids = {get_trial(place, host) for host in hosts.hosts}
    hosts.cut(b)
    time.sleep(5)
    hosts.restore(b)
    time.sleep(20)
    assert {get_trial(place, host) for host in hosts.hosts} == pids
    assert "its process ended" not in finish(place, process)
    assert not notes_of(place)
    check_whole(place, undisturbed)


def test_no_epoch_is_repeated_when_a_cut_is_shorter_than_the_patience_of_ray(
    place: Place, hosts: Hosts, undisturbed: Place
) -> None:
    """Ray waits 63 s for a host, but a call to an actor may fail after some 10 s without an answer.

    The trial is then started again, on either host, from its last epoch.
    """
    b = hosts.hosts[1]
    process = start(place, hosts)
    before = {signature: epochs_of(place, signature) for signature in place.training()}
    hosts.cut(b)
    time.sleep(20)
    hosts.restore(b)
    finish(place, process)
    assert all(epochs_of(place, signature).startswith(lines) for signature, lines in before.items())
    check_whole(place, undisturbed)


def test_a_host_that_was_cut_off_too_long_comes_back(place: Place, hosts: Hosts, undisturbed: Place) -> None:
    a, b = hosts.hosts
    process = start(place, hosts, free_cpus=1, **IMPATIENT)
    signature, pid = get_trial(place, b)
    hosts.cut(b)
    wait_for(process, lambda: signature in trials_on(place, a).values(), "the head's host trains it, too")
    assert is_running(pid)
    hosts.restore(b)
    wait_for(process, lambda: not trials_on(place, b), "Ray's node ends, and all that runs under it")
    hosts.start_worker(b)
    finish(place, process)
    check_whole(place, undisturbed)


def test_the_cable_of_the_head_is_pulled(place: Place, hosts: Hosts, undisturbed: Place) -> None:
    """The driver is on its host."""
    a, b = hosts.hosts
    process = start(place, hosts, free_cpus=1, **IMPATIENT)
    signature, pid = get_trial(place, b)
    hosts.cut(a)
    await_refusal(process, place, hosts, signature, pid)
    hosts.restore(a)
    finish(place, process)
    check_whole(place, undisturbed)


def test_a_driver_that_is_cut_off_ends_and_another_goes_on(place: Place, hosts: Hosts, undisturbed: Place) -> None:
    b = hosts.hosts[1]
    process = start(replace(place, prefix=b.prefix), hosts, **IMPATIENT)
    hosts.cut(b)
    assert "error: lost Ray: " in finish(place, process, code=3)
    assert not (place.ledger / "lease.json").exists()
    finish(place, place.start("run", "--address", hosts.address))
    check_whole(place, undisturbed)


def test_a_host_without_power(place: Place, hosts: Hosts, undisturbed: Place) -> None:
    b = hosts.hosts[1]
    process = start(place, hosts, **IMPATIENT)
    before = {each: epochs_of(place, each) for each in place.training()}
    signature, _ = get_trial(place, b)
    b.power_off()
    assert f"[{signature[:8]}]: its process ended; started again" in finish(place, process)
    assert all(epochs_of(place, each).startswith(lines) for each, lines in before.items())
    check_whole(place, undisturbed)


def test_the_loss_of_a_host_is_found_with_the_patience_of_ray(
    long_place: Place, hosts: Hosts, long_undisturbed: Place
) -> None:
    b = hosts.hosts[1]
    process = start(long_place, hosts, free_cpus=1)
    signature, pid = get_trial(long_place, b)
    hosts.cut(b)
    cut = time.monotonic()
    await_refusal(process, long_place, hosts, signature, pid)
    assert time.monotonic() - cut > 30
    assert f"[{signature[:8]}]: its process ended; started again" in finish(long_place, process)
    check_whole(long_place, long_undisturbed, MANY_EPOCHS)


@pytest.mark.parametrize("seed", [1])
def test_twenty_random_cuts(long_place: Place, hosts: Hosts, long_undisturbed: Place, seed: int) -> None:
    """Short ones and such that Ray takes for a loss, of either host."""
    rng = random.Random(seed)
    b = hosts.hosts[1]
    process = start(long_place, hosts, "--set", "execution.max_retries=1000", **IMPATIENT)
    cuts: list[float] = []
    while process.poll() is None and len(cuts) < 20:
        host = rng.choice(hosts.hosts)
        time.sleep(rng.uniform(0.5, 4.0))
        hosts.cut(host)
        cuts.append(rng.choice([rng.uniform(0.1, 4.0), rng.uniform(4.0, 14.0)]))
        time.sleep(cuts[-1])
        hosts.restore(host)
        time.sleep(3.0)  # a node that has been lost ends
        assert b.ray is not None
        if b.ray.poll() is not None:
            hosts.start_worker(b)
    (long_place.storage.parent / "cuts.txt").write_text(f"{cuts} {notes_of(long_place)}")
    finish(long_place, process)
    assert len(cuts) == 20
    check_whole(long_place, long_undisturbed, MANY_EPOCHS)
