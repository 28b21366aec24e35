"""Stain grid: each arm's score per cell (haematoxylin × eosin), and its summary over all cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.analysis.results import Results
from trainables.evaluation.shift_means import average_shifts
from trainables.shifts.tables import STAIN_NAME

#: Distance of the floor below the best arm's unshifted score. Our choice: the papers name no floor.
MARGIN = 0.10


@dataclass(frozen=True)
class Grid:
    """Scores per arm on shifted copies of the test set, best mean over cells first.

    Attributes:
        floor: score in [0, 1], ``MARGIN`` below the best arm's unshifted score.
        cells: arms × stain cells (columns are pairs of multipliers), mean over replicates.
        scores: arms × every other shift and severity, mean over replicates; without columns where the study has none.
        num_trials: number of trials behind ``cells``.
    """

    floor: float
    cells: pd.DataFrame
    scores: pd.DataFrame
    num_trials: int


@dataclass(frozen=True)
class Line:
    """Summary of one arm's scores on many copies of the test set: mean, smallest (and where), share below the floor."""

    mean: float
    smallest: float
    where: str
    share_below: float


def is_stain_cell(name: str) -> bool:
    """Return whether a shift is a cell of a stain grid."""
    return STAIN_NAME.fullmatch(name) is not None


def rows_of_shifts(results: Results) -> tuple[pd.DataFrame, list[str]]:
    """Return ``results.test_rows`` without the cells of a stain grid, and its shifts in the study's order.

    Of the columns only those of trial, shift and ``results.metric``: 700,000 rows of text are slow to copy.
    """
    rows = results.test_rows
    if results.metric not in rows:
        return rows.iloc[:0], []
    rows = rows[["signature", "name", "replicate", "shift", "severity", results.metric]]
    cells = [name for name in rows["shift"].cat.categories if is_stain_cell(str(name))]
    rows = rows[~rows["shift"].isin(cells)] if cells else rows
    return rows, [str(name) for name in rows.loc[rows["severity"] > 0, "shift"].unique()]


def compute_grid(results: Results) -> Grid | None:
    """Return the scores on the stain grid, None for a study without one."""
    rows = results.test_rows
    if results.metric not in rows or not any(is_stain_cell(str(name)) for name in rows["shift"].cat.categories):
        return None
    rows = rows.dropna(subset=[results.metric])
    shifted = rows[rows["severity"] > 0]
    is_cell = shifted["shift"].map(is_stain_cell).astype(bool)
    if not is_cell.any():
        return None
    clean = rows[rows["severity"] == 0].groupby("name", observed=True)[results.metric].mean()
    scores = shifted[~is_cell].groupby(["name", "shift", "severity"], observed=True)[results.metric].mean()
    cells = shifted[is_cell]
    factors = cells["shift"].astype(str).str.extract(STAIN_NAME).astype(float)
    cells = cells.assign(haematoxylin=factors[0], eosin=factors[1])
    groups = cells.groupby(["name", "haematoxylin", "eosin"], observed=True)[results.metric]
    table = groups.mean().unstack(["haematoxylin", "eosin"])
    table = table.sort_index(axis=1)
    table = table.loc[table.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    rest = scores.unstack(["shift", "severity"]).reindex(table.index)
    return Grid(float(clean.max()) - MARGIN, table, rest, int(cells["signature"].nunique()))


def summarise_copies(grid: Grid, name: str) -> tuple[Line | None, Line]:
    """Return one arm's summaries over the other shifts (None without any) and over the stain cells.

    The mean over the other shifts is over severities first, like every mean over shifts (``average_shifts``).
    """
    other, cells = (pd.Series(table.loc[name]).dropna() for table in (grid.scores, grid.cells))
    named = {key: f"{str(key[0]).replace('_', ' ')} {key[1]}" for key in other.index}
    stains = {key: f"H × {key[0]:g}, E × {key[1]:g}" for key in cells.index}
    line = _line(cells, stains, grid.floor, float(cells.mean()))
    if other.empty:
        return None, line
    means = average_shifts(other.to_numpy(dtype=float)[None], [str(shift) for shift, _ in named])
    return _line(other, named, grid.floor, float(means.mean[0])), line


def _line(values: pd.Series, names: dict[Any, str], floor: float, mean: float) -> Line:
    where = names[values.idxmin()]
    return Line(mean, float(values.min()), where, float((values < floor).mean()))
