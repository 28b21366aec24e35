from __future__ import annotations

import pytest
import torch
from torch import nn

from trainables.errors import ConfigError
from trainables.model_config import ModelConfig
from trainables.models.networks import build_model

#: name, and the side at which 28 px images reach the network.
FAMILIES = [
    ("resnet18", 28),
    ("densenet121", 28),
    ("mobilenet_v3_small", 28),
    ("squeezenet1_1", 28),
    ("shufflenet_v2_x0_5", 28),
    ("mnasnet0_5", 28),
    ("swin_t", 28),
    ("convnext_tiny", 28),
    ("vit_b_16", 224),
    ("inception_v3", 64),
    ("googlenet", 28),
    ("timm/test_resnet", 28),
    ("timm/test_vit", 160),
    ("timm/test_convnext", 28),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def batch(channels: int, size: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("name", "input_size"), FAMILIES)
def test_every_family_trains_on_small_grey_images(name: str, input_size: int) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=28, dropout=0.1)
    assert model.input_size == input_size
    logits, features = model.train().forward_features(model.normalise(batch(1, 28)))
    assert logits.shape == (2, 3)
    assert features.shape == (2, model.num_features)
    logits.square().sum().backward()
    head = [parameter for parameter in model.head.parameters() if parameter.grad is not None]
    assert len(head) == 2


@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "squeezenet1_1", "googlenet", "timm/test_resnet", "alexnet"]
)
def test_every_family_takes_small_colour_images(name: str) -> None:
    model = build_model(ModelConfig(name=name), num_classes=2, channels=3, image_size=32).eval()
    with torch.inference_mode():
        logits = model(model.normalise(batch(3, 32)))
        again, features = model.forward_features(model.normalise(batch(3, 32)))
    assert logits.shape == (2, 2)
    assert torch.equal(logits, again)
    assert features.shape == (2, model.num_features)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "timm/test_vit"])
def test_logits_are_float32_under_autocast_too(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=28, dropout=0.5).eval()
    images = model.normalise(batch(1, 28, count=40))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits, features = model.forward_features(images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # more than 8 bits
    if name == "resnet18":
        assert features.dtype == torch.bfloat16
        weight, bias = model.head[1].weight, model.head[1].bias  # type: ignore[index]
        assert torch.equal(logits, torch.nn.functional.linear(features.float(), weight, bias))
    exact, _ = model.forward_features(images)
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=0.05)


def test_a_compiled_network_keeps_float32_logits() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(), num_classes=3, channels=1, image_size=28).eval()
    images = model.normalise(batch(1, 28))
    compiled = torch.compile(model, dynamic=False, backend="eager")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(images), model(images))
        assert compiled(images).dtype == torch.float32


def test_features_are_what_the_head_sees() -> None:
    model = build_model(ModelConfig(), num_classes=3, channels=1, image_size=28, dropout=0.5).eval()
    logits, features = model.forward_features(model.normalise(batch(1, 28)))
    torch.testing.assert_close(model.head(features), logits)


@pytest.mark.parametrize(
    ("name", "convolution", "pool"),
    [
        ("resnet18", "conv1", "maxpool"),
        ("densenet121", "features.conv0", "features.pool0"),
        ("googlenet", "conv1.conv", "maxpool1"),
        ("squeezenet1_1", "features.0", "features.2"),
    ],
)
def test_small_stem(name: str, convolution: str, pool: str) -> None:
    small = build_model(ModelConfig(name=name), num_classes=3, channels=3, image_size=47).backbone
    large = build_model(ModelConfig(name=name), num_classes=3, channels=3, image_size=48).backbone
    assert small.get_submodule(convolution).stride == (1, 1)
    assert isinstance(small.get_submodule(pool), nn.Identity)
    assert large.get_submodule(convolution).stride == (2, 2)
    assert isinstance(large.get_submodule(pool), nn.MaxPool2d)
    # The weights of one fit the other.
    large.load_state_dict(small.state_dict())


def test_a_pool_deeper_in_the_network_stays() -> None:
    backbone = build_model(ModelConfig(name="vgg11"), num_classes=3, channels=3, image_size=32).backbone
    before = sum(isinstance(module, nn.MaxPool2d) for module in backbone.modules())
    assert before == 4  # the first of five follows the first convolution
    backbone = build_model(ModelConfig(name="inception_v3"), num_classes=3, channels=3, image_size=32).backbone
    assert isinstance(backbone.maxpool1, nn.MaxPool2d)


def test_stem_can_be_chosen() -> None:
    original = build_model(ModelConfig(stem="original"), num_classes=3, channels=1, image_size=28)
    assert original.backbone.conv1.stride == (2, 2)
    small = build_model(ModelConfig(stem="small"), num_classes=3, channels=1, image_size=64)
    assert small.backbone.conv1.stride == (1, 1)


def test_upscaled_images_keep_the_original_stem() -> None:
    model = build_model(ModelConfig(input_size=64), num_classes=3, channels=1, image_size=28).eval()
    assert model.backbone.conv1.stride == (2, 2)
    seen = []
    model.backbone.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(model.normalise(batch(1, 28)))
    assert seen == [(2, 1, 64, 64)]


def test_grey_answers_as_the_rgb_copy() -> None:
    torch.manual_seed(0)
    colour = build_model(ModelConfig(name="timm/test_resnet"), num_classes=3, channels=3, image_size=32).eval()
    assert colour.mean.unique().numel() == 1  # its normalisation is the same for all channels
    torch.manual_seed(0)
    grey = build_model(ModelConfig(name="timm/test_resnet"), num_classes=3, channels=1, image_size=32).eval()
    images = batch(1, 32)
    with torch.inference_mode():
        expected = colour(colour.normalise(images.expand(-1, 3, -1, -1)))
        torch.testing.assert_close(grey(grey.normalise(images)), expected, rtol=1e-4, atol=1e-5)


def test_normalisation_is_the_librarys() -> None:
    model = build_model(ModelConfig(), num_classes=3, channels=3, image_size=32)
    white = model.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    torch.testing.assert_close(white, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))
    model = build_model(ModelConfig(name="googlenet"), num_classes=3, channels=3, image_size=32)
    assert model.normalise(torch.tensor([[[[0]], [[255]], [[255]]]], dtype=torch.uint8)).flatten().tolist() == [
        -1,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("name", "near"), [("resnet81", "resnet18"), ("timm/test_resnett", "test_resnet"), ("fcn_resnet50", "resnet50")]
)
def test_unknown_names_are_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.name: .*did you mean .*{near}"):
        build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=28)


def test_a_network_with_two_heads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"several heads \(head, head_dist\)"):
        build_model(ModelConfig(name="timm/deit_tiny_distilled_patch16_224"), num_classes=3, channels=1, image_size=28)


def test_an_impossible_size_is_refused_when_the_model_is_built() -> None:
    with pytest.raises(ConfigError, match="tried images of 40 px and the network took none"):
        build_model(ModelConfig(name="inception_v3", input_size=40), num_classes=3, channels=1, image_size=28)


def test_a_patch_transformer_has_no_stem_to_be_made_small() -> None:
    with pytest.raises(ConfigError, match=r"model.stem: timm/test_vit cuts images of 160 px into patches"):
        build_model(ModelConfig(name="timm/test_vit", stem="small"), num_classes=3, channels=1, image_size=28)


def test_encoder_weights_travel_and_the_head_stays() -> None:
    torch.manual_seed(1)
    first = build_model(ModelConfig(name="mnasnet0_5"), num_classes=3, channels=1, image_size=28)
    torch.manual_seed(2)
    second = build_model(ModelConfig(name="mnasnet0_5"), num_classes=5, channels=1, image_size=28, dropout=0.2)
    head = [parameter.clone() for parameter in second.head.parameters()]
    second.load_encoder(first.encoder_state(), origin="a test")
    for name, value in second.encoder_state().items():
        assert torch.equal(value, first.encoder_state()[name]), name
    assert not any("classifier" in name for name in first.encoder_state() if name.endswith("1.weight"))
    assert all(torch.equal(a, b) for a, b in zip(head, second.head.parameters(), strict=True))


def test_encoder_weights_of_another_network_are_refused() -> None:
    model = build_model(ModelConfig(), num_classes=3, channels=1, image_size=28)
    state = model.encoder_state()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    model.load_encoder(old, origin="an old file")
    with pytest.raises(
        ConfigError, match=r"loaded an RGB file .*the first conv1.weight \(64, 3, 7, 7\) instead of \(64, 1, 7, 7\)"
    ):
        model.load_encoder({**state, "conv1.weight": torch.zeros(64, 3, 7, 7)}, origin="an RGB file")
    with pytest.raises(ConfigError, match=r"1 of 120 weights .* the first bn1.weight;"):
        model.load_encoder({name: value for name, value in state.items() if name != "bn1.weight"}, origin="half a file")


def test_the_same_seed_gives_every_arm_the_same_weights() -> None:
    torch.manual_seed(0)
    plain = build_model(ModelConfig(), num_classes=3, channels=1, image_size=28)
    torch.manual_seed(0)
    dropped = build_model(ModelConfig(), num_classes=3, channels=1, image_size=28, dropout=0.5)
    assert [p.tolist() for p in plain.head.parameters()] == [p.tolist() for p in dropped.head.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), dropped.parameters(), strict=True))


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "convnext_tiny", "swin_t", "timm/resnet18", "timm/test_vit", "timm/test_resnet"]
)
def test_stochastic_depth_grows_with_depth_and_leaves_the_weights_alone(name: str) -> None:
    torch.manual_seed(0)
    plain = build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=28)
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=28, stochastic_depth=0.3)
    layers = [layer for layer in model.modules() if type(layer).__name__ in ("StochasticDepth", "DropPath")]
    rates = [layer.p if hasattr(layer, "p") else layer.drop_prob for layer in layers]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "timm/densenet121"])
def test_stochastic_depth_is_refused_where_the_network_has_none(name: str) -> None:
    with pytest.raises(ConfigError, match=r"stochastic depth, which it does not have; expected a network with it"):
        build_model(ModelConfig(name=name), num_classes=3, channels=1, image_size=28, stochastic_depth=0.3)
