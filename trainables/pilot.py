"""Cost estimate of a trial before it starts, from a few timed steps."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from trainables.config import Execution, ScratchPretraining, TrialConfig
from trainables.data.dataset import ImageSet
from trainables.data.load import load_dataset
from trainables.evaluation.predictions import predict
from trainables.models.networks import Classifier
from trainables.shifts.bank import build_shifts
from trainables.training.acceleration import default_choice
from trainables.training.loop import resolve_precision
from trainables.training.step import TrainingStep
from trainables.trial import build_network, prepare_process

#: Numbers of untimed steps (allocations, first kernels) and of timed steps.
_WARMUP_STEPS, _TIMED_STEPS = 1, 3


@dataclass(frozen=True)
class PilotTimings:
    """Measured seconds, extrapolated to one epoch with its validation and to the whole evaluation."""

    epoch_seconds: float
    evaluation_seconds: float
    training_epochs: int

    @property
    def trial_seconds(self) -> float:
        """Seconds of training to the last epoch and of the evaluation, without start-up and checkpoints."""
        return self.epoch_seconds * self.training_epochs + self.evaluation_seconds


def time_trial(config: TrialConfig, execution: Execution) -> PilotTimings:
    """Time a few optimiser steps and one unshifted pass over validation and test set on this machine.

    The shifts themselves are not timed. Weights are random, which does not change the time, and nothing is written.
    """
    device = prepare_process(execution)
    data = load_dataset(config.data, cache_dir=execution.cache_dir.expanduser())
    model = build_network(config.model, ScratchPretraining(), data, config.regulariser).to(device)
    precision = resolve_precision(config.training, device)
    training = TrainingStep(model, data, config, default_choice(precision, device))
    model.train()
    started, steps = time.perf_counter(), 0
    for step, batch in enumerate(training.batches.epoch(1)):
        if step == _WARMUP_STEPS:
            _synchronise(device)
            started = time.perf_counter()
        training.run(batch, step, epoch=1, index=step)
        steps = step + 1
        if steps == _WARMUP_STEPS + _TIMED_STEPS:
            break
    _synchronise(device)
    step_seconds = (time.perf_counter() - started) / max(1, steps - _WARMUP_STEPS)
    validation = _time_prediction(model, data.splits["val"], precision, execution)
    test = data.splits["test"]
    one_pass = _time_prediction(model, test, precision, execution)
    modality = data.modality if config.evaluation.modality == "auto" else config.evaluation.modality
    passes = 1 + len(build_shifts(config.evaluation, modality))
    external = one_pass / len(test) * sum(len(images) for images in data.external.values())
    return PilotTimings(
        epoch_seconds=step_seconds * training.batches.num_batches + validation,
        evaluation_seconds=one_pass * passes + validation + external,
        training_epochs=config.training.epochs,
    )


def _time_prediction(model: Classifier, images: ImageSet, precision: torch.dtype, execution: Execution) -> float:
    started = time.perf_counter()
    predict(model, images, batch_size=execution.evaluation_batch_size, precision=precision)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
