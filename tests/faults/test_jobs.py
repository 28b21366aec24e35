"""A study as a job of a real Ray head: submitted twice at once, its driver killed, stopped, submitted again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.jobs.study_jobs import POLL_SECONDS
from tests.conftest import FinishedStudy
from tests.faults.test_cluster import check_whole, complete_of, epochs_of
from tests.faults.test_secrets import SECRETS, find_leaks
from tests.support.faulty_proxy import AWAY, CLOSE, ERROR_503, GARBAGE, HANG, PASS, FaultyProxy
from tests.support.processes import wait_until
from tests.support.ray_heads import Head, running_head
from tests.support.tiny_study import IN_RAY, NUM_STAGES, NUM_TRIALS, Place, make_place, stamps

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PROGRAM = ("--program", f"{sys.executable} -m robustsweep")
CONTRACT = """\
import sys
from pathlib import Path
from orchestrator.cluster.jobs.ray_server import RayJobServer
from tests.support.job_servers import check_contract, make_package
check_contract(RayJobServer(sys.argv[1]), make_package(Path(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def marker() -> str:
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def head(marker: str) -> Iterator[Head]:
    with running_head(marker) as head:
        yield head


@pytest.fixture
def place(finished_study: FinishedStudy, tmp_path: Path, marker: str) -> Place:
    return replace(make_place(tmp_path, finished_study.place.study.parent / "cache"), marker=marker)


def find_driver(place: Place) -> int:
    """Return the process that holds the lease, once a stage or trial has an epoch behind it."""
    wait_until(lambda: any(epochs_of(place).values()), "something has an epoch behind it", seconds=200)
    return int(read_lease(place)["pid"])


def read_lease(place: Place) -> dict[str, Any]:
    holder: dict[str, Any] = json.loads((place.ledger / "lease.json").read_text())
    return holder


def submit(place: Place, head: Head, *options: str, **variables: str) -> subprocess.Popen[str]:
    """Start a submission; its driver runs no trial itself."""
    return place.start("submit", "--address", head.address, *PROGRAM, *IN_RAY, *options, **head.variables, **variables)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=280)
    return process.returncode, out, errors


def test_ray_does_what_the_job_server_of_the_tests_does(head: Head, marker: str, tmp_path: Path) -> None:
    """Ray's token mode is on. A token that is wrong, or missing, is refused with advice."""
    variables = os.environ | head.variables | {"ROBUSTSWEEP_TEST": marker}
    command = [sys.executable, "-c", CONTRACT, head.address, str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    for wrong in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        done = subprocess.run(command, env=variables | wrong, capture_output=True, text=True, check=False, timeout=60)
        assert "the cluster asks for a token, and this one is missing or wrong; set RAY_AUTH_MODE=token" in done.stderr
        assert head.variables["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


def test_a_driver_that_is_killed_is_submitted_again_once(
    finished_study: FinishedStudy, place: Place, head: Head
) -> None:
    """Two submit at once, and watch the same driver; the secrets in their environments stay there."""
    submitters = [submit(place, head, "--retries", "2", **SECRETS) for _ in range(2)]
    os.kill(find_driver(place), signal.SIGKILL)
    done = [finish(submitter) for submitter in submitters]
    assert [code for code, _, _ in done] == [0, 0], done
    said = [errors.splitlines() for _, _, errors in done]
    started = [line for lines in said for line in lines if line.startswith("submitted the job ")]
    assert len(started) == 2  # by either of the two
    first, second = sorted(line.split()[3] for line in started)
    assert int(second.rpartition("-")[2]) == int(first.rpartition("-")[2]) + 1
    for lines in said:
        assert (
            f"the job {first} has failed: its driver was killed by signal 9; submitting the study again"
            in "\n".join(lines)
        )
        assert lines[-1] == f"the job {second} has succeeded"
    assert all("Traceback" not in out + errors for _, out, errors in done)
    assert all(out.count("study    tiny: ") == 2 for _, out, _ in done)  # each attempt's log, once
    check_whole(place, finished_study)
    assert find_leaks(place.storage, head.folder) == {}
    token = head.variables["RAY_AUTH_TOKEN"].encode()
    assert [path for path in head.folder.rglob("*") if path.is_file() and token in path.read_bytes()] == []


def test_unreachable_is_not_dead(finished_study: FinishedStudy, place: Place, head: Head) -> None:
    """Fifty questions in a row, and more, get no answer: the driver goes on, and nothing is submitted again."""
    with FaultyProxy(head.address) as proxy:
        submitter = submit(place, replace(head, address=proxy.url), "--retries", "5")
        find_driver(place)
        wait_until(lambda: bool(place.training()), "something trains")
        training = list(place.training().values())
        for pid in training:
            os.kill(pid, signal.SIGSTOP)  # or the study would be complete by then
        before = read_lease(place)
        for fault, number in ((ERROR_503, 20), (CLOSE, 20), (GARBAGE, 20), (HANG, 1)):
            proxy.switch(fault)
            wait_until(lambda: proxy.counts[fault] >= number, f"questions meet {fault!r}", 200)  # noqa: B023
        proxy.switch(AWAY)
        time.sleep(5 * POLL_SECONDS)  # connections are refused
        after = read_lease(place)
        assert after["alive_ms"] > before["alive_ms"]
        assert (after["pid"], after["token"]) == (before["pid"], before["token"])  # the same driver
        proxy.switch(PASS)
        for pid in training:
            os.kill(pid, signal.SIGCONT)
        code, out, errors = finish(submitter)
    assert code == 0, out + errors
    said = errors.splitlines()
    for text in ("submitted the job ", "asking again", "answers again"):
        assert sum(text in line for line in said) == 1, errors
    assert "submitting the study again" not in errors
    assert "Traceback" not in out + errors
    assert out.count("study    tiny: ") == 1
    (job,) = (line.split()[3] for line in said if line.startswith("submitted the job "))
    attempts = [json.loads(path.read_text()) for path in (place.ledger / "jobs").iterdir()]
    # Numbers before it are those of jobs that other tests have left with this head, which refuses them at once.
    assert job == max(attempts, key=lambda attempt: attempt["number"])["job"]
    check_whole(place, finished_study)


def test_a_stop_is_in_order_and_the_next_submission_goes_on(
    finished_study: FinishedStudy, place: Place, head: Head
) -> None:
    code, _, errors = finish(submit(place, head, "--detach"))
    assert code == 0, errors
    name = errors.partition("submitted the job ")[2].split()[0]
    find_driver(place)
    status = place.call("status", "--address", head.address, **head.variables)
    assert f"job          {name}: running" in status.stdout
    stopped = place.call("stop", "--address", head.address, **head.variables)
    assert (stopped.returncode, stopped.stderr.splitlines()[-1]) == (0, f"the job {name} has stopped")
    assert not (place.ledger / "lease.json").exists()
    log = place.call("logs", "--address", head.address, **head.variables).stdout
    assert "stopped; go on with: robustsweep run" in log  # it has had the time for that
    supervisor = head.folder / "session_latest" / "logs" / "jobs" / f"supervisor-{name}.log"
    assert "has been terminated gracefully with SIGTERM" in supervisor.read_text()
    wait_until(lambda: not place.training(), "no trial goes on")
    before = stamps(place, complete_of(place))
    assert len(complete_of(place)) < NUM_TRIALS + NUM_STAGES  # something is left to do
    code, out, errors = finish(submit(place, head))
    assert code == 0, out + errors
    study, _, number = name.rpartition("-")
    assert f"submitted the job {study}-{int(number) + 1} to " in errors
    assert before.items() <= stamps(place).items()
    check_whole(place, finished_study)


def test_a_command_that_is_not_there_is_said_and_not_tried_again(place: Place, head: Head) -> None:
    process = place.start(
        "submit", "--address", head.address, "--program", "no-such-program", "--retries", "3", **head.variables
    )
    code, _, errors = finish(process)
    assert code == 2
    assert errors.count("submitted the job") == 1
    assert "robustsweep was not found on the head's machine: install it there, or say with --program" in errors
