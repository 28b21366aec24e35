"""The table of metrics of relevance maps on lesion masks, and the names of their headline numbers."""

from __future__ import annotations

import math
import re
from typing import get_args

from trainables.evaluation.metric_tables.metric import Metric
from trainables.evaluation_config import AttributionName

METHODS: tuple[str, ...] = get_args(AttributionName)
#: In place of a method: relevance around the middle of the image, by no model.
CENTRE_PRIOR = "centre_prior"
#: Before a metric: of the same method on the same network with random weights.
RANDOMISED = "randomised_"
ADJUSTED_RATIO = "adjusted_large_small_ratio"
#: A map of zeros: of Grad-CAM where no channel speaks for the class.
WITHOUT_RELEVANCE = "without_relevance"
#: Metrics that say the same thing in different ways: relevance on lesions is larger.
OVERALL = ("relevance_mass", "relevance_rank", "pointing_game")
#: Name → smallest and largest area of a component, in px of the stored image.
AREA_BINS: dict[str, tuple[float, float]] = {
    "below_25": (1, 24),
    "25_to_100": (25, 99),
    "100_to_400": (100, 400),
    "above_400": (401, float("inf")),
}


def _share(name: str, title: str, formula: str, source: str) -> Metric:
    return Metric(
        name, title, formula, higher_is_better=True, low=0.0, high=1.0,
        needs="test images with lesions and their masks", source=source,
    )  # fmt: skip


def _concentration(name: str) -> Metric:
    low, high = AREA_BINS[name]
    area = f"{low:g} px or more" if math.isinf(high) else f"{low:g} to {high:g} px"
    return Metric(
        f"concentration_{name}", f"concentration on lesions of {area}",
        f"share of the relevance in connected lesions of {area}, over their share of the area; both summed over "
        "images; 1 by chance",
        higher_is_better=True, low=0.0, high=math.inf, needs=f"lesions of {area}",
    )  # fmt: skip


#: Name → metric of relevance maps on lesions.
ATTRIBUTION_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _share(
            "relevance_mass", "relevance mass", "mean over images of the share of relevance inside the mask",
            "Arras et al. 2022",
        ),
        _share(
            "relevance_rank", "relevance rank accuracy",
            "mean over images of the share of the K most relevant pixels inside the mask of K pixels; ties count by "
            "their share",
            "Arras et al. 2022",
        ),
        _share(
            "pointing_game", "pointing game",
            "share of images whose most relevant pixel is inside the mask, without tolerance; ties count by their "
            "share",
            "Zhang et al. 2018",
        ),
        Metric(
            WITHOUT_RELEVANCE, "images without relevance",
            "share of images whose map has no relevance at all; it counts as a uniform one in the other metrics",
            higher_is_better=False, low=0.0, high=1.0, needs="test images with lesions and their masks",
            is_descriptive=True,
        ),
        *map(_concentration, AREA_BINS),
        Metric(
            ADJUSTED_RATIO, "relevance per area of large over small lesions, adjusted",
            "factor of relevance per area for four times the area, at equal number, elongation and irregularity of "
            "lesions: 4^β of a Poisson regression over lesions; 1: large ones get as much per pixel as small ones",
            higher_is_better=False, low=0.0, high=math.inf, needs="25 lesions whose area varies", is_descriptive=True,
        ),
    )
}  # fmt: skip
_NAMES = "|".join(ATTRIBUTION_METRICS)
_ATTRIBUTION = re.compile(rf"attribution/(?:({'|'.join(METHODS)})/({RANDOMISED})?|({CENTRE_PRIOR})/)({_NAMES})")


def name_attribution(method: str, metric: str) -> str:
    """Return the name of a headline number, such as ``attribution/grad_cam/relevance_mass``.

    Args:
        method: name in ``METHODS``, or ``CENTRE_PRIOR``.
        metric: name of a row, after ``RANDOMISED`` for the network with random weights.
    """
    return f"attribution/{method}/{metric}"


def split_attribution(name: str) -> tuple[str, str, str] | None:
    """Return method, "" or ``RANDOMISED``, and metric of a headline number; None if it is no attribution metric."""
    match = _ATTRIBUTION.fullmatch(name)
    return None if match is None else (match[1] or match[3], match[2] or "", match[4])


def find_attribution(name: str) -> Metric | None:
    """Return the metric behind ``attribution/<method>/…``, None if the name is no attribution metric."""
    parts = split_attribution(name)
    return None if parts is None else ATTRIBUTION_METRICS[parts[2]]
