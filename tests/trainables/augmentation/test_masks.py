"""Masks follow every geometric operation to within half a pixel: discs are where the maps of the places say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.trainables.augmentation.test_augmentation import make_images, make_seeds
from trainables.augmentation.pipeline import build_augmentation, draw_crops
from trainables.augmentation.policy import WarpOperation
from trainables.augmentation_config import (
    AugmentationConfig,
    NoAugmentation,
    RandAugment,
    StrongAugmentation,
    TrivialAugment,
)

SIDE, RADIUS = 96, 6.0
#: Places (x, y) of the discs in px; the first pixel's centre is at ½. Disc k has label k + 1.
PLACES = np.array([[48.0, 48.0], [30.5, 40.0], [60.0, 31.0], [42.0, 66.5]])


def draw_discs() -> torch.Tensor:
    """Labels 1 × 1 × side × side."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    for label, (right, down) in enumerate(PLACES, 1):
        labels[np.hypot(x - right, y - down) <= RADIUS] = label
    return torch.from_numpy(labels)[None, None]


def find_places(labels: torch.Tensor) -> np.ndarray:
    """Centre of mass (x, y) of each label in one mask; NaN without it."""
    own = labels[0].numpy()
    rows = (np.nonzero(own == label) for label in range(1, len(PLACES) + 1))
    return np.array([(x.mean() + 0.5, y.mean() + 0.5) if len(x) else (np.nan, np.nan) for y, x in rows])


def expect_places(operations: list[tuple[WarpOperation, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Where warps in order put the places, and which discs never come near the edge."""
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    rims = PLACES[:, None] + (RADIUS + 2) * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    points, inside = np.concatenate([PLACES[:, None], rims], axis=1), np.ones(len(PLACES), dtype=bool)
    for operation, magnitudes in operations:
        matrix = operation.build_matrices(magnitudes[None], SIDE, SIDE)[0].double().numpy()
        points = (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T  # the maps go from the result to the source
        inside &= ((points > 0) & (points < SIDE)).all(axis=(1, 2))
    return points[:, 0], inside


@pytest.mark.parametrize("config", [StrongAugmentation(policy="strong-v1"), RandAugment(), TrivialAugment()])
def test_discs_are_where_the_warps_put_them(config: AugmentationConfig) -> None:
    augment = build_augmentation(config, SIDE)
    seeds, seen = make_seeds(400), set()
    drawn = augment.policy.draw(seeds)
    steps = [
        [(augment.policy.operations[index], own[step]) for step, index in enumerate(choices) if index >= 0]
        for choices, own in zip(drawn.choices.tolist(), drawn.magnitudes, strict=True)
    ]
    warped = [[each for each in own if isinstance(each[0], WarpOperation)] for own in steps]
    rows = [row for row, own in enumerate(warped) if own]
    moved = augment.move(draw_discs().expand(len(rows), -1, -1, -1), seeds[rows])
    for result, row in zip(moved, rows, strict=True):
        expected, inside = expect_places(warped[row])
        assert np.abs(find_places(result) - expected)[inside].max(initial=0.0) <= 0.5
        if inside.any():
            seen |= {id(operation) for operation, _ in warped[row]}
    assert len(seen) == 5  # every warp of the policy
    assert len(rows) > 30
    # An image that is only moved is the mask: both by the nearest pixel, with the same maps.
    only = [row for row, own in enumerate(warped) if own and len(own) == len(steps[row])]
    images = (draw_discs() > 0).to(torch.uint8).mul(255).expand(len(only), 3, -1, -1)
    result, masks = augment(images, seeds[only]), augment.move(images[:, :1], seeds[only])
    assert len(only) > 0
    drawn_there = masks[:, 0] == 255
    assert (result[drawn_there[:, None].expand_as(result)] == 255).all()
    assert (result[~drawn_there[:, None].expand_as(result)] < 255).all()


def test_discs_are_where_crops_and_flips_put_them() -> None:
    config = NoAugmentation(crop_scale_min=0.5, horizontal_flip=True, vertical_flip=True)
    augment, seeds = build_augmentation(config, SIDE), make_seeds(120)
    labels = draw_discs().expand(120, -1, -1, -1)
    moved = augment.move(labels, seeds)
    images = augment((labels > 0).to(torch.uint8) * 255, seeds)
    flips = set()
    for result, image, box in zip(
        moved, images, draw_crops(seeds, scale_min=0.5, height=SIDE, width=SIDE).double().numpy(), strict=True
    ):
        scale = SIDE / box[[3, 2]]
        expected = (PLACES - box[[1, 0]]) * scale
        inside = ((expected > (RADIUS + 1) * scale) & (expected < SIDE - (RADIUS + 1) * scale)).all(axis=1)
        found = find_places(result)
        options = [
            expected * (1 - 2 * flip) + SIDE * flip for flip in (np.array([a, b]) for a in (0, 1) for b in (0, 1))
        ]
        apart = [np.abs(found - option)[inside].max(initial=0.0) for option in options]
        assert min(apart) <= 0.5
        flips.add(int(np.argmin(apart)))
        # The image is interpolated: its half-way line is the mask's edge, to within half a pixel of the source.
        bright = np.argwhere(image[0].numpy() > 127)[:, ::-1] + 0.5
        assert np.abs(bright.mean(axis=0) - np.argwhere(result[0].numpy() > 0)[:, ::-1].mean(axis=0) - 0.5).max() <= 0.5
        differs = (image[0] > 127) != (result[0] > 0)
        assert differs.float().mean() < 0.01
    assert flips == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "config",
    [
        StrongAugmentation(strength=0.0),
        StrongAugmentation(policy="strong-v1", strength=0.0),
        RandAugment(strength=0.0),
        TrivialAugment(strength=0.0),
        NoAugmentation(),
    ],
)
def test_strength_0_leaves_image_and_mask_as_they_are(config: AugmentationConfig) -> None:
    augment, seeds = build_augmentation(config, 19), make_seeds(50)
    images, masks = make_images(50), make_images(50, channels=1)
    assert torch.equal(augment(images, seeds), images)
    assert torch.equal(augment.move(masks, seeds), masks)
