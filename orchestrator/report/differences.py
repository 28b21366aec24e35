"""Arm × shift: differences against a reference arm, paired by replicate, and which of them chance explains badly."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.report.plot import DIVERGING, Figure, floats, layout_of
from orchestrator.report.significance import holm
from orchestrator.report.stain_grid import rows_of_shifts
from orchestrator.report.tables import METRICS, Results

#: Fewer pairs of replicates than this: no test. With two, one degree of freedom is left and nothing can be found.
MIN_PAIRS = 3

#: Holm-corrected p of a marked cell is at most this.
ALPHA = 0.05

#: Above this many arms the numbers inside the cells no longer fit.
ANNOTATED_ARMS = 40

UNSHIFTED = "identity"


@dataclass(frozen=True)
class Differences:
    """Differences against the reference arm, in [-1, 1]; rows are names of arms, columns shifts (identity first)."""

    reference: str
    mean: pd.DataFrame
    #: Pairs of replicates behind each cell.
    n: pd.DataFrame
    #: Paired t-test, two-sided, corrected after Holm over all tested cells; NaN: not tested.
    p_holm: pd.DataFrame
    #: Cells that were tested.
    num_tested: int


def compute_differences(results: Results) -> Differences | None:
    """Return arm minus reference per shift; None without shifts, or without a second arm that shares a replicate.

    The reference is the first arm of the plan: all factors at their first level. A replicate's score under a shift is
    its mean over severities. The test is the paired t-test over replicates: an exact signed-rank or sign-flip test
    cannot come below 2 · 2⁻ⁿ, and with few replicates no cell of a map could pass Holm's correction.
    """
    shifts, columns = rows_of_shifts(results)
    if not columns:
        return None
    groups = shifts.groupby(["name", "replicate", "shift"], sort=False, observed=True)[results.metric]
    scores = groups.mean().unstack("shift")
    reference = str(results.trials["name"].iloc[0])
    if reference not in scores.index.get_level_values("name"):
        return None
    scores = scores[[*[c for c in (UNSHIFTED,) if c in scores], *columns]]
    base = scores.loc[reference].reindex(scores.index.get_level_values("replicate")).to_numpy()
    paired = (scores - base).drop(reference, level="name").groupby(level="name", sort=False, observed=True)
    mean, sd, n = paired.mean(), paired.std(ddof=1), paired.count()
    if mean.empty or mean.isna().all(axis=None):
        return None
    p_values = paired_t(mean.to_numpy(), sd.to_numpy(), n.to_numpy())
    corrected = holm([None if np.isnan(p) else float(p) for p in p_values.ravel()])
    p_holm = np.array([np.nan if p is None else p for p in corrected]).reshape(p_values.shape)
    frame = pd.DataFrame(p_holm, index=mean.index, columns=mean.columns)
    return Differences(reference, mean, n, frame, int((~np.isnan(p_values)).sum()))


def paired_t(mean: NDArray[np.float64], sd: NDArray[np.float64], n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return two-sided p-values of paired differences with this mean, sd (ddof 1) and number.

    NaN where there are fewer than ``MIN_PAIRS`` of them, or where all are equal, which t cannot judge.
    """
    from scipy.stats import t as student

    known = (n >= MIN_PAIRS) & (sd > 0)
    p_values = np.full(mean.shape, np.nan)
    statistic = np.abs(mean[known]) / (sd[known] / np.sqrt(n[known]))
    p_values[known] = 2 * student.sf(statistic, n[known] - 1)
    return p_values


def difference_map(results: Results, found: Differences) -> Figure:
    """Return the heat map: best arm on top, marked cells with a star."""
    shown = found.mean.loc[found.mean.drop(columns=[UNSHIFTED], errors="ignore").mean(axis=1).sort_values().index]
    p_holm, n = found.p_holm.loc[shown.index], found.n.loc[shown.index]
    marked = (p_holm <= ALPHA).to_numpy()
    z = [floats(100 * row) for row in shown.to_numpy(dtype=float)]
    extreme = max((abs(value) for row in z for value in row if value is not None), default=1.0) or 1.0
    names = ["unshifted" if name == UNSHIFTED else str(name).replace("_", " ") for name in shown.columns]
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
        "customdata": [
            [[int(count), None if np.isnan(p) else round(float(p), 4)] for count, p in zip(*pair, strict=True)]
            for pair in zip(n.to_numpy(), p_holm.to_numpy(), strict=True)
        ],
        "meta": {"columns": ["pairs", "p_holm"]},
        "hovertemplate": "%{y}<br>%{x}: %{z:+.1f} points<br>n = %{customdata[0]}, p (Holm) %{customdata[1]}"
        "<extra></extra>",
        "colorbar": {
            "thickness": 10,
            "ticksuffix": " pt",
            "outlinewidth": 0,
            "len": min(1.0, 260 / (26 * len(z) + 60)),
        },
    }
    layout = layout_of(
        xaxis={"side": "top", "tickangle": -38, "automargin": True, "showgrid": False, "type": "category"},
        yaxis={"automargin": True, "showgrid": False, "type": "category", "tickfont": {"size": 11.5}},
    )
    layout["margin"] |= {"l": 10, "t": 90, "b": 12}
    if not is_annotated:
        layout["yaxis"] |= {"dtick": 1, "tickfont": {"size": 10}}
    return Figure(
        title=f"Where does an arm differ from “{results.labels[found.reference]}”?",
        note=_note(results, found, int(marked.sum())),
        data=[trace],
        layout=layout,
        height_px=130 + max((24 if is_annotated else 14) * len(z), 60),
        min_width_px=300 + 46 * len(names),
        axes=("shift", "arm", "difference, points"),
    )


def _texts(z: list[list[float | None]], marked: NDArray[np.bool_], *, is_annotated: bool) -> list[list[str]]:
    """Return what stands in each cell: number and star, or where there is no room the star alone."""
    return [
        [
            "" if value is None else (f"{round(value):+d}" if is_annotated else "") + "*" * bool(star)
            for value, star in zip(row, stars, strict=True)
        ]
        for row, stars in zip(z, marked, strict=True)
    ]


def _note(results: Results, found: Differences, num_marked: int) -> str:
    low, high = int(found.n.to_numpy().min()), int(found.n.to_numpy().max())
    n = f"n = {high}" if low == high else f"n = {low} to {high}"
    text = (
        f"{METRICS[results.metric][:1].upper()}{METRICS[results.metric][1:]}, arm minus reference in points, paired "
        f"replicate by replicate ({n} pairs per cell), mean over severities; arms sorted by their mean over the "
        "shifts, best on top."
    )
    if not found.num_tested:
        return f"{text} Not tested: it takes {MIN_PAIRS} pairs of replicates."
    verb = "is" if num_marked == 1 else "are"
    return (
        f"{text} {num_marked} of {found.num_tested} tested cells {verb} marked *: paired t-test over replicates, p ≤ "
        f"{ALPHA:g} after Holm over the whole map. It supposes differences of roughly normal distribution; a cell "
        "without a star is not shown to be equal."
    )
