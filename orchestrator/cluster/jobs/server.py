"""Job server of a Ray cluster, as ``study_jobs.py`` uses it: what is submitted, what is known of a job, and the errors.

The implementation is ``ray_server.py``; tests have one without Ray, held to the same by one contract test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from trainables.errors import InfrastructureError, StudyError

JobStatus = Literal["pending", "running", "succeeded", "failed", "stopped"]


class JobServerError(InfrastructureError):
    """The job server cannot be reached, or failed to answer. It says nothing about its jobs."""


class JobExistsError(StudyError):
    """The cluster has, or once had, a job of this name."""


@dataclass(frozen=True)
class JobRequest:
    """A job to be submitted.

    Args:
        name: submission id; a cluster takes each only once.
        entrypoint: shell command, run on the machine of the head.
        package: zip file; its content is the working directory of the job and of its workers.
        variables: environment variables of the job and of its workers. Ray writes them into readable files.
        metadata: what others may find out about the job.
    """

    name: str
    entrypoint: str
    package: Path
    variables: Mapping[str, str]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """State of a job, as its server knows it. ``exit_code`` is negative for a signal, None if no process has ended."""

    name: str
    status: JobStatus
    exit_code: int | None = None
    message: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether the job server has seen its end."""
        return self.status not in ("pending", "running")


class JobServer(Protocol):
    """Job server of one cluster. Every method raises ``JobServerError`` if there is no answer."""

    @property
    def address(self) -> str:
        """Its address."""

    def submit(self, request: JobRequest) -> None:
        """Start a job; raise ``JobExistsError`` if there is, or was, one of this name."""

    def find(self, name: str) -> Job | None:
        """Return what is known of a job, None if there is none of this name."""

    def read_log(self, name: str) -> str:
        """Return all that a job has printed so far."""

    def stop(self, name: str) -> bool:
        """Ask a job to stop in order, and return whether it was running."""
