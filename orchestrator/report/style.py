"""Shared parts of the report's figures: palette, layout, small helpers.

A figure is plain Plotly data and layout; the page draws it with its embedded plotly.js and sets the colours of text,
axes and grid (light or dark). User text is escaped in figures, because Plotly interprets a subset of HTML.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.analysis.results import Results
from orchestrator.analysis.wording import percent
from trainables.evaluation.metrics import find_chance

#: Okabe & Ito 2008 (told apart by colour-blind readers), reordered, black and yellow left out, the
#: blue lighter so that it reads on a dark page too.
PALETTE = ("#2b8ac9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d46")
#: One hue, dark to light: no rainbow, and readable in grey print. Low values are dark, to draw attention.
SEQUENTIAL: list[list[Any]] = [
    [0.0, "#7f2704"],
    [0.25, "#d94801"],
    [0.5, "#fd8d3c"],
    [0.75, "#fdd0a2"],
    [1.0, "#fff5eb"],
]
#: Two hues that meet in white, for differences around 0. Orange is worse, like the dark end of ``SEQUENTIAL``.
DIVERGING = [[0.0, "#a63603"], [0.25, "#fd8d3c"], [0.5, "#f7f7f7"], [0.75, "#6baed6"], [1.0, "#08519c"]]
#: What is no level of a factor: what all arms have in common. Stands out on a light and on a dark page.
NEUTRAL = "#74808d"
#: A headline number of all arms: the mean over shifts, the mean of an effect.
HEADLINE = "#8a63d2"
CHANCE_LINE = {"dash": "dot", "width": 1.5, "color": "#6b7682"}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon")
#: Decimals of drawn numbers, for scores in [0, 1]; with all decimals, they would be a third of the page.
DIGITS = 7
#: Most dots per panel; more cannot be distinguished, and a browser draws them slowly.
MAX_DOTS = 2_000


@dataclass(frozen=True)
class Figure:
    """One figure: its question as title, a note on how to read it with n, and data and layout for Plotly."""

    title: str
    note: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height_px: int
    #: Smallest useful width; on a narrower page the figure scrolls sideways.
    min_width_px: int = 0
    #: Column names of x and y (and the colour of a heat map) in the figure's CSV.
    axes: tuple[str, ...] = ("x", "y", "z")

    def named(self, title: str) -> Figure:
        """Return the same figure with another title."""
        return replace(self, title=title)


def colour(index: int) -> str:
    """Return the palette's colour of the index-th level or arm; beyond the palette, hues by the golden angle."""
    if index < len(PALETTE):
        return PALETTE[index]
    return f"hsl({(index * 137.508) % 360:.0f},55%,48%)"


def translucent(index: int) -> str:
    """Return ``colour(index)`` at 12 % opacity, for bands that overlap."""
    value = colour(index)
    if value.startswith("hsl"):
        return value.replace("hsl", "hsla").replace(")", ",.12)")
    red, green, blue = (int(value[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},.12)"


def layout_of(**more: Any) -> dict[str, Any]:
    """Return the base layout of all figures, with the entries of ``more`` added or replaced."""
    margin = {"l": 56, "r": 16, "t": 24, "b": 48}
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "title": {"text": ""}}
    return {"margin": margin, "legend": legend, "hovermode": "closest"} | more


def first_colour_of(results: Results, factor: str | None) -> int:
    """Return the index of the colour of a factor's first level, so that no two factors share a colour.

    Without a factor, the first index that no level has: of arms, and of what is drawn alone.
    """
    before = results.factors if factor is None else results.factors[: results.factors.index(factor)]
    return sum(len(results.levels(each)) for each in before)


def describe_chance(results: Results) -> str:
    """Return the sentence on the score of guessing, with a space before it; nothing if it depends on class shares."""
    chance = find_chance(results.metric, len(results.plan["data"]["classes"]))
    return "" if chance is None else f" Chance is {percent(chance)}."


def panels_of(min_px: int, *, below: int = 40, left: int = 0, shared: bool = False) -> dict[str, Any]:
    """Return the ``meta`` of a layout with several panels, which page.js arranges for the width that there is.

    Args:
        min_px: smallest width of a panel; fewer stand side by side where there is no room.
        below: space for ticks and title of the lower axis, px.
        left: space for the ticks of a vertical axis that is not the first of its row, px.
        shared: whether the first panel of a row has the vertical ticks and title of all.
    """
    return {"panels": {"width": min_px, "below": below, "left": left, "shared": shared}}


def floats(values: Any) -> list[float | None]:
    """Return numbers for JSON, rounded to ``DIGITS`` decimals; NaN becomes None, which Plotly leaves out."""
    array = np.asarray(values, dtype=float)
    return [None if math.isnan(value) else value for value in array.round(DIGITS).tolist()]


def panel_title(text: str, x: float, y: float) -> dict[str, Any]:
    """Return an annotation whose lower left corner is at (x, y), in fractions of the plot."""
    return {
        "text": escape(text),
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 12.5},
    }


def subsample_dots(arms: pd.Series, *, most: int = MAX_DOTS) -> tuple[NDArray[np.intp], str]:
    """Return the sorted numbers of the dots to draw, and a sentence about the others ("" if all are drawn).

    Args:
        arms: arm of every dot; of each arm the first dot and every n-th after it are drawn.
        most: approximate largest number of drawn dots.
    """
    step = max(1, math.ceil(len(arms) / most))
    drawn = np.flatnonzero(arms.groupby(arms).cumcount().to_numpy() % step == 0)
    if step == 1:
        return drawn, ""
    return drawn, f" One dot in {step} is drawn ({len(drawn):,} of {len(arms):,}); everything else is from all of them."


def seed_dots(
    results: Results, trials: pd.DataFrame, x: list[float | None], y: str, look: tuple[int, str]
) -> dict[str, Any]:
    """Return a trace with a small dot per trial.

    Args:
        results: tables of the study.
        trials: rows of the trials table.
        x: x coordinate of each trial.
        y: column of ``trials`` that holds the y coordinate.
        look: index of the colour, and hover template of the numbers.
    """
    index, numbers = look
    return {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": floats(trials[y]),
        "marker": {"size": 4.5, "color": colour(index), "opacity": 0.4},
        "hovertext": [
            f"{escape(results.labels[arm])}, replicate {replicate}"
            for arm, replicate in zip(trials["name"], trials["replicate"], strict=True)
        ],
        "hovertemplate": f"%{{hovertext}}<br>{numbers}<extra></extra>",
        "showlegend": False,
        "meta": {"panel": "seed"},
    }
