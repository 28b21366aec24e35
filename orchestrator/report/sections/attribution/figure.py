"""Figure: relevance over area by the size of lesions, a panel per method and a line per arm."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from orchestrator.analysis.attribution.scores import AttributionScores
from orchestrator.analysis.results import Results
from orchestrator.report.style import (
    CHANCE_LINE,
    Figure,
    colour,
    first_colour_of,
    floats,
    layout_of,
    panel_title,
    panels_of,
)
from trainables.evaluation.attribution.mask_metrics import name_bin
from trainables.evaluation.attribution.table import AREA_BINS

#: Area bin → label of the axis.
BIN_LABELS = {"below_25": "< 25", "25_to_100": "25–99", "100_to_400": "100–400", "above_400": "> 400"}
_GAP = 0.07
#: Of more arms a legend is not readable.
_MAX_NAMED = 12


def draw_concentrations(results: Results, scores: AttributionScores, titles: Mapping[str, str]) -> Figure | None:
    """Return relevance over area in each area bin, None if no image has lesions.

    Args:
        results: tables of the study.
        scores: ``score_arms(results)``.
        titles: method → its title.
    """
    bins = [name for name in AREA_BINS if name_bin(name) in scores.metrics]
    if not bins:
        return None
    layout = _lay_out(scores, bins, titles)
    first = first_colour_of(results, None)
    data: list[dict[str, Any]] = []
    for panel, method in enumerate(scores.methods):
        suffix = "" if panel == 0 else str(panel + 1)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": [BIN_LABELS[bins[0]], BIN_LABELS[bins[-1]]], "y": [1, 1],
                "line": CHANCE_LINE, "name": "chance", "legendgroup": "chance", "showlegend": panel == 0,
                "hoverinfo": "skip", **axes,
            }
        )  # fmt: skip
        for index, arm in enumerate(scores.arms, start=first):
            data += [
                trace | axes | {"showlegend": panel == 0 and trace["showlegend"] and len(scores.arms) <= _MAX_NAMED}
                for trace in _trace_arm(results, scores, arm, method, bins, index)
            ]
    return Figure(
        title="Do large or small lesions get the attention?",
        note=(
            "Share of the relevance on lesions of an area (px of the stored image) over their share of the image: 1 is "
            "chance. Mean over trained models with 95 % t interval where there are enough; dashed: the same network "
            "with random weights. Not adjusted for number and shape of the lesions, as the ratio in the table is."
        ),
        data=data,
        layout=layout,
        height_px=360,
        axes=("area", "relevance over area"),
    )


def _trace_arm(
    results: Results, scores: AttributionScores, arm: str, method: str, bins: list[str], index: int
) -> list[dict[str, Any]]:
    """Return the traces of trained networks and of those with random weights."""
    found = {name: scores.scores.get((arm, method, name_bin(name))) for name in bins}
    known = {name: score for name, score in found.items() if score is not None}
    label = escape(results.labels.get(arm, arm))
    x = [BIN_LABELS[name] for name in known]
    intervals = [score.interval for score in known.values()]
    shared = {"type": "scatter", "legendgroup": arm, "x": x}
    trained = shared | {
        "mode": "lines+markers",
        "name": label,
        "y": floats([score.mean for score in known.values()]),
        "line": {"color": colour(index), "width": 2},
        "customdata": [[score.num_units] for score in known.values()],
        "hovertemplate": f"{label}<br>%{{x}} px: %{{y:.2f}} × chance, n = %{{customdata[0]}}<extra></extra>",
        "showlegend": True,
    }
    if all(interval is not None for interval in intervals):
        means = [score.mean for score in known.values()]
        trained["error_y"] = {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
            "array": floats([i.high - m for i, m in zip(intervals, means, strict=True) if i is not None]),
            "arrayminus": floats([m - i.low for i, m in zip(intervals, means, strict=True) if i is not None]),
        }  # fmt: skip
    random = shared | {
        "mode": "lines",
        "name": f"{label}, random weights",
        "y": floats([float("nan") if s.randomised is None else s.randomised for s in known.values()]),
        "line": {"color": colour(index), "width": 1.2, "dash": "dash"},
        "hovertemplate": f"{label}, random weights<br>%{{x}} px: %{{y:.2f}} × chance<extra></extra>",
        "showlegend": False,
    }
    return [trained, random]


def _lay_out(scores: AttributionScores, bins: list[str], titles: Mapping[str, str]) -> dict[str, Any]:
    """Return the layout of one panel per method, side by side."""
    layout = layout_of(annotations=[], meta=panels_of(230, below=48, left=44))
    count = len(scores.methods)
    width = (1 - _GAP * (count - 1)) / count
    for number, method in enumerate(scores.methods):
        suffix = "" if number == 0 else str(number + 1)
        start = number * (width + _GAP)
        layout[f"xaxis{suffix}"] = {
            "domain": [start, start + width], "anchor": f"y{suffix}", "title": {"text": "area of the lesion, px"},
            "type": "category", "categoryarray": [BIN_LABELS[name] for name in bins],
        }  # fmt: skip
        layout[f"yaxis{suffix}"] = {
            "anchor": f"x{suffix}", "zeroline": False, "rangemode": "tozero",
            **({"title": {"text": "relevance over area"}} if number == 0 else {}),
        }  # fmt: skip
        layout["annotations"].append(panel_title(titles[method], start, 1.0))
    layout["margin"] |= {"l": 64, "t": 62}
    return layout
