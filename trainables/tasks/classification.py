"""Classification: one class per image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.feed import ImageFeed
from trainables.evaluation.attribution.evaluate import count_passes, evaluate_attribution
from trainables.evaluation.detection.summary import save_detection, summarise_detection
from trainables.evaluation.labels.maps import check_label_maps
from trainables.evaluation.labels.summary import summarise_views
from trainables.evaluation.predictions import keep, load_predictions, predict_each
from trainables.evaluation.representation.summary import describe_representation
from trainables.evaluation.robustness import (
    choose_shifts,
    choose_validation_shifts,
    evaluate_model,
    list_sets,
    open_shifted_validation,
    summarise_predictions,
)
from trainables.model_config import ModelConfig
from trainables.models.mc_dropout import find_dropout
from trainables.models.model_scores import build_model_scores
from trainables.models.networks import Classifier, build_model
from trainables.ops.stain_normalisation import StainNormaliser, check_stainable, choose_tiles
from trainables.regularisers import Dropout, RegulariserConfig, StainNormalisation, StochasticDepth, find_part
from trainables.storage.completeness import ATTRIBUTION, DETECTION, REPRESENTATION
from trainables.tasks.task import OnProgress, Trained
from trainables.training.acceleration import Choice, choose_acceleration
from trainables.training.loop import Learner
from trainables.training.selection import reads_shifted_validation
from trainables.training.step import ClassificationLearner


class Classification:
    """One class per image (``task.Task``)."""

    scores = ("validation/balanced_accuracy", "robustness/mean_balanced_accuracy")

    def check(self, config: TrialConfig, data: Dataset) -> None:
        """Check names of shifts and label maps against the data.

        Raises:
            ConfigError: one is unknown.
        """
        choose_shifts(data, config.evaluation)
        choose_validation_shifts(data, config.evaluation)
        check_label_maps(config.evaluation, data)

    def take_inputs(self, images: UInt8[np.ndarray, "n c *space"]) -> UInt8[np.ndarray, "n c *seen"]:
        """Return the images."""
        return images

    def build_network(
        self, config: ModelConfig, data: Dataset, regulariser: RegulariserConfig, imagenet: Mapping[str, Tensor] | None
    ) -> Classifier:
        """Return the network for ``data``; dropout, stochastic depth and stain normalisation are part of it.

        Raises:
            ConfigError: if the network, the weights or the data do not fit the regulariser.
        """
        train = data.splits["train"].images
        _, channels, _, size = train.shape
        dropout, depth = find_part(regulariser, Dropout), find_part(regulariser, StochasticDepth)
        model = build_model(
            config,
            num_classes=data.num_classes,
            channels=channels,
            image_size=size,
            dropout=0.0 if dropout is None else dropout.probability,
            stochastic_depth=None if depth is None else depth.probability,
            imagenet=imagenet,
        )
        normalise_stains(model, data, regulariser)
        return model

    def choose_acceleration(
        self, config: TrialConfig, model: Classifier, data: Dataset, execution: Execution, default: Choice
    ) -> Choice:
        """Return the choice of the study's probe, the device's default without one."""
        if config.evaluation.mc_dropout > 0:
            find_dropout(model)  # a network without it has to fail before the training
        return choose_acceleration(config, model, data, execution, device=model.mean.device, precision=default.dtype)

    @contextmanager
    def open_learner(
        self, model: Classifier, data: Dataset, config: TrialConfig, choice: Choice, execution: Execution
    ) -> Iterator[Learner]:
        """Yield the learner; shifted validation images are kept until the context ends."""
        opened: AbstractContextManager[Callable[[], dict[str, float]] | None] = nullcontext()
        if reads_shifted_validation(config.training):
            opened = open_shifted_validation(
                model, data, config.evaluation, execution=execution, precision=choice.dtype
            )
        with opened as validate_shifted:
            yield ClassificationLearner(model, data, config, choice, validate_shifted=validate_shifted)

    def predict(
        self, model: Classifier, images: ImageSet, config: TrialConfig, choice: Choice, execution: Execution
    ) -> None:
        """Run the forward passes of the evaluation, those of MC dropout included."""
        scores = build_model_scores(model, mc_dropout=config.evaluation.mc_dropout, seed=0)
        feed = ImageFeed(images, model.mean.device)
        size = execution.evaluation_batch_size
        predict_each(model, feed, [keep], batch_size=size, precision=choice.dtype, scores=scores)

    def evaluate(self, trained: Trained, on_progress: OnProgress) -> dict[str, Any]:
        """Write predictions, detection, representation and attribution; return their part of ``result.json``."""
        model, data, config, folder = trained.model, trained.data, trained.config, trained.folder
        execution, precision = trained.execution, trained.choice.dtype
        shifts, left_out = choose_shifts(data, config.evaluation)
        of_validation, left_out_of_validation = choose_validation_shifts(data, config.evaluation)
        evaluate_model(
            model,
            data,
            config.evaluation,
            folder=folder,
            execution=execution,
            precision=precision,
            on_progress=on_progress,
        )
        sets = [load_predictions(folder, name) for name in ("val", "test", *data.external)]
        strengths = {f"{shift.name}/{shift.severity}": shift.strength for shift in (*shifts, *of_validation)}
        ordinal, ece_bins, maps = config.data.ordinal, config.evaluation.ece_bins, config.evaluation.label_maps
        evaluation = summarise_predictions(sets, strengths=strengths, ece_bins=ece_bins, ordinal=ordinal)
        views = summarise_views(
            sets, data.classes, maps, per_class=config.evaluation.per_class, ece_bins=ece_bins, ordinal=ordinal
        )
        names = list_sets(data, config.evaluation)
        roles = {name: config.evaluation.find_role(name) for name in (*data.external, *data.ood)}
        detection = summarise_detection(folder, names, scores=config.evaluation.confidence_scores, roles=roles)
        save_detection(folder, detection)
        attribution = evaluate_attribution(
            model, trained.build_network, data, config, folder=folder, execution=execution
        )
        initial = trained.build_initial() if config.evaluation.representation.layers else None
        found = describe_representation(model, initial, data, config.evaluation, folder, execution, precision)
        undefined = evaluation.undefined | views.undefined | attribution.undefined | left_out | left_out_of_validation
        return {
            "metrics": evaluation.metrics | views.metrics | detection.metrics | attribution.metrics | found.metrics,
            "validation_fit": evaluation.validation_fit,
            "classes": list(data.classes),
            "label_maps": views.label_maps,
            "evaluations": evaluation.rows,
            "undefined": undefined | found.undefined,
            "files": [
                DETECTION,
                REPRESENTATION,
                *(f"predictions/{name}.npz" for name in names),
                *([] if config.evaluation.attribution is None else [ATTRIBUTION]),
            ],
        }

    def count_passes(self, data: Dataset, config: TrialConfig) -> int:
        """Return the number of images that an evaluation predicts beside test and validation images, shifted or not."""
        evaluation, test = config.evaluation, data.splits["test"]
        number = sum(len(each) for each in (data.external | data.ood).values())
        if evaluation.representation.layers:
            number += 2 * min(len(test), evaluation.representation.num_images)  # of two networks
        if "train" in evaluation.store_features:
            number += len(data.splits["train"])
        return number + count_passes(evaluation.attribution)

    def count_stored_bytes(self, data: Dataset, config: TrialConfig, model: Classifier, *, num_shifts: int) -> int:
        """Return the size of logits (float32) and features (float16) in bytes, shifted validation images aside."""
        stored, num_test = config.evaluation.store_features, len(data.splits["test"])
        sets = {name: len(data.splits[name]) for name in ("train", "val", "test")}
        sets |= {kind: sum(map(len, each.values())) for kind, each in (("external", data.external), ("ood", data.ood))}
        with_features = sum(number for name, number in sets.items() if name in stored)
        with_features += num_test * num_shifts * ("shifts" in stored)
        with_logits = sum(number for name, number in sets.items() if name != "train" or name in stored)
        return 2 * model.num_features * with_features + 4 * data.num_classes * (with_logits + num_test * num_shifts)


def normalise_stains(model: Classifier, data: Dataset, regulariser: RegulariserConfig) -> None:
    """Make stain normalisation part of a network, if the regulariser has it.

    Raises:
        ConfigError: images are not of three channels.
    """
    stain = find_part(regulariser, StainNormalisation)
    if stain is None:
        return
    train = data.splits["train"].images
    check_stainable(train.shape[1])
    model.stain = StainNormaliser(stain.method)
    if stain.target == "training":
        model.stain.fit([torch.from_numpy(train[rows]) for rows in choose_tiles(len(train))])
