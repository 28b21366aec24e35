"""Configuration of a trial's network: which one, how much of it, and its adaptation to small or grey images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainables.frozen import Frozen, ImageSize, PositiveInt

#: Side of images (px) below which a stem that divides by four leaves too little: MedMNIST and CIFAR practice.
SMALL_STEM_BELOW_PX = 48


class ModelConfig(Frozen):
    """Network of a trial, and its adaptation to small or grey images."""

    name: str = Field(
        "resnet18", description="torchvision model, or timm/<name>; of volumes monai/unet, or monai/residual_unet."
    )
    stages: PositiveInt | None = Field(
        None, description="First stages that are kept, with average pooling after them; none: the whole network."
    )
    stem: Literal["auto", "original", "small"] = Field(
        "auto", description="small: first convolution with stride 1, no max-pool after it; auto: small below 48 px."
    )
    input_size: ImageSize | None = Field(
        None, description="Images are upscaled to this side (px) on the device; none: what the model needs."
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = Field(
        "auto",
        description="auto: channels_last on GPUs and for networks with depthwise convolutions, else contiguous "
        "(execution.acceleration: probe: the faster).",
    )
