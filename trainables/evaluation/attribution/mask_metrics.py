"""Agreement of relevance maps with lesion masks: mass, rank accuracy, pointing game, concentration by lesion area.

All functions take many images at once. A map without any relevance counts as a uniform one: it knows nothing, and every
metric then has its value by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped

from trainables.errors import DivergedError
from trainables.evaluation.attribution.components import Components
from trainables.evaluation.attribution.table import AREA_BINS

Relevance = Float32[np.ndarray, "n h w"]
Masks = Bool[np.ndarray, "n h w"]
#: ``positive``: evidence for the explained class. ``absolute``: evidence for or against it.
Sign = Literal["positive", "absolute"]
#: Spread of the centre prior as a share of the image's side: an assumption. Along an axis 68 % of the relevance is then
#: in the middle half of the image.
CENTRE_SIGMA = 0.25


def take_relevance(attribution: Float32[np.ndarray, "n h w"], sign: Sign) -> tuple[Relevance, Bool[np.ndarray, " n"]]:
    """Return the relevance, 0 or more, of signed attributions, and which maps have none: they become maps of ones.

    Args:
        attribution: signed attributions of the pixels.
        sign: whether evidence against the class counts as none (``positive``) or as much as evidence for it.

    Raises:
        DivergedError: an attribution is not finite.
    """
    if not np.isfinite(attribution).all():
        bad = int((~np.isfinite(attribution)).any(axis=(1, 2)).sum())
        raise DivergedError(
            f"computed the attributions of {len(attribution)} images and found values that are not finite in {bad} of "
            "them; expected finite ones: lower training.learning_rate or set training.gradient_clip_norm"
        )
    relevance = np.abs(attribution) if sign == "absolute" else np.maximum(attribution, 0)
    is_empty = ~relevance.any(axis=(1, 2))
    relevance[is_empty] = 1
    return relevance, is_empty


def compute_relevance_mass(relevance: Relevance, masks: Masks) -> Float64[np.ndarray, " n"]:
    """Return the share of each image's relevance that lies inside its mask, in [0, 1]; higher is better.

    Source: Arras, Osman & Samek 2022 (CLEVR-XAI), relevance mass accuracy.
    """
    inside = np.einsum("nhw,nhw->n", relevance, masks, dtype=np.float64)
    return inside / relevance.sum(axis=(1, 2), dtype=np.float64)


def compute_relevance_rank(relevance: Relevance, masks: Masks) -> Float64[np.ndarray, " n"]:
    """Return the share of each image's K most relevant pixels inside its mask of K pixels, in [0, 1]; higher is better.

    Of pixels that tie at the K-th place, the share that fits counts, which is the mean over all orders. NaN for an
    empty mask.

    Source: Arras, Osman & Samek 2022 (CLEVR-XAI), relevance rank accuracy. Differs: ties.
    """
    flat, inside = relevance.reshape(len(relevance), -1), masks.reshape(len(masks), -1)
    area = inside.sum(axis=1)
    # Values, not indices: NumPy sorts float32 several times faster than it argsorts them.
    ordered = np.sort(flat, axis=1)
    limit = np.take_along_axis(ordered, np.minimum(flat.shape[1] - area, flat.shape[1] - 1)[:, None], axis=1)
    above, tied = flat > limit, flat == limit
    places = area - above.sum(axis=1)
    hits = (above & inside).sum(axis=1) + (tied & inside).sum(axis=1) * places / tied.sum(axis=1)
    return np.divide(hits, area, out=np.full(len(flat), np.nan), where=area > 0)


def compute_pointing_game(relevance: Relevance, masks: Masks) -> Float64[np.ndarray, " n"]:
    """Return 1 where the most relevant pixel lies inside the mask and 0 where it does not; higher is better.

    Of pixels that tie for the maximum the share inside counts.

    Source: Zhang et al. 2018 (Excitation Backprop). Differs: ties, and no tolerance of 15 px around the mask, which is
    a quarter of an image of 64 px.
    """
    tied = relevance == relevance.max(axis=(1, 2), keepdims=True)
    return (tied & masks).sum(axis=(1, 2)) / tied.sum(axis=(1, 2))


def share_by_component(relevance: Relevance, components: Components) -> Float64[np.ndarray, " components"]:
    """Return the share of its image's relevance that each lesion component holds."""
    flat = components.labels.reshape(-1)
    weights = relevance.reshape(-1)
    sums = np.bincount(flat, weights=weights, minlength=len(components) + 1)[1:]
    return sums / relevance.sum(axis=(1, 2), dtype=np.float64)[components.image]


def compute_concentration(shares: Float64[np.ndarray, " components"], components: Components) -> dict[str, float]:
    """Return area bin → share of the relevance over share of the area; 1 by chance, more is attended more.

    Numerator and denominator are summed over the images, so that a single small lesion does not decide. Bins
    (``AREA_BINS``) without a component are left out.
    """
    found = {}
    for name, chosen in components.by_area().items():
        if chosen.any():
            found[name] = float(shares[chosen].sum() / components.area_share[chosen].sum())
    return found


def build_centre_prior(height: int, width: int) -> Float32[np.ndarray, "h w"]:
    """Return a Gaussian around the middle of the image, σ ``CENTRE_SIGMA`` of each side: relevance without a model."""
    rows, columns = (((np.arange(size) + 0.5) / size - 0.5) / CENTRE_SIGMA for size in (height, width))
    return np.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / 2).astype(np.float32)


#: Name → function of relevance and masks, one value per image.
PER_IMAGE = {
    "relevance_mass": compute_relevance_mass,
    "relevance_rank": compute_relevance_rank,
    "pointing_game": compute_pointing_game,
}


def average_scores(scores: Mapping[str, Shaped[np.ndarray, " n"]]) -> dict[str, float]:
    """Return name → mean over the images."""
    return {name: float(values.mean()) for name, values in scores.items()}


def name_bin(name: str) -> str:
    """Return the metric of an area bin: ``concentration_below_25`` for ``below_25``.

    Args:
        name: name in ``AREA_BINS``.
    """
    assert name in AREA_BINS
    return f"concentration_{name}"
