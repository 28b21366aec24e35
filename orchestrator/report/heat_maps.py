"""Heat maps: scores and differences by arm and shift, and stain grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.differences import ALPHA, UNSHIFTED, Differences
from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.stain_grid import Grid, rows_of_shifts
from orchestrator.analysis.wording import (
    SEEN_MARK,
    explain_seen,
    explain_used,
    mark_used,
    plural,
    sentence,
    word_seen,
)
from orchestrator.report.style import (
    DIVERGING,
    SEQUENTIAL,
    Figure,
    describe_chance,
    floats,
    layout_of,
    panel_title,
    panels_of,
)
from orchestrator.statistics.paired_tests import min_units

#: Most cells drawn per effect; more dots would merge into a bar.
MAX_CELLS = 500
#: Most arms for which numbers fit inside the heat map.
ANNOTATED_ARMS = 40


# ------------------------------------------------------------------------------------------------ heat map


def heat_map(results: Results) -> Figure | None:
    """Return the heat map of scores by arm and shift, None if no trial is complete or there is no shift.

    Scores are means over severities and replicates, the best arm is on top. Cells of a stain grid are left out: they
    have a figure of their own.
    """
    shifts, order = rows_of_shifts(results)
    if not order:
        return None
    # Mean within a trial first, so that all replicates have equal weight.
    per_trial = shifts.groupby(["name", "signature", "shift"], sort=False, observed=True)[results.metric].mean()
    table = per_trial.groupby(level=["name", "shift"], sort=False, observed=True).mean().unstack("shift")
    columns = [name for name in ["identity", *order] if name in table]
    table = table[columns]
    table = table.loc[table[order].mean(axis=1).sort_values().index]  # Plotly draws the last row on top
    labels = [escape(results.labels[str(name)]) for name in table.index]
    z = [floats(row) for row in table.to_numpy(dtype=float)]
    names = [
        "unshifted" if name == "identity" else mark_used(name, results.used_types).replace("_", " ") for name in columns
    ]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": z,
        "x": [escape(name) for name in names],
        "y": labels,
        "colorscale": SEQUENTIAL,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "colorbar": {
            "thickness": 10,
            "tickformat": ".0%",
            "outlinewidth": 0,
            "len": min(1.0, 260 / (26 * len(z) + 60)),
        },
    }
    counts = per_trial.groupby(level=["name", "shift"], observed=True).count().unstack("shift", fill_value=0)
    found = counts.loc[table.index, columns].to_numpy().tolist()
    trace |= _mark_seen(results, (list(map(str, table.index)), list(map(str, columns))), z, found)
    layout = _layout()
    row_px = 24 if len(z) <= ANNOTATED_ARMS else 14
    if row_px == 14:
        layout["yaxis"] |= {"dtick": 1, "tickfont": {"size": 10}}
    num_trials = shifts["signature"].nunique()
    severities = sorted(set(shifts["severity"]) - {0})
    return Figure(
        title="Which arm breaks under which shift?",
        note=(
            f"{sentence(TITLES[results.metric])} in %, mean over severities {_listed(severities)} and over "
            f"replicates; arms sorted by their mean, best on top. n = {num_trials} complete trials, {len(table)} arms, "
            f"{len(order)} shifts. Dark is low.{describe_chance(results)}"
            f"{explain_seen(results.seen)}{explain_used(results.used_types)}"
        ),
        data=[trace],
        layout=layout,
        height_px=130 + max(row_px * len(z), 60),
        min_width_px=300 + 41 * len(columns),
        axes=("shift", "arm", TITLES[results.metric]),
    )


def _layout() -> dict[str, Any]:
    """Return the layout of a heat map of arms by shift."""
    layout = layout_of(
        xaxis={"side": "top", "tickangle": -38, "automargin": True, "showgrid": False, "type": "category"},
        yaxis={"automargin": True, "showgrid": False, "type": "category", "tickfont": {"size": 11.5}},
    )
    layout["margin"] |= {"l": 10, "t": 90, "b": 12}
    return layout


def _mark_seen(
    results: Results,
    cells: tuple[Sequence[str], Sequence[str]],
    z: Sequence[Sequence[float | None]],
    counts: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Return text and hover of the cells, which mark the shifts that the arm's own training policy contains.

    With many arms the mark stands alone, without number, and the words are left to the caption.
    """
    arms, shifts = cells
    words = [["" if shift == "identity" else word_seen(results.seen, [arm], shift) for shift in shifts] for arm in arms]
    marks = [[SEEN_MARK if word.startswith("seen") else "" for word in row] for row in words]
    if len(z) > ANNOTATED_ARMS:
        text = {"text": marks, "textfont": {"size": 8}} if any(map(any, marks)) else {}
        return text | {
            "texttemplate": "%{text}",
            "customdata": [[[n] for n in row] for row in counts],
            "meta": {"columns": ["n"]},
            "hovertemplate": "%{y}<br>%{x}: %{z:.1%}, n = %{customdata[0]}<extra></extra>",
        }
    numbers = [
        ["" if value is None else f"{100 * value:.0f}{mark}" for value, mark in zip(*pair, strict=True)]
        for pair in zip(z, marks, strict=True)
    ]
    return {
        "text": numbers,
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "customdata": [[[n, word] for n, word in zip(*pair, strict=True)] for pair in zip(counts, words, strict=True)],
        "meta": {"columns": ["n", "policy"]},
        "hovertemplate": "%{y}<br>%{x}: %{z:.1%}, n = %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    }


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def difference_map(results: Results, found: Differences) -> Figure:
    """Return the heat map of differences, best arm on top, significant cells marked with a star."""
    shown = found.mean.loc[found.mean.drop(columns=[UNSHIFTED], errors="ignore").mean(axis=1).sort_values().index]
    p_corrected, n = found.p_corrected.loc[shown.index], found.n.loc[shown.index]
    marked = (p_corrected <= ALPHA).to_numpy()
    z = [floats(100 * row) for row in shown.to_numpy(dtype=float)]
    extreme = max((abs(value) for row in z for value in row if value is not None), default=1.0) or 1.0
    names = [
        "unshifted" if name == UNSHIFTED else mark_used(str(name), results.used_types).replace("_", " ")
        for name in shown.columns
    ]
    is_annotated = len(z) <= ANNOTATED_ARMS
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": z,
        "x": [escape(name) for name in names],
        "y": [escape(results.labels[str(name)]) for name in shown.index],
        "zmin": -extreme,
        "zmax": extreme,
        "colorscale": DIVERGING,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "text": _texts(z, marked, is_annotated=is_annotated),
        "texttemplate": "%{text}",
        "textfont": {"size": 10.5 if is_annotated else 8},
        "customdata": _describe_cells(results, n, p_corrected, is_annotated=is_annotated),
        "meta": {"columns": ["pairs", "p_corrected", "policy"]},
        "hovertemplate": "%{y}<br>%{x}: %{z:+.1f} points<br>n = %{customdata[0]}"
        f"{', p (of the map) %{customdata[1]}' if found.num_tested else ''}<br>%{{customdata[2]}}<extra></extra>",
        "colorbar": {
            "thickness": 10,
            "ticksuffix": " pt",
            "outlinewidth": 0,
            "len": min(1.0, 260 / (26 * len(z) + 60)),
        },
    }
    layout = _layout()
    if not is_annotated:
        layout["yaxis"] |= {"dtick": 1, "tickfont": {"size": 10}}
    return Figure(
        title=f"Where does an arm differ from “{results.labels[found.reference]}”?",
        note=_note(results, found, int(marked.sum())),
        data=[trace],
        layout=layout,
        height_px=130 + max((24 if is_annotated else 14) * len(z), 60),
        min_width_px=300 + 41 * len(names),
        axes=("shift", "arm", "difference, points"),
    )


def _describe_cells(
    results: Results, n: pd.DataFrame, p_corrected: pd.DataFrame, *, is_annotated: bool
) -> list[list[list[Any]]]:
    """Return number of pairs, p of the map and the policy's word of every cell."""
    return [
        [
            [
                int(count),
                None if np.isnan(p) else round(float(p), 4),
                _word_seen(results, arm, shift) if is_annotated else "",
            ]
            for shift, count, p in zip(n.columns, *pair, strict=True)
        ]
        for arm, *pair in zip(n.index, n.to_numpy(), p_corrected.to_numpy(), strict=True)
    ]


def _word_seen(results: Results, arm: Any, shift: Any) -> str:
    return "" if shift == UNSHIFTED else word_seen(results.seen, [str(arm)], str(shift))


def _texts(z: list[list[float | None]], marked: NDArray[np.bool_], *, is_annotated: bool) -> list[list[str]]:
    """Return the text of each cell: number and star, or the star alone if there is no room."""
    return [
        [
            "" if value is None else (f"{value:+z.0f}" if is_annotated else "") + "*" * bool(star)
            for value, star in zip(row, stars, strict=True)
        ]
        for row, stars in zip(z, marked, strict=True)
    ]


def _note(results: Results, found: Differences, num_marked: int) -> str:
    low, high = int(found.n.to_numpy().min()), int(found.n.to_numpy().max())
    n = f"n = {high}" if low == high else f"n = {low} to {high}"
    text = (
        f"{TITLES[results.metric][:1].upper()}{TITLES[results.metric][1:]}, arm minus reference in points, paired "
        f"replicate by replicate ({n} pairs per cell), mean over severities; arms sorted by their mean over the "
        f"shifts, best on top.{explain_used(results.used_types)}"
    )
    if found.sharing:
        text += (
            f" {plural(len(found.sharing), 'arm')} not tested: replicates share a pretrained encoder, and are not "
            "independent."
        )
    if not found.num_tested and len(found.sharing) == len(found.mean):
        return text
    if not found.num_tested:
        return f"{text} Not tested: it takes {min_units(ALPHA)} pairs of replicates that are not equal."
    verb = "is" if num_marked == 1 else "are"
    return (
        f"{text} {num_marked} of {found.num_tested} tested cells {verb} marked *: p ≤ {ALPHA:g} for the whole map, by "
        "sign flips of whole replicates against the largest |t| of the map. Cells share trained models: several stars "
        "of an arm are one finding. A cell without a star is not shown to be equal."
    )


_COLUMNS = 4
_PANEL_PX = 250
#: Space between rows of panels, for the lower axis and the next title.
_GAP_PX = 74


def stain_heat_maps(results: Results, grid: Grid) -> Figure:
    """Return one panel per arm (x: eosin, y: haematoxylin) on one colour scale, with the unshifted cell framed."""
    panels = [(str(name), row.unstack("eosin")) for name, row in grid.cells.iterrows()]
    rows = math.ceil(len(panels) / _COLUMNS)
    height = rows * _PANEL_PX + (rows - 1) * _GAP_PX
    low, high = float(np.nanmin(grid.cells)), float(np.nanmax(grid.cells))
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[], shapes=[], meta=panels_of(200, below=48, shared=True))
    layout["margin"] |= {"t": 36, "b": 48}
    for number, (name, cells) in enumerate(panels):
        suffix = "" if number == 0 else str(number + 1)
        row, column = divmod(number, _COLUMNS)
        haematoxylin, eosin = list(map(float, cells.index)), list(map(float, cells.columns))
        top = 1 - row * (_PANEL_PX + _GAP_PX) / height
        width = 1 / min(len(panels), _COLUMNS)
        layout[f"xaxis{suffix}"] = _axis("eosin ×", eosin, f"y{suffix}") | {
            "domain": [column * width + 0.02, (column + 1) * width - 0.02]
        }
        layout[f"yaxis{suffix}"] = _axis("haematoxylin ×" if column == 0 else "", haematoxylin, f"x{suffix}") | {
            "domain": [top - _PANEL_PX / height, top]
        }
        layout["annotations"].append(panel_title(results.labels[name], column * width + 0.02, top))
        if 1.0 in haematoxylin and 1.0 in eosin:
            layout["shapes"].append(_frame(eosin.index(1.0), haematoxylin.index(1.0), suffix))
        meta = {"meta": {"panel": results.labels[name], "columns": ["cell"]}}
        num_trials = int(results.complete["name"].eq(name).sum())
        data.append(_panel(cells, (low, high), suffix, first=number == 0, num_trials=num_trials) | meta)
    return Figure(
        title="Where on the stain grid does each arm break?",
        note=(
            f"{sentence(TITLES[results.metric])} in %, mean over replicates; haematoxylin and eosin are multiplied; "
            f"the framed cell (1, 1) is the unshifted image. Best mean first. n = {grid.num_trials} "
            f"complete trials, {grid.cells.shape[1]} cells. Dark is low; one scale for all.{describe_chance(results)}"
        ),
        data=data,
        layout=layout,
        height_px=height + 84,
    )


def _axis(title: str, values: Sequence[float], anchor: str) -> dict[str, Any]:
    ticks = {"tickvals": list(range(len(values))), "ticktext": [f"{value:g}" for value in values]}
    return {
        "title": {"text": title},
        "anchor": anchor,
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    } | ticks


def _frame(x: int, y: int, suffix: str) -> dict[str, Any]:
    corners = {"x0": x - 0.5, "x1": x + 0.5, "y0": y - 0.5, "y1": y + 0.5}
    return {
        "type": "rect",
        "xref": f"x{suffix}",
        "yref": f"y{suffix}",
        "line": {"color": "#2b8ac9", "width": 2},
    } | corners


def _panel(
    cells: pd.DataFrame, limits: tuple[float, float], suffix: str, *, first: bool, num_trials: int
) -> dict[str, Any]:
    z = [[None if np.isnan(value) else float(value) for value in row] for row in cells.to_numpy(dtype=float)]
    hover = [[f"H × {h:g}, E × {e:g}" for e in cells.columns] for h in cells.index]
    return {
        "type": "heatmap",
        "z": z,
        "x": list(range(len(cells.columns))),
        "y": list(range(len(cells.index))),
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "zmin": limits[0],
        "zmax": limits[1],
        "colorscale": SEQUENTIAL,
        "showscale": first,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "text": [["" if value is None else f"{100 * value:.0f}" for value in row] for row in z],
        "texttemplate": "%{text}",
        "textfont": {"size": 10.5},
        "customdata": [[escape(text) for text in row] for row in hover],
        "hovertemplate": f"%{{customdata}}: %{{z:.1%}}, n = {num_trials}<extra></extra>",
        "colorbar": {"thickness": 10, "tickformat": ".0%", "outlinewidth": 0},
    }
