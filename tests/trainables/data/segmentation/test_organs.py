"""Drawn organs: masks lie where the image says, a seed decides every pixel, patients are not divided."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainables.data.dataset import UNCOUNTED
from trainables.data.load import load_dataset
from trainables.segmentation_data_config import OrgansData


@pytest.mark.parametrize(
    ("organ", "classes", "brighter"),
    [
        ("fundus", ("background", "vessel", "lesion"), False),
        ("ct", ("background", "organ", "lesion"), True),
        ("ultrasound", ("background", "lesion"), False),
    ],
)
def test_masks_lie_where_the_image_says(organ: str, classes: tuple[str, ...], brighter: bool, tmp_path: Path) -> None:
    config = OrgansData.model_validate({"organ": organ, "num_images": 40, "image_size": 96})
    data = load_dataset(config, cache_dir=tmp_path)
    assert (data.name, data.modality, data.classes) == (organ, organ, classes)
    groups = [{*images.groups.tolist()} for images in data.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 20
    train = data.splits["train"]
    assert train.targets is not None
    grey = np.asarray(train.images).mean(axis=1)
    inside, outside = grey[train.targets == 1].mean(), grey[train.targets == 0].mean()
    assert (inside > outside) == brighter
    assert (train.targets == UNCOUNTED).any() == (organ == "fundus")
    assert (grey[train.targets == UNCOUNTED] < 60).all()
    again = load_dataset(config.model_copy(update={"num_images": 40, "split_seed": 0}), cache_dir=tmp_path / "again")
    assert again.fingerprint == data.fingerprint
    assert np.array_equal(again.splits["train"].images, train.images)
    other = load_dataset(config.model_copy(update={"seed": 1}), cache_dir=tmp_path)
    assert other.fingerprint != data.fingerprint


def test_a_third_of_the_eyes_has_no_lesion(tmp_path: Path) -> None:
    data = load_dataset(OrgansData(num_images=60, label_map={"vessel": "background"}), cache_dir=tmp_path)
    assert data.classes == ("background", "lesion")
    area = np.concatenate([images.metadata["foreground_px"] for images in data.splits.values()])
    assert (area == 0).sum() == 20
