from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import random_set, tiny_trial
from trainables.config import TrialConfig
from trainables.data.batches import TrainingImages, choose_label_fraction
from trainables.data.dataset import ImageSet
from trainables.errors import ConfigError

CPU = torch.device("cpu")


def config(**sections: Any) -> TrialConfig:
    training = {"epochs": 3, "batch_size": 16, "label_fraction": 1.0, **sections.pop("training", {})}
    return tiny_trial(training=training, **sections)


def batches(settings: TrialConfig, epoch: int = 1, num_images: int = 48) -> list[tuple[torch.Tensor, ...]]:
    return list(TrainingImages(random_set("train", num_images), settings, CPU).epoch(epoch))


def test_arms_share_order_and_sample_seeds() -> None:
    plain = batches(config())
    for arm in (
        {"augmentation": {"kind": "strong"}},
        {"regulariser": {"kind": "mixup"}},
        {"model": {"name": "resnet18"}},
    ):
        for mine, theirs in zip(plain, batches(config(**arm)), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    for other in (batches(config(), epoch=2), batches(config(replicate=1)), batches(config(seed=1))):
        assert not torch.equal(plain[0][3], other[0][3])
        assert not torch.equal(plain[0][0], other[0][0])


def test_a_sample_keeps_its_seed_whatever_the_batch_size() -> None:
    def seeds(batch_size: int) -> dict[bytes, int]:
        found = batches(config(training={"batch_size": batch_size}))
        return {
            image.numpy().tobytes(): int(seed)
            for images, _, _, seeds in found
            for image, seed in zip(images, seeds, strict=True)
        }

    assert seeds(5) == seeds(48)
    assert len(seeds(48)) == 48


def test_every_image_comes_once_with_its_own_label_and_site() -> None:
    train_set = random_set("train", 48)
    rows = {image.tobytes(): index for index, image in enumerate(train_set.images)}
    seen = []
    for images, labels, sites, _ in batches(config()):
        for image, label, site in zip(images, labels, sites, strict=True):
            row = rows[image.numpy().tobytes()]
            assert label == train_set.labels[row]
            assert "ab"[int(site)] == train_set.sites[row]
            seen.append(row)
    assert sorted(seen) == list(range(48))


def test_no_batch_holds_a_single_image() -> None:
    sizes = [len(images) for images, *_ in batches(config(training={"batch_size": 16}), num_images=33)]
    assert sizes == [16, 17]
    assert TrainingImages(random_set("train", 33), config(), CPU).num_batches == 2
    with pytest.raises(ConfigError, match="leaves 1 training images"):
        TrainingImages(random_set("train", 1), config(), CPU)


def test_label_fractions_are_nested_whole_groups_of_every_class() -> None:
    train_set = random_set("train", 240)
    chosen = {
        fraction: set(choose_label_fraction(train_set, fraction, 7).tolist()) for fraction in (0.01, 0.1, 0.5, 1.0)
    }
    assert chosen[0.01] < chosen[0.1] < chosen[0.5] < chosen[1.0]
    assert len(chosen[1.0]) == 240
    assert len(chosen[0.5]) == pytest.approx(120, abs=6)
    for rows in chosen.values():
        assert {train_set.labels[row] for row in rows} == {0, 1, 2}
        groups = {train_set.groups[row] for row in rows}
        assert rows == {row for row in range(240) if train_set.groups[row] in groups}
    assert set(choose_label_fraction(train_set, 0.5, 8).tolist()) != chosen[0.5]


def test_label_fraction_is_drawn_per_replicate_and_shared_by_its_arms() -> None:
    def rows(replicate: int, augmentation: str = "none") -> list[int]:
        settings = config(replicate=replicate, training={"label_fraction": 0.2}, augmentation={"kind": augmentation})
        return list(TrainingImages(random_set("train", 240), settings, CPU).rows.tolist())

    assert rows(0) == rows(0, "strong")
    assert rows(0) != rows(1)


def make_eyes(num_patients: int) -> ImageSet:
    """Two eyes per patient: the left one always healthy, the right one sick in every fifth patient."""
    base = random_set("train", 2 * num_patients)
    labels = np.array([int(eye == 1 and patient % 5 == 0) for patient in range(num_patients) for eye in (0, 1)])
    groups = np.array([f"p{patient}" for patient in range(num_patients) for _ in (0, 1)])
    return replace(base, labels=labels, groups=groups)


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.1, 0.2, 0.5])
def test_a_class_that_is_never_the_first_of_its_group_is_drawn_too(fraction: float) -> None:
    eyes = make_eyes(40)
    total = np.bincount(eyes.labels)
    for seed in range(30):
        rows = choose_label_fraction(eyes, fraction, seed)
        drawn = np.bincount(eyes.labels[rows], minlength=2)
        assert (drawn >= np.maximum(1, np.ceil(fraction * total - 1e-9))).all()
        assert (drawn <= 2 + np.ceil(2 * fraction * total)).all()


def test_the_regulariser_chooses_the_groups() -> None:
    train_set = replace(random_set("train", 48), metadata={"nuisance": [0, 1, 1] * 16})
    settings = config(regulariser={"kind": "group_dro", "group_by": ["nuisance", "site"]})
    images = TrainingImages(train_set, settings, CPU)
    assert images.groups.names == ("nuisance_0.site_a", "nuisance_0.site_b", "nuisance_1.site_a", "nuisance_1.site_b")
    labels, groups = (torch.cat(column) for column in list(zip(*images.epoch(1), strict=True))[1:3])
    # Label 0 is the nuisance 0 here.
    assert torch.equal((groups < 2), labels == 0)
    few = TrainingImages(
        train_set, settings.model_copy(update={"training": config(training={"label_fraction": 0.1}).training}), CPU
    )
    assert len(few.groups.index) == len(few.rows) < 48
