"""A study as a job of a Ray cluster: submitted once, followed, and submitted again when its driver dies.

Two things are known of a driver: what the job server says, and whether it renews its lease in the ledger. The lease is
the truth. A job server that does not answer, or has forgotten its jobs, ends nothing and starts nothing while the
lease is renewed; and whatever is started twice nevertheless is refused by the lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.cluster.exit_codes import (
    COMPLETE,
    INCOMPLETE,
    INFRASTRUCTURE,
    OUT_OF_BUDGET,
    STOPPED,
    WRONG_REQUEST,
)
from orchestrator.cluster.jobs.attempts import Attempt, Attempts, StopAskedError
from orchestrator.cluster.jobs.server import Job, JobExistsError, JobRequest, JobServer, JobServerError
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from trainables.errors import InfrastructureError, LeaseError, StorageError

T = TypeVar("T")

#: Seconds between two questions, longer for a log of megabytes, which is read whole: at most 0.5 MB/s.
POLL_SECONDS, _LOG_BYTES_PER_SECOND = 2.0, 500_000
#: How long neither the job server nor a driver gives a sign of life until this process stops waiting for them.
SILENCE_SECONDS = 600.0
#: Seconds in which a driver stops in order: it needs 1 to 3 on a disk; an object store may be slow.
STOP_SECONDS = 60
#: Of the job and its workers: Ray's own are SIGTERM and 3 s.
STOP_VARIABLES = {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
#: Keys of a job's metadata.
_LEDGER, _CLAIM = "robustsweep.ledger", "robustsweep.claim"
_NOTHING_TO_STOP = "nothing to stop: no job runs the study"
#: Exit codes of a shell that has not found, or may not run, the program.
_NO_PROGRAM = (126, 127)


@dataclass(frozen=True)
class Submission:
    """Content of a submission, in each attempt the same.

    Args:
        make_entrypoint: shell command of the job, given its attempt.
        package: zip file with the working directory.
        variables: environment variables that are passed on; none is a secret.
    """

    make_entrypoint: Callable[[Attempt], str]
    package: Path
    variables: Mapping[str, str]


@dataclass
class Jobs:
    """The jobs of one study on one cluster.

    Args:
        server: job server of the cluster.
        ledger: ledger of the study, as this machine sees it.
        say: called with a line about what happens.
        write: called with what a job prints.
        sleep: waits for some seconds.
    """

    server: JobServer
    ledger: Ledger
    say: Callable[[str], None]
    write: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    attempts: Attempts = field(init=False)

    def __post_init__(self) -> None:
        self.attempts = Attempts(self.ledger)

    def run(self, submission: Submission, *, retries: int) -> int:
        """Submit the study, follow it to its end and return the exit code of its driver; see ``judge``.

        A driver that died is submitted again, up to ``retries`` times, once its lease has run out; not if ``stop`` was
        called meanwhile, or before.
        """
        name = self.start(submission)
        while True:
            job, number = self.follow(name), self.attempts.number(name)
            if not is_retried(job) or retries == 0:
                return self.conclude(name, job)
            retries -= 1
            try:
                self.attempts.check_not_stopped(number)
                self.say(f"{_describe_end(name, job)}; submitting the study again, {retries} times more after this")
                self._wait_for_lease(name, is_patient=True, since=number)
                name = self.start(submission, patience_seconds=SILENCE_SECONDS, since=number)
            except StopAskedError:
                self.say(f"{_describe_end(name, job)}, and somebody asked to stop the study; submit it again to go on")
                return STOPPED

    def conclude(self, name: str, job: Job | None) -> int:
        """Return the exit code that stands for the end of a job (``judge``), after saying what it was."""
        code, advice = judge(job)
        self.say(f"{_describe_end(name, job)}{advice}")
        return code

    def start(self, submission: Submission, *, patience_seconds: float = 0.0, since: int | None = None) -> str:
        """Submit the study unless a job runs it; return the submission id of the job that does.

        Args:
            submission: what is submitted.
            patience_seconds: how long a job server that does not answer is asked again.
            since: number of the attempt that has ended; None: the study is submitted whoever asked to stop before.

        Raises:
            StopAskedError: somebody asked to stop the study since that attempt.
            LeaseError: a driver that is no job of this cluster runs the study.
            JobServerError: the job server does not answer.
        """
        is_told = False
        while True:
            latest = self.attempts.latest()
            job = self._insist(partial(self._find_own, latest), patience_seconds, since)
            if latest is not None and job is not None and not job.has_ended:
                self.say(f"the job {latest.job} runs the study already: following it, nothing is submitted")
                return latest.job
            if latest is not None and job is None and latest.is_being_submitted:
                if not is_told:
                    self.say(f"{_describe_submitter(latest)}: waiting")
                is_told = True
                self._pause(since)
                continue
            if latest is None:
                Lease(self.ledger).check()
            elif not self._wait_for_lease(latest.job, is_patient=False, since=since):
                continue
            attempt = self.attempts.claim(1 if latest is None else latest.number + 1, self.server.address)
            if attempt is None:
                continue
            with self.attempts.kept(attempt):
                self.attempts.check_not_stopped(since)  # whoever asks from now on sees this attempt
                has_job = self._insist(partial(self._submit, attempt, submission), patience_seconds, since)
            if has_job:
                self.say(f"submitted the job {attempt.job} to {self.server.address}")
                return attempt.job

    def _pause(self, since: int | None) -> None:
        """Wait for a moment; raise ``StopAskedError`` if somebody asked to stop the study since this attempt."""
        self.sleep(POLL_SECONDS)
        self.attempts.check_not_stopped(since)

    def _insist(self, ask: Callable[[], T], patience_seconds: float, since: int | None) -> T:
        """Return the answer of the job server, which is asked again for some time if there is none."""
        silent = 0.0
        while True:
            try:
                return ask()
            except JobServerError as error:
                if silent >= patience_seconds:
                    raise
                if silent == 0.0:
                    self.say(f"{error}; asking again")
            self._pause(since)
            silent += POLL_SECONDS

    def _submit(self, attempt: Attempt, submission: Submission) -> bool:
        """Return whether the cluster has the job of this attempt; False if its name was used up by another study."""
        request = JobRequest(
            name=attempt.job,
            entrypoint=submission.make_entrypoint(attempt),
            package=submission.package,
            variables=dict(submission.variables) | STOP_VARIABLES,
            metadata={_LEDGER: self.ledger.root.uri, _CLAIM: attempt.token},
        )
        try:
            self.server.submit(request)
        except JobExistsError:
            return self._has(attempt)
        except JobServerError:
            if not self._has(attempt):  # the request may have arrived, and its answer not
                raise
        return True

    def _has(self, attempt: Attempt) -> bool:
        """Return whether the cluster has the job that this claim, and no other, has submitted."""
        job = self.server.find(attempt.job)
        return job is not None and job.metadata.get(_CLAIM) == attempt.token

    def _find_own(self, attempt: Attempt | None) -> Job | None:
        """Return the job of an attempt at this study, None if the cluster has none, or one of another ledger."""
        job = None if attempt is None else self.server.find(attempt.job)
        return job if job is not None and job.metadata.get(_LEDGER) == self.ledger.root.uri else None

    def _wait_for_lease(self, name: str, *, is_patient: bool, since: int | None = None) -> bool:
        """Wait until no driver holds the lease; return False if another attempt was made meanwhile.

        The driver of a job that has ended holds it for up to a minute. One that renews it lives, whatever the job
        server says of the job, and is waited for if ``is_patient``.

        Raises:
            StopAskedError: somebody asked to stop the study since the attempt of the number ``since``.
            LeaseError: a driver renews it, and ``is_patient`` is false.
        """
        first, before = Lease(self.ledger).holder(), self.attempts.latest()
        holder = first
        if holder is not None:
            self.say(
                f"the job {name} has ended, and {_describe_holder(holder)}: waiting until it runs out or is renewed"
            )
        while holder is not None:
            self._pause(since)
            if self.attempts.latest() != before:
                return False
            holder = Lease(self.ledger).holder()
            if first is not None and holder is not None and holder != first:
                if not is_patient:
                    Lease(self.ledger).check()
                self.say(f"{_describe_holder(holder)}, and has renewed it: it lives, and nothing is started")
                first = None
        return True

    def follow(self, name: str) -> Job | None:
        """Write what a job prints until it has ended, and return it; None if the cluster and its driver are gone.

        Raises:
            InfrastructureError: neither the job server nor a driver has given a sign of life for ``SILENCE_SECONDS``.
        """
        printed, silent, is_answering = 0, 0.0, True
        while True:
            seconds = POLL_SECONDS
            try:
                job = self.server.find(name)
                log = self.server.read_log(name) if job is not None else ""
            except JobServerError as error:
                driver = self._describe_driver()
                if is_answering:
                    self.say(f"{error}; {driver or 'no driver holds the lease of the study'}; asking again")
                is_answering, silent = False, 0.0 if driver else silent + seconds
                if silent >= SILENCE_SECONDS:
                    raise InfrastructureError(
                        f"waited for the job {name}: neither the job server nor a driver has given a sign of life for "
                        f"{SILENCE_SECONDS:.0f} s. Nothing is lost: submit again, here or to another cluster"
                    ) from error
            else:
                if not is_answering:
                    self.say(f"the job server at {self.server.address} answers again")
                is_answering, silent = True, 0.0
                self.write(log[printed:])
                printed = max(printed, len(log))
                if job is not None and job.has_ended:
                    return job
                if job is None and self._describe_driver() is None:
                    return None
                seconds = max(seconds, len(log) / _LOG_BYTES_PER_SECOND)
            self.sleep(seconds)

    def _describe_driver(self) -> str | None:
        """Return who holds the lease, in words, None if nobody does; a storage that does not answer says nothing."""
        try:
            holder = Lease(self.ledger).holder()
        except LeaseError as error:
            return str(error)
        except StorageError:
            return "the storage does not answer either"
        return None if holder is None else f"{_describe_holder(holder)}, and goes on"

    def stop(self) -> str:
        """Ask the job that runs the study to stop in order, wait for its end and return what happened.

        Nobody who watches the study (``run``) submits it again, whether its job runs, has died or is being submitted.

        Raises:
            LeaseError: the study is run by a driver that is no job of this cluster.
            JobServerError: the job server does not answer. A job that runs goes on; it is not submitted again.
        """
        said, is_told = "", False
        while True:
            latest = self.attempts.latest()
            if latest is None:
                Lease(self.ledger).check()
                return _NOTHING_TO_STOP
            self.attempts.ask_to_stop(latest.number)
            job = self._find_own(latest)
            if job is not None and not job.has_ended:
                self.server.stop(latest.job)
                self.say(f"asked the job {latest.job} to stop, which may take {STOP_SECONDS} s")
                said = _describe_end(latest.job, self.follow(latest.job))
            elif job is None and latest.is_being_submitted:
                if not is_told:
                    self.say(f"{_describe_submitter(latest)}: waiting for the job, or for the end of its submission")
                is_told = True
                self.sleep(POLL_SECONDS)
                continue
            elif self._wait_for_lease(latest.job, is_patient=False):
                Lease(self.ledger).check()
                others = ", and whoever watches it submits it no more" if is_retried(job) else ""
                said = said or f"{_NOTHING_TO_STOP}{others}"
            if said and self.attempts.latest() == latest:
                return said

    def describe(self) -> str:
        """Return a line about the last attempt."""
        latest = self.attempts.latest()
        if latest is None:
            return "never submitted"
        try:
            job = self._find_own(latest)
        except JobServerError as error:
            return f"{latest.job}: {error}; {self._describe_driver() or 'no driver holds the lease'}"
        if job is None:
            return f"{latest.job}: the cluster at {self.server.address} has no such job"
        return _describe_end(latest.job, job) if job.has_ended else f"{latest.job}: {job.status}"


def is_retried(job: Job | None) -> bool:
    """Return whether a job is submitted again: its driver died, could not go on, or was not stopped through Ray.

    Wrong requests, spent budgets and failed trials would come out the same again; a job that was stopped stays so.
    """
    if job is None:
        return True
    if job.status != "failed":
        return False
    code = job.exit_code
    return code is None or code in (INFRASTRUCTURE, STOPPED) or code < 0 or code >= 128


def judge(job: Job | None) -> tuple[int, str]:
    """Return the exit code that stands for the end of a job, and advice: empty, or to be put behind what happened."""
    go_on = "; submit it again to go on"
    if job is None:
        return INFRASTRUCTURE, go_on
    if job.status == "succeeded":
        return COMPLETE, ""
    if job.status == "stopped":
        return STOPPED, go_on
    if job.exit_code in _NO_PROGRAM:
        return WRONG_REQUEST, (
            "; robustsweep was not found on the head's machine: install it there, or say with --program where it is"
        )
    if job.exit_code in (INCOMPLETE, WRONG_REQUEST, OUT_OF_BUDGET):
        return job.exit_code, ""
    return INFRASTRUCTURE, go_on


def _describe_submitter(attempt: Attempt) -> str:
    return f"process {attempt.pid} on {attempt.host} is submitting the job {attempt.job}"


def _describe_holder(holder: Mapping[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} holds the lease of the study"


def _describe_end(name: str, job: Job | None) -> str:
    """Return what has become of a job, in words."""
    if job is None:
        return f"the job {name} is gone: the cluster does not know it any more, and no driver holds the lease"
    if job.status != "failed":
        return f"the job {name} has {'succeeded' if job.status == 'succeeded' else 'stopped'}"
    if job.exit_code is None:
        return f"the job {name} has failed: {job.message.strip() or 'its driver was lost'}"
    how = f"was killed by signal {-job.exit_code}" if job.exit_code < 0 else f"ended with exit code {job.exit_code}"
    return f"the job {name} has failed: its driver {how}"
