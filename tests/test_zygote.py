from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import acting_zygote
import pytest
from processes import is_running, wait_until

from orchestrator.zygote import describe_failure, run_request
from trainables.errors import ConfigError, DataError, DivergedError, StorageError


@pytest.fixture
def zygote() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(acting_zygote.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process
        process.kill()


def ask(zygote: subprocess.Popen[bytes], *acts: str) -> None:
    assert zygote.stdin is not None
    for act in acts:
        zygote.stdin.write(json.dumps({"act": act}).encode() + b"\n")
    zygote.stdin.flush()


def read(zygote: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert zygote.stdout is not None
    event: dict[str, Any] = json.loads(zygote.stdout.readline())
    return event


def test_the_protocol(zygote: subprocess.Popen[bytes]) -> None:
    assert read(zygote) == {"event": "ready", "pid": zygote.pid}
    ask(zygote, "finish")
    forked = read(zygote)
    assert forked["event"] == "forked"
    assert forked["pid"] != zygote.pid
    assert read(zygote) == {"event": "epoch", "epoch": 1}
    assert read(zygote) == {"event": "exit", "code": 0}
    ask(zygote, "fail")
    assert [read(zygote)["event"] for _ in range(2)] == ["forked", "failed"]
    assert read(zygote) == {"event": "exit", "code": 1}


def test_it_ends_when_its_parent_hangs_up(zygote: subprocess.Popen[bytes]) -> None:
    read(zygote)
    assert zygote.stdin is not None
    zygote.stdin.close()
    assert zygote.wait(60) == 0


def test_hanging_up_kills_the_running_trial(zygote: subprocess.Popen[bytes]) -> None:
    read(zygote)
    ask(zygote, "hang")
    pid = read(zygote)["pid"]
    read(zygote)
    assert zygote.stdin is not None
    zygote.stdin.close()
    assert zygote.wait(60) == 0
    assert not is_running(pid)


def test_an_idle_zygote_is_silent_and_has_no_children(zygote: subprocess.Popen[bytes]) -> None:
    read(zygote)
    ask(zygote, "finish")
    pids = {read(zygote).get("pid") for _ in range(3)}
    assert zygote.stdout is not None
    time.sleep(0.1)
    assert select.select([zygote.stdout], [], [], 0)[0] == []
    wait_until(lambda: not any(is_running(pid) for pid in pids if pid), "no child is left")
    with pytest.raises(FileNotFoundError):
        os.stat(f"/proc/{pids.difference({None}).pop()}")  # reaped, not a zombie


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (DivergedError("the loss became nan"), "diverged", "the loss became nan"),
        (DataError("row 7 is bad"), "error", "row 7 is bad"),
        (ConfigError("no such field"), "error", "no such field"),
        (KeyError("x"), "error", "KeyError: 'x'"),
        (MemoryError(), "error", "MemoryError: "),
    ],
)
def test_failures_are_described_for_the_user(error: Exception, reason: str, message: str) -> None:
    described = describe_failure(error)
    assert (described["reason"], described["message"]) == (reason, message)
    assert type(error).__name__ in described["traceback"]


def test_a_request_about_a_folder_without_a_config_says_where_it_looked(tmp_path: Path) -> None:
    request = {"folder": str(tmp_path), "encoder": None, "execution": {"cache_dir": str(tmp_path)}}
    with pytest.raises(StorageError, match=rf"could not read {tmp_path}/config.json"):
        run_request(request, lambda event: None)
