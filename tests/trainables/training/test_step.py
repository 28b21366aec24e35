from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_configs import random_dataset, tiny_trial
from trainables.config import TrialConfig
from trainables.models.networks import Classifier
from trainables.training.acceleration import Choice
from trainables.training.step import TrainingStep
from trainables.trial import build_initial_model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def config(**sections: Any) -> TrialConfig:
    return tiny_trial(training={"batch_size": 16, "label_fraction": 1.0, **sections.pop("training", {})}, **sections)


def build(settings: TrialConfig) -> tuple[Classifier, TrainingStep]:
    data = random_dataset()
    model = build_initial_model(settings, data, encoder=None)
    return model.train(), TrainingStep(model, data, settings, Choice())


def take(settings: TrialConfig) -> tuple[Classifier, dict[str, float]]:
    model, step = build(settings)
    batch = next(step.batches.epoch(1))
    terms = step.run(batch, 0, epoch=1, index=0)
    return model, {name: float(value) for name, value in terms.items()}


def test_sam_moves_along_another_gradient_and_logs_the_sharpness() -> None:
    sgd = {"optimiser": "sgd"}
    plain, terms = take(config(training=sgd))
    sharp, with_sam = take(config(training=sgd, regulariser={"kind": "sam"}))
    assert with_sam["loss"] == terms["loss"]  # of the first pass, at the weights themselves
    assert with_sam["sharpness"] > 0.0
    assert not torch.equal(plain.head.weight, sharp.head.weight)
    nearly, _ = take(config(training=sgd, regulariser={"kind": "sam", "rho": 1e-7}))
    torch.testing.assert_close(plain.head.weight, nearly.head.weight, rtol=1e-4, atol=1e-6)
    for (name, mine), theirs in zip(plain.named_buffers(), sharp.buffers(), strict=True):
        assert torch.equal(mine, theirs), name  # batch statistics are those of the first pass


def test_the_clipped_gradient_of_sam_is_that_of_the_second_pass() -> None:
    settings = config(
        training={"optimiser": "sgd", "momentum": 0.0, "gradient_clip_norm": 1e-3, "learning_rate": 1.0},
        regulariser={"kind": "sam"},
    )
    before = build_initial_model(settings, random_dataset(), encoder=None)
    after, _ = take(settings)
    moved = [a.detach() - b.detach() for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    length = torch.stack([change.norm() for change in moved]).norm()
    assert length.item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_terms_of_a_mixed_batch_are_shared_by_both_labels(kind: str) -> None:
    settings = config(regulariser={"kind": kind, "alpha": 1.0})
    _, mixed = take(settings)
    _, plain = take(config())
    assert mixed["loss"] == mixed["cross_entropy"] != plain["cross_entropy"]
    _, again = take(settings)
    assert again == mixed


def test_dro_with_sam_adapts_once_per_step() -> None:
    for regulariser in ({"group_dro": {}}, {"group_dro": {}, "sam": {}}):
        settings = config(regulariser={"kind": "combined", **regulariser})
        _, step = build(settings)
        step.run(next(step.batches.epoch(1)), 0, epoch=1, index=0)
        report = step.summarise()
        found = report["group_weight/site_a"]
        if "sam" not in regulariser:
            expected = found
    assert found == expected


def test_summary_of_a_plain_trial_is_empty(tmp_path: Path) -> None:
    _, step = build(config())
    assert step.summarise() == {}
