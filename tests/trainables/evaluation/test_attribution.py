"""Attributions against what they must be for a network whose logits are linear in its pixels, and their bounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.errors import ConfigError
from trainables.evaluation.attribution.compute import compute_attribution
from trainables.evaluation.attribution.convolutional_map import find_last_map
from trainables.evaluation.attribution.methods import ATTRIBUTION_METHODS
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model

SIDE = 16


class Linear(nn.Module):
    """A convolution, the mean over places, a linear layer: every logit is linear in the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.convolution(images).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    half = torch.full((3,), 0.5)
    return Classifier(Linear(), head="head", mean=half, std=torch.full((3,), 0.25), input_size=SIDE).train()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 1, 1, 0, 1])


def logits_of(model: Classifier, images: Tensor) -> Tensor:
    return model(model.normalise(images)).gather(1, TARGETS[: len(images), None])[:, 0].detach()


def gradients(model: Classifier, images: Tensor) -> Tensor:
    x = model.normalise(images).requires_grad_()
    return torch.autograd.grad(model(x).gather(1, TARGETS[:, None]).sum(), x)[0]


def test_integrated_gradients_sum_to_the_change_from_black(model: Classifier, images: Tensor) -> None:
    found = compute_attribution(model, images, TARGETS, method="integrated_gradients", batch_size=3)
    expected = logits_of(model, images) - logits_of(model, torch.zeros_like(images))
    assert found.sum((1, 2)).numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    way = model.normalise(images) - model.normalise(torch.zeros_like(images))
    assert found.numpy() == pytest.approx((gradients(model, images) * way).sum(1).numpy(), abs=1e-5)


def test_expected_gradients_of_one_reference_are_gradient_times_way(model: Classifier, images: Tensor) -> None:
    found = compute_attribution(
        model, images, TARGETS, method="expected_gradients", references=images[:1], batch_size=24
    )
    way = model.normalise(images) - model.normalise(images[:1])
    assert found.numpy() == pytest.approx((gradients(model, images) * way).sum(1).numpy(), abs=1e-5)


def test_grad_cam_weighs_the_channels_of_the_last_map(model: Classifier, images: Tensor) -> None:
    found = compute_attribution(model, images, TARGETS, method="grad_cam")
    maps = model.backbone.convolution(model.normalise(images))
    weights = model.backbone.head.weight[TARGETS] / SIDE**2
    expected = F.relu(torch.einsum("nc,nchw->nhw", weights, maps)).detach()
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-7)
    assert (found >= 0).all()


def test_occlusion_of_a_pixel_is_the_mean_fall_of_the_logit_over_the_patches_on_it(
    model: Classifier, images: Tensor
) -> None:
    found = compute_attribution(model, images, TARGETS, method="occlusion", batch_size=7)
    one, clean = model.normalise(images[:1]), logits_of(model, images[:1])
    falls, seen = torch.zeros(SIDE, SIDE), torch.zeros(SIDE, SIDE)
    for top in range(SIDE - 1):
        for left in range(SIDE - 1):
            covered = one.clone()
            covered[:, :, top : top + 2, left : left + 2] = 0.0
            falls[top : top + 2, left : left + 2] += (clean - model(covered)[0, TARGETS[0]]).detach()
            seen[top : top + 2, left : left + 2] += 1
    assert found[0].numpy() == pytest.approx((falls / seen).numpy(), abs=1e-6)


@pytest.mark.parametrize(("side", "places"), [(28, 14), (32, 15)])
def test_occlusion_takes_no_more_passes_than_are_counted(side: int, places: int) -> None:
    model = build_model(ModelConfig(name="timm/test_resnet"), num_classes=3, channels=1, image_size=side)
    passed: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    images = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    compute_attribution(model, images, torch.tensor([0]), method="occlusion")
    assert sum(passed) == places**2 + 1  # and one of the image as it is
    assert places**2 <= ATTRIBUTION_METHODS["occlusion"].num_passes


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_a_map_depends_on_its_image_alone_and_nothing_is_left_changed(method: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(name="timm/test_efficientnet")
    model = build_model(config, num_classes=3, channels=1, image_size=32).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    targets, references = torch.tensor([0, 1, 2, 0]), images.flip(3)
    np.random.seed(5)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again = (compute_attribution(model, images, targets, method=method, references=references) for _ in range(2))
    alone = compute_attribution(model, images[2:3], targets[2:3], method=method, references=references, batch_size=5)
    assert first.shape == (4, 32, 32)
    assert first.dtype == torch.float32
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    if method != "expected_gradients":  # its draws go with the batch size
        assert alone[0].numpy() == pytest.approx(first[2].numpy(), abs=1e-4 * float(first.abs().max()))
    assert (first < 0).any() == ATTRIBUTION_METHODS[method].is_signed
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(
    ("name", "side", "layer"),
    # At 32 px the fourth stage has a single place; ConvNeXt's blocks have channels last inside, its maps do not.
    [("resnet18", 64, "layer4"), ("resnet18", 32, "layer3"), ("timm/test_convnext", 64, "norm_pre")],
)
def test_the_map_of_grad_cam_is_the_last_with_more_than_one_place(name: str, side: int, layer: str) -> None:
    config = ModelConfig(name=name, stem="original")
    model = build_model(config, num_classes=2, channels=3, image_size=side).eval()
    assert find_last_map(model, torch.zeros(1, 3, side, side)) is model.backbone.get_submodule(layer)


def test_what_cannot_be_computed_is_said(model: Classifier, images: Tensor) -> None:
    with pytest.raises(ConfigError, match="'saliency', expected one of grad_cam, integrated_gradients"):
        compute_attribution(model, images, TARGETS, method="saliency")
    with pytest.raises(ConfigError, match="pass training images"):
        compute_attribution(model, images, TARGETS, method="expected_gradients")
    transformer = build_model(ModelConfig(name="timm/test_vit"), num_classes=2, channels=3, image_size=160)
    with pytest.raises(ConfigError, match="found none before its pooling"):
        compute_attribution(
            transformer, torch.zeros(1, 3, 160, 160, dtype=torch.uint8), torch.tensor([0]), method="grad_cam"
        )
    assert compute_attribution(model, images[:0], TARGETS[:0], method="grad_cam").shape == (0, SIDE, SIDE)
