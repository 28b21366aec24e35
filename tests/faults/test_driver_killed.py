"""The driver is interrupted, then killed at a random point: running the same command again is all there is to do.

The first run and the last have their trials in slots of the driver, the one that is killed in Ray.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.processes import lines
from tests.support.tiny_study import IN_RAY, NUM_STAGES, NUM_TRIALS, Place, make_place, stamps


def run_until(place: Place, number: int, signal_name: str, *options: str) -> tuple[int, str]:
    """Run the study and send a signal after the ``number``-th epoch; return the exit code and what was said."""
    process = place.start("run", *options)
    said = []
    for line in lines(process):
        said.append(line)
        if sum(": epoch " in each for each in said) == number:
            process.kill() if signal_name == "SIGKILL" else process.send_signal(2)
            break
    rest, errors = process.communicate(timeout=200)
    return process.returncode, "".join(said) + rest + errors


def complete_of(ledger: Ledger) -> list[str]:
    return [signature for signature, state in ledger.states().items() if state == "complete"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_interrupted_and_killed_study_ends_as_an_undisturbed_one(
    finished_study: FinishedStudy, tmp_path: Path
) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    ledger = Ledger(str(place.storage), "tiny")
    seed = random.SystemRandom().randrange(2**32)
    when = random.Random(seed)
    moments = (when.randint(1, 3), when.randint(2, 6))
    print(f"signals after epochs {moments} (seed {seed})")

    code, said = run_until(place, moments[0], "SIGINT")
    assert code == 1, said
    assert f"go on with: robustsweep run {place.study} --storage {place.storage}\n" in said
    assert "Traceback" not in said
    assert not (place.ledger / "lease.json").exists()
    place.wait_for_silence()
    first = stamps(place, complete_of(ledger))

    code, said = run_until(place, moments[1], "SIGKILL", *IN_RAY)
    assert code == -9, said
    place.wait_for_silence()  # raylet, actors, fork servers and trials end with their driver
    assert (place.ledger / "lease.json").exists()
    second = stamps(place, complete_of(ledger))
    assert first.items() <= second.items()

    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert second.items() <= stamps(place).items()
    undisturbed = Ledger(str(finished_study.place.storage), "tiny")
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(undisturbed))

    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert Counter(run.data.tags["robustsweep.kind"] for run in runs) == {
        "study": 1, "stage": NUM_STAGES, "trial": NUM_TRIALS,
    }  # fmt: skip
    assert len({run.data.tags.get("robustsweep.signature") for run in runs}) == len(runs)
    for run in runs:
        if run.data.tags["robustsweep.kind"] == "trial":
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert sorted(point.step for point in history) == [1, 2, 3]
