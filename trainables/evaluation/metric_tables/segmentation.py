"""Metrics of segmentations, of each case and foreground class and on average (``evaluation.segmentation``)."""

from __future__ import annotations

import math

from trainables.evaluation.metric_tables.metric import Metric

_STRUCTURE = "a case whose target or prediction has the class"
_MEAN = "mean over cases, then over classes but the background, of"
_BOUNDARY = "boundary: the mask's pixels with a 4-neighbour (6 in 3-D) outside of it, as in MONAI"
_DIAGONAL = "the image's diagonal where one of both is empty"
_READER, _BAND = "Metrics Reloaded: Maier-Hein et al. 2024", "Karimi & Gholipour 2022"


def _overlap(name: str, title: str, formula: str, source: str) -> Metric:
    return Metric(
        name, title, f"{_MEAN} {formula}; 0 where one of P, T is empty; own code, on counts of pixels",
        higher_is_better=True, low=0.0, high=1.0, needs=_STRUCTURE, source=source,
    )  # fmt: skip


def _distance(name: str, title: str, formula: str) -> Metric:
    return Metric(
        name, title, f"{_MEAN} {formula}, in mm; {_DIAGONAL}; {_BOUNDARY}; own code, on SciPy's distance transform",
        higher_is_better=False, low=0.0, high=math.inf, needs=_STRUCTURE, source=_READER,
    )  # fmt: skip


def _calibration(region: str, where: str, needs: str) -> tuple[Metric, ...]:
    rows = (
        ("ece", "ECE", "Σ (n_m/N)·|accuracy_m − confidence_m| over equal-width bins of the confidence", 1.0,
         "Guo et al. 2017, eq. 3"),
        ("mce", "MCE", "largest |accuracy_m − confidence_m| of those bins", 1.0, "Guo et al. 2017, eq. 5"),
        ("nll", "log loss", "mean of −log p(true class), p at least 1.2e−38", math.inf, ""),
        ("brier", "Brier score", "mean of Σ over classes of (p − one-hot label)²", 2.0, "Brier 1950"),
    )  # fmt: skip
    return tuple(
        Metric(
            f"{region}_{kind}", f"{title} of pixels{' around structures' if region == 'band' else ''}",
            f"{formula}; over {where} of all cases together",
            higher_is_better=False, low=0.0, high=high, needs=needs,
            source="; ".join(filter(None, (source, _BAND if region == "band" else ""))), is_calibration=True,
        )
        for kind, title, formula, high, source in rows
    )  # fmt: skip


#: Name → metric. P is the predicted, T the true mask of a class in a case, without pixels that do not count.
SEGMENTATION_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _overlap("dice", "Dice", "2·|P ∩ T| / (|P| + |T|)", "Dice 1945"),
        _overlap("iou", "IoU", "|P ∩ T| / |P ∪ T|", "Jaccard 1912"),
        _overlap("pixel_sensitivity", "sensitivity of pixels", "|P ∩ T| / |T|", _READER),
        _overlap("pixel_precision", "precision of pixels", "|P ∩ T| / |P|", _READER),
        Metric(
            "nsd", "NSD", f"{_MEAN} the share of boundary pixels of P and T within the study's tolerance in mm of the "
            f"other boundary; 0 where one of both is empty; {_BOUNDARY}; own code, on SciPy's distance transform",
            higher_is_better=True, low=0.0, high=1.0, needs=_STRUCTURE,
            source="Nikolov et al. 2021, with boundary pixels that count equally",
        ),
        Metric(
            "cl_dice", "clDice", f"{_MEAN} 2·T_prec·T_sens / (T_prec + T_sens): shares of P's centreline in T and of "
            "T's in P; 0 where one of both is empty; centrelines by Guo & Hall's thinning, own code",
            higher_is_better=True, low=0.0, high=1.0, needs=f"2-D, {_STRUCTURE}", source="Shit et al. 2021",
        ),
        _distance("hd95", "HD95", "the larger of both directions' 95th percentiles of boundary distances, as MONAI"),
        _distance("assd", "ASSD", "the mean distance of the boundary pixels of P and T to the other boundary"),
        Metric(
            "missed", "missed or invented", f"{_MEAN} 1 where T is empty and P is not or the other way round, else 0",
            higher_is_better=False, low=0.0, high=1.0, needs=_STRUCTURE, source="MONAI#9095",
        ),
        *_calibration("pixel", "counted pixels", "counted pixels"),
        *_calibration("band", "counted pixels within some rows and columns of the target's foreground", "foreground"),
    )
}  # fmt: skip

#: Those of them that volumes do not have: skeletons are those of images.
OF_IMAGES_ALONE = ("cl_dice",)
