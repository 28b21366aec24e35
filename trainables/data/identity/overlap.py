"""Test and external images of a study among the images of a pretraining: the same pixels, or the same patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainables.data.dataset import Dataset, ImageSet
from trainables.data.describe import has_groups
from trainables.image_data_config import ImageData

#: Fields that name the place of a source's images, or the seed of those that are drawn.
_PLACE = ("flag", "path", "name", "seed", "datasets")


@dataclass(frozen=True)
class Overlap:
    """Test and external images of a study, and images of their patients, that a pretraining would see."""

    #: (id of an image of the pretraining, "test 0012.png") with the same pixels.
    images: tuple[tuple[str, str], ...]
    #: Images of the pretraining of patients who have test or external images, without those in ``images``.
    of_patients: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.images or self.of_patients)


def is_same_place(first: ImageData, second: ImageData) -> bool:
    """Return whether two configurations name the same files or drawn images, so that patients have the same names."""
    places = [(type(config), *(getattr(config, name, None) for name in _PLACE)) for config in (first, second)]
    return places[0] == places[1]


def find_overlap(
    source: Dataset, target: Dataset, *, same_place: bool, digest: Callable[[ImageSet], Sequence[bytes]]
) -> Overlap:
    """Return the test and external images of ``target``, and images of their patients, in the training of ``source``.

    Patients are compared if both data sets name them in the same way: they are of the same place, or share an image
    whose patient has the same name in both.

    Args:
        source: data of a pretraining; its training split is used.
        target: data of a study, with all sets that models are tested on.
        same_place: see ``is_same_place``.
        digest: returns the digests of a set's pixels.
    """
    used = source.splits["train"]
    held = [target.splits["test"], *target.external.values(), *target.ood.values()]
    named = {key: (images, row) for images in held for row, key in enumerate(digest(images))}
    found = [(row, named[key]) for row, key in enumerate(digest(used)) if key in named]
    same = tuple((str(used.ids[row]), f"{images.name} {images.ids[other]}") for row, (images, other) in found)
    if not (has_groups(source) and has_groups(target)):
        return Overlap(same, ())
    if not same_place:
        groups = {key: images.groups[row] for images in (*held, *target.splits.values())
                  for row, key in enumerate(digest(images))}  # fmt: skip
        same_place = any(groups.get(key) == used.groups[row] for row, key in enumerate(digest(used)) if key in groups)
    patients = {str(group) for images in held for group in images.groups} if same_place else set()
    copies = {row for row, _ in found}
    rows = [row for row, group in enumerate(used.groups) if str(group) in patients and row not in copies]
    return Overlap(same, tuple(str(used.ids[row]) for row in rows))
