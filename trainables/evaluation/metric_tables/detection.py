"""Metrics of failure and of out-of-distribution detection."""

from __future__ import annotations

from trainables.evaluation.metric_tables.metric import Metric

_BOTH_KINDS = "right and wrong predictions"
#: e-AURC where wrong predictions come first and the right ones are tied: (1 − e²)/2 − (1 − e)·ln(1 − e), largest at
#: 1 − e = Ω, the solution of Ω·exp(Ω) = 1. No ranking has more: every curve lies below the trapezoid of that one.
_OMEGA = 0.5671432904097838
_HIGHEST_EAURC = _OMEGA + _OMEGA**2 / 2
#: Metrics of a confidence score (``confidence``) on one set, which say whether it ranks the wrong predictions last.
FAILURE_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "aurc", "AURC",
            "area under the risk (share of wrong predictions among the kept) over the coverage (share kept), the most "
            "confident kept first, equal confidences together, by trapezoids",
            higher_is_better=False, low=0.0, high=1.0, needs="labels", source="Geifman & El-Yaniv 2017",
        ),
        Metric(
            "eaurc", "e-AURC", "AURC − [e + (1 − e)·ln(1 − e)] at the error rate e; ties can make it negative",
            higher_is_better=False, low=-0.5, high=_HIGHEST_EAURC, needs="labels", source="Geifman et al. 2019",
        ),
        Metric(
            "augrc", "AUGRC", "area under (wrong predictions that are kept / all images) over the coverage",
            higher_is_better=False, low=0.0, high=0.5, needs="labels", source="Traub et al. 2024",
        ),
        Metric(
            "failure_auroc", "failure AUROC",
            "share of pairs of a right and a wrong prediction in which the right one has more confidence; ties count ½",
            higher_is_better=True, low=0.0, high=1.0, needs=_BOTH_KINDS, source="Hendrycks & Gimpel 2017",
        ),
        Metric(
            "failure_fpr_at_95_tpr", "failure FPR at 95 % TPR",
            "share of wrong predictions kept at the highest threshold that keeps 95 % of the right ones",
            higher_is_better=False, low=0.0, high=1.0, needs=_BOTH_KINDS, source="Corbière et al. 2019",
        ),
        Metric(
            "failure_ap", "failure AP", "average precision of wrong predictions, ranked from the least confident",
            higher_is_better=True, low=0.0, high=1.0, needs=_BOTH_KINDS, source="Hendrycks & Gimpel 2017",
        ),
    )
}  # fmt: skip


def _at_point(name: str, title: str, formula: str, fixed: str, *, higher_is_better: bool) -> Metric:
    return Metric(
        name, title, f"{formula} at the threshold that {fixed} on validation",
        higher_is_better=higher_is_better, low=0.0, high=1.0, needs="such a threshold on validation",
        source="El-Yaniv & Wiener 2010", is_fitted=True,
    )  # fmt: skip


_KEEPS_80, _RISKS_5 = "keeps 80 % of the images", "keeps the most images with at most 5 % wrong ones among them"
#: What a confidence does where its threshold, or its scale, is fixed on validation (``detection.operating_points``).
SELECTIVE_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _at_point(
            "risk_at_coverage_80", "errors among the kept, one in five referred", "share of wrong among kept",
            _KEEPS_80, higher_is_better=False,
        ),
        _at_point(
            "coverage_at_coverage_80", "share kept, one in five referred", "share of images kept", _KEEPS_80,
            higher_is_better=True,
        ),
        _at_point(
            "risk_at_risk_5", "errors among the kept, 5 % allowed", "share of wrong among kept", _RISKS_5,
            higher_is_better=False,
        ),
        _at_point(
            "coverage_at_risk_5", "share kept, 5 % errors allowed", "share of images kept", _RISKS_5,
            higher_is_better=True,
        ),
        Metric(
            "failure_ece", "failure ECE",
            "Σ (n_m/N)·|accuracy_m − probability_m| over equal-width bins of the confidence as a probability of being "
            "right, by Platt scaling on validation",
            higher_is_better=False, low=0.0, high=1.0, needs="right and wrong predictions on validation",
            source="Platt 1999", is_fitted=True,
        ),
    )
}  # fmt: skip
#: Metrics of a confidence score on segmentations, whose risk is 1 − Dice; beside them AURC and AUGRC with that risk.
SEGMENTATION_FAILURE_METRICS: dict[str, Metric] = {
    "spearman": Metric(
        "spearman", "Spearman of score and Dice", "correlation of the ranks of score and Dice over the cases",
        higher_is_better=True, low=-1.0, high=1.0, needs="scores and Dice that differ between cases",
        source="Spearman 1904",
    )
}  # fmt: skip
_BOTH_SETS = "images of both sets"
#: Metrics of a detector (``ood``) between in-distribution images and those of another set.
OOD_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "auroc", "OOD AUROC",
            "share of pairs of an in-distribution and another image in which the former scores higher; ties count ½",
            higher_is_better=True, low=0.0, high=1.0, needs=_BOTH_SETS, source="Hendrycks & Gimpel 2017",
        ),
        Metric(
            "aupr_in", "AUPR-in", "average precision of in-distribution images, ranked from the highest score",
            higher_is_better=True, low=0.0, high=1.0, needs=_BOTH_SETS, source="Hendrycks & Gimpel 2017",
        ),
        Metric(
            "aupr_out", "AUPR-out", "average precision of the other images, ranked from the lowest score",
            higher_is_better=True, low=0.0, high=1.0, needs=_BOTH_SETS, source="Hendrycks & Gimpel 2017",
        ),
        Metric(
            "fpr_at_95_tpr", "FPR at 95 % TPR",
            "share of the other images that pass at the highest threshold that 95 % of in-distribution images pass",
            higher_is_better=False, low=0.0, high=1.0, needs=_BOTH_SETS, source="Liang et al. 2018",
        ),
        Metric(
            "fpr_at_95_tpr_out", "FPR at 95 % TPR, others positive",
            "share of in-distribution images flagged at the lowest threshold that flags 95 % of the other images",
            higher_is_better=False, low=0.0, high=1.0, needs=_BOTH_SETS, source="Liang et al. 2018",
        ),
    )
}  # fmt: skip


def _when_rejected(name: str, title: str, share: str) -> Metric:
    return Metric(
        name, title, f"share of {share} a score than the one that 95 % of the validation images reach",
        higher_is_better=True, low=0.0, high=1.0, needs=_BOTH_SETS, source="Karimi & Gholipour 2022",
    )  # fmt: skip


#: Metrics of a detector whose threshold is fixed on validation (``ood.fix_rejection``).
REJECTION_METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _when_rejected("sensitivity", "OOD sensitivity", "the other images with a lower"),
        _when_rejected("specificity", "OOD specificity", "in-distribution images without a lower"),
    )
}
#: Metrics of the two tables that are headline numbers of a trial; its ``detection.json`` has all.
HEADLINE_FAILURE, HEADLINE_OOD = "augrc", "auroc"
