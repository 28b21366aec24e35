from __future__ import annotations

import json
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
from planning import make_stage, make_trial

from orchestrator import ledger as ledgers
from orchestrator.ledger import Lease, Ledger, describe_upstream
from orchestrator.plan import Plan
from orchestrator.reconcile import COMPLETE, FAILED, INTERRUPTED
from trainables.errors import LeaseError, StorageError, StudyError

STAGE = make_stage("stage")
TRIAL = make_trial("trial", STAGE)


@pytest.fixture(params=["local", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    """The same contract on a disk and on an object store."""
    return Ledger(str(tmp_path / "results") if request.param == "local" else f"memory://{uuid.uuid4()}/results", "s")


def begin(ledger: Ledger, work: Any = TRIAL) -> None:
    ledger.begin(work, study="s", git_commit="c0ffee")


def finish(ledger: Ledger, work: Any = TRIAL) -> None:
    ledger.folder(work.kind, work.signature).write_json("result.json", {"status": "complete", "metrics": {}})


def fail(ledger: Ledger, **details: Any) -> dict[str, Any]:
    ledger.record_failure(TRIAL, details, study="s", git_commit=None)
    failure = ledger.read("trial", TRIAL.signature).failure
    assert failure is not None
    return failure


# ------------------------------------------------------------------ records


def test_an_empty_ledger_says_so(ledger: Ledger) -> None:
    assert ledger.states() == {}
    assert ledger.records("trial") == ledger.records("stage") == []
    with pytest.raises(StudyError, match=r"study 's'.*no plan.json.*--storage"):
        ledger.read_plan()
    assert list(ledger.root.children()) == []


def test_begin_writes_everything_about_the_work(ledger: Ledger) -> None:
    begin(ledger)
    record = ledger.read("trial", TRIAL.signature)
    assert record.state == INTERRUPTED
    config = record.config
    assert (config["signature"], config["kind"], config["study"]) == (TRIAL.signature, "trial", "s")
    assert (config["name"], config["arm"], config["replicate"]) == ("trial", {"arm": "trial"}, 0)
    assert config["needs"] == [STAGE.signature]
    assert config["config"] == TRIAL.config.model_dump(mode="json")
    assert config["identity"]["training"]["epochs"] == 20
    assert config["data_fingerprint"] == "trial"
    assert config["git_commit"] == "c0ffee"
    assert abs(config["created_ms"] / 1000 - time.time()) < 3600


def test_begin_again_changes_nothing(ledger: Ledger) -> None:
    begin(ledger)
    before = ledger.folder("trial", TRIAL.signature).read("config.json")
    ledger.begin(TRIAL, study="another", git_commit="another")
    assert ledger.folder("trial", TRIAL.signature).read("config.json") == before


def test_states_follow_the_files(ledger: Ledger) -> None:
    begin(ledger)
    begin(ledger, STAGE)
    assert ledger.states() == {TRIAL.signature: INTERRUPTED, STAGE.signature: INTERRUPTED}
    finish(ledger, STAGE)
    fail(ledger, reason="error", message="m")
    assert ledger.states() == {TRIAL.signature: FAILED, STAGE.signature: COMPLETE}
    assert ledger.read("trial", TRIAL.signature).state == FAILED
    begin(ledger)
    assert ledger.states()[TRIAL.signature] == INTERRUPTED
    finish(ledger)
    assert ledger.states()[TRIAL.signature] == ledger.read("trial", TRIAL.signature).state == COMPLETE


def test_a_folder_without_a_config_has_not_begun(ledger: Ledger) -> None:
    ledger.folder("trial", "a" * 16).write("log.txt", b"something")
    assert ledger.records("trial") == []


def test_records_are_complete_and_sorted(ledger: Ledger) -> None:
    works = [make_trial(f"t{index}") for index in range(5)]
    for work in works:
        begin(ledger, work)
        folder = ledger.folder("trial", work.signature)
        folder.append_line("epochs.jsonl", json.dumps({"epoch": 1, "timestamp_ms": 1, "metrics": {}}))
    finish(ledger, works[0])
    records = ledger.records("trial")
    assert [record.signature for record in records] == sorted(work.signature for work in works)
    assert all(record.epochs == [{"epoch": 1, "timestamp_ms": 1, "metrics": {}}] for record in records)
    assert [record.signature for record in records if record.result] == [works[0].signature]


def test_a_damaged_file_is_named(ledger: Ledger) -> None:
    begin(ledger)
    ledger.folder("trial", TRIAL.signature).write("result.json", b"{")
    with pytest.raises(StorageError, match=rf"{TRIAL.signature}/result.json is damaged"):
        ledger.records("trial")


def test_the_plan_comes_back_as_it_was_written(ledger: Ledger) -> None:
    ledger.write_plan(Plan((STAGE,), (TRIAL,)), {"study": "s", "question": "?"})
    plan = ledger.read_plan()
    assert plan["question"] == "?"
    assert [trial["signature"] for trial in plan["trials"]] == [TRIAL.signature]


# ------------------------------------------------------------------ failures


def test_a_failure_keeps_reason_message_and_traceback(ledger: Ledger) -> None:
    begin(ledger)
    failure = fail(ledger, reason="diverged", message="the loss became nan", traceback="Traceback…")
    assert (failure["status"], failure["reason"], failure["message"]) == ("failed", "diverged", "the loss became nan")
    assert failure["traceback"] == "Traceback…"
    assert (failure["signature"], failure["attempts"]) == (TRIAL.signature, 1)


def test_a_lost_worker_counts_its_attempts_and_says_how_the_last_one_ended(ledger: Ledger) -> None:
    begin(ledger)
    folder = ledger.folder("trial", TRIAL.signature)
    for message in ("first", "killed by SIGKILL"):
        folder.append_line("attempts.jsonl", json.dumps({"timestamp_ms": 1, "host": "h", "message": message}))
    failure = fail(ledger, status="failed", reason="crashed")
    assert (failure["reason"], failure["message"], failure["attempts"]) == ("crashed", "killed by SIGKILL", 2)


def test_a_lost_machine_leaves_no_note(ledger: Ledger) -> None:
    failure = fail(ledger, status="failed", reason="crashed")
    assert "machine or Ray actor ended" in failure["message"]


def test_attempts_are_counted_anew_after_a_failure(ledger: Ledger) -> None:
    begin(ledger)
    folder = ledger.folder("trial", TRIAL.signature)
    folder.append_line("attempts.jsonl", json.dumps({"message": "old"}))
    assert fail(ledger, reason="error", message="m")["attempts"] == 2
    begin(ledger)
    assert not folder.exists("failure.json")
    assert fail(ledger, reason="error", message="m")["attempts"] == 1


def test_a_trial_that_never_began_can_fail(ledger: Ledger) -> None:
    failure = fail(ledger, **describe_upstream(STAGE))
    assert failure["reason"] == "upstream"
    assert STAGE.signature in failure["message"]
    assert ledger.states() == {TRIAL.signature: FAILED}


# ------------------------------------------------------------------ lease


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


def test_checking_writes_nothing(ledger: Ledger) -> None:
    Lease(ledger).check()
    assert list(ledger.root.children()) == []


def test_a_driver_without_a_sign_of_life_is_taken_over(ledger: Ledger) -> None:
    hold(ledger, alive_ms=int((time.time() - ledgers.LEASE_SECONDS - 1) * 1000))
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
    monkeypatch.setattr(ledgers, "HEARTBEAT_SECONDS", 0.01)
    with Lease(ledger):
        first = ledger.root.read_json("lease.json")["alive_ms"]
        wait_for(lambda: ledger.root.read_json("lease.json")["alive_ms"] > first)


def test_storage_that_is_away_for_a_while_does_not_end_the_signs_of_life(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledgers, "HEARTBEAT_SECONDS", 0.01)
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
    monkeypatch.setattr(ledgers, "HEARTBEAT_SECONDS", 0.01)
    stopped = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    try:
        lease = Lease(ledger).__enter__()
        hold(ledger)
        assert stopped.wait(30)
        with pytest.raises(LeaseError, match="taken over by process 7 on elsewhere"):
            lease.__exit__()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert ledger.root.read_json("lease.json")["token"] == "theirs"


def test_a_replaced_driver_that_ends_first_leaves_the_lease_to_its_successor(ledger: Ledger) -> None:
    with Lease(ledger):
        hold(ledger)
    assert ledger.root.read_json("lease.json")["token"] == "theirs"
