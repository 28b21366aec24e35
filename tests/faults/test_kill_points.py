"""kill -9 of the driver twenty times in one study, in the driver's own slots and in Ray."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import FinishedStudy
from mlflow.tracking import MlflowClient
from studies import IN_RAY, NUM_STAGES, NUM_TRIALS, Place, make_place, stamps

from orchestrator.ledger import Ledger
from orchestrator.report.tables import load_results, results_sha256

NUM_KILLS = 20


def kill_after(place: Place, num_signs: int, seconds: float, *options: str) -> bool:
    """Run the study, kill it some time after it has told of so many starts, epochs and ends; False: it was over."""
    process = place.start("run", *options)
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += any(word in line for word in (": started", ": epoch ", ": complete in "))
        if seen == num_signs:
            time.sleep(seconds)
            break
    process.kill()
    process.communicate()
    return process.returncode == -9


def count_epochs(ledger: Ledger) -> dict[str, int]:
    """Return signature → finished epochs that are in the ledger for good."""
    found = {}
    for kind in ("stage", "trial"):
        for signature in (ledger.root / f"{kind}s").children():
            found[signature] = len(ledger.folder(kind, signature).read_lines("epochs.jsonl"))
    return found


def complete_of(ledger: Ledger) -> list[str]:
    return [signature for signature, state in ledger.states().items() if state == "complete"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_kills_cost_nothing_but_time(finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    ledger = Ledger(str(place.storage), "tiny")
    seed = random.SystemRandom().randrange(2**32)
    when = random.Random(seed)
    print(f"seed {seed}")
    num_kills = 0
    for number in range(NUM_KILLS):
        options = IN_RAY if number % 4 == 3 else ()
        before, epochs = stamps(place, complete_of(ledger)), count_epochs(ledger)
        num_kills += kill_after(place, when.randint(1, 3), when.uniform(0.0, 1.0), *options)
        place.wait_for_silence()
        after = stamps(place)
        assert before.items() <= after.items()  # what is complete is not touched
        assert all(count_epochs(ledger)[signature] >= count for signature, count in epochs.items())
    assert num_kills >= NUM_KILLS // 2  # the last ones may have found everything done
    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    undisturbed = Ledger(str(finished_study.place.storage), "tiny")
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(undisturbed))
    check_store(f"sqlite:///{place.ledger}/mlflow.db")


def check_store(uri: str) -> None:
    """One run each, all of them ended, every epoch once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs: list[Any] = list(client.search_runs([experiment.experiment_id]))
    assert {run.info.status for run in runs} == {"FINISHED"}
    kinds = Counter(run.data.tags["robustsweep.kind"] for run in runs)
    assert kinds == {"study": 1, "stage": NUM_STAGES, "trial": NUM_TRIALS}
    for run in runs:
        if run.data.tags["robustsweep.kind"] == "trial":
            history = client.get_metric_history(run.info.run_id, "val/loss")
            assert sorted(point.step for point in history) == [1, 2, 3]
