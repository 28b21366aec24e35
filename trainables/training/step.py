"""Training of a classification: its optimiser step (augment → normalise → mix → forward → loss → backward → step).

Used by the training loop, and by the pilot that times a few steps before a study starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from trainables.augmentation.pipeline import build_augmentation, random_erasing
from trainables.config import TrialConfig
from trainables.data.batches import Batch, TrainingImages
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.predictions import check_finite, keep, predict_each
from trainables.models.networks import Classifier
from trainables.regularisers import CutMix, Mixup, find_part
from trainables.seeding import derive_seed
from trainables.training.acceleration import Choice
from trainables.training.confidence_losses import build_confidence_loss
from trainables.training.joint.processes import find_processes
from trainables.training.losses import ClassificationLoss, Terms, build_loss
from trainables.training.mixing import Mixed, cutmix, mixup
from trainables.training.optimisation import Descent, measure_weight_decay
from trainables.training.transfer.features import FeatureFeed, compute_features, find_cache_obstacle
from trainables.training.transfer.trained_part import list_frozen, set_training_mode


class TrainingInputs:
    """Augmented and normalised images of training batches.

    Args:
        model: model, for its normalisation.
        config: config of the trial.
        image_size: side of the stored images in px.
    """

    def __init__(self, model: Classifier, config: TrialConfig, image_size: int) -> None:
        self._model, self._erasing = model, config.augmentation.erasing
        self._augment = build_augmentation(config.augmentation, image_size)

    def make(self, batch: Batch) -> Tensor:
        """Return the batch's images as the network takes them: n × c × h × w."""
        images = self._model.normalise(self._augment(batch.images, batch.seeds))
        return random_erasing(images, batch.seeds, self._erasing) if self._erasing > 0.0 else images


class TrainingStep:
    """A model with its training images, loss and optimiser.

    Args:
        model: model on the device of the training; trained in place.
        data: data set; only the training split is read.
        config: config of the trial.
        choice: memory format, precision and compiling.

    Raises:
        ConfigError: if settings do not fit the data.
    """

    def __init__(self, model: Classifier, data: Dataset, config: TrialConfig, choice: Choice) -> None:
        self._model, self._config = model, config
        self._device = model.mean.device
        self._num_classes = data.num_classes
        outputs = model if model.confidence is None else model.forward_outputs
        self._forward = choice.build_forward(outputs, config.training.batch_size)
        train = data.splits["train"]
        self.batches = TrainingImages(train, config, self._device)
        self._inputs = TrainingInputs(model, config, train.images.shape[-1])
        self.loss = self._build_loss(train, data.num_classes)
        self._descent = Descent(model, config, choice.dtype, processes=find_processes())
        self.optimiser = self._descent.optimiser
        self._mixup, self._cutmix = find_part(config.regulariser, Mixup), find_part(config.regulariser, CutMix)
        self._takes_features = False

    def take_features(self, features: FeatureFeed) -> None:
        """From now on train the head on cached features, and read no image.

        Args:
            features: features of the training images in use (``find_cache_obstacle`` is None).
        """
        self.batches.feed, self._forward, self._takes_features = features, self._model.head, True

    def _build_loss(self, train: ImageSet, num_classes: int) -> ClassificationLoss:
        weights = None
        if self._config.training.class_weights == "balanced":
            counts = np.bincount(train.labels[self.batches.rows], minlength=num_classes)
            weights = torch.tensor(
                counts.sum() / (num_classes * np.maximum(counts, 1)), dtype=torch.float32, device=self._device
            )
        return build_loss(
            self._config.regulariser,
            class_weights=weights,
            num_classes=num_classes,
            groups=self.batches.groups,
            device=self._device,
            confidence=build_confidence_loss(
                self._config.training.confidence, steps_per_epoch=self.batches.num_batches
            ),
        )

    def run(self, batch: Batch, step: int, *, epoch: int, index: int) -> Terms:
        """Run one optimiser step; return the loss, the size of each of its terms, and the accuracy on the batch.

        With SAM also return the sharpness: the increase of the loss at the point where the gradient is computed.

        Args:
            batch: batch ``index`` of the epoch.
            step: optimiser steps so far, over all epochs.
            epoch: number of the epoch, from 1.
            index: number of the batch, from 0.
        """
        inputs, mixed = self._make_inputs(batch, epoch, index)
        terms, outputs = self._descent.run(
            self._forward,
            inputs,
            lambda found, adapt: self._measure_loss(found, batch, mixed, step, adapt=adapt),
            count=len(batch.labels),
        )
        logits = outputs[:, : self._num_classes]
        return {**terms, "accuracy": (logits.argmax(1) == batch.labels).float().mean()}

    def _make_inputs(self, batch: Batch, epoch: int, index: int) -> tuple[Tensor, Mixed | None]:
        """Return what the network takes of this process's images, and how the whole batch is mixed, if it is."""
        if self._mixup is None and self._cutmix is None:  # else partners are among the images of other processes
            own = Batch(*(self._descent.take(part) for part in batch))
            return own.images if self._takes_features else self._inputs.make(own), None
        mixed = self._mix(batch.images if self._takes_features else self._inputs.make(batch), epoch, index)
        assert mixed is not None
        return self._descent.take(mixed.images), mixed

    def _mix(self, images: Tensor, epoch: int, index: int) -> Mixed | None:
        position = (self._config.seed, self._config.replicate)
        if self._mixup is not None:
            generator = np.random.default_rng(derive_seed(*position, "mixup", epoch, index))
            return mixup(images, alpha=self._mixup.alpha, generator=generator)
        if self._cutmix is not None:
            generator = np.random.default_rng(derive_seed(*position, "cutmix", epoch, index))
            return cutmix(images, alpha=self._cutmix.alpha, generator=generator)
        return None

    def _measure_loss(self, outputs: Tensor, batch: Batch, mixed: Mixed | None, step: int, *, adapt: bool) -> Terms:
        """Return the terms of the loss; those of mixed images are between the terms of both images' labels."""
        terms = self.loss(outputs, batch.labels, batch.groups, step, seeds=batch.seeds, adapt=adapt)
        if mixed is not None:
            partner, share = mixed.partner, mixed.share
            theirs = self.loss(outputs, batch.labels[partner], batch.groups[partner], step, adapt=adapt)
            terms = {name: share * value + (1.0 - share) * theirs[name] for name, value in terms.items()}
        return terms

    def summarise(self) -> dict[str, float]:
        """Return the metrics of an epoch: the weight decay penalty, and those of the loss."""
        decay = measure_weight_decay(self.optimiser)
        return ({} if decay is None else {"weight_decay": decay}) | self.loss.summarise()


class ClassificationLearner:
    """A classifier with its training images, loss, optimiser and validation images (``loop.Learner``).

    Args:
        model: model on the device of the training; trained in place.
        data: data set; test and external sets are never read.
        config: config of the trial.
        choice: memory format, precision and compiling.
        validate_shifted: the model's present means over shifted validation images.
    """

    def __init__(
        self,
        model: Classifier,
        data: Dataset,
        config: TrialConfig,
        choice: Choice,
        *,
        validate_shifted: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.model, self._config, self._validate_shifted = model, config, validate_shifted
        self._device, self._precision = model.mean.device, choice.dtype
        self._val, self._val_feed = data.splits["val"], ImageFeed(data.splits["val"], self._device)
        self._step = TrainingStep(model, data, config, choice)
        self.optimiser = self._step.optimiser
        self.frozen = list_frozen(model, config)
        self._caches_features = find_cache_obstacle(model, config, data) is None
        self._val_features: Tensor | None = None

    @property
    def num_batches(self) -> int:
        """Optimiser steps per epoch."""
        return self._step.batches.num_batches

    @property
    def num_images(self) -> int:
        """Images per epoch."""
        return len(self._step.batches.rows)

    @property
    def rows(self) -> Int64[np.ndarray, " n"]:
        """Row numbers of the training images in use."""
        return self._step.batches.rows

    def take_features(self, features: FeatureFeed) -> None:
        """From now on train the head on cached features (``TrainingStep.take_features``)."""
        self._step.take_features(features)

    @property
    def num_validated(self) -> int:
        """Validation images."""
        return len(self._val)

    @property
    def state(self) -> Mapping[str, nn.Module]:
        """Modules of the loss that keep something between steps."""
        return self._step.loss.state

    def prepare(self) -> None:
        """Compute the features of a linear probe; the network does not change from here on, and neither do they."""
        if not self._caches_features or self._val_features is not None:
            return
        train_feed, rows = self._step.batches.feed, np.arange(len(self._val))
        assert isinstance(train_feed, ImageFeed)
        found = compute_features(self.model, train_feed, self._step.batches.rows, precision=self._precision)
        self._step.take_features(found)
        self._val_features = compute_features(self.model, self._val_feed, rows, precision=self._precision).features

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch; the model is in training mode, but for what is frozen."""
        set_training_mode(self.model, self._config)
        return self._step.batches.epoch(epoch)

    def run(self, batch: Batch, step: int, *, epoch: int, index: int) -> Terms:
        """Run one optimiser step (``TrainingStep.run``)."""
        return self._step.run(batch, step, epoch=epoch, index=index)

    def summarise(self) -> dict[str, float]:
        """Return the weight decay penalty, and the numbers of the loss."""
        return self._step.summarise()

    def validate(self) -> dict[str, float]:
        """Return the metrics on validation, shifted or not."""
        ordinal = self._config.data.ordinal
        metrics = compute_metrics(self._predict_validation(), self._val.labels, ordinal=ordinal).values
        metrics["loss"] = metrics.pop("nll")
        return metrics | ({} if self._validate_shifted is None else dict(self._validate_shifted()))

    def _predict_validation(self) -> Float32[np.ndarray, "n classes"]:
        if self._val_features is None:
            feed = self._val_feed
            return predict_each(self.model, feed, [keep], batch_size=256, precision=self._precision).logits[0]
        self.model.eval()
        enabled = self._precision != torch.float32
        with torch.no_grad(), torch.autocast(self._device.type, self._precision, enabled=enabled):
            logits: Tensor = self.model.head(self._val_features.to(self._device))
        found = logits.cpu().numpy()
        check_finite(found[None], self._val)
        return found
