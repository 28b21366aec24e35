"""The content of ``config.json`` of an exported network, and the images of its self-test."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import UInt8
from pydantic import Field, JsonValue
from torch import Tensor

from trainables.confidence_config import ConfidenceConfig, NoConfidence
from trainables.frozen import Frozen, ImageSize, PositiveInt
from trainables.task_config import ClassificationTask, TaskConfig


class Architecture(Frozen):
    """Settings from which the network is built, beside those of its task."""

    name: str = Field(description="torchvision model, or timm/<name>; of a segmentation its encoder.")
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
    network_size_px: int = Field(ge=0, description="Side to which images are resized; 0: they are left as they are.")


class SelfTest(Frozen):
    """Logits of two synthetic images (``make_test_images``) in float32 on a CPU; a rebuilt network must return them."""

    logits: tuple[tuple[float, ...], ...]


class Pixels(Frozen):
    """Facts about the masks of a segmentation, and about its training images."""

    data_sets: tuple[str, ...] = Field(description="Data sets that the network was made for; one may have no name.")
    annotated: dict[str, tuple[int, ...]] = Field(
        description="Data set -> classes that its masks tell apart; empty if all tell all."
    )
    counted_share: float = Field(
        ge=0.0,
        le=1.0,
        description="Share of the pixels of training images that have a class. Of the others (outside a field of view, "
        "borders, not annotated) nothing was learned.",
    )
    thresholds: dict[str, float] = Field(
        description="Detector -> confidence below which an image counts as foreign: 95 % of validation images are "
        "above it."
    )


class ExportedConfig(Frozen):
    """The content of ``config.json``."""

    format: Literal["robustsweep-model-1"] = "robustsweep-model-1"
    task: TaskConfig = Field(ClassificationTask(), description="Of a segmentation: decoder, windows, tolerance, band.")
    architecture: Architecture
    images: Images
    normalisation: Normalisation
    classes: tuple[str, ...] = Field(description="In the order of the logits.")
    pixels: Pixels | None = Field(None, description="Of segmentations.")
    ece_bins: PositiveInt = Field(15, description="Bins of the calibration error, as in the study.")
    weights_sha256: str
    self_test: SelfTest
    provenance: dict[str, JsonValue]


def make_test_images(images: Images) -> UInt8[Tensor, "2 c h w"]:
    """Return the images of the self-test, which never change: a diagonal ramp and a checkerboard on a ramp."""
    index = torch.arange(images.size_px)
    row, column = index[:, None], index[None, :]
    ramp = (row + column) * 128 // images.size_px
    board = (row // 3 + column // 3) % 2 * 120 + column * 128 // images.size_px
    channels = [torch.stack([ramp, board]) + 60 * channel for channel in range(images.channels)]
    return (torch.stack(channels, dim=1) % 256).to(torch.uint8)
