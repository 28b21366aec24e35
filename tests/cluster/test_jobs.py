"""A study is submitted once, followed, and submitted again only when its driver is dead."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from orchestrator.cluster.jobs.attempts import Attempt, Attempts
from orchestrator.cluster.jobs.server import JobRequest, JobServerError
from orchestrator.cluster.jobs.study_jobs import POLL_SECONDS, SILENCE_SECONDS
from orchestrator.ledger.lease import HEARTBEAT_SECONDS, LEASE_SECONDS, Lease
from orchestrator.ledger.ledger import Ledger
from tests.support.job_servers import LocalJobServer, check_contract, make_package
from tests.support.processes import wait_until
from tests.support.submitters import Submitter, hold_lease, names
from trainables.errors import InfrastructureError, LeaseError

PATIENT = "while :; do sleep 0.02; done"


def test_the_job_server_of_these_tests_does_what_a_real_one_does(server: LocalJobServer, tmp_path: Path) -> None:
    """The same check runs against Ray in ``faults/test_jobs.py``."""
    check_contract(server, make_package(tmp_path))


def test_a_study_is_submitted_and_followed(server: LocalJobServer, ledger: Ledger) -> None:
    submitter = Submitter(server, ledger)
    assert submitter.run("cat greeting.txt; sleep 0.1; echo level $LEVEL; echo $RAY_JOB_STOP_SIGNAL") == 0
    assert "".join(submitter.written) == "good morning\nlevel 3\nSIGTERM\n"
    request = server.requests[0]
    assert (request.name, request.variables["RAY_JOB_STOP_WAIT_TIME_S"]) == ("tiny-1", "60")
    attempt = json.loads((Path(ledger.root.uri) / "jobs" / "000001.json").read_text())
    assert (attempt["job"], attempt["address"], attempt["host"]) == ("tiny-1", server.address, socket.gethostname())
    assert attempt["submitted_ms"] is not None
    assert submitter.said == ["submitted the job tiny-1 to http://head:8265", "the job tiny-1 has succeeded"]


def test_a_driver_that_was_killed_is_submitted_again(server: LocalJobServer, ledger: Ledger) -> None:
    submitter = Submitter(server, ledger)
    assert submitter.run("echo one; kill -9 $$", "echo two", retries=3) == 0
    assert names(server) == ["tiny-1", "tiny-2"]
    assert "".join(submitter.written) == "one\ntwo\n"
    assert (
        "the job tiny-1 has failed: its driver was killed by signal 9; submitting the study again" in submitter.said[1]
    )


@pytest.mark.parametrize(
    ("code", "is_retried", "reported"),
    [(0, False, 0), (1, False, 1), (2, False, 2), (3, True, 3), (4, False, 4), (5, True, 3), (127, False, 2),
     (137, True, 3)],
)  # fmt: skip
def test_exit_codes_say_whether_trying_again_may_help(
    server: LocalJobServer, ledger: Ledger, code: int, is_retried: bool, reported: int
) -> None:
    assert Submitter(server, ledger).run(f"exit {code}", retries=1) == reported
    assert names(server) == ["tiny-1", "tiny-2"][: 1 + is_retried]


def test_a_job_that_was_stopped_stays_so_and_goes_on_as_the_next_attempt(
    server: LocalJobServer, ledger: Ledger
) -> None:
    stopper = Submitter(server, ledger)
    said: list[str] = []

    def stop_once() -> None:
        if not said:
            said.append(stopper.jobs.stop())

    submitter = Submitter(server, ledger, stop_once)
    assert submitter.run(f"trap 'exit 5' TERM; {PATIENT}", "true", retries=3) == 5
    assert said == ["the job tiny-1 has stopped"]
    assert names(server) == ["tiny-1"]
    assert submitter.said[-1] == "the job tiny-1 has stopped; submit it again to go on"
    assert stopper.jobs.describe() == "the job tiny-1 has stopped"
    assert stopper.jobs.stop() == "nothing to stop: no job runs the study"
    assert submitter.run("false", "true") == 0
    assert names(server) == ["tiny-1", "tiny-2"]


def test_two_submissions_at_once_start_one_driver(server: LocalJobServer, ledger: Ledger) -> None:
    gate = threading.Barrier(4)
    submitters = [Submitter(server, ledger) for _ in range(4)]
    codes: list[int] = []

    def run(submitter: Submitter) -> None:
        submission = submitter.submission("sleep 0.5; echo done")
        gate.wait()
        codes.append(submitter.jobs.run(submission, retries=2))

    threads = [threading.Thread(target=run, args=(submitter,)) for submitter in submitters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0, 0, 0]
    assert names(server) == ["tiny-1"]
    assert ["".join(submitter.written) for submitter in submitters] == ["done\n"] * 4
    assert sum("submitted the job" in line for submitter in submitters for line in submitter.said) == 1


def test_two_that_watch_the_same_driver_submit_it_again_once(server: LocalJobServer, ledger: Ledger) -> None:
    submitters = [Submitter(server, ledger) for _ in range(2)]
    entrypoints = ("sleep 0.3; kill -9 $$", "sleep 0.5")
    threads = [threading.Thread(target=each.run, args=entrypoints, kwargs={"retries": 1}) for each in submitters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(server) == ["tiny-1", "tiny-2"]
    assert [each.said[-1] for each in submitters] == ["the job tiny-2 has succeeded"] * 2


def test_a_claim_is_waited_for_as_long_as_its_submitter_lives(server: LocalJobServer, ledger: Ledger) -> None:
    attempts = Attempts(ledger)
    claim = attempts.claim(1, server.address)
    assert claim is not None
    assert attempts.claim(1, server.address) is None
    path = Path(ledger.root.uri) / "jobs" / "000001.json"

    def die_later() -> None:
        if submitter.slept > 10 * POLL_SECONDS:
            claimed = json.loads(path.read_text())
            ledger.root.write_json(
                "jobs/000001.json", claimed | {"alive_ms": claimed["alive_ms"] - LEASE_SECONDS * 1e3}
            )

    submitter = Submitter(server, ledger, die_later)
    assert submitter.run("false", "true") == 0
    assert names(server) == ["tiny-2"]  # the number of a claim that is void is used up
    assert "is submitting the job tiny-1: waiting" in submitter.said[0]


@pytest.mark.parametrize("content", [b"", b"{", b'{"number": 1}', b"[]"])
def test_a_damaged_claim_is_void_once_it_is_old(server: LocalJobServer, ledger: Ledger, content: bytes) -> None:
    ledger.root.write("jobs/000001.json", content)
    path = Path(ledger.root.uri) / "jobs" / "000001.json"
    attempt = Attempts(ledger).latest()
    assert attempt is not None
    assert attempt.is_being_submitted
    then = time.time() - LEASE_SECONDS - 1
    os.utime(path, (then, then))
    assert Submitter(server, ledger).run("false", "true") == 0
    assert names(server) == ["tiny-2"]


def test_a_claim_is_renewed_while_its_package_is_uploaded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.jobs.attempts.HEARTBEAT_SECONDS", 0.01)
    attempts = Attempts(ledger)
    claim = attempts.claim(1, "http://head:8265")
    assert claim is not None

    def read() -> Attempt:
        found = attempts.read(1)
        assert found is not None
        return found

    with attempts.kept(claim):
        wait_until(lambda: read().alive_ms > claim.alive_ms, "it is renewed")
        assert read().is_being_submitted
    assert read().submitted_ms is not None
    assert not read().is_being_submitted


def test_a_submission_whose_answer_was_lost_counts(server: LocalJobServer, ledger: Ledger) -> None:
    server.loses_answer = True
    assert Submitter(server, ledger).run("echo done") == 0
    assert names(server) == ["tiny-1"]


def test_a_job_server_that_is_away_when_its_driver_died_is_waited_for(server: LocalJobServer, ledger: Ledger) -> None:
    """As a head is that starts anew: the first submission says so at once, the next ones wait."""
    server.num_failures = 2
    with pytest.raises(JobServerError):
        Submitter(server, ledger).run("true")
    server.num_failures = 0
    submit, num_refused = server.submit, 5

    def refuse(request: JobRequest) -> None:
        nonlocal num_refused
        if server.requests and num_refused:
            num_refused -= 1
            raise JobServerError("no available agent to submit job, please try again later")
        submit(request)

    server.submit = refuse  # type: ignore[method-assign]
    assert Submitter(server, ledger).run("false", "kill -9 $$", "true", retries=1) == 0
    assert names(server) == ["tiny-2", "tiny-3"]


def test_a_name_that_another_study_has_used_up_is_skipped(server: LocalJobServer, ledger: Ledger) -> None:
    other = Ledger(f"{ledger.storage}-of-somebody-else", "tiny")
    Submitter(server, other).run("sleep 0.2")
    assert Submitter(server, ledger).run("false", "true") == 0
    assert names(server) == ["tiny-1", "tiny-2"]


def test_unreachable_is_not_dead(server: LocalJobServer, ledger: Ledger) -> None:
    """Fifty questions in a row get no answer while the driver renews its lease."""

    def renew() -> None:
        hold_lease(ledger)
        if server.num_asked == asked + 50:
            (server.folder / "go").touch()

    submitter = Submitter(server, ledger, renew)
    name = submitter.jobs.start(submitter.submission("until [ -e ../go ]; do sleep 0.01; done; echo done"))
    hold_lease(ledger)
    asked, server.num_failures = server.num_asked, 50
    job = submitter.jobs.follow(name)
    assert job is not None
    assert job.status == "succeeded"
    assert "".join(submitter.written) == "done\n"
    assert names(server) == ["tiny-1"]
    assert server.num_failures == 0
    assert submitter.said[1:] == [
        "could not reach http://head:8265; process 77 on far-away holds the lease of the study, and goes on; "
        "asking again",
        "the job server at http://head:8265 answers again",
    ]


def test_the_same_for_a_whole_run_with_retries(server: LocalJobServer, ledger: Ledger) -> None:
    def renew() -> None:
        if server.requests and server.num_failures:
            hold_lease(ledger)
        elif ledger.root.exists("lease.json"):
            ledger.root.remove("lease.json")
            (server.folder / "go").touch()

    submitter = Submitter(server, ledger, renew)
    submit = server.submit

    def submit_and_vanish(request: object) -> None:
        submit(request)  # type: ignore[arg-type]
        hold_lease(ledger)
        server.num_failures = 50

    server.submit = submit_and_vanish  # type: ignore[method-assign]
    assert submitter.run("until [ -e ../go ]; do sleep 0.01; done", retries=5) == 0
    assert names(server) == ["tiny-1"]


def test_a_head_that_has_forgotten_the_job_restarts_nothing_while_the_lease_is_renewed(
    server: LocalJobServer, ledger: Ledger
) -> None:
    """The job server says that there is no such job; only when the lease is gone, too, is it believed."""
    seen: list[list[str]] = []

    def act() -> None:
        if not seen:
            server.forget()
        seen.append(names(server))
        if len(seen) <= 50:
            hold_lease(ledger)
        elif ledger.root.exists("lease.json"):
            ledger.root.remove("lease.json")

    submitter = Submitter(server, ledger, act)
    assert submitter.run(PATIENT, "true", retries=1) == 0
    assert seen[:50] == [[]] * 50
    assert names(server) == ["tiny-2"]


def test_a_driver_that_was_lost_is_replaced_when_its_lease_has_run_out(server: LocalJobServer, ledger: Ledger) -> None:
    """The job server has seen it end, and its lease, on another machine, is as fresh as it was."""
    left = LEASE_SECONDS

    def age() -> None:
        nonlocal left
        left -= POLL_SECONDS
        if server.requests and len(server.requests) == 1:
            moment = (time.time() - LEASE_SECONDS + left) * 1000
            ledger.root.write_json("lease.json", lost | {"alive_ms": lost["alive_ms"] if left > 0 else moment - 1})

    hold_lease(ledger)
    lost = ledger.root.read_json("lease.json")
    ledger.root.remove("lease.json")
    submitter = Submitter(server, ledger, age)
    assert submitter.run("sleep 0.05; kill -9 $$", "true", retries=1) == 0
    assert names(server) == ["tiny-1", "tiny-2"]
    assert any("waiting until it runs out" in line for line in submitter.said)
    assert submitter.slept >= LEASE_SECONDS - POLL_SECONDS


def test_a_job_that_ended_while_its_lease_is_renewed_is_not_replaced(server: LocalJobServer, ledger: Ledger) -> None:
    looks = 0

    def renew() -> None:
        nonlocal looks
        looks += 1
        if looks < 40:
            hold_lease(ledger)
        elif ledger.root.exists("lease.json"):
            assert names(server) == ["tiny-1"]
            ledger.root.remove("lease.json")

    submitter = Submitter(server, ledger, renew)
    assert submitter.run("sleep 0.05; kill -9 $$", "true", retries=1) == 0
    assert names(server) == ["tiny-1", "tiny-2"]
    assert any("has renewed it: it lives, and nothing is started" in line for line in submitter.said)


def test_silence_on_both_sides_ends_the_waiting(server: LocalJobServer, ledger: Ledger) -> None:
    submitter = Submitter(server, ledger)
    name = submitter.jobs.start(submitter.submission(PATIENT))
    server.num_failures = 10**9
    slept = submitter.slept
    with pytest.raises(InfrastructureError, match="neither the job server nor a driver has given a sign of life"):
        submitter.jobs.follow(name)
    assert submitter.slept - slept == pytest.approx(SILENCE_SECONDS, abs=2 * POLL_SECONDS)


def test_a_study_that_is_run_by_hand_is_not_submitted(server: LocalJobServer, ledger: Ledger) -> None:
    with Lease(ledger), pytest.raises(LeaseError, match="is being run by process"):
        Submitter(server, ledger).run("true")
    assert server.requests == []
    with Lease(ledger), pytest.raises(LeaseError, match="is being run by process"):
        Submitter(server, ledger).jobs.stop()


def test_nor_while_somebody_else_renews_the_lease_after_its_job(server: LocalJobServer, ledger: Ledger) -> None:
    assert Submitter(server, ledger).run("true") == 0
    hold_lease(ledger, age_seconds=2 * HEARTBEAT_SECONDS)
    with pytest.raises(LeaseError, match="is being run by process 77 on far-away"):
        Submitter(server, ledger, lambda: hold_lease(ledger)).run("true")
    assert names(server) == ["tiny-1"]


def test_a_job_server_that_cannot_be_reached_refuses_and_says_so(server: LocalJobServer, ledger: Ledger) -> None:
    jobs = Submitter(server, ledger).jobs
    assert jobs.describe() == "never submitted"
    jobs.start(Submitter(server, ledger).submission(PATIENT))
    assert jobs.describe() == "tiny-1: running"
    hold_lease(ledger)
    server.num_failures = 1
    assert jobs.describe() == (
        "tiny-1: could not reach http://head:8265; process 77 on far-away holds the lease of the study, and goes on"
    )
    server.num_failures = 1
    with pytest.raises(JobServerError):
        jobs.stop()
    server.forget()
    assert jobs.describe() == "tiny-1: the cluster at http://head:8265 has no such job"
