"""Groups of images by class, site or metadata column, for losses and penalties with one weight per group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from trainables.data.dataset import ImageSet
from trainables.errors import ConfigError
from trainables.regularisers import GroupDro, RegulariserConfig, SpectralDecoupling, find_part


@dataclass(frozen=True)
class Groups:
    """Group of every image of a set."""

    #: Names like ``class_0.site_paris``, sorted by the columns' values; a class is named by its index.
    names: tuple[str, ...]
    #: Index into ``names``.
    index: Int64[np.ndarray, " n"]


def find_groups(images: ImageSet, columns: Sequence[str]) -> Groups:
    """Return the groups by ``class``, ``site`` or metadata column; for several columns, the combinations that occur.

    Raises:
        ConfigError: the images have no such column.
    """
    known = {"class": images.labels, "site": images.sites}
    known |= {name: np.array(values, dtype=object) for name, values in images.metadata.items()}
    unknown = [column for column in columns if column not in known]
    if unknown:
        raise ConfigError(
            f"regulariser.group_by: found {', '.join(unknown)}, expected {', '.join(known)}: class, site, or a further "
            "column that this data set has for each image"
        )
    parts = [np.unique(known[column], return_inverse=True) for column in columns]
    codes, index = np.unique(np.stack([inverse for _, inverse in parts], axis=1), axis=0, return_inverse=True)
    names = (
        ".".join(f"{column}_{values[code]}" for column, (values, _), code in zip(columns, parts, row, strict=True))
        for row in codes
    )
    return Groups(tuple(names), index.reshape(-1).astype(np.int64))


def check_groups(regulariser: RegulariserConfig, *, weighs_classes: bool, num_classes: int, num_groups: int) -> None:
    """Check that the regulariser's weights fit the classes and groups of the data.

    Args:
        regulariser: regulariser of the trial.
        weighs_classes: whether the loss has a weight per class.
        num_classes: number of classes of the data.
        num_groups: number of groups of the training images, by ``regularisers.choose_group_columns``.

    Raises:
        ConfigError: if several λ or γ are not one per class (or group), or if group DRO is combined with class weights.
    """
    if weighs_classes and find_part(regulariser, GroupDro) is not None:
        raise ConfigError(
            "regulariser: found group_dro and training.class_weights, which both weigh the loss; expected one of them: "
            "set class_weights to none, and group_by to [class] to weigh classes by their loss"
        )
    penalty = find_part(regulariser, SpectralDecoupling)
    if penalty is None:
        return
    count = num_classes if penalty.group_by == "class" else num_groups
    for key, value in (("weight", penalty.weight), ("gamma", penalty.gamma)):
        if isinstance(value, tuple) and len(value) != count:
            raise ConfigError(
                f"regulariser.{key}: found {len(value)} values, expected one or {count} (one per {penalty.group_by} "
                "of the data)"
            )
