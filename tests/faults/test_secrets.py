"""Passwords, tokens and cloud keys reach the programs that need them, and nothing that is kept or shown."""

from __future__ import annotations

import base64
import http.server
import re
import sqlite3
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import FinishedStudy
from tests.support.tiny_study import IN_RAY, Place, copy_place, make_place
from trainables.errors import StorageError

#: What the environment of a driver on a cluster holds; each value occurs nowhere else.
SECRETS = {
    "MLFLOW_TRACKING_TOKEN": "token-5f1d0c7e",
    "MLFLOW_TRACKING_PASSWORD": "tracking-3f9c71d8",
    "AWS_ACCESS_KEY_ID": "AKIA5EC2E7000000",
    "AWS_SECRET_ACCESS_KEY": "cloud-key-91ab33f0",
    "AWS_SESSION_TOKEN": "session-77aa20c4",
    "PGPASSWORD": "database-0d9e61b2",
}
PASSWORD = "password-c0ffee42"
#: How Tune's chunks are written down: they could hide one.
PACKED = re.compile(rb"eJ[A-Za-z0-9+/]{20,}={0,2}")


def find_secrets(data: bytes) -> list[str]:
    """Return the secrets in some bytes, also in what is packed inside them."""
    parts = [data]
    for packed in PACKED.findall(data):
        try:
            parts.append(zlib.decompress(base64.b64decode(packed)))
        except (ValueError, zlib.error):
            continue
    return [secret for secret in (*SECRETS.values(), PASSWORD) if any(secret.encode() in part for part in parts)]


def find_leaks(*folders: Path) -> dict[str, list[str]]:
    """Return file → secrets in it, of all files below."""
    leaks = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                found = find_secrets(path.read_bytes())
                if found:
                    leaks[str(path)] = found
    return leaks


def test_the_search_would_find_them(tmp_path: Path) -> None:
    packed = base64.b64encode(zlib.compress(b'{"storage": "x://u:password-c0ffee42@y", "more": "0123456789"}'))
    for name, data in {"plain": PASSWORD.encode(), "packed": b'{"chunk": "' + packed + b'"}'}.items():
        (tmp_path / name).write_bytes(data)
    assert sorted(Path(name).name for name in find_leaks(tmp_path)) == ["packed", "plain"]


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """Run a server that answers every request with ``status``; yield its port and the credentials it was shown."""
    shown: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            shown.append(self.headers.get("Authorization", ""))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b'{"error_code": "INTERNAL_ERROR", "message": "for ' + shown[-1].encode() + b'"}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = handle_any  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, shown
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def start(place: Place, command: str, *options: str, scratch: Path) -> tuple[int, str]:
    """Run a command with all secrets in its environment; return the exit code and all that it said."""
    scratch.mkdir(exist_ok=True)
    variables = SECRETS | {"TMPDIR": str(scratch), "RAY_TMPDIR": str(scratch)}
    done = place.call(command, *options, **variables)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where Ray and everybody else put temporary files; a short path, since Ray's sockets have long names."""
    with tempfile.TemporaryDirectory(prefix="rs-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_study_in_ray_keeps_no_secret(finished_study: FinishedStudy, tmp_path: Path, scratch: Path) -> None:
    """The study file itself holds a password; the server that it is for fails whatever is asked."""
    cache = finished_study.place.study.parent / "cache"
    place = make_place(tmp_path / "study", cache)
    with answering(500) as (port, shown):
        text = place.study.read_text().replace(
            "execution: {", f"execution: {{mlflow: 'http://user:{PASSWORD}@127.0.0.1:{port}', "
        )
        place.study.write_text(text)
        code, said = start(place, "run", *IN_RAY, scratch=scratch)
    assert shown
    assert any(shown), "the server has been shown no credentials: nothing was tried"
    assert (code, "4 complete" in said) == (0, True), said
    assert f"http://***@127.0.0.1:{port}" in said
    assert find_secrets(said.encode()) == []
    assert list(scratch.rglob("raylet*"))
    assert find_leaks(place.ledger, cache, scratch) == {}


@pytest.mark.parametrize("server", ["refuses", pytest.param("away", marks=pytest.mark.long)])
def test_no_command_shows_a_secret(finished_study: FinishedStudy, tmp_path: Path, server: str) -> None:
    place = copy_place(finished_study.place, tmp_path / "study")
    with answering(500) as (port, _):
        uri = f"http://user:{PASSWORD}@127.0.0.1:{port if server == 'refuses' else 9}"
        for command in ("sync", "ui", "doctor"):
            code, said = start(place, command, "--mlflow", uri, scratch=tmp_path / "scratch")
            assert (command, code) == (command, 3), said
            assert "***@127.0.0.1" in said
            assert "Traceback" not in said
            assert find_secrets(said.encode()) == []
    assert find_leaks(place.ledger, tmp_path / "scratch") == {}


def test_a_study_in_a_database_keeps_no_secret(finished_study: FinishedStudy, tmp_path: Path) -> None:
    """The secrets of other services, and what MLflow stores of a trial when its store takes everything."""
    place = copy_place(finished_study.place, tmp_path / "study")
    code, said = start(place, "sync", scratch=tmp_path / "scratch")
    assert code == 0, said
    with closing(sqlite3.connect(place.ledger / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM metrics").fetchone()[0] > 100
    assert find_leaks(place.ledger, tmp_path / "scratch") == {}
    assert find_secrets(said.encode()) == []


def test_storage_with_a_password_in_its_address_is_refused(finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    code, said = start(
        place, "status", "--storage", f"ftp://user:{PASSWORD}@127.0.0.1:9/studies", scratch=tmp_path / "scratch"
    )
    assert code == 2
    assert "ftp://***@127.0.0.1:9/studies with a password in it" in said
    assert find_secrets(said.encode()) == []


def test_no_message_of_ours_holds_a_password() -> None:
    error = StorageError(f"asked http://user:{PASSWORD}@host/x?token={PASSWORD} and failed")
    assert str(error) == "asked http://***@host/x?token=*** and failed"
