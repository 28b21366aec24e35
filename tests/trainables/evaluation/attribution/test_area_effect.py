"""The adjusted ratio of large to small lesions: what was planted is found, whatever number and shape of lesions do."""

from __future__ import annotations

import numpy as np
import pytest

from trainables.evaluation.attribution.area_effect import MIN_COMPONENTS, compute_large_small_ratio
from trainables.evaluation.attribution.components import Components


def plant(
    ratio: float, *, confounding: float, noise: float = 0.0, num_images: int = 150
) -> tuple[np.ndarray, Components]:
    """Return shares whose density changes by ``ratio`` for a fourfold area, and their lesions.

    Number and irregularity change the density as well; with confounding, lesions are larger where there are many, and
    large ones are irregular.
    """
    random = np.random.default_rng(0)
    image = np.repeat(np.arange(num_images), random.integers(1, 7, num_images))
    number = np.bincount(image)[image]
    log_area = random.uniform(2, 5, len(image)) + confounding * np.log(number)
    irregularity = np.exp(0.1 * random.random(len(image)) + 0.1 * confounding * log_area)
    components = Components(
        labels=np.broadcast_to(np.int32(0), (num_images, 100, 100)),
        image=image,
        area_px=np.rint(np.exp(log_area)).astype(np.int64),
        elongation=np.exp(random.random(len(image))),
        irregularity=irregularity,
    )
    density = components.area_px ** (np.log(ratio) / np.log(4)) / number**0.3 * irregularity**8
    noisy = density * np.exp(noise * random.normal(size=len(image)))
    shares = components.area_share * noisy
    return shares / shares.sum(), components


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("confounding", [0.0, 0.6])
def test_the_planted_ratio_is_found_exactly(ratio: float, confounding: float) -> None:
    assert compute_large_small_ratio(*plant(ratio, confounding=confounding)) == pytest.approx(ratio, rel=1e-6)


def test_without_adjustment_confounders_would_have_passed_for_area() -> None:
    shares, components = plant(1.0, confounding=0.6, noise=0.1, num_images=600)
    density, log_area = np.log(shares / components.area_share), np.log(components.area_px)
    unadjusted = 4 ** np.polyfit(log_area, density, 1)[0]
    adjusted = compute_large_small_ratio(shares, components)
    assert isinstance(adjusted, float)
    assert abs(np.log(unadjusted)) > 0.25
    assert abs(np.log(adjusted)) < 0.1


def test_lesions_without_relevance_are_no_obstacle() -> None:
    shares, components = plant(2.0, confounding=0.0, noise=0.3)
    random = np.random.default_rng(1)
    missed = np.where(random.random(len(shares)) < 0.3, 0.0, shares)
    found = compute_large_small_ratio(missed, components)
    assert isinstance(found, float)
    assert found == pytest.approx(2.0, rel=0.15)


def test_agrees_with_the_score_equations() -> None:
    """At the maximum the residuals are orthogonal to every covariate: checked for the slope found."""
    from scipy.optimize import minimize

    shares, components = plant(1.5, confounding=0.6, noise=0.5, num_images=60)
    design = np.column_stack(
        [
            np.log(components.area_px),
            np.ones(len(shares)),
            np.log(components.number),
            np.log(components.elongation),
            np.log(components.irregularity),
        ]
    )
    scaled, offset = shares / shares.mean(), np.log(components.area_share)

    def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        mean = np.exp(offset + design @ coefficients)
        return float((mean - scaled * (offset + design @ coefficients)).sum()), design.T @ (mean - scaled)

    best = minimize(loss, np.array([0, 5.0, 0, 0, 0]), jac=True, method="BFGS", options={"gtol": 1e-8})
    assert compute_large_small_ratio(shares, components) == pytest.approx(4 ** best.x[0], rel=1e-4)


def test_covariates_that_do_not_vary_are_left_out() -> None:
    shares, components = plant(2.0, confounding=0.0, num_images=400)
    chosen = components.number == 1
    single = Components(
        components.labels,
        components.image[chosen],
        components.area_px[chosen],
        np.ones(chosen.sum()),
        components.irregularity[chosen],
    )
    assert compute_large_small_ratio(shares[chosen], single) == pytest.approx(2.0, rel=1e-6)


def test_reasons_why_it_is_undefined() -> None:
    shares, components = plant(1.0, confounding=0.0)
    few = Components(*(values[:10] if name != "labels" else values for name, values in vars(components).items()))
    assert compute_large_small_ratio(shares[:10], few) == (
        f"10 lesions are too few for a regression on their area; expected {MIN_COMPONENTS}"
    )
    alike = Components(**vars(components) | {"area_px": np.full(len(shares), 9)})
    assert compute_large_small_ratio(shares, alike) == (
        "the area of the lesions does not vary, or follows from the other covariates"
    )
    assert compute_large_small_ratio(np.zeros(len(shares)), components) == "no lesion has any relevance"
