"""Report section: in-distribution score against worst shifted score, and the arms that no other arm beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.effects import Effect, rank_factors
from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.transfer import find_front
from orchestrator.analysis.wording import sentence
from orchestrator.report.page import Cell, Column, Section, embed, note, table
from orchestrator.report.style import (
    Figure,
    colour,
    describe_chance,
    first_colour_of,
    floats,
    layout_of,
    seed_dots,
    subsample_dots,
)

#: Points so near, in parts of the width and the height of what is drawn, share a label.
NEAR = (0.06, 0.06)


def trade_off_section(results: Results, arms: pd.DataFrame, effects: Sequence[Effect]) -> Section | None:
    """Return the section with figure and arms on the front, None with fewer than two arms that have both scores.

    None, too, if arms have different test images.

    Args:
        results: tables of the study.
        arms: ``arms_table(results)``.
        effects: effects on the mean shifted metric; the factor with the largest determines the colours.
    """
    clean, worst = f"id/{results.metric}", f"robustness/worst_shift_{results.metric}"
    if results.tested_on or f"{clean}.mean" not in arms or f"{worst}.mean" not in arms:
        return None
    shown = arms.dropna(subset=[f"{clean}.mean", f"{worst}.mean"]).reset_index(drop=True)
    if len(shown) < 2:
        return None
    front = find_front(shown[f"{clean}.mean"], shown[f"{worst}.mean"])
    body = embed(_figure(results, shown, front, effects), "figure-front") + _front_table(results, shown, front)
    return Section("trade-off", "Trade-off", "In distribution against the worst shift", body)


def _name(number: int) -> str:
    """Return the letter of a point on the front: A … Z, A1 … Z1, …"""
    return chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")


def _front_table(results: Results, arms: pd.DataFrame, front: NDArray[np.intp]) -> str:
    columns = [Column("", sortable=False), Column("arm on the front")]
    measures = [
        m for m in results.measures if m.column in (f"id/{results.metric}", f"robustness/worst_shift_{results.metric}")
    ]
    columns += [Column(measure.short, is_number=True) for measure in measures] + [Column("n", is_number=True)]
    rows = []
    for number, (_, arm) in enumerate(arms.iloc[front].iterrows()):
        row = [Cell(f"<b>{_name(number)}</b>"), Cell(escape(arm["label"]))]
        for measure in measures:
            mean, sd = arm[f"{measure.column}.mean"], arm[f"{measure.column}.sd"]
            spread = "" if pd.isna(sd) else f' <span class="sd">± {100 * sd:.1f}</span>'
            row.append(Cell(f"{100 * mean:.1f}{spread}", mean))
        row.append(Cell(str(arm[f"{measures[-1].column}.n"])))
        rows.append(row)
    text = (
        "The front is of means over replicates and looks at test data: it shows what can be had, and chooses nothing. "
        f"Arms whose error bars reach over it may belong to it.{describe_chance(results)}"
    )
    return note(text) + table(columns, rows)


def _figure(results: Results, arms: pd.DataFrame, front: NDArray[np.intp], effects: Sequence[Effect]) -> Figure:
    clean, worst = f"id/{results.metric}", f"robustness/worst_shift_{results.metric}"
    order = rank_factors(results, effects)
    factor = order[0] if order else None
    levels = results.levels(factor) if factor else ["arm"]
    groups = arms[f"arm/{factor}"] if factor else pd.Series("arm", index=arms.index)
    trials = results.complete.dropna(subset=[clean, worst])
    drawn, subset = subsample_dots(trials["name"])
    trials = trials.iloc[drawn]
    of_trial = trials[f"arm/{factor}"] if factor else pd.Series("arm", index=trials.index)
    x, y = (arms.iloc[front][f"{column}.mean"].to_numpy() for column in (clean, worst))
    data: list[dict[str, Any]] = [_front_line(x, y)]
    for index, level in enumerate(levels, start=first_colour_of(results, factor)):
        own = trials[of_trial == level]
        data.append(seed_dots(results, own, floats(own[clean]), worst, (index, "%{x:.1%}, worst %{y:.1%}")))
        data.append(_means(arms[groups == level], (clean, worst), (level, index), named=factor is not None))
    layout = layout_of(
        xaxis={"title": {"text": f"in-distribution {TITLES[results.metric]}"}, "tickformat": ".1%", "zeroline": False},
        yaxis={"title": {"text": f"worst shifted {TITLES[results.metric]}"}, "tickformat": ".1%", "zeroline": False},
        annotations=front_labels(x, y, (np.ptp(trials[clean]), np.ptp(trials[worst]))),
    )
    layout["margin"] |= {"l": 72, "t": 40}
    hue = f" Colour: {factor}." if factor else ""
    return Figure(
        title="What does robustness under the worst shift cost in distribution?",
        note=(
            f"{sentence(TITLES[results.metric])}, n = {len(arms)} arms. A large dot is an arm’s mean, its bars ± one "
            "standard deviation over replicates; small dots are its seeds. On the line (A, B, …) are the arms that no "
            f"other arm beats in both.{hue}{describe_chance(results)}{subset}"
        ),
        data=data,
        layout=layout,
        height_px=460,
        axes=("in-distribution", "worst shifted"),
    )


def _front_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> dict[str, Any]:
    line = {"color": "#8a929c", "width": 1.5, "shape": "hv"}
    points = {"x": floats(x), "y": floats(y)}
    return {"type": "scatter", "mode": "lines", **points, "line": line, "hoverinfo": "skip", "showlegend": False}


def front_labels(x: NDArray[np.float64], y: NDArray[np.float64], spans: tuple[float, float]) -> list[dict[str, Any]]:
    """Return the letters of the points on the front; points whose letters would cover one another share a label.

    Args:
        x, y: points on the front.
        spans: width and height of what is drawn.
    """
    groups: list[list[int]] = []
    for number in range(len(x)):
        first = groups[-1][0] if groups else number
        near = abs(x[number] - x[first]) <= NEAR[0] * spans[0] and abs(y[number] - y[first]) <= NEAR[1] * spans[1]
        if groups and near:
            groups[-1].append(number)
        else:
            groups.append([number])
    place = {"xanchor": "left", "yanchor": "bottom", "xshift": 6, "yshift": 4, "showarrow": False, "font": {"size": 13}}
    names = [", ".join(map(_name, numbers)) for numbers in groups]
    return [
        {"text": f"<b>{name}</b>", "x": float(x[numbers[0]]), "y": float(y[numbers[0]]), **place}
        for name, numbers in zip(names, groups, strict=True)
    ]


def _means(arms: pd.DataFrame, columns: tuple[str, str], level: tuple[str, int], *, named: bool) -> dict[str, Any]:
    clean, worst = columns
    bars = {"thickness": 1, "width": 0, "color": colour(level[1])}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(level[0]),
        "showlegend": named,
        "x": floats(arms[f"{clean}.mean"]),
        "y": floats(arms[f"{worst}.mean"]),
        "error_x": {"array": floats(arms[f"{clean}.sd"]), **bars},
        "error_y": {"array": floats(arms[f"{worst}.sd"]), **bars},
        "marker": {"size": 11, "color": colour(level[1]), "line": {"width": 1, "color": "#ffffff"}},
        "hovertext": [f"{escape(str(arm))}" for arm in arms["label"]],
        "hovertemplate": "%{hovertext}<br>%{x:.1%}, worst %{y:.1%}, n = %{customdata[0]}<extra></extra>",
        "customdata": [[int(n)] for n in arms[f"{worst}.n"]],
        "meta": {"panel": "arm", "columns": ["n"]},
    }
