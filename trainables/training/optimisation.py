"""Optimiser of a trial: trained parameters, learning rates and weight decay; its step, with SAM and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from trainables.config import TrialConfig
from trainables.models.networks import Classifier
from trainables.regularisers import Sam, WeightDecay, find_part
from trainables.training.joint.group_statistics import StatisticsOfAll
from trainables.training.joint.processes import ALONE, Processes
from trainables.training.sam import perturbed_weights
from trainables.training.transfer.trained_part import find_rate_factors, freeze


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, schedule: str) -> float:
    """Return the factor of the learning rate at ``step`` (from 0): linear warm-up, then cosine to 0 or constant.

    A pure function of the step, so there is no scheduler state to save. Source: Loshchilov & Hutter 2017, eq. 5.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def build_optimiser(model: Classifier, config: TrialConfig) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Return the trained parameters and their optimiser; frozen parameters lose their gradient.

    Weights decay only if the regulariser includes weight decay; biases and normalisation (ndim < 2) never do. A
    backbone factor of 0 freezes the backbone, which gives a linear probe. A learned confidence counts as head, whose
    parameters are the last group.

    Raises:
        ConfigError: ``training.fine_tune`` does not fit the network.
    """
    training = config.training
    weight_decay = find_part(config.regulariser, WeightDecay)
    decay = 0.0 if weight_decay is None else weight_decay.weight
    factors = find_rate_factors(model, config)
    freeze(model, factors)
    last = (model.head, model.confidence)
    head = {id(parameter) for module in last if module is not None for parameter in module.parameters()}
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if factors[name] > 0.0:
            groups.setdefault((id(parameter) in head, factors[name], parameter.ndim > 1), []).append(parameter)
    described: list[dict[str, Any]] = []
    for (_, factor, decays), parameters in sorted(groups.items(), key=lambda item: item[0]):
        settings = {"lr": training.learning_rate * factor, "weight_decay": decay if decays else 0.0}
        if described and settings.items() <= described[-1].items():  # one group is updated faster than two
            described[-1]["params"] += parameters
        else:
            described.append({"params": list(parameters), **settings})
    trained = [parameter for parameters in groups.values() for parameter in parameters]
    if training.optimiser == "adamw":
        return trained, torch.optim.AdamW(described)
    return trained, torch.optim.SGD(described, momentum=training.momentum)


@torch.no_grad()
def measure_weight_decay(optimiser: torch.optim.Optimizer) -> float | None:
    """Return ½λ‖w‖² over the decaying weights, the penalty equivalent to weight decay; None if no weights decay."""
    terms = [
        0.5 * group["weight_decay"] * torch.stack([weight.square().sum() for weight in group["params"]]).sum()
        for group in optimiser.param_groups
        if group["weight_decay"] > 0.0
    ]
    return float(torch.stack(terms).sum()) if terms else None


class Descent:
    """Steps of an optimiser along the gradient of a loss.

    With several processes each runs the network on its share of a batch; the loss is computed by each from the outputs
    of all, and gradients are summed: the step is that of one process with the whole batch.

    Args:
        model: network, trained in place.
        config: config of the trial: its optimiser, SAM and clipping.
        precision: type in which the forward pass computes.
        processes: those that train the network together.

    Raises:
        ConfigError: ``training.fine_tune`` does not fit the network.
    """

    def __init__(
        self, model: Classifier, config: TrialConfig, precision: torch.dtype, *, processes: Processes = ALONE
    ) -> None:
        self._model, self._precision, self._processes = model, precision, processes
        self._parameters, self.optimiser = build_optimiser(model, config)
        self._sam, self._clip_norm = find_part(config.regulariser, Sam), config.training.gradient_clip_norm

    def take(self, rows: Shaped[Tensor, "n *_"]) -> Shaped[Tensor, "m *_"]:
        """Return the rows of a batch that this process runs: its share, or all if there is not one for each process."""
        return self._processes.take(rows).contiguous() if self._is_divided(len(rows)) else rows

    def collect(self, own: Shaped[Tensor, "m *_"], count: int) -> Shaped[Tensor, "n *_"]:
        """Return all rows of a batch of ``count``, of which every process gives those that it runs."""
        return self._processes.collect(own, count) if self._is_divided(count) else own

    def _is_divided(self, count: int) -> bool:
        return 1 < self._processes.count <= count

    def run(
        self,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,
        compute_loss: Callable[[Tensor, bool], dict[str, Tensor]],
        *,
        count: int,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Run one step; return the loss with its terms, and the outputs of the whole batch.

        With SAM also return the sharpness: the increase of the loss at the point where the gradient is computed.

        Args:
            forward: network.
            inputs: what it takes, of this process's rows (``take``).
            compute_loss: outputs of the whole batch, and whether the loss may adapt to them, which it may once a step →
                its terms.
            count: rows of the whole batch.
        """
        self.optimiser.zero_grad(set_to_none=True)
        whole = partial(self._run_network, forward, count=count)
        terms, outputs = self._descend(whole, inputs, compute_loss, adapt=True)
        if self._sam is not None:
            with perturbed_weights(self._model, self._parameters, rho=self._sam.rho, adaptive=self._sam.adaptive):
                self.optimiser.zero_grad(set_to_none=True)
                highest, _ = self._descend(whole, inputs, compute_loss, adapt=False)
            terms["sharpness"] = highest["loss"] - terms["loss"]
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self.optimiser.step()
        if not self._is_divided(count):  # where dropout differs, so do running statistics
            self._processes.copy_first(self._model.buffers())
        return terms, outputs

    def _descend(
        self,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,
        compute_loss: Callable[[Tensor, bool], dict[str, Tensor]],
        *,
        adapt: bool,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Run the forward and backward pass; return the loss with its terms, and the outputs."""
        with torch.autocast(inputs.device.type, self._precision, enabled=self._precision != torch.float32):
            outputs = forward(inputs)
        terms = compute_loss(outputs, adapt)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        self._processes.add_gradients([self._model])
        return {name: value.detach() for name, value in {"loss": loss, **terms}.items()}, outputs.detach()

    def _run_network(self, forward: Callable[[Tensor], Tensor], inputs: Tensor, *, count: int) -> Tensor:
        """Return the outputs of the whole batch, of which this process runs its rows."""
        if self._is_divided(count):
            with StatisticsOfAll(self._processes):
                own = forward(inputs)
            return self.collect(own, count)
        outputs = forward(inputs)
        if self._processes.count == 1:
            return outputs
        # All have run the whole batch, the first one's outputs count, and the gradients of the others are 0.
        first = self._processes.broadcast(outputs.detach().clone())
        return outputs if self._processes.is_first else first + 0.0 * outputs
