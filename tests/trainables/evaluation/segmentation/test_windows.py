from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from tests.support.tiny_configs import random_set
from trainables.evaluation.segmentation.predict import count_windows
from trainables.evaluation.segmentation.windows import place_windows, predict_windows
from trainables.task_config import SegmentationTask


@pytest.mark.parametrize(("length", "size", "overlap"), [(100, 40, 0.5), (33, 32, 0.25), (64, 64, 0.5), (20, 8, 0.0)])
def test_windows_cover_everything_and_overlap(length: int, size: int, overlap: float) -> None:
    starts = place_windows(length, size, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - size)
    steps = [later - earlier for earlier, later in pairwise(starts)]
    assert all(step <= max(1, int(size * (1 - overlap))) for step in steps)


def test_of_a_network_without_context_windows_give_the_whole_image() -> None:
    torch.manual_seed(0)
    network, images = nn.Conv2d(3, 2, 1), torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        assert torch.allclose(predict_windows(network, images, size=32, overlap=0.5), network(images), atol=1e-5)


def test_blending_is_that_of_monai_where_the_windows_are_the_same() -> None:
    """Three by three windows of 32 px on 64 px; the peer's weights have another smallest value."""
    torch.manual_seed(0)
    network, images = nn.Conv2d(1, 2, 5, padding=2), torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        mine = predict_windows(network, images, size=32, overlap=0.5)
        peer = sliding_window_inference(images, 32, 4, network, overlap=0.5, mode="gaussian")
    assert torch.allclose(mine, peer, atol=2e-3)


def test_volumes_are_blended_as_by_monai() -> None:
    """Anisotropic windows, two by three by three of them."""
    torch.manual_seed(0)
    network, volumes = nn.Conv3d(1, 2, 3, padding=1), torch.randn(1, 1, 12, 32, 32)
    size = (8, 16, 16)
    with torch.no_grad():
        mine = predict_windows(network, volumes, size=size, overlap=0.5)
        peer = sliding_window_inference(volumes, size, 4, network, overlap=0.5, mode="gaussian")
    assert torch.allclose(mine, peer, atol=2e-3)


def test_a_volume_smaller_than_a_window_is_filled_up_and_cut_again() -> None:
    torch.manual_seed(0)
    network, volumes = nn.Conv3d(1, 2, 1), torch.randn(1, 1, 5, 20, 9)
    seen: list[tuple[int, ...]] = []

    def forward(windows: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(windows.shape[2:]))
        found: torch.Tensor = network(windows)
        return found

    with torch.no_grad():
        found = predict_windows(forward, volumes, size=(8, 16, 16), overlap=0.5)
        assert torch.allclose(found, network(volumes), atol=1e-5)
    assert seen == [(8, 16, 16)] * 2


def test_the_middle_of_a_window_counts_most() -> None:
    """A network that answers with the distance to its window's edge: blending takes the larger distances."""

    def distance(images: torch.Tensor) -> torch.Tensor:
        across = torch.arange(images.shape[-1], dtype=torch.float32)
        return torch.minimum(across, across.flip(0)).expand(1, 1, *images.shape[-2:])

    found = predict_windows(distance, torch.zeros(1, 1, 8, 24), size=8, overlap=0.5)
    assert float(found[0, 0, 0, 8]) > 1.2 * (0 + 3) / 2  # the edge of one window, the middle of another


def test_windows_of_common_passes_are_those_of_single_ones() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(3, 2, 3, padding=1)
    images = torch.rand(2, 3, 80, 64, generator=torch.Generator().manual_seed(1))
    passes: list[int] = []

    def forward(windows: torch.Tensor) -> torch.Tensor:
        passes.append(len(windows))
        return network(windows)

    with torch.no_grad():
        single = predict_windows(forward, images, size=32, overlap=0.5)
    assert passes == [2] * 12
    with torch.no_grad():
        common = predict_windows(forward, images, size=32, overlap=0.5, batch_size=11)
    assert passes[12:] == [10, 10, 4]
    assert torch.allclose(single, common, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "batch_size", "count"), [(96, 256, 256), (512, 256, 16), (4096, 256, 1), (96, 3, 3)]
)
def test_windows_of_a_pass_have_no_more_pixels_than_a_batch(window: int, batch_size: int, count: int) -> None:
    task = SegmentationTask(kind="segmentation", patch_size=window)
    assert count_windows(random_set("images", 4), task, batch_size) == count
