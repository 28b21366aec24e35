"""Report section: the main effect of each factor's levels, its table and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from orchestrator.analysis.effects import Effect
from orchestrator.analysis.results import Results
from orchestrator.report.differences import differences_of_levels
from orchestrator.report.heat_maps import MAX_CELLS
from orchestrator.report.page import Cell, Column, Section, embed, note, p_cell, table
from orchestrator.report.sections.answer import missing_pairs
from orchestrator.report.style import HEADLINE, NEUTRAL, Figure, floats, layout_of, panel_title, panels_of
from orchestrator.statistics.intervals import MIN_REPLICATES
from orchestrator.statistics.paired_tests import min_units

# ------------------------------------------------------------------------------------------------ figure


def effects_figure(effects: Mapping[str, Sequence[Effect]], titles: Mapping[str, str]) -> Figure:
    """Return a figure of effects in percentage points: dots (cells), mean and 95 % interval, one panel per measure."""
    panels = list(effects)
    rows = effects[panels[0]]
    texts = [f"{escape(e.factor)}: <b>{escape(e.level)}</b> vs {escape(e.reference)}" for e in rows]
    data: list[dict[str, Any]] = []
    layout = layout_of(showlegend=False, meta=panels_of(280, shared=True))
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
            f"other levels and replicate (n ≤ {num_cells} per row); the diamond is their mean over replicates, the "
            f"line its 95 % t interval over replicates, which takes {MIN_REPLICATES}.{subset}"
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
            f"{escape(cell.name) or 'cell'}, replicate {cell.replicate}: {100 * cell.difference:+z.1f} points, n = 1"
            for cell in shown
        ],
        "marker": {"size": 7, "color": NEUTRAL, "opacity": 0.5},
    }
    if effect.difference is None:
        return [dots]
    mean = 100 * effect.difference
    text = f"{name}<br>{mean:+z.1f} points"
    traces = [dots]
    if effect.interval is not None:
        low, high = 100 * effect.interval.low, 100 * effect.interval.high
        text += f" ({low:+z.1f} to {high:+z.1f})"
        line = {"color": HEADLINE, "width": 3}
        axes["name"] = f"{name}, 95 % interval"
        traces.append(axes | {"mode": "lines", "x": [low, high], "y": [y, y], "line": line, "hovertext": text})
    axes["name"] = f"{name}, mean"
    marker = {"size": 11, "color": HEADLINE, "symbol": "diamond"}
    hover = f"{text}<br>{escape(effect.units)}"
    traces.append(axes | {"mode": "markers", "x": [mean], "y": [y], "marker": marker, "hovertext": [hover]})
    return traces


# ------------------------------------------------------------------------------------------------ section


def effects_section(results: Results, effects: Mapping[str, Sequence[Effect]]) -> Section | None:
    """Return the section with figure and table of main effects, None without a factor that has two levels."""
    shown = {measure: rows for measure, rows in effects.items() if rows}
    if not shown:
        return None
    titles = {measure.column: measure.title for measure in results.measures}
    figure = effects_figure(shown, {column: titles.get(column, column) for column in shown})
    lead, main = next(iter(shown.items()))
    has_p = any(effect.p_value is not None for effect in main)
    has_shifts = any(effect.num_shifts for effect in main)
    columns = [
        Column("factor"),
        Column("level vs reference"),
        Column("difference, points", is_number=True),
        Column("95 % interval", is_number=True, sortable=False),
        Column("over", sortable=False),
        *((Column("p", is_number=True), Column("p, Holm", is_number=True)) if has_p else ()),
        *((Column("shift types in that direction", is_number=True),) if has_shifts else ()),
    ]
    rows = [_row(effect, has_p=has_p, has_shifts=has_shifts) for effect in main]
    body = embed(figure, "figure-effects") + note(_note(titles.get(lead, lead), has_p=has_p, has_shifts=has_shifts))
    body += differences_of_levels(results.plan)
    return Section("effects", "Effects", "Main effect of each factor", body + table(columns, rows))


def _note(measure: str, *, has_p: bool, has_shifts: bool) -> str:
    text = (
        f"Effects on {measure}. The unit is the replicate: its difference is the mean over its cells; replicates "
        "that share a pretrained encoder are one unit. Intervals are paired t intervals over units and take "
        f"{MIN_REPLICATES} of them"
    )
    if has_p:
        text += (
            "; p: exact two-sided sign flips of whole units, corrected after Holm for the number of rows. No "
            "hypothesis was written for these: a small p is a hint, not a verdict"
        )
    else:
        text += f", a p-value takes {min_units()}"
    if has_shifts:
        text += (
            ". Shift types in the direction of the mean: a count for these trained models. Shift types are not drawn "
            "at random and share the trained models, so nothing is tested over them"
        )
    return f"{text}."


def _row(effect: Effect, *, has_p: bool, has_shifts: bool) -> list[Cell]:
    interval, units = effect.interval, effect.units
    if effect.num_missing:
        units += f"; {missing_pairs(effect.num_missing)}"
    difference, shifts = effect.difference, f"{effect.num_same_direction} of {effect.num_shifts}"
    return [
        Cell(escape(effect.factor)),
        Cell(f'{escape(effect.level)} <span class="sd">vs {escape(effect.reference)}</span>'),
        Cell("–", "") if difference is None else Cell(f"{100 * difference:+z.1f}", difference),
        Cell("–" if interval is None else f"{100 * interval.low:+z.1f} to {100 * interval.high:+z.1f}"),
        Cell(escape(units)),
        *((p_cell(effect.p_value), p_cell(effect.p_holm)) if has_p else ()),
        *((Cell(shifts, effect.num_same_direction) if effect.num_shifts else Cell("–", ""),) if has_shifts else ()),
    ]
