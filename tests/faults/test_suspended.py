"""A driver is suspended, taken for dead, and wakes up after another has taken over and finished."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.lease import LEASE_SECONDS
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.processes import lines
from tests.support.tiny_study import IN_RAY, NUM_STAGES, NUM_TRIALS, Place, make_place, stamps
from trainables.storage.folder import Folder


def let_time_pass(place: Place) -> None:
    """Make the last sign of life as old as if the driver had been suspended for longer than a lease lasts."""
    root = Folder(place.ledger)
    holder = root.read_json("lease.json")
    root.write_json("lease.json", holder | {"alive_ms": int((time.time() - LEASE_SECONDS - 1) * 1000)})


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("options", [(), IN_RAY], ids=["own slots", "in Ray"])
def test_a_driver_that_wakes_up_too_late_changes_nothing(
    finished_study: FinishedStudy, tmp_path: Path, options: tuple[str, ...]
) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    late = place.start("run", *options)
    for line in lines(late):
        if ": epoch 1" in line:
            break
    late.send_signal(signal.SIGSTOP)  # its slots and trials go on for as long as they need no driver
    let_time_pass(place)
    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    before = stamps(place)
    late.send_signal(signal.SIGCONT)
    out, err = late.communicate(timeout=60)
    assert late.returncode == 2, out + err
    assert "Traceback" not in out + err
    assert "error: " in err
    assert "taken over" in err
    assert str(place.ledger) in err
    place.wait_for_silence()
    assert stamps(place) == before
    assert not (place.ledger / "lease.json").exists()
    results = load_results(Ledger(str(place.storage), "tiny"))
    whole = load_results(Ledger(str(finished_study.place.storage), "tiny"))
    assert results_sha256(results) == results_sha256(whole)
    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * (NUM_TRIALS + NUM_STAGES + 1)
