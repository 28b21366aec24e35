"""A segmentation from its config to its files, on drawn discs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainables.config import Execution, StageConfig, TrialConfig
from trainables.data.foreign import load_evaluated
from trainables.data.load import load_dataset
from trainables.errors import ConfigError
from trainables.evaluation.segmentation.cases import measure_cases, summarise_cases
from trainables.evaluation.segmentation.stored import load_segmented
from trainables.models.segmenter import Segmenter
from trainables.pilot import time_trial
from trainables.stage import run_stage
from trainables.storage.folder import Folder
from trainables.tasks.find import find_task
from trainables.training.acceleration import default_choice
from trainables.training.segmentation.learner import SegmentationLearner
from trainables.trial import build_initial_model, run_trial

NETWORK = "timm/test_resnet"


def make_trial(**sections: Any) -> TrialConfig:
    """Return a trial on CT-like discs of 32 px that takes a few seconds; sections are merged into it."""
    values: dict[str, Any] = {
        "task": {"kind": "segmentation", "depth": 3, "width": 16, "patch_size": 24, "patches_per_epoch": 32},
        "data": {"kind": "organs", "organ": "ct", "image_size": 32, "num_images": 40},
        "model": {"name": NETWORK},
        "training": {"epochs": 10, "batch_size": 8, "learning_rate": 5e-3},
        "augmentation": {"kind": "strong", "strength": 0.2},
        "evaluation": {
            "shifts": ["gaussian_noise"],
            "severities": [3],
            "foreign": {"digits": {"data": {"kind": "digits", "test_fraction": 0.02}}},
        },
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return TrialConfig.model_validate(values)


@pytest.fixture(scope="module")
def execution(cache_dir: Path) -> Execution:
    return Execution(device="cpu", cache_dir=cache_dir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, execution: Execution) -> tuple[Folder, dict[str, Any]]:
    """One finished trial: its folder and what it returned."""
    folder = Folder(tmp_path_factory.mktemp("segmentation"))
    return folder, run_trial(make_trial(), signature="mine", folder=folder, execution=execution)


def test_metrics_are_those_of_the_stored_predictions(
    finished: tuple[Folder, dict[str, Any]], execution: Execution
) -> None:
    folder, result = finished
    stored = load_segmented(folder, "test")
    data = load_dataset(make_trial().data, cache_dir=execution.cache_dir)
    test = data.splits["test"]
    assert stored.predicted is not None
    assert test.targets is not None
    cases = measure_cases(
        stored.predicted,
        np.asarray(test.targets),
        classes=[(index, name) for index, name in enumerate(data.classes) if index],
        spacing=np.ones((len(test), 2)),
        tolerance_mm=2.0,
    )
    expected = summarise_cases(cases).metrics.values
    for name in ("dice", "iou", "nsd", "hd95"):
        assert result["metrics"][f"id/{name}"] == pytest.approx(expected[name])
    assert result["metrics"]["robustness/mean_dice"] == result["metrics"]["robustness/worst_cell_dice"]
    assert result["evaluations"][1]["set"] == "test"
    assert {f"cases/{name}.npz" for name in ("train", "val", "test", "digits")} <= set(result["files"])


def test_of_training_images_the_layers_alone_are_kept(finished: tuple[Folder, dict[str, Any]]) -> None:
    training, validation = (load_segmented(finished[0], name) for name in ("train", "val"))
    assert set(training.layers) == set(validation.layers)
    assert {name: len(values) for name, values in training.layers.items()} == dict.fromkeys(
        training.layers, len(training.ids)
    )
    assert training.predicted is None
    assert not training.metrics


def test_dropout_in_evaluation_gives_scores_and_changes_nothing_else(tmp_path: Path, execution: Execution) -> None:
    folders = [Folder(tmp_path / name) for name in ("plain", "drawn")]
    settings: dict[str, Any] = {"regulariser": {"kind": "dropout", "probability": 0.5}, "training": {"epochs": 1}}
    drawn = {**settings, "evaluation": {"mc_dropout": 3}}
    plain, result = (
        run_trial(make_trial(**each), signature="mine", folder=folder, execution=execution)
        for each, folder in zip((settings, drawn), folders, strict=True)
    )
    of_draws = {name for name in result["metrics"] if "mc_dropout" in name}
    assert "failure/mc_dropout_entropy.foreground/augrc" in of_draws
    assert {name: result["metrics"][name] for name in plain["metrics"]} == plain["metrics"]
    assert set(result["metrics"]) == set(plain["metrics"]) | of_draws
    stored = load_segmented(folders[1], "test")
    assert stored.scores["mc_dropout_mutual_information/image"].shape == (2, len(stored.ids))
    assert (stored.scores["mc_dropout_mutual_information/image"] < 0).all()
    again = run_trial(make_trial(**drawn), signature="mine", folder=folders[1], execution=execution)
    assert again["files"] == result["files"]


def test_a_trial_with_draws_is_timed(execution: Execution) -> None:
    config = make_trial(regulariser={"kind": "dropout", "probability": 0.5}, evaluation={"mc_dropout": 2})
    timings = time_trial(config, execution, max_seconds=1.0)
    assert timings.epoch_seconds > 0.0
    assert timings.evaluation_seconds > 0.0
    data = load_evaluated(config.data, config.evaluation, cache_dir=execution.cache_dir)
    numbers = {name: len(images) for name, images in data.splits.items()}
    foreign = sum(map(len, data.ood.values()))
    once = find_task(config.task).count_passes(data, config)
    assert once == sum(numbers.values()) + 2 * foreign  # the layers of unshifted images have a pass of their own
    whole = make_trial(task={"inference": "whole"})
    assert find_task(whole.task).count_passes(data, whole) == numbers["train"] + foreign


def test_it_learns(finished: tuple[Folder, dict[str, Any]]) -> None:
    """Everything foreground has a Dice of .27 or less here, random weights one of about .3."""
    folder, result = finished
    dice = [epoch["metrics"]["val/dice"] for epoch in folder.read_lines("epochs.jsonl")]
    assert result["metrics"]["validation/dice"] == pytest.approx(max(dice), abs=1e-6)
    assert max(dice) > 0.42


def test_interrupted_and_continued_it_is_the_same(
    finished: tuple[Folder, dict[str, Any]], tmp_path: Path, execution: Execution
) -> None:
    folder, _ = finished

    class InterruptedHereError(Exception):
        pass

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 6:
            raise InterruptedHereError

    again = Folder(tmp_path / "again")
    with pytest.raises(InterruptedHereError):
        run_trial(make_trial(), signature="mine", folder=again, execution=execution, report=interrupt)
    run_trial(make_trial(), signature="mine", folder=again, execution=execution)
    whole, parts = (load_file(Path(each.uri) / "model.safetensors") for each in (folder, again))
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_a_transfer_hands_on_encoder_and_decoder(tmp_path: Path, execution: Execution) -> None:
    other = {"kind": "organs", "organ": "ultrasound", "image_size": 32, "num_images": 40}
    config = make_trial(pretraining={"kind": "supervised", "data": other, "epochs": 1, "batch_size": 8}, encoder=0)
    stage = StageConfig(
        kind="supervised", data=config.pretraining.data, task=config.task, model=config.model,
        pretraining=config.pretraining,
    )  # fmt: skip
    folder = Folder(tmp_path / "stage")
    run_stage(stage, signature="stage", folder=folder, execution=execution)
    data = load_dataset(config.data, cache_dir=execution.cache_dir)
    model = build_initial_model(config, data, encoder=folder)
    trained = load_file(tmp_path / "stage" / "encoder.safetensors")
    state = model.backbone.state_dict()
    assert any(name.startswith("decoder.") for name in trained)
    assert not any(name.startswith("segmentation_head.") for name in trained)
    assert all(np.array_equal(state[name], value) for name, value in trained.items())


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"kind": "digits"}}, "whose images have one class each"),
        ({"regulariser": {"kind": "mixup"}}, "found mixup with task: segmentation"),
        ({"training": {"class_weights": "balanced"}}, "training.class_weights: found it with task: segmentation"),
        ({"evaluation": {"per_class": True}}, "evaluation.per_class"),
        ({"evaluation": {"store_features": False}}, "evaluation.store_features"),
        ({"evaluation": {"confidence_scores": ["msr"]}}, "evaluation.confidence_scores"),
        ({"training": {"backbone_learning_rate_factor": 0}}, "training.backbone_learning_rate_factor: 0"),
        ({"task": {"patch_size": 40}}, "task.patch_size: found 40, and the images are stored at 32 px"),
        ({"regulariser": {"kind": "spectral_decoupling", "group_by": "site"}}, "regulariser.group_by: found site"),
        (
            {"regulariser": {"kind": "label_smoothing"}, "task": {"loss": {"kind": "focal"}}},
            "label_smoothing with task.loss: focal",
        ),
        ({"augmentation": {"kind": "augmix"}}, "augmix"),
    ],
)
def test_what_means_nothing_for_pixels_is_refused(sections: dict[str, Any], message: str, execution: Execution) -> None:
    config = (
        make_trial(**sections)
        if "data" not in sections
        else make_trial().model_copy(update={"data": TrialConfig.model_validate(sections).data})
    )
    data = load_dataset(config.data, cache_dir=execution.cache_dir)
    with pytest.raises(ConfigError, match=message):
        find_task(config.task).check(config, data)


def test_a_step_is_as_long_as_clipping_allows_at_the_point_of_sam(execution: Execution) -> None:
    """Plain gradient descent at a rate of .1 with gradients cut to a norm of .01 moves the weights by .001."""
    training = {"optimiser": "sgd", "momentum": 0.0, "learning_rate": 0.1, "gradient_clip_norm": 0.01}
    moves, losses = {}, {}
    for kind in ("none", "sam"):
        config = make_trial(training=training, regulariser={"kind": kind})
        data = load_dataset(config.data, cache_dir=execution.cache_dir)
        model = build_initial_model(config, data, encoder=None)
        assert isinstance(model, Segmenter)
        choice = default_choice(config.model, model, torch.float32, torch.device("cpu"))
        learner = SegmentationLearner(model, data, config, choice)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        terms = learner.run(next(learner.batches(1)), 0, epoch=1, index=0)
        moves[kind] = torch.cat(
            [(weight.detach() - before[name]).flatten() for name, weight in model.named_parameters()]
        )
        losses[kind] = terms
        assert float(moves[kind].norm()) == pytest.approx(0.001, rel=1e-3)
    assert losses["none"]["loss"] == losses["sam"]["loss"]  # of the same weights and patches
    assert float(losses["sam"]["sharpness"]) > 0
    cosine = float(torch.nn.functional.cosine_similarity(moves["none"], moves["sam"], dim=0))
    assert 0 < cosine < 0.9999


def test_a_batch_of_one_patch_that_cannot_be_normalised_is_refused(execution: Execution) -> None:
    config = make_trial(task={"patch_size": 8}, training={"batch_size": 1})
    data = load_dataset(config.data, cache_dir=execution.cache_dir)
    model = build_initial_model(config, data, encoder=None)
    assert isinstance(model, Segmenter)
    choice = default_choice(config.model, model, torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigError, match="found batches of one patch of 8 px"):
        SegmentationLearner(model, data, config, choice)


def test_the_epoch_is_chosen_by_dice() -> None:
    assert make_trial().training.select_by == "dice"
    with pytest.raises(
        ValueError, match="select_by: found accuracy with task: segmentation; expected one of dice, loss"
    ):
        make_trial(training={"select_by": "accuracy"})
    with pytest.raises(ValueError, match="select_by: found dice with task: classification"):
        TrialConfig.model_validate({"training": {"select_by": "dice"}})


def test_a_step_names_one_of_several_data_sets() -> None:
    organ = {"kind": "organs", "num_images": 40}
    data = {"kind": "datasets", "image_size": 32, "datasets": {"a": organ, "b": {**organ, "seed": 1}}}
    config = TrialConfig.model_validate(
        {
            "task": {"kind": "segmentation"},
            "data": {**data, "train_on": ["a"]},
            "pretraining": {"kind": "supervised", "data": "b", "init": {"kind": "imagenet"}},
        }
    )
    assert config.pretraining.data.train_on == ("b",)
    assert config.pretraining.data.datasets == config.data.datasets
    with pytest.raises(ValueError, match=r"pretraining.data: found 'c', and data.datasets has a, b"):
        TrialConfig.model_validate({"data": data, "pretraining": {"kind": "supervised", "data": "c"}})
