from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from tests.support.tiny_configs import random_dataset, tiny_trial
from trainables.config import TrialConfig
from trainables.data.batches import TrainingImages
from trainables.errors import ConfigError
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.storage.checkpoint import load_checkpoint
from trainables.storage.folder import Folder
from trainables.training.loop import train_model
from trainables.training.optimisation import build_optimiser
from trainables.training.transfer import features
from trainables.training.transfer.features import find_cache_obstacle
from trainables.training.transfer.layers import order_layers, order_stages
from trainables.training.transfer.trained_part import describe_trained_part, find_rate_factors
from trainables.trial import build_initial_model

PROBE = {"backbone_learning_rate_factor": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def config(**sections: Any) -> TrialConfig:
    training = {"epochs": 2, "batch_size": 16, "label_fraction": 1.0, **sections.pop("training", {})}
    return tiny_trial(training=training, **sections)


def fine_tuned(**settings: Any) -> TrialConfig:
    return config(training={"fine_tune": settings})


class Interrupted(Exception):  # noqa: N818
    pass


def train(
    folder: Path, settings: TrialConfig, kill_after: int | None = None
) -> tuple[Classifier, Classifier, list[dict[str, Any]]]:
    """Return the initial model, the trained one, and the epochs."""
    data = random_dataset()
    before, model = (build_initial_model(settings, data, encoder=None) for _ in range(2))

    def report(record: dict[str, Any]) -> None:
        if record["epoch"] == kill_after:
            raise Interrupted

    train_model(model, data, settings, signature="mine", folder=Folder(folder), report=report)
    return before, model, Folder(folder).read_lines("epochs.jsonl")


def network(name: str) -> Classifier:
    return build_model(ModelConfig(name=name, stem="original"), num_classes=3, channels=3, image_size=64)


def test_layers_are_those_of_timm_and_torchvisions_networks_have_the_same() -> None:
    from timm.optim import param_groups_layer_decay

    ours, theirs = network("resnet18"), network("timm/resnet18")
    found = order_layers(theirs, name="timm/resnet18")
    groups = param_groups_layer_decay(theirs.backbone, layer_decay=0.5)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    for name, parameter in theirs.backbone.named_parameters():
        assert 0.5 ** (9 - found[name]) == scales[id(parameter)], name
    assert order_layers(ours, name="resnet18") == found  # the two networks name their weights alike
    assert {found["conv1.weight"], found["bn1.bias"]} == {0}
    assert (found["layer1.0.conv1.weight"], found["layer4.1.bn2.weight"], found["fc.weight"]) == (1, 8, 9)


def test_rates_fall_from_the_head_to_the_stem_and_multiply() -> None:
    training = {"fine_tune": {"layer_decay": 0.5}, "backbone_learning_rate_factor": 0.1, "learning_rate": 0.01}
    settings = config(model={"name": "resnet18"}, training=training, regulariser={"kind": "weight_decay"})
    model = build_initial_model(settings, random_dataset(), encoder=None)
    _, optimiser = build_optimiser(model, settings)
    rate = {id(parameter): group["lr"] for group in optimiser.param_groups for parameter in group["params"]}
    assert rate[id(model.head.weight)] == optimiser.param_groups[-1]["lr"] == 0.01
    assert rate[id(model.backbone.layer4[1].conv2.weight)] == pytest.approx(0.01 * 0.1 * 0.5)
    assert rate[id(model.backbone.layer1[0].conv1.weight)] == pytest.approx(0.01 * 0.1 * 0.5**8)
    assert rate[id(model.backbone.bn1.bias)] == pytest.approx(0.01 * 0.1 * 0.5**9)
    assert len(rate) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "stages"), [("resnet18", 4), ("timm/tf_efficientnet_lite0", 5), ("shufflenet_v2_x0_5", 3)]
)
def test_stages_are_those_of_the_model_section(name: str, stages: int) -> None:
    found, count = order_stages(network(name), name=name)
    assert count == stages
    assert sorted(set(found.values())) == list(range(stages))
    if name == "resnet18":
        assert {found["conv1.weight"], found["layer1.1.bn2.bias"]} == {0}
        assert [found[f"layer{stage}.0.conv1.weight"] for stage in (1, 2, 3, 4)] == [0, 1, 2, 3]
    if "lite0" in name:
        assert found["conv_head.weight"] == found["bn2.bias"] == 4  # behind the last block


@pytest.mark.parametrize(
    ("settings", "frozen", "trained"),
    [
        ({"frozen_stem": True}, ("conv1.",), ("stage2.", "stage3.", "stage4.", "conv5.", "fc.")),
        ({"last_stages": 1}, ("conv1.", "stage2.", "stage3."), ("stage4.", "conv5.", "fc.")),
        ({"last_stages": 2}, ("conv1.", "stage2."), ("stage3.", "stage4.", "conv5.", "fc.")),
    ],
)
def test_frozen_layers_stay_bit_for_bit(
    tmp_path: Path, settings: dict[str, Any], frozen: tuple[str, ...], trained: tuple[str, ...]
) -> None:
    before, after, _ = train(tmp_path, fine_tuned(**settings))
    # Statistics and their counters included; weights of a trained layer all move.
    for name, value in before.backbone.state_dict().items():
        assert name.startswith((*frozen, *trained))
        assert torch.equal(value, after.backbone.state_dict()[name]) == name.startswith(frozen), name


def test_frozen_batch_normalisation_keeps_statistics_and_trains_weights(tmp_path: Path) -> None:
    before, after, _ = train(tmp_path, fine_tuned(batch_norm="frozen"))
    for name, value in before.backbone.state_dict().items():
        is_statistic = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, after.backbone.state_dict()[name]) == is_statistic, name


@pytest.mark.parametrize(
    "training",
    [
        {"fine_tune": {"layer_decay": 0.6, "last_stages": 2, "batch_norm": "frozen"}, "epochs": 3},
        {"fine_tune": {"layer_decay": 0.6, "frozen_stem": True}, "optimiser": "sgd", "epochs": 3},
        {**PROBE, "epochs": 3},
    ],
)
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path, training: dict[str, Any]) -> None:
    settings = config(training=training, regulariser={"kind": "dropout"})
    _, whole, expected = train(tmp_path / "whole", settings)
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", settings, kill_after=1)
    _, resumed, found = train(tmp_path / "cut", settings)
    assert len(found) == len(expected) == 3
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_a_probe_holds_no_frozen_weight(tmp_path: Path) -> None:
    settings = config(training=PROBE)
    with pytest.raises(Interrupted):
        train(tmp_path, settings, kill_after=1)
    state = load_checkpoint(Folder(tmp_path), "mine")
    assert state is not None
    assert sorted(name for name in state.tensors if name.startswith("model.")) == [
        "model.backbone.fc.bias", "model.backbone.fc.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"optimiser": "sgd", "learning_rate": 0.1, "class_weights": "balanced"}},
        {"regulariser": {"kind": "combined", "dropout": {}, "sam": {}, "spectral_decoupling": {}, "weight_decay": {}}},
        {"augmentation": {"kind": "strong", "strength": 0.0}, "training": {"label_fraction": 0.5}},
    ],
)
def test_a_probe_on_cached_features_is_the_probe_on_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    settings = config(**{**sections, "training": {**PROBE, "epochs": 4, **sections.get("training", {})}})
    passes: list[int] = []
    forward = Classifier.forward
    monkeypatch.setattr(
        Classifier, "forward", lambda self, images: (passes.append(len(images)), forward(self, images))[1]
    )
    _, cached, expected = train(tmp_path / "cached", settings)
    num_cached = sum(passes)
    monkeypatch.setattr("trainables.training.step.find_cache_obstacle", lambda *arguments: "asked not to")
    _, other, found = train(tmp_path / "images", settings)
    # Each image once, and two for the check of the last layer; otherwise every image in every epoch.
    used = 24 if settings.training.label_fraction == 0.5 else 48
    assert num_cached == 2 + used + 24
    assert sum(passes) - num_cached >= 4 * (used + 24)
    for name, value in cached.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)
    for one, two in zip(expected, found, strict=True):
        for name in ("train/loss", "train/accuracy", "val/loss", "val/auroc"):
            assert one["metrics"][name] == pytest.approx(two["metrics"][name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"training": {}}, "not frozen"),
        ({"augmentation": {"kind": "none", "horizontal_flip": True}}, "augmentation"),
        ({"augmentation": {"kind": "none", "erasing": 0.1}}, "augmentation"),
        ({"augmentation": {"kind": "strong"}}, "augmentation"),
        ({"regulariser": {"kind": "mixup"}}, "mixes images"),
        ({"training": {**PROBE, "confidence": {"kind": "devries"}}}, "devries"),
        ({"model": {"name": "squeezenet1_1", "input_size": 32}}, "takes maps"),
    ],
)
def test_features_that_change_are_not_cached(sections: dict[str, Any], why: str) -> None:
    settings, data = config(**{"training": PROBE, **sections}), random_dataset()
    model = build_initial_model(settings, data, encoder=None)
    reason = find_cache_obstacle(model, settings, data)
    assert reason is not None
    assert why in reason
    assert describe_trained_part(model, settings, data)["features"] == reason


def test_features_that_do_not_fit_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, data = config(training=PROBE), random_dataset()
    model = build_initial_model(settings, data, encoder=None)
    monkeypatch.setattr(features, "MAX_CACHE_BYTES", 4 * 72 * model.num_features)
    assert find_cache_obstacle(model, settings, data) is None
    monkeypatch.setattr(features, "MAX_CACHE_BYTES", 4 * 72 * model.num_features - 1)
    assert "72 × 1024 features" in str(find_cache_obstacle(model, settings, data))


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, ("whole network", "train", 1.0)),
        (PROBE, ("head", "frozen", 1.0)),
        ({"fine_tune": {"layer_decay": 0.7}}, ("whole network", "train", 0.7)),
        ({"fine_tune": {"last_stages": 1}}, ("last stage and head", "partly", 1.0)),
        ({"fine_tune": {"frozen_stem": True, "batch_norm": "frozen"}}, ("all but the stem", "frozen", 1.0)),
    ],
)
def test_the_result_says_what_was_trained(training: dict[str, Any], expected: tuple[str, str, float]) -> None:
    settings, data = config(training=training), random_dataset()
    model = build_initial_model(settings, data, encoder=None)
    found = describe_trained_part(model, settings, data)
    assert (found["trained"], found["batch_norm"], found["layer_decay"]) == expected
    assert found["num_trained"] + found["num_frozen"] == sum(each.numel() for each in model.backbone.parameters())
    assert (found["features"] == "cached") == (training == PROBE)
    if training == PROBE:
        assert found["num_trained"] == 3 * 1024 + 3


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"fine_tune": {"frozen_stem": True, "last_stages": 1}}, "take frozen_stem away"),
        ({**PROBE, "fine_tune": {"layer_decay": 0.5}}, "trains the head alone"),
        ({"fine_tune": {"layer_decay": 0.0}}, "greater than or equal to 0.01"),
        ({"fine_tune": {"last_stages": 0}}, "greater than 0"),
    ],
)
def test_settings_without_an_effect_are_errors(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(training=training)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("shufflenet_v2_x0_5", {"last_stages": 3}, "found 3, and .* has 3 stages"),
        ("timm/test_vit", {"last_stages": 1}, "looked for stages in timm/test_vit"),
        ("timm/test_vit", {"batch_norm": "frozen"}, "has no batch normalisation"),
        ("vit_b_32", {"layer_decay": 0.5}, "looked for the order of the layers of vit_b_32"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_errors(name: str, settings: dict[str, Any], message: str) -> None:
    model = build_model(ModelConfig(name=name), num_classes=3, channels=3, image_size=64)
    with pytest.raises(ConfigError, match=message):
        find_rate_factors(model, config(model={"name": name}, training={"fine_tune": settings}))


def test_a_transformer_of_timm_has_a_rate_per_block() -> None:
    model = build_model(ModelConfig(name="timm/test_vit"), num_classes=3, channels=3, image_size=64)
    factors = find_rate_factors(
        model, config(model={"name": "timm/test_vit"}, training={"fine_tune": {"layer_decay": 0.5}})
    )
    assert factors["backbone.head.weight"] == 1.0
    rates = [factors[f"backbone.blocks.{index}.attn.qkv.weight"] for index in range(len(model.backbone.blocks))]
    assert np.allclose(np.divide(rates[:-1], rates[1:]), 0.5)
    assert factors["backbone.patch_embed.proj.weight"] == 0.5 * rates[0]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())


def test_all_arms_of_a_replicate_see_the_same_labels() -> None:
    train_set, device = random_dataset().splits["train"], torch.device("cpu")
    arms: list[dict[str, Any]] = [
        {},
        {"training": PROBE},
        {"training": {"fine_tune": {"layer_decay": 0.5}, "epochs": 9}, "pretraining": {"kind": "imagenet"}},
        {"augmentation": {"kind": "strong"}, "regulariser": {"kind": "mixup"}, "model": {"name": "resnet18"}},
    ]
    rows = []
    for arm in arms:
        training = {"label_fraction": 0.25, **arm.pop("training", {})}
        rows.append(TrainingImages(train_set, config(training=training, **arm), device).rows.tolist())
    assert all(each == rows[0] for each in rows)
    assert 12 <= len(rows[0]) < 48
    others = TrainingImages(train_set, config(training={"label_fraction": 0.25}, replicate=1), device).rows
    assert others.tolist() != rows[0]
