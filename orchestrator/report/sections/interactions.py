"""Report section: interactions of two factors, as lines over the levels of one, with a line per level of the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from orchestrator.analysis.effects import Effect, rank_factors
from orchestrator.analysis.results import TITLES, Results
from orchestrator.report.page import Section, embed, note
from orchestrator.report.style import (
    Figure,
    colour,
    describe_chance,
    first_colour_of,
    floats,
    layout_of,
    panel_title,
    panels_of,
)

#: Panels per row, and most panels in all; pairs of the factors with the largest effects come first.
_COLUMNS = 3
MAX_PANELS = 6
_PANEL_PX = 300
#: Letters per line of the key above a panel.
_KEYS_WIDTH = 44
#: Horizontal distance between lines, in levels, so that dots of one level stay apart.
_STEP = 0.06
#: Most replicates drawn as dots (the first ones); means are over all.
MAX_SEEDS = 50


def interactions_section(results: Results, effects: Sequence[Effect]) -> Section | None:
    """Return the section with one panel per pair of factors, None with fewer than two factors or without scores.

    Args:
        results: tables of the study.
        effects: effects on the mean shifted metric; factors with the largest come first.
    """
    measure = f"robustness/mean_{results.metric}"
    pairs = list(itertools.combinations(rank_factors(results, effects), 2))
    trials = results.complete
    if measure not in trials or trials[measure].isna().all() or not pairs:
        return None
    body = embed(_figure(results, trials.dropna(subset=[measure]), pairs[:MAX_PANELS], measure), "figure-interactions")
    if len(pairs) > MAX_PANELS:
        left = "; ".join(f"{first} × {second}" for first, second in pairs[MAX_PANELS:])
        body += note(f"Not drawn, of factors with smaller effects: {left}.")
    return Section("interactions", "Interactions", "Interactions of two factors", body)


def _figure(results: Results, trials: pd.DataFrame, pairs: Sequence[tuple[str, str]], measure: str) -> Figure:
    columns = min(_COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[], showlegend=False, meta=panels_of(250, below=44, left=52))
    layout["margin"] |= {"t": 60, "b": 64}
    counts: list[int] = []
    is_even = True
    for number, (first, second) in enumerate(pairs):
        suffix = "" if number == 0 else str(number + 1)
        along, across = sorted((first, second), key=lambda factor: -len(results.levels(factor)))
        left, top = (number % columns) / columns, 1 - (number // columns) / rows
        domain = [left + (0.05 if number % columns else 0), left + 1 / columns - 0.005]
        names = results.levels(along)
        layout[f"xaxis{suffix}"] = {
            "domain": domain,
            "anchor": f"y{suffix}",
            "tickvals": list(range(len(names))),
            "ticktext": [escape(name) for name in names],
            "tickangle": 0,
            "range": [-0.45, len(names) - 0.55],
            "showgrid": False,
            "zeroline": False,
        }
        height = 1 / rows
        layout[f"yaxis{suffix}"] = {
            "domain": [top - height + (0.36 * height if rows > 1 else 0.06), top - 0.16 * height],
            "anchor": f"x{suffix}",
            "tickformat": ".0%",
            "zeroline": False,
            "nticks": 6,
            **({"matches": "y"} if number else {}),  # one scale: slopes compare across panels
        }
        traces, sizes = _panel(results, trials, (along, across), measure, suffix)
        data += traces
        counts += sizes
        is_even = is_even and len(set(sizes)) == 1
        layout["annotations"] += _heading(results, (along, across), domain[0], top - 0.16 * height)
    n = f"n = {min(counts)}" if min(counts) == max(counts) else f"n = {min(counts)} to {max(counts)}"
    some = f" (of the first {MAX_SEEDS} replicates)" if trials["replicate"].max() >= MAX_SEEDS else ""
    uneven = "" if is_even else " Not all dots of a panel have the same others behind them: read with care."
    return Figure(
        title="Does what one choice changes depend on another?",
        note=(
            f"Mean shifted {TITLES[results.metric]} over all other factors and replicates ({n} trials per large "
            f"dot); a small dot is one replicate’s mean{some}. Parallel lines: the two choices add up. Lines that "
            f"cross or part: the one changes what the other does.{describe_chance(results)}{uneven}"
        ),
        data=data,
        layout=layout,
        height_px=124 + _PANEL_PX * rows,
        axes=("level", TITLES[results.metric]),
    )


def _heading(results: Results, pair: tuple[str, str], x: float, y: float) -> list[dict[str, Any]]:
    """Return the panel's title and, below it, the levels of the second factor in the colours of their lines."""
    along, across = pair
    text, width = f"<b>{escape(along)} × {escape(across)}</b><br>", 0
    for index, level in enumerate(results.levels(across), start=first_colour_of(results, across)):
        width += len(level) + 5
        if width > _KEYS_WIDTH:
            text, width = f"{text}<br>", len(level) + 5
        text += f'<span style="color:{colour(index)}">● {escape(level)}</span>   '
    return [panel_title("", x, y) | {"text": text, "align": "left"}]


def _panel(
    results: Results, trials: pd.DataFrame, pair: tuple[str, str], measure: str, suffix: str
) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the traces of a panel, and the number of trials per large dot."""
    along, across = pair
    names, levels = results.levels(along), results.levels(across)
    first = first_colour_of(results, across)
    traces: list[dict[str, Any]] = []
    sizes: list[int] = []
    for index, level in enumerate(levels):
        rows = trials[trials[f"arm/{across}"] == level]
        if rows.empty:
            continue
        shift = _STEP * (index - (len(levels) - 1) / 2)
        groups = rows.groupby(f"arm/{along}")[measure]
        known = [name for name in names if name in groups.groups]
        places = [names.index(name) + shift for name in known]
        counts = groups.count()
        sizes += [int(counts[name]) for name in known]
        axes = {"type": "scatter", "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "name": escape(level)}
        seeds = (
            rows[rows["replicate"] < MAX_SEEDS].groupby([f"arm/{along}", "replicate"])[measure].agg(["mean", "count"])
        )
        traces.append(
            axes
            | {
                "mode": "markers",
                "x": [names.index(str(name)) + shift for name, _ in seeds.index],
                "y": floats(seeds["mean"]),
                "marker": {"size": 5, "color": colour(first + index), "opacity": 0.45},
                "customdata": [
                    [escape(str(name)), int(replicate), int(n)]
                    for (name, replicate), n in zip(seeds.index, seeds["count"], strict=True)
                ],
                "hovertemplate": f"{escape(level)}, %{{customdata[0]}}<br>replicate %{{customdata[1]}}: %{{y:.1%}}"
                "<br>n = %{customdata[2]} trials<extra></extra>",
                "meta": {"panel": f"{along} × {across}: seeds", "columns": [along, "replicate", "n"]},
            }
        )
        traces.append(
            axes
            | {
                "mode": "lines+markers",
                "x": places,
                "y": floats(groups.mean()[known]),
                "line": {"color": colour(first + index), "width": 2},
                "marker": {"size": 10},
                "customdata": [[escape(name), int(counts[name])] for name in known],
                "hovertemplate": f"{escape(level)}, %{{customdata[0]}}: %{{y:.1%}}<br>n = %{{customdata[1]}} trials"
                "<extra></extra>",
                "meta": {"panel": f"{along} × {across}: means", "columns": [along, "n"]},
            }
        )
    return traces, sizes
