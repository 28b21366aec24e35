"""Frosted glass, elastic deformation and zoom against what defines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.ops import distortion
from trainables.ops.filters import blur_with_one_sigma, gaussian_blur, smooth_field, smoothing_gain

SEEDS = torch.arange(2)


def ramp_images(side: int = 40) -> torch.Tensor:
    """Every pixel of a row or column another value."""
    values = torch.arange(side * side).reshape(1, 1, side, side) * 251 % 256
    return values.expand(2, 3, side, side).to(torch.uint8).contiguous()


def copy_in_a_loop(down: np.ndarray, right: np.ndarray, reach: int) -> np.ndarray:
    """The published loop over pixels, on pixel numbers."""
    height, width = down.shape
    values = np.arange(height * width).reshape(height, width)
    for row in range(height - reach, reach, -1):
        for column in range(width - reach, reach, -1):
            values[row, column] = values[row + down[row, column], column + right[row, column]]
    return values


@pytest.mark.parametrize("reach", [1, 3])
def test_chains_of_copies_end_where_the_loop_ends(reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (17, 23)
    draws = torch.from_numpy(np.random.default_rng(3).random((1, size[0] * size[1]), dtype=np.float32))
    monkeypatch.setattr(distortion, "uniform", lambda seeds, *shape, stream: draws)
    choice = np.floor(draws.numpy().reshape(size) * (2 * reach) ** 2).astype(int)
    expected = copy_in_a_loop(choice // (2 * reach) - reach, choice % (2 * reach) - reach, reach)
    found = distortion._follow_copies(torch.arange(1), 0, size, float(reach))
    np.testing.assert_array_equal(found.reshape(size).numpy(), expected)


def test_glass_moves_fewer_pixels_when_its_reach_is_less_than_one() -> None:
    sources = [distortion._follow_copies(SEEDS, 0, (40, 40), reach) for reach in (0.25, 0.75, 1.0)]
    moved = [(source != torch.arange(1600)).float().mean().item() for source in sources]
    assert moved[0] == pytest.approx(0.25 * moved[2], rel=0.2)
    assert moved[1] == pytest.approx(0.75 * moved[2], rel=0.1)


def test_elastic_displacements_are_smooth_and_of_the_size_that_smoothing_leaves() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (4, 1, 200, 200)).astype(np.float32))
    smooth = smooth_field(noise, sigma_px=2.24, radius_px=7)
    assert smooth.std().item() == pytest.approx(smoothing_gain(2.24, 7), rel=0.05)
    flat = torch.full((2, 3, 30, 30), 77, dtype=torch.uint8)
    assert torch.equal(distortion.elastic_transform(flat, SEEDS, amplitude_px=40.0, sigma_px=2.0), flat)
    still = distortion.elastic_transform(ramp_images(), SEEDS, amplitude_px=0.0, sigma_px=2.0)
    assert torch.equal(still, ramp_images())


def test_zoom_blur_keeps_the_centre_and_weighs_the_image_twice() -> None:
    images = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    images[..., 20, 20] = 240
    once = distortion.zoom_blur(images, largest=1.0, step=0.1)
    assert torch.equal(once, images)
    blurred = distortion.zoom_blur(images, largest=1.3, step=0.1)
    assert blurred.argmax() == 20 * 41 + 20
    assert blurred[..., 20, 20] > 2 * 240 // 5  # the image counts twice of five
    assert distortion.zoom_blur(torch.full_like(images, 200), largest=1.3, step=0.1).unique().tolist() == [200]


def test_one_sigma_for_all_is_the_blur_with_a_sigma_each_but_for_the_border_and_fractions() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 40, 33), dtype=np.uint8))
    each = gaussian_blur(images, torch.full((2,), 1.7), torch.full((2,), 7))
    cut_off = (each.int() - blur_with_one_sigma(images, sigma_px=1.7, radius_px=7).int())[..., 7:-7, 7:-7]
    assert cut_off.unique().tolist() == [0, 1]
    assert cut_off.float().mean() == pytest.approx(0.5, abs=0.05)
    step = torch.zeros(1, 1, 1, 9, dtype=torch.uint8)
    step[..., 0] = 200  # repeated outside: half of the weight and half of the middle's lie on it
    assert blur_with_one_sigma(step, sigma_px=1.0, radius_px=4)[0, 0, 0, 0] == int(200 * (0.5 + 0.5 * 0.39905))
