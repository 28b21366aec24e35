"""Uncertainty of every pixel from logits, and confidences of images from it, in all aggregations.

Names are those of ``confidence.CONFIDENCE_SCORES``, of images ``<score>/<aggregation>``. A map is higher, the less
certain a pixel is; what is returned per image is higher, the more the segmentation is trusted, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Integer
from torch import Tensor

from trainables.evaluation.segmentation_ood.aggregations import BOUNDARY, PATCH, aggregate_uncertainty
from trainables.models.mc_dropout import RunningScores, compute_entropy

Logits = Float[Tensor, "n classes *space"]
Shares = Float[Tensor, "n classes *space"]
Maps = Float[Tensor, "n *space"]


def _compute_msr(logits: Logits, shares: Shares) -> Maps:
    return shares.scatter(1, shares.argmax(1, keepdim=True), 0.0).sum(1)  # 1 − max p, exact near 0


def _compute_predictive_entropy(logits: Logits, shares: Shares) -> Maps:
    return compute_entropy(shares)


def _compute_energy(logits: Logits, shares: Shares) -> Maps:
    return -logits.logsumexp(1)


def _compute_margin(logits: Logits, shares: Shares) -> Maps:
    largest = shares.topk(2, dim=1).values
    return 1 - (largest[:, 0] - largest[:, 1])


#: Name of a score of one pass → its map from logits and their softmax: 1 − max p, H(p), −log Σ exp(f), 1 − (p₁ − p₂).
PIXEL_SCORES: Mapping[str, Callable[[Logits, Shares], Maps]] = {
    "msr": _compute_msr,
    "predictive_entropy": _compute_predictive_entropy,
    "energy": _compute_energy,
    "margin": _compute_margin,
}
#: Scores of several passes, named after where they come from: ``mc_dropout_entropy``, ``ensemble_mutual_information``.
PASS_SCORES = ("msr", "entropy", "expected_entropy", "mutual_information")
#: Where several predictions of one image come from.
Source = Literal["mc_dropout", "ensemble"]


def compute_uncertainties(logits: Logits) -> dict[str, Maps]:
    """Return the uncertainty maps of one pass by the names of ``PIXEL_SCORES``.

    Args:
        logits: unnormalised outputs, two or more classes; computed with in 32 bits, in 64 if they are.
    """
    wide = logits if logits.element_size() > 2 else logits.float()
    shares = wide.softmax(1)
    return {name: compute(wide, shares) for name, compute in PIXEL_SCORES.items()}


def compute_uncertainties_of_passes(running: RunningScores, source: Source) -> dict[str, Maps]:
    """Return the uncertainty maps of several passes or members by name: ``<source>_<score>`` of ``PASS_SCORES``.

    ``RunningScores`` sums up: one of 32 bits per batch, ``add`` once per pass or member, no pass is kept.
    """
    maps = running.compute_uncertainties()
    return {f"{source}_{name}": each for name, each in zip(PASS_SCORES, maps[: len(PASS_SCORES)], strict=True)}


def compute_confidences(
    uncertainties: Mapping[str, Maps],
    prediction: Integer[Tensor, "n *space"],
    *,
    patch: int = PATCH,
    boundary: int = BOUNDARY,
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Return ``<score>/<aggregation>`` → confidence of every image: minus its mean uncertainty.

    Args:
        uncertainties: maps by name of the score.
        prediction: the segmentation that is judged, of all scores the same: 0 is background. Of MC dropout, that of the
            network without dropout; of an ensemble, the class with the largest mean probability.
        patch: side of a patch, in pixels.
        boundary: distance from predicted boundaries up to which pixels are left out, in pixels.

    Raises:
        DataError: if the maps are too small, or have neither two nor three axes (``aggregate_uncertainty``).
    """
    return {
        f"{name}/{aggregation}": -values.cpu().numpy()
        for name, maps in uncertainties.items()
        for aggregation, values in aggregate_uncertainty(maps, prediction, patch=patch, boundary=boundary).items()
    }
