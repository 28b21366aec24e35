"""Configuration of the task: what a network predicts, and how its output is trained and judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.frozen import SET_ONLY, Fraction, Frozen, PositiveInt

#: Share, 0 to 1 without the ends.
_OpenShare = Annotated[float, Field(gt=0.0, lt=1.0)]


class ClassificationTask(Frozen):
    """One class per image."""

    kind: Literal["classification"] = "classification"


class DiceCrossEntropy(Frozen):
    """Soft Dice loss over the foreground classes of a batch plus cross-entropy, equally weighted (nnU-Net)."""

    kind: Literal["dice_cross_entropy"] = "dice_cross_entropy"


class Focal(Frozen):
    """Focal loss (Lin et al. 2017), mean over pixels."""

    kind: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0.0, le=10.0, description="Exponent of 1 − p; 0 is cross-entropy. 2: the paper.")


class Tversky(Frozen):
    """Tversky loss (Salehi et al. 2017) over the foreground classes of a batch."""

    kind: Literal["tversky"] = "tversky"
    alpha: _OpenShare = Field(0.3, description="Weight of false positives. .3: the paper.")
    beta: _OpenShare = Field(0.7, description="Weight of false negatives. .7: the paper.")


SegmentationLoss = Annotated[DiceCrossEntropy | Focal | Tversky, Field(discriminator="kind")]


class SegmentationTask(Frozen):
    """One class per pixel: an encoder (``model.name``) with a decoder of segmentation-models-pytorch.

    Of volumes: a U-Net of MONAI (``model.name``).
    """

    kind: Literal["segmentation"] = "segmentation"
    decoder: str = Field("unet", description="Architecture in segmentation-models-pytorch: unet, unetplusplus, fpn, …")
    depth: Annotated[int, Field(ge=3, le=5)] = Field(
        5, description="Halvings of the resolution in the encoder; of volumes at most, as spacing and patch allow."
    )
    width: Annotated[int, Field(ge=16, le=1024)] = Field(
        256, description="Channels of the deepest block of a U-Net's decoder; half of it in each block above."
    )
    loss: SegmentationLoss = Field(DiceCrossEntropy(), description="Of the pixels that are annotated.")
    patch_size: PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None,
        description="Side in px of the random crops that are trained on, of volumes also slices, rows and columns; "
        "none: whole images.",
    )
    foreground_share: Fraction | None = Field(
        None,
        description="Share of the crops of volumes that are centred on a voxel of a random class in them; none: a "
        "third (nnU-Net).",
        json_schema_extra=SET_ONLY,
    )
    patches_per_epoch: PositiveInt | None = Field(
        None,
        description="Crops per epoch over all data sets, so that arms on fewer images train as long; none: one per "
        "image.",
    )
    inference: Literal["windows", "whole"] = Field(
        "windows",
        description="Predict windows of patch_size and blend them, or whole images in one pass.",
    )
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.5, description="Share of a window's side that it has in common with the next, in evaluation."
    )
    tolerance: Annotated[float, Field(gt=0.0, le=1000.0)] = Field(
        2.0, description="Of the surface Dice (nsd) in mm; in px where the data give no spacing."
    )
    band_px: PositiveInt = Field(
        5, description="Calibration near the foreground: within so many px of it (band_ece, …). An assumption."
    )

    @property
    def window_size(self) -> int | tuple[int, int, int] | None:
        """Side or sides in px of the windows of evaluation; None: whole images."""
        return self.patch_size if self.inference == "windows" else None

    def patch_sides(self, axes: int) -> tuple[int, ...] | None:
        """Return the sides of patches of images with so many axes, None for whole images."""
        return (self.patch_size,) * axes if isinstance(self.patch_size, int) else self.patch_size

    @model_validator(mode="after")
    def _patches_halve(self) -> SegmentationTask:
        side = 2**self.depth
        if isinstance(self.patch_size, int) and self.patch_size % side:
            raise ValueError(
                f"patch_size: found {self.patch_size}, which cannot be halved {self.depth} times; expected a multiple "
                f"of {side}"
            )
        return self


TaskConfig = Annotated[ClassificationTask | SegmentationTask, Field(discriminator="kind")]
