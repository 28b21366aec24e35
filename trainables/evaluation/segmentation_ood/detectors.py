"""Detectors of foreign images on recorded layers and histograms (``layers.LayerRecorder``), by name.

A detector is fitted on the training images, of which none has a class: that of Mahalanobis is one normal distribution.
Scores are higher, the more an image looks like training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from trainables.errors import ConfigError, DataError
from trainables.evaluation.detection.mahalanobis import fit_mahalanobis
from trainables.evaluation.detection.nearest import compute_nearest_distances, normalise
from trainables.evaluation.layers import HISTOGRAM, POOLED, SPECTRAL
from trainables.evaluation.ood import NearestReference, fit_combination

#: Arrays of one pass over a set, a row per image: "histogram", "pooled/<layer>", "spectral/<layer>".
Recorded = Mapping[str, Float[np.ndarray, "_ _"]]
Values = Float64[np.ndarray, " _"]
Features = Float[np.ndarray, "_ _"]
#: Training images per step of the neighbour that ``knn`` looks at. Source: Sun et al. 2022, 50 of CIFAR's 50,000.
_IMAGES_PER_NEIGHBOUR = 1000
#: Ends of names that stand for several layers: every recorded one.
ALL = "all"


@dataclass(frozen=True)
class _Fitted:
    """A detector of one kind of arrays: scores of any images, and of the training images themselves."""

    score: Callable[[Features], Values]
    #: None where a training image cannot be left out of what it is compared with.
    score_reference: Callable[[], Values] | None = None


def _fit_nearest(training: Features) -> _Fitted:
    reference = NearestReference(training)
    return _Fitted(reference.score, reference.score_reference)


def _fit_knn(training: Features) -> _Fitted:
    reference, k = normalise(training), choose_neighbour(len(training))
    return _Fitted(
        lambda features: -compute_nearest_distances(normalise(features), reference, k=k),
        lambda: -compute_nearest_distances(reference, reference, k=k, leave_one_out=True),
    )


def _fit_mahalanobis(training: Features) -> _Fitted:
    labels = np.zeros(len(training), dtype=np.int64)
    return _Fitted(fit_mahalanobis([(training, labels)], num_classes=1, relative=False).score)


def choose_neighbour(num_reference: int) -> int:
    """Return the number of the neighbour that ``knn`` looks at: one in a thousand images, the nearest up to 1,499."""
    return max(1, round(num_reference / _IMAGES_PER_NEIGHBOUR))


#: Name in ``confidence.CONFIDENCE_SCORES`` → kind of arrays that it compares, and how it is fitted.
DETECTORS: Mapping[str, tuple[str, Callable[[Features], _Fitted]]] = {
    "spectral_signature": (SPECTRAL, _fit_nearest),
    "mahalanobis": (POOLED, _fit_mahalanobis),
    "knn": (POOLED, _fit_knn),
    "intensity_histogram": (HISTOGRAM, _fit_nearest),
}


def score_sets(name: str, sets: Mapping[str, Recorded], *, bottleneck: str) -> dict[str, Values]:
    """Return set → score of every image by one detector.

    Training images are scored leave-one-out: each is compared with the others. A detector that cannot do so has no
    scores of them. Several layers count the same: the mean of (score − mean) / standard deviation, both of validation.

    Args:
        name: name in ``DETECTORS``: at the bottleneck; or ``<name>/<layer>``, or ``<name>/all`` for all layers recorded
            of the training images.
        sets: arrays of "train", "val" and any others.
        bottleneck: name of the layer that a name without one stands for.

    Raises:
        ConfigError: if there is no such detector, or its layer was not recorded.
        DataError: if it cannot be fitted to these images.
    """
    keys, fit = _choose_arrays(name, sets["train"], bottleneck)
    fitted = [fit(sets["train"][key]) for key in keys]
    found: dict[str, Float64[np.ndarray, "layers _"]] = {}
    for each, recorded in sets.items():
        if each != "train":
            found[each] = np.stack([one.score(recorded[key]) for one, key in zip(fitted, keys, strict=True)])
    own = [one.score_reference for one in fitted]
    left_out = [score() for score in own if score is not None]
    if left_out:
        found["train"] = np.stack(left_out)
    if len(keys) == 1:
        return {each: scores[0] for each, scores in found.items()}
    try:
        combination = fit_combination(found["val"])
    except DataError as error:
        raise DataError(f"{name} of the layers {', '.join(keys)}: {error}") from error
    return {each: combination.apply(scores) for each, scores in found.items()}


def _choose_arrays(name: str, training: Recorded, bottleneck: str) -> tuple[list[str], Callable[[Features], _Fitted]]:
    """Return the arrays that a detector compares, and how it is fitted to one of them."""
    base, _, layer = name.partition("/")
    if base not in DETECTORS or (layer and DETECTORS[base][0] == HISTOGRAM):
        raise ConfigError(
            f"looked for the detector {name!r}; expected one of {', '.join(DETECTORS)}, all but the last also with "
            f"/<layer> or /{ALL}"
        )
    kind, fit = DETECTORS[base]
    if kind == HISTOGRAM:
        return [HISTOGRAM], fit
    known = [key for key in training if key.startswith(f"{kind}/")]
    keys = known if layer == ALL else [f"{kind}/{layer or bottleneck}"]
    if not keys or not set(keys) <= set(known):
        layers = ", ".join(key.partition("/")[2] for key in known) or "none"
        raise ConfigError(
            f"scored images by {name!r}, whose layer {layer or bottleneck!r} was not recorded; expected one of those "
            f"that were ({layers}), or its name in evaluation.store_layers"
        )
    return keys, fit
