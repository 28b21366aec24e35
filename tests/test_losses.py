from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

from trainables.config import LabelSmoothing, NoRegulariser, SpectralDecoupling
from trainables.errors import ConfigError
from trainables.losses import build_loss, mixup, spectral_decoupling, spectral_decoupling_binary

LOGITS = torch.tensor([[1.0, -2.0, 3.0], [0.0, 4.0, -1.0]])
LABELS = torch.tensor([2, 0])
SITES = torch.tensor([1, 0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.5 * (14 / 3 + 17 / 3) / 2),
        ({"half": False}, (14 / 3 + 17 / 3) / 2),
        ({"reduction": "sum"}, 0.5 * (14 + 17) / 2),
        ({"target": "true_class"}, 0.5 * (9 + 0) / 2),
        ({"gamma": 1.0}, 0.5 * ((0 + 9 + 4) / 3 + (1 + 9 + 4) / 3) / 2),
        ({"gamma": torch.tensor([1.0, 0.0]), "reduction": "sum"}, 0.5 * (13 + 17) / 2),
        ({"weight": torch.tensor([2.0, 0.5]), "reduction": "sum"}, 0.5 * (2 * 14 + 0.5 * 17) / 2),
    ],
)
def test_penalty_by_hand(options: dict, expected: float) -> None:
    penalty = spectral_decoupling(LOGITS, LABELS, **{"weight": 1.0, **options})
    assert penalty.item() == pytest.approx(expected, rel=1e-6)


def test_penalty_is_float32_under_bfloat16() -> None:
    logits = torch.full((2, 3), 301.0, dtype=torch.bfloat16)  # 302: its square is no bfloat16
    penalty = spectral_decoupling(logits, LABELS, weight=1.0, half=False)
    assert penalty.dtype == torch.float32
    assert penalty.item() == float(logits[0, 0]) ** 2


def settle(loss: object, start: Tensor) -> Tensor:
    """Minimise a convex function of a few free numbers to machine precision."""
    free = start.clone().double().requires_grad_(True)
    optimiser = torch.optim.LBFGS([free], lr=1.0, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(free)  # type: ignore[operator]
        value.backward()
        return value

    optimiser.step(closure)
    return free.detach()


@pytest.mark.parametrize(
    ("weight", "margin", "confidence"),
    [(1e-3, 5.245, 0.9948), (1e-2, 3.359, 0.9664), (0.1, 1.634, 0.8366), (1.0, 0.401, 0.5989)],
)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_binary_margin_settles_at_the_analytic_cap(
    weight: float, margin: float, confidence: float, sign: float
) -> None:
    y = torch.tensor([sign], dtype=torch.float64)
    logit = settle(lambda f: spectral_decoupling_binary(f, y, weight=weight), torch.zeros(1))
    assert sign * logit.item() == pytest.approx(margin, abs=1e-3)
    assert torch.sigmoid(sign * logit).item() == pytest.approx(confidence, abs=1e-4)


@pytest.mark.parametrize(
    ("num_classes", "reduction", "confidence"),
    [
        (2, "mean", 0.9888),
        (2, "sum", 0.9804),
        (5, "mean", 0.9904),
        (5, "sum", 0.9629),
        (8, "mean", 0.9925),
        (8, "sum", 0.9560),
    ],
)
def test_softmax_confidence_settles_at_the_analytic_cap(num_classes: int, reduction: str, confidence: float) -> None:
    # The optimum has sum(f) = 0 and f_y = (K-1)/K * d; a root of its first-order condition is found independently.
    scale = 0.01 / (num_classes if reduction == "mean" else 1)
    gap = brentq(lambda d: scale * d / num_classes - 1 / (math.exp(d) + num_classes - 1), 1e-6, 50)
    assert math.exp(gap) / (math.exp(gap) + num_classes - 1) == pytest.approx(confidence, abs=1e-4)

    loss = build_loss(
        SpectralDecoupling(weight=0.01, reduction=reduction),
        class_weights=None,
        num_classes=num_classes,
        num_sites=1,
        device=torch.device("cpu"),
    )
    label, site = torch.tensor([0]), torch.tensor([0])
    # The loss computes in float32, so the optimum is found to about 1e-4.
    logits = settle(lambda f: sum(loss(f, label, site, 0).values()), torch.zeros(1, num_classes))
    assert logits.softmax(1)[0, 0].item() == pytest.approx(confidence, abs=3e-4)


def build(regulariser: object, **kwargs: object) -> object:
    defaults = {"class_weights": None, "num_classes": 3, "num_sites": 2, "device": torch.device("cpu")}
    return build_loss(regulariser, **{**defaults, **kwargs})  # type: ignore[arg-type]


def test_values_per_class_are_taken_by_label() -> None:
    loss = build(SpectralDecoupling(weight=(0.0, 5.0, 1.0), gamma=(0.0, 0.0, 1.0), reduction="sum"))
    # label 2: weight 1, gamma 1; label 0: weight 0.
    assert loss(LOGITS, LABELS, SITES, 0)["spectral_decoupling"].item() == pytest.approx(0.5 * (13 + 0) / 2)


def test_values_per_site_are_taken_by_site() -> None:
    loss = build(SpectralDecoupling(weight=(0.0, 2.0), gamma=(9.0, 0.0), group_by="site", reduction="sum"))
    assert loss(LOGITS, LABELS, SITES, 0)["spectral_decoupling"].item() == pytest.approx(0.5 * (2 * 14 + 0) / 2)


@pytest.mark.parametrize(("group_by", "count"), [("class", 3), ("site", 2)])
@pytest.mark.parametrize("key", ["weight", "gamma"])
def test_wrong_number_of_values_is_refused(group_by: str, count: int, key: str) -> None:
    regulariser = SpectralDecoupling.model_validate({key: (0.1, 0.1, 0.1, 0.1), "group_by": group_by})
    with pytest.raises(ConfigError, match=rf"regulariser.{key}: found 4 values, expected one or {count}"):
        build(regulariser)


def test_delay_counts_optimiser_steps() -> None:
    loss = build(SpectralDecoupling(delay_steps=3))
    assert set(loss(LOGITS, LABELS, SITES, 2)) == {"cross_entropy"}
    assert set(loss(LOGITS, LABELS, SITES, 3)) == {"cross_entropy", "spectral_decoupling"}


@pytest.mark.parametrize("class_weights", [None, torch.tensor([1.0, 2.0, 0.5])])
def test_label_smoothing_is_the_formula(class_weights: Tensor | None) -> None:
    terms = build(LabelSmoothing(epsilon=0.3), class_weights=class_weights)(LOGITS, LABELS, SITES, 0)
    target = 0.7 * F.one_hot(LABELS, 3) + 0.1
    per_class = -target * LOGITS.log_softmax(1)
    weights = torch.ones(3) if class_weights is None else class_weights
    expected = (per_class * weights).sum() / weights[LABELS].sum()
    assert terms["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert list(terms) == ["cross_entropy"]


def test_cross_entropy_by_hand() -> None:
    terms = build(NoRegulariser())(LOGITS, LABELS, SITES, 0)
    first = math.log(math.exp(1) + math.exp(-2) + math.exp(3)) - 3
    second = math.log(1 + math.exp(4) + math.exp(-1))
    assert terms["cross_entropy"].item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_mixup_is_the_convex_combination_and_reproducible() -> None:
    images = torch.rand(5, 1, 4, 4)
    mixed, partner, share = mixup(images, alpha=0.4, generator=np.random.default_rng(1))
    again, partner_again, share_again = mixup(images, alpha=0.4, generator=np.random.default_rng(1))
    assert torch.equal(mixed, again)
    assert torch.equal(partner, partner_again)
    assert share == share_again
    assert 0 <= share <= 1
    assert sorted(partner.tolist()) == list(range(5))
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[partner])


def test_mixup_shares_follow_beta() -> None:
    generator = np.random.default_rng(0)
    images = torch.zeros(2, 1, 1, 1)
    shares = np.array([mixup(images, alpha=0.2, generator=generator)[2] for _ in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)
