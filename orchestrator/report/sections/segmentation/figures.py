"""Figures of a segmentation: Dice by arm and data set, Bland–Altman of areas, Dice against a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from orchestrator.analysis.segmentation.by_data_set import DataSetScore, DataSetScores
from orchestrator.analysis.segmentation.cases import Cases
from orchestrator.report.style import NEUTRAL, Figure, colour, floats, layout_of
from trainables.evaluation.metrics import SEGMENTATION_METRICS
from trainables.evaluation.segmentation.judged import measure_dice


def draw_data_sets(scores: DataSetScores, labels: Mapping[str, str], metric: str = "dice") -> Figure:
    """Return the mean of a metric by arm, one colour per data set, with intervals over trained models."""
    title = SEGMENTATION_METRICS[metric].title
    data: list[dict[str, Any]] = []
    arms = [arm for arm in scores.arms if any((arm, each, metric) in scores.scores for each in scores.data_sets)]
    for index, data_set in enumerate(scores.data_sets):
        found = [scores.scores.get((arm, data_set, metric)) for arm in arms]
        means = [np.nan if each is None else each.mean for each in found]
        ends = [_find_ends(each) for each in found]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(data_set),
                "x": floats(means),
                "y": [escape(labels.get(arm, arm)) for arm in arms],
                "marker": {"color": colour(index), "size": 10},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": floats([high - mean for (_, high), mean in zip(ends, means, strict=True)]),
                    "arrayminus": floats([mean - low for (low, _), mean in zip(ends, means, strict=True)]),
                    "color": colour(index),
                    "thickness": 1.5,
                },
                "hovertemplate": f"%{{y}}, {escape(data_set)}: %{{x:.3f}}<extra></extra>",
            }
        )
    layout = layout_of(
        xaxis={"title": {"text": title}, "zeroline": False},
        yaxis={"automargin": True, "autorange": "reversed"},
    )
    return Figure(
        title=f"{title} on which data set?",
        note="Unshifted test images; mean over trained models, bars: 95 % t interval over independent ones.",
        data=data,
        layout=layout,
        height_px=120 + 34 * len(arms),
        axes=(metric, "arm"),
    )


def _find_ends(score: DataSetScore | None) -> tuple[float, float]:
    interval = None if score is None else score.interval
    return (np.nan, np.nan) if interval is None else (interval.low, interval.high)


def draw_areas(cases: Cases, order: Sequence[str] = ()) -> Figure | None:
    """Return a Bland–Altman plot of predicted and true areas (or volumes) of the test cases, None if none is stored.

    Args:
        cases: stored cases.
        order: data sets in the order of their colours.
    """
    data: list[dict[str, Any]] = []
    every: list[np.ndarray] = []
    for name, stored, chosen in cases.list_parts():
        if stored.areas is None:
            continue
        predicted, true = stored.areas[chosen, :, 0].sum(1), stored.areas[chosen, :, 1].sum(1)
        mean = (predicted + true) / 2
        relative = 100 * np.divide(predicted - true, mean, out=np.zeros_like(mean), where=mean > 0)
        every.append(relative)
        hue = _find_colour(name, order, len(data))
        data.append(_dots(name, mean, relative, stored.ids[chosen], hue, "%{x:.4g}: %{y:+.1f} %"))
    if not every:
        return None
    whole, measure = np.concatenate(every), cases.sets[0].measure
    bias, sd = float(whole.mean()), float(whole.std(ddof=1)) if len(whole) > 1 else 0.0
    lines = [(bias, "solid"), (bias - 1.96 * sd, "dot"), (bias + 1.96 * sd, "dot")]
    shapes = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": {"color": NEUTRAL, "dash": dash}}
        for y, dash in lines
    ]
    layout = layout_of(
        xaxis={"title": {"text": f"mean of predicted and true {measure}"}},
        yaxis={"title": {"text": "difference, % of the mean"}, "zeroline": True},
        shapes=shapes,
    )
    return Figure(
        title="Does it find too much or too little?",
        note=(
            f"Bland–Altman: predicted minus true {measure} of every case, all classes together; line: mean difference "
            f"({bias:+.1f} %), dotted: 1.96 standard deviations around it. One trained model."
        ).replace("-", "−"),
        data=data,
        layout=layout,
        height_px=380,
        axes=(measure, "difference"),
    )


def draw_score(cases: Cases, score: str, title: str, order: Sequence[str] = ()) -> Figure | None:
    """Return Dice of every case over a confidence, None if the score is not stored.

    Args:
        cases: stored cases.
        score: name of the score, as it is stored.
        title: title of it.
        order: data sets in the order of their colours.
    """
    data: list[dict[str, Any]] = []
    for name, stored, chosen in cases.list_parts():
        if score not in stored.scores:
            continue
        dice, values = measure_dice(stored)[chosen], stored.scores[score][0][chosen]
        hue = _find_colour(name, order, len(data))
        data.append(_dots(name, values, dice, stored.ids[chosen], hue, "%{x:.3g}: Dice %{y:.3f}"))
    if not data:
        return None
    layout = layout_of(
        xaxis={"title": {"text": f"{escape(title)} (right: more confident)"}}, yaxis={"title": {"text": "Dice"}}
    )
    return Figure(
        title="Does the score tell bad segmentations?",
        note="A dot per unshifted case of one trained model. A score that tells them has low Dice on the left only.",
        data=data,
        layout=layout,
        height_px=380,
        axes=("confidence", "dice"),
    )


def _find_colour(name: str, order: Sequence[str], number: int) -> int:
    return order.index(name) if name in order else number


def _dots(name: str, x: np.ndarray, y: np.ndarray, ids: np.ndarray, index: int, values: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(name),
        "x": floats(x),
        "y": floats(y),
        "text": [escape(str(each)) for each in ids],
        "marker": {"color": colour(index), "size": 8, "opacity": 0.8},
        "hovertemplate": f"%{{text}}<br>{values}<extra></extra>",
    }
