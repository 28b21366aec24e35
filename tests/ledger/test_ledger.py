from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import begin_record, describe_upstream
from orchestrator.planning.plan import Plan
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, INTERRUPTED, STOPPED
from tests.support.plans import make_stage, make_trial
from trainables.errors import StorageError, StudyError

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


def test_what_is_damaged_is_interrupted_and_named(ledger: Ledger) -> None:
    begin(ledger)
    finish(ledger)
    begin(ledger, STAGE)
    ledger.record_failure(STAGE, {"reason": "error", "message": "m"}, study="s", git_commit=None)
    folder = ledger.folder("trial", TRIAL.signature)
    folder.write("result.json", folder.read("result.json")[:-5])
    other = ledger.folder("stage", STAGE.signature)
    other.write("failure.json", b"")
    found = Ledger(ledger.storage, ledger.study)
    whole = COMPLETE if not ledger.root.is_local else INTERRUPTED  # an object store never holds a part of a file
    assert found.states() == {TRIAL.signature: whole, STAGE.signature: INTERRUPTED}
    assert "failure.json is damaged" in found.damaged[STAGE.signature]
    if ledger.root.is_local:
        assert found.damaged[TRIAL.signature].startswith(f"{folder.uri}/result.json is damaged")
        begin(found)
        assert not folder.exists("result.json")
    begin(found, STAGE)
    assert not other.exists("failure.json")


def test_a_damaged_config_is_written_again(ledger: Ledger) -> None:
    begin(ledger)
    ledger.folder("trial", TRIAL.signature).write("config.json", b"{")
    begin(ledger)
    assert ledger.read("trial", TRIAL.signature).config["signature"] == TRIAL.signature


def test_damaged_notes_do_not_hide_a_failure(ledger: Ledger) -> None:
    begin(ledger)
    ledger.folder("trial", TRIAL.signature).write("attempts.jsonl", b"garbage\n")
    assert fail(ledger, reason="error", message="m")["message"] == "m"


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


@pytest.mark.parametrize(("reason", "attempts"), [("crashed", 2), ("hung", 2), ("out of memory", 2), ("error", 3)])
def test_attempts_that_were_lost_are_counted(ledger: Ledger, reason: str, attempts: int) -> None:
    begin(ledger)
    folder = ledger.folder("trial", TRIAL.signature)
    for message in ("first", "killed by SIGKILL"):
        folder.append_line("attempts.jsonl", json.dumps({"timestamp_ms": 1, "host": "h", "message": message}))
    assert fail(ledger, status="failed", reason=reason, message="m")["attempts"] == attempts


def test_a_lost_machine_leaves_no_note(ledger: Ledger) -> None:
    assert fail(ledger, status="failed", reason="crashed", message="m", losses=3)["attempts"] == 3


def test_attempts_are_counted_anew_after_a_failure(ledger: Ledger) -> None:
    begin(ledger)
    folder = ledger.folder("trial", TRIAL.signature)
    folder.append_line("attempts.jsonl", json.dumps({"message": "old"}))
    assert fail(ledger, reason="error", message="m")["attempts"] == 2
    begin(ledger)
    assert not folder.exists("failure.json")
    assert fail(ledger, reason="error", message="m")["attempts"] == 1


def test_what_attempts_took_outlives_the_failure_that_is_tried_again(ledger: Ledger) -> None:
    begin(ledger)
    folder = ledger.folder("trial", TRIAL.signature)
    lost = {"timestamp_ms": 5000, "seconds": 4.0, "host": "h", "message": "killed"}
    folder.append_line("attempts.jsonl", json.dumps(lost))
    raised = {"timestamp_ms": 9000, "seconds": 2.5}
    assert fail(ledger, reason="error", message="m", attempt=raised)["attempt"] == raised
    before = folder.read("failure.json")
    for _ in range(2):  # killed after the note was written
        begin(ledger)
        folder.write("failure.json", before)
    begin(ledger)
    notes = ledger.read("trial", TRIAL.signature).attempts
    assert notes == [lost, {**raised, "message": "m", "failed": "error"}]
    folder.append_line("attempts.jsonl", json.dumps(lost))
    assert fail(ledger, reason="error", message="m")["attempts"] == 2  # of this life


def test_a_trial_that_never_began_can_fail(ledger: Ledger) -> None:
    failure = fail(ledger, **describe_upstream(STAGE))
    assert failure["reason"] == "upstream"
    assert STAGE.signature in failure["message"]
    assert ledger.states() == {TRIAL.signature: FAILED}


def test_a_trial_that_was_stopped_early(ledger: Ledger) -> None:
    folder = ledger.folder("trial", TRIAL.signature)
    folder.write_json("stop.json", {"epoch": 2})
    assert ledger.states()[TRIAL.signature] == ABSENT  # it has not begun: it ends when it does
    ledger.begin(TRIAL, study="s", git_commit=None)  # by somebody who stops nothing early
    assert not folder.exists("stop.json")
    folder.write_json("stop.json", {"epoch": 2})
    begin_record(folder, {}, early_stopping=True)
    assert ledger.states()[TRIAL.signature] == STOPPED
    record = ledger.read("trial", TRIAL.signature)
    assert (record.state, record.stop) == (STOPPED, {"epoch": 2})
    folder.write_json("result.json", {"files": {}})
    assert ledger.states()[TRIAL.signature] == COMPLETE  # it was faster
    assert ledger.read("trial", TRIAL.signature).state == COMPLETE


def test_a_damaged_stop_counts_as_interrupted(ledger: Ledger) -> None:
    ledger.begin(TRIAL, study="s", git_commit=None)
    ledger.folder("trial", TRIAL.signature).write("stop.json", b"{")
    assert ledger.states()[TRIAL.signature] == INTERRUPTED
    assert "stop.json is damaged" in ledger.damaged[TRIAL.signature]
