"""One map of the features of all sets: axes fitted on the in-distribution set alone, every other set placed on them.

A map per set would not be comparable: the same distribution, embedded twice, lies elsewhere (specification, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from trainables.errors import StudyError

#: Images that a map is fitted on at most; more move its axes by less than a point's size.
MAX_FITTED = 20_000
#: Images that t-SNE is fitted on at most: its time grows with them, and 5,000 take a minute on two cores.
MAX_FITTED_TSNE = 5_000
#: Principal components that t-SNE and clusters are computed on, as in van der Maaten & Hinton 2008, section 4.
NUM_COMPONENTS = 30
#: Rows that are converted to float64 at a time: 32 MiB at 512 features.
_CHUNK_ROWS = 8_192

INSTALL_TSNE = "pip install 'robustsweep[explore]'"


@dataclass(frozen=True)
class Axes:
    """Principal components of one set; the first explains most. Fitted by ``fit_axes``."""

    mean: Float[np.ndarray, " features"]
    components: Float[np.ndarray, "features components"]
    #: Share of the variance along each component, in [0, 1].
    explained: Float[np.ndarray, " components"]

    def place(self, features: np.ndarray) -> Float32[np.ndarray, "n components"]:
        """Return the coordinates of images by their features (n × features, any float type, may be memory-mapped)."""
        placed = [(chunk - self.mean) @ self.components for chunk in _chunks(features)]
        empty = np.zeros((0, self.components.shape[1]))
        return np.concatenate([empty, *placed]).astype(np.float32)


def fit_axes(features: np.ndarray, *, num_components: int, seed: int = 0) -> Axes:
    """Return the principal components of features (n × features), the sign of each fixed.

    Args:
        features: of the in-distribution set; of more than ``MAX_FITTED`` images a random part.
        num_components: number of components; components that the features lack are 0.
        seed: seed of that part.
    """
    rows = choose_rows(len(features), MAX_FITTED, seed)
    mean = sum((chunk.sum(axis=0) for chunk in _chunks(features, rows)), np.zeros(features.shape[1])) / len(rows)
    size = features.shape[1]
    covariance = np.zeros((size, size))
    for chunk in _chunks(features, rows):
        centred = chunk - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance / max(1, len(rows) - 1))
    order = np.argsort(values)[::-1][:num_components]
    components, variances = vectors[:, order], np.clip(values[order], 0.0, None)
    signs = np.sign(components[np.abs(components).argmax(axis=0), np.arange(components.shape[1])])
    components = components * np.where(signs == 0, 1.0, signs)
    missing = num_components - components.shape[1]
    total = float(np.clip(values, 0.0, None).sum())
    return Axes(
        mean,
        np.pad(components, ((0, 0), (0, missing))),
        np.pad(variances / total if total > 0 else variances, (0, missing)),
    )


def choose_rows(count: int, most: int, seed: int) -> np.ndarray:
    """Return the sorted indices of at most ``most`` of ``count`` rows, a random part if there are more."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _chunks(features: np.ndarray, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    rows = np.arange(len(features)) if rows is None else rows
    for start in range(0, len(rows), _CHUNK_ROWS):
        yield np.asarray(features[rows[start : start + _CHUNK_ROWS]], dtype=np.float64)


def check_tsne() -> None:
    """Check that openTSNE is installed.

    Raises:
        StudyError: it is not; the message has the command that installs it.
    """
    from importlib.util import find_spec

    if find_spec("openTSNE") is None:
        raise StudyError(f"asked for a t-SNE map, and openTSNE is not installed; install it with: {INSTALL_TSNE}")


def embed_tsne(
    reference: Float32[np.ndarray, "fitted components"],
    others: Float32[np.ndarray, "n components"],
    *,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[Float32[np.ndarray, "fitted 2"], Float32[np.ndarray, "n 2"]]:
    """Return the t-SNE map of the in-distribution images, and the places on it of all others.

    Args:
        reference: principal components of the images that the map is fitted on, at most ``MAX_FITTED_TSNE``.
        others: principal components of further images, which are placed on the finished map.
        seed: seed of the fit.
        on_progress: callback with the finished share, in [0, 1].

    Raises:
        StudyError: openTSNE is not installed.

    Source: van der Maaten & Hinton 2008; places of new images: Poličar et al. 2023, openTSNE's ``transform``.
    """
    check_tsne()
    from openTSNE import TSNE

    iterations = 750  # openTSNE's default: 250 with early exaggeration, 500 without

    def report(iteration: int, error: float, embedding: np.ndarray) -> None:
        report.done += 50  # type: ignore[attr-defined]
        on_progress(0.6 * min(1.0, report.done / iterations))  # type: ignore[attr-defined]

    report.done = 0  # type: ignore[attr-defined]
    perplexity = min(30.0, max(2.0, (len(reference) - 1) / 3))
    fitted = TSNE(perplexity=perplexity, random_state=seed, callbacks=report, callbacks_every_iters=50, n_jobs=1).fit(
        reference
    )
    placed = [np.zeros((0, 2), np.float32)]
    for start in range(0, len(others), 2_048):
        placed.append(np.asarray(fitted.transform(others[start : start + 2_048]), dtype=np.float32))
        on_progress(0.6 + 0.4 * min(1.0, (start + 2_048) / len(others)))
    return np.asarray(fitted, dtype=np.float32), np.concatenate(placed)
