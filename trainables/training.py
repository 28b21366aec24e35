"""Train one classifier: seeded per epoch, checkpointed after every epoch, selected on in-distribution validation."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from trainables.acceleration import Choice, default_choice
from trainables.augmentation.pipeline import Augmenter, build_augmentation, random_erasing
from trainables.checkpoint import (
    TrainingState,
    capture_random_state,
    forget_best,
    has_best,
    load_best,
    load_checkpoint,
    pack_module,
    pack_optimiser,
    restore_module,
    restore_random_state,
    save_best,
    save_checkpoint,
    unpack,
    unpack_optimiser,
)
from trainables.config import Mixup, TrainingConfig, TrialConfig, WeightDecay
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed, split_sizes
from trainables.errors import ConfigError, DivergedError
from trainables.evaluation.metrics import compute_metrics
from trainables.evaluation.predictions import keep, predict_each
from trainables.losses import Loss, build_loss, mixup
from trainables.models import Classifier
from trainables.seeding import derive_seed, hash_ids, mix
from trainables.storage import Folder

#: Called after every epoch with its record: {"epoch", "timestamp_ms", "metrics"}.
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """What training leaves behind; the model given to it holds the selected weights."""

    epochs: int
    best_epoch: int


def resolve_precision(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of the forward pass: bfloat16 on a GPU unless told otherwise.

    Raises:
        ConfigError: bfloat16 on a CPU, where some gradients of convolutions are left uninitialised (torch 2.15).
    """
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if config.precision == "bfloat16" and device.type == "cpu":
        raise ConfigError(
            "training.precision: found bfloat16 on a CPU, where torch computes wrong gradients for small feature maps; "
            "use auto (bfloat16 on GPUs only) or float32"
        )
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def train_model(
    model: Classifier,
    data: Dataset,
    config: TrialConfig,
    *,
    signature: str,
    folder: Folder,
    report: Report,
    acceleration: Choice | None = None,
) -> Outcome:
    """Train ``model`` in place, from the last checkpoint in ``folder`` if there is one; it ends with the best weights.

    A run that was interrupted and goes on gives the same weights, bit for bit on a CPU, as one that was not.

    Args:
        model: on the device to be used.
        data: train and val are read; test and external sets are never touched.
        config: the trial.
        signature: of the trial; a checkpoint of another one is refused.
        folder: checkpoints and ``epochs.jsonl`` are written here.
        report: called after every epoch.
        acceleration: precision, and whether to compile; None: what the device does without a probe.

    Raises:
        DivergedError: the loss, or an output on validation images, is not finite.
        ConfigError: settings that do not fit the data.
        CheckpointError: the checkpoint belongs to another trial.
    """
    choice = acceleration or default_choice(resolve_precision(config.training, model.mean.device), model.mean.device)
    trainer = _Trainer(model, data, config, choice, signature=signature)
    state = load_checkpoint(folder, signature)
    if state is not None and has_best(folder, state):
        trainer.restore(state)
    write_missing_epochs(folder, trainer.state)
    while not trainer.finished:
        before, weights = trainer.state.best_epoch, unpack("model", trainer.state.tensors)
        record = trainer.run_epoch()
        state = trainer.state
        if 0 < before == state.epoch - 1 and before == state.best_epoch:  # so far only in the checkpoint before
            save_best(folder, weights, before)
        # The checkpoint holds the epoch's record, so a line is only ever written for work that will not be redone.
        save_checkpoint(folder, state)
        # The checkpoint before this one may be needed again, and with it what was best then.
        forget_best(folder, keep=(before, state.best_epoch))
        folder.append_line("epochs.jsonl", _dump(record))
        report(record)
    best = trainer.state.best_epoch
    weights = unpack("model", trainer.state.tensors) if best == trainer.state.epoch else load_best(folder, best)
    restore_module(model, weights, origin=f"the weights of epoch {best} in {folder.uri}")
    return Outcome(trainer.state.epoch, trainer.state.best_epoch)


def _dump(record: dict[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=False)


def write_missing_epochs(folder: Folder, state: TrainingState) -> None:
    """Bring ``epochs.jsonl`` to what the checkpoint knows: a kill can fall between the two writes, or tear a line."""
    expected = "".join(_dump(record) + "\n" for record in state.history).encode()
    if (folder.read("epochs.jsonl") if folder.exists("epochs.jsonl") else b"") != expected:
        folder.write("epochs.jsonl", expected)


class _Trainer:
    """The loop and its state. One instance per process and trial."""

    def __init__(
        self, model: Classifier, data: Dataset, config: TrialConfig, choice: Choice, *, signature: str
    ) -> None:
        self.model, self.config = model, config
        self.device = model.mean.device
        self.precision = choice.dtype
        self.forward = choice.build_forward(model, config.training.batch_size)
        self.num_classes, self.ordinal = data.num_classes, config.data.ordinal
        self.val, self.val_feed = data.splits["val"], ImageFeed(data.splits["val"], self.device)
        self.batches = TrainingImages(data.splits["train"], config, self.device)
        self.augment: Augmenter = build_augmentation(config.augmentation, data.splits["train"].images.shape[-1])
        self.loss = self._build_loss(data.splits["train"])
        self.parameters, self.optimiser = build_optimiser(model, config)
        self.base_rates = [group["lr"] for group in self.optimiser.param_groups]
        self.num_steps = self.batches.num_batches * config.training.epochs
        self.state = TrainingState(signature)

    def _build_loss(self, train: ImageSet) -> Loss:
        weights = None
        if self.config.training.class_weights == "balanced":
            counts = np.bincount(train.labels[self.batches.rows], minlength=self.num_classes)
            weights = torch.tensor(
                counts.sum() / (self.num_classes * np.maximum(counts, 1)), dtype=torch.float32, device=self.device
            )
        return build_loss(
            self.config.regulariser,
            class_weights=weights,
            num_classes=self.num_classes,
            num_sites=self.batches.num_sites,
            device=self.device,
        )

    @property
    def finished(self) -> bool:
        training, state = self.config.training, self.state
        stalled = training.patience is not None and state.epoch - state.best_epoch >= training.patience
        return state.epoch >= training.epochs or stalled

    def restore(self, state: TrainingState) -> None:
        restore_module(self.model, unpack("model", state.tensors), origin="the checkpoint")
        unpack_optimiser(self.optimiser, state.tensors, state.optimiser_scalars)
        restore_random_state(state.tensors, state.random_state)
        self.state = state

    def run_epoch(self) -> dict[str, Any]:
        """Train one epoch, validate, and put everything into ``self.state``."""
        started = time.perf_counter()
        epoch = self.state.epoch + 1
        sums = self._train_epoch(epoch)
        seconds = time.perf_counter() - started
        metrics = {f"train/{name}": value for name, value in sums.items()} | self._validate()
        metrics["learning_rate"] = self.base_rates[-1] * self._rate_factor(self.state.step - 1)
        metrics["seconds"] = time.perf_counter() - started
        metrics["images_per_second"] = len(self.batches.rows) / seconds
        record = {"epoch": epoch, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
        self._remember(epoch, metrics, record)
        return record

    def _set_training_mode(self) -> None:
        """A frozen backbone (linear probe) stays as it was pretrained: batch statistics and dropout included."""
        self.model.train()
        if self.config.training.backbone_learning_rate_factor == 0.0:
            self.model.eval()
            self.model.head.train()

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        self._set_training_mode()
        totals: dict[str, Tensor] = {}
        count = 0
        for index, (images, labels, sites, seeds) in enumerate(self.batches.epoch(epoch)):
            self._set_rate(self.state.step)
            terms, correct = self._step(images, labels, sites, seeds, (epoch, index))
            self.state.step += 1
            count += len(labels)
            # Summed on the device: no synchronisation per step.
            for name, value in {**terms, "accuracy": correct}.items():
                totals[name] = totals.get(name, torch.zeros((), device=self.device)) + value.detach() * len(labels)
        means = {name: float(total) / count for name, total in totals.items()}
        if not math.isfinite(means["loss"]):
            raise DivergedError(
                f"epoch {epoch}: the mean training loss is {means['loss']}; lower training.learning_rate "
                f"(now {self.config.training.learning_rate}) or set training.gradient_clip_norm"
            )
        return means

    def _step(
        self, images: Tensor, labels: Tensor, sites: Tensor, seeds: Tensor, position: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One optimiser step; returns the size of each term of the loss, and the accuracy on the batch."""
        config = self.config
        inputs = self.model.normalise(self.augment(images, seeds))
        if config.augmentation.erasing > 0.0:
            inputs = random_erasing(inputs, seeds, config.augmentation.erasing)
        partner, share = None, 1.0
        if isinstance(config.regulariser, Mixup):
            generator = np.random.default_rng(derive_seed(config.seed, config.replicate, "mixup", *position))
            inputs, partner, share = mixup(inputs, alpha=config.regulariser.alpha, generator=generator)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits = self.forward(inputs)
        terms = self.loss(logits, labels, sites, self.state.step)
        if partner is not None:
            mixed = self.loss(logits, labels[partner], sites[partner], self.state.step)
            terms = {name: share * value + (1.0 - share) * mixed[name] for name, value in terms.items()}
        loss = torch.stack(list(terms.values())).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.training.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, config.training.gradient_clip_norm)
        self.optimiser.step()
        return {"loss": loss, **terms}, (logits.argmax(1) == labels).float().mean()

    def _validate(self) -> dict[str, float]:
        logits, _ = predict_each(self.model, self.val_feed, [keep], batch_size=256, precision=self.precision)
        metrics = compute_metrics(logits[0], self.val.labels, ordinal=self.ordinal).values
        metrics["loss"] = metrics.pop("nll")
        return {f"val/{name}": value for name, value in metrics.items()}

    def _remember(self, epoch: int, metrics: dict[str, float], record: dict[str, Any]) -> None:
        state, select_by = self.state, self.config.training.select_by
        value = metrics.get(f"val/{select_by}")
        if value is None:
            raise ConfigError(
                f"training.select_by: {select_by} is not defined on the {len(self.val)} validation images "
                "(a class is absent); choose loss or accuracy, or enlarge the validation split"
            )
        if state.best_value is None or (value < state.best_value if select_by == "loss" else value > state.best_value):
            state.best_value, state.best_epoch = value, epoch
        optimiser, state.optimiser_scalars = pack_optimiser(self.optimiser)
        random, state.random_state = capture_random_state()
        state.tensors = {**pack_module("model", self.model), **optimiser, **random}
        state.epoch = epoch
        state.history = [*state.history, record]

    def _rate_factor(self, step: int) -> float:
        return learning_rate_factor(
            step, self.num_steps, int(self.config.training.warmup_epochs * self.batches.num_batches),
            self.config.training.schedule,
        )  # fmt: skip

    def _set_rate(self, step: int) -> None:
        factor = self._rate_factor(step)
        for group, rate in zip(self.optimiser.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, schedule: str) -> float:
    """Return the share of the learning rate at ``step`` (from 0): linear warm-up, then cosine to 0 or constant.

    A pure function of the step, so there is no scheduler state to be saved. Source: Loshchilov & Hutter 2017, eq. 5.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def build_optimiser(model: Classifier, config: TrialConfig) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Return the trained parameters and their optimiser.

    Weight decay only where the regulariser is weight decay, and not on biases and normalisation (ndim < 2). A
    backbone factor of 0 freezes the backbone: a linear probe.
    """
    training = config.training
    decay = config.regulariser.weight if isinstance(config.regulariser, WeightDecay) else 0.0
    head = {id(parameter) for parameter in model.head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        is_head = id(parameter) in head
        if not is_head and training.backbone_learning_rate_factor == 0.0:
            parameter.requires_grad_(False)
            continue
        groups.setdefault((is_head, parameter.ndim > 1), []).append(parameter)
    described: list[dict[str, Any]] = []
    for (is_head, decays), parameters in sorted(groups.items(), key=lambda item: item[0]):
        settings = {
            "lr": training.learning_rate * (1.0 if is_head else training.backbone_learning_rate_factor),
            "weight_decay": decay if decays else 0.0,
        }
        if described and settings.items() <= described[-1].items():  # one group is updated faster than two
            described[-1]["params"] += parameters
        else:
            described.append({"params": list(parameters), **settings})
    trained = [parameter for parameters in groups.values() for parameter in parameters]
    if training.optimiser == "adamw":
        return trained, torch.optim.AdamW(described)
    return trained, torch.optim.SGD(described, momentum=training.momentum)


class TrainingImages:
    """The training split in seeded order, as batches on the device. Order and seeds never depend on the arm."""

    def __init__(self, train: ImageSet, config: TrialConfig, device: torch.device) -> None:
        self._feed, self._device = ImageFeed(train, device), device
        self._seed = (config.seed, config.replicate)
        self._batch_size = config.training.batch_size
        self.rows = choose_label_fraction(train, config.training.label_fraction, derive_seed(config.seed, "labels"))
        if len(self.rows) < 2:
            raise ConfigError(f"training.label_fraction leaves {len(self.rows)} training images; at least 2 are needed")
        names, sites = np.unique(train.sites, return_inverse=True)
        self.num_sites = len(names)
        self._sites = torch.from_numpy(sites.astype(np.int64)).to(device)
        self._labels = torch.from_numpy(np.array(train.labels)).to(device)
        seeds = mix(torch.from_numpy(hash_ids(train.ids)), "augmentation", config.seed, config.replicate)
        self._sample_seeds = seeds.to(device)

    @property
    def num_batches(self) -> int:
        """Optimiser steps per epoch."""
        return len(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        sizes = split_sizes(len(self.rows), self._batch_size)
        if len(sizes) > 1 and sizes[-1] == 1:  # batch normalisation cannot take a single image
            sizes[-2:] = [sizes[-2] + 1]
        return sizes

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield uint8 images, labels, site indices and per-sample seeds of each batch."""
        generator = np.random.default_rng(derive_seed(*self._seed, "order", epoch))
        order = self.rows[generator.permutation(len(self.rows))]
        index = torch.from_numpy(order).to(self._device)
        labels, sites = self._labels[index], self._sites[index]
        seeds = mix(self._sample_seeds[index], "epoch", epoch)
        start = 0
        for images in self._feed.batches(order, self._sizes):
            part = slice(start, start := start + len(images))
            yield images, labels[part], sites[part], seeds[part]


def choose_label_fraction(train: ImageSet, fraction: float, seed: int) -> Int64[np.ndarray, " m"]:
    """Return the rows of a subset of whole groups, drawn per class; a smaller fraction is part of a larger one."""
    if fraction == 1.0:
        return np.arange(len(train))
    groups, first, inverse = np.unique(train.groups, return_index=True, return_inverse=True)
    keys = hash_ids(f"{seed}/{group}" for group in groups)
    chosen = np.zeros(len(groups), dtype=bool)
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels[first] == label)
        keep = max(1, round(fraction * len(members)))
        chosen[members[np.argsort(keys[members], kind="stable")[:keep]]] = True
    return np.flatnonzero(chosen[inverse])
