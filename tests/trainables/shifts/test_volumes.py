"""Shifts of volumes: slice by slice with one draw, or over all voxels at once; what means nothing for them."""

from __future__ import annotations

import pytest
import torch

from trainables.errors import ConfigError
from trainables.evaluation_config import EvaluationConfig
from trainables.seeding import mix
from trainables.shifts.bank import DEFAULT_NAMES, SHIFT_NAMES, Shift, build_shifts

OF_SLICES = ("gaussian_blur", "defocus_blur", "motion_blur", "jpeg", "pixelate", "zoom_blur", "elastic_transform")


def build(*entries: object) -> dict[str, Shift]:
    config = EvaluationConfig.model_validate({"shifts": list(entries), "severities": [3]})
    return {shift.name: shift for shift in build_shifts(config, "general")}


@pytest.fixture(scope="module")
def volumes() -> torch.Tensor:
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(2, 1, 3, 6, 6), (5, 24, 24), mode="trilinear")
    return (255 * smooth).to(torch.uint8)


@pytest.fixture(scope="module")
def seeds() -> torch.Tensor:
    return mix(torch.arange(2), "shift", 0)


@pytest.mark.parametrize("name", OF_SLICES)
def test_slices_are_shifted_as_images_with_the_seed_of_the_volume(
    name: str, volumes: torch.Tensor, seeds: torch.Tensor
) -> None:
    shift = build(name)[name]
    shifted = shift.apply(volumes, seeds)
    assert not torch.equal(shifted, volumes)
    for number in range(volumes.shape[2]):
        assert torch.equal(shifted[:, :, number], shift.apply(volumes[:, :, number].contiguous(), seeds))


def test_noise_is_drawn_for_every_voxel(seeds: torch.Tensor) -> None:
    even = torch.full((2, 1, 5, 24, 24), 128, dtype=torch.uint8)
    names = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
    for shift in build(*names).values():
        slices = shift.apply(even, seeds)[:, 0].flatten(2).float()
        correlation = torch.stack([torch.corrcoef(each)[0, 1:] for each in slices])
        assert float(correlation.abs().max()) < 0.25, shift.name  # of 576 voxels: six standard deviations


@pytest.mark.parametrize("name", ["contrast_down", "contrast", "brightness_up", "gamma_up"])
def test_intensities_are_those_of_the_whole_volume(name: str, volumes: torch.Tensor, seeds: torch.Tensor) -> None:
    """The result is one function of intensity, which contrast about the mean of each slice is not."""
    shifted = build(name)[name].apply(volumes, seeds)
    for before, after in zip(volumes, shifted, strict=True):
        pairs = torch.stack([before.flatten(), after.flatten()]).unique(dim=1)
        assert len(pairs[0].unique()) == pairs.shape[1]


def test_a_composition_shifts_part_by_part(volumes: torch.Tensor, seeds: torch.Tensor) -> None:
    shift = build({"compose": ["gaussian_noise/2", "gaussian_blur/3"], "name": "both"})["both"]
    parts = build_shifts(
        EvaluationConfig.model_validate({"shifts": ["gaussian_noise", "gaussian_blur"], "severities": [2, 3]}),
        "general",
    )
    own = mix(seeds, "shift", shift.name, shift.strength)
    noisy = next(each for each in parts if (each.name, each.severity) == ("gaussian_noise", 2)).apply(volumes, own)
    blurred = next(each for each in parts if (each.name, each.severity) == ("gaussian_blur", 3)).apply(noisy, own)
    assert torch.equal(shift.apply(volumes, seeds), blurred)


def test_every_default_shift_fits_volumes_and_weather_does_not(volumes: torch.Tensor, seeds: torch.Tensor) -> None:
    found = build(*SHIFT_NAMES, {"compose": ["snow/2", "gaussian_blur/3"], "name": "both"})
    assert all(found[name].fits_volumes for name in DEFAULT_NAMES)
    for name in ("snow", "frost", "fog", "spatter", "glass_blur", "bubble", "black_corner", "characters", "both"):
        assert not found[name].fits_volumes
        with pytest.raises(ConfigError, match=r"found volumes, for which it means nothing"):
            found[name].apply(volumes, seeds)
