"""First screen of the report: verdicts in brief beside one figure of every arm, unshifted against shifted; notes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from orchestrator.analysis.inference.verdicts import Verdict
from orchestrator.analysis.results import Results, list_titles
from orchestrator.analysis.wording import sentence
from orchestrator.ledger.derived import find_task
from orchestrator.planning.plan import describe_skipped_briefly
from orchestrator.report.page import Section, views
from orchestrator.report.sections.answer import Answer
from orchestrator.report.sections.verdicts import css_of, describe_effect
from orchestrator.report.style import CHANCE_LINE, HEADLINE, NEUTRAL, Figure, floats, layout_of
from trainables.evaluation.metrics import (
    EVALUATED,
    MAIN_CALIBRATION,
    find_chance,
    name_over_shifts,
    name_unshifted,
)

#: Most arms that are drawn: more than two dozen lines of text are not read at a glance.
MAX_ARMS = 24
#: Height of an arm's row, and of what is above and below all rows, px.
_ROW, _HEAD, _FOOT = 31, 34, 44
#: Name, colour and symbol of both values of an arm.
_LOOKS = (("unshifted", NEUTRAL, "circle-open"), ("mean over shifts", HEADLINE, "circle"))


def overview_section(
    results: Results, verdicts: Sequence[Verdict], parts: Mapping[str, tuple[Results, Answer, pd.DataFrame]]
) -> Section:
    """Return the first section: verdicts (or findings) in brief, the figure of all arms, and what was left out.

    Args:
        results: tables of the study.
        verdicts: verdicts on the hypotheses; without any, the findings in words stand in their place.
        parts: data set ("" if there is only one) → its tables, findings in words and ``arms_table``.
    """
    brief = "".join(
        f'<p class="brief notenough">{escape(_on(label))}{escape(words.problem)}</p>'
        for label, (_, words, _) in parts.items()
        if words.problem is not None
    )
    brief += "".join(map(_brief_verdict, verdicts)) or "".join(
        f'<p class="brief"><b>{escape(_on(label))}{escape(each.heading)}</b> {escape(each.headline)}</p>'
        for label, (_, words, _) in parts.items()
        for each in words.statements
    )
    more = '<p class="more jump"><a href="#verdicts">verdicts in full</a></p>' if verdicts else ""
    task = find_task(results.plan)
    every = (results.metric, *list_titles(task), MAIN_CALIBRATION[task])
    metrics = dict.fromkeys(every) if len(parts) == 1 else [results.metric]
    figures = {
        label or EVALUATED[name].title: figure
        for label, (of_part, _, arms) in parts.items()
        for name in metrics
        if (figure := _figure(of_part, _with_means(of_part, arms, name), name)) is not None
    }
    what = "Metric:" if len(parts) == 1 else "Data set:"
    drawn = f"<div>{views(figures, 'figure-overview', what)}</div>" if figures else ""
    left_out = "".join(
        f'<p class="more">Left out: {escape(line)} (<a href="#left-out">Left out</a>).</p>'
        for line in describe_skipped_briefly(results.plan["skipped"])
    ).replace("; details in the report", "")
    body = f'<div class="overview"><div>{brief}{more}{left_out}</div>{drawn}</div>'
    return Section("overview", "Overview", "At a glance", body)


def notes_section(results: Results) -> Section | None:
    """Return the section with the notes of the study file, None without any."""
    paragraphs = re.split(r"\n\s*\n", results.plan.get("notes", "").strip())
    body = "".join(f'<p class="notes">{escape(each)}</p>' for each in paragraphs if each)
    return Section("notes", "Notes", "What its authors noted", body) if body else None


def _on(label: str) -> str:
    return f"{label}: " if label else ""


def _brief_verdict(verdict: Verdict) -> str:
    """Return one verdict in brief (HTML): the word, the claim, effect and interval, and what it is about."""
    claim, evidence = verdict.hypothesis.claim.strip().rstrip("."), verdict.evidence
    scope = "" if evidence.scope is None else f"; {evidence.units}, {evidence.scope.describe()}"
    return (
        f'<p class="brief {css_of(verdict)}"><b>{escape(sentence(verdict.verdict))}</b> {escape(claim)}.'
        f"<br><span>{escape(describe_effect(verdict) + scope)}</span></p>"
    )


def _columns(metric: str) -> tuple[str, str]:
    """Return the columns of the unshifted and the shifted value of a metric."""
    return name_unshifted(metric), name_over_shifts("mean", metric)


def _with_means(results: Results, arms: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the arms with mean and n of both values of a metric, which ``arms_table`` has for one metric alone."""
    for column in _columns(metric):
        if column in results.trials and f"{column}.mean" not in arms:
            found = results.complete.groupby("name")[column].agg(["mean", "count"])
            arms = arms.join(found.set_axis([f"{column}.mean", f"{column}.n"], axis=1), on="name")
    return arms


def _figure(results: Results, arms: pd.DataFrame, metric: str) -> Figure | None:
    clean, shifted = _columns(metric)
    if f"{clean}.mean" not in arms or f"{shifted}.mean" not in arms:
        return None
    shown, num_arms = sort_arms(arms, f"{shifted}.mean", metric)
    if not num_arms:
        return None
    trials = results.complete.assign(label=results.complete["name"].map(results.labels))
    more = f" The {MAX_ARMS} best of {num_arms} arms." if num_arms > MAX_ARMS else ""
    return draw_arms(
        shown,
        trials,
        columns=(clean, shifted),
        metric=metric,
        num_classes=len(results.plan["data"]["classes"]),
        note=f"Arms in order of the shifted mean.{more}",
    )


def sort_arms(arms: pd.DataFrame, column: str, metric: str, *, most: int = MAX_ARMS) -> tuple[pd.DataFrame, int]:
    """Return the best arms with a value in ``column``, the best first, and how many have one.

    Args:
        arms: one row per arm.
        column: column to sort by.
        metric: metric that it holds.
        most: largest number of arms to return.
    """
    defined = arms.dropna(subset=[column])
    ascending = not EVALUATED[metric].higher_is_better
    return defined.sort_values(column, ascending=ascending, kind="stable").iloc[:most], len(defined)


def draw_arms(
    arms: pd.DataFrame,
    trials: pd.DataFrame,
    *,
    columns: tuple[str, str],
    metric: str,
    num_classes: int,
    note: str,
    shifts: str = "all shifts",
) -> Figure:
    """Return the figure of arms, unshifted against shifted: large the means, small the replicates, and chance.

    Args:
        arms: arms in the order in which they are drawn, from above: name, label, ``planned``, and mean and n of both
            columns; at least one.
        trials: complete trials: name and label of the arm, replicate, and both columns.
        columns: column of the unshifted value, and of the mean under shift.
        metric: metric that they hold.
        num_classes: number of classes, for the chance level.
        note: order and choice of the arms, in words.
        shifts: what the mean under shift is over, in words.
    """
    clean, shifted = columns
    rows = {name: len(arms) - 1 - number for number, name in enumerate(arms["name"])}
    data = [*_dots(trials[trials["name"].isin(rows)], rows, columns), *_means(arms, rows, clean, shifted)]
    chance = find_chance(metric, num_classes)
    data += [] if chance is None else [_chance(chance, len(arms))]
    layout = layout_of(
        xaxis={"tickformat": ".0%", "zeroline": False, "title": {"text": EVALUATED[metric].title}},
        yaxis={"visible": False, "range": [-0.5, len(arms) - 0.1]},
        annotations=[_label(name, row) for name, row in zip(arms["label"], rows.values(), strict=True)],
    )
    layout["margin"] |= {"l": 8, "r": 12, "t": _HEAD, "b": _FOOT}
    return Figure(
        title="How much of each arm’s score is left under shift?",
        note=(
            f"{sentence(EVALUATED[metric].title)}: open dots unshifted, filled dots the mean over {shifts}; large the "
            f"mean of an arm, small its replicates (n ≤ {int(arms['planned'].max())}). {note}"
        ),
        data=data,
        layout=layout,
        height_px=_HEAD + _FOOT + _ROW * len(arms),
        axes=("value", "arm"),
    )


def _dots(trials: pd.DataFrame, rows: dict[str, int], columns: tuple[str, str]) -> list[dict[str, Any]]:
    """Return the small dots of all replicates."""
    y = [float(rows[name]) for name in trials["name"]]
    hover = [f"{escape(label)}, replicate {r}" for label, r in zip(trials["label"], trials["replicate"], strict=True)]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": floats(trials[column]),
            "y": y,
            "marker": {"size": 4.5, "color": hue, "opacity": 0.65, "symbol": symbol},
            "hovertext": hover,
            "hovertemplate": f"%{{hovertext}}<br>{what} %{{x:.1%}}, n = 1<extra></extra>",
            "showlegend": False,
            "meta": {"panel": what},
        }
        for (what, hue, symbol), column in zip(_LOOKS, columns, strict=True)
    ]


def _means(arms: pd.DataFrame, rows: dict[str, int], clean: str, shifted: str) -> list[dict[str, Any]]:
    """Return the line from unshifted to shifted of every arm, and its two large dots."""
    y = [float(rows[name]) for name in arms["name"]]
    before, after = floats(arms[f"{clean}.mean"]), floats(arms[f"{shifted}.mean"])
    lines: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "x": [value for pair in zip(before, after, strict=True) for value in (*pair, None)],
        "y": [value for row in y for value in (row, row, None)],
        "line": {"color": "#8a929c", "width": 1.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    hover = [escape(str(label)) for label in arms["label"]]
    traces = [lines]
    for (what, hue, symbol), values, column in zip(_LOOKS, (before, after), (clean, shifted), strict=True):
        marker = {"size": 10, "color": hue, "symbol": symbol, "line": {"width": 2, "color": hue}}
        traces.append({
            "type": "scatter",
            "mode": "markers",
            "name": what,
            "x": values,
            "y": y,
            "marker": marker,
            "hovertext": hover,
            "hovertemplate": f"%{{hovertext}}<br>{what} %{{x:.1%}}, n = %{{customdata[0]}}<extra></extra>",
            "customdata": [[int(n)] for n in arms[f"{column}.n"].fillna(0)],
            "meta": {"panel": "arm", "columns": ["n"]},
        })  # fmt: skip
    return traces


def _label(label: str, row: int) -> dict[str, Any]:
    """Return the name of an arm above its line: beside it there is no room on a telephone."""
    return {
        "text": escape(label),
        "x": 0,
        "y": row,
        "xref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
        "showarrow": False,
        "font": {"size": 11.5},
    }


def _chance(chance: float, num_rows: int) -> dict[str, Any]:
    """Return the line of what guessing scores; its name is in the legend, where it covers no label."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"chance, {100 * chance:.0f} %",
        "x": [chance, chance],
        "y": [-0.5, num_rows - 0.1],
        "line": CHANCE_LINE,
        "hoverinfo": "skip",
    }
