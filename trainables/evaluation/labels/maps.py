"""Label maps: classes of a trained model merged afterwards, by their probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float64, Int64

from trainables.data.assembly import suggest
from trainables.data.dataset import Dataset, ImageSet
from trainables.errors import ConfigError
from trainables.evaluation_config import EvaluationConfig

#: Class that a label map leaves out.
LEFT_OUT = -1


@dataclass(frozen=True)
class LabelMap:
    """Merged classes of a data set."""

    name: str
    #: Names in the order of the first class that each holds.
    classes: tuple[str, ...]
    #: Class of the data → merged class, or ``LEFT_OUT``.
    index: Int64[np.ndarray, " classes"]

    @property
    def is_ordered(self) -> bool:
        """Whether merged classes of ordered classes are ordered: each is a range of them."""
        kept = self.index[self.index != LEFT_OUT]
        return bool((np.diff(kept) >= 0).all())


def resolve_label_map(name: str, merged: Mapping[str, str | None], classes: Sequence[str]) -> LabelMap:
    """Return the map of ``evaluation.label_maps`` for the classes of the data.

    Args:
        name: name of the map.
        merged: class → merged class; None leaves its images out.
        classes: classes that the model is trained on, in their order.

    Raises:
        ConfigError: the map names a class that there is not, or does not name one that there is.
    """
    path = f"evaluation.label_maps.{name}"
    unknown = [each for each in merged if each not in classes]
    if unknown:
        raise ConfigError(
            f"{path}: found the class {unknown[0]!r}{suggest(unknown[0], list(classes))}, expected the classes of the "
            f"data: {', '.join(classes)}"
        )
    missing = [each for each in classes if each not in merged]
    if missing:
        raise ConfigError(
            f"{path}: found no entry for {', '.join(missing)}; expected one for every class of the data: the name of a "
            "merged class, or null to leave the images of the class out"
        )
    names = [merged[each] for each in classes]
    kept = tuple(dict.fromkeys(each for each in names if each is not None))
    return LabelMap(name, kept, np.array([LEFT_OUT if each is None else kept.index(each) for each in names]))


def check_label_maps(config: EvaluationConfig, data: Dataset) -> None:
    """Check that every label map fits the classes, and leaves validation and test images of two classes or more.

    Raises:
        ConfigError: if one does not.
    """
    for map_name, merged in config.label_maps.items():
        label_map = resolve_label_map(map_name, merged, data.classes)
        for name in ("val", "test"):
            left = np.unique(label_map.index[data.splits[name].labels])
            if (left != LEFT_OUT).sum() < 2:
                raise ConfigError(
                    f"evaluation.label_maps.{label_map.name}: found {name} images of fewer than two of its classes "
                    f"({', '.join(label_map.classes)}), expected two or more to tell apart"
                )


def merge_labels(data: Dataset, label_map: LabelMap) -> Dataset:
    """Return a data set with merged classes and labels alone: its sets hold no images, ids or groups."""

    def merge(images: ImageSet) -> ImageSet:
        labels = label_map.index[images.labels]
        kept, nothing = labels[labels != LEFT_OUT], np.empty(0)
        return ImageSet(images.name, images.images[:0], kept, ids=nothing, groups=nothing, sites=nothing)

    splits, external = ({name: merge(each) for name, each in sets.items()} for sets in (data.splits, data.external))
    return replace(data, classes=label_map.classes, splits=splits, external=external)


def merge_logits(
    logits: Float[np.ndarray, "*shifts n classes"], label_map: LabelMap
) -> Float64[np.ndarray, "*shifts n merged"]:
    """Return log Σ exp(f_k) over the classes of each merged class.

    Their softmax is the sum of the probabilities, given that the class is none that is left out, and differences of
    them rank images like the merged probabilities without saturating.
    """
    outputs = logits.astype(np.float64)
    merged = np.empty((*logits.shape[:-1], len(label_map.classes)))
    for number in range(len(label_map.classes)):
        part = outputs[..., label_map.index == number]
        largest = part.max(axis=-1, keepdims=True)
        merged[..., number] = (largest + np.log(np.exp(part - largest).sum(axis=-1, keepdims=True)))[..., 0]
    return merged
