from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.paths import ROOT
from tests.support.sigkill import MORE_POINTS, POINTS, STAGES
from tests.support.tiny_configs import tiny_stage, tiny_trial
from trainables import trial
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset
from trainables.data.load import load_dataset
from trainables.errors import CheckpointError, ConfigError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.detection.summary import summarise_detection
from trainables.evaluation.metric_tables.stage import STAGE_METRICS
from trainables.evaluation.predictions import load_predictions
from trainables.evaluation.representation.alignment_uniformity import compute_uniformity
from trainables.evaluation.robustness import summarise_rows
from trainables.evaluation.validation_fit import fit_on_validation
from trainables.evaluation_config import EvaluationConfig
from trainables.stage import run_stage
from trainables.storage.folder import Folder
from trainables.trial import build_initial_model, prepare_process, run_trial


@pytest.fixture(scope="module")
def digits(cache_dir: Path) -> Dataset:
    return load_dataset(tiny_trial().data, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def execution(cache_dir: Path) -> Execution:
    return Execution(device="cpu", cache_dir=cache_dir)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, execution: Execution
) -> tuple[Folder, dict[str, Any], list[Any]]:
    """One finished trial: its folder, what it returned and what it reported."""
    folder, events = Folder(tmp_path_factory.mktemp("trial")), []
    config = tiny_trial(evaluation={"shifts": ["gaussian_noise", "saturation"]})
    result = run_trial(config, signature="mine", folder=folder, execution=execution, report=events.append)
    return folder, result, events


@pytest.fixture(scope="module")
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The folders that sigkill.py leaves behind, of the cases and points that were selected."""
    root = tmp_path_factory.mktemp("killed")
    params = [item.callspec.params for item in request.session.items if "killed" in getattr(item, "fixturenames", ())]
    words = [f"{each['case']}/{each['point']}" for each in params]
    command = [sys.executable, "-m", "tests.support.sigkill", str(cache_dir), str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return root


TIMES = {"timestamp_ms", "seconds", "images_per_second"}


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    measured = {name for name in record["metrics"] if name.startswith("system/")}
    metrics = {name: value for name, value in record["metrics"].items() if name not in TIMES | measured}
    return {"epoch": record["epoch"], "metrics": metrics}


def list_points() -> list[object]:
    """Return cases with their points; those that take other cases' way once more are long."""
    some = [(case, point) for case, points in POINTS.items() for point in points]
    more = [(case, point) for case, points in MORE_POINTS.items() for point in points]
    return [*some, *(pytest.param(*each, marks=pytest.mark.long) for each in more)]


@pytest.mark.parametrize(("case", "point"), list_points())
def test_killed_and_called_again_equals_uninterrupted(killed: Path, case: str, point: str) -> None:
    whole, resumed = killed / case / "whole", killed / case / point
    assert sorted(path.name for path in resumed.iterdir()) == sorted(path.name for path in whole.iterdir())
    weights = "encoder.safetensors" if case in STAGES else "model.safetensors"
    expected, found = (load_file(folder / weights) for folder in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    if case not in STAGES:  # the encoder's file names its signature, which is the same here too
        for name in ("val", "test"):
            first, second = (load_predictions(Folder(folder), name) for folder in (whole, resumed))
            assert np.array_equal(first.logits, second.logits)
            assert np.array_equal(first.features, second.features)
            assert first.scores.keys() == second.scores.keys()
            assert all(np.array_equal(first.scores[score], second.scores[score]) for score in first.scores)
            assert len(first.scores) == (7 if case == "confidnet" else 0)
    assert (whole / weights).read_bytes() == (resumed / weights).read_bytes()
    lines = [[without_times(line) for line in Folder(folder).read_lines("epochs.jsonl")] for folder in (whole, resumed)]
    assert lines[0] == lines[1]
    assert len(lines[0]) == (3 if case in STAGES else 4)
    results = [Folder(folder).read_json("result.json") for folder in (whole, resumed)]
    for key in ("metrics", "evaluations", "undefined", "epochs", "best_epoch", "checkpoint_sha256"):
        assert results[0].get(key) == results[1].get(key), key


def test_the_epoch_can_be_chosen_on_shifted_validation(tmp_path: Path, execution: Execution) -> None:
    """What chose it is the headline number of the chosen weights, which is computed from stored predictions."""
    by = "robustness/mean_balanced_accuracy"
    config = tiny_trial(
        training={"epochs": 4, "select_by": by, "label_fraction": 0.4, "learning_rate": 0.01},
        evaluation={"shifts": [], "validation_shifts": ["contrast_down", "gaussian_noise"]},
    )
    folder = Folder(tmp_path)
    result = run_trial(config, signature="mine", folder=folder, execution=execution)
    values = [record["metrics"][f"val/{by}"] for record in folder.read_lines("epochs.jsonl")]
    assert len(set(values)) == len(values) == 4
    assert result["best_epoch"] == 1 + int(np.argmax(values))
    assert result["metrics"][f"validation/{by}"] == pytest.approx(max(values))
    assert result["metrics"]["validation/balanced_accuracy"] > max(values)
    with pytest.raises(ValueError, match=r"found robustness/mean_auroc, and no shift in evaluation\.validation_shifts"):
        tiny_trial(training={"select_by": "robustness/mean_auroc"})


def test_the_folder_holds_what_the_ledger_expects(finished: tuple[Folder, dict[str, Any], list[Any]]) -> None:
    folder, result, _ = finished
    assert list(folder.children()) == [
        "detection.json", "epochs.jsonl", "model.safetensors", "predictions", "representation.json", "result.json"
    ]  # fmt: skip
    assert folder.read_json("result.json") == json.loads(json.dumps(result))
    assert result["signature"] == "mine"
    assert result["status"] == "complete"
    assert result["epochs"] == 2
    assert result["best_epoch"] in (1, 2)
    seconds = (result["finished_ms"] - result["started_ms"]) / 1000  # by the date; the duration by the other clock
    assert 0 < seconds == pytest.approx(result["duration_seconds"], abs=0.05)
    assert result["environment"].keys() >= {"device", "precision", "torch", "torchvision", "python", "num_threads"}
    assert result["environment"]["precision"] == "float32"
    assert result["num_parameters"] > 300_000
    assert result["peak_rss_mib"] > 50
    assert result["cpu_utilization_percentage"] > 0
    assert result["checkpoint_sha256"] == hashlib.sha256(folder.read("model.safetensors")).hexdigest()
    epochs = folder.read_lines("epochs.jsonl")
    assert [record["epoch"] for record in epochs] == [1, 2]
    expected = {
        "train/loss",
        "val/loss",
        "val/accuracy",
        "val/balanced_accuracy",
        "val/auroc",
        "learning_rate",
        "seconds",
    }
    assert epochs[0]["metrics"].keys() >= expected | {"images_per_second"}


def test_grey_saturation_is_left_out_of_the_mean_and_said(finished: tuple[Folder, dict[str, Any], list[Any]]) -> None:
    _, result, _ = finished
    assert "shift/saturation" in result["undefined"]
    rows = [row for row in result["evaluations"] if row["set"] == "test"]
    assert [(row["shift"], row["severity"]) for row in rows] == [
        ("identity", 0), ("gaussian_noise", 1), ("gaussian_noise", 5)
    ]  # fmt: skip
    mean = np.mean([row["metrics"]["accuracy"] for row in rows[1:]])
    assert result["metrics"]["robustness/mean_accuracy"] == mean


def test_metrics_are_those_of_the_stored_predictions(
    finished: tuple[Folder, dict[str, Any], list[Any]], digits: Dataset
) -> None:
    folder, result, _ = finished
    validation = load_predictions(folder, "val")
    fit = fit_on_validation(validation.of("identity/0"), validation.labels)
    assert result["validation_fit"] == fit.as_json()
    for row in result["evaluations"]:
        stored = load_predictions(folder, row["set"])
        logits = stored.of(f"{row['shift']}/{row['severity']}")
        assert row["metrics"] == compute_metrics(logits, stored.labels, fit=fit).values
        assert row["num_images"] == len(digits.splits[row["set"]])
        assert stored.ids.tolist() == digits.splits[row["set"]].ids.tolist()
    scores = EvaluationConfig().confidence_scores
    detection = summarise_detection(folder, ["val", "test", "train"], scores=scores, roles={})
    assert {"failure/msr/augrc", "failure/energy/mean_shifted_augrc"} <= detection.metrics.keys()
    features = load_predictions(folder, "test").features
    assert features is not None
    expected = compute_uniformity(features)
    assert result["metrics"]["representation/uniformity"] == pytest.approx(expected)
    stored = {name: value for name, value in result["metrics"].items() if not name.startswith("representation/")}
    assert stored == summarise_rows(result["evaluations"]) | detection.metrics
    assert json.loads(folder.read("detection.json")) == detection.as_json()


def test_progress_is_reported(finished: tuple[Folder, dict[str, Any], list[Any]]) -> None:
    folder, result, events = finished
    assert events[0] == {"event": "started", "epochs": 2}
    epochs = [{key: event[key] for key in event if key != "event"} for event in events if event["event"] == "epoch"]
    assert epochs == folder.read_lines("epochs.jsonl")
    assert events[-2] == {"event": "evaluation", "done": 5, "total": 5}
    scores = ("validation/balanced_accuracy", "robustness/mean_balanced_accuracy")
    assert events[-1] == {"event": "scores", "metrics": {name: result["metrics"][name] for name in scores}}


def test_called_again_it_evaluates_again_and_changes_nothing(
    finished: tuple[Folder, dict[str, Any], list[Any]], execution: Execution
) -> None:
    folder, result, _ = finished
    weights, events = folder.read("model.safetensors"), []
    config = tiny_trial(evaluation={"shifts": ["gaussian_noise", "saturation"]})
    again = run_trial(config, signature="mine", folder=folder, execution=execution, report=events.append)
    assert folder.read("model.safetensors") == weights
    assert not [event for event in events if event["event"] == "epoch"]
    for key in ("metrics", "evaluations", "epochs", "best_epoch", "checkpoint_sha256"):
        assert again[key] == result[key]
    with pytest.raises(CheckpointError, match=r"model.safetensors in .* written by mine, expected other"):
        run_trial(config, signature="other", folder=folder, execution=execution)


def test_test_images_are_never_read_during_training(
    tmp_path: Path, execution: Execution, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trap:
        shape, dtype = digits.splits["test"].images.shape, digits.splits["test"].images.dtype
        ndim = len(shape)

        def __getitem__(self, rows: object) -> None:
            raise AssertionError("test images were read")

        __array__ = __getitem__

    test = digits.splits["test"]
    trapped = type(test)("test", Trap(), test.labels, test.ids, test.groups, test.sites)  # type: ignore[arg-type]
    data = Dataset("digits", digits.classes, digits.fingerprint, {**digits.splits, "test": trapped}, {})
    monkeypatch.setattr(trial, "load_evaluated", lambda *args, **kwargs: data)
    with pytest.raises(AssertionError, match="test images were read"):
        run_trial(tiny_trial(), signature="mine", folder=Folder(tmp_path), execution=execution)
    assert (tmp_path / "model.safetensors").exists()  # the trap closed in the evaluation, after training
    assert len(Folder(tmp_path).read_lines("epochs.jsonl")) == 2


def test_a_wrong_shift_name_is_found_before_training(tmp_path: Path, execution: Execution) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        run_trial(
            tiny_trial(evaluation={"shifts": ["gausian_noise"]}),
            signature="mine",
            folder=Folder(tmp_path),
            execution=execution,
        )
    assert not list(tmp_path.iterdir())


def initial(config: TrialConfig, digits: Dataset) -> dict[str, torch.Tensor]:
    return build_initial_model(config, digits, encoder=None).backbone.state_dict()


def test_arms_of_a_replicate_start_from_the_same_weights(digits: Dataset) -> None:
    plain = initial(tiny_trial(), digits)
    for arm in (
        {"augmentation": {"kind": "strong"}},
        {"regulariser": {"kind": "mixup"}},
        {"regulariser": {"kind": "dropout"}},
        {"training": {"learning_rate": 0.5}},
    ):
        other = initial(tiny_trial(**arm), digits)
        assert all(torch.equal(a, b) for a, b in zip(plain.values(), other.values(), strict=True)), arm
    assert not torch.equal(plain["fc.weight"], initial(tiny_trial(replicate=1), digits)["fc.weight"])
    assert not torch.equal(plain["fc.weight"], initial(tiny_trial(seed=1), digits)["fc.weight"])


def test_imagenet_shares_the_head_and_the_random_numbers_of_training(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    def load(name: str, config: object) -> dict[str, torch.Tensor]:
        torch.rand(7)  # building a network draws
        return models.get_model(name, weights=None).state_dict()

    scratch = initial(tiny_trial(), digits)
    dropout_draws = torch.rand(5)
    monkeypatch.setattr(trial, "load_imagenet", load)
    pretrained = initial(tiny_trial(pretraining={"kind": "imagenet"}), digits)
    assert torch.equal(torch.rand(5), dropout_draws)
    assert torch.equal(scratch["fc.weight"], pretrained["fc.weight"])
    assert not torch.equal(scratch["conv5.0.weight"], pretrained["conv5.0.weight"])


def test_a_trial_starts_from_its_encoder(tmp_path: Path, execution: Execution, digits: Dataset) -> None:
    config = tiny_trial(pretraining={"kind": "contrastive"})
    with pytest.raises(ConfigError, match="run its stage first"):
        build_initial_model(config, digits, encoder=Folder(tmp_path))
    stage = Folder(tmp_path / "stage")
    result = run_stage(tiny_stage(epochs=1), signature="up", folder=stage, execution=execution)
    assert result["metrics"].keys() == {name.replace("ssl/", "ssl/final_") for name in STAGE_METRICS}
    assert result["collapse"] == {"verdict": "none", "epochs": []}
    assert result["status"] == "complete"
    assert result["epochs"] == 1
    assert list(stage.children()) == ["encoder.safetensors", "epochs.jsonl", "result.json"]
    line = stage.read_lines("epochs.jsonl")[0]
    usage = {"system/cpu_utilization_percentage", "system/rss_mib"}
    assert line["metrics"].keys() == {"learning_rate", "seconds"} | STAGE_METRICS.keys() | usage
    state = build_initial_model(config, digits, encoder=stage).backbone.state_dict()
    encoder = load_file(tmp_path / "stage" / "encoder.safetensors")
    scratch = initial(tiny_trial(), digits)
    assert all(torch.equal(state[name], value) for name, value in encoder.items())
    assert torch.equal(state["fc.weight"], scratch["fc.weight"])
    assert not torch.equal(state["conv5.0.weight"], scratch["conv5.0.weight"])
    stage.write("encoder.safetensors", stage.read("encoder.safetensors")[:-1])
    with pytest.raises(CheckpointError, match=r"encoder.safetensors .* damaged"):
        build_initial_model(config, digits, encoder=stage)


@pytest.mark.parametrize(
    ("device", "message"), [("gpu9", "found 'gpu9', expected auto"), ("cuda", "torch sees no GPU")]
)
def test_an_impossible_device_is_refused(device: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        prepare_process(Execution(device=device))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs a system with CPU affinity")
def test_the_cores_are_those_that_the_process_may_use(
    tmp_path: Path, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    config = tiny_trial(evaluation={"shifts": []}, training={"epochs": 1})
    result = run_trial(config, signature="s", folder=Folder(tmp_path), execution=execution, report=lambda event: None)
    assert result["environment"]["num_cpus"] == 1


def test_threads_are_the_trials_share(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    assert prepare_process(Execution(device="cpu", num_threads=3)).type == "cpu"
    assert seen == [3]


def test_science_does_not_load_the_orchestration_nor_what_it_may_not_need() -> None:
    code = (
        "import sys, trainables.trial, trainables.pretraining.contrastive;"
        "print([n for n in ('ray', 'mlflow', 'orchestrator', 'optuna', 'lightly', 'timm', 'torchvision', 'scipy',"
        " 'sklearn', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_a_clock_that_is_set_back_changes_no_duration(
    digits: Dataset, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, reads = time.time, iter(range(10_000))
    monkeypatch.setattr(time, "time", lambda: really() - 7200.0 * (next(reads) > 0))  # after the first look at it
    began = time.monotonic()
    execution = Execution(device="cpu", cache_dir=cache_dir)
    result = run_trial(tiny_trial(), signature="s", folder=Folder(tmp_path), execution=execution)
    assert 0 < result["duration_seconds"] <= time.monotonic() - began
    assert result["finished_ms"] < result["started_ms"]
