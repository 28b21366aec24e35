from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_configs import tiny_stage, tiny_trial
from trainables.config import Execution
from trainables.errors import ConfigError
from trainables.exported.folder import build_exported, load_exported, write_exported
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model, create_backbone
from trainables.pretraining.imagenet import load_imagenet
from trainables.pretraining_config import ImageNetPretraining
from trainables.stage import run_stage
from trainables.storage.folder import Folder
from trainables.trial import run_trial

LITE0 = "timm/tf_efficientnet_lite0"
#: Network → module that ends each stage, by its architecture: layer1 to layer4 of He et al. 2016, the four stages of
#: Liu et al. 2022 (timm and torchvision count the layers that halve the maps differently), and of EfficientNet the
#: stages of one resolution (Tan & Le 2019, table 1).
ENDS = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    LITE0: ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"],
    "timm/convnext_atto": ["stages.0", "stages.1", "stages.2", "stages.3"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
    "mobilenet_v3_small": ["features.1", "features.3", "features.8", "features.12"],
    "squeezenet1_1": ["features.4", "features.7", "features.12"],
}


def build(name: str, stages: int | None, **options: object) -> Classifier:
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name, stages=stages), num_classes=7, channels=3, image_size=64, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ENDS)
@torch.inference_mode()
def test_features_are_the_whole_networks_map_averaged(name: str) -> None:
    whole = build(name, None).eval()
    seen: list[Tensor] = []
    for end in ENDS[name]:
        whole.backbone.get_submodule(end).register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    whole(images)
    state = whole.encoder_state()
    for stages, expected in enumerate(seen, start=1):
        kept = build(name, stages).eval()
        logits, features = kept.forward_features(images)
        torch.testing.assert_close(features, expected.mean((2, 3)), rtol=1e-5, atol=1e-6)
        assert torch.equal(logits, kept.head(features))
        assert logits.shape == (2, 7)
        assert kept.num_features == features.shape[1]
        # The weights in front of the cut are there under their names.
        assert all(torch.equal(value, state[key]) for key, value in kept.encoder_state().items())


@pytest.mark.parametrize(
    ("stages", "num_parameters"),
    # conv1, bn1 and layer1 to layer4; the ResNet-18 for ImageNet has 11,689,512 weights, 513,000 of them in the head.
    [(1, 157_504), (2, 157_504 + 525_568), (3, 157_504 + 2_625_280), (4, 11_689_512 - 513_000)],
)
def test_what_lies_behind_is_gone(stages: int, num_parameters: int) -> None:
    model = build("resnet18", stages)
    assert sum(value.numel() for value in model.parameters()) == num_parameters + 7 * model.num_features + 7
    assert model.num_features == 64 * 2 ** (stages - 1)


def test_small_images_grey_ones_and_dropout_are_as_for_whole_networks() -> None:
    for name in ("resnet18", LITE0, "timm/convnext_atto"):
        config = ModelConfig(name=name, stages=2)
        model = build_model(config, num_classes=3, channels=1, image_size=28, dropout=0.5)
        assert isinstance(model.head, nn.Sequential)
        logits, features = model.forward_features(torch.zeros(2, 1, model.input_size, model.input_size))
        assert logits.shape == (2, 3)
        assert features.shape == (2, model.num_features)
    stem = build_model(ModelConfig(stages=1), num_classes=3, channels=3, image_size=32).backbone
    assert stem.get_submodule("conv1").stride == (1, 1)
    assert isinstance(stem.get_submodule("maxpool"), nn.Identity)


def test_imagenet_weights_reach_the_stages_that_are_kept() -> None:
    weights = load_imagenet(LITE0, ImageNetPretraining())
    model = build(LITE0, 2, imagenet=weights)
    state = model.encoder_state()
    assert all(torch.equal(value, weights[name]) for name, value in state.items())
    assert {name.split(".")[0] for name in state} == {"conv_stem", "bn1", "blocks"}
    assert {name.split(".")[1] for name in state if name.startswith("blocks.")} == {"0", "1"}


@pytest.mark.parametrize(("name", "count"), [("resnet18", 4), (LITE0, 5), ("timm/convnext_atto", 4)])
def test_more_stages_than_there_are_say_how_many_there_are(name: str, count: int) -> None:
    message = rf"model.stages: found {count + 1}, and {name} has {count} stages; expected 1 to {count}, or none"
    with pytest.raises(ConfigError, match=message):
        build(name, count + 1)


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "timm/test_vit"])
def test_networks_without_stages_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"looked for stages in {name}.* and found none; expected a convolutional"):
        create_backbone(name, num_classes=3, stages=1)


def test_parts_that_do_not_run_in_sequence_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet

    plain = ResNet.forward
    monkeypatch.setattr(ResNet, "forward", lambda self, images: plain(self, 2.0 * images))
    with pytest.raises(ConfigError, match=r"cut resnet18 behind layer2.1, and its parts run in sequence give another"):
        build("resnet18", 2)


@pytest.mark.parametrize("name", ["efficientnet_b0", "timm/resnet18", LITE0])
def test_the_last_branch_that_is_kept_has_the_stochastic_depth_asked_for(name: str) -> None:
    model = build(name, 2, stochastic_depth=0.3)
    layers = [layer for layer in model.modules() if type(layer).__name__ in ("StochasticDepth", "DropPath")]
    rates = [layer.p if hasattr(layer, "p") else layer.drop_prob for layer in layers]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)


def test_from_contrastive_pretraining_to_an_exported_network(tmp_path: Path, cache_dir: Path) -> None:
    execution = Execution(device="cpu", cache_dir=cache_dir)
    model = ModelConfig(name=LITE0, stages=2, input_size=16)
    stage = tiny_stage(epochs=1).model_copy(update={"model": model})
    pretrained = run_stage(stage, signature="up", folder=Folder(tmp_path / "stage"), execution=execution)
    assert pretrained["environment"]["memory_format"] == "channels_last"
    config = tiny_trial(
        model=model.model_dump(), pretraining={"kind": "contrastive", "epochs": 1}, training={"epochs": 1}
    )
    trial = Folder(tmp_path / "trial")
    result = run_trial(config, signature="s", folder=trial, execution=execution, encoder=Folder(tmp_path / "stage"))
    assert result["environment"]["memory_format"] == "channels_last"
    fewer = 2 * 3 * 3 * 32 - 3 * 25  # one input channel instead of three, ten classes instead of seven
    assert result["num_parameters"] == sum(value.numel() for value in build(LITE0, 2).parameters()) - fewer
    exported = build_exported(trial, config, classes=tuple("0123456789"), provenance={})
    assert exported.config.architecture.stages == 2
    write_exported(trial, Folder(tmp_path / "out"), exported)
    loaded = load_exported(tmp_path / "out")
    images = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded(images), exported(images))
