"""Main effects and the heat map of scores. Every title is the question that the figure answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from orchestrator.report.effects import Effect
from orchestrator.report.plot import (
    PALETTE,
    SEQUENTIAL,
    Figure,
    floats,
    layout_of,
    panel_title,
    sentence,
)
from orchestrator.report.stain_grid import rows_of_shifts
from orchestrator.report.tables import METRICS, Results

#: Cells drawn per effect; more dots than these are a bar.
MAX_CELLS = 500

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
    num_cells = max((len(effect.cells) for effect in rows), default=0)
    step = max(1, -(-num_cells // MAX_CELLS))
    subset = f" One cell in {step} is drawn; means and intervals are from all." if step > 1 else ""
    for number, measure in enumerate(panels):
        suffix = "" if number == 0 else str(number + 1)
        for position, effect in enumerate(effects[measure]):
            traces = _effect_traces(effect, -position, suffix, step)
            data += [trace | {"meta": {"panel": titles[measure]}} for trace in traces]
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
    return Figure(
        title="What does each choice change, everything else being equal?",
        note=(
            "Level minus reference (the factor’s first level), in percentage points. A dot is one cell: the same "
            f"other levels and replicate (n ≤ {num_cells} per row); the diamond is their mean, the line its 95 % "
            f"bootstrap interval.{subset}"
        ),
        data=data,
        layout=layout,
        height_px=110 + 46 * len(rows),
        axes=("difference, points", "row"),
    )


def _effect_traces(effect: Effect, y: float, suffix: str, step: int) -> list[dict[str, Any]]:
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "hoverinfo": "text", "type": "scatter"}
    shown, name = effect.cells[::step], f"{escape(effect.factor)}: {escape(effect.level)} vs {escape(effect.reference)}"
    # Deterministic jitter: dots of equal value stay countable.
    jitter = [round(y - 0.16 + 0.32 * ((i * 0.618) % 1), 3) for i in range(len(shown))]
    dots = axes | {
        "name": f"{name}, cells",
        "mode": "markers",
        "x": floats([100 * cell.difference for cell in shown]),
        "y": jitter,
        "hovertext": [
            f"{escape(cell.name) or 'cell'}, replicate {cell.replicate}: {100 * cell.difference:+.1f} points"
            for cell in shown
        ],
        "marker": {"size": 7, "color": PALETTE[0], "opacity": 0.5},
    }
    if effect.difference is None:
        return [dots]
    mean = 100 * effect.difference
    text = f"{name}<br>{mean:+.1f} points"
    traces = [dots]
    if effect.interval is not None:
        low, high = 100 * effect.interval.low, 100 * effect.interval.high
        text += f" ({low:+.1f} to {high:+.1f})"
        line = {"color": PALETTE[1], "width": 3}
        axes["name"] = f"{name}, 95 % interval"
        traces.append(axes | {"mode": "lines", "x": [low, high], "y": [y, y], "line": line, "hovertext": text})
    axes["name"] = f"{name}, mean"
    marker = {"size": 11, "color": PALETTE[1], "symbol": "diamond"}
    hover = f"{text}<br>{escape(effect.resampled)}"
    traces.append(axes | {"mode": "markers", "x": [mean], "y": [y], "marker": marker, "hovertext": [hover]})
    return traces


# ------------------------------------------------------------------------------------------------ heat map


def heat_map(results: Results) -> Figure | None:
    """Return arm × shift, mean over severities and replicates, best arm on top; None when nothing is complete.

    Cells of a stain grid are left out: they have a figure of their own.
    """
    shifts, order = rows_of_shifts(results)
    if not order:
        return None
    # Mean within a trial first, so that each replicate weighs the same.
    per_trial = shifts.groupby(["name", "signature", "shift"], sort=False, observed=True)[results.metric].mean()
    table = per_trial.groupby(level=["name", "shift"], sort=False, observed=True).mean().unstack("shift")
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
        axes=("shift", "arm", METRICS[results.metric]),
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)
