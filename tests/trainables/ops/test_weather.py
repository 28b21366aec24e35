"""Snow, frost, fog and spatter: what stays, what goes, which way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.ops import weather
from trainables.ops.frost_textures import NUM_TEXTURES, frost_textures

SEEDS = torch.arange(6)


def flat(value: int, channels: int = 3, side: int = 48) -> torch.Tensor:
    return torch.full((6, channels, side, side), value, dtype=torch.uint8)


def test_snow_is_white_and_the_same_in_all_channels() -> None:
    images = flat(90)
    snowy = weather.add_snow(images, SEEDS, density=(0.1, 0.3), threshold=0.5, flake_px=2.0, streak=(5, 2.0), kept=0.8)
    assert (snowy >= images).all()
    assert torch.equal(snowy[:, 0], snowy[:, 2])
    assert snowy.float().std() > 5


def test_frost_textures_are_the_same_every_time_and_fit_any_side() -> None:
    device = torch.device("cpu")
    small, usual = frost_textures(28, device), frost_textures(224, device)
    assert usual.shape == (NUM_TEXTURES, 3, 512, 512)
    assert small.shape[-1] > 28
    assert torch.equal(frost_textures.__wrapped__(28, device), small)
    # Tints of the photographs, and texture at all scales rather than noise.
    np.testing.assert_allclose(usual[1].float().mean((1, 2)), (201, 205, 214), atol=3)
    for texture in usual.float():
        neighbours = (texture[:, 1:] - texture[:, :-1]).abs().mean()
        assert 1 < neighbours < 0.8 * texture.std()


@pytest.mark.parametrize("channels", [1, 3])
def test_frost_is_a_blend_with_a_part_of_a_texture(channels: int) -> None:
    images = flat(100, channels)
    only_kept = weather.add_frost(images, SEEDS, kept=0.5, frost=0.0)
    assert only_kept.unique().tolist() == [50]
    assert weather.add_frost(images + 3, SEEDS, kept=0.5, frost=0.0).unique().tolist() == [51]  # 51.5, cut off
    frosty = weather.add_frost(images, SEEDS, kept=0.0, frost=1.0)
    red = frost_textures(48, images.device)[:, 0]
    if channels == 3:  # the first image is a part of a texture
        rows = red.unfold(2, 48, 1) == frosty[0, 0, 0]
        place = rows.all(3).nonzero()
        assert any(torch.equal(red[k, y : y + 48, x : x + 48], frosty[0, 0]) for k, y, x in place.tolist())
    assert len({tuple(image.flatten().tolist()) for image in frosty}) > 1


def test_fog_brightens_the_dark_and_keeps_the_brightest_value() -> None:
    images = flat(30)
    images[:, :, 10, 10] = 240
    foggy = weather.add_fog(images, SEEDS, amount=2.0, decay=2.0)
    assert foggy.float().mean() > images.float().mean()
    assert foggy.amax() <= 240
    assert torch.equal(foggy[:, 0, 20:], foggy[:, 1, 20:])
    assert not torch.equal(foggy[0], foggy[1])


def test_fractal_heights_fill_the_range_and_rough_ones_are_rougher() -> None:
    smooth, rough = (weather._diamond_square(SEEDS, 64, decay) for decay in (3.0, 1.4))
    for heights in (smooth, rough):
        np.testing.assert_allclose(heights.amin((1, 2)), 0.0)
        np.testing.assert_allclose(heights.amax((1, 2)), 1.0)
    step = lambda heights: (heights[:, 1:] - heights[:, :-1]).abs().mean()  # noqa: E731
    assert step(rough) > 2 * step(smooth)


def test_rims_of_drops_are_opencvs() -> None:
    """A round drop, a smaller one and a slope; expected is what OpenCV 4.9 made of them in imagecorruptions' steps."""
    y, x = np.mgrid[0:16, 0:24]
    drops = np.maximum(230 - 5 * ((x - 6) ** 2 + (y - 7) ** 2), 200 - 11 * ((x - 18) ** 2 + (y - 4) ** 2))
    layer = np.maximum(drops, 3 * x + 5 * y - 20)
    layer[layer < 70] = 0
    rims = weather._light_rims(torch.from_numpy(layer.astype(np.uint8))[None, None])[0, 0]
    expected = {
        0: "22 21 14 27 41 41 41 41 41 69 124 132 90 21 0 0 0 0 0 14 97 180 207 207",
        5: "55 111 196 254 255 255 250 214 129 49 70 155 196 126 41 42 84 84 42 28 84 141 169 170",
        9: "14 55 98 146 129 84 35 12 0 0 0 41 69 98 112 168 225 254 255 255 255 255 255 255",
        15: "190 149 83 28 14 0 0 0 85 170 255 255 255 255 255 255 255 255 255 255 255 255 255 255",
    }
    for row, values in expected.items():
        assert rims[row].tolist() == [float(value) for value in values.split()], row


@pytest.mark.parametrize("channels", [1, 3])
def test_water_brightens_drops_and_mud_is_brown(channels: int) -> None:
    images = flat(120, channels)
    wet = weather.splash_water(images, SEEDS, liquid=(0.65, 0.05), drop_px=2.0, threshold=0.68, amount=0.6)
    assert (wet >= images).all()
    assert 0.02 < (wet > images).float().mean() < 0.5
    muddy = weather.splash_mud(images, SEEDS, liquid=(0.65, 0.1), drop_px=1.0, threshold=0.65, soft_px=1.0)
    covered = (muddy < images).any(1, keepdim=True)
    assert 0.05 < covered.float().mean() < 0.95
    if channels == 3:
        assert muddy.amin((0, 2, 3)).tolist() == [63, 42, 20]
    dry = weather.splash_water(images, SEEDS, liquid=(0.0, 0.01), drop_px=2.0, threshold=0.68, amount=0.6)
    assert torch.equal(dry, images)
