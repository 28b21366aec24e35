"""Report section: what tuning chose for every arm, and how good its candidates were on validation."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.analysis.tuning import CANDIDATE, CHOSEN, TUNED, find_edges, read_numbers
from orchestrator.analysis.wording import plural, sentence
from orchestrator.planning.ceteris_paribus import read_matching
from orchestrator.planning.states import COMPLETE
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, note, table, views
from orchestrator.report.style import Figure, colour, first_colour_of, floats, layout_of, subsample_dots
from trainables.evaluation.metrics import find_metric

#: Most arms with an entry in the legend, and values with a tick of their own.
_MAX_NAMED = 12


def tuning_section(results: Results) -> Section | None:
    """Return the section on the choices of a tuning, None for a study without one."""
    if results.candidates is None:
        return None
    tuning, trials = results.plan["tuning"], results.candidates.trials
    num_chosen, num_units = int(trials[CHOSEN].sum()), len(results.trials)
    text = (
        f"{sentence(read_matching(results.plan))}. Every arm and replicate consists of its best candidate (of equal "
        "ones that with the lower validation loss), and everything on this page but the cost is about these alone. The "
        "spread over replicates contains that of tuning. All candidates are in trials.csv. Mean ± standard deviation "
        "over trials; that of the chosen is flattered by the choice."
    )
    body = note(text)
    if num_chosen < num_units:
        body += callout(
            f"{num_units - num_chosen} of {num_units} arms × replicates without a choice, because not all candidates "
            "are complete: they count as missing.",
            "bad",
        )
    edges = [
        f"{results.labels[edge.name]}: the {edge.end} of its values of {edge.field} in {edge.num_replicates} of "
        f"{plural(edge.num_chosen, 'replicate')}"
        for edge in find_edges(trials)
    ]
    if edges:
        body += callout(
            "At the end of what was tried in most replicates, so that a wider range may do better:", "warn", edges
        )
    if COMPLETE in set(trials["state"]) and tuning["metric"] in trials:
        body += _table(results, trials)
        figures = {field: figure for field in tuning["space"] if (figure := _figure(results, trials, field))}
        body += views(figures, "figure-tuning", "by") if figures else ""
    return Section("tuning", "Tuning", "What did tuning choose?", body)


def _table(results: Results, trials: pd.DataFrame) -> str:
    tuning = results.plan["tuning"]
    metric = tuning["metric"]
    columns = [Column("arm"), Column("candidates that differ", is_number=True), Column("replicates", is_number=True)]
    columns += [Column(f"chosen {field}", sortable=False) for field in tuning["space"]]
    columns += [Column(f"{metric}, chosen", is_number=True), Column("all candidates", is_number=True)]
    rows = []
    for name, group in trials.groupby("name", sort=False):
        chosen = group[group[CHOSEN]]
        row = [Cell(escape(results.labels[str(name)])), _number(group[CANDIDATE].nunique())]
        row += [_number(len(chosen))]
        row += [Cell(_describe_values(chosen, field)) for field in tuning["space"]]
        rows.append([*row, _score(metric, chosen), _score(metric, group[group["state"] == COMPLETE])])
    return table(columns, rows, tall=len(rows) > TALL_ROWS)


def _number(value: int) -> Cell:
    return Cell(str(value), value)


def _describe_values(chosen: pd.DataFrame, field: str) -> str:
    """Return the chosen values of a field, the most frequent first, with their numbers of replicates (HTML)."""
    column = f"{TUNED}{field}"
    counts = chosen[column].dropna().value_counts(sort=False) if column in chosen else pd.Series(dtype=int)
    if counts.empty:
        return '<span class="sd">–</span>'
    ordered = counts.sort_values(ascending=False, kind="stable")
    return "<br>".join(f'{escape(str(value))} <span class="sd">× {count}</span>' for value, count in ordered.items())


def _score(metric: str, rows: pd.DataFrame) -> Cell:
    values = rows[metric].dropna()
    if values.empty:
        return Cell('<span class="sd">–</span>', "")
    factor, form = (100, ".1f") if find_metric(metric).is_share else (1, ".3g")
    spread = f' <span class="sd">± {factor * values.std(ddof=1):{form}}</span>' if len(values) > 1 else ""
    return Cell(f"{factor * values.mean():{form}}{spread}", float(values.mean()))


def _figure(results: Results, trials: pd.DataFrame, field: str) -> Figure | None:
    """Return the figure of the metric by the value of a field, None if its values are names or no arm has it."""
    column, metric = f"{TUNED}{field}", results.plan["tuning"]["metric"]
    shown = trials.dropna(subset=[column, metric]) if column in trials else trials.head(0)
    values = read_numbers(shown[column]) if len(shown) else None
    if values is None:
        return None
    shown = shown.assign(value=values)
    drawn, subset = subsample_dots(shown["name"])
    data: list[dict[str, Any]] = []
    names = [str(name) for name in dict.fromkeys(shown["name"])]
    first = first_colour_of(results, None)
    indices = {name: index for index, name in enumerate(results.labels, start=first)}  # the same colour in every view
    for name in names:
        index = indices[name]
        own = shown[shown["name"] == name]
        means = own.groupby("value")[metric].mean()
        is_named = len(names) <= _MAX_NAMED
        data.append(
            {"type": "scatter", "mode": "lines", "x": means.index.tolist(), "y": floats(means), "hoverinfo": "skip"}
            | {
                "name": escape(results.labels[name]),
                "showlegend": is_named,
                "line": {"width": 1.5, "color": colour(index)},
            }
        )
        seen = shown.iloc[drawn]
        data += _dots(results, seen[seen["name"] == name], metric, index)
    axis: dict[str, Any] = {"title": {"text": escape(field)}, "zeroline": False}
    if results.plan["tuning"]["space"][field].get("log"):
        axis["type"] = "log"
    ticks = sorted(set(values.tolist()))
    if len(ticks) <= _MAX_NAMED:
        axis |= {"tickvals": ticks, "ticktext": [f"{tick:.3g}" for tick in ticks]}
    is_share = find_metric(metric).is_share
    layout = layout_of(
        xaxis=axis,
        yaxis={"title": {"text": escape(metric)}, "zeroline": False} | ({"tickformat": ".0%"} if is_share else {}),
    )
    layout["margin"] |= {"l": 72, "t": 40}
    return Figure(
        title="Which candidate was best on validation?",
        note=(
            f"A dot per candidate (n = {len(shown)} trials), filled if it was chosen; the line is the mean over "
            f"replicates. Colour: arm.{subset}"
        ),
        data=data,
        layout=layout,
        height_px=360,
        axes=(field, metric),
    )


def _dots(results: Results, rows: pd.DataFrame, metric: str, index: int) -> list[dict[str, Any]]:
    """Return the traces of an arm's candidates: those that were not chosen, and those that were."""
    looks: Sequence[tuple[bool, dict[str, Any]]] = (
        (False, {"size": 7, "symbol": "circle-open", "opacity": 0.7}),
        (True, {"size": 9, "symbol": "circle"}),
    )
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": own["value"].tolist(),
            "y": floats(own[metric]),
            "marker": look | {"color": colour(index)},
            "hovertext": [
                f"{escape(results.labels[name])}, replicate {replicate}, candidate {candidate}{', chosen' * chosen}"
                for name, replicate, candidate in zip(own["name"], own["replicate"], own[CANDIDATE], strict=True)
            ],
            "hovertemplate": "%{hovertext}<br>%{x:.4g}: %{y:.4g}, n = 1<extra></extra>",
            "showlegend": False,
        }
        for chosen, look in looks
        if len(own := rows[rows[CHOSEN] == chosen])
    ]
