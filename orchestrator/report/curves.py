"""Severity curves and training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.stain_grid import rows_of_shifts
from orchestrator.analysis.wording import SEEN_MARK, explain_used, mark_used, sentence, word_seen
from orchestrator.ledger.record import Record
from orchestrator.report.style import Figure, colour, floats, layout_of, panel_title, translucent

#: Curves visible at first, and curves in the legend that can be switched on. The caption refers to shifts.csv for more.
SHOWN_CURVES = 8
LISTED_CURVES = 24

#: Most points per panel of training curves, about 2 MB of the page in two panels; beyond it, every n-th training is
#: drawn.
MAX_TRAINING_POINTS = 50_000

_COLUMNS = 4

# ------------------------------------------------------------------------------------------------ severity curves


def severity_curves(results: Results, groups: Mapping[str, str], what: str, *, shown: Sequence[str]) -> Figure | None:
    """Return one panel per shift with mean and min–max per severity over the trials of a group; None without shifts.

    Args:
        results: tables of the study.
        groups: signature → group (an arm's label, or a level of one factor).
        what: description of a group for the caption.
        shown: groups in the order of their colours; the first ``SHOWN_CURVES`` are drawn, the others up to
            ``LISTED_CURVES`` are listed in the legend.
    """
    shifts, names = rows_of_shifts(results)
    if not names:
        return None
    frame = shifts.assign(group=shifts["signature"].map(dict(groups)).astype("category"))
    table = frame.groupby(["group", "shift", "severity"], observed=True)[results.metric].agg(
        ["mean", "min", "max", "count"]
    )
    clean = (
        frame[frame["severity"] == 0]
        .groupby("group", observed=True)[results.metric]
        .agg(["mean", "min", "max", "count"])
    )
    listed = [group for group in shown if group in clean.index][:LISTED_CURVES]
    arms, seen = _arms_of(results, groups), frozenset[str]().union(*results.seen.values())
    rows = math.ceil(len(names) / _COLUMNS)
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[])
    low = float(table["min"].min())
    for number, shift in enumerate(names):
        suffix = "" if number == 0 else str(number + 1)
        _add_panel(layout, suffix, number, rows, low)
        title = mark_used(shift, results.used_types) + f" {SEEN_MARK}" * (shift in seen)
        layout["annotations"].append(_small_title(title, layout, suffix))
        for index, group in enumerate(listed):
            if (group, shift) in table.index:
                start: pd.DataFrame = clean.loc[[group]].set_axis([0])
                stronger = pd.DataFrame(table.xs((group, shift)))
                curve = pd.concat([start, stronger])
                policy = word_seen(results.seen, arms[group], shift)
                traces = _curve(curve, group, index, suffix, policy=policy)
                traces[-1]["meta"] = {"panel": shift, "columns": ["n", "smallest", "largest"]}
                data += traces
    layout["legend"] |= {"y": 1 + 22 / (rows * 175), "groupclick": "togglegroup"}
    layout["margin"] |= {"t": 34 + 19 * _legend_lines(listed), "b": 0}
    drawn = min(len(listed), SHOWN_CURVES)
    rest = len(clean) - len(listed)
    subset = (
        ""
        if len(clean) <= drawn
        else f" {drawn} of {len(clean)} are drawn; click the legend for {len(listed) - drawn} more"
    )
    subset += f"; the other {rest} are in shifts.csv." if rest else ("." if subset else "")
    return Figure(
        title="How fast does it fall as a shift gets stronger?",
        note=(
            f"{sentence(TITLES[results.metric])} against severity (0 is the unshifted test set). Line: mean over the "
            f"trials of one {what}; band: their smallest and largest. "
            f"n = {frame['signature'].nunique()} complete trials.{subset}"
            f"{_explain_titles(results)}{explain_used(results.used_types)}"
        ),
        data=data,
        layout=layout,
        height_px=layout["margin"]["t"] + 175 * rows,
        axes=("severity", TITLES[results.metric]),
    )


def _explain_titles(results: Results) -> str:
    if not any(results.seen.values()):
        return ""
    return f" {SEEN_MARK} Some arm’s training policy contains a change of this kind; the hover says so of each curve."


def _arms_of(results: Results, groups: Mapping[str, str]) -> dict[str, set[str]]:
    """Return group → names of the arms whose trials are in it."""
    names = dict(zip(results.trials["signature"], results.trials["name"], strict=True))
    arms: dict[str, set[str]] = {}
    for signature, group in groups.items():
        arms.setdefault(group, set()).add(str(names[signature]))
    return arms


def _legend_lines(names: Sequence[str]) -> int:
    """Return the number of lines of a legend on a page of 1,000 px: 7 px per letter, one width for all entries."""
    width = 50 + 7 * max((len(name) for name in names), default=0)
    return math.ceil(len(names) / max(1, 1000 // width))


def _add_panel(layout: dict[str, Any], suffix: str, number: int, rows: int, low: float) -> None:
    row, column = divmod(number, _COLUMNS)
    left, top = column / _COLUMNS, 1 - row / rows
    layout[f"xaxis{suffix}"] = {
        "domain": [left + 0.01, left + 1 / _COLUMNS - 0.01],
        "anchor": f"y{suffix}",
        "dtick": 1,
        "showgrid": False,
        "zeroline": False,
        "range": [-0.15, 5.15],
        "fixedrange": True,
    }
    # One scale for all panels, otherwise a steep curve and a flat one look the same.
    layout[f"yaxis{suffix}"] = {
        "domain": [top - 1 / rows + (46 / 175) / rows, top],
        "anchor": f"x{suffix}",
        "tickformat": ".0%",
        "showticklabels": column == 0,
        "range": [max(0.0, low - 0.03), 1.005],
        "nticks": 5,
        "zeroline": False,
        "fixedrange": True,
    }


def _small_title(text: str, layout: dict[str, Any], suffix: str) -> dict[str, Any]:
    x, y = layout[f"xaxis{suffix}"]["domain"][0], layout[f"yaxis{suffix}"]["domain"][1]
    return panel_title(text.replace("_", " "), x, y)


def _curve(curve: pd.DataFrame, group: str, index: int, suffix: str, *, policy: str) -> list[dict[str, Any]]:
    axes = {"type": "scatter", "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "legendgroup": str(index)}
    visible = True if index < SHOWN_CURVES else "legendonly"
    severities = [int(value) for value in curve.index]
    line = axes | {
        "name": escape(group),
        "mode": "lines+markers",
        "x": severities,
        "y": floats(curve["mean"]),
        "line": {"color": colour(index), "width": 2},
        "marker": {"size": 4},
        "showlegend": not suffix,
        "visible": visible,
        "customdata": [
            [int(n), *floats(ends)] for n, *ends in zip(curve["count"], curve["min"], curve["max"], strict=True)
        ],
        "hovertemplate": f"{escape(group)}<br>severity %{{x}}: %{{y:.1%}} (n = %{{customdata[0]}})"
        f"{policy and f'<br>{policy}'}<extra></extra>",
    }
    if curve["count"].max() < 2:
        return [line]
    band = axes | {
        "mode": "lines",
        "x": severities + severities[::-1],
        "y": floats(list(curve["max"]) + list(curve["min"])[::-1]),
        "fill": "toself",
        "fillcolor": translucent(index),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "visible": visible,
    }
    return [band, line]


# ------------------------------------------------------------------------------------------------ training curves


def training_curves(results: Results, groups: Mapping[str, str], order: Sequence[str]) -> Figure | None:
    """Return training loss, validation metric and contrastive loss per epoch, with a thin line per trial or stage.

    None if no trial or stage has recorded any of them.

    Args:
        results: tables of the study.
        groups: signature → group, which determines the colour of a trial's lines.
        order: groups in the order of their colours.
    """
    trials = [(groups[s], record) for s, record in results.records.items() if record.epochs and s in groups]
    step = max(1, math.ceil(sum(len(record.epochs) + 1 for _, record in trials) / MAX_TRAINING_POINTS))
    stages = [
        ("stage", record) for record in results.stages if record.epochs and "ssl/loss" in record.epochs[0]["metrics"]
    ]
    panels = [
        ("train/loss", "training loss", trials),
        (f"val/{results.metric}", f"validation {TITLES[results.metric]}", trials),
        ("ssl/loss", "contrastive loss (stages)", stages),
    ]
    panels = [
        panel
        for panel in panels
        if any(panel[0] in line["metrics"] for _, record in panel[2] for line in record.epochs)
    ]
    if not panels:
        return None
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[])
    layout["margin"] |= {"t": 62}
    layout["legend"]["y"] = 1.12
    for number, (key, title, runs) in enumerate(panels):
        suffix = "" if number == 0 else str(number + 1)
        left, right = number / len(panels) + (0.035 if number else 0.0), (number + 1) / len(panels)
        layout[f"xaxis{suffix}"] = {"domain": [left, right], "anchor": f"y{suffix}", "title": {"text": "epoch"}}
        layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}", "nticks": 6, "tickformat": ".0%" if "val/" in key else ""}
        layout["annotations"].append(panel_title(title, left, 1.0))
        for index, group in enumerate([*order, "stage"]):
            drawn = [record for name, record in runs if name == group][:: step if group != "stage" else 1]
            if drawn:
                meta = {"panel": title, "lines": [record.signature for record in drawn]}
                data.append(_training_lines(key, drawn, (group, index), suffix) | {"meta": meta})
    return Figure(
        title="Did the trainings settle?",
        note=f"A line is one training. n = {len(trials)} trials and {len(stages)} stages that wrote at least an epoch."
        + (f" One in {step} trials of each colour is drawn." if step > 1 else ""),
        data=data,
        layout=layout,
        height_px=300,
        axes=("epoch", "value"),
    )


def _training_lines(key: str, runs: Sequence[Record], group: tuple[str, int], suffix: str) -> dict[str, Any]:
    x: list[int | None] = []
    y: list[float | None] = []
    for record in runs:
        for line in record.epochs:
            x.append(line["epoch"])
            value = line["metrics"].get(key)
            y.append(None if value is None else float(f"{value:.5g}"))
        x.append(None)  # gap: many trainings in one trace keep a page of 400 trials fast
        y.append(None)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escape(group[0]),
        "legendgroup": group[0],
        "showlegend": not suffix and bool(group[0]),
        "x": x,
        "y": y,
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "line": {"width": 1.2, "color": colour(group[1])},
        "opacity": 0.6,
        "hovertemplate": f"{escape(group[0])}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>",
    }
