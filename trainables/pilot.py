"""Cost estimate of a trial before it starts, from a few timed steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from trainables.confidence_config import ConfidNet
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.foreign import load_evaluated
from trainables.models.confidence import add_confidence
from trainables.models.networks import Classifier
from trainables.pretraining_config import ScratchPretraining
from trainables.shifts.bank import build_shifts, build_validation_shifts
from trainables.tasks.find import find_task
from trainables.tasks.task import Task
from trainables.training.acceleration import Choice, default_choice
from trainables.training.loop import Learner, resolve_precision
from trainables.training.selection import reads_shifted_validation
from trainables.training.step import ClassificationLearner
from trainables.training.transfer.features import FeatureFeed, find_cache_obstacle
from trainables.trial import build_network, prepare_process

#: Numbers of untimed steps (allocations, first kernels) and of timed steps.
_WARMUP_STEPS, _TIMED_STEPS = 1, 3
#: Images of the first timed prediction; as many as take ``_PREDICTION_SHARE`` of the time are timed next.
_FIRST_IMAGES, _PREDICTION_SHARE = 16, 0.1


@dataclass(frozen=True)
class PilotTimings:
    """Measured seconds, extrapolated to one epoch with its validation and to the whole evaluation."""

    epoch_seconds: float
    evaluation_seconds: float
    training_epochs: int
    #: All epochs of ConfidNet, after those of the classifier.
    confidence_seconds: float = 0.0
    #: Size of the predictions that a trial stores: logits and features, without scores and layers.
    stored_bytes: int = 0

    @property
    def trial_seconds(self) -> float:
        """Seconds of training to the last epoch and of the evaluation, without start-up and checkpoints."""
        return self.epoch_seconds * self.training_epochs + self.confidence_seconds + self.evaluation_seconds


def time_trial(config: TrialConfig, execution: Execution, *, max_seconds: float = 30.0) -> PilotTimings:
    """Time a few optimiser steps and the prediction of some test images on this machine, and extrapolate.

    The shifts themselves are not timed. Weights are random, which does not change the time, and nothing is written.

    Args:
        config: the trial.
        execution: device, threads, cache.
        max_seconds: no further step begins after half of it; a single step or batch may take longer.
    """
    device = prepare_process(execution)
    data = load_evaluated(config.data, config.evaluation, cache_dir=execution.cache_dir.expanduser())
    task = find_task(config.task)
    model = build_network(config.model, ScratchPretraining(), data, config.regulariser, config.task).to(device)
    choice = default_choice(config.model, model, resolve_precision(config.training, device), device)
    confidence = config.training.confidence
    if not isinstance(confidence, ConfidNet):
        add_confidence(model, confidence, seed=0)
    model = choice.place(model)
    once = config.model_copy(update={"training": config.training.model_copy(update={"select_by": "loss"})})
    with task.open_learner(model, data, once, choice, execution) as learner:
        step_seconds, caches_features = _time_steps(learner, data, config, device, max_seconds=max_seconds)
    test, limit = data.splits["test"], _PREDICTION_SHARE * max_seconds
    plain = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"mc_dropout": 0})})
    image_seconds = _time_prediction(task, model, test, plain, choice, execution, max_seconds=limit)
    validation = image_seconds * len(data.splits["val"])
    # A linear probe predicts all images once, then trains and validates on their features.
    computed_once = image_seconds * learner.num_images + validation if caches_features else 0.0
    confidence_seconds = 0.0
    if isinstance(confidence, ConfidNet):
        # The layers' epochs are passes of the classifier, to which fine-tuning adds training steps.
        one_epoch = image_seconds * learner.num_images + validation
        confidence_seconds = confidence.extra_epochs * one_epoch
        confidence_seconds += confidence.fine_tuning_epochs * (step_seconds * learner.num_batches + validation)
        add_confidence(model, confidence, seed=0)
    scored_seconds = image_seconds
    if config.evaluation.mc_dropout > 0 or model.confidence is not None:
        scored_seconds = _time_prediction(task, model, test, config, choice, execution, max_seconds=limit)
    modality = data.modality if config.evaluation.modality == "auto" else config.evaluation.modality
    num_shifts, num_validation_shifts = (
        len(build(config.evaluation, modality)) for build in (build_shifts, build_validation_shifts)
    )
    images = len(test) * (1 + num_shifts) + len(data.splits["val"]) * (1 + num_validation_shifts)
    images += task.count_passes(data, config)
    shifted_each_epoch = num_validation_shifts * reads_shifted_validation(config.training)
    per_epoch = validation * (int(not caches_features) + shifted_each_epoch)
    return PilotTimings(
        epoch_seconds=step_seconds * learner.num_batches + per_epoch + computed_once / config.training.epochs,
        evaluation_seconds=scored_seconds * images,
        training_epochs=config.training.epochs,
        confidence_seconds=confidence_seconds,
        stored_bytes=task.count_stored_bytes(data, config, model, num_shifts=num_shifts),
    )


def _time_steps(
    learner: Learner, data: Dataset, config: TrialConfig, device: torch.device, *, max_seconds: float
) -> tuple[float, bool]:
    """Return the seconds of an optimiser step, and whether it is one on cached features of a linear probe."""
    caches_features = find_cache_obstacle(learner.model, config, data) is None
    if caches_features:
        assert isinstance(learner, ClassificationLearner)
        rows = learner.rows
        learner.take_features(FeatureFeed(torch.zeros(len(rows), learner.model.num_features), rows, device))
    began, times = time.perf_counter(), []
    for step, batch in enumerate(learner.batches(1)):
        started = time.perf_counter()
        learner.run(batch, step, epoch=1, index=step)
        _synchronise(device)
        times.append(time.perf_counter() - started)
        if len(times) == _WARMUP_STEPS + _TIMED_STEPS or time.perf_counter() - began > max_seconds / 2:
            break
    timed = times[_WARMUP_STEPS:] or times
    return sum(timed) / len(timed), caches_features


def _time_prediction(
    task: Task,
    model: Classifier,
    images: ImageSet,
    config: TrialConfig,
    choice: Choice,
    execution: Execution,
    *,
    max_seconds: float,
) -> float:
    """Return the seconds per image, measured on as many images as take about ``max_seconds``, at most all."""
    number, seconds = 0, 0.0
    while number < len(images) and (number == 0 or seconds < max_seconds / 2):
        first = 1 if images.holds_volumes else _FIRST_IMAGES
        wanted = first if number == 0 else int(number * max_seconds / seconds)
        number = min(len(images), max(2 * number, wanted))
        rows = slice(number)  # a view: the images may be larger than memory
        part = replace(
            images, images=images.images[rows], labels=images.labels[rows], ids=images.ids[rows],
            groups=images.groups[rows], sites=images.sites[rows], masks=None, targets=None,
            metadata={name: values[rows] for name, values in images.metadata.items()},
        )  # fmt: skip
        started = time.perf_counter()
        task.predict(model, part, config, choice, execution)
        seconds = time.perf_counter() - started
    return seconds / number


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
