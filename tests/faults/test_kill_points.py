"""kill -9 of the driver twenty times in one study, in the driver's own slots and in Ray."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.processes import lines
from tests.support.tiny_study import IN_RAY, NUM_STAGES, NUM_TRIALS, Place, make_place, stamps

NUM_KILLS = 20
#: Longer trials than the other tests have, so that twenty kills find something to kill.
LONGER = ("--set", "training.epochs=15")
NUM_EPOCHS = 15 * NUM_TRIALS + 2 * NUM_STAGES
_EPOCH = re.compile(r"\[(\w{8})]: epoch (\d+)/")


def kill_at(place: Place, goal: int, num_done: int, seconds: float, *options: str) -> tuple[int, set[tuple[str, int]]]:
    """Run the study and kill it some time after ``goal`` epochs are done in all; return its exit code and epochs.

    Args:
        num_done: how many were done before.
        seconds: how long after the line that says so.

    Returns:
        Exit code, and (first letters of the signature, epoch) of every epoch that was trained.
    """
    process = place.start("run", *LONGER, *options)
    epochs = set()
    for line in lines(process):
        epochs |= {(match[1], int(match[2])) for match in _EPOCH.finditer(line)}
        if num_done + len(epochs) >= goal and (epochs or ": started" in line):
            time.sleep(seconds)
            break
    process.kill()
    rest, _ = process.communicate()
    return process.returncode, epochs | {(match[1], int(match[2])) for match in _EPOCH.finditer(rest)}


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
    cache_dir = finished_study.place.study.parent / "cache"
    undisturbed = make_place(tmp_path / "undisturbed", cache_dir)
    assert undisturbed.call("run", *LONGER).returncode == 0
    place = make_place(tmp_path / "killed", cache_dir)
    ledger = Ledger(str(place.storage), "tiny")
    seed = random.SystemRandom().randrange(2**32)
    when = random.Random(seed)
    print(f"seed {seed}")
    for number in range(NUM_KILLS):
        options = IN_RAY if number % 4 == 3 else ()
        before, epochs = stamps(place, complete_of(ledger)), count_epochs(ledger)
        goal = number * NUM_EPOCHS // (NUM_KILLS + 2)  # the last epochs are for those that come too late
        code, trained = kill_at(place, goal, sum(epochs.values()), when.uniform(0.0, 0.3), *options)
        assert code == -9, f"kill {number} came too late"
        place.wait_for_silence()
        assert before.items() <= stamps(place).items()  # what is complete is not touched
        again = [
            (name, epoch) for name, epoch in trained for key in epochs if key.startswith(name) and epoch <= epochs[key]
        ]
        assert not again  # what is lost is what was not yet finished
        assert all(count_epochs(ledger)[signature] >= count for signature, count in epochs.items())
    done = place.call("run", *LONGER)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = Ledger(str(undisturbed.storage), "tiny")
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(whole))
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
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert sorted(point.step for point in history) == list(range(1, 16))
