"""Job server of a Ray cluster over HTTP: the ``JobServer`` of ``server.py``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from orchestrator.cluster.connection import ray
from orchestrator.cluster.jobs.server import Job, JobExistsError, JobRequest, JobServerError, JobStatus
from trainables.errors import InfrastructureError, StudyError, quote_first_line, redact

try:
    import requests
    from ray.job_submission import JobSubmissionClient
except ImportError as error:
    raise InfrastructureError(
        f"could not import Ray's job client ({error}); install the extra: pip install 'robustsweep[cluster]'"
    ) from error

#: Seconds for a connection and for an answer; Ray's client waits for ever. An upload is answered when it is stored.
_CONNECT_SECONDS, _ANSWER_SECONDS, _UPLOAD_SECONDS = 10.0, 60.0, 600.0
#: Ray's client reports an answer other than 200 as a RuntimeError with this text.
_STATUS_CODE = re.compile(r"status code (\d{3})")
_SEEN_BEFORE = re.compile(r"submission_id \S+ already exists")

# It tells of every package that it uploads or finds.
logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)


class _PatientClient(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, which gives up on a server that does not answer."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        answer_seconds = _UPLOAD_SECONDS if method == "PUT" else _ANSWER_SECONDS
        return super()._do_request(method, endpoint, timeout=(_CONNECT_SECONDS, answer_seconds), **options)


class RayJobServer:
    """Job server at ``address``, which is asked when something is wanted of it.

    In Ray's token mode (``RAY_AUTH_MODE=token``) requests carry the token of ``RAY_AUTH_TOKEN``,
    ``RAY_AUTH_TOKEN_PATH`` or ``~/.ray/auth_token``.

    Args:
        address: ``http://HOST:PORT`` or ``https://…``; Ray's port is 8265.

    Raises:
        StudyError: the address is none of a job server.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise StudyError(
                f"got the job server {redact(address)!r}, expected http://HOST:PORT without a password "
                "(the head's dashboard, port 8265)"
            )
        self.address = address.rstrip("/")
        self._client: JobSubmissionClient | None = None

    def submit(self, request: JobRequest) -> None:
        """Upload the package unless the cluster has it, and submit the job.

        Raises:
            JobExistsError: the cluster has, or had, a job of this name.
        """
        runtime_env = {"working_dir": str(request.package), "env_vars": dict(request.variables)}
        try:
            with self._asking(f"submit the job {request.name}") as client:
                client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=request.name,
                    runtime_env=runtime_env,
                    metadata=dict(request.metadata),
                )
        except JobServerError as error:
            if _SEEN_BEFORE.search(str(error.__cause__)):
                raise JobExistsError(f"the cluster at {self.address} has seen the job {request.name} before") from error
            raise

    def find(self, name: str) -> Job | None:
        """Return what is known of a job, None if the cluster has never had it."""
        with self._asking(f"look for the job {name}") as client:
            try:
                found = client.get_job_info(name)
            except RuntimeError as error:
                if _read_status_code(error) == 404:
                    return None
                raise
        return Job(
            name=name,
            status=cast(JobStatus, str(found.status.value).lower()),
            exit_code=found.driver_exit_code,
            message=found.message or "",
            metadata=found.metadata or {},
        )

    def read_log(self, name: str) -> str:
        """Return all that a job has printed so far."""
        with self._asking(f"read the log of the job {name}") as client:
            return str(client.get_job_logs(name))

    def stop(self, name: str) -> bool:
        """Ask a job to stop in order, without waiting for it; return whether it was running."""
        with self._asking(f"stop the job {name}") as client:
            return bool(client.stop_job(name))

    @contextmanager
    def _asking(self, attempt: str) -> Iterator[JobSubmissionClient]:
        what = f"could not {attempt} at {self.address}"
        try:
            self._client = self._client or _PatientClient(self.address)
            yield self._client
        except ray.exceptions.AuthenticationError as error:
            raise StudyError(
                f"{what}: the cluster asks for a token, and this one is missing or wrong; set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) here to the cluster's"
            ) from error
        except (OSError, RuntimeError, requests.exceptions.RequestException) as error:
            raise JobServerError(
                f"{what}: {_describe(error)}; does the head run with its dashboard, and is this its address?"
            ) from error


def _describe(error: Exception) -> str:
    """Return the first and the last line of an error: what a server answers may be a traceback, or megabytes."""
    text = str(error).strip()
    first, last = text.split("\n", 1)[0], text.rsplit("\n", 1)[-1]
    return quote_first_line(first) + (f" … {quote_first_line(last)}" if last != first else "")


def _read_status_code(error: RuntimeError) -> int | None:
    """Return the HTTP status in an error of Ray's client, None if there is none."""
    found = _STATUS_CODE.search(str(error))
    return int(found[1]) if found else None
