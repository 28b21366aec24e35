"""Answers of a job server over HTTP, and none; against Ray itself in ``faults/test_jobs.py``."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.jobs import ray_server
from orchestrator.cluster.jobs.ray_server import RayJobServer
from orchestrator.cluster.jobs.server import JobExistsError, JobRequest, JobServerError
from tests.support.job_servers import make_package
from trainables.errors import StudyError

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}


class Scripted(http.server.ThreadingHTTPServer):
    """HTTP server with one answer: a status and a text, after some seconds; the version is always known."""

    answer: tuple[int, str] = (200, "{}")
    delay_seconds = 0.0


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self) -> None:
        assert isinstance(self.server, Scripted)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, text = self.server.answer
        if self.path == "/api/version":
            status, text = 200, json.dumps(VERSION)
        elif "/packages/" in self.path:
            status, text = 200, "{}"
        else:
            time.sleep(self.server.delay_seconds)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with Scripted(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(scripted: Scripted) -> RayJobServer:
    return RayJobServer(f"http://127.0.0.1:{scripted.server_address[1]}/")


def details(**values: object) -> str:
    known = {"type": "SUBMISSION", "submission_id": "tiny-1", "entrypoint": "true", "status": "RUNNING"}
    return json.dumps(known | values)


def test_what_is_known_of_a_job_is_read(scripted: Scripted, server: RayJobServer) -> None:
    scripted.answer = 200, details(status="FAILED", driver_exit_code=-9, message="lost", metadata={"a": "b"})
    job = server.find("tiny-1")
    assert job is not None
    assert (job.status, job.exit_code, job.message, job.metadata) == ("failed", -9, "lost", {"a": "b"})
    assert job.has_ended
    scripted.answer = 200, details(status="PENDING")
    job = server.find("tiny-1")
    assert job is not None
    assert not job.has_ended
    scripted.answer = 404, "Job tiny-1 does not exist"
    assert server.find("tiny-1") is None


@pytest.mark.parametrize("status", [500, 502, 503, 400])
def test_an_error_of_the_server_says_nothing_about_the_job(
    scripted: Scripted, server: RayJobServer, status: int
) -> None:
    scripted.answer = status, "Traceback"
    for ask in (server.find, server.read_log, server.stop):
        with pytest.raises(JobServerError, match=f"status code {status}"):
            ask("tiny-1")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_an_error_of_the_request(scripted: Scripted, server: RayJobServer, status: int) -> None:
    scripted.answer = status, "Unauthorized"
    with pytest.raises(StudyError, match="the cluster asks for a token, and this one is missing or wrong"):
        server.find("tiny-1")


def test_a_submission_id_that_was_used_before_is_told_from_other_errors(
    scripted: Scripted, server: RayJobServer, tmp_path: Path
) -> None:
    request = JobRequest("tiny-1", "true", make_package(tmp_path), {}, {})
    scripted.answer = 400, "ValueError: Job with submission_id tiny-1 already exists. Please use a different one."
    with pytest.raises(JobExistsError):
        server.submit(request)
    scripted.answer = 500, "No available agent to submit job, please try again later."
    with pytest.raises(JobServerError, match="No available agent"):
        server.submit(request)


def test_a_server_that_does_not_answer_is_given_up(
    scripted: Scripted, server: RayJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own client would wait for ever."""
    monkeypatch.setattr(ray_server, "_ANSWER_SECONDS", 0.2)
    scripted.delay_seconds = 1.0
    with pytest.raises(JobServerError, match=r"could not look for the job tiny-1 at .*timed out"):
        server.find("tiny-1")


def test_nobody_at_the_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(JobServerError, match="does the head run with its dashboard, and is this its address"):
        RayJobServer(f"http://127.0.0.1:{port}").find("tiny-1")


@pytest.mark.parametrize(
    "address", ["auto", "head:8265", "ray://head:10001", "http://", "http://user:c0ffee@head:8265"]
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(StudyError, match="expected http://HOST:PORT without a password") as error:
        RayJobServer(address)
    assert "c0ffee" not in str(error.value)
