"""A job server without Ray, which runs commands on this machine, and what Ray's has to do as well. Tests only."""

from __future__ import annotations

import os
import signal
import subprocess
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.cluster.jobs.server import Job, JobExistsError, JobRequest, JobServer, JobServerError, JobStatus
from tests.support.processes import wait_until


@dataclass
class LocalJobServer:
    """Job server that can be made unreachable, lose answers and forget its jobs.

    Args:
        folder: where the jobs' working directories and logs lie.
    """

    folder: Path
    address: str = "http://head:8265"
    requests: list[JobRequest] = field(default_factory=list)
    #: How many of the next questions get no answer.
    num_failures: int = 0
    #: Whether the answer to the next submission is lost.
    loses_answer: bool = False
    #: Number of questions that were asked.
    num_asked: int = 0
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _stopped: set[str] = field(default_factory=set)

    def submit(self, request: JobRequest) -> None:
        self._answer()
        if any(request.name == each.name for each in self.requests):
            raise JobExistsError(f"{request.name} was seen before")
        self.requests.append(request)
        directory = self.folder / request.name
        with zipfile.ZipFile(request.package) as archive:
            archive.extractall(directory)
        with (self.folder / f"{request.name}.log").open("wb") as log:
            self._processes[request.name] = subprocess.Popen(
                request.entrypoint, shell=True, cwd=directory, env=os.environ | request.variables, stdout=log,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        if self.loses_answer:
            self.loses_answer = False
            raise JobServerError("the answer was lost")

    def find(self, name: str) -> Job | None:
        self._answer()
        process = self._processes.get(name)
        if process is None:
            return None
        code = process.poll()
        status: JobStatus = "running"
        if code is not None:
            status = "stopped" if name in self._stopped else "failed" if code else "succeeded"
        request = next(each for each in self.requests if each.name == name)
        return Job(name, status, None if status == "stopped" else code, "", request.metadata)

    def read_log(self, name: str) -> str:
        self._answer()
        return (self.folder / f"{name}.log").read_text()

    def stop(self, name: str) -> bool:
        self._answer()
        process = self._processes[name]
        if process.poll() is not None:
            return False
        self._stopped.add(name)
        os.killpg(process.pid, signal.SIGTERM)
        return True

    def forget(self) -> None:
        """Lose all knowledge of jobs, as a head does that is started anew; the names can be used again."""
        self.end()
        self._processes.clear()
        self.requests.clear()

    def end(self) -> None:
        """End all jobs."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _answer(self) -> None:
        self.num_asked += 1
        if self.num_failures > 0:
            self.num_failures -= 1
            raise JobServerError(f"could not reach {self.address}")


def make_package(folder: Path) -> Path:
    """Write a package with one file, ``greeting.txt``."""
    path = folder / "package.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("greeting.txt", "good morning\n")
    return path


def check_contract(server: JobServer, package: Path) -> None:
    """Check what ``study_jobs.py`` relies on."""

    def submit(name: str, entrypoint: str) -> JobRequest:
        variables = {"GREETED": "you there"} | {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": "30"}
        request = JobRequest(name, entrypoint, package, variables, {"robustsweep.claim": f"of {name}"})
        server.submit(request)
        return request

    def wait_for_end(name: str) -> Job:
        found: list[Job] = []

        def has_ended() -> bool:
            job = server.find(name)
            assert job is not None
            found[:] = [job]
            return job.has_ended

        wait_until(has_ended, f"{name} has ended")
        return found[0]

    assert server.find("contract-1") is None
    first = submit("contract-1", 'cat greeting.txt; echo "$GREETED"; exit 3')
    second = submit("contract-2", "exec sh -c 'kill -9 $$'")
    submit("contract-3", "exec sh -c 'trap \"echo in order; exit 5\" TERM; echo ready; while :; do sleep 0.1; done'")
    submit("contract-4", "true")
    job = wait_for_end("contract-1")
    assert (job.status, job.exit_code, job.metadata["robustsweep.claim"]) == ("failed", 3, "of contract-1")
    assert "good morning\nyou there\n" in server.read_log("contract-1")  # Ray's own first line can come last
    assert wait_for_end("contract-2").exit_code == -9
    wait_until(lambda: "ready" in server.read_log("contract-3"), "the third job runs")
    running = server.find("contract-3")
    assert running is not None
    assert (running.status, running.has_ended, running.exit_code) == ("running", False, None)
    for request in (first, second):
        with pytest.raises(JobExistsError):  # although it has ended
            server.submit(request)
    assert server.stop("contract-3")
    job = wait_for_end("contract-3")
    assert (job.status, job.exit_code) == ("stopped", None)
    assert "in order\n" in server.read_log("contract-3")  # and what a shell says of the commands that it had started
    assert not server.stop("contract-1")
    job = wait_for_end("contract-4")
    assert (job.status, job.exit_code) == ("succeeded", 0)
