"""Replicates of one architecture trained together: their weights stacked, one ``vmap`` over all of them.

Every replicate sees its own images in its own order, and what comes out is what training them one after another
gives, up to the rounding of float32: a batched kernel adds in another order. Nothing in the product uses this: on a
CPU it does not pay (``benchmarks/packing.py``, ``docs/performance.md``), and on a GPU it has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from trainables.augmentation.pipeline import build_augmentation, random_erasing
from trainables.config import TrialConfig
from trainables.data.batches import TrainingImages
from trainables.data.dataset import Dataset
from trainables.errors import ConfigError
from trainables.models.networks import Classifier
from trainables.regularisers import CutMix, GroupDro, Mixup, Sam, find_part
from trainables.training.loop import resolve_precision
from trainables.training.losses import build_loss
from trainables.training.optimisation import build_optimiser, learning_rate_factor

#: Layers that draw random numbers, by the name of their class (torch, torchvision, timm).
_RANDOM_LAYERS = ("Dropout", "StochasticDepth", "DropPath", "DropBlock", "PatchDropout")


def check_stackable(configs: Sequence[TrialConfig], model: Classifier) -> None:
    """Check that stacked training would give these trials the numbers they get one after another.

    Raises:
        ConfigError: they differ in more than the replicate, or something in them draws its random numbers, or decides,
            once per trial: under ``vmap`` it would do so once for all.
    """
    first, training = configs[0], configs[0].training
    if any(config.model_copy(update={"replicate": first.replicate}) != first for config in configs):
        raise ConfigError(
            f"stacked {len(configs)} trials and found different settings, expected trials that differ in their "
            "replicate only; stack the replicates of one arm"
        )
    drawing = [
        name
        for name, layer in model.named_modules()
        if type(layer).__name__.startswith(_RANDOM_LAYERS) and _probability(layer) > 0.0
    ]
    reasons = {
        f"the layers {', '.join(drawing[:3])} draw from one random stream": bool(drawing),
        "mixup draws one share per batch": find_part(first.regulariser, Mixup) is not None,
        "cutmix draws one rectangle per batch": find_part(first.regulariser, CutMix) is not None,
        "sam takes its step along the gradient of all weights": find_part(first.regulariser, Sam) is not None,
        "group_dro has weights of its own per trial": find_part(first.regulariser, GroupDro) is not None,
        "training.gradient_clip_norm is over all weights": training.gradient_clip_norm is not None,
        "training.patience stops trials one by one": training.patience is not None,
        "training.class_weights need a loss of their own": training.class_weights != "none",
        "a linear probe has little to be stacked": training.backbone_learning_rate_factor == 0.0,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ConfigError(f"stacked {len(configs)} trials: {'; '.join(found)}; train them one after another")


def _probability(layer: nn.Module) -> float:
    """Return the probability of a random layer; 1 where it does not say."""
    for name in ("p", "drop_prob", "prob"):
        value = getattr(layer, name, None)
        if isinstance(value, float | int):
            return float(value)
    return 1.0


class StackedTrainer:
    """Trains k models at once; the models given hold the trained weights after ``write_back``.

    Args:
        models: of one architecture, on the device to be used, each with the weights it starts from.
        data: train is read, nothing else.
        configs: one per model; they differ in their replicate only.

    Raises:
        ConfigError: these trials cannot be stacked (``check_stackable``).
    """

    def __init__(self, models: Sequence[Classifier], data: Dataset, configs: Sequence[TrialConfig]) -> None:
        check_stackable(configs, models[0])
        config, self._models = configs[0], models
        self._config, self._device = config, models[0].mean.device
        self._precision = resolve_precision(config.training, self._device)
        train = data.splits["train"]
        self._batches = [TrainingImages(train, each, self._device) for each in configs]
        self._augment = build_augmentation(config.augmentation, train.images.shape[-1])
        self._loss = build_loss(
            config.regulariser,
            class_weights=None,
            num_classes=data.num_classes,
            groups=self._batches[0].groups,
            device=self._device,
        )
        self._parameters, self._buffers = stack_module_state(list(models))
        self._optimiser = self._build_optimiser()
        self._base_rates = [group["lr"] for group in self._optimiser.param_groups]
        self._epoch = self._step = 0

    def _build_optimiser(self) -> torch.optim.Optimizer:
        """The optimiser of one model, over the stacked weights: it works weight by weight, so k at once are k alone."""
        _, alone = build_optimiser(self._models[0], self._config)
        names = {id(parameter): name for name, parameter in self._models[0].named_parameters()}
        groups = [
            {**group, "params": [self._parameters[names[id(parameter)]] for parameter in group["params"]]}
            for group in alone.param_groups
        ]
        optimiser: Callable[..., torch.optim.Optimizer] = type(alone)
        return optimiser(groups)

    @property
    def num_images(self) -> int:
        """Images per epoch, of all models together."""
        return sum(len(batches.rows) for batches in self._batches)

    def run_epoch(self) -> Float[Tensor, " k"]:
        """Train all models for one epoch; return the mean training loss of each."""
        for model in self._models:
            model.train()
        self._epoch += 1
        total = torch.zeros(len(self._models), device=self._device)
        count = 0
        for batches in zip(*(each.epoch(self._epoch) for each in self._batches), strict=True):
            images, labels, groups, seeds = (torch.stack(column) for column in zip(*batches, strict=True))
            total += self._train_step(images, labels, groups, seeds) * labels.shape[1]
            count += labels.shape[1]
        return total / count

    def _train_step(self, images: Tensor, labels: Tensor, groups: Tensor, seeds: Tensor) -> Tensor:
        """One optimiser step of every model on its batch (k × n × …); returns the k losses."""
        model, training = self._models[0], self._config.training
        flat = model.normalise(self._augment(images.flatten(0, 1), seeds.flatten()))
        flat = random_erasing(flat, seeds.flatten(), self._config.augmentation.erasing)
        inputs = flat.view(*labels.shape, *flat.shape[1:])
        num_steps = self._batches[0].num_batches * training.epochs
        warmup = int(training.warmup_epochs * self._batches[0].num_batches)
        factor = learning_rate_factor(self._step, num_steps, warmup, training.schedule)
        for group, rate in zip(self._optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor
        with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
            logits = torch.vmap(self._forward)(self._parameters, self._buffers, inputs)
        losses: Tensor = torch.vmap(self._loss_of_one)(logits, labels, groups)
        self._optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._step += 1
        return losses.detach()

    def _forward(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor) -> Tensor:
        # Batch normalisation writes its running statistics into the stacked buffers, each model into its own row.
        return functional_call(self._models[0], (dict(parameters), dict(buffers)), (images,))

    def _loss_of_one(self, logits: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
        return torch.stack(list(self._loss(logits, labels, groups, self._step).values())).sum()

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the trained weights and statistics into the models."""
        for row, model in enumerate(self._models):
            for stacked, own in (
                (self._parameters, dict(model.named_parameters())),
                (self._buffers, dict(model.named_buffers())),
            ):
                for name, tensor in own.items():
                    tensor.copy_(stacked[name][row])
