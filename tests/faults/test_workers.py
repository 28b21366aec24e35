"""Processes of trials are killed, hang, and run out of memory, in the driver's own slots and in Ray."""

from __future__ import annotations

import html
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import Record
from tests.conftest import FinishedStudy
from tests.support.processes import wait_until
from tests.support.tiny_study import IN_RAY, NUM_STAGES, NUM_TRIALS, Place, make_place, stamps

OWN_AND_RAY = pytest.mark.parametrize(
    "options", [pytest.param((), id="own slots"), pytest.param(IN_RAY, id="Ray", marks=pytest.mark.long)]
)


@pytest.fixture
def place(finished_study: FinishedStudy, tmp_path: Path) -> Iterator[Place]:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    yield place
    place.wait_for_silence()


@pytest.fixture
def victim(finished_study: FinishedStudy) -> str:
    """The trial that suffers: from scratch, without augmentation. It needs no stage."""
    plan = ledger_of(finished_study.place).read_plan()
    (signature,) = (
        trial["signature"]
        for trial in plan["trials"]
        if trial["arm"] == {"pretraining": "scratch", "augmentation": "none"}
    )
    return str(signature)


def ledger_of(place: Place) -> Ledger:
    return Ledger(str(place.storage), "tiny")


def epochs_of(place: Place, signature: str) -> list[bytes]:
    path = place.ledger / "trials" / signature / "epochs.jsonl"
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def wait_for_epoch(place: Place, process: subprocess.Popen[str], signature: str) -> int:
    """Wait until the trial has finished an epoch and trains; return the pid of its process."""
    wait_until(
        lambda: process.poll() is not None or (bool(epochs_of(place, signature)) and signature in place.training()),
        "the trial has an epoch behind it",
        seconds=200,
    )
    return place.training()[signature]


def notes_of(place: Place, signature: str) -> list[str]:
    """Return what is noted about attempts that were lost."""
    return [note["message"] for note in ledger_of(place).folder("trial", signature).read_lines("attempts.jsonl")]


def hash_of(place: Place) -> str:
    return results_sha256(load_results(ledger_of(place)))


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, errors = process.communicate(timeout=200)
    assert "Traceback" not in out + errors, out + errors
    return process.returncode, out + errors


def check_failed(place: Place, said: str, records: Sequence[Record], *words: str) -> None:
    """Ledger, MLflow, report and terminal say why these have failed, after three attempts each."""
    assert " 0 interrupted, 0 missing of 4 trials; go on with: robustsweep run " in said
    assert "--retry-failed\n" in said
    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs: list[Any] = list(client.search_runs([experiment.experiment_id]))
    assert "RUNNING" not in {run.info.status for run in runs}
    report = (place.ledger / "report" / "index.html").read_text()
    for record in records:
        (run,) = (run for run in runs if run.data.tags.get("robustsweep.signature") == record.signature)
        assert run.info.status == "FAILED"
        failure = record.failure
        assert failure is not None
        assert failure["attempts"] == 3
        for word in words:
            assert word in f"{failure['reason']}: {failure['message']}"
            assert word in run.data.tags["robustsweep.failure"]
            assert word in said or word == failure["reason"]
            assert record.kind == "stage" or html.escape(word) in report


@pytest.mark.long
@OWN_AND_RAY
@pytest.mark.timeout(400)
def test_a_trial_whose_process_is_killed_goes_on(
    finished_study: FinishedStudy, place: Place, victim: str, options: tuple[str, ...]
) -> None:
    process = place.start("run", *options)
    os.kill(wait_for_epoch(place, process, victim), signal.SIGKILL)
    before = epochs_of(place, victim)
    code, said = end_of(process)
    assert code == 0, said
    after = epochs_of(place, victim)
    assert after[: len(before)] == before
    assert [json.loads(line)["epoch"] for line in after] == [1, 2, 3]
    (note,) = notes_of(place, victim)
    assert "was killed by SIGKILL" in note
    assert f"[{victim[:8]}]: its process ended; started again" in said
    assert hash_of(place) == hash_of(finished_study.place)


@pytest.mark.long
@OWN_AND_RAY
@pytest.mark.timeout(400)
def test_a_trial_that_is_killed_each_time_fails_alone(
    finished_study: FinishedStudy, place: Place, victim: str, options: tuple[str, ...]
) -> None:
    process = place.start("run", *options)
    while process.poll() is None:
        pid = place.training().get(victim)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    code, said = end_of(process)
    assert code == 1, said
    check_failed(place, said, [ledger_of(place).read("trial", victim)], "crashed", "SIGKILL", "ran out of memory")
    states = ledger_of(place).states()
    assert Counter(states.values()) == {"failed": 1, "complete": NUM_TRIALS - 1 + NUM_STAGES}
    before = stamps(place, [signature for signature, state in states.items() if state == "complete"])
    done = place.call("run", "--retry-failed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert before.items() <= stamps(place).items()
    assert hash_of(place) == hash_of(finished_study.place)


@OWN_AND_RAY
@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_trial_that_hangs_is_killed_and_goes_on(
    finished_study: FinishedStudy, place: Place, victim: str, options: tuple[str, ...]
) -> None:
    process = place.start("run", "--set", "execution.stall_minutes=0.5", *options)
    os.kill(wait_for_epoch(place, process, victim), signal.SIGSTOP)
    before = epochs_of(place, victim)
    code, said = end_of(process)
    assert code == 0, said
    assert epochs_of(place, victim)[: len(before)] == before
    assert "no sign of life for" in notes_of(place, victim)[0]
    assert hash_of(place) == hash_of(finished_study.place)


@pytest.mark.long
@OWN_AND_RAY
@pytest.mark.timeout(400)
def test_a_stage_that_asks_for_more_memory_than_there_is_fails_with_its_trials_alone(
    finished_study: FinishedStudy, place: Place, options: tuple[str, ...]
) -> None:
    """Its projection head takes two terabytes."""
    wide = "kind: contrastive, method: {kind: simclr, hidden_dim: 50000, projection_dim: 10000000}"
    place.study.write_text(place.study.read_text().replace("kind: contrastive", wide))
    done = place.call("run", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (stage,) = ledger_of(place).records("stage")
    check_failed(place, done.stdout, [stage], "out of memory", "training.batch_size", "can't allocate memory")
    trials = ledger_of(place).records("trial")
    assert Counter(trial.state for trial in trials) == {"complete": 2, "failed": 2}
    assert {trial.failure["reason"] for trial in trials if trial.failure} == {"upstream"}


@pytest.mark.long
@pytest.mark.timeout(400)
def test_slots_that_ray_ends_for_want_of_memory(finished_study: FinishedStudy, place: Place) -> None:
    """Ray's memory monitor is told that this machine may use one percent of its memory."""
    low = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "250"}
    done = place.call("run", *IN_RAY, **low)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [trial for trial in ledger_of(place).records("trial") if not trial.config["needs"]]
    check_failed(place, done.stdout, failed, "out of memory", "max_concurrent_trials")
    done = place.call("run", "--retry-failed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert hash_of(place) == hash_of(finished_study.place)
