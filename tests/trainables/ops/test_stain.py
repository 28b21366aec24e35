"""Colour deconvolution, and ImageNet-C's brightness, contrast and saturation, against plain formulas."""

from __future__ import annotations

import colorsys

import numpy as np
import torch

from trainables.ops import colour_space
from trainables.ops.stain import HED, scale_stains


def tissue(num: int = 2, side: int = 24) -> torch.Tensor:
    """Pixels that are mixtures of the three stains."""
    amounts = np.random.default_rng(0).uniform(0.05, 0.6, (num, side, side, 3))
    return torch.from_numpy((255 * np.exp(-amounts @ np.array(HED))).round().astype(np.uint8)).permute(0, 3, 1, 2)


def pixels(num: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (num, 3, 20, 20), dtype=np.uint8))


def test_stains_are_scaled_as_scikit_image_would() -> None:
    images = tissue()
    result = scale_stains(images, torch.tensor([0.5, 2.0]), torch.tensor([2.0, 0.0])).permute(0, 2, 3, 1).numpy()
    rgb = np.maximum(images.permute(0, 2, 3, 1).numpy() / 255.0, 1e-6)
    stains = np.maximum(-np.log(rgb) @ np.linalg.inv(np.array(HED)), 0)
    for index, factors in enumerate(((0.5, 2.0, 1.0), (2.0, 0.0, 1.0))):
        expected = np.clip(255 * np.exp(-(stains[index] * factors) @ np.array(HED)), 0, 255)
        inside = (stains[index] > 0).all(-1)
        assert inside.mean() > 0.9
        assert np.abs(result[index][inside] - expected[inside]).max() <= 1


def test_unscaled_stains_are_the_identity_for_any_colour() -> None:
    images, ones = pixels(3), torch.ones(3)
    assert torch.equal(scale_stains(images, ones, ones), images)
    grey = images[:, :1]
    assert torch.equal(scale_stains(grey, 3 * ones, ones), grey)


def test_more_stain_is_darker_and_white_stays_white() -> None:
    images, ones = tissue(), torch.ones(2)
    means = [scale_stains(images, factor * ones, ones).float().mean().item() for factor in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert means == sorted(means, reverse=True)
    white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(scale_stains(white, 4 * ones, 4 * ones), white)


def test_value_and_saturation_change_in_hsv() -> None:
    images = pixels()
    images[..., :3, :] = 90  # grey
    images[..., 3, :] = 0
    bright = colour_space.add_value(images, torch.tensor([0.3]))
    vivid = colour_space.saturate(images, torch.tensor([0.5]), torch.tensor([0.1]))
    for found, change in (
        (bright, lambda h, s, v: (h, s, min(1, v + 0.3))),
        (vivid, lambda h, s, v: (h, min(1, s / 2 + 0.1), v)),
    ):
        flat = images[0].flatten(1).T.numpy() / 255.0
        expected = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*map(float, pixel)))) for pixel in flat]
        cut_off = 255.0 * np.array(expected) - found[0].flatten(1).T.numpy()
        assert cut_off.min() >= -0.001
        assert cut_off.max() < 1.0
    grey = colour_space.add_value(images[:, :1], torch.tensor([0.3]))
    expected = np.clip(images[:, :1].numpy() + 76.5, 0, 255)
    assert np.abs(grey.numpy() - expected).max() <= 0.51


def test_contrast_is_about_every_channels_own_mean() -> None:
    images = pixels(2)
    result = colour_space.scale_contrast(images, torch.tensor([0.4, 1.0]))
    assert torch.equal(result[1], images[1])
    x = images[0].double()
    mean = x.mean((1, 2), keepdim=True)
    assert torch.equal(result[0].double(), torch.floor(0.4 * (x - mean) + mean))
