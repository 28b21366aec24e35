"""The smallest data and settings on which training still means something."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainables.config import StageConfig, TrialConfig
from trainables.data.dataset import Dataset, ImageSet

#: 350 thousand weights with batch normalisation, from torchvision.
NETWORK = "shufflenet_v2_x0_5"


def tiny_trial(**sections: Any) -> TrialConfig:
    """Return a trial on 16 px digits that takes a second; sections are merged into it."""
    values: dict[str, Any] = {
        "data": {"kind": "digits", "image_size": 16},
        "model": {"name": NETWORK, "input_size": 16},
        "training": {"epochs": 2, "batch_size": 32, "label_fraction": 0.1},
        "evaluation": {"shifts": ["gaussian_noise", "contrast_down"], "severities": [1, 5]},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return TrialConfig.model_validate(values)


def tiny_stage(**pretraining: Any) -> StageConfig:
    """Return a contrastive stage on the same images and network."""
    return StageConfig.model_validate(
        {
            "data": {"kind": "digits", "image_size": 16},
            "model": {"name": NETWORK, "input_size": 16},
            "pretraining": {"kind": "contrastive", "epochs": 2, "batch_size": 512, **pretraining},
        }
    )


def random_set(name: str, num_images: int, *, channels: int = 1, size: int = 16, num_classes: int = 3) -> ImageSet:
    """Return random images; the label of image i is i modulo ``num_classes``, two images make a group."""
    generator = np.random.default_rng([len(name), num_images])
    labels = np.arange(num_images) % num_classes
    images = generator.integers(0, 256, (num_images, channels, size, size), dtype=np.uint8)
    images[:, :, 0, :] = (255 * labels / max(1, num_classes - 1)).astype(np.uint8)[:, None, None]
    return ImageSet(
        name=name,
        images=images,
        labels=labels.astype(np.int64),
        ids=np.array([f"{name}-{index}" for index in range(num_images)]),
        groups=np.array(
            [f"{name}-patient-{index // num_classes // 2}-{index % num_classes}" for index in range(num_images)]
        ),
        sites=np.array(["a" if index % 4 else "b" for index in range(num_images)]),
    )


def random_dataset(**shape: Any) -> Dataset:
    """Return train (48), val (24), test (24) and the external set "elsewhere" (12)."""
    return Dataset(
        name="random",
        classes=tuple(f"class-{index}" for index in range(shape.get("num_classes", 3))),
        fingerprint="0" * 16,
        splits={name: random_set(name, count, **shape) for name, count in (("train", 48), ("val", 24), ("test", 24))},
        external={"elsewhere": random_set("elsewhere", 12, **shape)},
    )
