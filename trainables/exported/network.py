"""Common part of the exported networks of all tasks: a module from uint8 images to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from trainables.data.dataset import ImageSet
from trainables.data.decoding.files import decode_file
from trainables.data.decoding.pixels import PixelSpec
from trainables.errors import ConfigError, DataError
from trainables.evaluation.classification import Metrics
from trainables.exported.check import Check
from trainables.exported.form import ExportedConfig, Images, make_test_images
from trainables.models.networks import Classifier
from trainables.storage.folder import Folder


@dataclass(frozen=True)
class NewEvaluation:
    """Evaluation of a network on images that its study did not have."""

    #: Name in the table of metrics → value, and why others are undefined.
    metrics: Metrics
    #: Numbers of cases, and of those that were missed, invented or empty.
    counts: dict[str, int]
    #: Detector → share of the images that are below its threshold of validation.
    flagged: dict[str, float]
    #: Column → a value of every image: its set, id and site, and what was measured on it; NaN where undefined.
    cases: dict[str, list[Any]]


class ExportedNetwork(nn.Module, ABC):
    """Module from uint8 images to logits, preprocessing included, for export, serving and comparison.

    Args:
        network: network with its normalisation.
        config: content of ``config.json``.
    """

    #: Kind of network in the words of model hubs.
    pipeline_tag: ClassVar[str]
    #: Lines of Python that use it, with ``{channels}`` and ``{size}``.
    usage: ClassVar[str]
    #: What it does with an image, in words that come before its classes.
    purpose: ClassVar[str]

    def __init__(self, network: Classifier, config: ExportedConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    @staticmethod
    @abstractmethod
    def build_network(config: ExportedConfig) -> Classifier:
        """Return the network with random weights drawn from torch's global generator.

        Raises:
            ConfigError: the installed libraries do not have it.
        """

    @abstractmethod
    def choose_checked(self, test: ImageSet) -> np.ndarray:
        """Return the rows of the test images on which networks are compared, evenly spaced over the set."""

    @abstractmethod
    def compare_stored(self, trial: Folder, test: ImageSet, rows: np.ndarray, *, precision: str) -> Check:
        """Return a check against the predictions that the trial stored.

        Args:
            trial: folder of the trial.
            test: its test images, with the ids that were stored.
            rows: of ``choose_checked``.
            precision: key of ``check.TOLERANCES``: that in which the trial computed.

        Raises:
            CheckpointError: they differ too much.
            DataError: predictions of other images are stored.
            StorageError: they are missing or damaged.
        """

    @abstractmethod
    def evaluate(self, sets: Sequence[ImageSet], classes: Sequence[str], *, data_set: str | None) -> NewEvaluation:
        """Return metrics over all images of some sets together, and of every image.

        Args:
            sets: sets of one data set, of the network's size and channels.
            classes: its classes.
            data_set: data set of the network's study among whose classes pixels are told apart; None: all classes.

        Raises:
            ConfigError: its classes are not those of the network, or there is no such data set.
        """

    @abstractmethod
    def sample_logits(self, logits: Tensor) -> Float32[Tensor, "n values"]:
        """Return the logits of the self-test that are kept in ``config.json``."""

    def list_notes(self) -> list[str]:
        """Return what a user has to know of this network, as sentences."""
        return []

    @torch.inference_mode()
    def answer_self_test(self) -> tuple[tuple[float, ...], ...]:
        """Return the logits of the self-test's images."""
        self.eval()
        logits = self(make_test_images(self.config.images))
        return tuple(tuple(row) for row in self.sample_logits(logits).tolist())

    @property
    def reference(self) -> dict[str, Tensor]:
        """Tensors of ``reference.safetensors``; empty if there is no such file."""
        return {}

    def decode_image(self, path: Path | str) -> UInt8[Tensor, "1 c h w"]:
        """Return an image file as input of the network, with channels and size converted as in training.

        Raises:
            DataError: the file is no usable image.
        """
        try:
            return torch.from_numpy(np.array(decode_file(Path(path), _build_spec(self.config.images))[0]))[None]
        except DataError as error:
            raise DataError(f"{path} {error}") from error


def _build_spec(images: Images) -> PixelSpec:
    return PixelSpec(
        images.size_px,
        images.channels,
        images.resize,
        images.max_megapixels,
        window=images.window,
        scale=images.scale,
        frame=images.frame,
    )


def list_images(sets: Sequence[ImageSet]) -> dict[str, list[Any]]:
    """Return the columns of ``NewEvaluation.cases`` that say which image it is."""
    return {
        "set": [images.name for images in sets for _ in range(len(images))],
        "id": [str(name) for images in sets for name in images.ids],
        "site": [str(site) for images in sets for site in images.sites],
    }


def check_classes(found: Sequence[str], expected: Sequence[str]) -> None:
    """Check that images have the classes of a network, in whatever order.

    Raises:
        ConfigError: they have others.
    """
    if sorted(found) != sorted(expected):
        raise ConfigError(
            f"evaluated images with the classes {', '.join(found)} by a network of {', '.join(expected)}; expected the "
            "same names: give them in a file of data settings (label_map, mask_values or foreground)"
        )


def spread_rows(number: int, most: int) -> np.ndarray:
    """Return at most ``most`` rows of ``number``, evenly spaced and with both ends."""
    return np.unique(np.linspace(0, number - 1, min(most, number)).round().astype(np.int64))


def check_ids(stored: np.ndarray, test: ImageSet, origin: str) -> None:
    """Check that a file holds predictions of the test images that are here.

    Raises:
        DataError: its ids are others.
    """
    if not np.array_equal(stored, test.ids.astype(np.str_)):
        raise DataError(
            f"compared the test images here with those in {origin} and found other ids, expected the same: restore the "
            "data, or run the study again"
        )
