"""Cost estimate of a trial before it starts, from a few timed steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from trainables.confidence_config import ConfidNet
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.data.foreign import load_evaluated
from trainables.evaluation.attribution.evaluate import count_passes
from trainables.evaluation.predictions import keep, predict_each
from trainables.models.confidence import add_confidence
from trainables.models.model_scores import ModelScores, build_model_scores
from trainables.models.networks import Classifier
from trainables.pretraining_config import ScratchPretraining
from trainables.shifts.bank import build_shifts, build_validation_shifts
from trainables.training.acceleration import default_choice
from trainables.training.loop import resolve_precision
from trainables.training.selection import reads_shifted_validation
from trainables.training.step import TrainingStep
from trainables.training.transfer.features import FeatureFeed, find_cache_obstacle
from trainables.training.transfer.trained_part import set_training_mode
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
    model = build_network(config.model, ScratchPretraining(), data, config.regulariser).to(device)
    precision = resolve_precision(config.training, device)
    choice = default_choice(config.model, model, precision, device)
    confidence = config.training.confidence
    if not isinstance(confidence, ConfidNet):
        add_confidence(model, confidence, seed=0)
    model = choice.place(model)
    training = TrainingStep(model, data, config, choice)
    set_training_mode(model, config)
    caches_features = find_cache_obstacle(model, config, data) is None
    if caches_features:
        rows = training.batches.rows
        training.take_features(FeatureFeed(torch.zeros(len(rows), model.num_features), rows, device))
    began, times = time.perf_counter(), []
    for step, batch in enumerate(training.batches.epoch(1)):
        started = time.perf_counter()
        training.run(batch, step, epoch=1, index=step)
        _synchronise(device)
        times.append(time.perf_counter() - started)
        if len(times) == _WARMUP_STEPS + _TIMED_STEPS or time.perf_counter() - began > max_seconds / 2:
            break
    timed = times[_WARMUP_STEPS:] or times
    step_seconds = sum(timed) / len(timed)
    test = data.splits["test"]
    image_seconds = _time_prediction(model, test, precision, execution, max_seconds=_PREDICTION_SHARE * max_seconds)
    validation = image_seconds * len(data.splits["val"])
    # A linear probe predicts all images once, then trains and validates on their features.
    once = image_seconds * len(training.batches.rows) + validation if caches_features else 0.0
    confidence_seconds = 0.0
    if isinstance(confidence, ConfidNet):
        # The layers' epochs are passes of the classifier, to which fine-tuning adds training steps.
        one_epoch = image_seconds * len(training.batches.rows) + validation
        confidence_seconds = confidence.extra_epochs * one_epoch
        confidence_seconds += confidence.fine_tuning_epochs * (step_seconds * training.batches.num_batches + validation)
        add_confidence(model, confidence, seed=0)
    scores = build_model_scores(model, mc_dropout=config.evaluation.mc_dropout, seed=0)
    scored_seconds = image_seconds
    if scores is not None:
        limit = _PREDICTION_SHARE * max_seconds
        scored_seconds = _time_prediction(model, test, precision, execution, scores=scores, max_seconds=limit)
    modality = data.modality if config.evaluation.modality == "auto" else config.evaluation.modality
    shifts, of_validation = (build(config.evaluation, modality) for build in (build_shifts, build_validation_shifts))
    images = len(test) * (1 + len(shifts)) + len(data.splits["val"]) * (1 + len(of_validation))
    images += sum(len(each) for each in (data.external | data.ood).values())
    if config.evaluation.representation.layers:
        images += 2 * min(len(test), config.evaluation.representation.num_images)  # of two networks
    if "train" in config.evaluation.store_features:
        images += len(data.splits["train"])
    images += count_passes(config.evaluation.attribution)
    per_epoch = validation * (int(not caches_features) + len(of_validation) * reads_shifted_validation(config.training))
    return PilotTimings(
        epoch_seconds=step_seconds * training.batches.num_batches + per_epoch + once / config.training.epochs,
        evaluation_seconds=scored_seconds * images,
        training_epochs=config.training.epochs,
        confidence_seconds=confidence_seconds,
        stored_bytes=_count_stored_bytes(data, config, num_shifts=len(shifts), num_features=model.num_features),
    )


def _count_stored_bytes(data: Dataset, config: TrialConfig, *, num_shifts: int, num_features: int) -> int:
    """Return the size of logits (float32) and features (float16) in bytes, shifted validation images aside."""
    stored, num_test = config.evaluation.store_features, len(data.splits["test"])
    sets = {name: len(data.splits[name]) for name in ("train", "val", "test")}
    sets |= {kind: sum(map(len, each.values())) for kind, each in (("external", data.external), ("ood", data.ood))}
    with_features = sum(number for name, number in sets.items() if name in stored)
    with_features += num_test * num_shifts * ("shifts" in stored)
    with_logits = sum(number for name, number in sets.items() if name != "train" or name in stored)
    return 2 * num_features * with_features + 4 * data.num_classes * (with_logits + num_test * num_shifts)


def _time_prediction(
    model: Classifier,
    images: ImageSet,
    precision: torch.dtype,
    execution: Execution,
    *,
    max_seconds: float,
    scores: ModelScores | None = None,
) -> float:
    """Return the seconds per image, measured on as many images as take about ``max_seconds``, at most all."""
    number, seconds = 0, 0.0
    while number < len(images) and (number == 0 or seconds < max_seconds / 2):
        wanted = _FIRST_IMAGES if number == 0 else int(number * max_seconds / seconds)
        number = min(len(images), max(2 * number, wanted))
        rows = slice(number)  # a view: the images may be larger than memory
        part = replace(
            images, images=images.images[rows], labels=images.labels[rows], ids=images.ids[rows],
            groups=images.groups[rows], sites=images.sites[rows], metadata={}, masks=None,
        )  # fmt: skip
        started = time.perf_counter()
        feed, size = ImageFeed(part, model.mean.device), execution.evaluation_batch_size
        predict_each(model, feed, [keep], batch_size=size, precision=precision, scores=scores)
        seconds = time.perf_counter() - started
    return seconds / number


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
