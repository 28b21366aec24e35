"""Configuration of a trial's network: which one, and its adaptation to small or grey images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainables.frozen import Frozen, ImageSize


class ModelConfig(Frozen):
    """Network of a trial, and its adaptation to small or grey images."""

    name: str = Field("resnet18", description="torchvision model, or timm/<name>.")
    stem: Literal["auto", "original", "small"] = Field(
        "auto", description="small: first convolution with stride 1, no max-pool after it; auto: small below 48 px."
    )
    input_size: ImageSize | None = Field(
        None, description="Images are upscaled to this side (px) on the device; none: what the model needs."
    )
