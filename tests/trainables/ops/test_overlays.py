"""Deposits, bubbles, black corners and characters: numbers, sizes and colours of what is laid over."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainables.ops import overlays

SEEDS = torch.arange(12)
LIGHT = torch.full((12, 3, 96, 80), 200, dtype=torch.uint8)


def test_deposits_are_black_and_about_as_large_as_said() -> None:
    result = overlays.deposit_stain(LIGHT, SEEDS, most=1, radius_px=8.0)
    assert set(result.unique().tolist()) == {0, 200}
    areas = (result[:, 0] == 0).sum((1, 2)).float()
    assert (areas > 0.5 * math.pi * 64).all()
    assert (areas < 1.8 * math.pi * 64).all()
    more = overlays.deposit_stain(LIGHT, SEEDS, most=5, radius_px=8.0)
    assert (more == 0).float().mean() > 1.5 * (result == 0).float().mean()


def test_bubbles_are_half_transparent_with_a_brighter_rim() -> None:
    result = overlays.add_bubbles(LIGHT, SEEDS, most=9, radius_px=(3.0, 8.0), rim_px=2.0)
    inside, rim = (round(200 + 55 * opacity / 255) for opacity in (100, 130))
    assert set(result.unique().tolist()) == {200, inside, rim}
    few = overlays.add_bubbles(LIGHT, SEEDS, most=7, radius_px=(3.0, 3.0), rim_px=0.0)
    area = (few[:, 0] != 200).sum((1, 2)).float()
    assert (area <= 7 * math.pi * 3.6**2).all()
    assert (area >= 2 * math.pi * 2.4**2).all()  # seven, some on top of each other


def test_corners_are_black_outside_the_circle() -> None:
    result = overlays.blacken_corners(LIGHT, radius=0.9)
    y, x = np.mgrid[0:96, 0:80]
    inside = (y - 48) ** 2 + (x - 40) ** 2 <= int(40 * 0.9) ** 2
    np.testing.assert_array_equal(result[3, 1].numpy() > 0, inside)


@pytest.mark.parametrize("channels", [1, 3])
def test_characters_are_few_and_legible(channels: int) -> None:
    images = torch.full((12, channels, 64, 120), 128, dtype=torch.uint8)
    written = overlays.write_characters(images, SEEDS, most_words=1, most_letters=5, heights_px=(11.0, 11.0))
    share = (written != images).any(1).float().mean((1, 2))
    assert (share > 0.004).all()  # three letters at least
    assert (share < 5 * 6 * 11 / (64 * 120)).all()
    assert not torch.equal(written[0], written[1])
    more = overlays.write_characters(images, SEEDS, most_words=6, most_letters=10, heights_px=(11.0, 11.0))
    assert (more != images).float().mean() > 2 * (written != images).float().mean()


def test_the_font_tells_letters_apart() -> None:
    glyphs = overlays._glyphs(torch.device("cpu")).reshape(26, -1)
    assert len({tuple(glyph.tolist()) for glyph in glyphs}) == 26
    assert (glyphs.sum(1) > 4).all()
