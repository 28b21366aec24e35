"""Base classes of the configuration of data: the fields that every source of images has.

Fields marked ``UNHASHED`` hold locations, or the behaviour when something is missing; all others decide a result.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.frozen import SET_ONLY, Channels, Fraction, Frozen, PositiveInt, Seed, StoredSize, Text, unhashed


class ImageData(Frozen):
    """Base class of all data configurations: the fields that every source of images has."""

    image_size: StoredSize = 32
    channels: Channels = 3
    resize: Literal["crop", "squash", "pad"] = Field(
        "crop", description="crop: short side to image_size, centre crop. squash: ignore aspect. pad: black borders."
    )
    val_fraction: Fraction = Field(0.2, description="Share of groups for validation where the source has no split.")
    test_fraction: Fraction = Field(0.2, description="Share of groups for test where the source has no split.")
    split_seed: Seed = Field(0, description="Seed of the split; the same for all arms.")
    split: Literal["fixed", "per_replicate"] = unhashed(  # split_seed decides the result
        "fixed", "All replicates have the same train, val and test, or each draws its own; only where split_seed draws."
    )
    ordinal: bool = Field(False, description="Classes are ordered: quadratic weighted kappa is reported.")
    label_map: dict[Text, Text | None] | None = Field(
        None,
        description="Original label -> class name, null to leave its images out; labels that are not named are an "
        "error.",
    )
    external_sites: tuple[Text, ...] = Field(
        (), description="Sites kept out of train, val and test; each becomes an external set of that name."
    )
    leave_out: Text | None = Field(
        None, description="One more such site; as a factor with one level per site: leave-one-site-out."
    )
    held_out_classes: tuple[Text, ...] = Field(
        (),
        description="Classes that no model is trained on: their test images become the set held_out, on which every "
        "prediction is wrong (out-of-distribution detection); their other images are not used.",
        json_schema_extra=SET_ONLY,
    )
    on_bad: Literal["error", "quarantine"] = Field(
        "error", description="An unusable image stops the study, or is set aside and counted in the report."
    )
    on_leak: Literal["error", "quarantine"] = unhashed(
        "error", "Images with the same pixels in two sets stop the study, or the training copy is set aside."
    )
    similar_text: Literal["error", "distinct"] = unhashed(
        "error", "Groups or labels that differ only in case, leading zeros or the way a number is written."
    )
    near_duplicates: Literal["report", "ignore"] = unhashed(
        "report", "Images that look like copies of each other are counted, or not looked for."
    )
    max_megapixels: float = unhashed(200.0, "Larger images are refused before decoding.", gt=0)

    @property
    def outer_sites(self) -> tuple[str, ...]:
        """All sites kept out of train, val and test."""
        return self.external_sites if self.leave_out is None else (*self.external_sites, self.leave_out)

    @model_validator(mode="after")
    def _left_out_once(self) -> ImageData:
        if self.leave_out in self.external_sites:
            raise ValueError(
                f"found {self.leave_out!r} as leave_out and in external_sites, where it is left out of every arm; "
                "expected it in one of them"
            )
        return self


class FileData(ImageData):
    """Base class of the data configurations whose images are files: how intensities become 8 bits."""

    window: tuple[float, Annotated[float, Field(gt=0)]] | None = unhashed(
        None, "Centre and width, in the file's units (CT: HU), of DICOM and 16-bit images; none: the file's own."
    )
    scale: Literal["minmax", "percentile"] | None = unhashed(
        None, "Instead of a window: each image from its minimum to its maximum, or from its .5th to 99.5th percentile."
    )
    frame: PositiveInt | Literal["middle"] | None = unhashed(
        None, "Which image of files that hold several, from 1; none: such files are refused."
    )

    @model_validator(mode="after")
    def _one_way_to_8_bits(self) -> FileData:
        if self.window is not None and self.scale is not None:
            raise ValueError("found both window and scale, expected one of them: remove the other")
        return self
