"""Contours and distances against plain loops, and against what OpenCV made of the same pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainables.ops.colour import equalize_as_opencv
from trainables.ops.contours import find_contours, measure_distance

#: Of two drops and a slope, by OpenCV 4.9: ``Canny(levels, 50, 150)``.
CONTOURS = """
........................
................#####...
...#######.....##...##..
..##.....##....#.....#..
.##.......##...#.....##.
.#.........#...#....#.##
.#.........#...##.###...
.#.........#....##......
.#.........#....#.......
.#........##..##........
.##......##..##.........
..##....##.#............
...######...............
........................
......####..............
.....#..................
"""


def make_levels(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth random values with sharp edges and weak ones."""
    noise = np.random.default_rng(seed).normal(0, 1, (height + 8, width + 8))
    field = sum(noise[i : i + height, j : j + width] for i in range(8) for j in range(8)) / 8
    levels = np.clip(128 + 50 * field, 0, 255)
    levels[levels < 90] = 0
    return levels.astype(np.uint8)


def canny(levels: np.ndarray, weak: int, strong: int) -> np.ndarray:
    """The same pixel by pixel, with angles instead of tangents."""
    height, width = levels.shape
    x = np.pad(levels.astype(int), 1, mode="edge")
    right = x[:-2, 2:] + 2 * x[1:-1, 2:] + x[2:, 2:] - x[:-2, :-2] - 2 * x[1:-1, :-2] - x[2:, :-2]
    down = x[2:, :-2] + 2 * x[2:, 1:-1] + x[2:, 2:] - x[:-2, :-2] - 2 * x[:-2, 1:-1] - x[:-2, 2:]
    strength = np.pad(np.abs(right) + np.abs(down), 1)
    ridge = np.zeros((height, width), dtype=bool)
    for row in range(height):
        for column in range(width):
            angle = math.degrees(math.atan2(abs(down[row, column]), abs(right[row, column])))
            here = strength[row + 1, column + 1]
            if angle < 22.5:
                ridge[row, column] = here > strength[row + 1, column] and here >= strength[row + 1, column + 2]
            elif angle > 67.5:
                ridge[row, column] = here > strength[row, column + 1] and here >= strength[row + 2, column + 1]
            else:
                side = 1 if right[row, column] * down[row, column] > 0 else -1
                before, after = strength[row, column + 1 - side], strength[row + 2, column + 1 + side]
                ridge[row, column] = here > before and here > after
    strength = strength[1:-1, 1:-1]
    found = ridge & (strength > strong)
    todo = list(zip(*np.nonzero(found), strict=True))
    while todo:
        row, column = todo.pop()
        for r in range(max(0, row - 1), min(height, row + 2)):
            for c in range(max(0, column - 1), min(width, column + 2)):
                if ridge[r, c] and strength[r, c] > weak and not found[r, c]:
                    found[r, c] = True
                    todo.append((r, c))
    return found


def test_contours_are_opencvs() -> None:
    y, x = np.mgrid[0:16, 0:24]
    drops = np.maximum(230 - 5 * ((x - 6) ** 2 + (y - 7) ** 2), 200 - 11 * ((x - 18) ** 2 + (y - 4) ** 2))
    levels = np.maximum(drops, 3 * x + 5 * y - 20)
    levels[levels < 70] = 0
    found = find_contours(torch.from_numpy(levels.astype(np.uint8))[None, None], weak=50, strong=150)[0, 0]
    assert ["".join(".#"[pixel] for pixel in row) for row in found.int().tolist()] == CONTOURS.split()


@pytest.mark.parametrize(("height", "width"), [(28, 28), (31, 50), (1, 9), (40, 3)])
def test_contours_are_cannys(height: int, width: int) -> None:
    images = np.stack([make_levels(seed, height, width) for seed in range(6)])
    found = find_contours(torch.from_numpy(images)[:, None], weak=50, strong=150)[:, 0].numpy()
    expected = np.stack([canny(image, 50, 150) for image in images])
    np.testing.assert_array_equal(found, expected)
    if min(height, width) > 20:
        assert (expected.sum() - sum(canny(image, 150, 150).sum() for image in images)) > 0  # weak ones matter


def test_a_long_weak_contour_is_followed_to_its_end() -> None:
    levels = torch.zeros(2, 1, 30, 90, dtype=torch.uint8)
    levels[:, :, 15:] = 20  # gradients of 80, weak
    levels[0, :, 15:, :4] = 60  # of 240, strong: only here
    found = find_contours(levels, weak=50, strong=150)
    assert found[0, 0, 14].sum() + found[0, 0, 15].sum() >= 89
    assert not found[1].any()


def chamfer(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Length of the shortest way over so many rows and columns, in ten-thousandths."""
    longer, shorter = np.maximum(rows, columns), np.minimum(rows, columns)
    flat = 10_000 * (longer - 2 * shorter) + 21_969 * shorter
    steep = 14_000 * (2 * shorter - longer) + 21_969 * (longer - shorter)
    return np.where(longer >= 2 * shorter, flat, steep)


@pytest.mark.parametrize(("height", "width", "limit_px"), [(50, 60, 20), (28, 28, 20), (45, 2, 20), (30, 41, 7)])
def test_distances_are_those_of_sideways_slanted_and_knights_moves(height: int, width: int, limit_px: int) -> None:
    generator = np.random.default_rng(height)
    found = np.zeros((3, height, width), dtype=bool)
    found[0, height // 2, width // 2] = True
    found[1] = generator.random((height, width)) < 0.02
    y, x = np.mgrid[0:height, 0:width]
    distance = measure_distance(torch.from_numpy(found)[:, None], limit_px=limit_px)[:, 0].numpy()
    for image, measured in zip(found[:2], distance, strict=False):
        each = [chamfer(np.abs(y - row), np.abs(x - column)) for row, column in zip(*np.nonzero(image), strict=True)]
        np.testing.assert_array_equal(measured, np.minimum(np.min(each, axis=0), limit_px * 10_000))
    assert (distance[2] == limit_px * 10_000).all()  # nothing found


def test_equalisation_is_opencvs() -> None:
    levels = torch.tensor([[3, 3, 7, 7, 7, 20], [20, 20, 20, 20, 21, 9]], dtype=torch.uint8)
    expected = [[0, 0, 76, 76, 76, 230], [230, 230, 230, 230, 255, 102]]  # OpenCV 4.9
    assert equalize_as_opencv(levels[None, None])[0, 0].tolist() == expected
    flat = torch.full((1, 3, 4, 5), 17, dtype=torch.uint8)
    assert torch.equal(equalize_as_opencv(flat), flat)
