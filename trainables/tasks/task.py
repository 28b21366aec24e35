"""The contract of a task, which the run of a trial is written against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier
from trainables.pretraining_config import PretrainingConfig
from trainables.regularisers import RegulariserConfig
from trainables.storage.folder import Folder
from trainables.training.acceleration import Choice
from trainables.training.loop import Learner

#: Function that builds a network on the CPU for a model, initial weights, data and a regulariser.
BuildNetwork = Callable[[ModelConfig, PretrainingConfig, Dataset, RegulariserConfig], Classifier]
#: Callback with the numbers of finished and of all passes over a set of images.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """A trained network, and what its evaluation needs."""

    model: Classifier
    data: Dataset
    config: TrialConfig
    choice: Choice
    #: Folder of the trial, where all files are written.
    folder: Folder
    execution: Execution
    build_network: BuildNetwork
    #: Return the network with the weights from which the training started.
    build_initial: Callable[[], Classifier]


class Task(Protocol):
    """Form, training and evaluation of a network that predicts one kind of thing."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Headline numbers that a trial reports when it is evaluated, for whoever watches."""

    def check(self, config: TrialConfig, data: Dataset) -> None:
        """Check settings of the trial against its data, before anything is trained.

        Raises:
            ConfigError: they do not fit.
        """

    def take_inputs(self, images: UInt8[np.ndarray, "n c *space"]) -> UInt8[np.ndarray, "n c *seen"]:
        """Return what of stored images the network sees at once: all of them, of volumes a patch."""

    def build_network(
        self, config: ModelConfig, data: Dataset, regulariser: RegulariserConfig, imagenet: Mapping[str, Tensor] | None
    ) -> Classifier:
        """Return the network for ``data`` on the CPU, with published weights if they are given, else random ones.

        Raises:
            ConfigError: the network does not fit the data, the regulariser or the weights.
        """

    def choose_acceleration(
        self, config: TrialConfig, model: Classifier, data: Dataset, execution: Execution, default: Choice
    ) -> Choice:
        """Return memory format, precision and compiling of the trial."""

    def open_learner(
        self, model: Classifier, data: Dataset, config: TrialConfig, choice: Choice, execution: Execution
    ) -> AbstractContextManager[Learner]:
        """Return the context of what the training loop runs."""

    def predict(
        self, model: Classifier, images: ImageSet, config: TrialConfig, choice: Choice, execution: Execution
    ) -> None:
        """Run the forward passes of the evaluation on a set, for their time; the results are thrown away."""

    def count_passes(self, data: Dataset, config: TrialConfig) -> int:
        """Return the number of images that an evaluation predicts beside test and validation images, shifted or not."""

    def count_stored_bytes(self, data: Dataset, config: TrialConfig, model: Classifier, *, num_shifts: int) -> int:
        """Return the size in bytes of the predictions that a trial stores.

        Args:
            data: data set.
            config: config of the trial.
            model: its network.
            num_shifts: number of shifts × severities of the test images.
        """

    def evaluate(self, trained: Trained, on_progress: OnProgress) -> dict[str, Any]:
        """Write the files of the evaluation; return its part of ``result.json``.

        With the keys ``metrics`` (headline number → value), ``undefined`` (headline number → reason), ``evaluations``
        (rows of set × shift × severity) and ``files`` (names of the written files).
        """
