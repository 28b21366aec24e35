"""Headline numbers that tables of arms and effects show, in display order, with their titles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.tables.label_maps import describe_label_maps
from trainables.evaluation.metrics import (
    EVALUATED,
    MAIN_CALIBRATION,
    SEGMENTATION_METRICS,
    is_higher_better,
    name_over_shifts,
    name_over_sites,
    name_over_validation_shifts,
)


@dataclass(frozen=True)
class Measure:
    """One headline number of a trial: its column and its titles."""

    column: str
    title: str
    #: Heading in a table that names the metric elsewhere.
    short: str

    @property
    def higher_is_better(self) -> bool:
        """Whether higher values are better."""
        return is_higher_better(self.column)


def list_measures(metric: str, title: str, external_sets: Sequence[str], columns: Sequence[str]) -> list[Measure]:
    """Return all measures that a study may have.

    Args:
        metric: metric that its arms are compared by.
        title: title of it.
        external_sets: sets beside the test set.
        columns: columns of the trials, of which those of label maps are looked for.
    """
    listed = [
        Measure(f"val/{metric}", f"validation {title}", "validation"),
        Measure(
            name_over_validation_shifts("mean", metric), f"mean {title} on shifted validation", "shifted validation"
        ),
        Measure(f"id/{metric}", f"in-distribution {title}", "in-distribution test"),
        Measure(
            f"robustness/mean_unused_{metric}",
            f"mean {title} under shifts not used for selection",
            "not used for selection",
        ),
        Measure(f"robustness/mean_{metric}", f"mean shifted {title}", "mean shifted"),
        Measure(f"robustness/mean_unseen_{metric}", f"mean {title} under unseen shifts", "unseen by the policies"),
        Measure(f"robustness/mean_seen_{metric}", f"mean {title} under seen shifts", "seen by a policy"),
        Measure(f"robustness/worst_shift_{metric}", f"{title} under the worst shift", "worst shift"),
        Measure(f"robustness/worst_cell_{metric}", f"{title} under the worst shift × severity", "worst cell"),
        *(Measure(f"external/{name}/{metric}", f"{name} {title}", name) for name in external_sets),
        *(
            Measure(name_over_sites(each, metric), f"{words} {title} over external sets", f"{words} external")
            for each, words in (("mean", "mean"), ("worst", "worst"), ("sd", "sd of"))
            if len(external_sets) > 1
        ),
        *(Measure(*each) for each in describe_label_maps(columns, metric, title)),
    ]
    return [*listed, *_list_calibration("segmentation" if metric in SEGMENTATION_METRICS else "classification")]


def _list_calibration(task: str) -> list[Measure]:
    """Return the calibration error of a task, of a classification after temperature scaling too."""
    name = MAIN_CALIBRATION[task]
    title = EVALUATED[name].title
    errors = [(name, title, title)]
    if f"{name}_scaled" in EVALUATED:
        errors.append((f"{name}_scaled", f"{title} after temperature scaling", f"{title}, scaled"))
    return [
        *(Measure(f"calibration/{each}", f"in-distribution {words}", short) for each, words, short in errors),
        *(
            Measure(name_over_shifts("mean", each), f"mean shifted {words}", f"shifted {short}")
            for each, words, short in errors
        ),
    ]
