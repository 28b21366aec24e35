"""The collapse verdict on whole pretrainings: planted collapses, and healthy ones of every method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.tiny_configs import tiny_stage
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.load import load_dataset
from trainables.errors import CollapsedError
from trainables.models.networks import Classifier
from trainables.pretraining import contrastive
from trainables.pretraining.collapse import describe_collapse
from trainables.pretraining.methods import ByolTrainer, ContrastiveTrainer, embed_images
from trainables.storage.folder import Folder

EPOCHS = 10
SMALL = {"projection_dim": 32, "hidden_dim": 64}
SIMCLR = {"kind": "simclr", **SMALL}
MOCO = {"kind": "moco", "queue_size": 256, "batch_norm_groups": 4, "momentum": 0.99, **SMALL}
BYOL = {"kind": "byol", "optimiser": "sgd", "learning_rate": 0.06, "warmup_epochs": 0, **SMALL}
Plant = Callable[[ContrastiveTrainer], None]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    data: Dataset = load_dataset(tiny_stage().data, cache_dir=tmp_path_factory.mktemp("cache"))
    whole, few = data.splits["train"], slice(512)
    return ImageSet("train", whole.images[few], whole.labels[few], whole.ids[few], whole.groups[few], whole.sites[few])


def network(seed: int) -> Classifier:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for channels, outputs in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(channels, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return Classifier(backbone, head="8", mean=torch.tensor([0.5]), std=torch.tensor([0.3]), input_size=16)


def find_flagged(
    folder: Path, train: ImageSet, method: dict[str, Any], *, seed: int = 0, epochs: int = EPOCHS
) -> list[int]:
    """Return the epochs that are flagged; the one in which it fails as collapsed, too."""
    torch.set_num_threads(1)
    settings = {"batch_size": 128, "crop_scale_min": 0.4, "horizontal_flip": False, "method": method}
    config = tiny_stage(epochs=epochs, **settings).model_copy(update={"seed": seed})
    done: list[dict[str, Any]] = []
    try:
        contrastive.pretrain_encoder(
            network(seed), train, config, signature="s", folder=Folder(folder), report=done.append
        )
    except CollapsedError:
        failed = [len(done) + 1]
    else:
        failed = []
    return [*describe_collapse(done)["epochs"], *failed]


def without_predictor(trainer: ContrastiveTrainer) -> None:
    trainer.modules["predictor"] = nn.Identity()
    trainer.trained = (*trainer.trained[:2], trainer.modules["predictor"])


def without_predictor_and_stop_gradient(trainer: ContrastiveTrainer) -> None:
    assert isinstance(trainer, ByolTrainer)
    without_predictor(trainer)
    networks = trainer.trained[:2]
    trainer._project_targets = lambda views: [embed_images(side, *networks)[-1] for side in views]  # type: ignore[method-assign]


class TwoDimensions(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, features: Tensor) -> Tensor:
        embeddings = self.inner(features)
        return torch.cat([embeddings[:, :2], 0.0 * embeddings[:, 2:]], dim=1)


def in_two_dimensions(trainer: ContrastiveTrainer) -> None:
    trainer.modules["projector"] = TwoDimensions(trainer.modules["projector"])
    trainer.trained = (trainer.modules["encoder"], trainer.modules["projector"])


@pytest.mark.parametrize(
    ("method", "plant"),
    [
        pytest.param(SIMCLR | {"learning_rate": 1000.0}, None, id="simclr at 1,000"),
        pytest.param(MOCO | {"learning_rate": 1000.0}, None, id="moco at 1,000"),
        pytest.param(SIMCLR, in_two_dimensions, id="simclr in two dimensions"),
        pytest.param(BYOL, without_predictor, id="byol without predictor"),
        pytest.param(BYOL, without_predictor_and_stop_gradient, id="byol without predictor and stop-gradient"),
    ],
)
def test_a_planted_collapse_is_flagged_within_a_fifth_of_the_epochs(
    tmp_path: Path, train: ImageSet, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], plant: Plant | None
) -> None:
    build = contrastive.build_trainer

    def planted(model: Classifier, settings: Any) -> ContrastiveTrainer:
        trainer = build(model, settings)
        if plant is not None:
            plant(trainer)
        return trainer

    monkeypatch.setattr(contrastive, "build_trainer", planted)
    flagged = find_flagged(tmp_path, train, method)
    assert flagged
    assert flagged[0] <= EPOCHS // 5


@pytest.mark.parametrize(("seed", "method"), [(0, SIMCLR), (0, MOCO)], ids=["simclr", "moco"])
def test_a_healthy_pretraining_is_not_flagged(
    tmp_path: Path, train: ImageSet, seed: int, method: dict[str, Any]
) -> None:
    assert find_flagged(tmp_path, train, method, seed=seed, epochs=4) == []


HEALTHY = [
    SIMCLR,
    MOCO,
    BYOL,
    SIMCLR,
    MOCO,
    BYOL,
    SIMCLR,
    MOCO,
    BYOL,
    SIMCLR | {"optimiser": "lars", "learning_rate": 5.0},
]


@pytest.mark.long
@pytest.mark.parametrize(("seed", "method"), list(enumerate(HEALTHY)), ids=str)
def test_ten_healthy_pretrainings_are_not_flagged(
    tmp_path: Path, train: ImageSet, seed: int, method: dict[str, Any]
) -> None:
    assert find_flagged(tmp_path, train, method, seed=seed, epochs=20) == []
