"""Training of one classifier: seeded and checkpointed per epoch, selected on in-distribution validation."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trainables.config import TrainingConfig, TrialConfig
from trainables.data.dataset import Dataset
from trainables.errors import ConfigError, DivergedError
from trainables.models.networks import Classifier
from trainables.process_usage import UsageSampler
from trainables.seeding import derive_seed
from trainables.storage.checkpoint import (
    TrainingState,
    capture_random_state,
    has_best,
    load_best,
    pack_module,
    pack_optimiser,
    remove_best,
    restore_module,
    restore_random_state,
    save_best,
    save_checkpoint,
    unpack,
    unpack_optimiser,
)
from trainables.storage.completeness import EPOCHS
from trainables.storage.folder import Folder
from trainables.training.acceleration import Choice, default_choice
from trainables.training.joint.common_checkpoint import load_common_checkpoint
from trainables.training.joint.processes import Processes, find_processes
from trainables.training.optimisation import learning_rate_factor
from trainables.training.selection import (
    count_epochs_without_improvement,
    reads_select_by,
    select_epoch,
)
from trainables.training.step import ClassificationLearner

#: Callback after every epoch, with its record: {"epoch", "timestamp_ms", "metrics"}.
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """Number of trained epochs and the selected epoch; the trained model holds the selected weights."""

    epochs: int
    best_epoch: int
    #: The selected epoch of ConfidNet, whose epochs count on from the classifier's; None without it.
    confidence_epoch: int | None = None


def resolve_precision(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of the forward pass: bfloat16 on a GPU unless configured otherwise.

    Raises:
        ConfigError: if bfloat16 is set on a CPU: some gradients of convolutions are left uninitialised (torch 2.15).
    """
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if config.precision == "bfloat16" and device.type == "cpu":
        raise ConfigError(
            "training.precision: found bfloat16 on a CPU, where torch computes wrong gradients for small feature maps; "
            "use auto (bfloat16 on GPUs only) or float32"
        )
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def train_model(  # noqa: PLR0913 - the last two have defaults
    model: Classifier,
    data: Dataset,
    config: TrialConfig,
    *,
    signature: str,
    folder: Folder,
    report: Report,
    acceleration: Choice | None = None,
    validate_shifted: Callable[[], Mapping[str, float]] | None = None,
) -> Outcome:
    """Train ``model`` in place, from the last checkpoint in ``folder`` if there is one; leave the best weights in it.

    An interrupted and continued run gives the same weights as an uninterrupted one, bit for bit on a CPU.

    Args:
        model: model on the device of the training.
        data: data set; test and external sets are never read.
        config: config of the trial.
        signature: signature of the trial; a checkpoint of another trial is refused.
        folder: folder of the trial, for checkpoints and ``epochs.jsonl``.
        report: callback after every epoch.
        acceleration: memory format, precision and compiling; None: the device's default.
        validate_shifted: the model's present means over shifted validation images (``open_shifted_validation``), which
            ``training.select_by: robustness/…`` needs; it is called after every epoch.

    Raises:
        DivergedError: if the loss, or an output on validation images, is not finite.
        ConfigError: if settings do not fit the data or the device.
        CheckpointError: if the checkpoint belongs to another trial.
    """
    device = model.mean.device
    choice = acceleration or default_choice(config.model, model, resolve_precision(config.training, device), device)
    learner = ClassificationLearner(model, data, config, choice, validate_shifted=validate_shifted)
    return train_learner(learner, config, signature=signature, folder=folder, report=report)


def train_learner(learner: Learner, config: TrialConfig, *, signature: str, folder: Folder, report: Report) -> Outcome:
    """Train what a task trains, from the last checkpoint in ``folder`` if there is one; leave the best weights in it.

    With several processes (``find_processes``) each of them calls this with the same arguments and a ``report`` that
    may raise the same in all. The first one alone validates and writes.

    Arguments and errors are those of ``train_model``; also:

    Raises:
        PeerLostError: another process is gone.
    """
    processes = find_processes()
    trainer = _Trainer(learner, config, signature=signature, processes=processes)
    state = load_common_checkpoint(folder, signature, processes, is_usable=has_best)
    if state is not None:
        trainer.restore(state)
    if processes.is_first:
        write_missing_epochs(folder, trainer.state.history)
    while not trainer.finished:
        before, weights = trainer.state.best_epoch, unpack("model", trainer.state.tensors)
        record = trainer.run_epoch()
        if processes.is_first:
            _write_epoch(folder, trainer.state, before, weights)
        report(record)
    processes.wait()  # until the first one has written the selected weights
    best = trainer.state.best_epoch
    weights = unpack("model", trainer.state.tensors) if best == trainer.state.epoch else load_best(folder, best)
    origin = f"the weights of epoch {best} in {folder.uri}"
    restore_module(learner.model, weights, origin=origin, without=learner.frozen)
    return Outcome(trainer.state.epoch, trainer.state.best_epoch)


def _write_epoch(folder: Folder, state: TrainingState, before: int, weights: dict[str, Tensor]) -> None:
    """Write checkpoint and record of an epoch.

    Args:
        folder: folder of the trial.
        state: state after the epoch.
        before: epoch that was selected before it.
        weights: weights before it.
    """
    if 0 < before == state.epoch - 1 and before == state.best_epoch:  # they are only in the previous checkpoint
        save_best(folder, weights, before)
    # The checkpoint holds the epoch's record, so a line is written only for an epoch that will not be repeated.
    save_checkpoint(folder, state)
    # The previous checkpoint may be needed again, together with its best weights.
    remove_best(folder, keep=(before, state.best_epoch))
    folder.append_line(EPOCHS, dump_record(state.history[-1]))


def dump_record(record: dict[str, Any]) -> str:
    """Return the line of ``epochs.jsonl`` for an epoch."""
    return json.dumps(record, sort_keys=True, allow_nan=False)


def write_missing_epochs(folder: Folder, history: Sequence[dict[str, Any]]) -> None:
    """Rewrite ``epochs.jsonl`` if it differs from ``history``: a kill can separate the writes or tear a line."""
    expected = "".join(dump_record(record) + "\n" for record in history).encode()
    if (folder.read(EPOCHS) if folder.exists(EPOCHS) else b"") != expected:
        folder.write(EPOCHS, expected)


@runtime_checkable
class Learner(Protocol):
    """Training of a task: batches, a step on one of them, and the measures of an epoch."""

    @property
    def model(self) -> Classifier:
        """Model, trained in place."""

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """Its optimiser; the last group's learning rate is reported."""

    @property
    def frozen(self) -> frozenset[str]:
        """Weights and buffers that are no part of checkpoints: every call of the trial makes them anew."""

    @property
    def num_batches(self) -> int:
        """Optimiser steps per epoch."""

    @property
    def num_images(self) -> int:
        """Images, or patches of images, per epoch."""

    @property
    def num_validated(self) -> int:
        """Validation images."""

    @property
    def state(self) -> Mapping[str, nn.Module]:
        """Further modules of a checkpoint by name, such as the weights of group DRO."""

    def prepare(self) -> None:
        """Compute what all epochs need; called before the first epoch of this process, after a checkpoint is read."""

    def batches(self, epoch: int) -> Iterator[AnyBatch]:
        """Yield the batches of an epoch, from 1; the model is in training mode."""

    def run(self, batch: Any, step: int, *, epoch: int, index: int) -> dict[str, Tensor]:
        """Run one optimiser step; return the loss (``loss``), its terms and further means over the batch."""

    def summarise(self) -> dict[str, float]:
        """Return further numbers of an epoch of training."""

    def validate(self) -> dict[str, float]:
        """Return the metrics on in-distribution validation, ``loss`` among them."""


@runtime_checkable
class AnyBatch(Protocol):
    """Batch of any task; its length is that of ``seeds``."""

    @property
    def seeds(self) -> Tensor:
        """Seed of each image."""


class _Trainer:
    """Training epochs and their state. One instance per process and trial."""

    def __init__(self, learner: Learner, config: TrialConfig, *, signature: str, processes: Processes) -> None:
        self.learner, self.config, self.processes = learner, config, processes
        self.device = learner.model.mean.device
        self.usage = UsageSampler(self.device)
        self.base_rates = [group["lr"] for group in learner.optimiser.param_groups]
        self.num_steps = learner.num_batches * config.training.epochs
        self.state = TrainingState(signature)

    @property
    def finished(self) -> bool:
        training, state = self.config.training, self.state
        if state.epoch >= training.epochs or training.patience is None:
            return state.epoch >= training.epochs
        return count_epochs_without_improvement(state.history, training) >= training.patience

    def restore(self, state: TrainingState) -> None:
        restore_module(
            self.learner.model, unpack("model", state.tensors), origin="the checkpoint", without=self.learner.frozen
        )
        unpack_optimiser(self.learner.optimiser, state.tensors, state.optimiser_scalars)
        for name, module in self.learner.state.items():
            restore_module(module, unpack(name, state.tensors), origin="the checkpoint")
        restore_random_state(state.tensors, state.random_state)
        self.state = state

    def run_epoch(self) -> dict[str, Any]:
        """Train one epoch, validate, update ``self.state`` and return the epoch's record."""
        started = time.perf_counter()
        epoch = self.state.epoch + 1
        if not self.processes.is_first:  # dropout draws other numbers than in the first one, whose are in checkpoints
            position = (self.config.seed, self.config.replicate)
            torch.manual_seed(derive_seed(*position, "process", self.processes.rank, epoch))
        self.learner.prepare()
        began = time.perf_counter()
        sums = self._train_epoch(epoch)
        seconds = time.perf_counter() - began
        metrics = {f"train/{name}": value for name, value in sums.items()}
        if self.processes.is_first:
            metrics |= self._validate()
        metrics["learning_rate"] = self.base_rates[-1] * self._rate_factor(self.state.step - 1)
        metrics["seconds"] = time.perf_counter() - started
        metrics["images_per_second"] = self.learner.num_images / seconds
        metrics |= self.usage.sample()
        record = {"epoch": epoch, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
        if self.processes.count > 1:
            record["processes"] = self.processes.count
        record = self.processes.share(record)
        self._update_state(epoch, record)
        return record

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        totals: dict[str, Tensor] = {}
        count = 0
        for index, batch in enumerate(self.learner.batches(epoch)):
            self._set_rate(self.state.step)
            terms = self.learner.run(batch, self.state.step, epoch=epoch, index=index)
            self.state.step += 1
            count += len(batch.seeds)
            # Summed on the device: no synchronisation per step.
            for name, value in terms.items():
                total = totals.get(name, torch.zeros((), device=self.device))
                totals[name] = total + value * len(batch.seeds)
        means = {name: float(total) / count for name, total in totals.items()}
        if not math.isfinite(means["loss"]):
            raise DivergedError(
                f"epoch {epoch}: the mean training loss is {means['loss']}; lower training.learning_rate "
                f"(now {self.config.training.learning_rate}) or set training.gradient_clip_norm"
            )
        return means | self.learner.summarise()

    def _validate(self) -> dict[str, float]:
        return {f"val/{name}": value for name, value in self.learner.validate().items()}

    def _update_state(self, epoch: int, record: dict[str, Any]) -> None:
        metrics, state, training = record["metrics"], self.state, self.config.training
        select_by = training.select_by
        if reads_select_by(training) and metrics.get(f"val/{select_by}") is None:
            raise ConfigError(
                f"training.select_by: {select_by} is not defined on the {self.learner.num_validated} validation "
                "images (a class is absent); choose loss, or enlarge the validation split"
            )
        optimiser, state.optimiser_scalars = pack_optimiser(self.learner.optimiser)
        random, state.random_state = capture_random_state()
        state.tensors = {**pack_module("model", self.learner.model, without=self.learner.frozen), **optimiser, **random}
        for name, module in self.learner.state.items():
            state.tensors |= pack_module(name, module)
        state.epoch = epoch
        state.history = [*state.history, record]
        state.best_epoch = select_epoch(state.history, training)

    def _rate_factor(self, step: int) -> float:
        return learning_rate_factor(
            step, self.num_steps, int(self.config.training.warmup_epochs * self.learner.num_batches),
            self.config.training.schedule,
        )  # fmt: skip

    def _set_rate(self, step: int) -> None:
        factor = self._rate_factor(step)
        for group, rate in zip(self.learner.optimiser.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
