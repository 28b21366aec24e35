"""Configuration of the data of a segmentation: images with a class for every pixel, one data set or several in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FieldSerializationInfo, field_serializer, model_validator

from trainables.frozen import (
    SET_ONLY,
    UNHASHED,
    Expression,
    Frozen,
    PositiveInt,
    Scale,
    Seed,
    StoredSize,
    Text,
    unhashed,
)
from trainables.image_data_config import FileData, ImageData

#: Class of the pixels that belong to nothing; always the first.
BACKGROUND = "background"

#: Fields of every source that mean nothing where the pixels have classes and the images none.
_OF_IMAGE_CLASSES = ("ordinal", "held_out_classes")


class SegmentationData(ImageData):
    """Base class of the data configurations whose images have a class for every pixel."""

    near_duplicates: Literal["report", "ignore"] = unhashed(
        "report", "Images that look like copies of each other are counted, or not looked for."
    )
    label_map: dict[Text, Text | None] | None = Field(
        None,
        description="Class of a mask -> class name, null for pixels that nothing counts; classes that are not named "
        "keep their name.",
    )

    @model_validator(mode="after")
    def _has_no_classes_of_images(self) -> SegmentationData:
        fields = type(self).model_fields
        found = [name for name in _OF_IMAGE_CLASSES if getattr(self, name) != fields[name].default]
        if found:
            raise ValueError(
                f"found {found[0]} for a segmentation, whose images have no class of their own; expected it left out"
            )
        return self


class MaskFileData(SegmentationData, FileData):
    """Base class of the data configurations whose masks are image files beside the images."""

    mask_values: dict[Annotated[int, Field(ge=0, lt=2**16)], Text] | None = Field(
        None, description="Value in a mask -> class; none: 0 is background, and the one other value is foreground."
    )
    foreground: Text = Field("foreground", description="Class of the one value above 0, where mask_values is none.")
    classes: tuple[Text, ...] | None = Field(
        None, description="Order of the classes, background first; none: that of mask_values."
    )
    image_size: StoredSize = 224

    @model_validator(mode="after")
    def _names_its_classes(self) -> MaskFileData:
        named = (BACKGROUND, self.foreground) if self.mask_values is None else tuple(self.mask_values.values())
        if BACKGROUND not in named:
            raise ValueError(f"found mask_values without {BACKGROUND}; expected a value for it, such as 0: background")
        mapped = {(self.label_map or {}).get(name, name) for name in named} - {None}
        if self.classes is not None and ({*self.classes} != mapped or self.classes[0] != BACKGROUND):
            raise ValueError(
                f"found classes {list(self.classes)}; expected {BACKGROUND} first and then all of "
                f"{sorted(str(name) for name in mapped - {BACKGROUND})}, the classes of the masks"
            )
        return self


class ImageMaskFolderData(MaskFileData):
    """Images and masks in ``path/{train,val,test,external/<name>}/{images,masks}``, or in ``path/{images,masks}``.

    An image and its mask have the same name up to the suffix, or the mask's goes on (``01.png``, ``01_manual1.gif``).
    A folder ``fov`` beside them may hold masks of the field of view: nothing outside of it is counted.
    """

    kind: Literal["image_mask_folder"] = "image_mask_folder"
    path: Path = Field(description="Root folder.", json_schema_extra=UNHASHED)
    image_folder: Text = unhashed("images", "Name of the folders with images.")
    mask_folder: Text = unhashed("masks", "Name of the folders with masks.")
    fov_folder: Text = unhashed("fov", "Name of the folders with masks of the field of view, where there are any.")
    pair_pattern: Expression | None = unhashed(
        None, "Regular expression that finds what the names of an image, its mask and its field of view have in common."
    )
    group_pattern: Expression | None = unhashed(
        None, "Regular expression that finds the patient in an image's path; none: the DICOM patient, else one each."
    )
    spacing_mm: Scale | None = Field(None, description="Side of a pixel of the files in mm; none: unknown.")


class ImageMaskCsvData(MaskFileData):
    """A CSV manifest: file_name and mask, optionally id, split, group, site, fov and spacing_mm; others are kept.

    ``spacing_mm`` is one number, or row × column such as ``0.7x0.8``: the sides of a pixel of the file.
    """

    kind: Literal["image_mask_csv"] = "image_mask_csv"
    path: Path = Field(description="The manifest.", json_schema_extra=UNHASHED)
    root: Path | None = Field(
        None, description="Folder that files are relative to; none: the manifest's.", json_schema_extra=UNHASHED
    )


class Slices(Frozen):
    """Which slices of a volume become images."""

    axis: Literal[0, 1, 2] = Field(2, description="0 sagittal, 1 coronal, 2 axial, after turning to R, A, S.")
    every: PositiveInt = Field(1, description="Every how manieth slice, beginning with the first.")
    without_foreground: Literal["keep", "drop"] = Field("keep", description="Slices that are all background.")


class DecathlonData(SegmentationData, FileData):
    """Volumes in NIfTI with a ``dataset.json``, as in the Medical Segmentation Decathlon or nnU-Net (version 2).

    The images are slices, or the volumes themselves; a patient is a volume. Test is ``imagesTs`` where ``labelsTs`` is
    beside it.
    """

    kind: Literal["decathlon"] = "decathlon"
    path: Path = Field(description="Folder that holds dataset.json.", json_schema_extra=UNHASHED)
    slices: Slices = Field(Slices(), description="Along which axis, and which of them.")
    modalities: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, max_length=3, description="Which modalities are stored: one, or as many as channels."
    )
    image_size: StoredSize = 224
    dimensions: Literal[2, 3] = Field(
        2, description="2: the images are slices. 3: they are volumes of one spacing.", json_schema_extra=SET_ONLY
    )
    spacing_mm: tuple[Scale, Scale, Scale] | None = Field(
        None,
        description="Thickness, height and width in mm of a stored voxel; none: the median over the volumes.",
        json_schema_extra=SET_ONLY,
    )

    @model_validator(mode="after")
    def _has_one_form_of_images(self) -> DecathlonData:
        if self.dimensions == 2 and self.spacing_mm is not None:
            raise ValueError(
                "found spacing_mm with dimensions: 2; expected it left out, or dimensions: 3: slices are brought to "
                "image_size"
            )
        fields = type(self).model_fields
        of_slices = [name for name in ("image_size", "resize") if getattr(self, name) != fields[name].default]
        of_slices += ["slices.every"] if self.slices.every != 1 else []
        of_slices += ["slices.without_foreground"] if self.slices.without_foreground != "keep" else []
        if self.dimensions == 3 and of_slices:
            raise ValueError(
                f"found {of_slices[0]} with dimensions: 3, whose volumes are stored whole; expected it left out "
                "(spacing_mm sets how fine they are)"
            )
        return self

    @model_validator(mode="after")
    def _has_a_modality_per_channel(self) -> DecathlonData:
        if len(self.modalities) not in (1, self.channels):
            raise ValueError(
                f"found {len(self.modalities)} modalities and {self.channels} channels; expected one modality, which "
                "fills all channels, or as many as channels"
            )
        return self


class OrgansData(SegmentationData):
    """Procedural images with masks: a fundus with vessels and lesions, CT-like discs, or a lesion in speckle."""

    kind: Literal["organs"] = "organs"
    near_duplicates: Literal["report", "ignore"] = unhashed("ignore", "Known images, many of them alike.")
    organ: Literal["fundus", "ct", "ultrasound"] = Field("fundus", description="What is drawn, and its modality.")
    image_size: int = Field(64, gt=0, le=1024, description="Side in px in which images are drawn and stored.")
    num_images: int = Field(200, gt=0, le=1_000_000, description="Over all splits.")
    images_per_patient: PositiveInt = Field(2, description="Group size.")
    seed: Seed = Field(0, description="Seed of the images.")


SegmentationSource = Annotated[
    ImageMaskFolderData | ImageMaskCsvData | DecathlonData | OrgansData, Field(discriminator="kind")
]

#: Fields that the data sets of a union take from it.
_OF_THE_UNION = (
    "image_size", "channels", "resize", "split_seed", "split", "on_bad", "on_leak", "similar_text", "near_duplicates",
    "max_megapixels",
)  # fmt: skip
#: Fields that are said for each data set and not for their union.
_OF_THE_PARTS = ("val_fraction", "test_fraction", "label_map", "external_sites", "leave_out")


class DatasetsData(SegmentationData):
    """Several data sets in one: trained on all or on some of them, tested on each.

    Side, channels, resizing, the seed of the split and what happens with bad images are those given here; classes,
    fractions and sites are those of each data set. Its name is the site of its images.
    """

    kind: Literal["datasets"] = "datasets"
    datasets: dict[Text, SegmentationSource] = Field(min_length=1, description="Name -> data set.")
    train_on: tuple[Text, ...] | None = Field(
        None, min_length=1, description="Data sets for training and validation; the others only test. None: all."
    )
    weights: dict[Text, Scale] | Literal["balanced", "proportional"] = Field(
        "proportional",
        description="How often images of a data set are drawn: in proportion to their number, every data set as "
        "often, or name -> share.",
    )
    labels: Literal["merged", "separate"] = Field(
        "merged",
        description="merged: whatever is no background is one class. separate: every data set has its own classes, "
        "and its images say nothing about those of others.",
    )
    foreground: Text = Field("foreground", description="Name of the class that labels: merged makes.")
    image_size: StoredSize = 224

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the data sets for training, in the order in which they are given."""
        return tuple(name for name in self.datasets if self.train_on is None or name in self.train_on)

    @property
    def parts(self) -> dict[str, SegmentationSource]:
        """Data sets with the fields that they take from their union, so that a factor on it reaches them."""
        shared = {name: getattr(self, name) for name in _OF_THE_UNION}
        return {name: part.model_copy(update=shared) for name, part in self.datasets.items()}

    @field_serializer("datasets")
    def _dump_own_fields(
        self, datasets: dict[str, SegmentationSource], info: FieldSerializationInfo
    ) -> dict[str, dict[str, Any]]:
        mode: Any = info.mode
        return {name: part.model_dump(mode=mode, exclude={*_OF_THE_UNION}) for name, part in datasets.items()}

    @model_validator(mode="after")
    def _says_everything_once(self) -> DatasetsData:
        for name, part in self.datasets.items():
            for field in sorted(part.model_fields_set & {*_OF_THE_UNION}):
                if getattr(part, field) != getattr(self, field):
                    raise ValueError(
                        f"found {field} {getattr(part, field)!r} in datasets.{name} and {getattr(self, field)!r} for "
                        f"all; expected one {field}: set it beside kind: datasets"
                    )
            if isinstance(part, DecathlonData) and part.dimensions == 3:
                raise ValueError(
                    f"found volumes (dimensions: 3) in datasets.{name}; expected slices (dimensions: 2), or the "
                    "volumes of one data set by themselves (kind: decathlon)"
                )
        for field in _OF_THE_PARTS:
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ValueError(f"found {field} for all data sets; expected it in those that it is meant for")
        return self

    @model_validator(mode="after")
    def _names_known_data_sets(self) -> DatasetsData:
        known = ", ".join(self.datasets)
        unknown = [name for name in self.train_on or () if name not in self.datasets]
        if unknown or len(set(self.train_on or ())) < len(self.train_on or ()):
            raise ValueError(f"found train_on {list(self.train_on or ())}; expected some of {known}, each once")
        if isinstance(self.weights, dict) and {*self.weights} - {*self.datasets} | {*self.trained} - {*self.weights}:
            raise ValueError(
                f"found weights for {', '.join(self.weights)}; expected one for each data set that is trained on, and "
                f"none but {known}"
            )
        if self.labels == "separate" and len(self.trained) < len(self.datasets):
            raise ValueError(
                "found labels: separate and data sets that are not in train_on, whose classes nothing learns; "
                "expected labels: merged, or train_on to name all"
            )
        return self
