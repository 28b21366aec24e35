"""Views: their seeds, the policy's frequencies, and each step against the operations called one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainables.augmentation.pipeline import build_augmentation, draw_crops
from trainables.augmentation_config import StrongAugmentation
from trainables.ops.colour import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, to_grayscale
from trainables.ops.filters import gaussian_blur
from trainables.ops.geometry import flip, resize_crop
from trainables.pretraining.views import build_views
from trainables.pretraining_config import ContrastivePretraining
from trainables.seeding import hash_ids, uniform


def images(channels: int = 3, count: int = 64, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def seeds(count: int = 64) -> Tensor:
    return torch.from_numpy(hash_ids(map(str, range(count))))


def make(pixels: Tensor, own: Tensor, views: Any = "moco", **settings: Any) -> Tensor:
    return build_views(ContrastivePretraining.model_validate({"views": views, **settings}))(pixels, own)


@pytest.mark.parametrize("views", ["moco", "no_colour", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_depends_on_its_seed_alone(channels: int, views: str) -> None:
    whole = make(images(channels), seeds(), views)
    assert whole.shape == images(channels).shape
    assert whole.dtype == torch.uint8
    rows = torch.tensor([5, 60, 7])
    assert torch.equal(make(images(channels)[rows], seeds()[rows], views), whole[rows])
    assert not torch.equal(make(images(channels), seeds() + 1, views), whole)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("views", ["moco", "no_colour"])
def test_a_view_is_its_operations_one_by_one(views: str, channels: int) -> None:
    before = images(channels, 300, 32)
    draws = uniform(seeds(300), 12, stream="view").T
    boxes, never = draw_crops(seeds(300), scale_min=0.3, height=32, width=32), torch.zeros(300, 2, dtype=torch.bool)
    after = flip(resize_crop(before, boxes, never, size=32), draws[3] < 0.5, dim=-1)
    spread = 0.7 * (2.0 * draws[4:8] - 1.0)
    moved = adjust_contrast(adjust_brightness(after, 1.0 + 0.4 * spread[0]), 1.0 + 0.4 * spread[1])
    if views == "moco":
        moved = adjust_hue(adjust_saturation(moved, 1.0 + 0.4 * spread[2]), 0.1 * spread[3])
    after = choose(draws[8] < 0.8, moved, after)
    if views == "moco":
        after = choose(draws[9] < 0.2, to_grayscale(after), after)
    sigma = (0.1 + 1.9 * draws[10]) * 32 / 224
    blurred = gaussian_blur(after, sigma, (2.0 * sigma).ceil().clamp(min=1).to(torch.int64))
    expected = choose(draws[11] < 0.5, blurred, after)
    found = make(before, seeds(300), {"kind": views, "jitter_strength": 0.7}, crop_scale_min=0.3)
    assert torch.equal(found, expected)


def choose(chosen: Tensor, changed: Tensor, others: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], changed, others)


def test_strong_views_are_the_strong_augmentation() -> None:
    augment = build_augmentation(StrongAugmentation(strength=0.5, crop_scale_min=0.4, horizontal_flip=True), 16)
    found = make(images(), seeds(), {"kind": "strong", "strength": 0.5}, crop_scale_min=0.4)
    assert torch.equal(found, augment(images(), seeds()))


def test_views_follow_the_policys_frequencies() -> None:
    # A gradient from left to right, in one colour: what happened to it can be read off.
    ramp = torch.zeros(2000, 3, 16, 16, dtype=torch.uint8)
    ramp[:, 0] = torch.linspace(40, 200, 16).to(torch.uint8)
    still = {"views": {"kind": "moco", "jitter_strength": 0.0}, "crop_scale_min": 1.0}
    views = make(ramp, seeds(2000), **still).float()
    grey = (views[:, 0] == views[:, 2]).flatten(1).all(1)
    assert grey.float().mean() == pytest.approx(0.2, abs=0.03)
    flipped = views[:, 0, 8, 0] > views[:, 0, 8, -1]
    assert flipped.float().mean() == pytest.approx(0.5, abs=0.04)
    views = make(ramp, seeds(2000), **still, horizontal_flip=False)
    assert (views[:, 0, 8, 0] < views[:, 0, 8, -1]).all()


def test_jitter_is_scaled_and_hits_four_of_five() -> None:
    flat = torch.full((2000, 3, 8, 8), 100, dtype=torch.uint8)
    flat[:, 0] = 160
    before = make(flat, seeds(2000), {"kind": "moco", "jitter_strength": 0.0}, crop_scale_min=1.0)
    after = make(flat, seeds(2000), {"kind": "moco", "jitter_strength": 1.0}, crop_scale_min=1.0)
    assert (before != after).flatten(1).any(1).float().mean() == pytest.approx(0.8, abs=0.04)


def test_without_colour_a_hue_stays() -> None:
    """Of a red flat image: brightness and contrast move it towards black and grey, and green stays blue's equal."""
    flat = torch.full((500, 3, 8, 8), 100, dtype=torch.uint8)
    flat[:, 0] = 160
    views = make(flat, seeds(500), "no_colour").int()
    assert (views[:, 0] > views[:, 1]).all()
    assert torch.equal(views[:, 1], views[:, 2])
