"""One YAML file in, a robustness study out: what a user sees and finds."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from orchestrator.analysis.results import load_results, results_sha256
from orchestrator.ledger.derived import TABLES
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.tiny_study import NUM_STAGES, NUM_TRIALS, Place, copy_place, stamps


def ledger_of(place: Place) -> Ledger:
    return Ledger(str(place.storage), "tiny")


# ------------------------------------------------------------------ what the user sees


def test_the_run_is_complete_and_says_where_everything_is(finished_study: FinishedStudy) -> None:
    place, output = finished_study.place, finished_study.output
    assert finished_study.exit_code == 0, output + finished_study.errors
    assert "4 trials and 1 stage; 0 trials complete, 4 trials and 1 stage to run" in output
    assert "4 planned, 4 complete" in output
    assert str(place.ledger / "report/index.html") in output
    assert f"sqlite:///{place.ledger}/mlflow.db" in output
    assert f"robustsweep ui {place.study} --storage {place.storage}" in output


def test_the_log_is_plain_lines_without_noise(finished_study: FinishedStudy) -> None:
    assert finished_study.errors == ""
    assert "\x1b" not in finished_study.output
    for word in ("Warning", "WARNING", "INFO", "Traceback", "ray::", "alembic", "Tune", "object at 0x"):
        assert word not in finished_study.output
    lines = finished_study.output.splitlines()
    for what in (r".* \[\w{8}]: started", r"done \d/5  .* \[\w{8}]  \d+ s"):
        assert sum(bool(re.match(rf"\d\d:\d\d:\d\d {what}", line)) for line in lines) == 5
    scores = r"done \d/5  .* · r[01] \[\w{8}]  \d+ s  val 0\.\d{3}, shifted 0\.\d{3}, best val 0\.\d{3}$"
    assert sum(bool(re.search(scores, line)) for line in lines) == 4
    assert any(re.search(r"epoch \d/3  val/balanced_accuracy 0\.\d{3}$", line) for line in lines)  # one a second


def test_no_process_is_left(finished_study: FinishedStudy) -> None:
    finished_study.place.wait_for_silence()
    assert not (finished_study.place.ledger / "lease.json").exists()


def test_status_counts(finished_study: FinishedStudy) -> None:
    done = finished_study.place.call("status", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "planned": 4, "complete": 4, "running": 0, "failed": 0, "interrupted": 0, "missing": 0,
    }  # fmt: skip


def test_running_again_starts_nothing(finished_study: FinishedStudy, tmp_path: Path) -> None:
    """In a copy, whose lease is not that of the study which another process may be reading."""
    place = copy_place(finished_study.place, tmp_path)
    before = stamps(place)
    again = place.call("run", "--json", "--mlflow", f"sqlite:///{finished_study.place.ledger}/mlflow.db")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["complete"] == NUM_TRIALS
    assert "0 trials and 0 stages to run" in again.stderr
    assert "started" not in again.stderr
    assert stamps(place) == before


# ------------------------------------------------------------------ what lies in the ledger


def test_every_trial_and_stage_is_complete_with_its_files(finished_study: FinishedStudy) -> None:
    ledger = ledger_of(finished_study.place)
    trials, stages = ledger.records("trial"), ledger.records("stage")
    assert (len(trials), len(stages)) == (NUM_TRIALS, NUM_STAGES)
    assert {record.state for record in trials + stages} == {"complete"}
    for trial in trials:
        folder = ledger.folder("trial", trial.signature)
        assert set(folder.children()) >= {"config.json", "epochs.jsonl", "log.txt", "predictions", "result.json"}
        assert set((folder / "predictions").children()) == {"test.npz", "train.npz", "val.npz"}
        assert [line["epoch"] for line in trial.epochs] == [1, 2, 3]
        assert trial.result is not None
        rows = {(row["set"], row["shift"], row["severity"]) for row in trial.result["evaluations"]}
        assert {("test", "identity", 0), ("val", "identity", 0), ("test", "gamma_up", 3)} <= rows
        assert 0.1 < trial.result["metrics"]["id/balanced_accuracy"] <= 1.0
    assert ledger.folder("stage", stages[0].signature).exists("encoder.safetensors")
    needs = Counter(tuple(trial.config["needs"]) for trial in trials)
    assert needs == {(): 2, (stages[0].signature,): 2}


def test_arms_of_a_replicate_saw_the_same_images_and_are_not_the_same(finished_study: FinishedStudy) -> None:
    results = load_results(ledger_of(finished_study.place))
    assert results.trials["robustness/mean_accuracy"].nunique() > 1
    assert results.counts == {"planned": 4, "complete": 4, "failed": 0, "interrupted": 0, "missing": 0}


def test_the_report_is_one_file_with_the_question(finished_study: FinishedStudy) -> None:
    page = (finished_study.place.ledger / "report/index.html").read_text()
    assert "Does strong augmentation help?" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"http", page)
    assert results_sha256(load_results(ledger_of(finished_study.place))) in page


# ------------------------------------------------------------------ what lies in MLflow


class Shown:
    """MLflow's content of the finished study."""

    def __init__(self, place: Place) -> None:
        self.client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
        self.experiments = {found.name: found for found in self.client.search_experiments()}
        self.runs = list(self.client.search_runs([self.experiments["tiny"].experiment_id]))

    def of_kind(self, kind: str) -> list[Any]:
        return [run for run in self.runs if run.data.tags["robustsweep.kind"] == kind]

    def history(self, run: Any, key: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, key)]


@pytest.fixture(scope="module")
def shown(finished_study: FinishedStudy) -> Shown:
    return Shown(finished_study.place)


def test_mlflow_has_one_experiment_a_parent_and_a_run_each(shown: Shown) -> None:
    assert "tiny" in shown.experiments
    assert {kind: len(shown.of_kind(kind)) for kind in ("study", "stage", "trial")} == {
        "study": 1, "stage": NUM_STAGES, "trial": NUM_TRIALS,
    }  # fmt: skip
    assert {run.info.status for run in shown.runs} == {"FINISHED"}
    parent = shown.of_kind("study")[0]
    for run in shown.of_kind("trial") + shown.of_kind("stage"):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_runs_say_what_they_are(shown: Shown, finished_study: FinishedStudy) -> None:
    records = {record.signature: record for record in ledger_of(finished_study.place).records("trial")}
    for run in shown.of_kind("trial"):
        record = records[run.data.tags["robustsweep.signature"]]
        assert run.data.params == record.config["arm"] | {"replicate": "0"}
        levels = " · ".join(part.split("=")[1] for part in record.config["name"].split(", "))
        assert run.data.tags["robustsweep.arm"] == levels
        assert run.info.run_name == f"{levels} · r0"
        config = yaml.safe_load(Path(shown.client.download_artifacts(run.info.run_id, "config.yaml")).read_text())
        assert config["training"]["learning_rate"] == 0.005
        assert config["model"]["name"] == "shufflenet_v2_x0_5"
        files = {file.path for file in shown.client.list_artifacts(run.info.run_id)}
        assert files - {"log.txt"} == {"config.yaml", "predictions.json", "curves.png", "confusion.png"}


def test_metrics_are_laid_out_for_the_compare_views(shown: Shown, finished_study: FinishedStudy) -> None:
    records = {record.signature: record for record in ledger_of(finished_study.place).records("trial")}
    for run in shown.of_kind("trial"):
        result = records[run.data.tags["robustsweep.signature"]].result
        assert result is not None
        for name in (
            "id/balanced_accuracy",
            "robustness/mean_accuracy",
            "robustness/worst_shift_auroc",
            "calibration/ece",
        ):
            assert run.data.metrics[name] == pytest.approx(result["metrics"][name])
        curve = {
            row["severity"]: row["metrics"]["accuracy"]
            for row in result["evaluations"]
            if row["set"] == "test" and row["shift"] in ("identity", "gaussian_noise")
        }
        assert shown.history(run, "shift/gaussian_noise/accuracy") == sorted(curve.items())
        assert list(curve) == [0, 1, 3]
        validation = shown.history(run, "validation/balanced_accuracy")
        assert [step for step, _ in validation] == [1, 2, 3, 4]
        assert validation[-1][1] == result["metrics"]["validation/balanced_accuracy"]
        assert run.data.metrics["validation/balanced_accuracy"] == validation[-1][1]  # of the kept model


def test_the_data_set_is_an_input_and_the_report_an_artifact(shown: Shown) -> None:
    for run in shown.of_kind("trial"):
        (dataset,) = run.inputs.dataset_inputs
        assert dataset.dataset.name == "digits"
    parent = shown.of_kind("study")[0]
    files = {file.path for file in shown.client.list_artifacts(parent.info.run_id)}
    assert files == {"report.html", *TABLES}
    assert parent.data.tags["robustsweep.summary.complete"] == "4"


def test_the_training_curve_of_a_stage_is_there(shown: Shown) -> None:
    (stage,) = shown.of_kind("stage")
    assert [step for step, _ in shown.history(stage, "ssl/loss")] == [1, 2]


# ------------------------------------------------------------------ changing the study


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_study_grows_fails_is_stopped_and_goes_on(finished_study: FinishedStudy, tmp_path: Path) -> None:
    """Two new arms, one of which diverges; SIGTERM in the middle; then to the end; then once more on request."""
    place = copy_place(finished_study.place, tmp_path)
    old = [record.signature for record in ledger_of(place).records("trial")]
    before = stamps(place)
    grown = place.study.read_text().replace(
        "  augmentation: [none, strong]\n",
        "  augmentation: [none, strong, trivialaugment]\n"
        "conditions:\n"
        "  - when: {pretraining: contrastive, augmentation: trivialaugment}\n"
        "    set: {training.learning_rate: 1.0e+6, training.optimiser: sgd}\n",
    )
    place.study.write_text(grown)

    planned = json.loads(place.call("plan", "--json").stdout)
    assert planned["counts"] == {
        "planned": 6, "complete": 4, "to_resume": 0, "to_run": 2, "failed": 0, "stages": 1, "stages_open": 0,
    }  # fmt: skip
    assert planned["estimate"]["source"] == "4 finished trials"
    status = place.call("status", "--json")
    assert "differs from the one that was last run" in status.stderr

    stopped = place.start("run")
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if ": epoch " in line:
            stopped.send_signal(signal.SIGINT)
            break
    rest, errors = stopped.communicate(timeout=200)
    assert stopped.returncode == 1, rest + errors
    assert "stopping: running trials go on from their last epoch" in rest
    assert f"go on with: robustsweep run {place.study} --storage {place.storage}\n" in rest
    place.wait_for_silence()

    done = place.call("run")
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    assert "1 failed, 0 interrupted, 0 missing of 6 trials" in done.stdout
    assert "--retry-failed" in done.stdout
    assert stamps(place, old) == {name: stamp for name, stamp in before.items() if name.split("/")[1] in old}
    counts = json.loads(place.call("status", "--json").stdout)
    assert (counts["complete"], counts["failed"]) == (5, 1)
    page = (place.ledger / "report/index.html").read_text()
    assert "diverged" in page
    (failed,) = (record for record in ledger_of(place).records("trial") if record.state == "failed")
    assert failed.failure is not None
    assert failed.failure["reason"] == "diverged"

    untouched = place.call("run")
    assert untouched.returncode == 1
    assert "0 trials and 0 stages to run" in untouched.stdout
    assert "failed before 1 trial" in untouched.stdout

    again = place.call("run", "--retry-failed", "--set", "execution.max_concurrent_trials=1")
    assert again.returncode == 1
    (retried,) = (record for record in ledger_of(place).records("trial") if record.state == "failed")
    assert retried.failure is not None
    assert retried.failure["timestamp_ms"] > failed.failure["timestamp_ms"]
    assert stamps(place, old) == {name: stamp for name, stamp in before.items() if name.split("/")[1] in old}
    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    statuses = Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))
    assert statuses == {"FINISHED": 6, "FAILED": 2}  # the diverged trial, and the study that is not complete
