from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import random_dataset, random_set, tiny_stage
from trainables.config import StageConfig
from trainables.data.dataset import ImageSet
from trainables.data.load import load_dataset
from trainables.errors import CheckpointError, CollapsedError, ConfigError, DivergedError
from trainables.evaluation.metric_tables.stage import STAGE_METRICS
from trainables.models.networks import Classifier, build_model
from trainables.pretraining.contrastive import build_monitor, pretrain_encoder
from trainables.pretraining.monitor import is_measured
from trainables.storage.folder import Folder

STILL = {"kind": "moco", "jitter_strength": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pretrain(
    folder: Path, config: StageConfig, train: ImageSet | None = None, report: Any = lambda record: None
) -> tuple[Classifier, list[dict[str, Any]]]:
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=3, channels=1, image_size=16)
    train = train or random_dataset().splits["train"]
    history = pretrain_encoder(model, train, config, signature="mine", folder=Folder(folder), report=report)
    return model, history


def test_pretraining_learns_to_recognise_images_and_leaves_the_head(tmp_path: Path, cache_dir: Path) -> None:
    config = tiny_stage(epochs=2, batch_size=128, crop_scale_min=0.9, views=STILL, horizontal_flip=False)
    train = load_dataset(config.data, cache_dir=cache_dir).splits["train"]
    torch.manual_seed(0)
    before = build_model(config.model, num_classes=3, channels=1, image_size=16)
    model, history = pretrain(tmp_path, config, train)
    # Guessing among the 2 × 128 − 1 other views of a batch costs ln 255.
    assert history[-1]["metrics"]["ssl/loss"] < 0.8 * math.log(255)
    assert torch.equal(model.head.weight, before.head.weight)
    assert not torch.equal(model.encoder_state()["conv1.0.weight"], before.encoder_state()["conv1.0.weight"])
    assert Folder(tmp_path).read_lines("epochs.jsonl") == history


def test_images_that_are_all_alike_collapse(tmp_path: Path) -> None:
    """Every view is the same, so every embedding is, and the loss is exactly that of guessing: ln(2·48 − 1)."""
    train = random_set("train", 48)
    alike = ImageSet("train", 0 * train.images + 90, train.labels, train.ids, train.groups, train.sites)
    config = tiny_stage(epochs=3, batch_size=48, views=STILL)
    with pytest.raises(CollapsedError, match=r"epoch 1: .*the loss is 4.554, where guessing costs 4.554; lower"):
        pretrain(tmp_path, config, alike)
    assert Folder(tmp_path).read_lines("epochs.jsonl") == []


def test_a_head_that_forgets_its_input_collapses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightly.models.modules.heads import SimCLRProjectionHead

    class Forgetful(SimCLRProjectionHead):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0 + 1

    monkeypatch.setattr("lightly.models.modules.heads.SimCLRProjectionHead", Forgetful)
    with pytest.raises(CollapsedError, match=r"lower pretraining\.method\.learning_rate"):
        pretrain(tmp_path, tiny_stage(batch_size=24))


def test_the_spread_of_an_epoch_is_in_its_record(tmp_path: Path) -> None:
    _, history = pretrain(tmp_path, tiny_stage(epochs=2, batch_size=24))
    for record in history:  # random images: nothing to learn, and no collapse either
        assert record["metrics"]["ssl/embedding_spread"] > 0.8
        assert 0.02 < record["metrics"]["ssl/feature_spread"] <= 1


def test_labels_are_never_read(tmp_path: Path) -> None:
    train = random_set("train", 48)
    shuffled = ImageSet("train", train.images, np.zeros_like(train.labels), train.ids, train.groups, train.sites)
    first, _ = pretrain(tmp_path / "one", tiny_stage(batch_size=24), train)
    second, _ = pretrain(tmp_path / "two", tiny_stage(batch_size=24), shuffled)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_encoders_are_independent_and_repeatable(tmp_path: Path) -> None:
    config = tiny_stage(epochs=1, batch_size=24)
    other = config.model_copy(update={"encoder": 1})
    first, second, third = (pretrain(tmp_path / str(i), c)[0] for i, c in enumerate((config, config, other)))
    name = "conv1.0.weight"
    assert torch.equal(first.encoder_state()[name], second.encoder_state()[name])
    assert not torch.equal(first.encoder_state()[name], third.encoder_state()[name])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"micro_batch_size": 7},
        {"method": {"kind": "moco", "queue_size": 20, "hidden_dim": 16, "batch_norm_groups": 3}},
        {"method": {"kind": "byol", "hidden_dim": 16, "projection_dim": 8, "warmup_epochs": 1}},
    ],
    ids=["simclr", "simclr in parts", "moco", "byol with lars"],
)
def test_interrupted_and_called_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    """With the queue, the second network and its schedule, bit for bit."""
    config = tiny_stage(epochs=3, batch_size=24, **settings)
    whole, expected = pretrain(tmp_path / "whole", config)

    class Interrupted(BaseException):
        pass

    def interrupt(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain(tmp_path / "cut", config, report=interrupt)
    done: list[int] = []
    resumed, found = pretrain(tmp_path / "cut", config, report=lambda record: done.append(record["epoch"]))
    assert done == [3]
    assert [e["metrics"]["ssl/loss"] for e in found] == [e["metrics"]["ssl/loss"] for e in expected]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="written by the trial mine, expected other"):
        pretrain_encoder(
            whole,
            random_dataset().splits["train"],
            config,
            signature="other",
            folder=Folder(tmp_path / "cut"),
            report=lambda record: None,
        )


def test_divergence_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "normalise", lambda self, images: images.float() * float("nan"))
    with pytest.raises(
        DivergedError, match=r"epoch 1: the contrastive loss is nan; lower pretraining.method.learning_rate"
    ):
        pretrain(tmp_path, tiny_stage(batch_size=24))
    assert not list(tmp_path.iterdir()) or not Folder(tmp_path).exists("checkpoint.safetensors")


def test_a_queue_of_too_many_keys_is_refused(tmp_path: Path) -> None:
    config = tiny_stage(batch_size=24, method={"kind": "moco", "queue_size": 25})
    with pytest.raises(ConfigError, match=r"found 25 keys for 48 training images.* 24 or fewer"):
        pretrain(tmp_path, config)


@pytest.mark.parametrize(("groups", "is_refused"), [(12, False), (13, True)])
def test_groups_of_one_image_are_refused(tmp_path: Path, groups: int, is_refused: bool) -> None:
    method = {"kind": "moco", "queue_size": 24, "hidden_dim": 16, "batch_norm_groups": groups}
    config = tiny_stage(epochs=1, batch_size=24, method=method)
    if not is_refused:
        assert len(pretrain(tmp_path, config)[1]) == 1
        return
    with pytest.raises(ConfigError, match=r"found 24 images in a batch.* 13, so that .* expected 26 images or more"):
        pretrain(tmp_path, config)


def test_features_are_measured_after_some_epochs_without_effect(tmp_path: Path) -> None:
    assert [epoch for epoch in range(1, 13) if is_measured(epoch, 12)] == [2, 4, 6, 8, 10, 12]
    config = tiny_stage(epochs=2, batch_size=24)
    data = random_dataset()
    whole, _ = pretrain(tmp_path / "without", config)
    torch.manual_seed(0)
    model = build_model(config.model, num_classes=3, channels=1, image_size=16)
    history = pretrain_encoder(
        model,
        data.splits["train"],
        config,
        monitor=build_monitor(data, config),
        signature="mine",
        folder=Folder(tmp_path / "with"),
        report=lambda record: None,
    )
    measured = {"ssl/knn_accuracy", "ssl/alignment", "ssl/uniformity", "ssl/rankme", "ssl/lidar"}
    usage = {"system/cpu_utilization_percentage", "system/rss_mib"}
    known = {*STAGE_METRICS, "learning_rate", "seconds", *usage}
    assert all(measured | usage <= record["metrics"].keys() <= known for record in history)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True))


def test_fewer_images_than_a_batch(tmp_path: Path) -> None:
    _, history = pretrain(tmp_path, tiny_stage(epochs=1, batch_size=512))
    assert len(history) == 1
