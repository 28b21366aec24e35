"""Calibration of pixels: ECE, MCE, log loss and Brier score over all of an image and around its structures.

An accumulator takes batches of probabilities and keeps a few sums per case, from which the numbers of a case, of a set
and of any selection of its cases follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

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
            probabilities: probability of every class, which sum to 1 over them.
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
        masks = {"pixel": counted, "band": counted & find_band(targets, self.band_px)}
        self._batches.append(self._sum(probabilities, targets, masks))

    def finish(self) -> PixelCalibration:
        """Return the sums of all cases, in the order in which they were added.

        Raises:
            DataError: if nothing was added.
        """
        if not self._batches:
            raise DataError("summarised the calibration of pixels and found no case; expected at least one batch")
        return PixelCalibration({region: _join([batch[region] for batch in self._batches]) for region in REGIONS})

    def _sum(
        self,
        probabilities: Float[Tensor, "n classes *space"],
        targets: UInt8[Tensor, "n *space"],
        masks: dict[str, Mask],
    ) -> dict[str, PixelSums]:
        num, num_classes = probabilities.shape[:2]
        p = probabilities.flatten(2)
        true = targets.flatten(1).long()
        true = torch.where(true < num_classes, true, 0)  # those that do not count
        confidence, predicted = p.max(dim=1)
        if bool(confidence.isnan().any()):
            raise DivergedError("added probabilities to a calibration and found NaN; expected those of a finite output")
        confidence = confidence.double()
        own = p.gather(1, true[:, None])[:, 0].double()
        values = {
            "correct": (predicted == true).double(),
            "confidence": confidence,
            "nll": -torch.log(own.clamp(min=_TINY)),
            # (p_true − 1)² + Σ_(others) p², without an array of one-hot labels
            "brier": p.double().square().sum(dim=1) - 2 * own + 1,
        }
        bins = (torch.ceil(confidence * self.bins).long() - 1).clamp(0, self.bins - 1)
        bins += self.bins * torch.arange(num, device=p.device)[:, None]
        return {
            region: _sum_region(bins, {name: each[mask.flatten(1)] for name, each in values.items()}, mask, self.bins)
            for region, mask in masks.items()
        }


def _sum_region(
    bins: Int64[Tensor, "n pixels"], values: dict[str, Float64[Tensor, " counted"]], mask: Mask, num_bins: int
) -> PixelSums:
    """Return the sums of the pixels in a mask.

    Args:
        bins: bin of every pixel, those of case i from i · ``num_bins`` on.
        values: numbers of the pixels in the mask.
        mask: which pixels count.
        num_bins: number of bins.
    """
    own = bins[mask.flatten(1)]

    def add_up(weights: Tensor | None) -> Float64[np.ndarray, "n bins"]:
        sums = torch.bincount(own, weights, minlength=len(mask) * num_bins)
        return sums.double().cpu().numpy().reshape(len(mask), num_bins)

    sums = {name: add_up(each) for name, each in values.items()}
    return PixelSums(
        add_up(None), sums["correct"], sums["confidence"], sums["nll"].sum(axis=1), sums["brier"].sum(axis=1)
    )


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
    found = ((targets != 0) & (targets != UNCOUNTED)).float()
    pool = F.max_pool2d if targets.ndim == 3 else F.max_pool3d
    for axis in range(targets.ndim - 1):  # a square is a row of columns
        reach = [0] * (targets.ndim - 1)
        reach[axis] = band_px
        found = pool(found[:, None], [2 * each + 1 for each in reach], stride=1, padding=reach)[:, 0]
    return found > 0
