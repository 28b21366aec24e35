"""``submit``, ``logs``, ``stop`` and ``status --address`` with a job server without Ray."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from tests.support.job_servers import LocalJobServer
from tests.support.tiny_study import Place, make_place
from trainables.errors import RobustSweepError, StudyError

HERE = ("--address", "http://127.0.0.1:8265")
#: A program that prints its arguments as JSON, and ends as the file ``code`` in the uploaded folder says.
PROGRAM = shlex.join(
    [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:])); sys.exit(int(open('code').read()))"]
)


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    place = make_place(tmp_path / "project", tmp_path / "cache")
    Path("code").write_text("0")
    return place


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalJobServer]:
    (tmp_path / "cluster").mkdir()
    server = LocalJobServer(tmp_path / "cluster")
    monkeypatch.setattr("orchestrator.cluster.jobs.ray_server.RayJobServer", lambda address: server)
    monkeypatch.setattr("orchestrator.cluster.jobs.study_jobs.POLL_SECONDS", 0.02)
    yield server
    server.end()


def call(*words: str) -> Said:
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, RobustSweepError):  # which ``main`` prints
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return Said(result.exit_code, result.stdout, result.stderr)


def test_a_study_is_submitted_with_its_folder_and_followed(
    place: Place, server: LocalJobServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (Path("data") / "0.png").parent.mkdir()
    Path("data", "0.png").touch()
    options = ("--mlflow", "http://mlflow:5000", "--set", "training.epochs=1", "--env", "OMP_NUM_THREADS")
    said = call("submit", "tiny.yaml", *HERE, *options, "--retry-failed", "--program", PROGRAM)
    assert said.code == 0
    words = ["run", "tiny.yaml", "--address", "auto", "--storage", str(place.storage), "--mlflow", "http://mlflow:5000"]
    assert json.loads(said.out) == [*words, "--set", "training.epochs=1", "--retry-failed"]
    lines = said.err.splitlines()
    assert lines[0].startswith("upload: 2 files, 0.")
    assert lines[1:] == ["submitted the job tiny-1 to http://head:8265", "the job tiny-1 has succeeded"]
    assert server.requests[0].variables["OMP_NUM_THREADS"] == "1"
    assert sorted(path.name for path in (server.folder / "tiny-1").iterdir()) == ["code", "tiny.yaml"]


def test_its_exit_code_is_that_of_the_driver(place: Place, server: LocalJobServer) -> None:
    for code in (1, 2, 4):
        Path("code").write_text(str(code))
        said = call("submit", "tiny.yaml", *HERE, "--program", PROGRAM, "--retries", "2")
        assert said.code == code
    assert [request.name for request in server.requests] == ["tiny-1", "tiny-2", "tiny-3"]


def test_logs_status_and_stop(place: Place, server: LocalJobServer) -> None:
    with pytest.raises(StudyError, match="it was never submitted"):
        call("logs", "tiny.yaml", *HERE)
    said = call("submit", "tiny.yaml", *HERE, "--detach", "--program", "sh -c 'echo ready; sleep 60; true'")
    assert said.code == 0
    assert f"robustsweep logs tiny.yaml {shlex.join(HERE)} --follow; stop it with: robustsweep stop" in said.err
    said = call("status", "tiny.yaml", *HERE)
    assert said.out.splitlines()[-1] == "job          tiny-1: running"
    assert call("stop", "tiny.yaml", *HERE).err.splitlines()[-1] == "the job tiny-1 has stopped"
    assert json.loads(call("status", "tiny.yaml", *HERE, "--json").out)["job"] == "the job tiny-1 has stopped"
    assert call("logs", "tiny.yaml", *HERE).out == "ready\n"
    assert call("logs", "tiny.yaml", *HERE, "--attempt", "1", "--follow").code == 5
    with pytest.raises(StudyError, match="there is no attempt 2"):
        call("logs", "tiny.yaml", *HERE, "--attempt", "2")
    assert "job" not in json.loads(call("status", "tiny.yaml", "--json").out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--detach", "--retries", "1"), "got --detach and --retries"),
        (("--env", "AWS_SECRET_ACCESS_KEY"), "got --env AWS_SECRET_ACCESS_KEY, which looks like a secret by its name"),
        (("--mlflow", "http://user:c0ffee@mlflow"), "got --mlflow with a password"),
        (("--exclude", "*.yaml"), "is left out of the upload"),
        (("--address", "http://192.0.2.7:8265"), "a folder of this machine, which the cluster does not see"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_submitted(
    place: Place, server: LocalJobServer, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "c0ffee")
    with pytest.raises(StudyError, match=message) as error:
        call("submit", "tiny.yaml", *HERE, *options)
    assert "c0ffee" not in str(error.value)
    assert server.requests == []
    assert not place.storage.exists()
