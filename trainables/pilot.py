"""A few timed steps of a trial: what it will cost, before it is started."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from trainables.augmentation.pipeline import build_augmentation
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import ImageSet
from trainables.data.sources import load_dataset
from trainables.evaluation.predictions import predict
from trainables.losses import build_loss
from trainables.models import Classifier, build_model
from trainables.shifts.bank import build_shifts
from trainables.training import TrainingImages, build_optimiser, resolve_precision
from trainables.trial import prepare_process

#: Steps before the clock starts (allocations, first kernels) and steps on the clock.
_WARMUP_STEPS, _TIMED_STEPS = 1, 3


@dataclass(frozen=True)
class PilotTimings:
    """Measured seconds, extrapolated to whole epochs and to the whole evaluation."""

    epoch_seconds: float
    evaluation_seconds: float
    training_epochs: int

    @property
    def trial_seconds(self) -> float:
        """Training to the last epoch, then evaluation; without start-up and checkpoints."""
        return self.epoch_seconds * self.training_epochs + self.evaluation_seconds


def time_trial(config: TrialConfig, execution: Execution) -> PilotTimings:
    """Return what a few optimiser steps and one shifted batch of this trial take on this machine.

    Weights are random (they do not change the time) and nothing is written.
    """
    device = prepare_process(execution)
    data = load_dataset(config.data, cache_dir=execution.cache_dir.expanduser())
    train, test = data.splits["train"], data.splits["test"]
    _, channels, _, size = train.images.shape
    model = build_model(config.model, num_classes=data.num_classes, channels=channels, image_size=size).to(device)
    images = TrainingImages(train, config, device)
    augment = build_augmentation(config.augmentation, size)
    loss = build_loss(
        config.regulariser,
        class_weights=None,
        num_classes=data.num_classes,
        num_sites=images.num_sites,
        device=device,
    )
    _, optimiser = build_optimiser(model, config)
    precision = resolve_precision(config.training, device)
    model.train()
    started, steps = time.perf_counter(), 0
    for step, (batch, labels, sites, seeds) in enumerate(images.epoch(1)):
        if step == _WARMUP_STEPS:
            _synchronise(device)
            started = time.perf_counter()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = model(model.normalise(augment(batch, seeds)))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(loss(logits, labels, sites, 0).values())).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        steps = step + 1
        if steps == _WARMUP_STEPS + _TIMED_STEPS:
            break
    _synchronise(device)
    step_seconds = (time.perf_counter() - started) / max(1, steps - _WARMUP_STEPS)
    validation = _time_prediction(model, data.splits["val"], precision, execution)
    one_pass = _time_prediction(model, test, precision, execution)
    modality = data.modality if config.evaluation.modality == "auto" else config.evaluation.modality
    passes = 1 + len(build_shifts(config.evaluation, modality))
    external = one_pass / len(test) * sum(len(images) for images in data.external.values())
    return PilotTimings(
        epoch_seconds=step_seconds * images.num_batches + validation,
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
