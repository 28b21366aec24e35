from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor

from trainables.data.groups import Groups
from trainables.errors import ConfigError
from trainables.regularisers import Combined, GroupDro, LabelSmoothing, NoRegulariser, SpectralDecoupling
from trainables.training.losses import build_loss, spectral_decoupling, spectral_decoupling_binary

LOGITS = torch.tensor([[1.0, -2.0, 3.0], [0.0, 4.0, -1.0]])
LABELS = torch.tensor([2, 0])
SITES = torch.tensor([1, 0])
TWO_SITES = Groups(("site_a", "site_b"), np.array([1, 0, 0]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.5 * (14 / 3 + 17 / 3) / 2),
        ({"weight": 1.0}, (14 / 3 + 17 / 3) / 2),
        ({"reduction": "sum"}, 0.5 * (14 + 17) / 2),
        ({"target": "true_class"}, 0.5 * (9 + 0) / 2),
        ({"gamma": 1.0}, 0.5 * ((0 + 9 + 4) / 3 + (1 + 9 + 4) / 3) / 2),
        ({"gamma": torch.tensor([0.0, 1.0]), "groups": SITES, "reduction": "sum"}, 0.5 * (13 + 17)),
        ({"weight": torch.tensor([0.25, 1.0]), "groups": SITES, "reduction": "sum"}, 0.5 * (2 * 14 + 0.5 * 17)),
    ],
)
def test_penalty_by_hand(options: dict, expected: float) -> None:
    penalty = spectral_decoupling(LOGITS, LABELS, **{"weight": 0.5, **options})
    assert penalty.item() == pytest.approx(expected, rel=1e-6)


def compute_penalty(
    logits: np.ndarray, labels: np.ndarray, groups: np.ndarray, weights: Any, gammas: Any, *, options: dict[str, Any]
) -> float:
    """Return Σ_k λ_k·mean_{i∈k}(f_i − γ_k)², group by group in float64."""
    total = 0.0
    for group in set(groups.tolist()):
        rows = np.flatnonzero(groups == group)
        squares = (logits[rows].astype(np.float64) - np.broadcast_to(gammas, (4,))[group]) ** 2
        if options.get("target") == "true_class":
            per_image = squares[np.arange(len(rows)), labels[rows]]
        else:
            per_image = squares.sum(1) if options.get("reduction") == "sum" else squares.mean(1)
        total += np.broadcast_to(weights, (4,))[group] * per_image.mean()
    return total * (1.0 if options.get("half") is False else 0.5)


@pytest.mark.parametrize(
    "options", [{}, {"half": False}, {"reduction": "sum"}, {"target": "true_class"}, {"group_by": "class"}]
)
@pytest.mark.parametrize(
    ("weight", "gamma"),
    [((0.1, 0.5, 2.0, 0.0), 0.3), (0.7, (0.0, -1.0, 2.5, 0.2)), ((0.1, 0.5, 2.0, 0.0), (0.0, -1.0, 2.5, 0.2))],
)
def test_values_per_group_are_the_specifications_sum(options: dict[str, Any], weight: Any, gamma: Any) -> None:
    draw = np.random.default_rng(5)
    logits, labels = draw.normal(0, 3, (23, 4)).astype(np.float32), draw.integers(0, 4, 23)
    groups = draw.choice([0, 1, 3], 23, p=[0.1, 0.7, 0.2])  # of unequal size, one of them absent
    settings = SpectralDecoupling(weight=weight, gamma=gamma, **{"group_by": "site", **options})
    sites = Groups(("a", "b", "c", "d"), np.arange(4))
    loss = build(settings, num_classes=4, groups=sites)
    found = loss(*map(torch.from_numpy, (logits, labels, groups)), 0)["spectral_decoupling"].item()
    index = labels if options.get("group_by") == "class" else groups
    assert found == pytest.approx(compute_penalty(logits, labels, index, weight, gamma, options=options), rel=1e-5)


def test_the_gradient_of_a_group_does_not_depend_on_its_size() -> None:
    """Ten images of one group and one of another: each group's mean logit is pulled equally."""
    logits = torch.full((11, 1), 2.0, requires_grad=True)
    groups = torch.tensor([0] * 10 + [1])
    spectral_decoupling(logits, groups * 0, weight=torch.tensor([0.15, 0.15]), groups=groups).backward()
    assert logits.grad is not None
    assert logits.grad[:10].sum().item() == pytest.approx(logits.grad[10].item(), rel=1e-6)
    assert logits.grad[10].item() == pytest.approx(0.3 * 2.0)


def test_penalty_is_float32_under_bfloat16() -> None:
    logits = torch.full((2, 3), 301.0, dtype=torch.bfloat16)  # 302: its square is no bfloat16
    penalty = spectral_decoupling(logits, LABELS, weight=1.0)
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
        groups=Groups(("site_",), np.zeros(1, dtype=np.int64)),
        device=torch.device("cpu"),
    )
    label, site = torch.tensor([0]), torch.tensor([0])
    # The loss computes in float32, so the optimum is found to about 1e-4.
    logits = settle(lambda f: sum(loss(f, label, site, 0).values()), torch.zeros(1, num_classes))
    assert logits.softmax(1)[0, 0].item() == pytest.approx(confidence, abs=3e-4)


def build(regulariser: object, **kwargs: object) -> object:
    defaults = {"class_weights": None, "num_classes": 3, "groups": TWO_SITES, "device": torch.device("cpu")}
    return build_loss(regulariser, **{**defaults, **kwargs})  # type: ignore[arg-type]


def test_values_per_class_are_taken_by_label() -> None:
    loss = build(SpectralDecoupling(weight=(0.0, 5.0, 1.0), gamma=(0.0, 0.0, 1.0), reduction="sum"))
    # label 2: weight 1, gamma 1; label 0: weight 0.
    assert loss(LOGITS, LABELS, SITES, 0)["spectral_decoupling"].item() == pytest.approx(0.5 * (13 + 0))


def test_values_per_site_are_taken_by_site() -> None:
    loss = build(SpectralDecoupling(weight=(0.0, 2.0), gamma=(9.0, 0.0), group_by="site", reduction="sum"))
    assert loss(LOGITS, LABELS, SITES, 0)["spectral_decoupling"].item() == pytest.approx(0.5 * (2 * 14 + 0))


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


@pytest.mark.parametrize("options", [{}, {"target": "true_class"}, {"reduction": "sum"}])
def test_the_penalty_of_segmentation_is_that_of_its_pixels(options: dict) -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    values = {"weight": torch.rand(2), "gamma": torch.randn(2)}
    groups = torch.randint(0, 2, (2, 4, 5))
    found = spectral_decoupling(logits, labels, **values, groups=groups, **options)
    pixels = logits.permute(0, 2, 3, 1).reshape(-1, 3)
    expected = spectral_decoupling(pixels, labels.flatten(), **values, groups=groups.flatten(), **options)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_segmentation_by_hand() -> None:
    logits = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # one image, two classes, 1 × 2 pixels
    labels = torch.zeros(1, 1, 2, dtype=torch.int64)
    # ½·λ·mean over pixels of the mean over classes: (1+9)/2 and (4+0)/2.
    assert spectral_decoupling(logits, labels, weight=0.05).item() == pytest.approx(0.05 * (5 + 2) / 2)


def test_a_combination_has_the_terms_of_its_parts() -> None:
    both = build(
        Combined(label_smoothing=LabelSmoothing(epsilon=0.3), spectral_decoupling=SpectralDecoupling(weight=1))
    )
    terms = both(LOGITS, LABELS, SITES, 0)
    smooth = build(LabelSmoothing(epsilon=0.3))(LOGITS, LABELS, SITES, 0)
    penal = build(SpectralDecoupling(weight=1))(LOGITS, LABELS, SITES, 0)
    assert terms["cross_entropy"].item() == smooth["cross_entropy"].item()
    assert terms["spectral_decoupling"].item() == penal["spectral_decoupling"].item()


def test_group_dro_weighs_the_losses_of_groups() -> None:
    loss = build(GroupDro(step_size=0.1))
    first, second = F.cross_entropy(LOGITS, LABELS, reduction="none").tolist()
    # Site b (index 1) is the first image's; both start at ½ and are multiplied by e^{η·loss} before they count.
    raised = [math.exp(0.1 * second), math.exp(0.1 * first)]
    expected = (raised[0] * second + raised[1] * first) / sum(raised)
    assert loss(LOGITS, LABELS, SITES, 0)["group_dro"].item() == pytest.approx(expected, rel=1e-6)
    again = [loss(LOGITS, LABELS, SITES, 0, adapt=False)["group_dro"].item() for _ in range(2)]
    assert again == pytest.approx([expected] * 2, rel=1e-6)


def test_group_dro_and_class_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"group_dro and training.class_weights, which both weigh the loss"):
        build(GroupDro(), class_weights=torch.ones(3))
