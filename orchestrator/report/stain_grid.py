"""The stain grid: each arm's score per cell (haematoxylin × eosin), and what is left of it in one line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.report.plot import SEQUENTIAL, Figure, layout_of, panel_title, sentence
from orchestrator.report.tables import METRICS, Results

#: What ``trainables.shifts.bank.stain_name`` writes; the report does not import torch.
_CELL = re.compile(r"stain_h([0-9.]+)_e([0-9.]+)")

#: A cell counts as broken this far below the best arm's unshifted score. Our choice: the papers name no floor.
MARGIN = 0.10

_COLUMNS = 4
_PANEL_PX = 250
#: Between the rows of panels: the lower axis and the next title.
_GAP_PX = 74


@dataclass(frozen=True)
class Grid:
    """Scores per arm over shifted copies, best mean first.

    Attributes:
        floor: in [0, 1]; ``MARGIN`` below the best arm's unshifted score.
        cells: arms × stain cells (columns are pairs of multipliers), mean over replicates.
        scores: arms × every other shift and severity, mean over replicates; without columns where the study has none.
        num_trials: that entered.
    """

    floor: float
    cells: pd.DataFrame
    scores: pd.DataFrame
    num_trials: int


@dataclass(frozen=True)
class Line:
    """What one arm keeps over many copies of the test set: its mean, its smallest value, the share below the floor."""

    mean: float
    smallest: float
    where: str
    share_below: float


def is_stain_cell(name: str) -> bool:
    """Return whether a shift is a cell of a stain grid."""
    return _CELL.fullmatch(name) is not None


def rows_of_shifts(results: Results) -> tuple[pd.DataFrame, list[str]]:
    """Return ``results.test_rows`` without the cells of a stain grid, and the shifts in it in the study's order."""
    rows = results.test_rows
    if results.metric not in rows:
        return rows.iloc[:0], []
    rows = rows[~rows["shift"].map(is_stain_cell).astype(bool)]
    return rows, [str(name) for name in rows.loc[rows["severity"] > 0, "shift"].unique()]


def compute_grid(results: Results) -> Grid | None:
    """Return the scores of a study that was tested on stain cells; None where there are none."""
    rows = results.test_rows
    if results.metric not in rows:
        return None
    rows = rows.dropna(subset=[results.metric])
    shifted = rows[rows["severity"] > 0]
    is_cell = shifted["shift"].map(is_stain_cell).astype(bool)
    if not is_cell.any():
        return None
    clean = rows[rows["severity"] == 0].groupby("name", observed=True)[results.metric].mean()
    scores = shifted[~is_cell].groupby(["name", "shift", "severity"], observed=True)[results.metric].mean()
    cells = shifted[is_cell]
    factors = cells["shift"].astype(str).str.extract(_CELL).astype(float)
    cells = cells.assign(haematoxylin=factors[0], eosin=factors[1])
    groups = cells.groupby(["name", "haematoxylin", "eosin"], observed=True)[results.metric]
    table = groups.mean().unstack(["haematoxylin", "eosin"])
    table = table.sort_index(axis=1)
    table = table.loc[table.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    rest = scores.unstack(["shift", "severity"]).reindex(table.index)
    return Grid(float(clean.max()) - MARGIN, table, rest, int(cells["signature"].nunique()))


def summarise_copies(grid: Grid, name: str) -> tuple[Line | None, Line]:
    """Return what an arm keeps over the other shifts (None without any), and over the stain cells."""
    other, cells = (pd.Series(table.loc[name]).dropna() for table in (grid.scores, grid.cells))
    named = {key: f"{str(key[0]).replace('_', ' ')} {key[1]}" for key in other.index}
    stains = {key: f"H × {key[0]:g}, E × {key[1]:g}" for key in cells.index}
    return (_line(other, named, grid.floor) if len(other) else None), _line(cells, stains, grid.floor)


def _line(values: pd.Series, names: dict[Any, str], floor: float) -> Line:
    where = names[values.idxmin()]
    return Line(float(values.mean()), float(values.min()), where, float((values < floor).mean()))


def stain_heat_maps(results: Results, grid: Grid) -> Figure:
    """Return one panel per arm, haematoxylin up and eosin right, all on one colour scale; the unshifted cell framed."""
    panels = [(str(name), row.unstack("eosin")) for name, row in grid.cells.iterrows()]
    rows = math.ceil(len(panels) / _COLUMNS)
    height = rows * _PANEL_PX + (rows - 1) * _GAP_PX
    low, high = float(np.nanmin(grid.cells)), float(np.nanmax(grid.cells))
    data: list[dict[str, Any]] = []
    layout = layout_of(annotations=[], shapes=[])
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
        data.append(_panel(cells, (low, high), suffix, first=number == 0) | meta)
    return Figure(
        title="Where on the stain grid does each arm break?",
        note=(
            f"{sentence(METRICS[results.metric])} in %, mean over replicates; haematoxylin and eosin are multiplied; "
            f"the framed cell (1, 1) is the unshifted image. Best mean first. n = {grid.num_trials} "
            f"complete trials, {grid.cells.shape[1]} cells. Dark is low; one scale for all."
        ),
        data=data,
        layout=layout,
        height_px=height + 84,
        min_width_px=230 * min(len(panels), _COLUMNS),
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


def _panel(cells: pd.DataFrame, limits: tuple[float, float], suffix: str, *, first: bool) -> dict[str, Any]:
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
        "hovertemplate": "%{customdata}: %{z:.1%}<extra></extra>",
        "colorbar": {"thickness": 10, "tickformat": ".0%", "outlinewidth": 0},
    }
