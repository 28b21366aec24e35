from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainables.data.dataset import UNCOUNTED
from trainables.errors import ConfigError
from trainables.regularisers import LabelSmoothing, NoRegulariser, SpectralDecoupling
from trainables.task_config import SegmentationTask
from trainables.training.segmentation.losses import SegmentationLoss

CPU = torch.device("cpu")


def make_pixels(num_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of 2 × 8 × 8 pixels and their targets, a quarter of which does not count."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, num_classes, 8, 8, generator=generator)
    targets = torch.randint(0, num_classes, (2, 8, 8), generator=generator).byte()
    targets[:, :4, :4] = UNCOUNTED
    return logits, targets


def make_loss(regulariser: Any = None, *, annotated: Any = None, **task: Any) -> SegmentationLoss:
    settings = SegmentationTask.model_validate({"kind": "segmentation", **task})
    return SegmentationLoss(settings, regulariser or NoRegulariser(), num_classes=3, device=CPU, annotated=annotated)


def test_dice_and_cross_entropy_are_those_of_the_counted_pixels() -> None:
    logits, targets = make_pixels()
    terms = make_loss()(logits, targets, torch.zeros(2, dtype=torch.int64), 0)
    counted = (targets != UNCOUNTED).numpy()
    shares, true = logits.softmax(1).numpy(), targets.numpy()
    dice = []
    for index in (1, 2):
        p, t = shares[:, index][counted], true[counted] == index
        dice.append(2 * (p * t).sum() / (p.sum() + t.sum()))
    assert float(terms["dice"]) == pytest.approx(1 - np.mean(dice), abs=1e-6)
    p_true = np.take_along_axis(shares, np.where(counted, true, 0)[:, None].astype(int), 1)[:, 0]
    assert float(terms["cross_entropy"]) == pytest.approx(-np.log(p_true[counted]).mean(), abs=1e-6)


def test_tversky_weighs_what_is_invented_and_what_is_missed() -> None:
    logits, targets = make_pixels()
    terms = make_loss(loss={"kind": "tversky", "alpha": 0.2, "beta": 0.8})(
        logits, targets, torch.zeros(2, dtype=torch.int64), 0
    )
    counted = (targets != UNCOUNTED).numpy()
    shares, true = logits.softmax(1).numpy(), targets.numpy()
    scores = []
    for index in (1, 2):
        p, t = shares[:, index][counted], true[counted] == index
        both = (p * t).sum()
        scores.append(both / (both + 0.2 * (p * ~t).sum() + 0.8 * ((1 - p) * t).sum()))
    assert float(terms["tversky"]) == pytest.approx(1 - np.mean(scores), abs=1e-6)


def test_pixels_that_do_not_count_have_no_gradient() -> None:
    logits, targets = make_pixels()
    logits.requires_grad_()
    for loss in (make_loss(SpectralDecoupling()), make_loss(loss={"kind": "focal"})):
        logits.grad = None
        sum(loss(logits, targets, torch.zeros(2, dtype=torch.int64), 0).values()).backward()
        assert logits.grad is not None
        assert float(logits.grad[:, :, :4, :4].abs().max()) == 0.0
        assert float(logits.grad[:, :, 4:].abs().min()) > 0.0


def test_spectral_decoupling_is_the_mean_over_counted_pixels_and_classes() -> None:
    logits, targets = make_pixels()
    loss = make_loss(SpectralDecoupling(weight=0.4))
    terms = loss(logits, targets, torch.zeros(2, dtype=torch.int64), 0)
    counted = logits.movedim(1, -1)[targets != UNCOUNTED]
    assert float(terms["spectral_decoupling"]) == pytest.approx(0.2 * float(counted.square().mean()), rel=1e-5)


def test_a_class_that_a_data_set_does_not_annotate_is_none_of_its_pixels() -> None:
    logits, targets = make_pixels()
    targets[1] = torch.where(targets[1] == 2, 1, targets[1])
    annotated = torch.tensor([[True, True, True], [True, True, False]])
    logits.requires_grad_()
    loss = make_loss(annotated=annotated)
    terms = loss(logits, targets, torch.tensor([0, 1]), 0)
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad[1, 2].abs().max()) == 0.0
    assert float(logits.grad[0, 2].abs().max()) > 0.0
    two = F.cross_entropy(logits[1:, :2], targets[1:].long(), ignore_index=UNCOUNTED, reduction="sum")
    three = F.cross_entropy(logits[:1], targets[:1].long(), ignore_index=UNCOUNTED, reduction="sum")
    counted = int((targets != UNCOUNTED).sum())
    assert float(terms["cross_entropy"].detach()) == pytest.approx(float((two + three).detach()) / counted, rel=1e-5)


def test_label_smoothing_is_that_of_cross_entropy() -> None:
    logits, targets = make_pixels()
    terms = make_loss(LabelSmoothing(epsilon=0.3))(logits, targets, torch.zeros(2, dtype=torch.int64), 0)
    expected = F.cross_entropy(logits, targets.long(), ignore_index=UNCOUNTED, label_smoothing=0.3)
    assert float(terms["cross_entropy"]) == pytest.approx(float(expected), rel=1e-5)


def test_regularisers_leave_classes_alone_that_a_data_set_does_not_annotate() -> None:
    logits, targets = make_pixels()
    targets = torch.where((targets == 2), 1, targets)
    annotated = torch.tensor([[True, True, True], [True, True, False]])
    sources = torch.tensor([1, 1])
    counted = logits.movedim(1, -1)[targets != UNCOUNTED][:, :2]
    for regulariser, name, expected in (
        (
            LabelSmoothing(epsilon=0.3),
            "cross_entropy",
            F.cross_entropy(logits[:, :2], targets.long(), ignore_index=UNCOUNTED, label_smoothing=0.3),
        ),
        (
            SpectralDecoupling(weight=0.4, gamma=0.5, reduction="sum"),
            "spectral_decoupling",
            0.2 * (counted - 0.5).square().sum(1).mean(),
        ),
    ):
        own = logits.clone().requires_grad_()
        terms = make_loss(regulariser, annotated=annotated)(own, targets, sources, 0)
        assert float(terms[name].detach()) == pytest.approx(float(expected), rel=1e-5)
        terms[name].backward()
        assert own.grad is not None
        assert float(own.grad[:, 2].abs().max()) == 0.0
        assert float(own.grad[:, 1].abs().max()) > 0.0


def test_as_many_weights_as_classes_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"regulariser.weight: found 2 values, expected one or 3"):
        make_loss(SpectralDecoupling(weight=(0.1, 0.2)))


@pytest.mark.parametrize("kind", ["dice_cross_entropy", "focal", "tversky"])
def test_a_batch_in_which_nothing_counts_has_a_loss_of_zero(kind: str) -> None:
    logits, targets = make_pixels()
    loss = make_loss(SpectralDecoupling(), loss={"kind": kind})
    terms = loss(logits, torch.full_like(targets, UNCOUNTED), torch.tensor([0, 0]), 0)
    assert float(torch.stack(list(terms.values())).sum()) == 0.0
