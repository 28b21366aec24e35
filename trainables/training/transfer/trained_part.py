"""The trained part of a network: its parameters, their share of the learning rate, and the mode of every layer."""

from __future__ import annotations

from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from trainables.config import TrialConfig
from trainables.data.dataset import Dataset
from trainables.errors import ConfigError
from trainables.models.networks import Classifier
from trainables.training.transfer.features import CACHED, find_cache_obstacle
from trainables.training.transfer.layers import order_layers, order_stages

#: Prefix of the backbone's parameters in a ``Classifier``.
_BACKBONE = "backbone."


def find_rate_factors(model: Classifier, config: TrialConfig) -> dict[str, float]:
    """Return parameter → its factor of the learning rate, 0 if it is frozen.

    Head and learned confidence have 1. Below them the backbone's factor counts, times ``layer_decay`` for every layer
    between a parameter and the head (Bao et al. 2022, BEiT, section 3.1).

    Raises:
        ConfigError: ``training.fine_tune`` does not fit the network.
    """
    training, name = config.training, config.model.name
    fine_tune = training.fine_tune
    last = [module for module in (model.head, model.confidence) if module is not None]
    of_head = {id(parameter) for module in last for parameter in module.parameters()}
    below = [parameter for parameter, value in model.named_parameters() if id(value) not in of_head]
    factors = dict.fromkeys(below, training.backbone_learning_rate_factor)
    if fine_tune.layer_decay < 1.0 or fine_tune.frozen_stem:
        layers = order_layers(model, name=name)
        highest = max(layers.values())
        for parameter in below:
            layer = layers[parameter.removeprefix(_BACKBONE)]
            is_frozen = fine_tune.frozen_stem and layer == 0
            factors[parameter] *= 0.0 if is_frozen else fine_tune.layer_decay ** (highest - layer)
    if fine_tune.last_stages is not None:
        stages, count = order_stages(model, name=name)
        if fine_tune.last_stages >= count:
            raise ConfigError(
                f"training.fine_tune.last_stages: found {fine_tune.last_stages}, and {name} has {count} stages, so "
                f"that nothing would be frozen; expected 1 to {count - 1}, or none to train the whole network"
            )
        for parameter in below:
            if stages[parameter.removeprefix(_BACKBONE)] < count - fine_tune.last_stages:
                factors[parameter] = 0.0
    if fine_tune.batch_norm == "frozen" and not any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        raise ConfigError(
            f"training.fine_tune.batch_norm: found frozen, and {name} has no batch normalisation; take it away, or "
            "choose another network"
        )
    return {parameter: factors.get(parameter, 1.0) for parameter, _ in model.named_parameters()}


def set_training_mode(model: Classifier, config: TrialConfig) -> None:
    """Set training mode for what is trained, and evaluation mode for what is frozen.

    Frozen layers keep their batch statistics, and their dropout is off. With frozen batch normalisation all statistics
    are kept; its scale and shift are trained where their layer is.
    """
    model.train()
    if config.training.is_linear_probe:
        model.eval()
        model.head.train()
        return
    for module in model.modules():
        parameters = list(module.parameters())
        has_only_frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        keeps_statistics = config.training.fine_tune.batch_norm == "frozen" and isinstance(module, _BatchNorm)
        if has_only_frozen or keeps_statistics:
            module.eval()


def list_frozen(model: Classifier, config: TrialConfig) -> frozenset[str]:
    """Return the names of the weights and buffers that a linear probe never changes; of another training, none."""
    if not config.training.is_linear_probe:
        return frozenset()
    of_head = f"{_BACKBONE}{model.head_name}."
    return frozenset(name for name in model.state_dict() if name.startswith(_BACKBONE) and not name.startswith(of_head))


def freeze(model: Classifier, factors: dict[str, float]) -> None:
    """Give a gradient to the parameters alone whose factor (``find_rate_factors``) is above 0."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(factors[name] > 0.0)


def describe_trained_part(model: Classifier, config: TrialConfig, data: Dataset) -> dict[str, Any]:
    """Return for ``result.json`` what of the network was trained, and what the rest did meanwhile.

    ``batch_norm``: train or frozen (statistics of all layers), partly (those of frozen layers are), none.
    ``features``: cached, or why they were computed in every epoch. The model is left in evaluation mode.
    """
    fine_tune = config.training.fine_tune
    freeze(model, find_rate_factors(model, config))
    set_training_mode(model, config)
    modes = {layer.training for layer in model.backbone.modules() if isinstance(layer, _BatchNorm)}
    batch_norm = "train" if modes == {True} else "frozen" if modes == {False} else "partly" if modes else "none"
    model.eval()
    trained = "whole network"
    if config.training.is_linear_probe:
        trained = "head"
    elif fine_tune.last_stages is not None:
        trained = (
            f"last {fine_tune.last_stages} stages and head" if fine_tune.last_stages > 1 else "last stage and head"
        )
    elif fine_tune.frozen_stem:
        trained = "all but the stem"
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.backbone.parameters()]
    return {
        "trained": trained,
        "num_trained": sum(size for size, is_trained in sizes if is_trained),
        "num_frozen": sum(size for size, is_trained in sizes if not is_trained),
        "layer_decay": fine_tune.layer_decay,
        "batch_norm": batch_norm,
        "features": find_cache_obstacle(model, config, data) or CACHED,
    }
