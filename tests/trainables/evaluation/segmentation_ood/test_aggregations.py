"""Aggregations of maps of uncertainty against loops over pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from trainables.errors import DataError
from trainables.evaluation.confidence import AGGREGATIONS
from trainables.evaluation.segmentation_ood.aggregations import aggregate_uncertainty


def loop(uncertainty: np.ndarray, prediction: np.ndarray, patch: int, boundary: int) -> dict[str, float]:
    """One image, pixel by pixel."""
    sides = uncertainty.shape
    corners = itertools.product(*(range(side - patch + 1) for side in sides))
    worst = max(uncertainty[tuple(slice(at, at + patch) for at in corner)].mean() for corner in corners)
    away = []
    for place in itertools.product(*map(range, sides)):
        near = tuple(slice(max(0, at - boundary), at + boundary + 1) for at in place)
        if len(np.unique(prediction[near])) == 1:
            away.append(uncertainty[place])
    foreground = uncertainty[prediction > 0]
    whole = uncertainty.mean()
    return {
        "image": whole,
        "foreground": foreground.mean() if len(foreground) else whole,
        "worst_patch": worst,
        "boundary_excluded": np.mean(away) if away else whole,
    }


@pytest.mark.parametrize(("shape", "patch", "boundary"), [((12, 9), 3, 1), ((7, 11), 4, 2), ((6, 5, 7), 2, 1)])
def test_aggregations_are_those_of_a_loop(shape: tuple[int, ...], patch: int, boundary: int) -> None:
    random = np.random.default_rng(0)
    uncertainty = random.random((4, *shape))
    prediction = np.zeros((4, *shape), dtype=np.uint8)
    prediction[0, :4, :3], prediction[0, 4:, 1:3] = 1, 2  # boundaries between classes count as well
    prediction[1] = 1
    prediction[2] = random.integers(0, 3, shape)  # everything is next to a boundary
    found = aggregate_uncertainty(
        torch.from_numpy(uncertainty), torch.from_numpy(prediction), patch=patch, boundary=boundary
    )
    assert list(found) == list(AGGREGATIONS)
    for image in range(4):
        expected = loop(uncertainty[image], prediction[image], patch, boundary)
        for name, values in found.items():
            assert values[image].item() == pytest.approx(expected[name], rel=1e-9), (name, image)


def test_in_a_thin_volume_a_patch_is_as_thick_as_it() -> None:
    maps = torch.rand(2, 4, 12, 12, dtype=torch.float64)
    found = aggregate_uncertainty(maps, torch.zeros(2, 4, 12, 12, dtype=torch.uint8), patch=10)["worst_patch"]
    corners = itertools.product(range(3), repeat=2)
    expected = torch.stack([maps[:, :, y : y + 10, x : x + 10].mean((1, 2, 3)) for y, x in corners]).amax(0)
    assert torch.allclose(found, expected)


def test_a_patch_that_does_not_fit_is_an_error() -> None:
    maps = torch.zeros(2, 8, 20)
    with pytest.raises(DataError, match=r"aggregated maps of \(8, 20\) pixels over patches with a side of 10"):
        aggregate_uncertainty(maps, maps.long())
