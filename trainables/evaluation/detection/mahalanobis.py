"""Mahalanobis distances to the classes of training, and to training as a whole, fitted in one pass over features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from trainables.errors import DataError

#: Rows that are taken at a time: 32 MiB of 2048 features. Memory does not depend on the number of images.
BLOCK_ROWS = 4096

#: Features (images × features) of some images, and their classes.
Chunk = tuple[Float[np.ndarray, "_ _"], Int[np.ndarray, " _"]]


@dataclass(frozen=True)
class Gaussians:
    """Normal distributions with one covariance Σ. Distances are ‖(z − origin)·W − centre‖², with W·Wᵀ = Σ⁻¹."""

    origin: Float[np.ndarray, " features"]
    whitening: Float[np.ndarray, "features features"]
    #: Means of the distributions, less the origin, times W.
    centres: Float[np.ndarray, "classes features"]
    #: Share of Σ that is the mean variance on the diagonal instead of the covariance of training.
    shrinkage: float

    def compute_distances(self, features: Float[np.ndarray, "n features"]) -> Float64[np.ndarray, "n classes"]:
        """Return the squared Mahalanobis distance of every image to every distribution."""
        kind = self.whitening.dtype
        lengths = np.square(self.centres, dtype=np.float64).sum(axis=1)
        found = np.empty((len(features), len(self.centres)))
        for rows in split_rows(len(features)):
            white = (features[rows].astype(kind) - self.origin.astype(kind)) @ self.whitening
            own = np.einsum("ij,ij->i", white, white, dtype=np.float64)
            found[rows] = own[:, None] - 2.0 * (white @ self.centres.T) + lengths
        return np.maximum(found, 0.0)


def split_rows(num_rows: int) -> Iterator[slice]:
    """Yield blocks of rows that fit into memory."""
    for start in range(0, num_rows, BLOCK_ROWS):
        yield slice(start, start + BLOCK_ROWS)


@dataclass(frozen=True)
class Mahalanobis:
    """Distributions of the classes with one covariance, and one distribution of all training images."""

    classes: Gaussians
    background: Gaussians

    def score(self, features: Float[np.ndarray, "n features"]) -> Float64[np.ndarray, " n"]:
        """Return minus the distance to the nearest class; higher is more like training."""
        return -self.classes.compute_distances(features).min(axis=1)

    def score_relative(self, features: Float[np.ndarray, "n features"]) -> Float64[np.ndarray, " n"]:
        """Return minus the distance to the nearest class beyond that to the background; higher is more like a class."""
        return self.background.compute_distances(features)[:, 0] + self.score(features)


def fit_mahalanobis(
    chunks: Iterable[Chunk], *, num_classes: int, shrinkage: float | None = None, relative: bool = True
) -> Mahalanobis:
    """Return the distributions of the features of training, from one pass.

    Memory is that of a chunk, of classes × features and of features × features, whatever the number of images. Features
    of 16 and 32 bits are multiplied in 32 bits, and their blocks added in 64.

    Args:
        chunks: features and classes of the training images, in pieces; each class that occurs has one.
        num_classes: number of classes of the model.
        shrinkage: share of the mean variance in each covariance, in [0, 1]; None: chosen by ``choose_shrinkage``.
        relative: whether the background is needed; without it ``background`` has the covariance of the classes.

    Raises:
        DataError: if there are no images, a label is not one of the classes, or the features do not vary.

    Source: Lee et al. 2018; background: Ren et al. 2021.
    """
    moments = _Moments(num_classes)
    for features, labels in chunks:
        for rows in split_rows(len(features)):
            moments.add(features[rows], labels[rows])
    if moments.scatter is None:
        raise DataError("fitted Mahalanobis distances and found no training images; expected features of them")
    present = moments.counts > 0
    counts, total = moments.counts[present], moments.counts.sum()
    step = moments.sums[present] / counts[:, None]
    means = moments.reference[present] + step
    within = (moments.scatter - (step.T * counts) @ step) / total
    origin = counts @ means / total
    classes = _build(within, means, origin, int(total), shrinkage, moments.kind)
    if not relative:
        return Mahalanobis(classes, classes)
    apart = means - origin
    everything = within + (apart.T * (counts / total)) @ apart
    return Mahalanobis(classes, _build(everything, origin[None], origin, int(total), shrinkage, moments.kind))


class _Moments:
    """Sums over images of z − r_c and of its outer product; r_c is the mean of class c in the first chunk that has it.

    Differences to a mean of the same class are small, so that little is lost when sums are subtracted from each other.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros(num_classes)
        self.scatter: Float64[np.ndarray, "features features"] | None = None
        self.sums = self.reference = np.zeros((num_classes, 0))
        self.kind = np.dtype(np.float32)

    def add(self, features: Float[np.ndarray, "m features"], labels: Int[np.ndarray, " m"]) -> None:
        """Add some images."""
        num_classes = len(self.counts)
        if not len(features):
            return
        if labels.min() < 0 or labels.max() >= num_classes:
            raise DataError(
                f"fitted Mahalanobis distances and found labels from {labels.min()} to {labels.max()}; expected "
                f"classes from 0 to {num_classes - 1}: fit on the training split only"
            )
        if self.scatter is None:
            self.kind = np.result_type(np.float32, features.dtype)
            self.scatter = np.zeros((features.shape[1], features.shape[1]))
            self.sums, self.reference = np.zeros((2, num_classes, features.shape[1]))
        rows = features.astype(self.kind)
        is_class = (labels == np.arange(num_classes)[:, None]).astype(self.kind)
        counts = is_class.sum(axis=1, dtype=np.float64)
        new = (self.counts == 0) & (counts > 0)
        if new.any():
            self.reference[new] = (is_class[new] @ rows) / counts[new, None]
        rows -= self.reference.astype(self.kind)[labels]
        self.counts += counts
        self.sums += is_class @ rows
        self.scatter += rows.T @ rows


def _build(
    covariance: Float64[np.ndarray, "features features"],
    means: Float64[np.ndarray, "classes features"],
    origin: Float64[np.ndarray, " features"],
    num_images: int,
    shrinkage: float | None,
    kind: np.dtype,
) -> Gaussians:
    from scipy.linalg.lapack import dtrtri

    variance = float(np.trace(covariance)) / len(covariance)
    if not variance > 0:
        raise DataError(
            f"fitted Mahalanobis distances to {num_images} training images and found features that do not vary within "
            "classes; expected several images of a class"
        )
    share = choose_shrinkage(covariance, num_images) if shrinkage is None else shrinkage
    shrunk = (1 - share) * covariance
    shrunk[np.diag_indices(len(shrunk))] += share * variance
    try:
        lower = np.linalg.cholesky(shrunk)
    except np.linalg.LinAlgError as error:
        raise DataError(
            f"fitted Mahalanobis distances to {num_images} training images with a shrinkage of {share:g} and found a "
            "covariance that cannot be inverted; expected a larger shrinkage"
        ) from error
    inverse, _ = dtrtri(lower, lower=1)
    whitening = np.ascontiguousarray(np.tril(inverse).T)
    return Gaussians(origin, whitening.astype(kind), ((means - origin) @ whitening).astype(kind), share)


def choose_shrinkage(covariance: Float64[np.ndarray, "features features"], num_images: int) -> float:
    """Return the share of the mean variance with the least expected squared error, in (0, 1].

    It needs the covariance alone: Ledoit and Wolf's needs fourth moments about each class's mean, which one pass does
    not know. The more features there are for the images, the more is shrunk.

    Args:
        covariance: covariance of ``num_images`` images about their means.
        num_images: number of images.

    Source: Chen et al. 2010 (OAS), as scikit-learn computes it.
    """
    num_features = len(covariance)
    mean_square = float(np.square(covariance).mean())
    variance = float(np.trace(covariance)) / num_features
    spread = (num_images + 1) * (mean_square - variance**2 / num_features)
    return 1.0 if spread <= 0 else min(1.0, (mean_square + variance**2) / spread)
