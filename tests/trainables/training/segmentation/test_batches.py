from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import random_set
from trainables.config import TrialConfig
from trainables.data.dataset import ImageSet
from trainables.data_config import DataConfig
from trainables.errors import ConfigError
from trainables.training.segmentation.batches import TrainingPatches, crop_patches, find_shares

CPU = torch.device("cpu")


def make_train() -> ImageSet:
    """Return 12 images of the data set 0 and 4 of 1, whose targets are their first channel."""
    train = random_set("train", 16)
    return replace(train, labels=np.repeat([0, 1], [12, 4]), targets=np.array(train.images[:, 0]))


def make_patches(**settings: Any) -> TrainingPatches:
    settings = {"patch_size": None, "patches_per_epoch": None} | settings
    return TrainingPatches(make_train(), TrialConfig.model_validate({"training": {"batch_size": 5}}), CPU, **settings)


def test_a_patch_is_cut_at_one_place_of_image_and_target() -> None:
    images = torch.arange(2 * 3 * 9 * 7, dtype=torch.int64).remainder(251).byte().view(2, 3, 9, 7)
    patches, targets = crop_patches(images, images[:, 1].clone(), torch.tensor([3, 4]), size=4)
    assert patches.shape == (2, 3, 4, 4)
    assert torch.equal(patches[:, 1], targets)
    for image, patch in zip(images, patches, strict=True):
        places = [(y, x) for y in range(6) for x in range(4) if torch.equal(image[:, y : y + 4, x : x + 4], patch)]
        assert len(places) == 1


def test_every_place_of_a_patch_is_drawn() -> None:
    images = torch.arange(6, dtype=torch.uint8).expand(500, 1, 1, 6).repeat(1, 1, 6, 1)
    patches, _ = crop_patches(images, images[:, 0], torch.arange(500), size=4)
    counts = Counter(patches[:, 0, 0, 0].tolist())
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 120


def test_without_shares_every_image_is_used_as_often() -> None:
    patches = make_patches()
    rows, passes = patches.draw(1)
    assert sorted(rows) == list(range(16))
    assert set(passes) == {0}
    assert not np.array_equal(rows, patches.draw(2)[0])


def test_an_epoch_has_as_many_patches_as_asked_of_every_data_set() -> None:
    patches = make_patches(patches_per_epoch=40, shares={0: 1.0, 1: 1.0})
    rows, passes = patches.draw(1)
    counts = Counter(rows.tolist())
    assert sum(counts[row] for row in range(12)) == sum(counts[row] for row in range(12, 16)) == 20
    assert {counts[row] for row in range(12)} == {1, 2}
    assert {counts[row] for row in range(12, 16)} == {5}
    assert len({*zip(rows.tolist(), passes.tolist(), strict=True)}) == 40  # no patch has the seed of another


def test_patches_of_one_image_differ() -> None:
    batches = list(make_patches(patches_per_epoch=64, patch_size=8).epoch(1))
    assert sum(len(batch.images) for batch in batches) == 64
    seeds = torch.cat([batch.seeds for batch in batches])
    assert len(seeds.unique()) == 64
    for batch in batches:
        assert torch.equal(batch.images[:, 0], batch.targets)
        assert batch.sources.max() <= 1


def test_a_patch_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.patch_size: found 24, and the images are stored at 16 px"):
        make_patches(patch_size=24)


def test_shares_are_those_of_the_data() -> None:
    organ = {"kind": "organs", "num_images": 10}

    def make(**settings: Any) -> DataConfig:
        return TrialConfig.model_validate(
            {"data": {"kind": "datasets", "datasets": {"a": organ, "b": organ | {"seed": 1}}, **settings}}
        ).data

    assert find_shares(make(), ("a", "b")) is None
    assert find_shares(make(weights="balanced"), ("a", "b")) == {0: 1.0, 1: 1.0}
    assert find_shares(make(weights={"a": 3, "b": 1}), ("a", "b")) == {0: 3.0, 1: 1.0}


def test_a_data_set_without_a_patch_is_refused() -> None:
    with pytest.raises(ConfigError, match="none is of the data set number 2 at its share"):
        make_patches(patches_per_epoch=10, shares={0: 100.0, 1: 1.0})
