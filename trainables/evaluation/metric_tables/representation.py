"""Metrics of what a network's layers hold (``representation``), on unshifted test images."""

from __future__ import annotations

import math

from trainables.evaluation.metric_tables.metric import Metric

_VARIES, _RANKS = "features that vary", "24 images and 23 features, or more"
_INITIAL = "four images or more, features that vary"


def _describe(name: str, title: str, formula: str, low: float, high: float, needs: str, source: str) -> Metric:
    return Metric(
        name, title, formula, higher_is_better=True, low=low, high=high, needs=needs, source=source, is_descriptive=True
    )  # fmt: skip


#: Name → metric; λ are the eigenvalues of the covariance of the penultimate features, the largest first.
REPRESENTATION_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "effective_rank", "effective rank", "exp of the entropy of √λ as shares of their sum",
            higher_is_better=True, low=1.0, high=math.inf, needs=_VARIES, source="Roy & Vetterli 2007",
        ),
        Metric(
            "alignment", "alignment of classes",
            "mean squared distance of features of length 1, over pairs of images of one class",
            higher_is_better=False, low=0.0, high=4.0, needs="two images of a class",
            source="Wang & Isola 2020, with pairs of one class",
        ),
        Metric(
            "uniformity", "uniformity",
            "log of the mean of exp(−2·squared distance) of features of length 1, over pairs",
            higher_is_better=False, low=-8.0, high=0.0, needs="two images", source="Wang & Isola 2020",
        ),
        _describe(
            "alpha", "α-decay", "α of λ ∝ rank^−α, by least squares with weights 1/rank over ranks 4 to 100, without "
            "the last ten", -math.inf, math.inf, _RANKS, "Agrawal et al. 2022; Stringer et al. 2019",
        ),
        _describe(
            "condition_number", "condition number", "P99.9(λ) / P90(λ)", 1.0, math.inf, _VARIES,
            "Srinivasan et al. 2022, for layers",
        ),
        _describe(
            "first_kurtosis", "kurtosis of the first convolution's spectrum",
            "excess kurtosis of ranks 0, ±1, ±2, … weighted by the eigenvalues of the first convolution's channels",
            -2.0, math.inf, "a first convolution, among the layers", "Srinivasan et al. 2022",
        ),
        _describe(
            "cka_initial", "CKA to the initial weights",
            "unbiased linear CKA of the penultimate features with those of the weights from which the training started",
            -1.0, 1.0, _INITIAL, "Kornblith et al. 2019; Nguyen et al. 2021",
        ),
        _describe(
            "procrustes_initial", "Procrustes distance to the initial weights", "2 − 2·‖XᵀY‖_* of the same features, "
            "centred and of Frobenius norm 1", 0.0, 2.0, _INITIAL, "Ding et al. 2021",
        ),
    )
}  # fmt: skip
