"""Who may write: one driver, the one that holds the lease."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import lease as leases
from orchestrator.ledger.lease import Lease, guarded
from orchestrator.ledger.ledger import Ledger
from trainables.errors import LeaseError, StorageError


@pytest.fixture(params=["local", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The same contract on a disk and on an object store."""
    monkeypatch.setattr(leases, "CONFIRM_SECONDS", 0.01)
    return Ledger(str(tmp_path / "results") if request.param == "local" else f"memory://{uuid.uuid4()}/results", "s")


def hold(ledger: Ledger, **changes: Any) -> None:
    """Write the lease of another driver."""
    now = int(time.time() * 1000)
    holder = {"host": "elsewhere", "pid": 7, "since_ms": now - 5000, "alive_ms": now, "token": "theirs"}
    ledger.root.write_json("lease.json", holder | changes)


def test_the_lease_is_there_while_it_is_held(ledger: Ledger) -> None:
    with Lease(ledger) as lease:
        holder = lease.holder()
        assert holder is not None
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
    assert Lease(ledger).holder() is None
    assert not ledger.root.exists("lease.json")


def test_a_second_driver_is_refused_and_told_who_and_since_when(ledger: Ledger) -> None:
    with Lease(ledger), pytest.raises(LeaseError, match=rf"process {os.getpid()} on .* since \d{{4}}-") as caught:
        Lease(ledger).check()
    assert ledger.root.uri in str(caught.value)
    hold(ledger)
    with pytest.raises(LeaseError, match="process 7 on elsewhere"), Lease(ledger):
        pass
    assert ledger.root.read_json("lease.json")["token"] == "theirs"


def test_a_lease_from_the_future_says_that_clocks_differ(ledger: Ledger) -> None:
    hold(ledger, alive_ms=int(time.time() * 1000) + 7_200_000)
    with pytest.raises(LeaseError, match=r"(71\d\d|7200) s in the future: the clocks .* differ.*remove lease.json"):
        Lease(ledger).check()


def test_checking_writes_nothing(ledger: Ledger) -> None:
    Lease(ledger).check()
    assert list(ledger.root.children()) == []


def test_a_driver_without_a_sign_of_life_is_taken_over(ledger: Ledger) -> None:
    hold(ledger, alive_ms=int((time.time() - leases.LEASE_SECONDS - 1) * 1000))
    with Lease(ledger) as lease:
        holder = lease.holder()
        assert holder is not None
        assert holder["pid"] == os.getpid()


def test_a_dead_process_of_this_machine_is_taken_over_at_once(ledger: Ledger) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    hold(ledger, host=socket.gethostname(), pid=dead.pid)
    assert Lease(ledger).holder() is None
    hold(ledger, host=socket.gethostname(), pid=os.getppid())
    assert Lease(ledger).holder() is not None
    hold(ledger, host="elsewhere", pid=dead.pid)  # nothing can be known of its processes
    assert Lease(ledger).holder() is not None


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signs_of_life_go_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with Lease(ledger):
        first = ledger.root.read_json("lease.json")["alive_ms"]
        wait_for(lambda: ledger.root.read_json("lease.json")["alive_ms"] > first)


def test_storage_that_is_away_for_a_while_does_not_end_the_signs_of_life(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    lease = Lease(ledger)
    write, refusals = lease._write, iter([StorageError("disk full"), OSError("gone")])

    def refuse_twice() -> None:
        error = next(refusals, None)
        if error is not None and threading.current_thread() is not threading.main_thread():
            raise error
        write()

    with caplog.at_level(logging.WARNING), lease:
        monkeypatch.setattr(lease, "_write", refuse_twice)
        wait_for(lambda: len(caplog.records) == 2)
        first = ledger.root.read_json("lease.json")["alive_ms"]
        wait_for(lambda: ledger.root.read_json("lease.json")["alive_ms"] > first)
    assert "could not renew the lease" in caplog.text


def test_a_driver_that_was_replaced_stops_itself(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended laptop wakes up: another driver has taken over meanwhile, and two must not write."""
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    stopped = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    try:
        lease = Lease(ledger).__enter__()
        for _ in range(300):  # a renewal that has read before it was replaced writes once more
            hold(ledger)
            if stopped.wait(0.1):
                break
        assert stopped.is_set()
        with pytest.raises(LeaseError, match="taken over by process 7 on elsewhere"):
            lease.__exit__()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert ledger.root.read_json("lease.json")["token"] == "theirs"


def test_a_replaced_driver_that_ends_first_leaves_the_lease_to_its_successor(ledger: Ledger) -> None:
    with Lease(ledger):
        hold(ledger)
    assert ledger.root.read_json("lease.json")["token"] == "theirs"


# ------------------------------------------------------------------ two at the same moment, and one too late


TAKE = """
import sys, time
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from trainables.errors import LeaseError
while time.time() < float(sys.argv[2]):
    pass
try:
    Lease(Ledger(sys.argv[1], "s")).__enter__()
except LeaseError as error:
    print("refused:", error)
else:
    print("took it")
    time.sleep(3)
"""


def test_of_drivers_that_start_in_the_same_moment_one_runs(tmp_path: Path) -> None:
    moment = str(time.time() + 3.0)
    words = [sys.executable, "-c", TAKE, str(tmp_path), moment]
    drivers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = sorted(driver.communicate(timeout=60)[0] for driver in drivers)
    assert [line.startswith("refused: the study in") for line in said] == [True] * 5 + [False]
    assert said[-1] == "took it\n"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """On an object store."""
    monkeypatch.setattr(leases, "CONFIRM_SECONDS", 0.01)
    return Ledger(f"memory://{uuid.uuid4()}/results", "s")


def test_on_an_object_store_the_lock_is_a_file_that_one_can_create(
    remote: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", None)  # nobody has to look again
    now = int(time.time() * 1000)
    other = {"host": "elsewhere", "pid": 7, "since_ms": now, "alive_ms": now, "token": "theirs"}
    remote.root.write_json("lease.lock", other)
    with pytest.raises(LeaseError, match="being taken in this moment by process 7 on elsewhere"), Lease(remote):
        pass
    assert sorted(remote.root.children()) == ["lease.lock"]
    remote.root.remove("lease.lock")
    with Lease(remote):
        assert list(remote.root.children()) == ["lease.json"]


def test_a_lock_that_a_killed_driver_left_is_no_obstacle(remote: Ledger) -> None:
    old = int((time.time() - leases.LEASE_SECONDS - 1) * 1000)
    remote.root.write_json(
        "lease.lock", {"host": "elsewhere", "pid": 7, "since_ms": old, "alive_ms": old, "token": "theirs"}
    )
    with Lease(remote):
        assert list(remote.root.children()) == ["lease.json"]


@pytest.mark.parametrize("answers", [[None], [True, True]], ids=["no such step", "the condition is ignored"])
def test_where_nothing_can_be_locked_the_one_that_wrote_last_runs(
    remote: Ledger, monkeypatch: pytest.MonkeyPatch, answers: list[bool | None]
) -> None:
    said = iter(answers)
    monkeypatch.setattr(type(remote.root), "create", lambda *_: next(said))
    monkeypatch.setattr(time, "sleep", lambda seconds: hold(remote))  # another driver, between our write and our look
    with pytest.raises(LeaseError, match="in the same moment by process 7 on elsewhere"), Lease(remote):
        pass


def test_who_has_lost_the_lease_can_change_nothing(ledger: Ledger) -> None:
    ledger.root.write("kept", b"before")
    with Lease(ledger) as lease:
        ours = ledger.folder("trial", "a" * 16)
        theirs = guarded(ours.uri, lease.ticket)  # the process of a trial
        ours.write("config.json", b"{}")
        theirs.append_line("epochs.jsonl", "{}")
        hold(ledger)
        for write in (
            lambda: ours.write("config.json", b"late"),
            lambda: ours.write_json("result.json", {}),
            lambda: theirs.append_line("epochs.jsonl", "late"),
            lambda: theirs.rename("epochs.jsonl", "lines"),
            lambda: ours.remove("config.json"),
            lambda: ledger.root.write("kept", b"late"),
        ):
            with pytest.raises(LeaseError, match=r"refused to write into .* held by process 7 on elsewhere"):
                write()
        assert sorted(ours.children()) == ["config.json", "epochs.jsonl"]
        assert (ours.read("config.json"), theirs.read("epochs.jsonl")) == (b"{}", b"{}\n")
        assert ledger.root.read("kept") == b"before"
        ledger.root.guard = lambda: None
        ledger.root.remove("lease.json")
        with pytest.raises(LeaseError, match="held by nobody"):
            theirs.write("config.json", b"late")


def test_a_ledger_can_be_written_before_and_after(ledger: Ledger) -> None:
    with Lease(ledger):
        pass
    ledger.root.write("after", b"")


def test_a_damaged_lease_says_what_to_do(ledger: Ledger) -> None:
    for damage in (b"", b"{", b"[]", b'{"pid": 1}'):
        ledger.root.write("lease.json", damage)
        with pytest.raises(LeaseError, match=r"lease.json is damaged.*remove that file"):
            Lease(ledger).check()
