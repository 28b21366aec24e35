"""Figures of failure detection: risk over coverage, reliability, confidences of right and wrong predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.analysis.failure_detection import ALL_SHIFTS, IN_DISTRIBUTION
from orchestrator.analysis.predictions.confidence_curves import BINS, COVERAGES, ConfidenceCurves
from orchestrator.report.style import Figure, colour, floats, layout_of, panel_title, panels_of

_PX = 340
#: Gap between two panels, as a fraction of the plot.
_GAP = 0.1
RIGHT, WRONG = "#2b8ac9", "#d55e00"


def draw_risks(curves: ConfidenceCurves, titles: Mapping[str, str], label: str) -> Figure:
    """Return risk over coverage, a panel per condition and a line per score."""
    conditions = _list_conditions(curves)
    scores = list(dict.fromkeys(score for _, score in curves.risks))
    data: list[dict[str, Any]] = []
    layout = _panels(conditions, x="share of images kept", y="errors among them")
    for number, condition in enumerate(conditions):
        for index, score in enumerate(scores):
            if (condition, score) not in curves.risks:
                continue
            title = titles[score]
            hover = f"{title}<br>%{{x:.0%}} kept: %{{y:.1%}} wrong, n = {curves.num_models}"
            line = _line(number, title, COVERAGES, curves.risks[condition, score], colour(index), hover)
            data.append(line | {"mode": "lines"})
    return Figure(
        title="How many errors are left if the least confident images are referred to a human?",
        note=(
            f"Arm {label}: the most confident images are kept, the others referred. Mean of n = {curves.num_models} "
            f"trained models; all shifts and severities together.{_describe_step(curves)} At the right end everything "
            "is kept: the error rate. A score that knows nothing stays at that height."
        ),
        data=data,
        layout=layout,
        height_px=_PX,
        axes=("coverage", "risk"),
    )


def draw_reliability(curves: ConfidenceCurves, label: str) -> Figure:
    """Return accuracy over confidence before and after temperature scaling, a panel per condition."""
    conditions = _list_conditions(curves)
    layout = _panels(conditions, x="confidence (largest probability)", y="accuracy")
    data: list[dict[str, Any]] = []
    for number, condition in enumerate(conditions):
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
                "name": "calibrated", "showlegend": number == 0, "legendgroup": "calibrated",
                "line": {"color": "#6b7682", "width": 1.2, "dash": "dot"}, **_axes(number),
            }
        )  # fmt: skip
        for is_scaled, name in ((False, "as trained"), (True, "after temperature scaling")):
            bins = curves.reliability.get((condition, is_scaled))
            if bins is None:
                continue
            has = bins.num > 0
            confidence, right = (each[has] / bins.num[has] for each in (bins.confidence, bins.right))
            hover = f"{name}<br>confidence %{{x:.1%}}, right %{{y:.1%}}, n = %{{customdata[0]}}"
            line = _line(number, name, confidence, right, colour(3 if is_scaled else 0), hover)
            data.append(line | {"mode": "lines+markers", "customdata": [[int(each)] for each in bins.num[has]]})
    return Figure(
        title="Is a confidence of 90 % right nine times of ten?",
        note=(
            f"Arm {label}, n = {curves.num_models} trained models pooled, {BINS} bins of equal width. Below the "
            "dotted line the model is over-confident. The temperature is fitted on unshifted validation images, so "
            "under shifts it need not help."
        ),
        data=data,
        layout=layout,
        height_px=_PX,
        axes=("confidence", "accuracy"),
    )


def draw_confidences(curves: ConfidenceCurves, label: str) -> Figure:
    """Return the distribution of the largest probability of right and of wrong predictions, a panel per condition."""
    conditions = _list_conditions(curves)
    layout = _panels(conditions, x="confidence (largest probability)", y="share of right or wrong ones")
    layout["barmode"] = "group"
    data: list[dict[str, Any]] = []
    centres = (np.arange(BINS) + 0.5) / BINS
    for number, condition in enumerate(conditions):
        bins = curves.reliability[condition, False]
        for name, counts, hue in (("right", bins.right, RIGHT), ("wrong", bins.num - bins.right, WRONG)):
            total = counts.sum()
            data.append(
                {
                    "type": "bar",
                    "name": name,
                    "legendgroup": name,
                    "showlegend": number == 0,
                    "x": floats(centres),
                    "y": floats(counts / max(total, 1)),
                    "marker": {"color": hue},
                    "hovertemplate": f"%{{y:.1%}} of {int(total):,} {name} predictions<extra></extra>",
                    **_axes(number),
                }
            )
    return Figure(
        title="Are wrong predictions less confident?",
        note=(
            f"Arm {label}, n = {curves.num_models} trained models pooled. Each colour adds up to 100 %; the wrong ones "
            "at the right end are silent failures: nothing in the confidence warns of them."
        ),
        data=data,
        layout=layout,
        height_px=_PX,
        axes=("confidence", "share"),
    )


def _list_conditions(curves: ConfidenceCurves) -> list[str]:
    return [each for each in (IN_DISTRIBUTION, ALL_SHIFTS) if (each, False) in curves.reliability]


def _describe_step(curves: ConfidenceCurves) -> str:
    return "" if curves.step == 1 else f" Every {curves.step}th image was read."


def _line(number: int, name: str, x: np.ndarray, y: np.ndarray, hue: str, hover: str) -> dict[str, Any]:
    """Return a line in the panel ``number``; its legend entry is in the first panel and switches it in all."""
    return {
        "type": "scatter",
        "name": name,
        "legendgroup": name,
        "showlegend": number == 0,
        "x": floats(x),
        "y": floats(y),
        "line": {"color": hue, "width": 2},
        "hovertemplate": f"{hover}<extra></extra>",
        **_axes(number),
    }


def _axes(number: int) -> dict[str, str]:
    suffix = "" if number == 0 else str(number + 1)
    return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}


def _panels(conditions: list[str], *, x: str, y: str) -> dict[str, Any]:
    """Return the layout of one panel per condition, side by side, with the axes' titles."""
    layout = layout_of(annotations=[], meta=panels_of(260, below=48, left=44))
    width = (1 - _GAP * (len(conditions) - 1)) / len(conditions)
    for number, condition in enumerate(conditions):
        suffix = "" if number == 0 else str(number + 1)
        start = number * (width + _GAP)
        layout[f"xaxis{suffix}"] = {
            "domain": [start, start + width], "anchor": f"y{suffix}", "title": {"text": x}, "tickformat": ".0%",
            "zeroline": False,
        }  # fmt: skip
        layout[f"yaxis{suffix}"] = {
            "anchor": f"x{suffix}", "tickformat": ".0%", "zeroline": False, "rangemode": "tozero",
            **({"title": {"text": y}} if number == 0 else {}),
        }  # fmt: skip
        layout["annotations"].append(panel_title(condition, start, 1.0))
    layout["margin"] |= {"l": 64, "t": 62}
    return layout
