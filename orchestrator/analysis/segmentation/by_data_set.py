"""Metrics of a segmentation by arm and data set, from headline numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.analysis.results import Results
from orchestrator.statistics.intervals import Interval, t_interval
from trainables.evaluation.metrics import SEGMENTATION_METRICS

#: Metrics of the table, in its order.
SHOWN = ("dice", "cl_dice", "nsd", "hd95", "missed", "pixel_ece", "band_ece")
_OF_DATA_SET = re.compile(r"dataset/(.+)/(\w+)")


@dataclass(frozen=True)
class DataSetScore:
    """One metric of one arm on the unshifted test images of one data set, over its complete replicates."""

    mean: float
    #: Over independently trained models; None if there are too few.
    interval: Interval | None


@dataclass(frozen=True)
class DataSetScores:
    """Scores by arm, data set and metric; arms and data sets in the order of the study."""

    arms: tuple[str, ...]
    data_sets: tuple[str, ...]
    metrics: tuple[str, ...]
    scores: dict[tuple[str, str, str], DataSetScore]


def score_data_sets(results: Results) -> DataSetScores | None:
    """Return the scores of all arms; of a study on a single data set those of its test set, called "test".

    None if no complete trial is a segmentation.
    """
    complete = results.complete
    columns = {
        (match[1], match[2]): name for name in map(str, complete) if (match := _OF_DATA_SET.fullmatch(name)) is not None
    }
    if not columns:
        columns = {
            ("test", metric): name
            for metric, each in SEGMENTATION_METRICS.items()
            for name in (f"id/{metric}", f"calibration/{metric}")
            if name in complete and complete[name].notna().any()
        }
    columns = {key: name for key, name in columns.items() if key[1] in SHOWN}
    if not columns:
        return None
    units = results.group_replicates(complete)
    scores: dict[tuple[str, str, str], DataSetScore] = {}
    for arm, rows in complete.groupby("name", sort=False):
        of_units = rows.groupby(rows["replicate"].map(units))
        for (data_set, metric), column in columns.items():
            values = of_units[column].mean().dropna()
            if len(values):
                scores[str(arm), data_set, metric] = DataSetScore(float(values.mean()), t_interval(values))
    known = {metric for _, metric in columns}
    return DataSetScores(
        arms=tuple(dict.fromkeys(arm for arm, _, _ in scores)),
        data_sets=tuple(dict.fromkeys(data_set for data_set, _ in columns)),
        metrics=tuple(metric for metric in SHOWN if metric in known),
        scores=scores,
    )
