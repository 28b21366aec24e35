"""Trained network exported to a folder and rebuilt without its study: safetensors and JSON, no pickle.

    model.safetensors   the weights, byte for byte those of the trial
    config.json         architecture, image size and channels, normalisation, classes, a self-test, provenance

``load_exported(folder)`` returns a module that takes uint8 images and returns logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor, nn

from trainables.confidence_config import ConfidenceConfig, NoConfidence
from trainables.config import TrialConfig
from trainables.data.decoding.files import decode_file
from trainables.data.decoding.pixels import PixelSpec, build_pixel_spec
from trainables.errors import CheckpointError, ConfigError, DataError
from trainables.frozen import Frozen, ImageSize, PositiveInt
from trainables.model_config import ModelConfig
from trainables.models.confidence import add_confidence
from trainables.models.model_scores import build_model_scores
from trainables.models.networks import Classifier, build_model
from trainables.ops.stain_normalisation import StainNormaliser
from trainables.regularisers import Dropout, StainNormalisation, StochasticDepth, find_part
from trainables.storage.checkpoint import load_weights, restore_module
from trainables.storage.folder import Folder

WEIGHTS, CONFIG = "model.safetensors", "config.json"
#: Accepted difference between logits of the self-test, relative to the largest one. Another version of a library or
#: another CPU rounds differently (1e-6); another stem or input size changes them by half, another normalisation by a
#: tenth.
SELF_TEST_TOLERANCE = 1e-3


class Architecture(Frozen):
    """Settings from which the network is built."""

    name: str = Field(description="torchvision model, or timm/<name>.")
    stages: PositiveInt | None = Field(None, description="First stages that are kept; none: the whole network.")
    stem: Literal["auto", "original", "small"]
    input_size: ImageSize | None
    dropout: float
    stochastic_depth: float | None
    stain_normalisation: Literal["macenko", "reinhard"] | None = Field(description="Done first, inside the network.")
    confidence: ConfidenceConfig = Field(NoConfidence(), description="Learned beside the classes (rate_confidence).")


class Images(Frozen):
    """Format of the network's input: uint8, n × channels × size × size."""

    size_px: ImageSize
    channels: Literal[1, 3] = Field(description="1 grey, 3 RGB.")
    resize: Literal["crop", "squash", "pad"] = Field(description="How files are brought to that size.")
    max_megapixels: float
    window: tuple[float, float] | None = Field(None, description="Centre and width of files of more than 8 bits.")
    scale: Literal["minmax", "percentile"] | None = Field(None, description="Of such files, instead of a window.")
    frame: PositiveInt | Literal["middle"] | None = Field(None, description="Of files that hold several images.")


class Normalisation(Frozen):
    """Preprocessing inside the network before its first layer: (x / 255 − mean) / std, then resizing."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    network_size_px: PositiveInt


class SelfTest(Frozen):
    """Logits of two synthetic images (``make_test_images``) in float32 on a CPU; a rebuilt network must return them."""

    logits: tuple[tuple[float, ...], ...]


class ExportedConfig(Frozen):
    """The content of ``config.json``."""

    format: Literal["robustsweep-model-1"] = "robustsweep-model-1"
    architecture: Architecture
    images: Images
    normalisation: Normalisation
    classes: tuple[str, ...] = Field(description="In the order of the logits.")
    weights_sha256: str
    self_test: SelfTest
    provenance: dict[str, JsonValue]


class ImageClassifier(nn.Module):
    """Module from uint8 images to logits, preprocessing included, for export, serving and comparison.

    Args:
        network: network with its normalisation.
        config: content of ``config.json``.
    """

    def __init__(self, network: Classifier, config: ExportedConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    def forward(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n classes"]:
        """Return the logits; softmax gives the confidences, ``config.classes`` their names."""
        logits: Tensor = self.network(self.network.normalise(images))
        return logits

    @torch.inference_mode()
    def rate_confidence(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, " n"]:
        """Return the learned confidence, in [0, 1], of a network that was trained with one (``training.confidence``).

        Raises:
            ConfigError: the network has none; use softmax of the logits.
        """
        scores = build_model_scores(self.network, mc_dropout=0, seed=0)
        if scores is None:
            raise ConfigError(
                "rate_confidence: this network was trained without training.confidence and has no confidence of its "
                "own; expected the largest softmax of its logits to be used instead"
            )
        return scores.forward(self.network.normalise(images))[2].squeeze(1).sigmoid()

    def decode_image(self, path: Path | str) -> UInt8[Tensor, "1 c h w"]:
        """Return an image file as input of the network, with channels and size converted as in training.

        Raises:
            DataError: the file is no usable image.
        """
        images = self.config.images
        spec = PixelSpec(
            images.size_px,
            images.channels,
            images.resize,
            images.max_megapixels,
            window=images.window,
            scale=images.scale,
            frame=images.frame,
        )
        try:
            return torch.from_numpy(np.array(decode_file(Path(path), spec)[0]))[None]
        except DataError as error:
            raise DataError(f"{path} {error}") from error


def make_test_images(images: Images) -> UInt8[Tensor, "2 c h w"]:
    """Return the images of the self-test, which never change: a diagonal ramp and a checkerboard on a ramp."""
    index = torch.arange(images.size_px)
    row, column = index[:, None], index[None, :]
    ramp = (row + column) * 128 // images.size_px
    board = (row // 3 + column // 3) % 2 * 120 + column * 128 // images.size_px
    channels = [torch.stack([ramp, board]) + 60 * channel for channel in range(images.channels)]
    return (torch.stack(channels, dim=1) % 256).to(torch.uint8)


def build_exported(
    trial: Folder, config: TrialConfig, *, classes: tuple[str, ...], provenance: Mapping[str, Any]
) -> ImageClassifier:
    """Return the network of a finished trial, on the CPU, in evaluation mode; ``write_exported`` writes it.

    Args:
        trial: folder of the trial.
        config: configuration of the trial.
        classes: class names in the order of the logits.
        provenance: origin of the network, as JSON values.

    Raises:
        CheckpointError: the weights are damaged or do not fit this config.
        StorageError: the weights are missing.
    """
    dropout, depth = find_part(config.regulariser, Dropout), find_part(config.regulariser, StochasticDepth)
    stain = find_part(config.regulariser, StainNormalisation)
    architecture = Architecture(
        name=config.model.name,
        stages=config.model.stages,
        stem=config.model.stem,
        input_size=config.model.input_size,
        dropout=0.0 if dropout is None else dropout.probability,
        stochastic_depth=None if depth is None else depth.probability,
        stain_normalisation=None if stain is None else stain.method,
        confidence=config.training.confidence,
    )
    data = config.data
    pixels = asdict(build_pixel_spec(data))
    images = Images(size_px=pixels.pop("image_size"), **pixels)
    network = _build(architecture, images, num_classes=len(classes))
    restore_module(network, load_weights(trial, WEIGHTS)[0], origin=f"{WEIGHTS} in {trial.uri}")
    exported = ExportedConfig(
        architecture=architecture,
        images=images,
        normalisation=Normalisation(
            mean=tuple(network.mean.flatten().tolist()),
            std=tuple(network.std.flatten().tolist()),
            network_size_px=network.input_size,
        ),
        classes=classes,
        weights_sha256=trial.sha256(WEIGHTS),
        self_test=SelfTest(logits=_answer_self_test(network, images)),
        provenance=dict(provenance),
    )
    return ImageClassifier(network, exported).eval()


def write_exported(trial: Folder, out: Folder, model: ImageClassifier) -> None:
    """Write ``config.json`` and ``model.safetensors``, a copy of the trial's, into ``out``.

    Raises:
        StorageError: the storage refused a write.
    """
    out.write_json(CONFIG, model.config.model_dump(mode="json"))  # first: it marks the folder as an export
    out.write(WEIGHTS, trial.read(WEIGHTS))


def load_exported(folder: Folder | Path | str) -> ImageClassifier:
    """Return the network in a folder that ``robustsweep select`` wrote, on the CPU, in evaluation mode.

    Nothing is unpickled, and only this package's networks are built. The network has to pass the self-test first.

    Raises:
        CheckpointError: a file is damaged, or was written by a version whose networks differ.
        StorageError: a file is missing.
        ConfigError: the installed torchvision or timm does not have the network.
    """
    place = folder if isinstance(folder, Folder) else Folder(folder)
    config = _read_config(place)
    found = place.sha256(WEIGHTS)
    if found != config.weights_sha256:
        raise CheckpointError(
            f"read {WEIGHTS} in {place.uri}: its checksum is {found}, {CONFIG} says {config.weights_sha256}; "
            "export it again with `robustsweep select`"
        )
    network = _build(config.architecture, config.images, num_classes=len(config.classes))
    restore_module(network, load_weights(place, WEIGHTS)[0], origin=f"{WEIGHTS} in {place.uri}")
    normalisation = config.normalisation
    # The stored values, whatever the installed libraries use for this network.
    network.mean.copy_(torch.tensor(normalisation.mean).view(1, -1, 1, 1))
    network.std.copy_(torch.tensor(normalisation.std).view(1, -1, 1, 1))
    network.input_size = normalisation.network_size_px
    _check_self_test(network, config, place)
    return ImageClassifier(network, config).eval()


def _read_config(folder: Folder) -> ExportedConfig:
    try:
        return ExportedConfig.model_validate(folder.read_json(CONFIG))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"read {CONFIG} in {folder.uri}: {key}: {first['msg']}, and {error.error_count() - 1} further problems; "
            "expected a file that `robustsweep select` of this version wrote: export it again"
        ) from error


def _build(architecture: Architecture, images: Images, *, num_classes: int) -> Classifier:
    """Return the network with random weights; the caller's random state does not change."""
    model = ModelConfig(
        name=architecture.name,
        stages=architecture.stages,
        stem=architecture.stem,
        input_size=architecture.input_size,
    )
    with torch.random.fork_rng(devices=[]):
        network = build_model(
            model,
            num_classes=num_classes,
            channels=images.channels,
            image_size=images.size_px,
            dropout=architecture.dropout,
            stochastic_depth=architecture.stochastic_depth,
        )
    if architecture.stain_normalisation is not None:
        network.stain = StainNormaliser(architecture.stain_normalisation)
    add_confidence(network, architecture.confidence, seed=0)
    return network


@torch.inference_mode()
def _answer_self_test(network: Classifier, images: Images) -> tuple[tuple[float, ...], ...]:
    network.eval()
    logits = network(network.normalise(make_test_images(images)))
    return tuple(tuple(row) for row in logits.tolist())


def _check_self_test(network: Classifier, config: ExportedConfig, folder: Folder) -> None:
    expected = np.array(config.self_test.logits)
    found = np.array(_answer_self_test(network, config.images))
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= SELF_TEST_TOLERANCE * float(np.abs(expected).max()):
        raise CheckpointError(
            f"rebuilt {config.architecture.name} from {folder.uri} and gave it the self-test: its logits differ by "
            f"{difference:.3g} from those in {CONFIG}, expected at most {SELF_TEST_TOLERANCE:g} of the largest one; "
            f"the library builds another network today: install the versions of {CONFIG} (provenance.versions)"
        )
