"""Configuration of the initial weights: random ones, ImageNet's, or those of a contrastive pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from trainables.frozen import UNHASHED, Fraction, Frozen, PositiveInt, Rate, Weight

#: The upper bound is an assumption: above any sensible layer, and below one that exhausts the memory.
ProjectionSize = Annotated[int, Field(gt=0, le=65_536)]


class ScratchPretraining(Frozen):
    """Random initial weights, the same for all arms of a replicate."""

    kind: Literal["scratch"] = "scratch"


class ImageNetPretraining(Frozen):
    """Supervised ImageNet weights: a file, an installed package, the hub cache, or a download, in this order."""

    kind: Literal["imagenet"] = "imagenet"
    weights: str = Field(
        "default", description="torchvision weights name (IMAGENET1K_V1) or timm tag; default: its, or a package's."
    )
    file: Path | None = Field(None, description="A state dict (.safetensors, .pth).", json_schema_extra=UNHASHED)
    file_sha256: str | None = Field(None, description="Digest of the file or package; filled in by the plan.")
    on_unavailable: Literal["error", "skip"] = Field(
        "error", description="No weights reachable: stop, or leave the arm out loudly.", json_schema_extra=UNHASHED
    )


class ContrastivePretraining(Frozen):
    """SimCLR pretraining on the training split (Chen et al. 2020), from scratch or from ImageNet weights."""

    kind: Literal["contrastive"] = "contrastive"
    method: Literal["simclr"] = Field("simclr", description="Contrastive method: NT-Xent between two views.")
    init: Annotated[ScratchPretraining | ImageNetPretraining, Field(discriminator="kind")] = Field(
        ScratchPretraining(), description="Weights that the pretraining starts from."
    )
    epochs: PositiveInt = Field(100, description="Passes over the training images, without labels.")
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] = Field(
        256, description="Images; each is told apart from the others of its batch."
    )
    learning_rate: Rate = Field(0.06, description="SGD, momentum .9, cosine. .06: lightly’s small-image benchmarks.")
    weight_decay: Weight = Field(1e-4, description="L2 weight decay of SGD, on all weights.")
    temperature: Annotated[float, Field(ge=1e-8)] = Field(
        0.2, description="τ of NT-Xent; lightly refuses less than 1e-8."
    )
    projection_dim: ProjectionSize = Field(128, description="Outputs of the projection head.")
    hidden_dim: ProjectionSize = Field(512, description="Units of the projection head's hidden layer.")
    crop_scale_min: Fraction = Field(0.2, description="Smallest area share of RandomResizedCrop.")
    jitter_strength: float = Field(1.0, ge=0, description="Scales ColorJitter(.4, .4, .4, .1).")
    horizontal_flip: bool = Field(True, description="Off where left and right mean something, as in digits.")
    encoders: PositiveInt | Literal["per_replicate"] = Field(
        1,
        description="Independent pretrainings; replicate r starts from encoder r modulo their number.",
        json_schema_extra=UNHASHED,  # TrialConfig.encoder decides the result
    )


PretrainingConfig = Annotated[
    ScratchPretraining | ImageNetPretraining | ContrastivePretraining, Field(discriminator="kind")
]
