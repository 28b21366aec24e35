"""Dependence of a lesion's relevance on its area, at an equal number, elongation and irregularity of lesions.

Every lesion component is one observation of one trained model. The number that comes out belongs to the model: it is
what models are compared by, and no component ever counts as an independent unit.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from trainables.evaluation.attribution.components import Components

#: Factor from one area bin to the next: 25, 100, 400 px.
BIN_FACTOR = 4.0
#: Fewest components for a regression: an assumption, five per coefficient.
MIN_COMPONENTS = 25
_MAX_STEPS = 100
_TOLERANCE = 1e-9


def compute_large_small_ratio(shares: Float64[np.ndarray, " components"], components: Components) -> float | str:
    """Return the factor by which relevance per area changes with a fourfold area, or why it is undefined.

    Regression with a log link: E[share] = area share · exp(α + β·log area + γ₁·log number + γ₂·log elongation +
    γ₃·log irregularity), number: components in the same image. The ratio is 4^β: 1 if a pixel of a large lesion gets as
    much as one of a small lesion, below 1 if it gets less. Covariates that do not vary are left out.

    Fitted by Poisson pseudo-maximum likelihood, which is consistent whatever the distribution of the shares and takes
    shares of 0, of which there is no logarithm.

    Source: Santos Silva & Tenreyro 2006 (the estimator); the model is ours.

    Args:
        shares: share of its image's relevance that each component holds.
        components: their areas and shapes.
    """
    if len(components) < MIN_COMPONENTS:
        return f"{len(components)} lesions are too few for a regression on their area; expected {MIN_COMPONENTS}"
    columns = [np.log(each) for each in (components.number, components.elongation, components.irregularity)]
    others = np.column_stack([np.ones(len(shares)), *(each for each in columns if np.ptp(each) > _TOLERANCE)])
    design = np.column_stack([np.log(components.area_px), others])
    if np.linalg.matrix_rank(design) == np.linalg.matrix_rank(others):
        return "the area of the lesions does not vary, or follows from the other covariates"
    if not shares.any():
        return "no lesion has any relevance"
    slope = _fit_poisson(shares, design, np.log(components.area_share))
    return "the regression on area does not converge" if slope is None else float(BIN_FACTOR**slope)


def _fit_poisson(
    values: Float64[np.ndarray, " n"], design: Float64[np.ndarray, "n covariates"], offset: Float64[np.ndarray, " n"]
) -> float | None:
    """Return the first coefficient of a Poisson regression, None if iterated least squares do not converge."""
    mean = np.full(len(values), values.mean())
    coefficients = np.zeros(design.shape[1])
    for _ in range(_MAX_STEPS):
        response = np.log(mean) - offset + (values - mean) / mean
        weight = np.sqrt(mean)
        found = np.linalg.lstsq(weight[:, None] * design, weight * response, rcond=None)[0]
        if np.abs(found - coefficients).max() < _TOLERANCE:
            return float(found[0])
        coefficients = found
        with np.errstate(over="ignore", under="ignore"):
            mean = np.exp(offset + design @ coefficients)
        if not (np.isfinite(mean).all() and (mean > 0).all()):
            return None
    return None
