"""Out-of-distribution detectors by name, histograms of images that they compare, and near and far sets judged apart.

A detector is fitted on the training split. Its value is higher, the more an image looks like training, so that it may
serve as a confidence as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Shaped, UInt8

from trainables.errors import ConfigError, DataError
from trainables.evaluation.classification import Metrics
from trainables.evaluation.detection.mahalanobis import Chunk, Mahalanobis, fit_mahalanobis
from trainables.evaluation.detection.nearest import compute_nearest_distances, normalise
from trainables.evaluation.detection.risk_coverage import OOD, compute_ood_metrics
from trainables.evaluation.detection.virtual_logit import fit_virtual_logit
from trainables.evaluation_config import Role

#: Pixels of which histograms are counted at a time.
_BLOCK = 1 << 23


def compute_intensity_histograms(
    images: UInt8[np.ndarray, "n channels *space"], *, bins: int = 64
) -> Float32[np.ndarray, "n shares"]:
    """Return the share of pixels in each bin of intensity, the bins of all channels in a row.

    Args:
        images: images as stored.
        bins: number of equal bins per channel, a divisor of 256.

    Source: the baseline of Vasiliuk et al. 2023. Differs: bins of 8-bit intensities instead of a volume's range.
    """
    num_images, channels = images.shape[:2]
    found = np.empty((num_images, channels * bins), dtype=np.float32)
    pixels = math.prod(images.shape[2:])
    step = max(1, _BLOCK // (channels * pixels))
    for start in range(0, num_images, step):
        block = images[start : start + step].reshape(-1, pixels) // (256 // bins)
        index = block.astype(np.int64) + bins * np.arange(len(block))[:, None]
        counts = np.bincount(index.ravel(), minlength=len(block) * bins)
        found[start : start + step] = counts.reshape(-1, channels * bins) / pixels
    return found


@dataclass(frozen=True)
class NearestReference:
    """Signatures of training images; an image is judged by the nearest of them."""

    signatures: Float[np.ndarray, "m features"]

    def score(self, signatures: Float[np.ndarray, "n features"]) -> Float64[np.ndarray, " n"]:
        """Return minus the distance to the nearest reference."""
        return -compute_nearest_distances(signatures, self.signatures)

    def score_reference(self) -> Float64[np.ndarray, " m"]:
        """Return the scores of the reference itself, each image left out of its own comparison."""
        return -compute_nearest_distances(self.signatures, self.signatures, leave_one_out=True)


def fix_rejection(scores: Shaped[np.ndarray, " n"], *, share_kept: float = 0.95) -> float:
    """Return the threshold below which an image counts as out of distribution.

    Args:
        scores: scores of held-out in-distribution images (validation).
        share_kept: share of them that lies above it: the 95th percentile of their distances by default.

    Raises:
        DataError: if there are no scores.
    """
    if not len(scores):
        raise DataError("fixed a threshold of a detector and found no held-out images; expected a validation set")
    return float(np.quantile(scores, 1 - share_kept))


def measure_rejection(
    threshold: float, inside: Shaped[np.ndarray, " n"], outside: Shaped[np.ndarray, " m"]
) -> dict[str, float]:
    """Return ``metrics.REJECTION_METRICS``: the shares of other images rejected and of in-distribution ones kept.

    Args:
        threshold: threshold of validation (``fix_rejection``); what scores below it is rejected.
        inside: scores of in-distribution images.
        outside: scores of the others.
    """
    return {
        "sensitivity": float((outside < threshold).mean()),
        "specificity": float((inside >= threshold).mean()),
    }


@dataclass(frozen=True)
class TrainingSplit:
    """Penultimate features, classes and logits of the training images, in one order: detectors are fitted on them."""

    features: Float[np.ndarray, "n features"]
    labels: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n classes"]

    @cached_property
    def mahalanobis(self) -> Mahalanobis:
        """Mahalanobis distances, fitted once for both scores that need them."""
        return fit_mahalanobis([(self.features, self.labels)], num_classes=self.logits.shape[1])


#: Maps features and logits of n images to n values.
Scorer = Callable[[Float[np.ndarray, "n features"], Float[np.ndarray, "n classes"]], Float64[np.ndarray, " n"]]
#: Neighbour that deep nearest neighbours look at. Source: Sun et al. 2022 for CIFAR; OpenOOD's default.
NEIGHBOUR = 50


def _fit_mahalanobis(training: TrainingSplit) -> Scorer:
    fitted = training.mahalanobis
    return lambda features, logits: fitted.score(features)


def _fit_relative_mahalanobis(training: TrainingSplit) -> Scorer:
    fitted = training.mahalanobis
    return lambda features, logits: fitted.score_relative(features)


def _fit_nearest(training: TrainingSplit) -> Scorer:
    reference = normalise(training.features)
    return lambda features, logits: -compute_nearest_distances(normalise(features), reference, k=NEIGHBOUR)


def _fit_vim(training: TrainingSplit) -> Scorer:
    return fit_virtual_logit(training.features, training.logits).score


#: Name in ``confidence.CONFIDENCE_SCORES`` → how the detector is fitted.
DETECTORS: dict[str, Callable[[TrainingSplit], Scorer]] = {
    "mahalanobis": _fit_mahalanobis,
    "relative_mahalanobis": _fit_relative_mahalanobis,
    "knn": _fit_nearest,
    "vim": _fit_vim,
}
#: Prefix of the detectors of pytorch-ood: ``pytorch_ood/SHE``.
FOREIGN = "pytorch_ood/"


def fit_detector(name: str, training: TrainingSplit) -> Scorer:
    """Return a detector fitted on the training split.

    Args:
        name: name in ``DETECTORS``, or ``pytorch_ood/<class>`` of a detector of features or logits of that package.
        training: the training split; only its images are seen.

    Raises:
        ConfigError: if there is no such detector, or pytorch-ood is not installed.
        DataError: if it cannot be fitted to these features.
    """
    if name.startswith(FOREIGN):
        from trainables.evaluation.detection.foreign_detectors import fit_foreign_detector

        return fit_foreign_detector(name.removeprefix(FOREIGN), training.features, training.labels, training.logits)
    if name not in DETECTORS:
        raise ConfigError(
            f"looked for the detector {name!r}; expected one of {', '.join(DETECTORS)}, or {FOREIGN}<class> of the "
            "package pytorch-ood"
        )
    return DETECTORS[name](training)


@dataclass(frozen=True)
class Combination:
    """Scores of several layers as one: the mean of (score − mean) / standard deviation, both of validation."""

    mean: Float64[np.ndarray, " layers"]
    deviation: Float64[np.ndarray, " layers"]

    def apply(self, scores: Float[np.ndarray, "layers n"]) -> Float64[np.ndarray, " n"]:
        """Return one score per image."""
        return ((scores - self.mean[:, None]) / self.deviation[:, None]).mean(axis=0)


def fit_combination(scores: Float[np.ndarray, "layers n"]) -> Combination:
    """Return the combination of layers, from their scores on in-distribution validation.

    Every layer counts the same: weights would have to be fitted on images from elsewhere, of which validation has none.

    Raises:
        DataError: if the scores of a layer are all equal.
    """
    deviation = scores.std(axis=1, dtype=np.float64)
    if not (deviation > 0).all():
        raise DataError(
            f"combined the scores of {len(scores)} layers and found no spread on validation in that with number "
            f"{int(np.argmin(deviation))} (from 0); expected scores that differ between images"
        )
    return Combination(scores.mean(axis=1, dtype=np.float64), deviation)


@dataclass(frozen=True)
class LayerEnsemble:
    """Mahalanobis distances of several layers, combined."""

    layers: tuple[Mahalanobis, ...]
    combination: Combination

    def score(self, features: Sequence[Float[np.ndarray, "n _"]]) -> Float64[np.ndarray, " n"]:
        """Return one score per image from its pooled features of every layer."""
        return self.combination.apply(_score_layers(self.layers, features))


def _score_layers(
    layers: Sequence[Mahalanobis], features: Sequence[Float[np.ndarray, "n _"]]
) -> Float64[np.ndarray, "layers n"]:
    return np.stack([layer.score(own) for layer, own in zip(layers, features, strict=True)])


def fit_layer_ensemble(
    training: Sequence[Iterable[Chunk]], validation: Sequence[Float[np.ndarray, "n _"]], *, num_classes: int
) -> LayerEnsemble:
    """Return the multi-layer Mahalanobis ensemble.

    Args:
        training: per layer, features (averaged over positions) and classes of the training images, in pieces.
        validation: per layer, features of the validation images.
        num_classes: number of classes of the model.

    Source: Lee et al. 2018, section 2.3. Differs: layers are combined by ``fit_combination``; there, by a logistic
    regression on adversarial images.
    """
    layers = tuple(fit_mahalanobis(chunks, num_classes=num_classes, relative=False) for chunks in training)
    return LayerEnsemble(layers, fit_combination(_score_layers(layers, validation)))


@dataclass(frozen=True)
class JudgedSet:
    """Scores of a detector on a set that is not the in-distribution test set."""

    role: Role
    scores: Shaped[np.ndarray, " n"]


def compute_near_far(inside: Shaped[np.ndarray, " n"], sets: Mapping[str, JudgedSet]) -> Metrics:
    """Return the mean of every metric of ``metrics.OOD_METRICS`` over the near, and over the far, sets.

    ``near/auroc`` is between the test set and each near set; in ``near_full_spectrum/auroc`` the images of all
    covariate sets count as in-distribution as well: a detector that only notices another scanner loses there. Every
    near or far set counts once; images of covariate sets are pooled.

    Args:
        inside: scores of the in-distribution test set.
        sets: name → scores and role of every other set.

    Source: Yang et al. 2022 (OpenOOD); full spectrum: Yang et al. 2023.
    """
    covariate = [judged.scores for judged in sets.values() if judged.role == "covariate"]
    spectrum = np.concatenate([inside, *covariate])
    values: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for role in ("near", "far"):
        own = {name: judged.scores for name, judged in sets.items() if judged.role == role}
        for prefix, images in ((role, inside), (f"{role}_full_spectrum", spectrum)):
            reason = "" if own else f"no set has the role {role}"
            if not reason and images is spectrum and not covariate:
                reason = "no set has the role covariate"
            found, problems = _average_sets(images, own) if not reason else ({}, dict.fromkeys(OOD, reason))
            values |= {f"{prefix}/{name}": value for name, value in found.items()}
            undefined |= {f"{prefix}/{name}": problem for name, problem in problems.items()}
    return Metrics(values, undefined)


def _average_sets(
    inside: Shaped[np.ndarray, " n"], sets: Mapping[str, Shaped[np.ndarray, " m"]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the mean of each metric over sets; where one of them does not define it, the reason."""
    found = {name: compute_ood_metrics(inside, scores) for name, scores in sets.items()}
    problems = {metric: f"{name}: {why}" for name, each in found.items() for metric, why in each.undefined.items()}
    return {
        metric: float(np.mean([each.values[metric] for each in found.values()]))
        for metric in OOD
        if metric not in problems
    }, problems
