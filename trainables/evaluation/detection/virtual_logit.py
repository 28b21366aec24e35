"""ViM: how much of a feature lies outside the space in which training varies, as one more logit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from trainables.errors import DataError
from trainables.evaluation.detection.logit_scores import compute_energy
from trainables.evaluation.detection.mahalanobis import split_rows

#: Largest share of the logits' variance that the last layer, found again from features of 16 bits, may leave over.
#: Rounding leaves 1e-6; outputs that are no affine map of the features leave much more.
_LARGEST_REST = 1e-3


@dataclass(frozen=True)
class LastLayer:
    """Weights W (classes × features) and bias b of the last layer: f = W·z + b."""

    weights: Float64[np.ndarray, "classes features"]
    bias: Float64[np.ndarray, " classes"]


def find_last_layer(
    features: Float[np.ndarray, "n features"], logits: Float[np.ndarray, "n classes"]
) -> tuple[LastLayer, Float64[np.ndarray, "features features"], Float64[np.ndarray, " features"]]:
    """Return the last layer, the covariance of the features and their mean.

    The layer is the least-squares map from features to logits, which is exact where they vary; directions in which they
    do not have weight 0.

    Args:
        features: penultimate features of the training images.
        logits: their logits.

    Raises:
        DataError: if the logits are not an affine map of the features.
    """
    mean, mean_logits = features.mean(axis=0, dtype=np.float64), logits.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((features.shape[1], features.shape[1]))
    shared = np.zeros((features.shape[1], logits.shape[1]))
    variance = 0.0
    for rows in split_rows(len(features)):
        centred, outputs = features[rows] - mean, logits[rows] - mean_logits
        covariance += centred.T @ centred
        shared += centred.T @ outputs
        variance += float(np.square(outputs).sum())
    weights = np.linalg.lstsq(covariance, shared, rcond=1e-10)[0].T
    rest = variance - float((weights * shared.T).sum())
    if rest > _LARGEST_REST * variance:
        raise DataError(
            f"looked for the last layer that maps {features.shape[1]} features to {logits.shape[1]} logits and found "
            f"{rest / variance:.2%} of the logits' variance left over; expected penultimate features and their logits"
        )
    return LastLayer(weights, mean_logits - weights @ mean), covariance / len(features), mean


@dataclass(frozen=True)
class VirtualLogit:
    """Origin o, basis of the space in which training hardly varies, and the scale α of the virtual logit."""

    origin: Float64[np.ndarray, " features"]
    rest: Float[np.ndarray, "features directions"]
    scale: float

    def score(
        self, features: Float[np.ndarray, "n features"], logits: Float[np.ndarray, "n classes"]
    ) -> Float64[np.ndarray, " n"]:
        """Return log Σ exp(f) − α·‖(z − o)·R‖; it ranks as one minus the softmax of the virtual logit."""
        return compute_energy(logits.astype(np.float64)) - self.scale * self._measure_rest(features)

    def _measure_rest(self, features: Float[np.ndarray, "n features"]) -> Float64[np.ndarray, " n"]:
        found = np.empty(len(features))
        for rows in split_rows(len(features)):
            centred = (features[rows] - self.origin).astype(self.rest.dtype)
            found[rows] = np.linalg.norm(centred @ self.rest, axis=1)
        return found


def choose_dimension(num_features: int) -> int:
    """Return the dimension of the principal space: 1000 from 2048 features on, 512 from 768 on, otherwise half.

    Source: Wang et al. 2022, section 4.3; half: OpenOOD.
    """
    if num_features >= 2048:
        return 1000
    return 512 if num_features >= 768 else num_features // 2


def fit_virtual_logit(
    features: Float[np.ndarray, "n features"],
    logits: Float[np.ndarray, "n classes"],
    *,
    dimension: int | None = None,
) -> VirtualLogit:
    """Return ViM fitted on training, from two passes over its features in blocks.

    Args:
        features: penultimate features of the training images, more than one of them.
        logits: their logits.
        dimension: dimension of the principal space; None: that of ``choose_dimension``.

    Raises:
        DataError: if the logits are not an affine map of the features, or nothing lies outside the principal space.

    Source: Wang et al. 2022.
    """
    layer, covariance, mean = find_last_layer(features, logits)
    origin = -np.linalg.pinv(layer.weights) @ layer.bias
    offset = mean - origin
    directions = np.linalg.eigh(covariance + np.outer(offset, offset))[1]  # variances in ascending order
    principal = choose_dimension(features.shape[1]) if dimension is None else dimension
    rest = directions[:, : features.shape[1] - principal]
    found = VirtualLogit(origin, rest.astype(np.result_type(np.float32, features.dtype)), 1.0)
    length = float(found._measure_rest(features).mean())
    if not length > 0:
        raise DataError(
            f"fitted ViM on {len(features)} training images and found nothing outside a principal space of {principal} "
            f"of {features.shape[1]} dimensions; expected more images than dimensions, or a smaller dimension"
        )
    return VirtualLogit(origin, found.rest, float(logits.max(axis=1).mean(dtype=np.float64)) / length)
