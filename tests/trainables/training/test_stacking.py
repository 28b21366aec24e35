from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.stacking import StackedTrainer
from tests.support.tiny_configs import random_dataset, tiny_trial
from trainables.config import TrialConfig
from trainables.errors import ConfigError
from trainables.models.networks import Classifier
from trainables.storage.folder import Folder
from trainables.training.loop import train_model
from trainables.trial import build_initial_model


def replicates(count: int, **sections: Any) -> list[TrialConfig]:
    # Adam divides what is nearly no gradient by its own size, and makes rounding as large as a step: SGD. So does batch
    # normalisation of a map of one pixel, as shufflenet ends at 16 px (250 times as large in a step): test_resnet.
    training = {
        "epochs": 1, "batch_size": 16, "label_fraction": 1.0, "optimiser": "sgd", **sections.pop("training", {}),
    }  # fmt: skip
    first = tiny_trial(training=training, **sections)
    return [first.model_copy(update={"replicate": replicate}) for replicate in range(count)]


def build(configs: list[TrialConfig]) -> list[Classifier]:
    return [build_initial_model(config, random_dataset(), encoder=None) for config in configs]


@pytest.mark.parametrize(
    "arm",
    [
        {"model": {"name": "timm/test_resnet"}, "regulariser": {"kind": "weight_decay"}},
        {
            "model": {"name": "timm/test_resnet"},
            "regulariser": {"kind": "spectral_decoupling", "weight": (0.1, 0.2), "group_by": "site"},
            "augmentation": {"kind": "trivialaugment", "erasing": 0.5, "horizontal_flip": True},
            "training": {"warmup_epochs": 0.5},
        },
    ],
)
def test_stacked_replicates_end_as_one_after_another(tmp_path: Path, arm: dict[str, Any]) -> None:
    configs = replicates(3, **arm)
    data, stacked, alone = random_dataset(), build(configs), build(configs)
    trainer = StackedTrainer(stacked, data, configs)
    assert trainer.num_images == 3 * 48
    losses = trainer.run_epoch()
    trainer.write_back()
    for index, config in enumerate(configs):
        folder = Folder(tmp_path) / str(index)
        train_model(alone[index], data, config, signature="mine", folder=folder, report=lambda record: None)
        expected = folder.read_lines("epochs.jsonl")[0]["metrics"]["train/loss"]
        assert float(losses[index]) == pytest.approx(expected, rel=1e-5)
        for (name, mine), theirs in zip(
            stacked[index].state_dict().items(), alone[index].state_dict().values(), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=name)
    assert not torch.allclose(losses[0], losses[1])


def test_adam_is_stacked_too() -> None:
    configs = replicates(2, training={"optimiser": "adamw", "batch_size": 48, "epochs": 4})
    trainer = StackedTrainer(build(configs), random_dataset(), configs)
    losses = torch.stack([trainer.run_epoch() for _ in range(4)])
    assert bool((losses[-1] < losses[0]).all())


@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ({"regulariser": {"kind": "mixup"}}, "mixup draws one share per batch"),
        ({"regulariser": {"kind": "combined", "mixup": {}, "weight_decay": {}}}, "mixup draws one share per batch"),
        ({"regulariser": {"kind": "cutmix"}}, "cutmix draws one rectangle per batch"),
        ({"regulariser": {"kind": "sam"}}, "sam takes its step along the gradient of all weights"),
        ({"regulariser": {"kind": "group_dro"}}, "group_dro has weights of its own per trial"),
        ({"regulariser": {"kind": "dropout"}}, "the layers .* draw from one random stream"),
        ({"model": {"name": "mobilenet_v3_small"}}, "draw from one random stream"),
        ({"training": {"gradient_clip_norm": 1.0}}, "gradient_clip_norm"),
        ({"training": {"patience": 2}}, "patience"),
        ({"training": {"class_weights": "balanced"}}, "class_weights"),
        ({"training": {"backbone_learning_rate_factor": 0.0}}, "linear probe"),
    ],
)
def test_what_would_change_the_numbers_is_refused(arm: dict[str, Any], reason: str) -> None:
    configs = replicates(2, **arm)
    with pytest.raises(ConfigError, match=reason):
        StackedTrainer(build(configs), random_dataset(), configs)


def test_trials_of_two_arms_are_not_stacked() -> None:
    configs = [*replicates(1), *replicates(1, training={"learning_rate": 0.5})]
    with pytest.raises(ConfigError, match="differ in their replicate only"):
        StackedTrainer(build(configs), random_dataset(), configs)
