"""Patches of volumes: where they lie, what decides them; augmentation moves volumes and targets alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.volumes import write_balls
from trainables.augmentation.pipeline import build_augmentation
from trainables.augmentation.volumes import VolumeAugmenter, erase_boxes
from trainables.augmentation_config import NoAugmentation, StrongAugmentation
from trainables.config import TrialConfig
from trainables.data.dataset import UNCOUNTED, Dataset
from trainables.data.load import load_dataset
from trainables.regularisers import SpectralDecoupling
from trainables.segmentation_data_config import DecathlonData
from trainables.task_config import SegmentationTask
from trainables.training.segmentation.batches import PatchBatch
from trainables.training.segmentation.losses import SegmentationLoss
from trainables.training.segmentation.volumes import TrainingVolumes, list_foreground

pytest.importorskip("nibabel", reason="NIfTI is read by nibabel: pip install 'robustsweep[medical]'")
CPU = torch.device("cpu")
SIDES = (4, 12, 12)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_balls(tmp_path_factory.mktemp("balls") / "d")
    config = DecathlonData(path=root, channels=1, dimensions=3)
    return load_dataset(config, cache_dir=root.parent / "cache")


def cut(data: Dataset, *, batch_size: int = 4, number: int = 200, **settings: Any) -> list[PatchBatch]:
    config = TrialConfig.model_validate({"data": {"kind": "digits"}, "training": {"batch_size": batch_size}})
    patches = TrainingVolumes(data.splits["train"], config, CPU, patch_size=SIDES, patches_per_epoch=number, **settings)
    return list(patches.epoch(1))


def stack(batches: list[PatchBatch]) -> PatchBatch:
    return PatchBatch(*(torch.cat(each) for each in zip(*batches, strict=True)))


def test_a_patch_is_a_box_of_its_volume_with_its_targets(data: Dataset) -> None:
    train, patches = data.splits["train"], stack(cut(data, number=12))
    assert train.targets is not None
    assert patches.images.shape == (12, 1, *SIDES)
    windows = np.lib.stride_tricks.sliding_window_view(train.images[:, 0], SIDES, axis=(1, 2, 3))
    for image, target in zip(patches.images.numpy(), patches.targets.numpy(), strict=True):
        found = np.argwhere((windows == image[0]).all(axis=(4, 5, 6)))
        assert len(found) == 1  # noise: no two boxes are alike
        row, *corner = found[0]
        box = tuple(slice(first, first + side) for first, side in zip(corner, SIDES, strict=True))
        assert np.array_equal(train.targets[(row, *box)], target)
        assert not (target == UNCOUNTED).any()


def test_batch_size_changes_no_patch(data: Dataset) -> None:
    one, other = (stack(cut(data, batch_size=size, number=12)) for size in (4, 6))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.seeds, other.seeds)


def test_some_patches_are_centred_on_foreground(data: Dataset) -> None:
    """Balls are far from the borders, so the voxel in the middle of such a patch is one of theirs."""
    for share, low, high in ((0.0, 0.0, 0.35), (1.0, 1.0, 1.0), (0.5, 0.45, 0.7)):
        targets = stack(cut(data, foreground_share=share)).targets
        centres = targets[(slice(None), *(side // 2 for side in SIDES))]
        assert low <= float((centres == 1).float().mean()) <= high, share


def test_foreground_is_listed_by_class() -> None:
    targets = np.zeros((3, 4, 5), dtype=np.uint8)
    targets[1, 2, 3], targets[0, 0, :2], targets[2, 3, 4] = 2, 1, UNCOUNTED
    assert [voxels.tolist() for voxels in list_foreground(targets)] == [[[0, 0, 0], [0, 0, 1]], [[1, 2, 3]]]
    many = list_foreground(np.ones((30, 30, 30), dtype=np.uint8))[0]
    assert len(many) == 9000  # every third of 27,000


@pytest.mark.parametrize("policy", ["strong-v1", "strong-v0.1.0"])
def test_every_slice_is_augmented_as_an_image_with_the_seed_of_the_volume(policy: Any) -> None:
    config = StrongAugmentation(policy=policy, horizontal_flip=True, vertical_flip=True)
    torch.manual_seed(0)
    volumes, seeds = torch.randint(0, 256, (6, 1, 5, 20, 20), dtype=torch.uint8), torch.arange(6)
    mine, images = VolumeAugmenter(config, 20), build_augmentation(config, 20)
    masks = (volumes > 128).to(torch.uint8)
    moved = mine.move(masks, seeds)
    augmented = mine(volumes, seeds)
    assert not torch.equal(augmented, volumes)
    for number in range(5):
        assert torch.equal(moved[:, :, number], images.move(masks[:, :, number], seeds))
        if policy == "strong-v1":  # without noise, which differs from slice to slice
            assert torch.equal(augmented[:, :, number], images(volumes[:, :, number], seeds))


def test_noise_differs_from_slice_to_slice() -> None:
    config, seeds = StrongAugmentation(), torch.arange(60)
    augmented = VolumeAugmenter(config, 8)(torch.full((60, 1, 2, 8, 8), 120, dtype=torch.uint8), seeds)
    has_noise = augmented.float().std((1, 3, 4)).amax(1) > 0  # nothing else makes an even image uneven
    assert 0 < int(has_noise.sum()) < 30
    assert all(not torch.equal(each[:, 0], each[:, 1]) for each in augmented[has_noise])


def test_slices_are_reversed_with_probability_a_half_and_targets_with_them() -> None:
    augment, seeds = VolumeAugmenter(NoAugmentation(slice_flip=True), 4), torch.arange(200)
    volumes = torch.arange(3, dtype=torch.uint8)[None, None, :, None, None].expand(200, 1, 3, 4, 4)
    flipped = augment(volumes, seeds)
    assert torch.equal(flipped, augment.move(volumes, seeds))
    is_flipped = flipped[:, 0, 0, 0, 0] == 2
    assert 70 < int(is_flipped.sum()) < 130
    assert torch.equal(flipped[is_flipped], volumes[is_flipped].flip(2))
    assert torch.equal(flipped[~is_flipped], volumes[~is_flipped])


def test_a_box_is_erased_through_all_slices() -> None:
    erased = erase_boxes(torch.ones(3, 1, 4, 16, 16), torch.arange(3), 1.0)
    assert (erased == 0).any(3).any(3).all()
    assert torch.equal(erased, erased[:, :, :1].expand_as(erased))


def test_losses_of_voxels_are_those_of_the_same_pixels() -> None:
    """A volume cut into one tall image has the same Dice, cross-entropy and spectral decoupling."""
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 4, 5, 6)).to(torch.uint8)
    targets[0, 0] = UNCOUNTED
    loss = SegmentationLoss(SegmentationTask(), SpectralDecoupling(weight=0.1), num_classes=3, device=CPU)
    sources = torch.zeros(2, dtype=torch.int64)
    of_voxels = loss(logits, targets, sources, 0)
    of_pixels = loss(logits.flatten(2, 3), targets.flatten(1, 2), sources, 0)
    assert set(of_voxels) == {"dice", "cross_entropy", "spectral_decoupling"}
    for name, value in of_voxels.items():
        assert torch.allclose(value, of_pixels[name]), name


def test_a_volume_that_is_smaller_than_a_patch_is_padded(tmp_path: Path) -> None:
    root = write_balls(tmp_path / "d", cases=6)
    data = load_dataset(DecathlonData(path=root, channels=1, dimensions=3), cache_dir=tmp_path / "cache")
    config = TrialConfig.model_validate({"data": {"kind": "digits"}, "training": {"batch_size": 2}})
    train = data.splits["train"]
    patches = TrainingVolumes(train, config, CPU, patch_size=(9, 24, 24), patches_per_epoch=8)
    (batch, *_) = patches.epoch(1)
    assert batch.images.shape == (2, 1, 9, 24, 24)
    every = stack(list(patches.epoch(1))).targets
    assert {int((each == UNCOUNTED).sum()) for each in every} == {0, 24 * 24}
