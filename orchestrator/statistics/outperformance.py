"""Probability that a claim of outperformance is false, from reported means alone.

Two methods were tested on the same n cases, and one is claimed to be better because its reported mean is. How probable
is it, given the reports, that it is not? The answer depends on how alike the methods are case by case, which papers
rarely report: the share of cases that both get right (model congruence), or the correlation of their scores. Cases are
assumed to be independent. Each method is one trained model: what another training of it would give is not part of this.

Source: Christodoulou et al. 2025, "False Promises in Medical Imaging AI? Assessing Validity of Outperformance Claims",
arXiv 2505.04720.
"""

from __future__ import annotations

import math

#: Rounding error of a share that is computed from others.
_ROUNDING = 1e-9


def false_claim_of_shares(claimed: float, other: float, num_cases: int, *, both_right: float) -> float:
    """Return the posterior probability in [0, 1] that the claimed method gets no larger share of cases right.

    The numbers of cases that only the claimed method, only the other, and both or neither got right are multinomial;
    with a uniform prior over the four outcomes, the shares follow a Dirichlet distribution with parameters x₁ + 1,
    x₂ + 1 and n − x₁ − x₂ + 2. The first is the smaller with the probability that a Beta(x₁ + 1, x₂ + 1) is below ½.

    Args:
        claimed: share in [0, 1] of cases that the method got right which is claimed to be better.
        other: the same of the method it is compared with.
        num_cases: number of test cases, n.
        both_right: share of cases that both got right; x₁ = n (claimed − both_right), x₂ = n (other − both_right).

    Raises:
        ValueError: if no n cases can have these shares.

    Source: arXiv 2505.04720, equation for classification.
    """
    low, high = bound_both_right(claimed, other)
    if num_cases < 1 or not low - _ROUNDING <= both_right <= high + _ROUNDING:
        found = f"got {both_right:g} of {num_cases} cases right in both and {claimed:g} and {other:g} in each"
        raise ValueError(f"{found}; expected a share from {low:g} to {high:g}, and one case or more")
    from scipy.special import betainc

    only_claimed, only_other = (num_cases * max(0.0, share - both_right) for share in (claimed, other))
    return float(betainc(only_claimed + 1, only_other + 1, 0.5))


def false_claim_of_means(
    difference: float, sd_claimed: float, sd_other: float, num_cases: int, *, correlation: float
) -> float:
    """Return the posterior probability in [0, 1] that the claimed method's mean score is not the better one.

    The mean of the differences, case by case, has a t posterior with n − 1 degrees of freedom around the reported
    difference; the standard deviation of the differences follows from the two reported ones and their correlation.

    Args:
        difference: reported mean of the claimed method minus that of the other, or the reverse if lower is better.
        sd_claimed: standard deviation of the claimed method's scores over cases (not over seeds; no standard error).
        sd_other: the same of the other method.
        num_cases: number of test cases, n.
        correlation: Pearson correlation of the two methods' scores over cases, in [−1, 1].

    Raises:
        ValueError: if there are fewer than two cases, or a number is out of its range.

    Source: arXiv 2505.04720, equation for segmentation.
    """
    if num_cases < 2 or min(sd_claimed, sd_other) < 0 or not -1 <= correlation <= 1:
        found = (
            f"got {num_cases} cases, standard deviations {sd_claimed:g} and {sd_other:g}, correlation {correlation:g}"
        )
        raise ValueError(f"{found}; expected two cases or more, none below 0, and a correlation from −1 to 1")
    from scipy.special import stdtr

    variance = sd_claimed**2 + sd_other**2 - 2 * correlation * sd_claimed * sd_other
    if variance <= _ROUNDING**2 * (sd_claimed**2 + sd_other**2):  # every case differs by the same amount
        return 0.0 if difference > 0 else 1.0
    return float(stdtr(num_cases - 1, -math.sqrt(num_cases / variance) * difference))


def bound_both_right(claimed: float, other: float) -> tuple[float, float]:
    """Return the smallest and the largest share of cases that both methods can have got right.

    Raises:
        ValueError: if a share is outside [0, 1].

    Source: Fréchet 1940.
    """
    if not (0 <= claimed <= 1 and 0 <= other <= 1):
        raise ValueError(f"got {claimed:g} and {other:g} as shares of cases, expected numbers from 0 to 1")
    return max(0.0, claimed + other - 1), min(claimed, other)


def find_both_right(claimed: float, other: float, correlation: float) -> float:
    """Return the share of cases that both methods got right, from the correlation (φ) of being right."""
    return claimed * other + correlation * _spread(claimed, other)


def bound_correlation(claimed: float, other: float) -> tuple[float, float] | None:
    """Return the smallest and largest correlation (φ) of being right, None if a method is always or never right.

    Two methods of different accuracy cannot be right in the same cases only, so that 1 is out of reach.

    Raises:
        ValueError: if a share is outside [0, 1].
    """
    low, high = bound_both_right(claimed, other)
    spread = _spread(claimed, other)
    return ((low - claimed * other) / spread, (high - claimed * other) / spread) if spread else None


def _spread(claimed: float, other: float) -> float:
    return math.sqrt(claimed * (1 - claimed) * other * (1 - other))
