"""A Ray cluster loses a node, its head, and its driver; the storage that its nodes share stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.processes import wait_until
from tests.support.ray_clusters import Machines, Node, running_cluster
from tests.support.tiny_study import Place, make_place, stamps

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def place(finished_study: FinishedStudy, tmp_path: Path) -> Place:
    return make_place(tmp_path, finished_study.place.study.parent / "cache")


@pytest.fixture
def machines(place: Place) -> Iterator[Machines]:
    with running_cluster(place.marker) as machines:
        yield machines


def epochs_of(place: Place) -> dict[str, list[bytes]]:
    """Return signature → lines that are in the ledger for good."""
    files = place.ledger.glob("*/*/epochs.jsonl")
    return {path.parent.name: [line for line in path.read_bytes().splitlines(keepends=True) if line] for path in files}


def complete_of(place: Place) -> list[str]:
    states = Ledger(str(place.storage), "tiny").states()
    return [signature for signature, state in states.items() if state == "complete"]


def wait_for_a_trial(place: Place, process: subprocess.Popen[str], nodes: list[Node]) -> tuple[Node, str]:
    """Wait until a trial that has an epoch behind it trains on one of the nodes; return both."""
    found: list[tuple[Node, str]] = []

    def look() -> bool:
        running, epochs = place.training(), epochs_of(place)
        for node in nodes:
            here = node.processes()
            found.extend(
                (node, signature)
                for signature, pid in running.items()
                if pid in here and (place.ledger / "trials" / signature).exists() and epochs.get(signature)
            )
        return bool(found) or process.poll() is not None

    wait_until(look, "a trial has an epoch behind it", seconds=200)
    return found[0]


def check_whole(place: Place, finished_study: FinishedStudy) -> None:
    """Everything is as if nothing had happened, in the ledger and in MLflow."""
    ledger, whole = (Ledger(str(each.storage), "tiny") for each in (place, finished_study.place))
    assert results_sha256(load_results(ledger)) == results_sha256(load_results(whole))
    for folder in (place.ledger / "trials").iterdir():
        lines = (folder / "epochs.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags.get("robustsweep.signature") for run in runs}) == len(runs)
    for run in runs:
        if run.data.tags["robustsweep.kind"] == "trial":
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert sorted(point.step for point in history) == [1, 2, 3]


def check_goes_on(place: Place, finished_study: FinishedStudy, address: str) -> None:
    """Run the study again on a cluster: what was there stays, and it ends as an undisturbed one."""
    before, done = epochs_of(place), stamps(place, complete_of(place))
    again = place.call("run", "--address", address)
    assert again.returncode == 0, again.stdout + again.stderr
    after = epochs_of(place)
    assert all(after[each][: len(lines)] == lines for each, lines in before.items())
    assert done.items() <= stamps(place).items()
    check_whole(place, finished_study)


def test_trials_of_a_lost_node_go_on_elsewhere(finished_study: FinishedStudy, place: Place, machines: Machines) -> None:
    process = place.start("run", "--address", machines.address)
    node, signature = wait_for_a_trial(place, process, machines.workers)
    machines.lose(node)
    wait_until(lambda: not node.processes(), "nothing is left of the node: no actor, no fork server, no trial")
    before, done = epochs_of(place), stamps(place, complete_of(place))
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, out + errors
    assert "Traceback" not in out + errors
    assert "raylet" not in out + errors
    after = epochs_of(place)
    assert all(after[each][: len(lines)] == lines for each, lines in before.items())
    assert done.items() <= stamps(place).items()
    assert any(" lost  " in line and f"[{signature[:8]}]" in line for line in out.splitlines())
    check_whole(place, finished_study)


@pytest.mark.parametrize("how", ["head", "raylet of the driver"])
def test_a_study_that_loses_its_head_goes_on_with_another(
    finished_study: FinishedStudy, place: Place, machines: Machines, how: str
) -> None:
    """The driver is on the machine of the head, as on most clusters, and joined through its raylet."""
    process = place.start("run", "--address", machines.address)
    wait_for_a_trial(place, process, machines.workers)
    if how == "head":
        machines.head.send(signal.SIGKILL)
    else:
        for pid in place.training().values():
            os.kill(pid, signal.SIGSTOP)  # or all is done before anybody misses the raylet
        machines.head.kill_raylet()
    out, errors = process.communicate(timeout=120)  # it does not hang
    assert process.returncode == 3, out + errors
    assert "error: lost Ray: " in errors
    assert f"go on with, or with the --address of another head: robustsweep run {place.study}" in out
    assert "Traceback" not in out + errors
    assert not (place.ledger / "lease.json").exists()
    machines.end()
    with running_cluster(place.marker) as others:
        check_goes_on(place, finished_study, others.address)


def test_a_driver_that_is_killed_leaves_nothing_on_the_nodes(
    finished_study: FinishedStudy, place: Place, machines: Machines
) -> None:
    process = place.start("run", "--address", machines.address)
    wait_for_a_trial(place, process, machines.workers)
    process.kill()
    process.communicate()
    wait_until(lambda: not place.training(), "no trial is left on any node")
    wait_until(lambda: not any("child_process" in line for line in place.survivors().values()), "nor a fork server")
    check_goes_on(place, finished_study, machines.address)
