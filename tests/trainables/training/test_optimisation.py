from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.tiny_configs import random_dataset, tiny_trial
from trainables.config import TrialConfig
from trainables.training.optimisation import build_optimiser, learning_rate_factor, measure_weight_decay
from trainables.trial import build_initial_model


def config(**sections: Any) -> TrialConfig:
    training = {"epochs": 3, "batch_size": 16, "label_fraction": 1.0, **sections.pop("training", {})}
    return tiny_trial(training=training, **sections)


def test_weight_decay_spares_biases_and_normalisation() -> None:
    model = build_initial_model(config(), random_dataset(), encoder=None)
    _, optimiser = build_optimiser(model, config(regulariser={"kind": "weight_decay", "weight": 0.3}))
    for group in optimiser.param_groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] == 0.3}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(model.parameters()))
    for arm in ({}, {"regulariser": {"kind": "spectral_decoupling"}}):
        _, optimiser = build_optimiser(model, config(**arm))
        assert all(group["weight_decay"] == 0.0 for group in optimiser.param_groups)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_settings_reach_the_optimiser(name: str) -> None:
    model = build_initial_model(config(), random_dataset(), encoder=None)
    training = {"optimiser": name, "learning_rate": 0.02, "momentum": 0.7, "backbone_learning_rate_factor": 0.1}
    parameters, optimiser = build_optimiser(model, config(training=training))
    assert isinstance(optimiser, torch.optim.AdamW if name == "adamw" else torch.optim.SGD)
    head = {id(parameter) for parameter in model.head.parameters()}
    for group in optimiser.param_groups:
        is_head = {id(parameter) in head for parameter in group["params"]}
        assert len(is_head) == 1
        assert group["lr"] == pytest.approx(0.02 if is_head.pop() else 0.002)
        assert name == "adamw" or group["momentum"] == 0.7
    assert len(parameters) == len(list(model.parameters()))


def test_schedule() -> None:
    rates = [learning_rate_factor(step, 12, 4, "cosine") for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[8] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] > 0
    assert [learning_rate_factor(step, 5, 2, "constant") for step in range(5)] == [0.5, 1, 1, 1, 1]


def test_the_size_of_weight_decay_is_that_of_the_penalty_it_stands_for() -> None:
    settings = config(regulariser={"kind": "weight_decay", "weight": 0.3})
    model = build_initial_model(settings, random_dataset(), encoder=None)
    _, optimiser = build_optimiser(model, settings)
    expected = sum(float(weight.detach().square().sum()) for weight in model.parameters() if weight.ndim > 1) * 0.15
    assert measure_weight_decay(optimiser) == pytest.approx(expected, rel=1e-5)
    _, optimiser = build_optimiser(model, config())
    assert measure_weight_decay(optimiser) is None
