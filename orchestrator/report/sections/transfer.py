"""Report section: scores in distribution against scores under shift, per trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.effects import Effect, rank_factors
from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.transfer import MIN_SCORES, MIN_TRIALS, Line, clip_scores, fit_line, probit
from orchestrator.report.page import Cell, Column, Section, embed, note, table
from orchestrator.report.style import (
    SYMBOLS,
    Figure,
    colour,
    describe_chance,
    first_colour_of,
    floats,
    layout_of,
    panel_title,
    panels_of,
    subsample_dots,
)
from orchestrator.statistics.intervals import summarise

#: Panels per row.
COLUMNS = 3
_PANEL_PX = 400
#: Most entries of the legend; with more it would be larger than the figure, so shapes are dropped.
MAX_LEGEND = 16
#: Ticks of a probit axis in %, from coarse to fine; the first with four in view are used.
_TICKS = (
    (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9),
    (1, 2, *range(5, 95, 5), 95, 97, 98, 99, 99.5, 99.8, 99.9),
    (*range(1, 100), 99.2, 99.4, 99.6, 99.8, 99.9),
    tuple(np.round(np.arange(0.2, 100, 0.2), 1)),
)


# ------------------------------------------------------------------------------------------------ section


def transfer_section(results: Results, effects: Sequence[Effect]) -> Section | None:
    """Return the section with the figure and effective robustness per arm, None if no trial is complete.

    None, too, if arms have different test images.

    Args:
        results: tables of the study.
        effects: effects on the mean shifted metric; the two factors with the largest get colour and shape.
    """
    clean, panels = f"id/{results.metric}", _panels(results)
    if clean not in results.complete or not panels or results.tested_on:
        return None
    trials = results.complete.dropna(subset=[clean])
    if trials.empty or trials[list(panels)].isna().all().any():
        return None
    scores = {column: clip_scores(trials[column], _num_images(results, column)) for column in (clean, *panels)}
    lines = {column: fit_line(scores[clean], scores[column]) for column in panels}
    body = embed(_figure(results, effects, trials, scores, lines), "figure-transfer")
    body += _residuals(results, trials, scores, lines)
    if not results.external_sets:
        body += note("The study has no external set.")
    return Section("transfer", "Transfer", "In distribution and elsewhere", body)


def _panels(results: Results) -> dict[str, str]:
    metric = results.metric
    titles = {f"robustness/mean_{metric}": "mean over shifts", f"robustness/worst_shift_{metric}": "worst shift"}
    titles |= {f"external/{name}/{metric}": f"{name} (external set)" for name in results.external_sets}
    complete = results.complete
    return {column: title for column, title in titles.items() if column in complete and complete[column].notna().any()}


def _num_images(results: Results, column: str) -> int:
    name = column.split("/")[1] if column.startswith("external/") else "test"
    return int(results.plan["data"]["num_images"][name])


def effective_robustness(
    results: Results,
    trials: pd.DataFrame,
    scores: Mapping[str, NDArray[np.float64]],
    lines: Mapping[str, Line | None],
) -> pd.DataFrame:
    """Return score minus line, one row per trial (as in ``trials``) and one column per panel that has a line."""
    clean = scores[f"id/{results.metric}"]
    found = {c: scores[c] - line.predict(clean) for c, line in lines.items() if line is not None}
    return pd.DataFrame(found, index=trials.index)


def _residuals(
    results: Results,
    trials: pd.DataFrame,
    scores: Mapping[str, NDArray[np.float64]],
    lines: Mapping[str, Line | None],
) -> str:
    """Return the table of effective robustness: one row per arm, sorted by the first column (mean over shifts)."""
    above = effective_robustness(results, trials, scores, lines)
    if above.shape[1] == 0:
        return note(
            f"No line is fitted: it takes {MIN_TRIALS} complete trials with {MIN_SCORES} different in-distribution "
            f"scores, found {len(trials)} with {len(np.unique(scores[f'id/{results.metric}']))}."
        )
    panels = _panels(results)
    columns = [Column("arm"), *(Column(panels[str(column)], is_number=True) for column in above)]
    order = above.groupby(trials["name"]).mean().sort_values(str(above.columns[0]), ascending=False).index
    rows = []
    for name in order:
        row = [Cell(escape(results.labels[str(name)]))]
        for column in above:
            found = summarise(above.loc[trials["name"] == name, str(column)])
            spread = f"± {100 * found.sd:.1f}" if found.sd is not None else "n = 1"
            text = "–" if found.mean is None else f'{100 * found.mean:+.1f} <span class="sd">{spread}</span>'
            row.append(Cell(text, "" if found.mean is None else found.mean))
        rows.append(row)
    text = (
        "Effective robustness: score minus what the line gives to the same in-distribution score, in points, mean ± "
        "standard deviation over replicates. The line goes through the study’s own trials, so this is robustness "
        "relative to them; with R² near 0 it is no more than the distance from their mean."
    )
    return note(text) + table(columns, rows, tall=len(rows) > 24)


# ------------------------------------------------------------------------------------------------ figure


def _figure(
    results: Results,
    effects: Sequence[Effect],
    trials: pd.DataFrame,
    scores: Mapping[str, NDArray[np.float64]],
    lines: Mapping[str, Line | None],
) -> Figure:
    clean, panels = f"id/{results.metric}", _panels(results)
    style = _style(results, effects)
    rows = -(-len(panels) // COLUMNS)
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[], meta=panels_of(260, below=44, left=56))
    layout["margin"] |= {"t": 64, "b": 48}
    layout["legend"]["y"] = 1 + 38 / (_PANEL_PX * rows)
    drawn, subset = subsample_dots(trials["name"])
    points = {column: probit(values) for column, values in scores.items()}
    along = _limits(points[clean])
    for number, (column, title) in enumerate(panels.items()):
        suffix = "" if number == 0 else str(number + 1)
        _add_panel(layout, number, rows, (along, _limits(points[column])))
        data.append(_line_trace(along, 1.0, 0.0, suffix, {"dash": "dash", "width": 1}))
        line, said = lines[column], ""
        if line is not None:
            data.append(_line_trace(along, line.slope, line.intercept, suffix, {"width": 1.5}))
            said = f"<br>R² = {line.r_squared:.2f}, slope {line.slope:.2f}, n = {line.n}"
        seen = {each: points[each][drawn] for each in (clean, column)}
        data += _dots(results, trials.iloc[drawn], seen, style, (suffix, title))
        corner = layout[f"xaxis{suffix}"]["domain"][0], layout[f"yaxis{suffix}"]["domain"][1]
        layout["annotations"].append(panel_title(title, *corner) | {"text": escape(title) + said, "align": "left"})
        layout[f"xaxis{suffix}"]["title"] = {"text": f"in-distribution {TITLES[results.metric]}"}
    shape = f", shape: {style[1]}" if style[1] else ""
    hue = f" Colour: {style[0]}{shape}." if style[0] else ""
    return Figure(
        title="Does the in-distribution score tell how a model will do elsewhere?",
        note=(
            f"A dot is one trial (n = {len(trials)}), on probit axes: equal steps are equal steps of the normal "
            "quantile. On the dashed line, where it is in view, a model loses nothing. The solid line is the "
            "least-squares fit to all trials; those above it hold up better than their in-distribution score says. "
            f"A score of 1 is drawn half an image below it.{hue}{describe_chance(results)}{subset}"
        ),
        data=data,
        layout=layout,
        height_px=72 + _PANEL_PX * rows,
        axes=("in-distribution, probit", "shifted, probit"),
    )


def _style(results: Results, effects: Sequence[Effect]) -> tuple[str | None, str | None]:
    """Return the factors for colour and shape of the dots, None where the study has no such factor.

    No shape either if the legend would have more than ``MAX_LEGEND`` entries.
    """
    order = [*rank_factors(results, effects), None, None]
    hues, shapes = (len(_levels(results, factor)) for factor in order[:2])
    return order[0], order[1] if hues * shapes <= MAX_LEGEND else None


def _limits(points: NDArray[np.float64]) -> list[float]:
    low, high = float(np.nanmin(points)), float(np.nanmax(points))
    margin = max(0.05, 0.05 * (high - low))
    return [low - margin, high + margin]


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Return tick positions in probit coordinates and their labels in %, at least four where that is possible."""
    from scipy.special import ndtr

    for percents in _TICKS:
        places = probit(np.asarray(percents) / 100)
        seen = [(float(x), f"{p:g}%") for x, p in zip(places, percents, strict=True) if low <= x <= high]
        if len(seen) >= 4:
            break
    if not seen:  # all trials at one place near 0 or 1
        middle = (low + high) / 2
        seen = [(middle, f"{100 * ndtr(middle):.4g}%")]
    step = -(-len(seen) // 9)  # ticks of a panel that do not run into each other
    kept = seen[::-1][::step][::-1]
    return {"tickvals": [x for x, _ in kept], "ticktext": [text for _, text in kept]}


def _add_panel(layout: dict[str, Any], number: int, rows: int, limits: tuple[list[float], list[float]]) -> None:
    suffix = "" if number == 0 else str(number + 1)
    row, column = divmod(number, COLUMNS)
    left, top = column / COLUMNS, 1 - row / rows
    layout[f"xaxis{suffix}"] = {
        "domain": [left + (0.05 if column else 0), left + 1 / COLUMNS - 0.005],
        "range": limits[0],
        "anchor": f"y{suffix}",
        "zeroline": False,
    } | _ticks(*limits[0])
    layout[f"yaxis{suffix}"] = {
        "domain": [top - 1 / rows + (100 / _PANEL_PX) / rows if rows > 1 else 0, top],
        "range": limits[1],
        "anchor": f"x{suffix}",
        "zeroline": False,
    } | _ticks(*limits[1])


def _line_trace(
    ends: list[float], slope: float, intercept: float, suffix: str, line: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": ends,
        "y": [intercept + slope * x for x in ends],
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "line": {"color": "#8a929c", **line},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _dots(
    results: Results,
    trials: pd.DataFrame,
    points: Mapping[str, NDArray[np.float64]],
    style: tuple[str | None, str | None],
    panel: tuple[str, str],
) -> list[dict[str, Any]]:
    (clean, column), (suffix, title) = points, panel
    traces = []
    for hue_index, hue in enumerate(_levels(results, style[0]), start=first_colour_of(results, style[0])):
        for shape_index, shape in enumerate(_levels(results, style[1])):
            is_here = _is_level(trials, style[0], hue) & _is_level(trials, style[1], shape)
            rows = trials[is_here]
            name = " · ".join(level for level in (hue, shape) if level is not None) or "trial"
            marker = {"size": 9, "color": colour(hue_index), "symbol": SYMBOLS[shape_index % len(SYMBOLS)]}
            labels = [escape(results.labels[arm]) for arm in rows["name"]]
            scores = floats(rows[clean]), floats(rows[column])
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": escape(name),
                    "legendgroup": name,
                    "showlegend": not suffix and bool(hue or shape),
                    "x": floats(points[clean][is_here]),
                    "y": floats(points[column][is_here]),
                    "xaxis": f"x{suffix}",
                    "yaxis": f"y{suffix}",
                    "marker": marker | {"opacity": 0.8},
                    "customdata": [list(row) for row in zip(labels, rows["replicate"].tolist(), *scores, strict=True)],
                    "hovertemplate": "%{customdata[0]}, replicate %{customdata[1]}<br>"
                    "%{customdata[2]:.1%} → %{customdata[3]:.1%}<extra></extra>",
                    "meta": {"panel": title, "columns": ["arm", "replicate", "in-distribution", "shifted"]},
                }
            )
    return traces


def _levels(results: Results, factor: str | None) -> list[str | None]:
    return [None] if factor is None else [*results.levels(factor)]


def _is_level(trials: pd.DataFrame, factor: str | None, level: str | None) -> Any:
    return np.ones(len(trials), dtype=bool) if factor is None else (trials[f"arm/{factor}"] == level).to_numpy()
