"""Calibration of pixels: ECE, MCE, log loss and Brier score over all of an image and around its structures.

An accumulator takes batches of probabilities and keeps a few sums per case, from which the numbers of a case, of a set
and of any selection of its cases follow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from trainables.data.dataset import UNCOUNTED
from trainables.errors import DataError, DivergedError

#: Regions of an image, prefix of their metrics: all counted pixels, and those of the band around the structures.
REGIONS = ("pixel", "band")
#: Metrics of each region.
KINDS = ("ece", "mce", "nll", "brier")
#: Smallest normal number of 32 bits. A true class of less probability, or of none, counts with it: 87.3 of log loss.
_TINY = float(np.finfo(np.float32).tiny)
Mask = Bool[Tensor, "n *space"]


@dataclass(frozen=True)
class PixelSums:
    """Sums over the pixels of one region, per case; from these every metric of the region follows."""

    #: Pixels in each bin of the confidence.
    count: Float64[np.ndarray, "*cases bins"]
    #: Those of them whose largest probability is the true class's.
    correct: Float64[np.ndarray, "*cases bins"]
    #: Sum of the largest probabilities.
    confidence: Float64[np.ndarray, "*cases bins"]
    nll: Float64[np.ndarray, "*cases"]
    brier: Float64[np.ndarray, "*cases"]

    def take(self, cases: np.ndarray) -> PixelSums:
        """Return the sums of some cases, by index or mask."""
        return PixelSums(**{part.name: getattr(self, part.name)[cases] for part in fields(self)})

    def pool(self) -> PixelSums:
        """Return the sums over all cases."""
        return PixelSums(**{part.name: np.asarray(getattr(self, part.name).sum(axis=0)) for part in fields(self)})

    def measure(self) -> dict[str, Float64[np.ndarray, "*cases"]]:
        """Return ECE, MCE, log loss and Brier score; lower is better, NaN without a pixel in the region.

        ece and mce are Σ (n_m/N)·|accuracy_m − confidence_m| and the largest |accuracy_m − confidence_m| over
        equal-width bins (low, high] of the confidence, as in ``classification.compute_ece``.

        Source: Guo et al. 2017, eq. 3 and 5.
        """
        gaps = np.abs(self.correct - self.confidence)
        total = self.count.sum(axis=-1)
        found = {
            "ece": gaps.sum(axis=-1) / np.maximum(total, 1),
            "mce": (gaps / np.maximum(self.count, 1)).max(axis=-1),
            "nll": self.nll / np.maximum(total, 1),
            "brier": self.brier / np.maximum(total, 1),
        }
        return {kind: np.where(total > 0, found[kind], np.nan) for kind in KINDS}


@dataclass(frozen=True)
class PixelCalibration:
    """Sums of both regions; ``regions`` has a ``PixelSums`` for each name in ``REGIONS``."""

    regions: dict[str, PixelSums]

    def take(self, cases: np.ndarray) -> PixelCalibration:
        """Return the sums of some cases, by index or mask."""
        return PixelCalibration({region: sums.take(cases) for region, sums in self.regions.items()})

    def per_case(self) -> dict[str, Float64[np.ndarray, " n"]]:
        """Return ``pixel_ece`` to ``band_brier`` of every case; NaN where it has no pixel in the region."""
        return {
            f"{region}_{kind}": values
            for region, sums in self.regions.items()
            for kind, values in sums.measure().items()
        }

    def pooled(self) -> dict[str, float]:
        """Return ``pixel_ece`` to ``band_brier`` over the pixels of all cases together; NaN without a pixel."""
        return {
            f"{region}_{kind}": float(value)
            for region, sums in self.regions.items()
            for kind, value in sums.pool().measure().items()
        }


class CalibrationAccumulator:
    """Sums over the pixels of case after case; no probabilities are kept.

    Args:
        bins: number of equal-width bins of the confidence.
        band_px: rows, columns (and slices) by which the target's foreground is dilated to the band.
    """

    def __init__(self, *, bins: int, band_px: int) -> None:
        self.bins, self.band_px = bins, band_px
        self._batches: list[dict[str, PixelSums]] = []

    def add(self, probabilities: Float[Tensor, "n classes *space"], targets: UInt8[Tensor, "n *space"]) -> None:
        """Add a batch of cases.

        Args:
            probabilities: probability of every class, which sum to 1 over them; in 32 bits or more.
            targets: true classes, ``UNCOUNTED`` where no metric counts; on the device of the probabilities.

        Raises:
            DataError: if shapes differ.
            DivergedError: if a probability is NaN.
        """
        if (probabilities.shape[0], *probabilities.shape[2:]) != tuple(targets.shape):
            raise DataError(
                f"added probabilities of shape {tuple(probabilities.shape)} to a calibration and found targets of "
                f"shape {tuple(targets.shape)}; expected those without the classes, in second place"
            )
        counted = targets != UNCOUNTED
        zones = counted.long() + (counted & find_band(targets, self.band_px))
        self._batches.append(_sum_zones(probabilities.flatten(2), targets.flatten(1), zones.flatten(1), self.bins))

    def finish(self) -> PixelCalibration:
        """Return the sums of all cases, in the order in which they were added.

        Raises:
            DataError: if nothing was added.
        """
        if not self._batches:
            raise DataError("summarised the calibration of pixels and found no case; expected at least one batch")
        return PixelCalibration({region: _join([batch[region] for batch in self._batches]) for region in REGIONS})


def _sum_zones(
    p: Float[Tensor, "n classes pixels"],
    targets: UInt8[Tensor, "n pixels"],
    zones: Int64[Tensor, "n pixels"],
    num_bins: int,
) -> dict[str, PixelSums]:
    """Return the sums of both regions; ``zones`` is 0 for pixels that do not count, 2 in the band, 1 elsewhere."""
    num, num_classes, _ = p.shape
    confidence, predicted = p.max(dim=1)
    if bool(confidence.isnan().any()):
        raise DivergedError("added probabilities to a calibration and found NaN; expected those of a finite output")
    true = torch.where(targets < num_classes, targets, 0).long()  # of those that do not count: any
    own = p.gather(1, true[:, None])[:, 0]
    confidence = confidence.double()
    # Pixels of one case, zone and bin have one number; those that are right follow those that are not.
    place = torch.ceil(confidence * num_bins).long().sub_(1).clamp_(0, num_bins - 1)
    place += num_bins * (zones + 3 * torch.arange(num, device=p.device)[:, None])
    counts = _add_up(2 * place + (predicted == true), None, (num, 3, num_bins, 2))
    confidences = _add_up(place, confidence, (num, 3, num_bins))
    # (p_true − 1)² + Σ_(others) p², without an array of one-hot labels
    pixels = {"nll": -torch.log(own.clamp(min=_TINY)), "brier": p.square().sum(dim=1).sub_(own, alpha=2).add_(1)}
    found = {}
    for region, first in zip(REGIONS, (1, 2), strict=True):
        weights = (zones >= first).to(p.dtype)
        sums = {name: (each * weights).sum(dim=1, dtype=torch.float64).cpu().numpy() for name, each in pixels.items()}
        both = counts[:, first:].sum(axis=1)
        found[region] = PixelSums(both.sum(axis=-1), both[..., 1], confidences[:, first:].sum(axis=1), **sums)
    return found


def _add_up(
    place: Int64[Tensor, "n pixels"], weights: Float64[Tensor, "n pixels"] | None, shape: tuple[int, ...]
) -> Float64[np.ndarray, "*shape"]:
    """Return the number of pixels at each place of an array, or the sums of their weights."""
    flat = None if weights is None else weights.flatten()
    return torch.bincount(place.flatten(), flat, minlength=math.prod(shape)).double().cpu().numpy().reshape(shape)


def _join(batches: Sequence[PixelSums]) -> PixelSums:
    return PixelSums(
        **{part.name: np.concatenate([getattr(batch, part.name) for batch in batches]) for part in fields(PixelSums)}
    )


def find_band(targets: UInt8[Tensor, "n *space"], band_px: int) -> Mask:
    """Return the pixels at most ``band_px`` rows, columns and slices away from a foreground pixel of the target.

    That is the target's foreground, of all classes but the first together, dilated by a square or cube. ``UNCOUNTED``
    pixels are no foreground.

    Source: Karimi & Gholipour 2022, who dilate the foreground by an amount that they do not give.
    """
    found = (targets != 0) & (targets != UNCOUNTED)
    for axis in range(1, targets.ndim):  # a square is a row of columns
        reach = 0
        while reach < min(band_px, targets.shape[axis] - 1):
            step = min(2 * reach + 1, band_px - reach, targets.shape[axis] - 1)
            length = targets.shape[axis] - step
            wider = found.clone()
            wider.narrow(axis, step, length).logical_or_(found.narrow(axis, 0, length))
            wider.narrow(axis, 0, length).logical_or_(found.narrow(axis, step, length))
            found, reach = wider, reach + step
    return found
