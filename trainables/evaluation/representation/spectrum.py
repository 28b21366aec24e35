"""Eigen-spectrum of a layer's activations, from a covariance summed in float64, and numbers that describe it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from trainables.evaluation.representation.effective_rank import compute_rank

#: Percentiles of the condition number.
HIGH, LOW = 99.9, 90.0
#: First and last rank of the power law's fit: arange(3, 100) of the released code of Agrawal et al. 2022, from 0.
FIRST_RANK, LAST_RANK = 4, 100
#: Last eigenvalues that are not fitted, as in that code; and the fewest that make a fit, an assumption.
TAIL, MIN_RANKS = 10, 10
#: Eigenvalues below this share of the largest are rounding errors of activations in float32.
_ROUNDING = 1e-12
#: Samples of which float64 copies are held at once: 67 MB of 2,048 channels.
_BATCH = 4096


class CovarianceSum:
    """Sums over samples, from which their covariance is computed."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sums: list[Tensor] = []

    def update(self, samples: Shaped[Tensor, "n channels"]) -> None:
        """Add n samples."""
        for start in range(0, len(samples), _BATCH):
            x = samples[start : start + _BATCH].double()
            if self._shift is None:  # a covariance is blind to a constant: less is lost to rounding near 0
                self._shift = x.mean(0)
            x = x - self._shift
            sums = [x.T @ x, x.sum(0)]
            self._sums = [old.add_(new) for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums
            self.count += len(x)

    @property
    def num_channels(self) -> int:
        """Number of channels, 0 before the first sample."""
        return len(self._sums[1]) if self._sums else 0

    def compute_spectrum(self) -> Spectrum:
        """Return the spectrum of the covariance.

        Raises:
            ValueError: there are fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"computed the spectrum of {self.count} samples, expected two or more")
        product, total = self._sums
        covariance = (product - torch.outer(total, total) / self.count) / (self.count - 1)
        values = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0.0).cpu().numpy()
        return Spectrum(values[: min(self.count - 1, len(values))])


def compute_spectrum(features: Shaped[Tensor, "n d"]) -> Spectrum:
    """Return the spectrum of the covariance of features of n images.

    Of fewer images than features the smaller matrix of their products is taken, which has the same eigenvalues.

    Raises:
        ValueError: there are fewer than two images.
    """
    if not 2 <= len(features) < features.shape[1]:
        covariance = CovarianceSum()
        covariance.update(features)
        return covariance.compute_spectrum()
    x = features.double() - features.double().mean(0)
    values = torch.linalg.eigvalsh(x @ x.T / (len(x) - 1)).flip(0).clamp(min=0.0)
    return Spectrum(values[:-1].cpu().numpy())


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the covariance of activations, the largest first: all that can differ from 0."""

    eigenvalues: Float64[np.ndarray, " k"]

    def compute_condition_number(self) -> float | None:
        """Return P99.9(λ) / P90(λ) ≥ 1, percentiles interpolated between eigenvalues; None if the latter is 0.

        Source: Srinivasan et al. 2022 (arXiv 2106.13497), section on the statistics of features. Differs: activations
        are not standardised, positions are samples and not variables, and all eigenvalues count, not the first 100.
        """
        if not len(self.eigenvalues):
            return None
        high, low = np.percentile(self.eigenvalues, [HIGH, LOW])
        return None if low <= _ROUNDING * high else float(high / low)

    def compute_kurtosis(self) -> float | None:
        """Return the excess kurtosis of ranks 0, ±1, ±2, … weighted by their eigenvalues; None if one has all variance.

        Σλ·Σλh⁴ / (Σλh²)² − 3 over the ranks h, counted from 0 and mirrored there. The faster eigenvalues fall, the
        larger it is; equal ones have about −1.2, as the uniform distribution.

        Source: Srinivasan et al. 2022 (arXiv 2106.13497), figure on the eigenvalues of the first convolution, and its
        released code, which draws each rank floor(λ/5) times. Differs: ranks are weighted, not drawn.
        """
        ranks = np.arange(len(self.eigenvalues), dtype=np.float64)
        weights = self.eigenvalues * np.where(ranks > 0, 2.0, 1.0)
        second = float(weights @ ranks**2)
        if second <= _ROUNDING * float(weights.sum()):
            return None
        return float(weights.sum()) * float(weights @ ranks**4) / second**2 - 3.0

    def compute_effective_rank(self) -> float | None:
        """Return exp of the entropy of √λ as shares of their sum, in [1, k]; None if nothing varies.

        √λ are the singular values of the centred activations, up to a factor. Differs from RankMe, which does not
        centre: of features that are not negative the mean would be the largest direction.

        Source: Roy & Vetterli 2007 (The effective rank), eq. 3.
        """
        if not self.eigenvalues.any():
            return None
        values = self.eigenvalues[self.eigenvalues > _ROUNDING * self.eigenvalues.max()]
        return compute_rank(torch.from_numpy(np.sqrt(values)))

    def compute_alpha(self) -> float | None:
        """Return α of the power law λ ∝ rank^−α, fitted to ranks 4 to 100; None if there are fewer than ten of them.

        Least squares of log λ on log rank with weights 1/rank; the last ten eigenvalues are left out.

        Source: Agrawal et al. 2022 (α-ReQ), section 3; the fit is that of Stringer et al. 2019 (High-dimensional
        geometry of population responses), as in the released code of both.
        """
        last = min(LAST_RANK, len(self.eigenvalues) - TAIL)
        ranks = np.arange(FIRST_RANK, last + 1, dtype=np.float64)
        values = self.eigenvalues[FIRST_RANK - 1 : max(last, 0)]
        if len(ranks) < MIN_RANKS or values.min() <= _ROUNDING * self.eigenvalues[0]:
            return None
        x, y, weights = np.log(ranks), np.log(values), 1.0 / ranks
        x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
        return -float((weights * x) @ y / ((weights * x) @ x))
