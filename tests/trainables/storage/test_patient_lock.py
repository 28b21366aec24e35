"""A lock that is waited for as long as its holder works, and no longer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from trainables.storage import patient_lock
from trainables.storage.patient_lock import locked


def _hold(path: Path, is_held: multiprocessing.synchronize.Event) -> None:
    patient_lock.HEARTBEAT_SECONDS = 0.1
    with locked(path):
        is_held.set()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path: Path) -> multiprocessing.process.BaseProcess:  # type: ignore[misc]
    """A living process that holds the lock."""
    context = multiprocessing.get_context("spawn")
    is_held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "a.lock", is_held), daemon=True)
    process.start()
    assert is_held.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_holder_that_works_is_waited_for(holder: multiprocessing.process.BaseProcess, tmp_path: Path) -> None:
    entered = threading.Event()

    def wait() -> None:
        with locked(tmp_path / "a.lock", patience_seconds=1.0):
            entered.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not entered.wait(3.0)
    holder.kill()  # the kernel releases its lock
    assert entered.wait(10.0)
    thread.join()


def test_a_suspended_holder_is_not_waited_for(
    holder: multiprocessing.process.BaseProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGSTOP)
    with locked(tmp_path / "a.lock", patience_seconds=0.5):
        pass
    assert "gave no sign of life" in caplog.text


def test_one_after_another(tmp_path: Path) -> None:
    inside: list[int] = []

    def work(number: int) -> None:
        with locked(tmp_path / "a.lock"):
            inside.append(number)
            assert len(inside) == 1
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []
