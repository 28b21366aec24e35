from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.driver.child_process import run_request
from orchestrator.ledger.failures import describe_failure
from tests.support.processes import is_running, wait_until
from tests.support.scripted_fork_server import COMMAND
from trainables.errors import CollapsedError, ConfigError, DataError, DivergedError, StorageError
from trainables.storage.claims import take_claim
from trainables.storage.folder import Folder


class Line:
    """A connection as a slot has it, by hand."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.events = self.socket.makefile("r")

    def ask(self, *acts: str) -> None:
        self.socket.sendall(b"".join(json.dumps({"act": act}).encode() + b"\n" for act in acts))

    def read(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.events.readline())
        return event

    def hang_up(self) -> None:
        self.events.close()
        self.socket.close()


@pytest.fixture
def path() -> Iterator[Path]:
    """A fork server that listens there."""
    path = Path(tempfile.mkdtemp(prefix="fork-server-")) / "z.sock"  # pytest's own folders are too long for a socket
    subprocess.run([*COMMAND, str(path)], check=True)
    yield path
    wait_until(lambda: not any(path.parent.iterdir()), "the fork server is gone, and has left nothing")
    path.parent.rmdir()


@pytest.fixture
def line(path: Path) -> Iterator[Line]:
    line = Line(path)
    yield line
    line.hang_up()


def test_the_protocol(line: Line) -> None:
    line.ask("finish")
    forked = line.read()
    assert forked["event"] == "forked"
    assert forked["pid"] != os.getpid()
    assert line.read() == {"event": "epoch", "epoch": 1}
    assert line.read() == {"event": "exit", "code": 0}
    line.ask("fail")
    assert [line.read()["event"] for _ in range(2)] == ["forked", "failed"]
    assert line.read() == {"event": "exit", "code": 1}


def test_requests_of_one_connection_wait_for_each_other(line: Line) -> None:
    line.ask("finish", "finish")
    assert [line.read()["event"] for _ in range(6)] == ["forked", "epoch", "exit"] * 2


def test_connections_do_not_wait_for_each_other(path: Path, line: Line) -> None:
    other = Line(path)
    line.ask("hang")
    line.read()
    other.ask("finish")
    assert [other.read()["event"] for _ in range(3)] == ["forked", "epoch", "exit"]
    other.hang_up()


def test_hanging_up_kills_the_running_trial(line: Line) -> None:
    line.ask("hang")
    pid = line.read()["pid"]
    about = line.read()
    line.hang_up()
    wait_until(lambda: not is_running(pid), "the trial is gone")
    wait_until(lambda: not is_running(about["server"]), "the fork server is gone")


def test_a_trial_and_its_slot_that_end_in_the_same_moment_harm_nobody(path: Path, line: Line) -> None:
    other = Line(path)
    other.ask("hang")
    pid = other.read()["pid"]
    server = other.read()["server"]
    os.kill(server, signal.SIGSTOP)  # it will see both at once
    os.kill(pid, signal.SIGKILL)
    other.hang_up()
    os.kill(server, signal.SIGCONT)
    line.ask("finish")
    assert [line.read()["event"] for _ in range(3)] == ["forked", "epoch", "exit"]


def test_an_idle_fork_server_is_silent_and_has_no_children(line: Line) -> None:
    line.ask("finish")
    pids = {line.read().get("pid") for _ in range(3)}
    line.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        line.socket.recv(1)
    with pytest.raises(FileNotFoundError):
        os.stat(f"/proc/{pids.difference({None}).pop()}")  # reaped, not a zombie


def test_a_connected_fork_server_waits_for_ever(line: Line) -> None:
    time.sleep(0.8)  # more than twice as long as an unconnected one
    line.ask("finish")
    assert line.read()["event"] == "forked"


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (DivergedError("the loss became nan"), "diverged", "the loss became nan"),
        (CollapsedError("one point"), "collapsed", "one point"),
        (DataError("row 7 is bad"), "error", "row 7 is bad"),
        (ConfigError("no such field"), "error", "no such field"),
        (KeyError("x"), "error", "KeyError: 'x'"),
        (MemoryError(), "out of memory", "MemoryError: "),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            "out of memory",
            "OSError: [Errno 12] Cannot allocate memory",
        ),
    ],
)
def test_failures_are_described_for_the_user(error: Exception, reason: str, message: str) -> None:
    described = describe_failure(error)
    assert (described["reason"], described["message"]) == (reason, message)
    assert described["type"] == type(error).__name__
    assert type(error).__name__ in described["traceback"]


def test_torch_says_when_there_is_no_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56)
    assert describe_failure(caught.value)["reason"] == "out of memory"
    assert describe_failure(torch.OutOfMemoryError("CUDA out of memory"))["reason"] == "out of GPU memory"
    for text in ("CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"):
        assert describe_failure(torch.AcceleratorError(text, 2))["reason"] == "out of GPU memory"
    assert describe_failure(RuntimeError("shapes do not fit"))["reason"] == "error"


def test_a_request_about_a_folder_without_a_config_says_where_it_looked(tmp_path: Path) -> None:
    claims = Folder(tmp_path / "claims")
    shared = {"claims": claims.uri, "claim": take_claim(claims, 1).name, "lease": None}
    request = {
        "folder": str(tmp_path),
        "encoder": None,
        "matching": None,
        "execution": {"cache_dir": str(tmp_path)},
        **shared,
    }
    with pytest.raises(StorageError, match=rf"could not read {tmp_path}/config.json"):
        run_request(request, lambda event: None)
