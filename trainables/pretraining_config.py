"""Configuration of the initial weights: random ones, ImageNet's, or those of a contrastive pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.contrastive_config import Method, MoCoViews, SimClr, Views
from trainables.frozen import UNHASHED, Fraction, Frozen, PositiveInt


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
    """Pretraining on two views of every image of the training split, without labels, from any weights."""

    kind: Literal["contrastive"] = "contrastive"
    method: Method = Field(SimClr(), description="What is asked of the two views, and how weights are updated.")
    init: Annotated[ScratchPretraining | ImageNetPretraining, Field(discriminator="kind")] = Field(
        ScratchPretraining(), description="Weights that the pretraining starts from."
    )
    epochs: PositiveInt = Field(200, description="Passes over the training images, without labels. 200: MoCo v2.")
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] = Field(
        256, description="Images; simclr tells each apart from the others of its batch."
    )
    micro_batch_size: Annotated[int, Field(ge=2, lt=2**31)] | None = Field(
        None,
        description="Images whose activations are held at once; the gradient is still that of the batch, but batch "
        "statistics are those of the part. none: all.",
    )
    views: Views = Field(MoCoViews(), description="What two views of an image differ in, after crop and flip.")
    crop_scale_min: Fraction = Field(0.2, description="Smallest area share of RandomResizedCrop. .2: MoCo v2.")
    horizontal_flip: bool = Field(True, description="Off where left and right mean something, as in digits.")
    encoders: PositiveInt | Literal["per_replicate"] = Field(
        1,
        description="Independent pretrainings; replicate r starts from encoder r modulo their number.",
        json_schema_extra=UNHASHED,  # TrialConfig.encoder decides the result
    )

    @model_validator(mode="after")
    def _reaches_its_rate(self) -> ContrastivePretraining:
        if self.method.warmup_epochs >= self.epochs:
            raise ValueError(
                f"method.warmup_epochs: found {self.method.warmup_epochs:g} of {self.epochs} epochs, which never train "
                "at method.learning_rate; expected fewer"
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size: found {self.micro_batch_size}, more than the {self.batch_size} of batch_size; "
                "expected fewer, or none"
            )
        return self


PretrainingConfig = Annotated[
    ScratchPretraining | ImageNetPretraining | ContrastivePretraining, Field(discriminator="kind")
]
