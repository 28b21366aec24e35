"""The host of Ray's head and of the driver is lost for good, with its disk: the study goes on on another host.

Storage, MLflow and whoever submits are on a host that survives; the study is a job of a real Ray head on another one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.test_jobs import PROGRAM
from tests.faults.test_three_hosts import (
    SECONDS,
    check_whole,
    find_training,
    make_place,
    run_undisturbed,
    wait_for,
)
from tests.support.host_services import Services, serving
from tests.support.hosts import Hosts, running_hosts
from tests.support.processes import is_running, wait_until
from tests.support.tiny_study import IN_RAY, Place

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The study, run on one machine, with everything on its disk."""
    return run_undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with running_hosts(uuid.uuid4().hex, number=4) as hosts:
        yield hosts


@pytest.fixture
def services(hosts: Hosts) -> Iterator[Services]:
    with serving(hosts) as services:
        yield services


@pytest.fixture
def place(services: Services, hosts: Hosts, tmp_path: Path) -> Place:
    """The study, to be submitted from the host of the services; each host has a cache of its own."""
    place = make_place(tmp_path, hosts.marker, hosts.scratch / "tmp" / "cache")
    return replace(place, prefix=services.head.prefix)


def submit(place: Place, hosts: Hosts, services: Services) -> subprocess.Popen[str]:
    options = (*services.flags, *IN_RAY, "--working-dir", str(place.study.parent), "--retries", "3")
    return place.start("submit", "--address", hosts.job_server, *PROGRAM, *options)


def interrupt(process: subprocess.Popen[str]) -> str:
    """End a submitter as Ctrl-C does; return what it has said."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGINT)  # nsenter passes no signal on
    return process.communicate(timeout=SECONDS)[1]


def test_a_head_that_is_lost_with_its_host(place: Place, hosts: Hosts, services: Services, undisturbed: Place) -> None:
    """Its job server is gone, too. The study is submitted to another head, which waits for the lease to run out."""
    _, b, c, d = hosts.hosts
    hosts.start_head_with_job_server(b, num_cpus=0)
    hosts.start_worker(c)
    first = submit(place, hosts, services)
    wait_for(first, lambda: services.count_epochs() > 0, "a trial has an epoch behind it")
    wait_for(first, lambda: bool(find_training(place, c)), "a trial runs on the worker")
    (pid,) = find_training(place, c).values()
    os.kill(pid, signal.SIGSTOP)  # or it would be complete by the time that another driver is there
    b.power_off()
    assert "submitted the job tiny-1 to " in interrupt(first)
    hosts.start_head_with_job_server(d)
    second = submit(place, hosts, services)
    wait_for(second, lambda: bool(find_training(place, d)), "the other head's host trains")
    with suppress(ProcessLookupError):  # it has ended with Ray on its host, which misses the head after a minute
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not is_running(pid), "the attempt of the worker has ended")
    out, errors = second.communicate(timeout=SECONDS)
    assert "holds the lease of the study: waiting until it runs out or is renewed" in errors, out + errors
    assert f"submitted the job tiny-2 to {hosts.job_server}" in errors, out + errors
    assert errors.splitlines()[-1] == "the job tiny-2 has succeeded", out + errors
    assert "Traceback" not in out + errors
    check_whole(place, services, undisturbed)
