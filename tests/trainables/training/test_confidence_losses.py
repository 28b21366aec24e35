from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from trainables.confidence_config import ConfidNet, DeepGamblers, DeVries, NoConfidence
from trainables.config import TrialConfig
from trainables.data.groups import Groups
from trainables.regularisers import (
    Combined,
    CutMix,
    GroupDro,
    LabelSmoothing,
    Mixup,
    NoRegulariser,
    RegulariserConfig,
    Sam,
    SpectralDecoupling,
)
from trainables.seeding import uniform
from trainables.training.confidence_losses import (
    GamblersLoss,
    HintLoss,
    build_confidence_loss,
    deep_gamblers,
    hinted_cross_entropy,
)
from trainables.training.losses import build_loss

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.3, 0.1, 0.2], [-5.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
OUTPUT = torch.tensor([-1.0, 2.0, 0.5, 0.0])
LABELS = torch.tensor([0, 2, 0, 1])
OUTPUTS = torch.cat([LOGITS, OUTPUT[:, None]], 1)
SEEDS = torch.arange(4) * 7 + 1


def test_deep_gamblers_by_hand() -> None:
    # Four equal outputs: p_y = r = 1/4.
    loss = deep_gamblers(torch.zeros(1, 4), torch.tensor([1]), reward=2.0)
    assert loss.item() == pytest.approx(-math.log(0.25 + 0.25 / 2))
    # e^1 and e^0 twice, abstention e^0: p_0 = e/(e+3).
    loss = deep_gamblers(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([0]), reward=4.0)
    assert loss.item() == pytest.approx(-math.log((math.e + 0.25) / (math.e + 3)))


def test_deep_gamblers_is_the_published_formula_and_stays_finite() -> None:
    shares = OUTPUTS.double().softmax(1)
    for reward in (1.1, 2.5, 10.0):
        expected = -torch.log(shares[range(4), LABELS] + shares[:, -1] / reward)
        torch.testing.assert_close(
            deep_gamblers(OUTPUTS.double(), LABELS, reward=reward).double(), expected, rtol=1e-6, atol=1e-6
        )
    extreme = torch.tensor([[-400.0, 300.0, 0.0], [0.0, 300.0, -300.0]], requires_grad=True)
    loss = deep_gamblers(extreme, torch.tensor([0, 0]), reward=3.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("reward", [1.5, 2.5, 10.0])
def test_the_abstention_is_raised_exactly_where_the_true_class_has_less_than_one_reward(reward: float) -> None:
    """∂L/∂z_r = r·(p_y − (1 − r)/o)/(p_y + r/o): a descent step raises z_r iff p_y/(1 − r) < 1/o."""
    outputs = OUTPUTS.clone().requires_grad_()
    deep_gamblers(outputs, LABELS, reward=reward).sum().backward()
    assert outputs.grad is not None
    is_raised = outputs.grad[:, -1] < 0
    among_classes = LOGITS.softmax(1)[range(4), LABELS]
    assert is_raised.tolist() == (among_classes < 1 / reward).tolist()
    assert (outputs.grad[range(4), LABELS] < 0).all()  # the true class's logit always rises


def test_above_as_many_as_classes_the_best_bet_keeps_nothing_back() -> None:
    """Liu et al. 2019: with o below the number of classes an ignorant gambler abstains, above never."""
    kept = {}
    for reward in (2.0, 4.0):
        outputs = torch.zeros(1, 4, requires_grad=True)
        optimiser = torch.optim.Adam([outputs], lr=0.1)
        for _ in range(600):
            loss = deep_gamblers(outputs.expand(3, 4), torch.tensor([0, 1, 2]), reward=reward).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        kept[reward] = outputs.softmax(1)[0, -1].item()
    assert kept[2.0] > 0.98
    assert kept[4.0] < 0.02


def test_hinted_cross_entropy_is_the_published_formula() -> None:
    shares, c = LOGITS.double().softmax(1), OUTPUT.double().sigmoid()[:, None]
    truth = F.one_hot(LABELS, 3).double()
    is_hinted = torch.tensor([True, True, False, False])
    adjusted = torch.where(is_hinted[:, None], c * shares + (1 - c) * truth, shares)
    expected = -torch.log((adjusted * truth).sum(1))
    found = hinted_cross_entropy(LOGITS, OUTPUT, LABELS, is_hinted)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    # By hand: p_y = 1/3, c = 1/2: p' = 1/6 + 1/2.
    loss = hinted_cross_entropy(torch.zeros(1, 3), torch.zeros(1), torch.tensor([1]), torch.tensor([True]))
    assert loss.item() == pytest.approx(-math.log(2 / 3))


def test_hints_lower_the_confidence_and_the_penalty_raises_it() -> None:
    output = OUTPUT.clone().requires_grad_()
    hinted_cross_entropy(LOGITS, output, LABELS, torch.tensor([True, True, True, False])).sum().backward()
    assert output.grad is not None
    assert (output.grad[:3] > 0).all()  # a descent step asks for more of the hint
    assert output.grad[3] == 0  # without a hint c plays no part
    # Of two hinted images the one that is wrong pulls harder.
    assert output.grad[2] / OUTPUT[2].sigmoid() > output.grad[0] / OUTPUT[0].sigmoid()
    loss, outputs = HintLoss(DeVries()), OUTPUTS.clone().requires_grad_()
    _, terms = loss(outputs, LABELS, step=0, seeds=SEEDS, adapt=False)
    terms["confidence_penalty"].backward()
    assert outputs.grad is not None
    assert (outputs.grad[:, -1] < 0).all()
    assert (outputs.grad[:, :-1] == 0).all()


def test_the_hint_loss_as_a_whole_and_its_budget() -> None:
    loss = HintLoss(DeVries(weight=0.1, budget=0.3))
    losses, terms = loss(OUTPUTS, LABELS, step=0, seeds=SEEDS, adapt=True)
    asked = -torch.log(OUTPUT.sigmoid()).mean()
    assert asked > 0.3
    torch.testing.assert_close(terms["confidence_penalty"], 0.1 * asked)
    assert loss.weight.item() == pytest.approx(0.1 / 0.99)  # more than the budget: asking gets dearer
    is_hinted = uniform(SEEDS, stream="hints") < 0.5
    assert 0 < is_hinted.sum() < 4
    torch.testing.assert_close(losses, hinted_cross_entropy(LOGITS, OUTPUT, LABELS, is_hinted))
    confident = torch.cat([LOGITS, torch.full((4, 1), 5.0)], 1)
    loss(confident, LABELS, step=1, seeds=SEEDS, adapt=False)
    assert loss.weight.item() == pytest.approx(0.1 / 0.99)
    loss(confident, LABELS, step=1, seeds=SEEDS, adapt=True)
    assert loss.weight.item() == pytest.approx(0.1 / 0.99 / 1.01)
    assert loss.summarise() == {"confidence_weight": pytest.approx(0.1 / 0.99 / 1.01)}


def test_half_of_the_images_get_hints_others_in_every_epoch() -> None:
    seeds = torch.arange(20_000)
    first, second = (uniform(seeds + shift, stream="hints") < 0.5 for shift in (0, 1_000_000))
    assert first.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (first == second).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_first_epochs_of_deep_gamblers_are_plain_cross_entropy() -> None:
    loss = build_confidence_loss(DeepGamblers(pretrain_epochs=2, reward=2.0), steps_per_epoch=5)
    assert isinstance(loss, GamblersLoss)
    plain, _ = loss(OUTPUTS, LABELS, step=9, seeds=SEEDS, adapt=True)
    torch.testing.assert_close(plain, F.cross_entropy(LOGITS, LABELS, reduction="none"))
    after, _ = loss(OUTPUTS, LABELS, step=10, seeds=SEEDS, adapt=True)
    torch.testing.assert_close(after, deep_gamblers(OUTPUTS, LABELS, reward=2.0))


def test_no_confidence_and_confidnet_train_the_classifier_as_ever() -> None:
    for config in (NoConfidence(), ConfidNet()):
        assert build_confidence_loss(config, steps_per_epoch=5) is None


@pytest.mark.parametrize("kind", ["deep_gamblers", "devries"])
@pytest.mark.parametrize("part", [Mixup(), CutMix(), LabelSmoothing(), Combined(mixup=Mixup(), sam=Sam())])
def test_regularisers_without_one_true_class_are_refused(kind: str, part: RegulariserConfig) -> None:
    with pytest.raises(ValueError, match=rf"training.confidence: found {kind} with the regulariser \w+, whose targets"):
        TrialConfig(training={"confidence": {"kind": kind}}, regulariser=part)
    assert TrialConfig(training={"confidence": {"kind": "confidnet"}}, regulariser=part).regulariser == part


def test_an_abstention_that_is_never_trained_is_refused() -> None:
    confidence = {"kind": "deep_gamblers", "pretrain_epochs": 3}
    with pytest.raises(ValueError, match=r"pretrain_epochs: found 3 of 3 training.epochs"):
        TrialConfig(training={"epochs": 3, "confidence": confidence})
    with pytest.raises(ValueError, match="greater than 1"):
        DeepGamblers(reward=1.0)


def test_class_weights_and_groups_weigh_the_new_loss_as_they_weigh_cross_entropy() -> None:
    groups = Groups(("a", "b"), torch.tensor([0, 0, 1, 1]).numpy())
    weights = torch.tensor([1.0, 2.0, 4.0])
    settings = {"num_classes": 3, "groups": groups, "device": torch.device("cpu")}
    confidence = build_confidence_loss(DeepGamblers(reward=2.0), steps_per_epoch=1)
    each = deep_gamblers(OUTPUTS, LABELS, reward=2.0)
    members = torch.tensor([0, 0, 1, 1])
    loss = build_loss(NoRegulariser(), class_weights=weights, confidence=confidence, **settings)
    terms = loss(OUTPUTS, LABELS, members, 0, seeds=SEEDS)
    assert set(terms) == {"deep_gamblers"}
    torch.testing.assert_close(terms["deep_gamblers"], (weights[LABELS] * each).sum() / weights[LABELS].sum())
    loss = build_loss(
        Combined(group_dro=GroupDro(), spectral_decoupling=SpectralDecoupling(weight=0.2)),
        class_weights=None, confidence=confidence, **settings,
    )  # fmt: skip
    terms = loss(OUTPUTS, LABELS, members, 0, seeds=SEEDS, adapt=False)
    torch.testing.assert_close(terms["group_dro"], 0.5 * each[:2].mean() + 0.5 * each[2:].mean())
    torch.testing.assert_close(terms["spectral_decoupling"], 0.1 * LOGITS.square().mean())  # of the classes alone
