from __future__ import annotations

from typing import Any

import pytest
import torch

from trainables.errors import ConfigError
from trainables.model_config import ModelConfig
from trainables.models.networks import build_model
from trainables.models.segmenter import Segmenter, build_segmenter
from trainables.task_config import SegmentationTask


def make(name: str = "timm/test_resnet", *, channels: int = 3, **task: Any) -> Segmenter:
    settings = SegmentationTask.model_validate({"kind": "segmentation", "depth": 3, "width": 16, **task})
    return build_segmenter(ModelConfig(name=name), settings, num_classes=4, channels=channels, image_size=64)


def test_logits_have_the_size_of_the_images() -> None:
    model = make(channels=1).eval()
    images = torch.randint(0, 256, (2, 1, 33, 40), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(model.normalise(images))
        logits_again, bottleneck = model.forward_recording(
            model.normalise(images), model.backbone.get_submodule("bottleneck")
        )
    assert logits.shape == (2, 4, 33, 40)
    assert torch.equal(logits, logits_again)
    assert bottleneck.shape[2:] == (40 // 8, 40 // 8)  # 33 is padded to 40


@pytest.mark.parametrize(
    "name",
    ["resnet18", "timm/test_resnet", "timm/test_efficientnet", "timm/test_convnext", "timm/tf_efficientnet_lite0"],
)
def test_the_weights_of_a_classification_network_fit_its_encoder(name: str) -> None:
    torch.manual_seed(1)
    classifier = build_model(ModelConfig(name=name, stem="original"), num_classes=2, channels=3, image_size=64)
    model = make(name)
    model.load_encoder(classifier.encoder_state(), origin="here")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = model.eval().backbone.get_submodule("encoder")(images)[1]
        stem = next(value for value in classifier.state_dict().values() if value.ndim == 4)
    mine = next(value for value in model.state_dict().values() if value.ndim == 4)
    assert torch.equal(stem, mine)
    assert first.isfinite().all()


def test_other_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"loaded here into the encoder of this network: .* are missing"):
        make().load_encoder({"conv1.weight": torch.zeros(3)}, origin="here")


def test_what_a_stage_hands_on_is_everything_but_the_head() -> None:
    torch.manual_seed(1)
    source = make()
    torch.manual_seed(2)
    model = make()
    head = model.head.state_dict()
    before = {name: value.clone() for name, value in head.items()}
    model.load_encoder(source.encoder_state(), origin="here")
    assert all(torch.equal(before[name], value) for name, value in model.head.state_dict().items())
    assert all(torch.equal(value, model.encoder_state()[name]) for name, value in source.encoder_state().items())


@pytest.mark.parametrize(
    ("task", "message"),
    [({"decoder": "unett"}, "task.decoder: found 'unett', expected one of"), ({}, "could not build")],
)
def test_what_the_library_does_not_have_is_refused(task: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("timm/test_vit" if not task else "timm/test_resnet", **task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "pspnet", "depth": 4}, r"found \(4, 32, 32\); expected \(4, 64, 64\)"),
        ({"decoder": "pan", "patch_size": 32}, "Output size is too small"),
        ({"decoder": "fpn", "channels": 1}, "expected input"),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused_when_it_is_built(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)
