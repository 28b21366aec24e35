"""Training of one classifier: seeded and checkpointed per epoch, selected on in-distribution validation."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from trainables.config import Execution, TrainingConfig, TrialConfig
from trainables.data.dataset import Dataset
from trainables.data.feed import ImageFeed
from trainables.errors import ConfigError, DivergedError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.predictions import check_finite, keep, predict_each
from trainables.evaluation.robustness import open_shifted_validation
from trainables.models.networks import Classifier
from trainables.storage.checkpoint import (
    TrainingState,
    capture_random_state,
    has_best,
    load_best,
    load_checkpoint,
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
from trainables.training.optimisation import learning_rate_factor
from trainables.training.selection import (
    count_epochs_without_improvement,
    reads_select_by,
    reads_shifted_validation,
    select_epoch,
)
from trainables.training.step import TrainingStep
from trainables.training.transfer.features import compute_features, find_cache_obstacle
from trainables.training.transfer.trained_part import list_frozen, set_training_mode

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
    precision = resolve_precision(config.training, device)
    choice = acceleration or default_choice(config.model, model, precision, device)
    trainer = _Trainer(model, data, config, choice, signature=signature, validate_shifted=validate_shifted)
    state = load_checkpoint(folder, signature)
    if state is not None and has_best(folder, state):
        trainer.restore(state)
    write_missing_epochs(folder, trainer.state.history)
    while not trainer.finished:
        before, weights = trainer.state.best_epoch, unpack("model", trainer.state.tensors)
        record = trainer.run_epoch()
        state = trainer.state
        if 0 < before == state.epoch - 1 and before == state.best_epoch:  # they are only in the previous checkpoint
            save_best(folder, weights, before)
        # The checkpoint holds the epoch's record, so a line is written only for an epoch that will not be repeated.
        save_checkpoint(folder, state)
        # The previous checkpoint may be needed again, together with its best weights.
        remove_best(folder, keep=(before, state.best_epoch))
        folder.append_line(EPOCHS, dump_record(record))
        report(record)
    best = trainer.state.best_epoch
    weights = unpack("model", trainer.state.tensors) if best == trainer.state.epoch else load_best(folder, best)
    origin = f"the weights of epoch {best} in {folder.uri}"
    restore_module(model, weights, origin=origin, without=trainer.frozen)
    return Outcome(trainer.state.epoch, trainer.state.best_epoch)


def open_validation(
    model: Classifier, data: Dataset, config: TrialConfig, choice: Choice, execution: Execution
) -> AbstractContextManager[Callable[[], dict[str, float]] | None]:
    """Return the context of ``train_model``'s ``validate_shifted``; of None if ``select_by`` does not need it."""
    if not reads_shifted_validation(config.training):
        return nullcontext()
    return open_shifted_validation(model, data, config.evaluation, execution=execution, precision=choice.dtype)


def dump_record(record: dict[str, Any]) -> str:
    """Return the line of ``epochs.jsonl`` for an epoch."""
    return json.dumps(record, sort_keys=True, allow_nan=False)


def write_missing_epochs(folder: Folder, history: Sequence[dict[str, Any]]) -> None:
    """Rewrite ``epochs.jsonl`` if it differs from ``history``: a kill can separate the writes or tear a line."""
    expected = "".join(dump_record(record) + "\n" for record in history).encode()
    if (folder.read(EPOCHS) if folder.exists(EPOCHS) else b"") != expected:
        folder.write(EPOCHS, expected)


class _Trainer:
    """Training epochs and their state. One instance per process and trial."""

    def __init__(
        self,
        model: Classifier,
        data: Dataset,
        config: TrialConfig,
        choice: Choice,
        *,
        signature: str,
        validate_shifted: Callable[[], Mapping[str, float]] | None,
    ) -> None:
        self.model, self.config, self.validate_shifted = model, config, validate_shifted
        self.device = model.mean.device
        self.precision = choice.dtype
        self.ordinal = config.data.ordinal
        self.val, self.val_feed = data.splits["val"], ImageFeed(data.splits["val"], self.device)
        self.step = TrainingStep(model, data, config, choice)
        self.batches, self.optimiser = self.step.batches, self.step.optimiser
        self.base_rates = [group["lr"] for group in self.optimiser.param_groups]
        self.num_steps = self.batches.num_batches * config.training.epochs
        self.state = TrainingState(signature)
        #: Not in checkpoints: these weights are the initial ones, which every call of the trial makes anew.
        self.frozen = list_frozen(model, config)
        self.caches_features = find_cache_obstacle(model, config, data) is None
        self.val_features: Tensor | None = None

    @property
    def finished(self) -> bool:
        training, state = self.config.training, self.state
        if state.epoch >= training.epochs or training.patience is None:
            return state.epoch >= training.epochs
        return count_epochs_without_improvement(state.history, training) >= training.patience

    def restore(self, state: TrainingState) -> None:
        restore_module(self.model, unpack("model", state.tensors), origin="the checkpoint", without=self.frozen)
        unpack_optimiser(self.optimiser, state.tensors, state.optimiser_scalars)
        for name, module in self.step.loss.state.items():
            restore_module(module, unpack(name, state.tensors), origin="the checkpoint")
        restore_random_state(state.tensors, state.random_state)
        self.state = state

    def run_epoch(self) -> dict[str, Any]:
        """Train one epoch, validate, update ``self.state`` and return the epoch's record."""
        started = time.perf_counter()
        epoch = self.state.epoch + 1
        if self.caches_features and self.val_features is None:
            self._cache_features()
        began = time.perf_counter()
        sums = self._train_epoch(epoch)
        seconds = time.perf_counter() - began
        metrics = {f"train/{name}": value for name, value in sums.items()} | self._validate()
        metrics["learning_rate"] = self.base_rates[-1] * self._rate_factor(self.state.step - 1)
        metrics["seconds"] = time.perf_counter() - started
        metrics["images_per_second"] = len(self.batches.rows) / seconds
        record = {"epoch": epoch, "timestamp_ms": int(time.time() * 1000), "metrics": metrics}
        self._update_state(epoch, metrics, record)
        return record

    def _cache_features(self) -> None:
        """Compute the features of a linear probe; the network does not change from here on, and neither do they."""
        train_feed, rows = self.batches.feed, np.arange(len(self.val))
        assert isinstance(train_feed, ImageFeed)
        self.step.take_features(compute_features(self.model, train_feed, self.batches.rows, precision=self.precision))
        self.val_features = compute_features(self.model, self.val_feed, rows, precision=self.precision).features

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        set_training_mode(self.model, self.config)
        totals: dict[str, Tensor] = {}
        count = 0
        for index, batch in enumerate(self.batches.epoch(epoch)):
            self._set_rate(self.state.step)
            terms = self.step.run(batch, self.state.step, epoch=epoch, index=index)
            self.state.step += 1
            count += len(batch.labels)
            # Summed on the device: no synchronisation per step.
            for name, value in terms.items():
                total = totals.get(name, torch.zeros((), device=self.device))
                totals[name] = total + value * len(batch.labels)
        means = {name: float(total) / count for name, total in totals.items()}
        if not math.isfinite(means["loss"]):
            raise DivergedError(
                f"epoch {epoch}: the mean training loss is {means['loss']}; lower training.learning_rate "
                f"(now {self.config.training.learning_rate}) or set training.gradient_clip_norm"
            )
        return means | self.step.summarise()

    def _validate(self) -> dict[str, float]:
        metrics = compute_metrics(self._predict_validation(), self.val.labels, ordinal=self.ordinal).values
        metrics["loss"] = metrics.pop("nll")
        metrics |= {} if self.validate_shifted is None else self.validate_shifted()
        return {f"val/{name}": value for name, value in metrics.items()}

    def _predict_validation(self) -> Float32[np.ndarray, "n classes"]:
        if self.val_features is None:
            feed = self.val_feed
            return predict_each(self.model, feed, [keep], batch_size=256, precision=self.precision).logits[0]
        self.model.eval()
        with torch.no_grad(), torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits: Tensor = self.model.head(self.val_features.to(self.device))
        found = logits.cpu().numpy()
        check_finite(found[None], self.val)
        return found

    def _update_state(self, epoch: int, metrics: dict[str, float], record: dict[str, Any]) -> None:
        state, training = self.state, self.config.training
        select_by = training.select_by
        if reads_select_by(training) and metrics.get(f"val/{select_by}") is None:
            raise ConfigError(
                f"training.select_by: {select_by} is not defined on the {len(self.val)} validation images "
                "(a class is absent); choose loss or accuracy, or enlarge the validation split"
            )
        optimiser, state.optimiser_scalars = pack_optimiser(self.optimiser)
        random, state.random_state = capture_random_state()
        state.tensors = {**pack_module("model", self.model, without=self.frozen), **optimiser, **random}
        for name, module in self.step.loss.state.items():
            state.tensors |= pack_module(name, module)
        state.epoch = epoch
        state.history = [*state.history, record]
        state.best_epoch = select_epoch(state.history, training)

    def _rate_factor(self, step: int) -> float:
        return learning_rate_factor(
            step, self.num_steps, int(self.config.training.warmup_epochs * self.batches.num_batches),
            self.config.training.schedule,
        )  # fmt: skip

    def _set_rate(self, step: int) -> None:
        factor = self._rate_factor(step)
        for group, rate in zip(self.optimiser.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
