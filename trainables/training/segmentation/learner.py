"""Training of a segmentation: patches, augmented with their targets; a step on them; Dice on validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from trainables.augmentation.pipeline import Augmenter, build_augmentation, random_erasing
from trainables.augmentation.volumes import VolumeAugmenter, erase_boxes
from trainables.config import TrialConfig
from trainables.data.dataset import UNCOUNTED, Dataset
from trainables.data.feed import ImageFeed
from trainables.errors import ConfigError
from trainables.evaluation.segmentation.annotated import tabulate_annotated
from trainables.evaluation.segmentation.validation import measure_validation
from trainables.models.segmenter import Segmenter
from trainables.regularisers import (
    Dropout,
    LabelSmoothing,
    RegulariserConfig,
    Sam,
    SpectralDecoupling,
    StainNormalisation,
    WeightDecay,
    list_regularisers,
)
from trainables.task_config import DiceCrossEntropy, SegmentationTask
from trainables.training.acceleration import Choice
from trainables.training.joint.processes import find_processes
from trainables.training.optimisation import Descent, measure_weight_decay
from trainables.training.segmentation.batches import PatchBatch, TrainingPatches, check_patch_size, find_shares
from trainables.training.segmentation.losses import SegmentationLoss
from trainables.training.segmentation.volumes import FOREGROUND_SHARE, TrainingVolumes
from trainables.training.transfer.trained_part import set_training_mode

#: Regularisers that mean the same for pixels as for images.
_ALLOWED = (WeightDecay, SpectralDecoupling, LabelSmoothing, Dropout, Sam, StainNormalisation)


class SegmentationLearner:
    """A segmentation network with its training patches, loss, optimiser and validation images (``loop.Learner``).

    Args:
        model: model on the device of the training; trained in place.
        data: data set with targets; test and external sets are never read.
        config: config of the trial; its task is a ``SegmentationTask``.
        choice: memory format, precision and compiling.
        evaluation_batch_size: images per batch on validation.

    Raises:
        ConfigError: settings do not fit the data or the task.
    """

    def __init__(
        self, model: Segmenter, data: Dataset, config: TrialConfig, choice: Choice, *, evaluation_batch_size: int = 16
    ) -> None:
        assert isinstance(config.task, SegmentationTask)
        self.model, self._config, self._task = model, config, config.task
        self._device, self._precision = model.mean.device, choice.dtype
        check_regulariser(config.regulariser, config.task)
        train = data.splits["train"]
        self._batches = _build_batches(config, data, self._device)
        sides = config.task.patch_sides(train.images.ndim - 2) or train.images.shape[2:]
        build = VolumeAugmenter if train.holds_volumes else build_augmentation
        self._augment: VolumeAugmenter | Augmenter = build(config.augmentation, sides[-1])
        self._erasing = config.augmentation.erasing
        annotated = tabulate_annotated(data)
        self._loss = SegmentationLoss(
            config.task,
            config.regulariser,
            num_classes=data.num_classes,
            device=self._device,
            annotated=annotated,
        )
        self._forward = choice.build_forward(model, config.training.batch_size)
        self._descent = Descent(model, config, choice.dtype, processes=find_processes())
        self.optimiser = self._descent.optimiser
        if self._batches.smallest_batch == 1:
            self._check_single(train.images.shape[1], sides)
        self._val = ImageFeed(data.splits["val"], self._device)
        self._annotated, self._batch_size = annotated, evaluation_batch_size
        self.frozen: frozenset[str] = frozenset()

    def _check_single(self, channels: int, sides: Sequence[int]) -> None:
        """Check on a copy of the network that it can be trained on a batch of one patch.

        Raises:
            ConfigError: it normalises single values over a batch.
        """
        model = deepcopy(self.model)
        set_training_mode(model, self._config)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                model(torch.zeros(1, channels, *sides, device=self._device))
        except ValueError as error:
            raise ConfigError(
                f"training.batch_size: found batches of one patch of {sides[-1]} px, which the network cannot "
                f"normalise in training ({error}); expected at least 2 patches, larger ones or a smaller task.depth"
            ) from error

    @property
    def num_batches(self) -> int:
        """Optimiser steps per epoch."""
        return self._batches.num_batches

    @property
    def num_images(self) -> int:
        """Patches per epoch."""
        return self._batches.num_patches

    @property
    def num_validated(self) -> int:
        """Validation images."""
        return len(self._val)

    @property
    def state(self) -> Mapping[str, nn.Module]:
        """No further modules."""
        return {}

    def prepare(self) -> None:
        """Compute nothing: every epoch begins with images."""

    def batches(self, epoch: int) -> Iterator[PatchBatch]:
        """Yield the batches of an epoch; the model is in training mode, but for what is frozen."""
        set_training_mode(self.model, self._config)
        return self._batches.epoch(epoch)

    def run(self, batch: PatchBatch, step: int, *, epoch: int, index: int) -> dict[str, Tensor]:
        """Run one optimiser step; return the loss, the size of each of its terms, and the share of correct pixels."""
        images, targets = self.augment(PatchBatch(*(self._descent.take(part) for part in batch)))
        count = len(batch.seeds)
        targets = self._descent.collect(targets, count)
        terms, logits = self._descent.run(
            self._forward, images, lambda outputs, _: self._loss(outputs, targets, batch.sources, step), count=count
        )
        is_counted = targets != UNCOUNTED
        right = ((logits.argmax(1) == targets) & is_counted).sum() / is_counted.sum().clamp(min=1)
        return {**terms, "pixel_accuracy": right}

    def augment(self, batch: PatchBatch) -> tuple[Tensor, Tensor]:
        """Return augmented, normalised images and their targets; pixels from outside the patch are not counted."""
        images = self.model.normalise(self._augment(batch.images, batch.seeds))
        if self._erasing > 0.0:
            erase = erase_boxes if images.ndim == 5 else random_erasing
            images = erase(images, batch.seeds, self._erasing)
        # What is moved in from outside is 0, and has to be uncounted: 255 + 1 is 0 in 8 bits.
        moved = self._augment.move((batch.targets + 1)[:, None], batch.seeds)[:, 0] - 1
        return images, moved

    def summarise(self) -> dict[str, float]:
        """Return the weight decay penalty, if weights decay."""
        decay = measure_weight_decay(self.optimiser)
        return {} if decay is None else {"weight_decay": decay}

    def validate(self) -> dict[str, float]:
        """Return Dice (mean over cases and classes) and, as loss, the mean cross-entropy of the pixels."""
        return measure_validation(
            self.model,
            self._val,
            self._task,
            annotated=self._annotated,
            batch_size=self._batch_size,
            precision=self._precision,
        )


def _build_batches(config: TrialConfig, data: Dataset, device: torch.device) -> TrainingPatches:
    """Return the batches of patches of images, or of volumes.

    Raises:
        ConfigError: see ``TrainingPatches``.
    """
    assert isinstance(config.task, SegmentationTask)
    task, train, shares = config.task, data.splits["train"], find_shares(config.data, data.components)
    if not train.holds_volumes:
        return TrainingPatches(
            train, config, device, patch_size=task.patch_size, patches_per_epoch=task.patches_per_epoch, shares=shares
        )
    check_patch_size(train, task.patch_size)
    slices, rows, columns = task.patch_sides(3) or (0, 0, 0)
    return TrainingVolumes(
        train,
        config,
        device,
        patch_size=(slices, rows, columns),
        patches_per_epoch=task.patches_per_epoch,
        shares=shares,
        foreground_share=FOREGROUND_SHARE if task.foreground_share is None else task.foreground_share,
    )


def check_regulariser(regulariser: RegulariserConfig, task: SegmentationTask) -> None:
    """Check that a regulariser means something for pixels and for the loss of a task.

    Raises:
        ConfigError: it mixes images, weighs groups of images, changes the depth of an encoder, smooths the labels of a
            loss without cross-entropy, or has a λ or γ per group of images.
    """
    for part in list_regularisers(regulariser):
        if not isinstance(part, _ALLOWED):
            known = ", ".join(kind.model_fields["kind"].default for kind in _ALLOWED)
            raise ConfigError(
                f"regulariser: found {part.kind} with task: segmentation; expected none or some of {known}"
            )
        if isinstance(part, LabelSmoothing) and not isinstance(task.loss, DiceCrossEntropy):
            raise ConfigError(
                f"regulariser: found label_smoothing with task.loss: {task.loss.kind}, which has no cross-entropy "
                "whose labels could be smoothed; expected dice_cross_entropy, or another regulariser"
            )
        if isinstance(part, SpectralDecoupling) and part.group_by != "class":
            raise ConfigError(
                f"regulariser.group_by: found {part.group_by} with task: segmentation; expected class: several λ or γ "
                "are those of the classes of pixels"
            )
