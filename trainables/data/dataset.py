"""Data set that every source yields: named splits of memory-mapped uint8 images with labels, ids and groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

#: Target of pixels that no loss and no metric counts: outside the field of view, in a border, or not annotated.
UNCOUNTED = 255
#: Columns of volumes: their slices, rows and columns, where the stored array may be larger; sides of a voxel in mm.
EXTENT = ("num_slices", "num_rows", "num_columns")
SPACING = ("spacing_slice", "spacing_row", "spacing_column")


@dataclass(frozen=True)
class ImageSet:
    """One split or external set; row i of every array belongs to one image."""

    name: str
    #: Memory-mapped, read-only, values 0–255; n × channels × height × width, of volumes × depth × height × width.
    images: UInt8[np.ndarray, "n channels *space"]
    #: Index into ``Dataset.classes``, −1 for images of none of them; of a segmentation index into its ``components``.
    labels: Int64[np.ndarray, " n"]
    #: Immutable ids, unique over the whole data set.
    ids: np.ndarray
    #: Patient, eye pair or slide; no group is in two splits.
    groups: np.ndarray
    #: Acquisition site or hospital; "" where unknown.
    sites: np.ndarray
    #: Further columns, one value per image: those of a manifest, or nuisance and lesion statistics of a phantom.
    metadata: dict[str, list[Any]] = field(default_factory=dict)
    #: Lesion masks of a phantom: 0 background, k the k-th lesion of the image. Those of files: ``load_test_masks``.
    masks: UInt8[np.ndarray, "n *space"] | None = None
    #: Class of every pixel of a segmentation data set: an index into ``Dataset.classes`` or ``UNCOUNTED``; mapped, too.
    targets: UInt8[np.ndarray, "n *space"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def holds_volumes(self) -> bool:
        """Whether the images have a depth."""
        return self.images.ndim == 5


@dataclass(frozen=True)
class BadImage:
    """An image set aside by ``data.on_bad: quarantine``."""

    file_name: str
    #: Line in the manifest (its header is line 1), index in an array; None for a file in a folder.
    row: int | None
    problem: str


@dataclass(frozen=True)
class SimilarPair:
    """Two images that look like copies of each other; images by the name of their set and their place in it."""

    first: tuple[str, int]
    second: tuple[str, int]
    #: Correlation of the thumbnails, −1 to 1.
    correlation: float


@dataclass(frozen=True)
class SimilarPairs:
    """Near-duplicates of a data set."""

    #: Set, or "test and train" → number of pairs.
    counts: dict[str, int]
    #: Pairs of two sets first, then the most alike; of many only the first thousand.
    pairs: tuple[SimilarPair, ...]
    #: Why they were not looked for, None if they were.
    unchecked: str | None = None


@dataclass(frozen=True)
class Dataset:
    """All splits of one source. ``splits`` holds train, val, test; ``external`` any number of further sets.

    ``ood`` holds images of no class that is trained on, labels −1: those of held-out classes (``held_out``), and those
    of other sources where an evaluation names some (``foreign.with_foreign_sets``).
    """

    name: str
    classes: tuple[str, ...]
    #: Hash of content, labels, groups and split assignment; independent of where the files lie.
    fingerprint: str
    splits: dict[str, ImageSet]
    external: dict[str, ImageSet]
    ood: dict[str, ImageSet] = field(default_factory=dict)
    quarantined: tuple[BadImage, ...] = ()
    #: Set, or "external/a and test" → number of images that have the pixels of another one there (``Copies.repeats``).
    copies: dict[str, int] = field(default_factory=dict)
    similar: SimilarPairs = SimilarPairs({}, (), unchecked="not looked for")
    #: In words how intensities of more than 8 bits were converted → number of images.
    conversions: dict[str, int] = field(default_factory=dict)
    #: Selects the severity tables: fundus, dermoscopy, … (``EvaluationConfig.modality``), or general.
    modality: str = "general"
    #: Data sets that the images of a segmentation come from, at least one; () if images and not pixels have classes.
    components: tuple[str, ...] = ()
    #: Name in ``components`` → classes that its masks tell apart, background among them; of others they say nothing.
    annotated: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)
