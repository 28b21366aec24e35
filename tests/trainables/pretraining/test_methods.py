"""Losses of the methods against the papers' formulae in numpy, gradients in parts against those of the whole batch."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables.contrastive_config import Byol, MoCo, SimClr, find_long_queue
from trainables.models.networks import Classifier
from trainables.pretraining.methods import (
    ByolTrainer,
    ContrastiveTrainer,
    KeyQueue,
    MoCoTrainer,
    build_optimiser,
    build_trainer,
    embed_images,
    momentum_at,
)
from trainables.training.joint.processes import split_evenly

SMALL = {"projection_dim": 6, "hidden_dim": 10}
METHODS = [
    SimClr(temperature=0.3, **SMALL),
    MoCo(queue_size=20, momentum=0.5, **SMALL),
    MoCo(queue_size=20, momentum=0.5, batch_norm_groups=1, **SMALL),
    Byol(**SMALL, optimiser="sgd"),
]


def network(*, batch_norm: bool) -> Classifier:
    norm: nn.Module = nn.BatchNorm2d(5) if batch_norm else nn.Identity()
    layers = (nn.Conv2d(3, 5, 3), norm, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4))
    backbone = nn.Sequential(*layers)
    return Classifier(backbone, head="5", mean=torch.full((3,), 0.5), std=torch.full((3,), 0.2), input_size=8)


def views(count: int = 12) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    first, second = torch.randint(0, 256, (2, count, 3, 8, 8), generator=draw, dtype=torch.uint8)
    return first, second


def build(method: Any, *, batch_norm: bool = False) -> ContrastiveTrainer:
    torch.manual_seed(0)
    trainer = build_trainer(network(batch_norm=batch_norm), method)
    if not batch_norm:  # the heads of SimCLR and BYOL have it too
        for module in trainer.modules.values():
            for name, layer in list(module.named_modules()):
                if isinstance(layer, nn.BatchNorm1d):
                    parent = module.get_submodule(name.rpartition(".")[0])
                    setattr(parent, name.rpartition(".")[2], nn.Identity())
    return trainer.modules.train() and trainer


def unit(vectors: Tensor) -> np.ndarray:
    array = vectors.detach().double().numpy()
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True))


def log_share(logits: np.ndarray, own: int) -> float:
    return float(logits[own] - np.log(np.exp(logits).sum()))


def test_simclr_is_the_normalised_temperature_scaled_cross_entropy() -> None:
    """Chen et al. 2020, eq. 1: over 2N views, the other view of the image against the 2N − 1 other views."""
    trainer = build(METHODS[0])
    first, second = views()
    z = unit(torch.cat([embed_images(side, *trainer.trained)[1] for side in (first, second)]))
    terms = []
    for i in range(24):
        others = [k for k in range(24) if k != i]
        terms.append(-log_share(z[others] @ z[i] / 0.3, others.index((i + 12) % 24)))
    loss = trainer.compute_gradients(first, second, part_size=None).loss
    assert loss.item() == pytest.approx(np.mean(terms), abs=1e-5)


def test_moco_is_the_cross_entropy_of_a_key_against_the_queue() -> None:
    """He et al. 2020, eq. 1: q·k₊/τ against q·k₊/τ and the K keys of the queue."""
    trainer = build(METHODS[1])
    assert isinstance(trainer, MoCoTrainer)
    first, second = views()
    queue = trainer.queue.keys.double().numpy().copy()
    queries = unit(embed_images(first, *trainer.trained)[1])
    momentum = (trainer.modules["momentum_encoder"], trainer.modules["momentum_projector"])
    keys = unit(embed_images(second, *momentum)[1])
    terms = [-log_share(np.concatenate([[q @ k], queue @ q]) / 0.2, 0) for q, k in zip(queries, keys, strict=True)]
    loss = trainer.compute_gradients(first, second, part_size=None).loss
    assert loss.item() == pytest.approx(np.mean(terms), abs=1e-5)
    assert trainer.queue.keys[:12].numpy() == pytest.approx(keys, abs=1e-6)
    assert trainer.queue.keys[12:].numpy() == pytest.approx(queue[12:])


def test_byol_is_the_squared_distance_of_unit_vectors_both_ways() -> None:
    """Grill et al. 2020, eq. 2: ‖q̄ − z̄′‖², for both orders of the views."""
    trainer = build(METHODS[3])
    assert isinstance(trainer, ByolTrainer)
    predictions = [unit(embed_images(side, *trainer.trained)[-1]) for side in views()]
    target = (trainer.modules["target_encoder"], trainer.modules["target_projector"])
    targets = [unit(embed_images(side, *target)[-1]) for side in views()]
    distances = [((a - b) ** 2).sum(1).mean() for a, b in zip(predictions, reversed(targets), strict=True)]
    assert trainer.compute_gradients(*views(), part_size=None).loss.item() == pytest.approx(sum(distances), abs=1e-5)


@pytest.mark.parametrize("part_size", [12, 5, 2])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_gradients_in_parts_are_those_of_the_batch(method: Any, part_size: int) -> None:
    whole, parts = build(method), build(method)
    expected = whole.compute_gradients(*views(), part_size=None)
    found = parts.compute_gradients(*views(), part_size=part_size)
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    assert sorted(found.embeddings[:, 0].tolist()) == pytest.approx(
        sorted(expected.embeddings[:, 0].tolist()), abs=1e-6
    )
    compared = 0
    for own, other in zip(
        nn.ModuleList(parts.trained).parameters(), nn.ModuleList(whole.trained).parameters(), strict=True
    ):
        if other.grad is not None:
            assert own.grad is not None
            assert (own.grad - other.grad).abs().max() < 1e-6
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize(
    ("count", "size", "expected"), [(12, 5, [4, 4, 4]), (13, 4, [4, 3, 3, 3]), (5, 2, [3, 2]), (3, 2, [3]), (7, 9, [7])]
)
def test_no_part_is_a_single_image(count: int, size: int, expected: list[int]) -> None:
    parts = split_evenly(torch.arange(count), size)
    assert [len(part) for part in parts] == expected
    assert torch.equal(torch.cat(parts), torch.arange(count))
    outcome = build(METHODS[3], batch_norm=True).compute_gradients(*views(count), part_size=size)
    assert outcome.loss.isfinite()  # BYOL's heads refuse a single image


def test_parts_draw_the_same_dropout_twice_and_update_statistics_once() -> None:
    """With dropout the gradient is that of the embeddings that were compared: both passes draw the same numbers."""
    trainer = build(METHODS[0], batch_norm=True)
    encoder = trainer.modules["encoder"]
    assert isinstance(encoder, Classifier)
    encoder.backbone[2] = nn.Dropout(0.5)
    seen: list[Tensor] = []
    trainer.modules["projector"].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    trainer.compute_gradients(*views(), part_size=6)
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])
    assert encoder.backbone[1].num_batches_tracked == 2


class OwnNorm(nn.BatchNorm2d):
    """A layer whose forward is its own, as timm's with an activation."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


@pytest.mark.parametrize(("count", "is_own"), [(12, False), (12, True), (14, False)])
def test_queries_and_shuffled_keys_have_the_statistics_of_their_groups(count: int, is_own: bool) -> None:
    """Four groups of three or four: every query's statistics are its group's, and keys come back in their order."""
    trainer = build(MoCo(queue_size=20, batch_norm_groups=4, **SMALL), batch_norm=True)
    assert isinstance(trainer, MoCoTrainer)
    if is_own:
        for name in ("encoder", "momentum_encoder"):
            trainer.modules[name].backbone[1] = OwnNorm(5)
    first, second = views(count)
    rows = [torch.arange(count)[start::4] for start in range(4)]
    expected = torch.empty(count, 6)
    other, means = copy.deepcopy(trainer.modules), []
    for group in rows:
        other["encoder"].load_state_dict(trainer.modules["encoder"].state_dict())  # without the group before
        expected[group] = embed_images(first[group], other["encoder"], other["projector"])[1]
        means.append(other["encoder"].backbone[1].running_mean.clone())
    torch.manual_seed(3)
    order = torch.randperm(count)
    shuffled = torch.empty(count, 6)
    for group in rows:
        part = second[order][group]
        shuffled[group] = embed_images(part, other["momentum_encoder"], other["momentum_projector"])[1]
    torch.manual_seed(3)
    outcome = trainer.compute_gradients(first, second, part_size=None)
    assert outcome.embeddings.numpy() == pytest.approx(expected.detach().numpy(), abs=1e-6)
    assert trainer.queue.keys[order].numpy() == pytest.approx(unit(shuffled), abs=1e-6)
    norm = trainer.modules["encoder"].backbone[1]
    assert norm.running_mean.numpy() == pytest.approx(torch.stack(means).mean(0).numpy(), abs=1e-6)
    assert norm.num_batches_tracked == 1


def test_the_queue_is_first_in_first_out_and_part_of_the_state() -> None:
    queue = KeyQueue(7, 2)
    for start in range(0, 15, 3):
        queue.enqueue(torch.arange(start, start + 3).float()[:, None].expand(3, 2))
    assert sorted(queue.keys[:, 0].tolist()) == [8, 9, 10, 11, 12, 13, 14]
    assert queue.keys[int(queue.position), 0] == 8  # the oldest is next
    queue.enqueue(torch.arange(20, 30).float()[:, None].expand(10, 2))
    assert sorted(queue.keys[:, 0].tolist()) == list(range(23, 30))
    assert set(queue.state_dict()) == {"keys", "position"}


@pytest.mark.parametrize(("method", "pairs"), [(METHODS[1], "momentum"), (METHODS[3], "target")], ids=["moco", "byol"])
def test_the_second_network_follows_slowly(method: Any, pairs: str) -> None:
    trainer = build(method)
    before = copy.deepcopy(trainer.modules)
    with torch.no_grad():
        for parameter in nn.ModuleList(trainer.trained).parameters():
            parameter.add_(1.0)
    trainer.finish_step(30, 100)
    share = 0.5 if pairs == "momentum" else 1 - 0.004 * (math.cos(math.pi * 0.3) + 1) / 2
    for name in ("encoder", "projector"):
        old = nn.utils.parameters_to_vector(before[f"{pairs}_{name}"].parameters())
        new = nn.utils.parameters_to_vector(trainer.modules[f"{pairs}_{name}"].parameters())
        assert (new - old).numpy() == pytest.approx(np.full(len(new), 1.0 - share), abs=1e-6)
    assert not any(p.requires_grad for p in trainer.modules[f"{pairs}_encoder"].parameters())


def test_byols_momentum_rises_to_one() -> None:
    assert momentum_at(0, 50, 0.9) == pytest.approx(0.9)
    assert momentum_at(25, 50, 0.9) == pytest.approx(0.95)
    assert momentum_at(50, 50, 0.9) == pytest.approx(1.0)


def test_lars_leaves_biases_and_norms_alone() -> None:
    trainer = build(Byol(**SMALL), batch_norm=True)
    optimiser = build_optimiser(trainer, Byol(**SMALL))
    decaying, others = optimiser.param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (1.5e-6, 0.0)
    assert all(parameter.ndim > 1 for parameter in decaying["params"])
    assert all(parameter.ndim == 1 for parameter in others["params"])
    count = len(list(nn.ModuleList(trainer.trained).parameters()))
    assert len(decaying["params"]) + len(others["params"]) == count
    weight, before = decaying["params"][0], decaying["params"][0].detach().clone()
    trainer.compute_gradients(*views(), part_size=None)
    optimiser.step()
    # You et al. 2017, eq. 6: .001·‖w‖/(‖g‖ + λ‖w‖) times the rate, whatever the size of the gradient.
    step = (weight - before).norm() / (0.2 * 0.001 * before.norm())
    assert step.item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("num_images", "is_long"), [(131_072, False), (131_071, True), (1_281_167, False)])
def test_a_queue_of_more_than_half_of_the_images_is_too_long(num_images: int, is_long: bool) -> None:
    problem = find_long_queue(MoCo(), num_images)
    assert (problem is not None) == is_long
    if problem is not None:
        assert "found 65,536 keys for 131,071 training images" in problem
        assert "65,535 or fewer" in problem
    assert find_long_queue(SimClr(), 10) is None
