"""The figures of the report, except curves. Every title is the question that the figure answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.report.effects import Effect
from orchestrator.report.plot import (
    PALETTE,
    SEQUENTIAL,
    SYMBOLS,
    Figure,
    colour,
    floats,
    layout_of,
    panel_title,
    rows_of_test,
    sentence,
)
from orchestrator.report.stain_grid import is_stain_cell
from orchestrator.report.tables import METRICS, Results

#: Panels beside each other.
SCATTER_COLUMNS = 3

#: More entries than this and the legend is larger than the figure: shapes are dropped.
MAX_LEGEND = 16

#: Above this many arms the numbers inside the heat map no longer fit.
ANNOTATED_ARMS = 40

# ------------------------------------------------------------------------------------------------ main effects


def effects_figure(effects: Mapping[str, Sequence[Effect]], titles: Mapping[str, str]) -> Figure:
    """Return dots (cells), mean and 95 % interval of each effect, one panel per measure, in percentage points."""
    panels = list(effects)
    rows = effects[panels[0]]
    texts = [f"{escape(e.factor)}: <b>{escape(e.level)}</b> vs {escape(e.reference)}" for e in rows]
    data: list[dict[str, Any]] = []
    layout = layout_of(showlegend=False)
    layout["margin"] |= {"l": 10, "t": 36}
    layout["annotations"] = []
    width = 1 / len(panels)
    for number, measure in enumerate(panels):
        suffix = "" if number == 0 else str(number + 1)
        for position, effect in enumerate(effects[measure]):
            data += _effect_traces(effect, -position, suffix)
        left, right = number * width + (0.02 if number else 0), (number + 1) * width - 0.02
        layout[f"xaxis{suffix}"] = {
            "domain": [left, right],
            "anchor": f"y{suffix}",
            "ticksuffix": " pt",
            "zeroline": True,
            # One scale: an effect in distribution and one under shift are to be compared.
            **({"matches": "x"} if number else {}),
        }
        axis: dict[str, Any] = {
            "tickvals": [-i for i in range(len(rows))],
            "ticktext": texts,
            "showticklabels": number == 0,
            "automargin": True,
            "range": [-len(rows) + 0.4, 0.6],
            "showgrid": False,
            "zeroline": False,
            "anchor": f"x{suffix}",
        }
        layout[f"yaxis{suffix}"] = axis if number == 0 else axis | {"matches": "y"}
        layout["annotations"].append(panel_title(titles[measure], left, 1.0))
    num_cells = max((len(effect.cells) for effect in rows), default=0)
    return Figure(
        title="What does each choice change, everything else being equal?",
        note=(
            "Level minus reference (the factor’s first level), in percentage points. A dot is one cell: the same "
            f"other levels and replicate (n ≤ {num_cells} per row); the diamond is their mean, the line its 95 % "
            "bootstrap interval."
        ),
        data=data,
        layout=layout,
        height_px=110 + 46 * len(rows),
    )


def _effect_traces(effect: Effect, y: float, suffix: str) -> list[dict[str, Any]]:
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "hoverinfo": "text", "type": "scatter"}
    # Deterministic jitter: dots of equal value stay countable.
    jitter = [y - 0.16 + 0.32 * ((i * 0.618) % 1) for i in range(len(effect.cells))]
    dots = axes | {
        "mode": "markers",
        "x": [100 * cell.difference for cell in effect.cells],
        "y": jitter,
        "hovertext": [
            f"{escape(cell.name) or 'cell'}, replicate {cell.replicate}: {100 * cell.difference:+.1f} points"
            for cell in effect.cells
        ],
        "marker": {"size": 7, "color": PALETTE[0], "opacity": 0.5},
    }
    if effect.difference is None:
        return [dots]
    mean = 100 * effect.difference
    text = f"{escape(effect.factor)}: {escape(effect.level)} vs {escape(effect.reference)}<br>{mean:+.1f} points"
    traces = [dots]
    if effect.interval is not None:
        low, high = 100 * effect.interval.low, 100 * effect.interval.high
        text += f" ({low:+.1f} to {high:+.1f})"
        line = {"color": PALETTE[1], "width": 3}
        traces.append(axes | {"mode": "lines", "x": [low, high], "y": [y, y], "line": line, "hovertext": text})
    marker = {"size": 11, "color": PALETTE[1], "symbol": "diamond"}
    hover = f"{text}<br>{escape(effect.resampled)}"
    traces.append(axes | {"mode": "markers", "x": [mean], "y": [y], "marker": marker, "hovertext": [hover]})
    return traces


# ------------------------------------------------------------------------------------------------ heat map


def heat_map(results: Results) -> Figure | None:
    """Return arm × shift, mean over severities and replicates, best arm on top; None when nothing is complete.

    Cells of a stain grid are left out: they have a figure of their own.
    """
    shifts = rows_of_test(results)
    shifts = shifts[~shifts["shift"].map(is_stain_cell).astype(bool)]
    order = list(dict.fromkeys(shifts.loc[shifts["severity"] > 0, "shift"]))
    if not order:
        return None
    # Mean within a trial first, so that each replicate weighs the same.
    per_trial = shifts.groupby(["name", "signature", "shift"], sort=False)[results.metric].mean()
    table = per_trial.groupby(level=["name", "shift"], sort=False).mean().unstack("shift")
    columns = [name for name in ["identity", *order] if name in table]
    table = table[columns]
    table = table.loc[table[order].mean(axis=1).sort_values().index]  # Plotly draws the last row on top
    labels = [escape(results.labels[str(name)]) for name in table.index]
    z = [floats(row) for row in table.to_numpy(dtype=float)]
    names = ["unshifted" if name == "identity" else name.replace("_", " ") for name in columns]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": z,
        "x": [escape(name) for name in names],
        "y": labels,
        "colorscale": SEQUENTIAL,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "hovertemplate": "%{y}<br>%{x}: %{z:.1%}<extra></extra>",
        "colorbar": {
            "thickness": 10,
            "tickformat": ".0%",
            "outlinewidth": 0,
            "len": min(1.0, 260 / (26 * len(z) + 60)),
        },
    }
    if len(z) <= ANNOTATED_ARMS:
        percent = [["" if value is None else f"{100 * value:.0f}" for value in row] for row in z]
        trace |= {"text": percent, "texttemplate": "%{text}", "textfont": {"size": 11}}
    layout = layout_of(
        xaxis={"side": "top", "tickangle": -38, "automargin": True, "showgrid": False, "type": "category"},
        yaxis={"automargin": True, "showgrid": False, "type": "category", "tickfont": {"size": 11.5}},
    )
    layout["margin"] |= {"l": 10, "t": 90, "b": 12}
    row_px = 24 if len(z) <= ANNOTATED_ARMS else 14
    if row_px == 14:
        layout["yaxis"] |= {"dtick": 1, "tickfont": {"size": 10}}
    num_trials = shifts["signature"].nunique()
    severities = sorted(set(shifts["severity"]) - {0})
    return Figure(
        title="Which arm breaks under which shift?",
        note=(
            f"{sentence(METRICS[results.metric])} in %, mean over severities {_listed(severities)} and over "
            f"replicates; arms sorted by their mean, best on top. n = {num_trials} complete trials, {len(table)} arms, "
            f"{len(order)} shifts. Dark is low."
        ),
        data=[trace],
        layout=layout,
        height_px=130 + max(row_px * len(z), 60),
        min_width_px=300 + 46 * len(columns),
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


# ------------------------------------------------------------------------------------------------ scatters


@dataclass(frozen=True)
class Style:
    """Which factor colours the dots of trials, and which shapes them; None where the study has no such factor."""

    by_colour: str | None
    by_symbol: str | None


def scatter(results: Results, panels: Mapping[str, str], style: Style) -> Figure | None:
    """Return in-distribution against each column of ``panels`` (column → title): a dot per trial, the identity line."""
    clean = f"id/{results.metric}"
    wanted = [column for column in panels if column in results.complete]
    if not wanted or clean not in results.complete:
        return None
    trials = results.complete.dropna(subset=[clean])
    values = trials[[clean, *wanted]].to_numpy(dtype=float)
    if not len(values) or np.isnan(values[:, 1:]).all():
        return None
    if len(_levels(results, style.by_colour)) * len(_levels(results, style.by_symbol)) > MAX_LEGEND:
        style = Style(style.by_colour, None)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max(0.01, 0.06 * (high - low))
    limits = [max(0.0, low - margin), min(1.02, high + margin)]
    rows = -(-len(wanted) // SCATTER_COLUMNS)
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[])
    layout["margin"] |= {"t": 64, "b": 8}
    layout["legend"]["y"] = 1 + 22 / (370 * rows)
    for number, column in enumerate(wanted):
        suffix = "" if number == 0 else str(number + 1)
        data.append(_identity_line(limits, suffix))
        data += _dots(trials, (clean, column), style, results, suffix)
        _add_square(layout, number, rows, limits, start=_start_of(values[:, 0], limits))
        corner = layout[f"xaxis{suffix}"]["domain"][0], layout[f"yaxis{suffix}"]["domain"][1]
        layout["annotations"].append(panel_title(panels[column], *corner))
        layout[f"xaxis{suffix}"]["title"] = {"text": f"in-distribution {METRICS[results.metric]}"}
    shape = f", shape: {style.by_symbol}" if style.by_symbol else ""
    hue = f" Colour: {style.by_colour}{shape}." if style.by_colour else ""
    return Figure(
        title="Does the in-distribution score tell how a model will do elsewhere?",
        note=(
            f"A dot is one trial (n = {len(trials)}). On the dashed line a model loses nothing; the distance below it "
            f"is what the in-distribution score hides.{hue}"
        ),
        data=data,
        layout=layout,
        height_px=72 + 370 * rows,
        min_width_px=240 * min(len(wanted), SCATTER_COLUMNS),
    )


def _add_square(layout: dict[str, Any], number: int, rows: int, limits: list[float], *, start: float) -> None:
    suffix = "" if number == 0 else str(number + 1)
    row, column = divmod(number, SCATTER_COLUMNS)
    left, top = column / SCATTER_COLUMNS, 1 - row / rows
    layout[f"xaxis{suffix}"] = {
        "domain": [left + (0.02 if column else 0), left + 1 / SCATTER_COLUMNS - 0.01],
        "range": [start, limits[1]],
        "tickformat": ".0%",
        "anchor": f"y{suffix}",
    }
    layout[f"yaxis{suffix}"] = {
        "domain": [top - 1 / rows + (72 / 370) / rows, top],
        "range": limits,
        "tickformat": ".0%",
        "showticklabels": column == 0,
        "anchor": f"x{suffix}",
    }


def _start_of(values: np.ndarray, limits: list[float]) -> float:
    """Return where the in-distribution axis starts: near its own values, with at least a third of the other's span."""
    return min(float(np.nanmin(values)) - 0.02, limits[1] - (limits[1] - limits[0]) / 3)


def _identity_line(limits: list[float], suffix: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": limits,
        "y": limits,
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "line": {"dash": "dash", "width": 1, "color": "#8a929c"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _dots(
    trials: pd.DataFrame, columns: tuple[str, str], style: Style, results: Results, suffix: str
) -> list[dict[str, Any]]:
    hues = _levels(results, style.by_colour)
    shapes = _levels(results, style.by_symbol)
    traces = []
    for hue_index, hue in enumerate(hues):
        for shape_index, shape in enumerate(shapes):
            rows = trials[_is_level(trials, style.by_colour, hue) & _is_level(trials, style.by_symbol, shape)]
            name = " · ".join(level for level in (hue, shape) if level is not None) or "trial"
            marker = {"size": 10, "color": colour(hue_index), "symbol": SYMBOLS[shape_index % len(SYMBOLS)]}
            hover = [
                f"{escape(results.labels[arm])}<br>replicate {replicate}"
                for arm, replicate in zip(rows["name"], rows["replicate"], strict=True)
            ]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": escape(name),
                    "legendgroup": name,
                    "showlegend": not suffix and bool(hue or shape),
                    "x": floats(rows[columns[0]]),
                    "y": floats(rows[columns[1]]),
                    "xaxis": f"x{suffix}",
                    "yaxis": f"y{suffix}",
                    "marker": marker | {"opacity": 0.85},
                    "hovertext": hover,
                    "hovertemplate": "%{hovertext}<br>%{x:.1%} → %{y:.1%}<extra></extra>",
                }
            )
    return traces


def _levels(results: Results, factor: str | None) -> list[str | None]:
    return [None] if factor is None else [str(level) for level in results.plan["factors"][factor]]


def _is_level(trials: pd.DataFrame, factor: str | None, level: str | None) -> Any:
    return np.ones(len(trials), dtype=bool) if factor is None else (trials[f"arm/{factor}"] == level).to_numpy()
