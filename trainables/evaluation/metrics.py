"""The table of metrics: every metric of an evaluation by name, with its formula, direction and range.

Search, selection, hypotheses and report use this table; a name that is not in it is an error. Parts of it are written
in ``metric_tables``. Values are computed in ``classification``, ``detection`` and ``representation``.
"""

from __future__ import annotations

import math
import re

from trainables.errors import ConfigError
from trainables.evaluation.attribution.table import ATTRIBUTION_METRICS, find_attribution
from trainables.evaluation.metric_tables.detection import (
    FAILURE_METRICS,
    HEADLINE_FAILURE,
    HEADLINE_OOD,
    OOD_METRICS,
    REJECTION_METRICS,
    SEGMENTATION_FAILURE_METRICS,
    SELECTIVE_METRICS,
)
from trainables.evaluation.metric_tables.metric import Metric
from trainables.evaluation.metric_tables.representation import REPRESENTATION_METRICS
from trainables.evaluation.metric_tables.segmentation import SEGMENTATION_METRICS
from trainables.evaluation.metric_tables.views import CLASS_METRICS, is_of_class, split_view

#: What others take from here, beside what is defined below.
__all__ = [
    "ATTRIBUTION_METRICS",
    "CLASS_METRICS",
    "FAILURE_METRICS",
    "HEADLINE_FAILURE",
    "HEADLINE_OOD",
    "OOD_METRICS",
    "REJECTION_METRICS",
    "REPRESENTATION_METRICS",
    "SEGMENTATION_FAILURE_METRICS",
    "SEGMENTATION_METRICS",
    "SELECTIVE_METRICS",
    "Metric",
    "split_view",
]

_TWO = "two classes, an image of both in validation and in the set"
_SCALED = "a finite temperature on validation"


def _at_threshold(name: str, title: str, share: str, fixed: str) -> Metric:
    return Metric(
        name, title,
        f"share of {share} at the {'smallest' if fixed == 'specificity' else 'largest'} threshold of f₁ − f₀ with a "
        f"{fixed} of at least .95 on validation",
        higher_is_better=True, low=0.0, high=1.0, needs=_TWO, is_fitted=True,
    )  # fmt: skip


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
            "auroc", "AUROC",
            "area under the ROC curve of f₁ − f₀; for more than two classes the mean over classes k of the area of "
            "f_k − log Σ_(j≠k) exp(f_j), class k against the rest; ties count ½",
            higher_is_better=True, low=0.0, high=1.0, needs="an image of every class",
            source="Hanley & McNeil 1982",
        ),
        Metric(
            "quadratic_kappa", "quadratic kappa", "Cohen's kappa with quadratic weights",
            higher_is_better=True, low=-1.0, high=1.0, needs="ordered classes, more than one of them",
            source="Cohen 1968",
        ),
        _at_threshold(
            "sensitivity_at_specificity_95", "sensitivity at 95 % specificity",
            "images of class 1 that are called positive", "specificity",
        ),
        _at_threshold(
            "specificity_at_specificity_95", "specificity kept at the threshold of 95 % specificity",
            "images of class 0 that are called negative", "specificity",
        ),
        _at_threshold(
            "specificity_at_sensitivity_95", "specificity at 95 % sensitivity",
            "images of class 0 that are called negative", "sensitivity",
        ),
        _at_threshold(
            "sensitivity_at_sensitivity_95", "sensitivity kept at the threshold of 95 % sensitivity",
            "images of class 1 that are called positive", "sensitivity",
        ),
        Metric(
            "ece", "ECE", "Σ (n_m/N)·|accuracy_m − confidence_m| over equal-width bins of the confidence",
            higher_is_better=False, low=0.0, high=1.0, needs="labels", source="Guo et al. 2017, eq. 3",
            is_calibration=True,
        ),
        Metric(
            "nll", "log loss", "mean of −log p(true class)",
            higher_is_better=False, low=0.0, high=math.inf, needs="labels", is_calibration=True,
        ),
        Metric(
            "brier", "Brier score", "mean over images of Σ over classes of (p − one-hot label)²",
            higher_is_better=False, low=0.0, high=2.0, needs="labels", source="Brier 1950", is_calibration=True,
        ),
        *(
            Metric(
                f"{name}_scaled", f"{title} after temperature scaling",
                f"{name} of the logits divided by the T > 0 with the smallest nll on validation",
                higher_is_better=False, low=0.0, high=high, needs=_SCALED, source="Guo et al. 2017, section 4.2",
                is_fitted=True, is_calibration=True,
            )
            for name, title, high in (("ece", "ECE", 1.0), ("nll", "log loss", math.inf), ("brier", "Brier score", 2.0))
        ),
    )
}  # fmt: skip
#: Names of the metrics at a threshold, which exist for two classes.
THRESHOLDED = tuple(name for name, metric in METRICS.items() if metric.needs == _TWO)
#: Kind → errors relative to the study's reference (``balanced``), of arms in a study and not of one evaluation:
#: ``be/mean`` over all shifts, ``be/<name>`` over a family of them.
RELATIVE: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "be", "BE", "mean over shifts of E / E_ref; E: 1 − balanced accuracy under the shift",
            higher_is_better=False, low=0.0, high=math.inf, needs="a reference that makes errors under the shift",
            source="Di Salvo et al. 2024",
        ),
        Metric(
            "rbe", "rBE", "mean over shifts of (E − E_clean) / (E_ref − E_ref,clean)",
            higher_is_better=False, low=-math.inf, high=math.inf,
            needs="a reference that the shift harms by 2 standard errors or more",
            source="Di Salvo et al. 2024",
        ),
    )
}  # fmt: skip
#: Kinds of headline numbers ``<kind>/<shift, family or mean>/<metric>`` that say what a shift takes; lower is better.
DROPS = ("drop", "relative_drop")
#: Size of the network: a number of the trial that a search may look at, not of an evaluation.
NUM_PARAMETERS = Metric(
    "num_parameters", "number of weights", "weights of the network",
    higher_is_better=False, low=0.0, high=math.inf, needs="a network",
)  # fmt: skip
#: Metrics of an evaluation: of all classes, of one, and of segmentations.
EVALUATED = SEGMENTATION_METRICS | CLASS_METRICS | METRICS
#: Names of the metrics of which higher is better, and of those of which lower is.
SCORES = tuple(name for name, metric in METRICS.items() if metric.higher_is_better)
ERRORS = tuple(name for name, metric in METRICS.items() if not metric.higher_is_better)

#: Summaries of a metric over the shifted copies of the test set (``shift_means``).
AGGREGATES = ("mean", "worst_cell", "worst_shift")

_HEADLINE = re.compile(
    r"(?:.+/)?(?:mean_shifted_|mean_unseen_|mean_seen_|mean_unused_|mean_|worst_cell_|worst_shift_)?(\w+?)"
)
_FAILURE = re.compile(r"(?:validation/)?failure/[\w.]+/(?:mean_shifted_|mean_external_)?(\w+?)")
_OOD = re.compile(r"ood/[\w.]+/.+/(\w+)")


def name_unshifted(metric: str) -> str:
    """Return the name of a headline number on the unshifted test images: ``id/auroc``, ``calibration/ece``, ….

    Args:
        metric: name in ``EVALUATED``.
    """
    return f"{'calibration' if EVALUATED[metric].is_calibration else 'id'}/{metric}"


def name_over_shifts(aggregate: str, metric: str) -> str:
    """Return the name of a headline number over shifts: ``robustness/mean_auroc``, ``calibration/worst_shift_ece``, …

    Args:
        aggregate: name in ``AGGREGATES``.
        metric: name in ``EVALUATED``.
    """
    if not EVALUATED[metric].is_calibration:
        return f"robustness/{aggregate}_{metric}"
    return f"calibration/{'mean_shifted' if aggregate == 'mean' else aggregate}_{metric}"


def name_over_validation_shifts(aggregate: str, metric: str) -> str:
    """Return the name of a headline number over the shifted validation images: ``validation/robustness/mean_auroc``.

    Args:
        aggregate: name in ``AGGREGATES``.
        metric: name in ``EVALUATED``.
    """
    return f"validation/{name_over_shifts(aggregate, metric)}"


def name_failure(score: str, metric: str, aggregate: str | None = None) -> str:
    """Return the name of a headline number of failure detection, such as ``failure/msr/mean_shifted_augrc``.

    Args:
        score: name in ``confidence.CONFIDENCE_SCORES``.
        metric: name in ``FAILURE_METRICS``.
        aggregate: mean_shifted, over the shifted test images, or mean_external, over the external sets; None: of the
            unshifted test images.
    """
    return f"failure/{score}/{metric if aggregate is None else f'{aggregate}_{metric}'}"


def name_ood(score: str, outside: str, metric: str) -> str:
    """Return the name of a headline number of out-of-distribution detection, such as ``ood/knn/digits/auroc``.

    Args:
        score: name in ``confidence.CONFIDENCE_SCORES``.
        outside: a set of images beside the unshifted test set, or near, far, near_full_spectrum, far_full_spectrum: all
            sets of a role, the last two with covariate sets counted as in distribution.
        metric: name in ``OOD_METRICS``.
    """
    return f"ood/{score}/{outside}/{metric}"


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
    view, within = split_view(name)
    match = _OVER_SITES.fullmatch(within)
    return match[1] if match is not None and match[2] in _list_known(view) else None


def list_metrics_of(view: str, task: str = "classification") -> dict[str, Metric]:
    """Return the metrics of a view (``split_view``): those of one class, or of all classes.

    Args:
        view: label map or class; "" is none of them.
        task: classification or segmentation, whose metrics are the same for one class and for all.
    """
    if task == "segmentation":
        return SEGMENTATION_METRICS
    return CLASS_METRICS if is_of_class(view) else METRICS


def find_metric(name: str) -> Metric:
    """Return the metric behind a headline number, such as ``auroc`` for ``robustness/worst_shift_auroc``.

    Args:
        name: a metric, or a headline number: ``validation/…``, ``validation/robustness/mean_…``, ``id/…``,
            ``calibration/mean_shifted_…``, ``external/<set>/…``, ``external/mean_…``, ``shift/<name>/…``,
            ``family/<name>/…``, ``slope/<name>/…``, ``drop/<name>/…``, ``relative_drop/<name>/…``,
            ``be/<name>``, ``rbe/<name>``, ``failure/<score>/…``, ``ood/<score>/<set>/…``, ``representation/…``,
            ``attribution/<method>/…``, ``num_parameters``; or such a number of a view (``split_view``):
            ``<label map>/id/…``, ``class_3/id/…``.

    Raises:
        ConfigError: if the table has no such metric.
    """
    if name == NUM_PARAMETERS.name:
        return NUM_PARAMETERS
    if name.partition("/")[0] in RELATIVE and name.count("/") == 1:
        return RELATIVE[name.partition("/")[0]]
    found = find_detection(name) or find_representation(name) or find_attribution(name)
    if found is not None:
        return found
    view, within = split_view(name)
    known = _list_known(view)
    if find_site_aggregate(name) is not None:
        return known[within.partition("_")[2]]
    match = _HEADLINE.fullmatch(within)
    if match is None or match[1] not in known:
        raise ConfigError(f"looked for the metric of {name!r}, expected one that ends with one of {', '.join(known)}")
    return known[match[1]]


def _list_known(view: str) -> dict[str, Metric]:
    """Return the metrics of a view, whatever the task."""
    return list_metrics_of(view) | SEGMENTATION_METRICS


def find_detection(name: str) -> Metric | None:
    """Return the metric behind ``failure/<score>/…``, ``validation/failure/<score>/…`` or ``ood/<score>/<set>/…``.

    None if the name is no headline number of failure or out-of-distribution detection.
    """
    match = _FAILURE.fullmatch(name)
    if match is not None:
        return (FAILURE_METRICS | SELECTIVE_METRICS | SEGMENTATION_FAILURE_METRICS).get(match[1])
    match = _OOD.fullmatch(name)
    return None if match is None else (OOD_METRICS | REJECTION_METRICS).get(match[1])


def find_representation(name: str) -> Metric | None:
    """Return the metric behind ``representation/<name>``, None if the name is no such number."""
    kind, _, metric = name.partition("/")
    return REPRESENTATION_METRICS.get(metric) if kind == "representation" else None


#: Kind of a task → metric that arms are compared by unless another is asked for.
MAIN_METRICS = {"classification": "balanced_accuracy", "segmentation": "dice"}
#: Kind of a task → metrics that a model card shows on every set.
CARD_METRICS = {
    "classification": ("accuracy", "balanced_accuracy", "auroc"),
    "segmentation": ("dice", "hd95", "missed", "pixel_ece", "band_ece"),
}
#: Kind of a task → calibration error that is shown beside it.
MAIN_CALIBRATION = {"classification": "ece", "segmentation": "pixel_ece"}


def find_chance(metric: str, num_classes: int) -> float | None:
    """Return the value that guessing without looking at the images has, None where it depends on the class shares.

    Balanced accuracy: 1 / number of classes. AUROC: ½.
    """
    return {"balanced_accuracy": 1.0 / num_classes, "auroc": 0.5}.get(metric)


def is_higher_better(name: str) -> bool:
    """Return whether higher values of a headline number are better; of spreads over sites and drops, lower ones are.

    Raises:
        ConfigError: if the table has no such metric, or neither is better (``Metric.is_descriptive``).
    """
    if find_metric(name).is_descriptive:
        raise ConfigError(
            f"looked for the better direction of {name!r}, which only describes; expected a metric with one"
        )
    is_loss = find_site_aggregate(name) == "sd" or name.partition("/")[0] in DROPS
    return find_metric(name).higher_is_better and not is_loss
