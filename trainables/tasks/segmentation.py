"""Segmentation: one class per pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from trainables.confidence_config import NoConfidence
from trainables.config import Execution, FineTuning, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.data.segmentation.extents import find_sides
from trainables.errors import ConfigError
from trainables.evaluation.detection.summary import save_detection
from trainables.evaluation.layers import check_layers
from trainables.evaluation.metric_tables.segmentation import OF_IMAGES_ALONE
from trainables.evaluation.metrics import name_unshifted
from trainables.evaluation.robustness import choose_shifts, choose_validation_shifts
from trainables.evaluation.segmentation.evaluate import SegmentationEvaluation, list_evaluated
from trainables.evaluation.segmentation.predict import predict_batches
from trainables.evaluation.segmentation.stored import locate_segmented
from trainables.evaluation.segmentation_ood.aggregations import PATCH
from trainables.evaluation.segmentation_ood.dropout import SegmentationDropout
from trainables.evaluation_config import EvaluationConfig
from trainables.model_config import ModelConfig
from trainables.models.mc_dropout import find_dropout
from trainables.models.networks import Classifier
from trainables.models.segmenter import Segmenter, build_segmenter
from trainables.models.volume_segmenter import build_volume_segmenter
from trainables.ops.geometry import index_first
from trainables.regularisers import Dropout, RegulariserConfig, find_part
from trainables.storage.completeness import DETECTION
from trainables.task_config import SegmentationTask
from trainables.tasks.classification import normalise_stains
from trainables.tasks.task import OnProgress, Trained
from trainables.tasks.volumes import find_problems_of_volumes
from trainables.training.acceleration import Choice
from trainables.training.loop import Learner
from trainables.training.segmentation.batches import check_patch_size
from trainables.training.segmentation.learner import SegmentationLearner, check_regulariser

#: Fields of ``evaluation`` that are about one class per image, by name.
_OF_CLASSIFICATION = (
    "label_maps", "per_class", "attribution", "representation", "store_features", "confidence_scores",
)  # fmt: skip


class Segmentation:
    """One class per pixel (``task.Task``)."""

    scores = ("validation/dice", "robustness/mean_dice")

    def __init__(self, config: SegmentationTask) -> None:
        self._config = config

    def check(self, config: TrialConfig, data: Dataset) -> None:
        """Check settings of a segmentation against its data.

        Raises:
            ConfigError: the data have no class per pixel, a setting is about one class per image, or patches and images
            do not fit each other.
        """
        if not data.components:
            raise ConfigError(
                f"task: found segmentation on {config.data.kind} data, whose images have one class each; expected data "
                "with masks: image_mask_folder, image_mask_csv, decathlon, organs, or datasets of these"
            )
        check_settings(config)
        for problem in find_problems_of_volumes(config, data):
            raise ConfigError(problem)
        check_regulariser(config.regulariser, self._config)
        check_patch_size(data.splits["train"], self._config.patch_size)
        smallest = min(data.splits["test"].images.shape[2:])
        if smallest < PATCH and not data.splits["test"].holds_volumes:
            raise ConfigError(
                f"data.image_size: found {smallest} px with task: segmentation, whose scores look at patches of "
                f"{PATCH} px; expected no less"
            )
        choose_shifts(data, config.evaluation)
        choose_validation_shifts(data, config.evaluation)

    def take_inputs(self, images: UInt8[np.ndarray, "n c *space"]) -> UInt8[np.ndarray, "n c *seen"]:
        """Return the images, of volumes their first patch."""
        sides = self._config.patch_sides(3)
        if images.ndim < 5 or sides is None:
            return images
        return images[index_first(sides)]

    def build_network(
        self, config: ModelConfig, data: Dataset, regulariser: RegulariserConfig, imagenet: Mapping[str, Tensor] | None
    ) -> Classifier:
        """Return the network for ``data``; dropout and stain normalisation are part of it.

        Raises:
            ConfigError: if encoder, decoder and weights do not fit each other, or the data the regulariser.
        """
        dropout, train = find_part(regulariser, Dropout), data.splits["train"]
        probability = 0.0 if dropout is None else dropout.probability
        if train.holds_volumes:
            return build_volume_segmenter(
                config,
                self._config,
                num_classes=data.num_classes,
                channels=train.images.shape[1],
                spacing=find_sides(train)[0].tolist(),
                dropout=probability,
            )
        model = build_segmenter(
            config,
            self._config,
            num_classes=data.num_classes,
            channels=train.images.shape[1],
            image_size=train.images.shape[-1],
            dropout=probability,
            imagenet=imagenet,
        )
        normalise_stains(model, data, regulariser)
        return model

    def choose_acceleration(
        self, config: TrialConfig, model: Classifier, data: Dataset, execution: Execution, default: Choice
    ) -> Choice:
        """Return the device's default: the probe of ``execution.acceleration`` times steps of classifications."""
        if config.evaluation.mc_dropout > 0:
            find_dropout(model)  # a network without it has to fail before the training
        if config.evaluation.store_layers:
            check_layers(model, config.evaluation.store_layers, self.take_inputs(data.splits["test"].images[:2]))
        return default

    @contextmanager
    def open_learner(
        self, model: Classifier, data: Dataset, config: TrialConfig, choice: Choice, execution: Execution
    ) -> Iterator[Learner]:
        """Yield the learner."""
        assert isinstance(model, Segmenter)
        yield SegmentationLearner(model, data, config, choice, evaluation_batch_size=execution.evaluation_batch_size)

    def predict(
        self, model: Classifier, images: ImageSet, config: TrialConfig, choice: Choice, execution: Execution
    ) -> None:
        """Run the forward passes of the evaluation, those of MC dropout included."""
        assert isinstance(model, Segmenter)
        feed, size = ImageFeed(images, model.mean.device), execution.evaluation_batch_size
        draws, dropout = config.evaluation.mc_dropout, None
        if draws > 0:
            dropout = SegmentationDropout(model, self._config, draws=draws, seed=0, precision=choice.dtype)
        sources = torch.from_numpy(np.array(images.labels)).to(feed.device)
        for batch in predict_batches(model, feed, self._config, batch_size=size, precision=choice.dtype):
            if dropout is not None:
                dropout.compute_uncertainties(batch.images, sources[batch.rows], None)

    def count_passes(self, data: Dataset, config: TrialConfig) -> int:
        """Return the number of images that an evaluation predicts beside test and validation images, shifted or not.

        Training images are seen once, for their layers. With windows, layers are recorded in a pass of their own over
        all unshifted images.
        """
        number, others = len(data.splits["train"]), sum(map(len, (*data.external.values(), *data.ood.values())))
        if self._config.window_size is None:
            return number + others
        return number + 2 * others + len(data.splits["val"]) + len(data.splits["test"])

    def count_stored_bytes(self, data: Dataset, config: TrialConfig, model: Classifier, *, num_shifts: int) -> int:
        """Return the size of predicted classes and entropies in bytes; compressed, those of vessels take a quarter."""
        sets = (data.splits["val"], data.splits["test"], *data.external.values(), *data.ood.values())
        pixels = sum(len(images) * math.prod(images.images.shape[2:]) for images in sets)
        return 2 * pixels // 4

    def evaluate(self, trained: Trained, on_progress: OnProgress) -> dict[str, Any]:
        """Write the cases of every set; return their part of ``result.json``."""
        assert isinstance(trained.model, Segmenter)
        data, config = trained.data, trained.config.evaluation
        evaluation, detection = SegmentationEvaluation(
            trained.model,
            data,
            config,
            self._config,
            execution=trained.execution,
            precision=trained.choice.dtype,
        ).run(trained.folder, on_progress=on_progress)
        save_detection(trained.folder, detection)
        left_out = choose_shifts(data, config)[1] | choose_validation_shifts(data, config)[1]
        if data.splits["test"].holds_volumes:
            left_out |= {name_unshifted(name): "it is a metric of images, not of volumes" for name in OF_IMAGES_ALONE}
        return {
            "metrics": evaluation.metrics | detection.metrics,
            "classes": list(data.classes),
            "evaluations": evaluation.rows,
            "undefined": evaluation.undefined | left_out,
            "files": [DETECTION, *(locate_segmented(name) for name in list_evaluated(data))],
        }


def check_settings(config: TrialConfig) -> None:
    """Check that a segmentation's settings are all about pixels.

    Raises:
        ConfigError: one is about one class per image.
    """
    default, training = EvaluationConfig(), config.training
    found = [
        f"evaluation.{name}"
        for name in _OF_CLASSIFICATION
        if getattr(config.evaluation, name) != getattr(default, name)
    ]
    found += ["evaluation.severities: matched"] if config.evaluation.is_matched else []
    found += [] if isinstance(training.confidence, NoConfidence) else ["training.confidence"]
    found += ["training.backbone_learning_rate_factor: 0"] if training.is_linear_probe else []
    found += ["training.class_weights"] if training.class_weights != "none" else []
    only_norm = FineTuning(batch_norm=training.fine_tune.batch_norm)
    found += ["training.fine_tune"] if training.fine_tune != only_norm else []
    found += ["augmentation: augmix"] if config.augmentation.kind == "augmix" else []
    if found:
        raise ConfigError(f"{found[0]}: found it with task: segmentation, where it means nothing; expected it left out")
