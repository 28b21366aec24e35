"""A study that is to be stopped between two attempts is not submitted again, at whatever step its submitter is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from orchestrator.cluster.jobs.attempts import Attempt, Attempts, StopAskedError
from orchestrator.cluster.jobs.server import JobRequest, JobServerError
from orchestrator.ledger.lease import LEASE_SECONDS
from orchestrator.ledger.ledger import Ledger
from tests.support.job_servers import LocalJobServer
from tests.support.processes import wait_until
from tests.support.submitters import Submitter, hold_lease, names
from trainables.errors import LeaseError

DIES = "kill -9 $$"
PATIENT = "trap 'exit 5' TERM; while :; do sleep 0.02; done"
NOTHING = "nothing to stop: no job runs the study"
NO_MORE = f"{NOTHING}, and whoever watches it submits it no more"
ASKED = (
    "the job tiny-1 has failed: its driver was killed by signal 9, and somebody asked to stop the study; "
    "submit it again to go on"
)


class Stopper:
    """Somebody who asks to stop a study from a thread, and what is said to them."""

    def __init__(self, server: LocalJobServer, ledger: Ledger) -> None:
        self.said: list[str] = []
        self._ledger = ledger
        self._jobs = Submitter(server, ledger).jobs
        self._thread = threading.Thread(target=lambda: self.said.append(self._jobs.stop()))

    def start(self, number: int) -> None:
        """Ask, and return when it is noted for the attempt of this number."""
        self._thread.start()
        wait_until(lambda: self._ledger.root.exists(f"jobs/{number:06d}.stop.json"), "it is noted")

    def finish(self) -> list[str]:
        """Return what is said at the end."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.said


def test_while_the_lease_of_a_lost_driver_runs_out(server: LocalJobServer, ledger: Ledger) -> None:
    """There is no job, and the lease is as fresh as it was: both wait for its end."""
    stopper, submit = Stopper(server, ledger), server.submit

    def submit_and_hold(request: JobRequest) -> None:
        submit(request)
        hold_lease(ledger)

    def stop_then_age() -> None:
        if any("waiting until it runs out" in line for line in submitter.said):
            stopper.start(1)
            hold_lease(ledger, age_seconds=LEASE_SECONDS + 1)

    server.submit = submit_and_hold  # type: ignore[method-assign]
    submitter = Submitter(server, ledger, stop_then_age)
    assert submitter.run(DIES, "true", retries=5) == 5
    assert stopper.finish() == [NO_MORE]
    assert submitter.said[-1] == ASKED
    assert names(server) == ["tiny-1"]
    server.submit = submit  # type: ignore[method-assign]
    assert Submitter(server, ledger).run("false", "true") == 0  # by hand
    assert names(server) == ["tiny-1", "tiny-2"]


def claim_later(submitter: Submitter, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call a function before, and one after, the second attempt is claimed."""
    claim = submitter.jobs.attempts.claim

    def claim_and_call(number: int, address: str) -> Attempt | None:
        if number == 1:
            return claim(number, address)
        before()
        attempt = claim(number, address)
        after()
        return attempt

    submitter.jobs.attempts.claim = claim_and_call  # type: ignore[method-assign]


def test_just_before_the_next_attempt_is_claimed(server: LocalJobServer, ledger: Ledger) -> None:
    submitter, stopper = Submitter(server, ledger), Stopper(server, ledger)

    def stop() -> None:
        stopper.start(1)
        stopper.finish()

    claim_later(submitter, stop, lambda: None)
    assert submitter.run(DIES, "true", retries=5) == 5
    assert stopper.said == [NO_MORE]
    assert submitter.said[-1] == ASKED
    assert names(server) == ["tiny-1"]


def test_just_after_the_next_attempt_is_claimed(server: LocalJobServer, ledger: Ledger) -> None:
    """Whoever asks waits for the end of the submission, which is given up."""
    submitter, stopper = Submitter(server, ledger), Stopper(server, ledger)
    claim_later(submitter, lambda: None, lambda: stopper.start(2))
    assert submitter.run(DIES, "true", retries=5) == 5
    assert stopper.finish() == [NO_MORE]
    assert submitter.said[-1] == ASKED
    assert names(server) == ["tiny-1"]


def test_while_the_next_attempt_is_submitted(server: LocalJobServer, ledger: Ledger) -> None:
    """Its job is waited for, and stopped."""
    submitter, stopper = Submitter(server, ledger), Stopper(server, ledger)
    submit = server.submit

    def submit_later(request: JobRequest) -> None:
        if request.name == "tiny-2":
            stopper.start(2)
            time.sleep(0.1)  # it looks for the job
        submit(request)

    server.submit = submit_later  # type: ignore[method-assign]
    assert submitter.run(DIES, PATIENT, retries=5) == 5
    assert stopper.finish() == ["the job tiny-2 has stopped"]
    assert submitter.said[-1] == "the job tiny-2 has stopped; submit it again to go on"
    assert names(server) == ["tiny-1", "tiny-2"]


def test_while_another_submits_the_next_attempt(server: LocalJobServer, ledger: Ledger) -> None:
    """Two watch the same driver. One has claimed the next attempt and gives up; the other does not take its place."""
    other, stopper = Attempts(ledger), Stopper(server, ledger)

    def stop_then_void() -> None:
        latest = other.latest()
        if latest is not None and any("is submitting the job tiny-2: waiting" in line for line in submitter.said):
            stopper.start(2)
            with suppress(JobServerError), other.kept(latest):
                raise JobServerError("the other gives up")

    submitter = Submitter(server, ledger, stop_then_void)
    first = submitter.jobs.start(submitter.submission(DIES))
    submitter.jobs.follow(first)
    assert other.claim(2, server.address) is not None
    with pytest.raises(StopAskedError, match="somebody asked to stop the study tiny since its attempt 1"):
        submitter.jobs.start(submitter.submission("true"), since=1)
    assert stopper.finish() == [NO_MORE]
    assert names(server) == ["tiny-1"]


def test_while_the_job_server_is_away(server: LocalJobServer, ledger: Ledger) -> None:
    """Whoever asks is told that there is no answer; the study is not submitted again."""
    submit, failures = server.submit, 0

    def refuse(request: JobRequest) -> None:
        if server.requests:
            raise JobServerError("no available agent to submit job, please try again later")
        submit(request)

    def stop_once() -> None:
        nonlocal failures
        if any("no available agent" in line for line in submitter.said):
            server.num_failures, failures = 1, failures + 1
            with pytest.raises(JobServerError):
                Submitter(server, ledger).jobs.stop()

    server.submit = refuse  # type: ignore[method-assign]
    submitter = Submitter(server, ledger, stop_once)
    assert submitter.run(DIES, "true", retries=5) == 5
    assert failures == 1
    assert names(server) == ["tiny-1"]


def test_a_job_that_runs_while_the_job_server_is_away_is_not_submitted_again_when_it_dies(
    server: LocalJobServer, ledger: Ledger
) -> None:
    submitter = Submitter(server, ledger)
    name = submitter.jobs.start(submitter.submission("sleep 0.2; kill -9 $$"))
    server.num_failures = 1
    with pytest.raises(JobServerError):
        Submitter(server, ledger).jobs.stop()
    assert submitter.run("true", "true", retries=5) == 5  # attaches to it
    assert submitter.said[2:] == [ASKED]
    assert names(server) == [name]


def test_a_study_that_another_driver_runs_is_not_said_to_have_stopped(server: LocalJobServer, ledger: Ledger) -> None:
    """Its last job has ended, and a driver that was started by hand renews the lease."""
    Submitter(server, ledger).run(DIES)
    hold_lease(ledger, age_seconds=5.0)
    with pytest.raises(LeaseError, match="is being run by process 77 on far-away"):
        Submitter(server, ledger, lambda: hold_lease(ledger)).jobs.stop()


def test_nothing_is_to_be_stopped_of_a_study_that_is_complete_or_was_never_submitted(
    server: LocalJobServer, ledger: Ledger
) -> None:
    assert Submitter(server, ledger).jobs.stop() == NOTHING
    assert Submitter(server, ledger).run("true") == 0
    assert Submitter(server, ledger).jobs.stop() == NOTHING
