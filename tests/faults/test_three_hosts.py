"""A cluster of three hosts without a shared disk: storage, MLflow and PostgreSQL on the head, trials on two workers."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.support.host_services import Services, list_built, measure_shared_memory, serving, watch_cache
from tests.support.hosts import IMPATIENT, Host, Hosts, running_hosts
from tests.support.processes import is_running, lines, wait_until
from tests.support.relay import Disturbance
from tests.support.tiny_study import Place

pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]

NUM_TRIALS, EPOCHS = 4, 6
STUDY = """\
study: tiny
question: Does strong augmentation help?
data: {kind: digits, image_size: 16}
model: {name: shufflenet_v2_x0_5, input_size: 16}
training: {epochs: EPOCHS, batch_size: 256, learning_rate: 0.005}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors:
  augmentation: [none, strong]
replicates: 2
hypotheses:
- {name: strong, claim: It helps., treatment: {augmentation: strong}, control: {augmentation: none},
   direction: higher, smallest_effect: 0.01, over: shifts}
execution: {cache_dir: CACHE}
"""
SECONDS = 300.0
#: A round trip of 50 ms ± 20 ms, of which 4 % fail.
DISTURBANCE = Disturbance(delay_ms=25.0, jitter_ms=10.0, loss_percent=2.0)


def make_place(folder: Path, marker: str, cache_dir: Path) -> Place:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(STUDY.replace("CACHE", str(cache_dir)).replace("EPOCHS", str(EPOCHS)))
    return Place(folder / "tiny.yaml", folder / "results", marker)


def run_undisturbed(folder: Path) -> Place:
    place = make_place(folder, uuid.uuid4().hex, folder / "cache")
    finish(place.start("run"))
    return place


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The study, run on one machine, with everything on its disk."""
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with running_hosts(uuid.uuid4().hex, number=3) as hosts:
        yield hosts


@pytest.fixture
def services(hosts: Hosts) -> Iterator[Services]:
    with serving(hosts) as services:
        yield services


@pytest.fixture
def place(services: Services, hosts: Hosts, tmp_path: Path) -> Place:
    """The study, to be run on the head: each host has a cache of its own."""
    cache = hosts.scratch / "tmp" / "cache"
    watch_cache(hosts, cache)
    place = make_place(tmp_path, hosts.marker, cache)
    return replace(place, prefix=services.head.prefix)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait until the driver has ended well; return all that it has printed."""
    out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out + errors
    assert "Traceback" not in out + errors
    return out + errors


def check_whole(place: Place, services: Services, undisturbed: Place) -> None:
    """Everything is as on one machine: results, each epoch once, one run in MLflow per trial."""
    found = services.look()
    whole = Ledger(str(undisturbed.storage), "tiny")
    assert found["results"] == results_sha256(load_results(whole))
    assert found["epochs"].keys() == {record.signature for record in whole.records("trial")}
    assert list(found["epochs"].values()) == [list(range(1, EPOCHS + 1))] * NUM_TRIALS
    assert found["runs"].count("trial") == NUM_TRIALS
    assert found["claims"] == []
    assert not place.storage.exists()


def start(place: Place, hosts: Hosts, services: Services, *workers: Host, **variables: str) -> subprocess.Popen[str]:
    """Start Ray on the head, which trains nothing, and on these workers, and the study."""
    hosts.start_head(num_cpus=0, **variables)
    for worker in workers:
        hosts.start_worker(worker)
    with hosts.holding(of=len(workers)):
        return place.start("run", "--address", hosts.address, *services.flags)


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, not longer than the driver runs."""
    wait_until(lambda: condition() or process.poll() is not None, what, SECONDS)
    if process.poll() is not None:
        raise AssertionError(f"the driver ended before {what}: " + "".join(process.communicate()))


def find_training(place: Place, host: Host) -> dict[str, int]:
    """Return name of its log's folder → pid of each trial that runs on a host."""
    return {name: pid for name, pid in place.training().items() if host.has(pid)}


def suspend_trial(process: subprocess.Popen[str], place: Place, host: Host) -> int:
    """Wait until a trial runs on a host and suspend it; return its pid."""
    wait_for(process, lambda: bool(find_training(place, host)), f"{host.name} runs a trial")
    (pid,) = find_training(place, host).values()
    os.kill(pid, signal.SIGSTOP)
    return pid


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Read what the driver prints until a line has this text."""
    assert any(text in line for line in lines(process)), f"the driver ended before it printed {text!r}"


def start_and_suspend(place: Place, hosts: Hosts, services: Services) -> tuple[subprocess.Popen[str], int]:
    """Start the study on the last host, suspend its trial after an epoch, and let the second host join.

    Returns:
        The driver and the pid of the trial, which would be complete by the time that its host is lost.
    """
    _, b, c = hosts.hosts
    process = start(place, hosts, services, c, **IMPATIENT)
    read_until(process, ": epoch 1")
    pid = suspend_trial(process, place, c)
    hosts.start_worker(b)
    return process, pid


def check_built_once(hosts: Hosts) -> None:
    """Each host has decoded the data once, and has built each shifted copy at most once."""
    for host in hosts.hosts:
        built = list_built(hosts, host)
        assert len([name for name in built if name.startswith("data/") and name.count("/") == 1]) == 1, built
        assert max(Counter(built).values()) == 1, built


def test_a_study_without_a_shared_disk(place: Place, hosts: Hosts, services: Services, undisturbed: Place) -> None:
    """Data are decoded once per host, and none pass through Ray."""
    before = {host.name: measure_shared_memory(host) for host in hosts.hosts}  # PostgreSQL has some on the head
    said = finish(start(place, hosts, services, *hosts.hosts[1:]))
    assert f"{NUM_TRIALS} planned, {NUM_TRIALS} complete" in said
    check_whole(place, services, undisturbed)
    check_built_once(hosts)
    decoded = sum(path.stat().st_size for path in (undisturbed.study.parent / "cache" / "data").rglob("*.npy"))
    used = {host.name: measure_shared_memory(host) - before[host.name] for host in hosts.hosts}
    assert max(used.values()) < decoded / 4, (used, decoded)


def test_a_host_that_joins_late_is_used(place: Place, hosts: Hosts, services: Services, undisturbed: Place) -> None:
    _, b, c = hosts.hosts
    process = start(place, hosts, services, b)
    pid = suspend_trial(process, place, b)  # or all would be complete by the time that another host has joined
    hosts.start_worker(c)
    seen = set[str]()

    def count_trials() -> int:
        seen.update(find_training(place, c))
        return len(seen)

    wait_for(process, lambda: count_trials() >= 2, "the host that has joined has run a trial and runs another")
    os.kill(pid, signal.SIGCONT)
    finish(process)
    check_whole(place, services, undisturbed)


def test_a_cable_pulled_for_a_minute(place: Place, hosts: Hosts, services: Services, undisturbed: Place) -> None:
    c = hosts.hosts[2]
    process, pid = start_and_suspend(place, hosts, services)
    hosts.cut(c)
    os.kill(pid, signal.SIGCONT)
    restoring = threading.Timer(60.0, hosts.restore, [c])
    restoring.start()
    read_until(process, "its process ended; started again")
    finish(process)
    restoring.join()
    wait_until(lambda: not is_running(pid), "the attempt of the host that was cut off has ended", SECONDS)
    check_whole(place, services, undisturbed)


def test_a_host_that_still_reaches_storage_and_not_ray(
    place: Place, hosts: Hosts, services: Services, undisturbed: Place
) -> None:
    """Its trial is started elsewhere, and what it would write later is refused."""
    process, pid = start_and_suspend(place, hosts, services)
    hosts.allow_only(hosts.hosts[2], services.port)
    read_until(process, "its process ended; started again")
    assert is_running(pid)
    os.kill(pid, signal.SIGCONT)
    wait_for(process, lambda: not is_running(pid), "its attempt is refused")
    finish(process)
    check_whole(place, services, undisturbed)


def test_a_host_without_power(place: Place, hosts: Hosts, services: Services, undisturbed: Place) -> None:
    process, _ = start_and_suspend(place, hosts, services)
    hosts.hosts[2].power_off()
    read_until(process, "its process ended; started again")
    finish(process)
    check_whole(place, services, undisturbed)


def test_delay_and_loss(place: Place, hosts: Hosts, services: Services, undisturbed: Place) -> None:
    """Between each worker and the head: storage, MLflow and Ray."""
    workers = hosts.hosts[1:]
    relays = [hosts.disturb(worker, DISTURBANCE) for worker in workers]
    shortest = 2 * (DISTURBANCE.delay_ms - DISTURBANCE.jitter_ms)
    assert min(services.measure_round_trip(worker) for worker in workers) >= shortest
    finish(start(place, hosts, services, *workers))
    counts = [relay.end() for relay in relays]
    assert min(each["lost"] for each in counts) > 50, counts
    check_whole(place, services, undisturbed)
