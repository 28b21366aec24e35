"""What the measures are for: trainings on the same data are nearer to each other than one on shuffled labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from trainables.evaluation.representation.similarity import compare_features


def draw_images(seed: int, num_images: int = 600) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 12 × 12 images with a bar in one of two directions, and the directions; brightness is noise."""
    random = np.random.default_rng(seed)
    images, labels = random.normal(0.0, 0.6, (num_images, 1, 12, 12)), random.integers(0, 2, num_images)
    places = random.integers(2, 10, num_images)
    for number, (label, place) in enumerate(zip(labels, places, strict=True)):
        bar = images[number, 0]
        (bar if label else bar.T)[place] += 1.5
    images += random.normal(0.0, 1.0, (num_images, 1, 1, 1))
    return torch.from_numpy(images).float(), torch.from_numpy(labels)


def train(seed: int, images: torch.Tensor, labels: torch.Tensor) -> nn.Sequential:
    """Return a small network trained for some seconds; the last layer is its head."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        for rows in torch.randperm(len(images)).split(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimiser.step()
    return model


@pytest.fixture(scope="module")
def features() -> dict[str, torch.Tensor]:
    """Penultimate features of new images."""
    images, labels = draw_images(0)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    new, truth = draw_images(1, 300)
    models = {
        "first": train(1, images, labels),
        "second": train(2, images, labels),
        "shuffled": train(3, images, shuffled),
    }
    with torch.inference_mode():
        accuracy = {name: float((model(new).argmax(1) == truth).double().mean()) for name, model in models.items()}
        assert min(accuracy["first"], accuracy["second"]) > 0.8
        assert accuracy["shuffled"] < 0.65
        return {name: model[:-1](new) for name, model in models.items()}


def test_another_seed_is_nearer_than_shuffled_labels(features: dict[str, torch.Tensor]) -> None:
    similarities = {
        name: np.array(compare_features(features[name], features[other]))
        for name, other in (("first", "second"), ("second", "shuffled"), ("shuffled", "first"))
    }
    cka, distance = similarities.pop("first")
    for others in similarities.values():
        assert cka > others[0] + 0.1
        assert distance < others[1] - 0.1
