"""Severity curves and training curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.severity_scores import SeverityScores, order_by_drop, score_severities
from orchestrator.analysis.stain_grid import rows_of_shifts
from orchestrator.analysis.wording import SEEN_MARK, explain_used, mark_used, plural, sentence, word_seen
from orchestrator.ledger.record import Record
from orchestrator.report.style import (
    CHANCE_LINE,
    Figure,
    colour,
    describe_chance,
    floats,
    layout_of,
    panel_title,
    panels_of,
    translucent,
)
from orchestrator.statistics.intervals import MIN_REPLICATES
from trainables.evaluation.metrics import find_chance

#: Curves visible at first, and curves in the legend that can be switched on. The caption refers to shifts.csv for more.
SHOWN_CURVES = 8
LISTED_CURVES = 24

#: Up to so many epochs, each has its tick.
FEW_EPOCHS = 8
#: Most points per panel of training curves, about 2 MB of the page in two panels; beyond it, every n-th training is
#: drawn.
MAX_TRAINING_POINTS = 50_000

#: Panels per row, height of one and of title and ticks between two, px.
_COLUMNS = 4
_PANEL_PX, _BETWEEN_PX = 135, 46
#: Smallest width of a panel, px, and width of a letter of a label: whether a label has room is decided for these.
_MIN_WIDTH_PX, _LETTER_PX = 200, 6.2

# ------------------------------------------------------------------------------------------------ severity curves


def severity_curves(
    results: Results, groups: Mapping[str, str], what: str, *, shown: Sequence[str], first_colour: int = 0
) -> Figure | None:
    """Return one panel per shift, largest drop first, with the mean per severity of every group; None without any.

    The band is the 95 % t interval over replicates; a group of fewer than ``MIN_REPLICATES`` has a thin line for each.

    Args:
        results: tables of the study.
        groups: signature → group (an arm's label, or a level of one factor).
        what: description of a group for the caption.
        shown: groups in the order of their colours; the first ``SHOWN_CURVES`` are drawn, the others up to
            ``LISTED_CURVES`` are listed in the legend.
        first_colour: index of the first group's colour.
    """
    names = order_by_drop(results)
    if not names:
        return None
    rows, _ = rows_of_shifts(results)
    trained = list(map(str, rows["signature"].unique()))
    known = {groups[signature] for signature in trained if signature in groups}
    listed = [group for group in shown if group in known][:LISTED_CURVES]
    scores = score_severities(results, groups, listed)
    if not scores:
        return None
    arms, seen = _arms_of(results, groups), frozenset[str]().union(*results.seen.values())
    chance = find_chance(results.metric, len(results.plan["data"]["classes"]))
    drawn = min(len(listed), SHOWN_CURVES)
    low = float(np.nanmin(np.concatenate([each.units.ravel() for each in scores.values()])))
    low = low if chance is None else min(low, chance)
    limits = (max(0.0, low - 0.03), 1.005)
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[], meta=panels_of(_MIN_WIDTH_PX, below=24, shared=True))
    for number, shift in enumerate(names):
        suffix = "" if number == 0 else str(number + 1)
        _add_panel(layout, suffix, (number, len(names)), limits, TITLES[results.metric])
        title = mark_used(shift, results.used_types) + f" {SEEN_MARK}" * (shift in seen)
        layout["annotations"].append(_small_title(title, layout, suffix))
        curves = {group: scores[group, shift] for group in listed if (group, shift) in scores}
        ends = {g: pd.Series(curve.mean, curve.severities) for g, curve in curves.items() if g in listed[:drawn]}
        labels = find_free_labels(ends, limits)
        for group, curve in curves.items():
            policy, index = word_seen(results.seen, arms[group], shift), listed.index(group)
            look = (index, first_colour, suffix, shift)
            data += _curve(curve, group, look, policy=policy, label=group if group in labels else "")
        data += [] if chance is None else [_chance_line(chance, suffix)]
    num_rows = math.ceil(len(names) / _COLUMNS)
    layout["legend"] |= {"y": 1 + 22 / (num_rows * 175), "groupclick": "togglegroup"}
    layout["margin"] |= {"l": 60, "t": 34 + 19 * _legend_lines(listed), "b": 44}
    rest = len(known) - len(listed)
    subset = (
        ""
        if len(known) <= drawn
        else f" {drawn} of {len(known)} are drawn; click the legend for {len(listed) - drawn} more"
    )
    subset += f"; the other {rest} are in shifts.csv." if rest else ("." if subset else "")
    return Figure(
        title="How fast does it fall as a shift gets stronger?",
        note=(
            f"{sentence(TITLES[results.metric])} against severity (0 is the unshifted test set); the shift with the "
            f"largest drop comes first. Line: mean over the replicates of one {what}{_explain_bands(scores.values())}. "
            f"n = {len(trained)} complete trials.{subset}"
            f"{describe_chance(results)}{_explain_titles(results)}{explain_used(results.used_types)}"
        ),
        data=data,
        layout=layout,
        height_px=layout["margin"]["t"] + (_PANEL_PX + _BETWEEN_PX) * num_rows,
        axes=("severity", TITLES[results.metric]),
    )


def _explain_bands(scores: Iterable[SeverityScores]) -> str:
    numbers = {int((~np.isnan(each.units[0])).sum()) for each in scores}
    parts = []
    if max(numbers) >= MIN_REPLICATES:
        parts.append("band: its 95 % t interval over replicates")
    if any(1 < number < MIN_REPLICATES for number in numbers):
        parts.append(f"thin lines: its replicates (an interval takes {MIN_REPLICATES} independent ones)")
    if 1 in numbers:
        parts.append("a line alone rests on one replicate or one shared encoder")
    return f"; {'; '.join(parts)}"


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


def _add_panel(
    layout: dict[str, Any], suffix: str, place: tuple[int, int], limits: tuple[float, float], title: str
) -> None:
    number, num_panels = place
    rows = math.ceil(num_panels / _COLUMNS)
    row, column = divmod(number, _COLUMNS)
    left, top = column / _COLUMNS, 1 - row / rows
    share = _BETWEEN_PX / (_PANEL_PX + _BETWEEN_PX)
    layout[f"xaxis{suffix}"] = {
        "domain": [left + 0.01, left + 1 / _COLUMNS - 0.01],
        "anchor": f"y{suffix}",
        "dtick": 1,
        "showgrid": False,
        "zeroline": False,
        "range": [-0.15, 5.15],
        "fixedrange": True,
    } | ({"title": {"text": "severity", "standoff": 4}} if number + _COLUMNS >= num_panels else {})
    # One scale for all panels, otherwise a steep curve and a flat one look the same.
    layout[f"yaxis{suffix}"] = {
        "domain": [top - 1 / rows + share / rows, top],
        "anchor": f"x{suffix}",
        "tickformat": ".0%",
        "showticklabels": column == 0,
        "range": list(limits),
        "nticks": 5,
        "zeroline": False,
        "fixedrange": True,
    } | ({"title": {"text": title, "standoff": 6}} if column == 0 else {})


def _small_title(text: str, layout: dict[str, Any], suffix: str) -> dict[str, Any]:
    x, y = layout[f"xaxis{suffix}"]["domain"][0], layout[f"yaxis{suffix}"]["domain"][1]
    return panel_title(text.replace("_", " "), x, y)


def find_free_labels(curves: Mapping[str, pd.Series[float]], limits: tuple[float, float]) -> set[str]:
    """Return the groups whose name has room below the end of its line, where no line runs through it.

    Args:
        curves: group → score per severity.
        limits: lowest and highest score of the panel.
    """
    if len(curves) < 2:
        return set()
    per_px = (limits[1] - limits[0]) / _PANEL_PX
    free = set()
    for group, own in curves.items():
        end, others = float(own.index[-1]), [curve for name, curve in curves.items() if name != group]
        start = end - 5.3 * _LETTER_PX * (len(group) + 1) / _MIN_WIDTH_PX
        top, bottom = float(own.iloc[-1]) - 2 * per_px, float(own.iloc[-1]) - 16 * per_px
        crossed = any(abs(float(other.iloc[-1]) - float(own.iloc[-1])) < 16 * per_px for other in others) or any(
            bottom <= value <= top
            for curve in curves.values()
            for value in np.interp(np.linspace(start, end, 12), list(curve.index), list(curve))
        )
        if start > 0.5 and bottom > limits[0] and not crossed:
            free.add(group)
    return free


def _curve(
    curve: SeverityScores, group: str, look: tuple[int, int, str, str], *, policy: str, label: str
) -> list[dict[str, Any]]:
    """Return the traces of a group in a panel: band or thin lines, then the mean, which says what its numbers are."""
    index, first_colour, suffix, panel = look
    axes: dict[str, Any] = {"type": "scatter", "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "legendgroup": str(index)}
    axes |= {"visible": True if index < SHOWN_CURVES else "legendonly"}
    hue = index + first_colour
    severities, num_units = list(curve.severities), curve.units.shape[1]
    has_band = not np.isnan(curve.low).any()
    ends = "<br>95 % t interval %{customdata[1]:.1%} to %{customdata[2]:.1%}" if has_band else ""
    numbers = "n = %{customdata[0]} trials, " + plural(num_units, "replicate or encoder")
    line: dict[str, Any] = axes | {
        "name": escape(group),
        "mode": "lines+markers+text" if label else "lines+markers",
        "x": severities,
        "y": floats(curve.mean),
        "line": {"color": colour(hue), "width": 2},
        "marker": {"size": 4},
        "showlegend": not suffix,
        "customdata": list(map(list, zip(curve.num_trials, floats(curve.low), floats(curve.high), strict=True))),
        "hovertemplate": f"{escape(group)}<br>severity %{{x}}: %{{y:.1%}} ({numbers}){ends}"
        f"{policy and f'<br>{policy}'}<extra></extra>",
        "meta": {"panel": panel, "columns": ["n", "interval low", "interval high"]},
    }
    if label:
        line |= {"text": [""] * (len(severities) - 1) + [escape(label)], "textposition": "bottom left"}
        line |= {"textfont": {"size": 10.5}, "cliponaxis": False}
    more = axes | {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    if has_band:
        ends_of_band = [*floats(curve.high), *floats(curve.low)[::-1]]
        band = {"x": severities + severities[::-1], "y": ends_of_band, "fill": "toself", "line": {"width": 0}}
        return [more | band | {"fillcolor": translucent(hue)}, line]
    if not 1 < num_units < MIN_REPLICATES:
        return [line]
    thin = {"x": [*severities, None] * num_units, "y": [y for unit in curve.units.T for y in (*floats(unit), None)]}
    return [more | thin | {"line": {"color": colour(hue), "width": 1}, "opacity": 0.35}, line]


def _chance_line(chance: float, suffix: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"chance, {100 * chance:.0f} %",
        "legendgroup": "chance",
        "showlegend": not suffix,
        "x": [-0.15, 5.15],
        "y": [chance, chance],
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "line": CHANCE_LINE,
        "hoverinfo": "skip",
    }


# ------------------------------------------------------------------------------------------------ training curves


def training_curves(
    results: Results, groups: Mapping[str, str], order: Sequence[str], *, first_colour: int = 0
) -> Figure | None:
    """Return training loss, validation metric and the losses of stages per epoch, with a thin line per trial or stage.

    None if no trial or stage has recorded any of them.

    Args:
        results: tables of the study.
        groups: signature → group, which determines the colour of a trial's lines.
        order: groups in the order of their colours.
        first_colour: index of the first group's colour.
    """
    trials = [(groups[s], record) for s, record in results.records.items() if record.epochs and s in groups]
    step = max(1, math.ceil(sum(len(record.epochs) + 1 for _, record in trials) / MAX_TRAINING_POINTS))
    stages = [
        ("stage", record) for record in results.stages if record.epochs and "ssl/loss" in record.epochs[0]["metrics"]
    ]
    supervised = [("stage", record) for record in results.stages if record.config["config"].get("kind") == "supervised"]
    panels = [
        ("train/loss", "training loss", trials),
        (f"val/{results.metric}", f"validation {TITLES[results.metric]}", trials),
        ("ssl/loss", "contrastive loss (stages)", stages),
        ("train/loss", "supervised loss (stages)", supervised),
    ]
    panels = [
        panel
        for panel in panels
        if any(panel[0] in line["metrics"] for _, record in panel[2] for line in record.epochs)
    ]
    if not panels:
        return None
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[], meta=panels_of(300, below=48, left=44))
    layout["margin"] |= {"t": 62}
    chance = find_chance(results.metric, len(results.plan["data"]["classes"]))
    layout["legend"]["y"] = 1.12
    for number, (key, title, runs) in enumerate(panels):
        suffix = "" if number == 0 else str(number + 1)
        left, right = number / len(panels) + (0.035 if number else 0.0), (number + 1) / len(panels)
        layout[f"xaxis{suffix}"] = {"domain": [left, right], "anchor": f"y{suffix}", "title": {"text": "epoch"}}
        if max(len(record.epochs) for _, record in runs) <= FEW_EPOCHS:
            layout[f"xaxis{suffix}"]["dtick"] = 1  # no half epochs
        layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}", "nticks": 6, "tickformat": ".0%" if "val/" in key else ""}
        layout["annotations"].append(panel_title(title, left, 1.0))
        for index, group in enumerate([*order, "stage"]):
            drawn = [record for name, record in runs if name == group][:: step if group != "stage" else 1]
            if drawn:
                meta = {"panel": title, "lines": [record.signature for record in drawn]}
                data.append(_training_lines(key, drawn, (group, index + first_colour), suffix) | {"meta": meta})
        if chance is not None and key == f"val/{results.metric}":
            last = max(len(record.epochs) for _, record in runs)
            data.append(_chance_line(chance, suffix) | {"x": [1, max(last, 2)], "showlegend": True})
    return Figure(
        title="Did the trainings settle?",
        note=f"A line is one training (n = 1).{describe_chance(results)} n = {len(trials)} trials and "
        f"{len(stages) + len(supervised)} stages that wrote at least an epoch."
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
        # A training of one epoch has no line.
        "mode": "lines" if any(len(record.epochs) > 1 for record in runs) else "markers",
        "marker": {"size": 4},
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
