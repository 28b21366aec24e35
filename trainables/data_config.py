"""Configuration of the data: one model per source of images, and how they become splits.

Fields marked ``UNHASHED`` hold locations, or the behaviour when something is missing; all others decide a result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.frozen import (
    UNHASHED,
    Channels,
    Classes,
    Expression,
    Fraction,
    ImageSize,
    PositiveInt,
    Seed,
    StoredSize,
    unhashed,
)
from trainables.image_data_config import FileData, ImageData
from trainables.segmentation_data_config import (
    DatasetsData,
    DecathlonData,
    ImageMaskCsvData,
    ImageMaskFolderData,
    OrgansData,
)


class DigitsData(ImageData):
    """scikit-learn's 1,797 handwritten digits, 8×8 grey: real images, available offline."""

    kind: Literal["digits"] = "digits"
    near_duplicates: Literal["report", "ignore"] = unhashed("ignore", "Known images, many of them alike.")
    channels: Channels = 1


class ColouredDigitsData(ImageData):
    """scikit-learn's digits in red or green, after Colored-MNIST (Arjovsky et al. 2019).

    The label is whether the digit is below five. The colour agrees with it with probability ``rho``, in test with
    ``rho_test``: a model that learns the colour fails there.
    """

    kind: Literal["coloured_digits"] = "coloured_digits"
    near_duplicates: Literal["report", "ignore"] = unhashed("ignore", "Known images, many of them alike.")
    channels: Literal[3] = Field(3, description="Always RGB: the colour is what is varied.")
    tint: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="How strong the colour is: the other channels lack this share of the light; 1 is pure colour."
    )
    label_noise: Fraction = Field(0.25, description="Share of labels that are wrong, in all splits.")
    rho: Fraction = Field(0.85, description="P(colour agrees with the label) in train and val; .5 is none.")
    rho_test: Fraction | None = Field(None, description="The same in test; none: rho.")
    seed: Seed = Field(0, description="Seed of wrong labels and colours.")


class MedmnistData(ImageData):
    """A MedMNIST data set: an npz file on disk (``path``), or a download by the medmnist package."""

    kind: Literal["medmnist"] = "medmnist"
    flag: str = Field("pneumoniamnist", description="Name in MedMNIST, also the name of the data set.")
    path: Path | None = Field(None, description="The npz; none: downloaded.", json_schema_extra=UNHASHED)
    source_size: Literal[28, 64, 128, 224] = Field(28, description="Which size of MedMNIST+ to download.")
    classes: Classes = None
    image_size: ImageSize = Field(28, description="Default: source_size.")
    channels: Channels = 1

    @model_validator(mode="after")
    def _take_source_size(self) -> MedmnistData:
        if "image_size" not in self.model_fields_set:  # and does not count as set: a factor may vary source_size
            self.__dict__["image_size"] = self.source_size
        return self


class ImageFolderData(FileData):
    """Images in ``root/{train,val,test,external/<name>}/<class>/*``, or ``root/<class>/*`` (then split by fraction)."""

    kind: Literal["image_folder"] = "image_folder"
    path: Path = Field(description="Root folder.", json_schema_extra=UNHASHED)
    layout: Literal["auto", "splits", "classes"] = unhashed(
        "auto", "What the folders in path are; auto: refused where both are possible."
    )
    group_pattern: Expression | None = unhashed(None, "Regular expression that finds the patient in an image's path.")
    group_file: Path | None = unhashed(
        None,
        "CSV with the columns file_name (below path) and group; neither: the DICOM patient, else one per image.",
    )
    classes: Classes = None
    image_size: StoredSize = 224

    @model_validator(mode="after")
    def _one_source_of_groups(self) -> ImageFolderData:
        if self.group_pattern is not None and self.group_file is not None:
            raise ValueError("found both group_pattern and group_file, expected one of them: remove the other")
        return self


#: Fields of every source that mean nothing without labels and splits.
_OF_LABELS_AND_SPLITS = (
    "val_fraction", "test_fraction", "split_seed", "split", "ordinal", "label_map", "external_sites", "leave_out",
    "held_out_classes",
)  # fmt: skip


class UnlabelledFolderData(FileData):
    """Images anywhere below a folder, without labels and splits; for a pretraining that needs none."""

    kind: Literal["unlabelled_folder"] = "unlabelled_folder"
    path: Path = Field(description="Root folder.", json_schema_extra=UNHASHED)
    group_pattern: Expression | None = unhashed(
        None, "Regular expression that finds the patient in an image's path; none: the DICOM patient, else one each."
    )
    image_size: StoredSize = 224

    @model_validator(mode="after")
    def _has_no_labels_and_splits(self) -> UnlabelledFolderData:
        fields = type(self).model_fields
        found = [name for name in _OF_LABELS_AND_SPLITS if getattr(self, name) != fields[name].default]
        if found:
            raise ValueError(
                f"found {found[0]} for an unlabelled folder, all of whose images are used; expected it left out"
            )
        return self


class CsvData(FileData):
    """A CSV manifest: file_name and label, optionally id, split, group, site and mask (lesions); others are kept."""

    kind: Literal["csv"] = "csv"
    path: Path = Field(description="The manifest.", json_schema_extra=UNHASHED)
    root: Path | None = Field(
        None, description="Folder file_name is relative to; none: the manifest's.", json_schema_extra=UNHASHED
    )
    classes: tuple[str, ...] | None = Field(None, description="Allowed labels in order; none: those found, sorted.")
    image_size: StoredSize = 224


class TorchvisionData(ImageData):
    """Any torchvision classification data set by its class name, e.g. ``CIFAR10``."""

    kind: Literal["torchvision"] = "torchvision"
    name: str = Field(description="Class in torchvision.datasets.")
    path: Path = Field(Path("data"), description="Root handed to torchvision.", json_schema_extra=UNHASHED)
    download: bool = Field(False, description="Let torchvision download it.", json_schema_extra=UNHASHED)


class PhantomData(ImageData):
    """Procedural fundus-like images: the label is the presence of lesions of known size and mask.

    Sites differ in colour, blur, vignetting and noise. A nuisance, which spares the lesions, can agree with the label.
    """

    kind: Literal["phantom"] = "phantom"
    near_duplicates: Literal["report", "ignore"] = unhashed("ignore", "Known images, many of them alike.")
    image_size: int = Field(64, gt=0, le=1024, description="Side in px in which images are drawn and stored.")
    num_images: int = Field(1200, gt=0, le=1_000_000, description="Over all in-distribution splits.")
    num_sites: int = Field(3, gt=0, le=1000, description="Acquisition sites site-0 … inside train, val and test.")
    num_external_sites: int = Field(6, ge=0, le=1000, description="Further sites, each an external set.")
    num_external_images: int = Field(100, gt=0, le=10_000, description="Per external site.")
    images_per_patient: PositiveInt = Field(2, description="Group size: both eyes of one patient.")
    num_classes: Literal[2, 3, 4, 5] = Field(2, description="Grades; more lesions and larger ones per grade.")
    lesion_radius_px: tuple[float, float] = Field((1.2, 3.5), description="At 64 px; scales with image_size.")
    lesion_contrast: float = Field(0.35, gt=0, le=1, description="1 is black haemorrhages, 0 invisible ones.")
    nuisance: Literal["none", "sharpness", "intensity", "corner_tag", "colour", "resolution"] = Field(
        "none", description="What may agree with the label; it never touches a lesion."
    )
    rho: Fraction = Field(0.5, description="P(nuisance agrees with the label) in train and val; .5 is none.")
    rho_test: Fraction | None = Field(None, description="The same in test; none: rho.")
    seed: Seed = Field(0, description="Seed of the images.")


DataConfig = Annotated[
    DigitsData
    | ColouredDigitsData
    | MedmnistData
    | ImageFolderData
    | CsvData
    | TorchvisionData
    | PhantomData
    | ImageMaskFolderData
    | ImageMaskCsvData
    | DecathlonData
    | OrgansData
    | DatasetsData,
    Field(discriminator="kind"),
]
