"""Configuration of the augmentation policies, part of a trial's description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainables.frozen import SET_ONLY, Fraction, Frozen

#: Of operations or chains. The upper bound is an assumption: far above the papers' numbers; time grows with it.
Count = Annotated[int, Field(gt=0, le=1000)]

Strength = Annotated[Fraction, Field(description="Scales the policy: 0 is no change, 1 as published.")]


class Augmentation(Frozen):
    """Base of all augmentations: RandomResizedCrop → flips → policy → normalise → RandomErasing (StrongAugment)."""

    crop_scale_min: Fraction | None = Field(None, description="Smallest area share of RandomResizedCrop; none: off.")
    horizontal_flip: bool = Field(False, description="Mirrors left and right with probability ½.")
    vertical_flip: bool = Field(False, description="Mirrors top and bottom with probability ½.")
    slice_flip: bool = Field(
        False, description="Reverses the slices of volumes with probability ½.", json_schema_extra=SET_ONLY
    )
    erasing: Fraction = Field(0.0, description="Probability of RandomErasing.")


class NoAugmentation(Augmentation):
    """No photometric policy."""

    kind: Literal["none"] = "none"


class RandAugment(Augmentation):
    """RandAugment (Cubuk et al. 2020); strength scales the magnitude, 1 is ``magnitude``."""

    kind: Literal["randaugment"] = "randaugment"
    num_ops: Count = Field(2, description="Operations per image, one after the other.")
    magnitude: int = Field(9, ge=0, le=30, description="Of 31 bins, torchvision's default.")
    strength: Strength = 1.0


class TrivialAugment(Augmentation):
    """TrivialAugment Wide (Müller & Hutter 2021); strength scales the largest magnitude."""

    kind: Literal["trivialaugment"] = "trivialaugment"
    strength: Strength = 1.0


class AugMix(Augmentation):
    """AugMix (Hendrycks et al. 2020) without its consistency loss; strength scales the magnitudes."""

    kind: Literal["augmix"] = "augmix"
    severity: int = Field(3, ge=1, le=10, description="Largest level of an operation, of 10.")
    width: Count = Field(3, description="Number of chains.")
    max_depth: Count = Field(3, description="A chain has 1 to this many operations.")
    strength: Strength = 1.0


class StrongAugmentation(Augmentation):
    """A policy of StrongAugment (Pohjonen et al. 2022); strength 0 is exactly no change."""

    kind: Literal["strong"] = "strong"
    policy: Literal["strong-v0.1.0", "strong-v1"] = Field(
        "strong-v0.1.0", description="strong-v1: the first release, with affine operations, 2 to 5 per image."
    )
    strength: Strength = 1.0


AugmentationConfig = Annotated[
    NoAugmentation | RandAugment | TrivialAugment | AugMix | StrongAugmentation, Field(discriminator="kind")
]
