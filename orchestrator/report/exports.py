"""The report's tables for papers (LaTeX with booktabs, Markdown), and the data of a figure as rows."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from typing import Any

import pandas as pd

from orchestrator.analysis.effects import Effect
from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.tables.formats import write_latex, write_markdown
from orchestrator.analysis.wording import sentence
from orchestrator.planning.states import COMPLETE
from orchestrator.statistics.intervals import MIN_REPLICATES
from orchestrator.statistics.paired_tests import min_units

_DASH = "–"


def paper_tables(results: Results, arms: pd.DataFrame, effects: Mapping[str, Sequence[Effect]]) -> dict[str, str]:
    """Return file name → text of the tables of arms and of effects, as LaTeX and as Markdown."""
    written = {}
    for name, (head, rows, texts, caption) in {
        "arms": _arms(results, arms),
        "effects": _effects(results, effects),
    }.items():
        written[f"{name}.md"] = write_markdown(head, rows, texts=texts, caption=caption)
        written[f"{name}.tex"] = write_latex(head, rows, texts=texts, caption=caption, label=name)
    return written


_Table = tuple[list[str], list[list[str]], int, str]


def _arms(results: Results, arms: pd.DataFrame) -> _Table:
    factors = [factor for factor in results.factors if f"arm/{factor}" in arms]
    head = [*(factors or ["arm"]), "n", *(measure.short for measure in results.measures)]
    rows = []
    for arm in arms.to_dict("records"):
        row = [str(arm[f"arm/{factor}"]) for factor in factors] or [str(arm["label"])]
        row.append(f"{arm[COMPLETE]}" if arm[COMPLETE] == arm["planned"] else f"{arm[COMPLETE]} of {arm['planned']}")
        row += [_measured(arm, measure.column) for measure in results.measures]
        rows.append(row)
    caption = (
        f"{sentence(TITLES[results.metric])} in %, mean ± standard deviation over the n complete replicates of an "
        "arm; ECE in %, lower is better."
    )
    return head, rows, max(1, len(factors)), caption


def _measured(arm: Mapping[Any, Any], column: str) -> str:
    mean, sd = arm[f"{column}.mean"], arm[f"{column}.sd"]
    if pd.isna(mean):
        return _DASH
    return f"{100 * mean:.1f}" if pd.isna(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _effects(results: Results, effects: Mapping[str, Sequence[Effect]]) -> _Table:
    titles = {measure.column: measure.title for measure in results.measures}
    head = ["factor", "level", "reference", "measure", "difference", "95 % interval", "over", "cells", "p, Holm"]
    rows = []
    for effect in itertools.chain.from_iterable(effects.values()):
        interval, p = effect.interval, effect.p_holm
        rows.append(
            [
                effect.factor,
                effect.level,
                effect.reference,
                titles.get(effect.measure, effect.measure),
                _DASH if effect.difference is None else _signed(effect.difference),
                _DASH if interval is None else f"{_signed(interval.low)} to {_signed(interval.high)}",
                effect.over,
                str(len(effect.cells)),
                _DASH if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001",
            ]
        )
    caption = (
        "Main effects: level minus reference, everything else being equal, in percentage points. Intervals: paired t "
        f"over replicates, from {MIN_REPLICATES} on; p: exact two-sided sign flips of whole replicates, from "
        f"{min_units()} on, corrected after Holm. Replicates that share a pretrained encoder count once."
    )
    return head, rows, 4, caption


def _signed(difference: float) -> str:
    """Return a difference in points with its sign, a typographic minus."""
    return f"{100 * difference:+.1f}".replace("-", "−")


# ------------------------------------------------------------------------------------------------ data of a figure


def figure_rows(figure: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the data of a figure, one row per dot or cell: panel, series, coordinates, sd, label and custom data.

    ``rowsOf`` in page.js does the same in a browser.

    Args:
        figure: an entry of ``page.read_figures``.
    """
    rows: list[dict[str, Any]] = []
    for trace in figure["data"]:
        if trace.get("hoverinfo") == "skip":  # lines and bands that only guide the eye
            continue
        meta = trace.get("meta", {})
        head = {"panel": meta["panel"]} if meta.get("panel") else {}
        if trace.get("name"):
            head["series"] = _plain(trace["name"])
        points = _cells if trace["type"] == "heatmap" else _dots
        for values, custom in points(trace, figure["axes"]):
            customs = custom if isinstance(custom, list) else [custom]
            named = zip(meta.get("columns", ()), customs, strict=False)
            more = {name: _plain(value) if isinstance(value, str) else value for name, value in named}
            rows.append(head | values | more)
    return rows


def _cells(trace: Mapping[str, Any], axes: Sequence[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    x, y, z = axes
    custom = trace.get("customdata")
    for i, line in enumerate(trace["z"]):
        for j, value in enumerate(line):
            yield {x: _plain(trace["x"][j]), y: _plain(trace["y"][i]), z: value}, custom[i][j] if custom else None


def _dots(trace: Mapping[str, Any], axes: Sequence[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    x, y, *_ = axes
    custom, texts = trace.get("customdata"), trace.get("hovertext")
    signatures = trace.get("meta", {}).get("lines")
    line = 0 if None in trace["x"] else None
    for i, values in enumerate(zip(trace["x"], trace["y"], strict=True)):
        if values[0] is None and line is not None:  # a gap: another line of the same trace begins
            line += 1
            continue
        row: dict[str, Any] = {}
        if line is not None:
            row = {"signature": signatures[line]} if signatures else {"line": line}
        row |= {x: values[0], y: values[1]}
        row |= {f"{name} sd": trace[key]["array"][i] for name, key in ((x, "error_x"), (y, "error_y")) if key in trace}
        row |= {"label": _plain(texts[i])} if isinstance(texts, list) else {}
        yield row, custom[i] if custom else None


def _plain(text: Any) -> str:
    """Return the text that a browser shows for a label of a figure."""
    return unescape(re.sub(r"<[^>]*>", "", str(text).replace("<br>", "; ")))


def figure_csv(figure: Mapping[str, Any]) -> str:
    """Return ``figure_rows`` as CSV; undefined values are empty."""
    rows = figure_rows(figure)
    columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
