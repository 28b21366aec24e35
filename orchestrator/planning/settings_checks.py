"""Checks of a trial's settings against its data, without importing torch: one line per setting that cannot work."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.planning.works import weights_of
from trainables.config import TrialConfig
from trainables.contrastive_config import find_long_queue
from trainables.data.dataset import Dataset
from trainables.data.groups import check_groups, find_groups
from trainables.errors import ConfigError
from trainables.pretraining_config import ContrastivePretraining, ImageNetPretraining, list_trained
from trainables.regularisers import (
    GroupDro,
    LabelSmoothing,
    SpectralDecoupling,
    WeightDecay,
    choose_group_columns,
    find_part,
)
from trainables.tasks.volumes import find_problems_of_volumes
from trainables.training.selection import reads_select_by


class SettingsChecks:
    """Checks of the settings of all trials on one data set.

    Args:
        data: the data set.
        device: ``execution.device`` of the study.
    """

    def __init__(self, data: Dataset, *, device: str) -> None:
        self._data, self._device = data, device
        self._counts = np.bincount(data.splits["train"].labels, minlength=data.num_classes)
        #: Columns → number of groups of the training images, or why there are none.
        self._num_groups: dict[tuple[str, ...], int | str] = {}

    def find_problems(self, config: TrialConfig) -> Iterator[str]:
        """Yield the problems of a trial's settings."""
        yield from self._find_in_batches(config)
        yield from self._find_in_training(config)
        yield from self._find_in_labels(config)
        yield from self._find_in_groups(config)
        yield from find_problems_of_volumes(config, self._data)
        weights = weights_of(config)
        if isinstance(weights, ImageNetPretraining) and weights.file is not None and weights.weights != "default":
            yield (
                f"pretraining.weights: found {weights.weights} beside pretraining.file, which takes its place; "
                "keep one of them"
            )

    def find_in_data(self) -> Iterator[str]:
        """Yield the problems of the data with any settings."""
        if len(find_absent_classes(self._data, "test")) == self._data.num_classes - 1 > 0:
            only = self._data.classes[int(self._data.splits["test"].labels[0])]
            yield f"data: every test image is of class {only!r}; expected two classes, or no metric tells models apart"

    def _find_in_batches(self, config: TrialConfig) -> Iterator[str]:
        train = len(self._data.splits["train"])
        if config.training.batch_size > train:
            yield f"training.batch_size: found {config.training.batch_size}, and there are {train} training images"
        for step in list_trained(config.pretraining):
            if not step.sources and step.batch_size > train:
                yield f"pretraining.batch_size: found {step.batch_size}, and there are {train} training images"
            if not step.sources and isinstance(step, ContrastivePretraining):
                long_queue = find_long_queue(step.method, train)
                if long_queue is not None:
                    yield long_queue

    def _find_in_training(self, config: TrialConfig) -> Iterator[str]:
        training = config.training
        if training.warmup_epochs >= training.epochs:
            yield (
                f"training.warmup_epochs: found {training.warmup_epochs:g} of {training.epochs} training.epochs, which "
                "never train at training.learning_rate; expected fewer"
            )
        if training.precision == "bfloat16" and self._device == "cpu":
            yield (
                "training.precision: found bfloat16 with execution.device: cpu, where torch computes wrong gradients; "
                "expected auto or float32"
            )

        decay = find_part(config.regulariser, WeightDecay)
        product = (
            training.learning_rate * max(1.0, training.backbone_learning_rate_factor) * (decay.weight if decay else 0)
        )
        # A step multiplies a weight by 1 − product, which is −1 or less from here on; SGD's momentum allows for more.
        limit = 2.0 if training.optimiser == "adamw" else 2.0 * (1.0 + training.momentum)
        if decay is not None and product >= limit:
            yield (
                f"regulariser.weight: found {decay.weight:g} for weight_decay, times the learning rate {product:g}, so "
                f"that the weights grow at every step; expected a product below {limit:g}"
            )

    def _find_in_labels(self, config: TrialConfig) -> Iterator[str]:
        training, smoothing = config.training, find_part(config.regulariser, LabelSmoothing)
        needs_all = training.select_by.endswith("auroc") and reads_select_by(training)
        lacking = find_absent_classes(self._data, "val") if needs_all else []
        if lacking:
            yield (
                f"training.select_by: found {training.select_by}, and no validation image is of class "
                f"{', '.join(lacking)}; expected every class there: select by balanced_accuracy or loss, or give "
                "validation some"
            )
        wanted = np.round(training.label_fraction * self._counts, 6)  # as batches.choose_label_fraction counts
        if not wanted.all() and not self._data.components:
            without = ", ".join(self._data.classes[index] for index in np.flatnonzero(wanted == 0)[:6])
            yield (
                f"training.label_fraction: found {training.label_fraction:g}, which leaves no training image of class "
                f"{without}; expected a larger share"
            )
        if smoothing is not None and smoothing.epsilon == 1.0:
            yield (
                "regulariser.epsilon: found 1 for label_smoothing, with which all images have the same target; "
                "expected less"
            )

    def _find_in_groups(self, config: TrialConfig) -> Iterator[str]:
        regulariser = config.regulariser
        has_dro = find_part(regulariser, GroupDro) is not None
        if not has_dro and find_part(regulariser, SpectralDecoupling) is None:
            return
        columns = choose_group_columns(regulariser)
        if columns not in self._num_groups:
            self._num_groups[columns] = self._count_groups(columns)
        num_groups = self._num_groups[columns]
        if isinstance(num_groups, str):
            yield num_groups
            return
        try:
            check_groups(
                regulariser,
                weighs_classes=config.training.class_weights != "none",
                num_classes=self._data.num_classes,
                num_groups=num_groups,
            )
        except ConfigError as error:
            yield str(error)
        if has_dro and num_groups == 1:
            yield (
                f"regulariser.group_by: found {', '.join(columns)}, by which all training images are one group, so "
                "that group_dro changes nothing; expected a column with several values"
            )

    def _count_groups(self, columns: tuple[str, ...]) -> int | str:
        try:
            return len(find_groups(self._data.splits["train"], columns).names)
        except ConfigError as error:
            return str(error)


def find_absent_classes(data: Dataset, split: str) -> list[str]:
    """Return the classes of which a split or external set has no image."""
    if data.components:  # images have no class of their own
        return []
    images = data.splits.get(split) or data.external[split]
    counts = np.bincount(images.labels, minlength=data.num_classes)  # np.unique would import numpy.ma: 15 ms of a plan
    return [name for name, count in zip(data.classes, counts, strict=True) if not count]
