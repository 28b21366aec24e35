"""The table of metrics: every metric of an evaluation by name, with its formula, direction and range.

Search, selection, hypotheses and report use this table; a name that is not in it is an error. Values are computed in
``classification``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from trainables.errors import ConfigError


@dataclass(frozen=True)
class Metric:
    """One metric of a trained model.

    Attributes:
        name: name in result files, tables and MLflow.
        title: name in a sentence.
        formula: formula in words.
        higher_is_better: whether higher values are better.
        low: smallest possible value.
        high: largest possible value.
        needs: data without which the metric is undefined.
        source: paper that defines the metric.
    """

    name: str
    title: str
    formula: str
    higher_is_better: bool
    low: float
    high: float
    needs: str
    source: str = ""

    @property
    def is_share(self) -> bool:
        """Whether the largest value is 1: then values are written in percent, differences in points."""
        return self.high == 1.0


#: Name → metric; metrics of which higher is better come first.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "accuracy", "accuracy", "share of images whose largest logit is the true class's",
            higher_is_better=True, low=0.0, high=1.0, needs="labels",
        ),
        Metric(
            "balanced_accuracy", "balanced accuracy", "mean recall over the classes that are present",
            higher_is_better=True, low=0.0, high=1.0, needs="labels",
        ),
        Metric(
            "auroc", "AUROC", "area under the ROC curve, macro one-vs-rest for more than two classes; ties count ½",
            higher_is_better=True, low=0.0, high=1.0, needs="an image of every class",
            source="Hanley & McNeil 1982",
        ),
        Metric(
            "quadratic_kappa", "quadratic kappa", "Cohen's kappa with quadratic weights",
            higher_is_better=True, low=-1.0, high=1.0, needs="ordered classes, more than one of them",
            source="Cohen 1968",
        ),
        Metric(
            "ece", "ECE", "Σ (n_m/N)·|accuracy_m − confidence_m| over equal-width bins of the confidence",
            higher_is_better=False, low=0.0, high=1.0, needs="labels", source="Guo et al. 2017, eq. 3",
        ),
        Metric(
            "nll", "log loss", "mean of −log p(true class)",
            higher_is_better=False, low=0.0, high=math.inf, needs="labels",
        ),
        Metric(
            "brier", "Brier score", "mean over images of Σ over classes of (p − one-hot label)²",
            higher_is_better=False, low=0.0, high=2.0, needs="labels", source="Brier 1950",
        ),
    )
}  # fmt: skip
#: Size of the network: a number of the trial that a search may look at, not of an evaluation.
NUM_PARAMETERS = Metric(
    "num_parameters", "number of weights", "weights of the network",
    higher_is_better=False, low=0.0, high=math.inf, needs="a network",
)  # fmt: skip
#: Names of the metrics of which higher is better, and of those of which lower is.
SCORES = tuple(name for name, metric in METRICS.items() if metric.higher_is_better)
ERRORS = tuple(name for name, metric in METRICS.items() if not metric.higher_is_better)

_HEADLINE = re.compile(r"(?:.+/)?(?:(?:mean|worst)_(?:shifted_)?)?(\w+?)")


#: Summaries of a metric over the external sets of a trial, each of which is a site.
SITE_AGGREGATES = ("mean", "worst", "sd")
_OVER_SITES = re.compile(rf"external/({'|'.join(SITE_AGGREGATES)})_(\w+)")


def name_over_sites(aggregate: str, metric: str) -> str:
    """Return the name of a headline number over the external sets, such as ``external/worst_auroc``.

    Args:
        aggregate: name in ``SITE_AGGREGATES``.
        metric: name in ``METRICS``.
    """
    return f"external/{aggregate}_{metric}"


def find_site_aggregate(name: str) -> str | None:
    """Return the summary over external sets that a headline number is, None if it is none."""
    match = _OVER_SITES.fullmatch(name)
    return match[1] if match is not None and match[2] in METRICS else None


def find_metric(name: str) -> Metric:
    """Return the metric behind a headline number, such as ``auroc`` for ``robustness/worst_auroc``.

    Args:
        name: a metric, or a headline number: ``validation/…``, ``id/…``, ``calibration/mean_shifted_…``,
            ``external/<set>/…``, ``external/mean_…``, ``shift/<name>/…``, ``num_parameters``.

    Raises:
        ConfigError: if the table has no such metric.
    """
    if name == NUM_PARAMETERS.name:
        return NUM_PARAMETERS
    if find_site_aggregate(name) is not None:
        return METRICS[name.partition("_")[2]]
    match = _HEADLINE.fullmatch(name)
    if match is None or match[1] not in METRICS:
        raise ConfigError(f"looked for the metric of {name!r}, expected one that ends with one of {', '.join(METRICS)}")
    return METRICS[match[1]]


def is_higher_better(name: str) -> bool:
    """Return whether higher values of a headline number are better; of a spread over sites, lower ones are.

    Raises:
        ConfigError: if the table has no such metric.
    """
    return find_metric(name).higher_is_better and find_site_aggregate(name) != "sd"
