"""A study of two chains with a step in common, run as a user runs it, and another study that finds its stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.analysis.results import load_results
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.other_studies import find_elsewhere
from orchestrator.study.study_file import load_study
from orchestrator.tracking.projection import project
from tests.support.command_line import call
from trainables.evaluation.metric_tables.stage import SUPERVISED_METRICS
from trainables.storage.checkpoint import load_weights

STUDY = """\
study: chains
data: {kind: digits, image_size: 8, channels: 3}
model: {name: shufflenet_v2_x0_5, input_size: 16}
training: {epochs: 1, batch_size: 64}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors:
  pretraining:
    labels: [{kind: supervised, data: {kind: coloured_digits}, epochs: 2, batch_size: 256}]
    both:
    - {kind: supervised, data: {kind: coloured_digits}, epochs: 2, batch_size: 256}
    - {kind: contrastive, epochs: 1, batch_size: 512, method: {learning_rate: 1e-9}, encoders: 2, transductive: true}
replicates: 2
execution: {cache_dir: CACHE}
"""
FIRST, SECOND = "supervised on coloured_digits from scratch", "simclr on digits from supervised on coloured_digits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chains")
    (path / "study.yaml").write_text(STUDY.replace("CACHE", str(path / "cache")))
    return path


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    return call(folder, "run").stdout


def test_the_plan_draws_the_chain(folder: Path) -> None:
    said = call(folder, "plan", "--no-pilot").stdout
    lines = [line.removeprefix("chains").strip() for line in said.splitlines()]
    start = lines.index("scratch")
    assert lines[start : start + 5] == [
        "scratch",
        "└─ supervised on coloured_digits, 2 epochs: 1 stage, to run",
        "├─ pretraining=labels: 2 trials",
        "└─ simclr on digits, 1 epoch: 2 stages, to run",
        "└─ pretraining=both: 2 trials",
    ]
    told: dict[str, Any] = json.loads(call(folder, "plan", "--no-pilot", "--json").stdout)
    (root,) = told["chains"]
    (first,) = root["following"]
    assert (root["step"], root["stages"], first["step"]) == ("scratch", [], "supervised on coloured_digits")
    assert [stage["encoder"] for stage in first["following"][0]["stages"]] == [0, 1]
    assert told["remarks"] == {"pretraining=both": ["transductive: a pretraining may have seen these images"]}


def test_every_step_starts_from_the_one_before_and_runs_once(folder: Path, output: str) -> None:
    ledger = Ledger(str(folder / "results"), "chains")
    stages = {(record.config["name"], record.config["config"]["encoder"]): record for record in ledger.records("stage")}
    first, zero, one = sorted(stages.values(), key=lambda record: (len(record.config["needs"]), record.config["name"]))
    assert first.config["name"] == FIRST
    assert zero.config["name"] == f"{SECOND} from scratch"
    assert one.config["name"] == f"{SECOND} from scratch, encoder 1"
    assert first.config["needs"] == []
    assert zero.config["needs"] == one.config["needs"] == [first.signature]
    assert first.result is not None
    assert first.result["metrics"].keys() == SUPERVISED_METRICS.keys()
    assert all(
        metric.low <= first.result["metrics"][name] <= metric.high for name, metric in SUPERVISED_METRICS.items()
    )
    shown = project(first)  # its own run in MLflow
    assert shown.tags["robustsweep.kind"] == "stage"
    assert sorted(shown.epochs) == [1, 2]
    assert {"train/loss", "validation/balanced_accuracy"} <= {point.key for point in shown.epochs[2]}
    trials = {
        (r.config["arm"]["pretraining"], r.config["replicate"]): r.config["needs"] for r in ledger.records("trial")
    }
    assert trials == {
        ("labels", 0): [first.signature], ("labels", 1): [first.signature],
        ("both", 0): [zero.signature, first.signature], ("both", 1): [one.signature, first.signature],
    }  # fmt: skip
    results = load_results(ledger)
    assert len(results.complete) == 4
    assert set(results.group_replicates(results.trials).values()) == {0}  # one unit: both share the first step
    before, after = (
        load_weights(ledger.folder("stage", record.signature), "encoder.safetensors")[0] for record in (first, zero)
    )
    moved = (after["conv1.0.weight"] - before["conv1.0.weight"]).norm() / before["conv1.0.weight"].norm()
    assert moved < 1e-4  # the second step hardly moves
    assert "transductive: a pretraining may have seen these images (1 arm)" in output
    page = next((folder / "results" / "chains" / "report").glob("*.html")).read_text()
    assert "Transductive: a pretraining may have seen these images (1 arm)." in page


@pytest.mark.usefixtures("output")
def test_another_study_copies_the_stages_it_finds(folder: Path) -> None:
    options = ("--set", "study=other", "--set", "exclude=[{pretraining: labels}]")
    told = json.loads(call(folder, "plan", *options, "--json", "--no-pilot").stdout)
    assert [stage["state"] for stage in told["stages"]] == ["not needed", "complete in chains", "complete in chains"]
    said = call(folder, "run", *options).stdout
    assert "is complete in chains: it is copied, not run again" in said
    ledger, source = (Ledger(str(folder / "results"), name) for name in ("other", "chains"))
    stage, _ = ledger.records("stage")  # the first step is not needed any more
    assert stage.result is not None
    assert stage.result["found_in"] == project(stage).closing_tags["robustsweep.found_in"] == "chains"
    assert project(stage).last_ms > project(stage).start_ms
    folders = [each.folder("stage", stage.signature) for each in (ledger, source)]
    assert folders[0].read("encoder.safetensors") == folders[1].read("encoder.safetensors")
    assert set(ledger.states(every_byte=True).values()) == {"complete"}
    trials = ledger.records("trial")
    assert len(trials) == 2
    for trial in trials:
        same = source.read("trial", trial.signature)
        assert trial.result is not None
        assert same.result is not None
        assert trial.result["metrics"] == same.result["metrics"]
    page = next((folder / "results" / "other" / "report").glob("*.html")).read_text()
    assert f"{SECOND} from scratch from chains" in page


@pytest.mark.usefixtures("output")
def test_a_stage_that_is_damaged_elsewhere_is_not_found(folder: Path) -> None:
    ledger, third = (Ledger(str(folder / "results"), name) for name in ("chains", "third"))
    prepared = prepare(load_study(folder / "study.yaml", ["study=third"]), storage=str(folder / "results"))
    assert prepared.find_adoptable().keys() == {stage.signature for stage in prepared.plan.stages}
    assert [work.kind for work in prepared.actions.open] == ["trial"] * 4
    stage = prepared.plan.stages[0]  # of which no other study has a copy
    weights = ledger.folder("stage", stage.signature)
    whole = weights.read("encoder.safetensors")
    weights.write("encoder.safetensors", whole[:-1])
    try:
        assert stage.signature not in find_elsewhere(third, prepared.plan.stages)
    finally:
        weights.write("encoder.safetensors", whole)
