"""Configuration of the contrastive methods and their views, part of a contrastive pretraining.

A method's defaults are its paper's settings; each description names where another number comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainables.frozen import SMALLEST, Frozen, Rate, Weight

#: The upper bound is an assumption: above any sensible layer, and below one that exhausts the memory.
ProjectionSize = Annotated[int, Field(gt=0, le=65_536)]
Temperature = Annotated[float, Field(ge=1e-8, description="τ of the loss; lightly refuses less than 1e-8.")]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Optimiser = Annotated[
    Literal["sgd", "lars"],
    Field(description="With momentum .9; lars scales every layer's step by its norm, for batches of thousands."),
]
WeightDecay = Annotated[
    Weight, Field(description="L2; of sgd on all weights, of lars not on biases and norms, and above 0.")
]
WarmupEpochs = Annotated[Weight, Field(description="In which the rate rises linearly; fewer than epochs. Then cosine.")]


def _with_kind(default: str) -> BeforeValidator:
    """Return the validator by which a bare kind is a mapping, and a mapping without a kind one of the default kind."""

    def expand(value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value}
        return {"kind": default, **value} if isinstance(value, Mapping) else value

    return BeforeValidator(expand)


class SimClr(Frozen):
    """SimCLR (Chen et al. 2020): the other view of an image is told apart from all other views of the batch.

    The optimiser is that of lightly's benchmarks on small images, and batches of 256; the paper has LARS and thousands.
    """

    kind: Literal["simclr"] = "simclr"
    optimiser: Optimiser = "sgd"
    learning_rate: Rate = Field(0.06, description="Of all layers. .06: lightly’s small-image benchmarks.")
    weight_decay: WeightDecay = 1e-4
    warmup_epochs: WarmupEpochs = 0.0
    temperature: Temperature = 0.2
    projection_dim: ProjectionSize = Field(128, description="Outputs of the projection head.")
    hidden_dim: ProjectionSize = Field(512, description="Units of the projection head's hidden layer.")


class MoCo(Frozen):
    """MoCo v2 (Chen et al. 2020b): a view is told apart from a queue of earlier batches' keys of a momentum encoder."""

    kind: Literal["moco"] = "moco"
    optimiser: Optimiser = "sgd"
    learning_rate: Rate = Field(0.03, description="Of all layers. .03: MoCo v2, batches of 256.")
    weight_decay: WeightDecay = 1e-4
    warmup_epochs: WarmupEpochs = 0.0
    temperature: Temperature = 0.2
    projection_dim: ProjectionSize = Field(128, description="Outputs of the projection head.")
    hidden_dim: ProjectionSize = Field(2048, description="Units of the projection head's hidden layer.")
    queue_size: Annotated[int, Field(gt=0, le=2**20)] = Field(
        65_536, description="Keys of earlier images, told apart from; at most half as many as training images."
    )
    momentum: Momentum = Field(0.999, description="Share of the old weights that the momentum encoder keeps per step.")
    batch_norm_groups: Annotated[int, Field(gt=0, le=1024)] = Field(
        8,
        description="Sub-batches with batch statistics of their own, among which keys are shuffled: MoCo's 8 GPUs, on "
        "one device. 1: none.",
    )


class Byol(Frozen):
    """BYOL (Grill et al. 2020): a view predicts what a slowly moving average of the network makes of the other view."""

    kind: Literal["byol"] = "byol"
    optimiser: Optimiser = "lars"
    learning_rate: Rate = Field(0.2, description="Of all layers. .2 per 256 images of a batch: BYOL, section 3.2.")
    weight_decay: WeightDecay = 1.5e-6
    warmup_epochs: WarmupEpochs = 10.0
    momentum: Momentum = Field(
        0.996, description="Share of the old weights that the target keeps in the first step; a cosine up to 1."
    )
    projection_dim: ProjectionSize = Field(256, description="Outputs of the projection head and of the predictor.")
    hidden_dim: ProjectionSize = Field(4096, description="Units of the hidden layers of both.")


class MoCoViews(Frozen):
    """MoCo v2's views: crop, flip, colour jitter .8, greyscale .2, Gaussian blur .5 (Chen et al. 2020b)."""

    kind: Literal["moco"] = "moco"
    jitter_strength: float = Field(1.0, ge=0, description="Scales ColorJitter(.4, .4, .4, .1).")


class NoColourViews(Frozen):
    """MoCo v2's views without saturation, hue and greyscale: for grey images, and stains whose colour has a meaning."""

    kind: Literal["no_colour"] = "no_colour"
    jitter_strength: float = Field(1.0, ge=0, description="Scales the jitter of brightness and contrast, both .4.")


class StrongViews(Frozen):
    """Crop, flip and a strong policy (Pohjonen et al. 2022), as in ``augmentation: strong``."""

    kind: Literal["strong"] = "strong"
    policy: Literal["strong-v0.1.0", "strong-v1"] = Field(
        "strong-v0.1.0", description="strong-v1: the first release, with affine operations, 2 to 5 per image."
    )
    strength: Annotated[float, Field(ge=SMALLEST, le=1.0)] = Field(
        1.0, description="Scales the policy: towards 0 no change, 1 as published."
    )


Method = Annotated[SimClr | MoCo | Byol, Field(discriminator="kind"), _with_kind("simclr")]
Views = Annotated[MoCoViews | NoColourViews | StrongViews, Field(discriminator="kind"), _with_kind("moco")]


def find_long_queue(method: Method, num_images: int) -> str | None:
    """Return what is wrong with MoCo's queue for so many training images; None if nothing is.

    Images come in another order in every epoch, so that the last view of an image is among Q of N keys with probability
    ½(Q/N)²: a queue of half of the images makes one in eight images a negative of itself, a longer one more.
    """
    if not isinstance(method, MoCo) or 2 * method.queue_size <= num_images:
        return None
    return (
        f"pretraining.method.queue_size: found {method.queue_size:,} keys for {num_images:,} training images, so that "
        "many images would be told apart from older views of themselves; expected at most half of the images: "
        f"{num_images // 2:,} or fewer (MoCo v2's 65,536 are a twentieth of ImageNet)"
    )


def find_small_groups(num_images: int, num_groups: int) -> str | None:
    """Return what is wrong with so many groups of a batch (``MoCo.batch_norm_groups``); None if nothing is."""
    if num_images >= 2 * num_groups:
        return None
    return (
        f"pretraining.batch_size: found {num_images} images in a batch, and method.batch_norm_groups: {num_groups}, so "
        f"that a group would have batch statistics of one image; expected {2 * num_groups} images or more, or fewer "
        "groups"
    )
