"""A study whose arms are tuned, stopped by its budget and continued, run as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from orchestrator.analysis.results import load_results
from orchestrator.ledger.ledger import Ledger
from tests.support.command_line import call

#: In half of the candidates spectral decoupling has a weight that allows no logit other than 0; without it, these are
#: the same configuration as the other half.
STUDY = """\
study: tuned
data: {kind: digits, image_size: 8, test_fraction: 0.5}
model: {name: timm/test_resnet, stem: original, input_size: 16}
training: {epochs: 3, batch_size: 32}
evaluation: {shifts: [gaussian_noise], severities: [1]}
factors: {regulariser: [none, spectral_decoupling]}
replicates: 2
tuning:
  space: {regulariser.weight: {choices: [0.001, 10000]}, training.learning_rate: {choices: [0.01, 0.008]}}
  candidates: 4
hypotheses:
- {name: decoupling, claim: It helps., treatment: {regulariser: spectral_decoupling}, control: {regulariser: none},
   direction: higher, smallest_effect: 0.01, over: shifts}
execution: {cache_dir: CACHE}
"""


def read_counts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(folder, "status", "--json", codes=(0, 1)).stdout)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuned")
    (path / "study.yaml").write_text(STUDY.replace("CACHE", str(path / "cache")))
    return path


def test_plan_tells_candidates_and_trials(folder: Path) -> None:
    said = call(folder, "plan", "--no-pilot").stdout
    assert (
        "4 candidates of regulariser.weight, training.learning_rate for every arm and replicate, chosen by validation/"
        "balanced_accuracy" in said
    )
    assert "2 arms × 2 replicates × 4 candidates, 12 trials" in said
    assert "fewer where candidates are one configuration, because a field does not apply: 2 of regulariser=none" in said
    assert "tuning-matched: in each replicate each arm was given 4 candidates of regulariser.weight, training" in said
    assert read_counts(folder)["planned"] == 12


def test_a_study_that_was_stopped_has_no_choice_and_goes_on(folder: Path) -> None:
    call(folder, "run", "--set", "execution.budget={trials: 4}", codes=(4,))
    counts = read_counts(folder)
    assert (counts["complete"], counts["missing"], counts["tuned_replicates"]) == (4, 8, 1)
    ledger = Ledger(str(folder / "results"), "tuned")
    before = load_results(ledger)
    assert before.trials["state"].tolist() == ["complete", "missing", "missing", "missing"]
    assert before.trials["reason"].tolist()[1] == "no choice: 2 of 4 candidates complete"
    assert before.counts == {"planned": 12, "complete": 4, "failed": 0, "interrupted": 0, "missing": 8}

    call(folder, "run")
    results = load_results(ledger)
    assert read_counts(folder)["tuned_replicates"] == 4
    every = results.trained.trials
    assert len(every) == 12
    chosen = every[every["chosen"]]
    assert results.trials["signature"].tolist() == chosen["signature"].tolist()
    weights = chosen[chosen["arm/regulariser"] == "spectral_decoupling"]["tuned/regulariser.weight"]
    assert set(weights) == {"0.001"}
    assert set(results.shifts["signature"]) == set(chosen["signature"])
    bad = every["tuned/regulariser.weight"] == "10000"
    assert every[bad]["validation/balanced_accuracy"].max() < 0.5 < every[~bad]["validation/balanced_accuracy"].min()
    for _, group in every.groupby(["name", "replicate"]):
        best = group["validation/balanced_accuracy"].max()
        assert group[group["chosen"]]["validation/balanced_accuracy"].tolist() == [best]

    report = folder / "results" / "tuned" / "report"
    table = pd.read_csv(report / "trials.csv")
    assert table["chosen"].sum() == 4
    assert len(table) == 12
    assert set(pd.read_csv(report / "shifts.csv")["signature"]) == set(chosen["signature"])
    page = (report / "index.html").read_text()
    assert "What did tuning choose?" in page
    assert "<dt>tuning</dt><dd>tuning-matched: in each replicate each arm was given 4 candidates" in page
    assert "12 trials planned, 4 candidates per replicate." in page


def test_select_names_the_chosen_values(folder: Path) -> None:
    said = call(folder, "select", "--json").stdout
    selected = json.loads(said)
    origin = json.loads((Path(selected["folder"]) / "selection.json").read_text())
    tuned = origin["tuned"]
    assert tuned["training.learning_rate"] in ("0.01", "0.008")
    assert tuned.get("regulariser.weight", "0.001") == "0.001"
    card = (Path(selected["folder"]) / "README.md").read_text()
    assert "(from 0) of 4, the best of this replicate by validation/balanced\\_accuracy" in card
    assert f"learning\\_rate (tuned)**: {tuned['training.learning_rate']}" in card


def test_runs_in_mlflow_tell_candidates_apart(folder: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/results/tuned/mlflow.db")
    experiment = client.get_experiment_by_name("tuned")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`robustsweep.kind` = 'trial'")
    assert len({run.info.run_name for run in runs}) == len(runs) == 12
    of_decoupling = [run for run in runs if run.data.params["regulariser"] == "spectral_decoupling"]
    assert sorted(run.data.tags["robustsweep.candidate"] for run in of_decoupling) == sorted("01230123")
    assert "spectral_decoupling · r1 · c3" in {run.info.run_name for run in runs}
