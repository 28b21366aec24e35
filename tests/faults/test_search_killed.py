"""kill -9 of a search at ten points: it proposes, runs and ends exactly as one that was never disturbed."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.databases import name_driver
from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.client import MlflowClient
from tests.conftest import FinishedStudy
from tests.support.postgres import PASSWORD, Postgres
from tests.support.tiny_study import IN_RAY, Place, make_place, stamps

NUM_CONFIGURATIONS = 12
TPE = "{kind: tpe, num_startup: 3}"
SEARCH = f"""\
search:
  num_trials: {NUM_CONFIGURATIONS}
  parallel: 3
  sampler: SAMPLER
  space:
    training.learning_rate: {{low: 1e-4, high: 1e-2, log: true}}
    augmentation.strength: {{low: 0, high: 1, step: 0.25}}
"""


def make_search(folder: Path, cache_dir: Path, sampler: str = TPE) -> Place:
    """Write the tiny study as a search over its factors, a learning rate and a strength."""
    place = make_place(folder, cache_dir)
    kept = place.study.read_text().partition("hypotheses:")[0] + f"execution: {{cache_dir: {cache_dir}}}\n"
    place.study.write_text(kept + SEARCH.replace("SAMPLER", sampler))
    return place


def count_steps(place: Place) -> int:
    """Return how much has happened: proposals that are made, stages and trials that are complete."""
    lines = Ledger(str(place.storage), "tiny").root.read_lines("search.jsonl")
    return len(lines) + len(list(place.ledger.glob("*/*/result.json")))


def kill_at(place: Place, goal: int, seconds: float, *options: str) -> int:
    """Run the search and kill it some time after ``goal`` steps; return its exit code."""
    process = place.start("run", *options)
    try:
        while count_steps(place) < goal and process.poll() is None:
            time.sleep(0.02)
        time.sleep(seconds)
    finally:
        process.kill()
        process.communicate()
    return process.returncode


def read_proposals(place: Place) -> list[dict[str, Any]]:
    """Return the lines without their times."""
    lines = Ledger(str(place.storage), "tiny").root.read_lines("search.jsonl")
    return [{key: value for key, value in line.items() if key != "asked_ms"} for line in lines]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("sampler", "num_kills"), [(TPE, 10), ("cmaes", 5)], ids=["tpe", "cmaes"])
def test_kills_change_nothing(finished_study: FinishedStudy, tmp_path: Path, sampler: str, num_kills: int) -> None:
    cache_dir = finished_study.place.study.parent / "cache"
    undisturbed = make_search(tmp_path / "undisturbed", cache_dir, sampler)
    done = undisturbed.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    num_steps = count_steps(undisturbed)
    place = make_search(tmp_path / "killed", cache_dir, sampler)
    ledger = Ledger(str(place.storage), "tiny")
    seed = random.SystemRandom().randrange(2**32)
    when = random.Random(seed)
    print(f"seed {seed}")
    for number in range(num_kills):
        goal = max(1, number * num_steps // (num_kills + 1))
        complete = [signature for signature, state in ledger.states().items() if state == "complete"]
        before = stamps(place, complete)
        code = kill_at(place, goal, when.uniform(0.0, 0.4), *(IN_RAY if number % 5 == 4 else ()))
        assert code == -9, f"kill {number} came too late"
        place.wait_for_silence()
        assert before.items() <= stamps(place).items()  # what is complete is not touched
    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_proposals(place) == read_proposals(undisturbed)
    assert len({line["signatures"][0] for line in read_proposals(place)}) == NUM_CONFIGURATIONS
    whole = Ledger(str(undisturbed.storage), "tiny")
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(whole))
    shown = optuna.load_study(study_name="tiny", storage=f"sqlite:///{place.ledger}/optuna.db").get_trials()
    assert {trial.state.name for trial in shown} == {"COMPLETE"}
    assert len(shown) == len(read_proposals(place))
    again = place.call("run")
    assert again.returncode == 0
    assert read_proposals(place) == read_proposals(undisturbed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_search_shown_in_postgresql(finished_study: FinishedStudy, tmp_path: Path) -> None:
    """It is away, then back: nothing is held up, everything is shown, and its password is nowhere."""
    pytest.importorskip("psycopg2")
    with Postgres() as postgres:
        place = make_search(tmp_path, finished_study.place.study.parent / "cache")
        options = ("--set", f"execution.optuna={postgres.uri}", "--set", "search.num_trials=3")
        postgres.kill()
        done = place.call("run", *options)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "the search is not in Optuna's storage yet" in said
        postgres.start()
        done = place.call("run", *options)
        said += done.stdout + done.stderr
        assert done.returncode == 0, said
        assert said.count("not in Optuna's storage yet") == 1
        shown = optuna.load_study(study_name="tiny", storage=name_driver(postgres.uri)).get_trials()
        assert [trial.state.name for trial in shown] == ["COMPLETE"] * 3
        assert PASSWORD not in said
        for path in place.storage.rglob("*"):
            assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path


STOPPING = """\
search:
  num_trials: 6
  parallel: 2
  sampler: {kind: tpe, num_startup: 3}
  space: {training.learning_rate: {low: 1e-9, high: 1e-2, log: true}}
  early_stopping: {kind: asha, grace_epochs: 1, reduction_factor: 2}
replicates: 2
"""


def make_stopping_search(folder: Path, cache_dir: Path) -> Place:
    """Write the tiny study as a search over a learning rate that ends early what falls behind."""
    place = make_place(folder, cache_dir)
    kept = place.study.read_text().partition("factors:")[0] + f"execution: {{cache_dir: {cache_dir}}}\n"
    place.study.write_text(kept.replace("epochs: 3", "epochs: 8") + STOPPING)
    return place


def count_signs(place: Place) -> int:
    """Return how much has happened: epochs, stops, results."""
    trials = place.ledger / "trials"
    return sum(path.read_bytes().count(b"\n") for path in trials.glob("*/epochs.jsonl")) + sum(
        1 for name in ("stop.json", "result.json") for _ in trials.glob(f"*/{name}")
    )


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_kills_of_a_search_that_stops_early(finished_study: FinishedStudy, tmp_path: Path) -> None:
    """Which configurations are stopped depends on speed; how many there are, and that nothing is lost, does not."""
    place = make_stopping_search(tmp_path, finished_study.place.study.parent / "cache")
    ledger = Ledger(str(place.storage), "tiny")
    seed = random.SystemRandom().randrange(2**32)
    when = random.Random(seed)
    print(f"seed {seed}")
    for number in range(6):
        goal = count_signs(place) + when.randrange(1, 6)
        ended = [signature for signature, state in ledger.states().items() if state in ("complete", "stopped_early")]
        before = stamps(place, ended)
        process = place.start("run", *(IN_RAY if number == 4 else ()))
        while count_signs(place) < goal and process.poll() is None:
            time.sleep(0.02)
        time.sleep(when.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -9, f"kill {number} came too late"
        place.wait_for_silence()
        assert before.items() <= stamps(place).items()  # what has ended is not touched
    done = place.call("run")
    assert done.returncode == 0, done.stdout + done.stderr
    proposals = read_proposals(place)
    assert len({line["signatures"][0] for line in proposals}) == 6
    states = ledger.states()
    assert set(states.values()) == {"complete", "stopped_early"}
    assert len(states) == 12
    for signature in states:
        epochs = [line["epoch"] for line in ledger.folder("trial", signature).read_lines("epochs.jsonl")]
        assert epochs == list(range(1, len(epochs) + 1))  # each once
    shown = optuna.load_study(study_name="tiny", storage=f"sqlite:///{place.ledger}/optuna.db").get_trials()
    assert {trial.state.name for trial in shown} == {"COMPLETE", "PRUNED"}
    assert len(shown) == len(proposals)
    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    trials = [run for run in runs if run.data.tags["robustsweep.kind"] == "trial"]
    assert len(trials) == len(states)
    found = {run.data.tags["robustsweep.signature"]: run.info.status for run in trials}
    assert found == {s: "FINISHED" if state == "complete" else "KILLED" for s, state in states.items()}
    again = place.call("run")
    assert (again.returncode, "settled" in again.stdout) == (0, True), again.stdout + again.stderr
