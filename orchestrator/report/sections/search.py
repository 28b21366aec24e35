"""Report section: an adaptive search, its best configurations, history and importances."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd

from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.search_results import (
    KINDS,
    MIN_CONFIGURATIONS,
    Configuration,
    Found,
    Stopped,
    compute_importances,
    describe_stopped,
    find_best,
    find_configurations,
    find_stopped,
)
from orchestrator.analysis.wording import plural
from orchestrator.report.page import Cell, Column, Section, callout, embed, note, table
from orchestrator.report.style import HEADLINE, NEUTRAL, Figure, floats, layout_of
from orchestrator.study.search.config import Objective, SearchConfig

_MAX_ROWS = 10


# ------------------------------------------------------------------------------------------------ the page


def search_section(results: Results) -> Section | None:
    """Return the section on the results of a search, None for a study without one."""
    found = find_configurations(results)
    if found is None:
        return None
    stopped = find_stopped(results, found.config)
    body = note(_describe(found, results, stopped))
    if found.config.is_oracle:
        guides = [
            each.metric for each in (*found.config.objectives, *found.config.constraints) if not each.is_validation
        ]
        body += callout(
            f"Oracle: the search was guided by {', '.join(guides)}, which no honest choice knows. Its best "
            "configuration is a bound, and its score no estimate of what a model will do on new images.",
            "warn",
        )
    best = find_best(found)
    if not best:
        return Section("search", "Search", "What has the search found?", body + note("No configuration is known yet."))
    body += _table(found, best)
    figure = _history(found) if len(found.config.objectives) == 1 else _front(found, best)
    body += embed(figure, "figure-search") + _importances(found)
    body += stopped_table(results, found.config, stopped, [*found.factors, *found.config.space])
    return Section("search", "Search", "What has the search found?", body)


def _describe(found: Found, results: Results, stopped: Sequence[Stopped]) -> str:
    config = found.config
    goals = " and ".join(
        f"{'higher' if each.higher_is_better else 'lower'} {each.metric}{' (oracle)' * each.oracle}"
        for each in config.objectives
    )
    bounds = "".join(
        f", {each.metric}{' (oracle)' * each.oracle}"
        + (f" ≥ {each.at_least:g}" if each.at_least is not None else "")
        + (f" ≤ {each.at_most:g}" if each.at_most is not None else "")
        for each in config.constraints
    )
    how = {"mean": "mean", "worst": "worst", "lower_bound": "mean less one standard error"}[config.aggregate]
    to_come = config.num_trials - len(found.configurations)
    lacking = len(found.configurations) - len(found.known) - len(stopped)
    text = (
        f"Searched by {config.sampler.kind.replace('_', '-')} for {goals}{bounds}; {how} over "
        f"{plural(results.plan['replicates'], 'replicate')}. {plural(len(found.configurations), 'configuration')} of "
        f"{config.num_trials} proposed, {len(found.known)} complete"
    )
    text += f", {lacking} failed, undefined or not ended" if lacking else ""
    text += f", {describe_stopped(results, stopped)}" if stopped else ""
    text += f", {to_come} not proposed: the space has no more or the search has not ended" if to_come > 0 else ""
    text += ". The best of many is flattered by having been picked; train it anew with other seeds to know it."
    if config.constraints or [each.metric for each in config.objectives] != [f"validation/{results.metric}"]:
        text += f" The answer in words looks at validation {TITLES[results.metric]} alone."
    return text


def _table(found: Found, best: Sequence[Configuration]) -> str:
    names = [*found.factors, *found.config.space]
    columns = [Column(name) for name in names]
    columns += [Column(each.metric, is_number=True) for each in found.config.objectives]
    rows = []
    for number, each in enumerate(best[:_MAX_ROWS]):
        row = [
            Cell(escape(each.levels[name]) if name in each.levels else '<span class="sd">–</span>') for name in names
        ]
        css = "best" if number == 0 and len(found.config.objectives) == 1 else ""
        row += [Cell(f"{value:.4g}", value=value, css=css) for value in each.values]
        rows.append(row)
    infeasible = sum(not each.is_feasible for each in found.known)
    if len(found.config.objectives) > 1:
        text = (
            f"{plural(len(best), 'configuration')} on the Pareto front: no other is better in one and as good in all."
        )
    else:
        text = f"The best {len(rows)} of {len(best)}."
    text += f" {infeasible} break a constraint and are left out." if infeasible else ""
    if len(best) > len(rows):
        text += " All are in arms.csv."
    return note(text) + table(columns, rows)


def _history(found: Found) -> Figure:
    """Return a figure of the objective per configuration in the order of proposal, and the best so far."""
    (objective,) = found.config.objectives
    order = {each.name: number + 1 for number, each in enumerate(found.configurations)}
    data = []
    groups = {"keeps to the constraints" if found.config.constraints else "configuration": True}
    groups |= {"breaks a constraint": False} if found.config.constraints else {}
    for index, (title, feasible) in enumerate(groups.items()):
        shown = [each for each in found.known if each.is_feasible == feasible]
        data.append(
            _dots(title, shown, [order[each.name] for each in shown], [each.values[0] for each in shown], index)
        )
    feasible_ones = [each for each in found.known if each.is_feasible]
    values = pd.Series([each.values[0] for each in feasible_ones], dtype=float)
    best = values.cummax() if objective.higher_is_better else values.cummin()
    x = [order[each.name] for each in feasible_ones]
    line = {"color": HEADLINE, "width": 2, "shape": "hv"}
    data.append(
        {"type": "scatter", "mode": "lines", "name": "best so far", "x": x, "y": floats(best), "line": line}
        | {"hoverinfo": "skip"}
    )
    layout = layout_of(
        xaxis={"title": {"text": "configuration, in the order of proposal"}, "showgrid": False, "zeroline": False},
        yaxis={"title": {"text": escape(_title(objective))}},
    )
    return Figure(
        title="Did the search get better?",
        note=f"A dot per configuration, n = {len(found.known)}; the line is the best so far that may be chosen.",
        data=data,
        layout=layout,
        height_px=360,
    )


def _front(found: Found, best: Sequence[Configuration]) -> Figure:
    """Return a figure of the first two objectives per configuration, with the Pareto front marked."""
    first, second = found.config.objectives[:2]
    front = {each.name for each in best}
    data = []
    for index, (title, is_on) in enumerate((("other", False), ("Pareto front", True))):
        shown = [each for each in found.known if (each.name in front) == is_on]
        data.append(_dots(title, shown, [each.values[0] for each in shown], [each.values[1] for each in shown], index))
    layout = layout_of(
        xaxis={"title": {"text": escape(_title(first))}},
        yaxis={"title": {"text": escape(_title(second))}},
    )
    more = len(found.config.objectives) - 2
    return Figure(
        title="What has to be given up for what?",
        note=f"A dot per configuration, n = {len(found.known)}."
        + (f" {plural(more, 'further objective')} not shown, so a dot on the front may look beaten." if more else ""),
        data=data,
        layout=layout,
        height_px=420,
    )


def _title(objective: Objective) -> str:
    better = "higher" if objective.higher_is_better else "lower"
    return f"{objective.metric}{' (oracle)' * objective.oracle}, {better} is better"


def _dots(title: str, shown: Sequence[Configuration], x: Sequence[float], y: Sequence[float], index: int) -> Any:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": title,
        "x": floats(x),
        "y": floats(y),
        "hovertext": [escape(each.name) for each in shown],
        "hovertemplate": "%{hovertext}<br>%{x}, %{y:.4g}<extra></extra>",
        "marker": {"size": 8, "opacity": 0.75, "color": NEUTRAL if index == 0 else HEADLINE},
    }


def _importances(found: Found) -> str:
    frame = compute_importances(found)
    if frame.empty:
        return note(
            f"Importances are not shown: {plural(len(found.known), 'complete configuration')}, at least "
            f"{MIN_CONFIGURATIONS} that differ in the objective are needed."
        )
    columns = [Column("objective"), Column("choice")]
    columns += [Column(title, is_number=True) for title in KINDS.values()]
    rows = []
    for _, row in frame.iterrows():
        cells = [Cell(escape(row["objective"])), Cell(escape(row["dimension"]))]
        for kind in KINDS:
            value = row[kind]
            cells.append(Cell("–", "") if pd.isna(value) else Cell(f"{100 * value:.0f} %", float(value)))
        rows.append(cells)
    text = (
        f"n = {frame['num_configurations'].max()} configurations. fANOVA: share of the variance over the space, of "
        "choices that all configurations have; PED-ANOVA: what tells the best configurations from the rest. Both rest "
        "on a model of few points, and the search has looked where it was promising."
    )
    head = f"<figcaption><h3>Which choices mattered?</h3>{note(text)}</figcaption>"
    return f"<figure>{head}{table(columns, rows)}</figure>"


def stopped_table(results: Results, config: SearchConfig, stopped: Sequence[Stopped], names: Sequence[str]) -> str:
    """Return a table of the stopped configurations with their dimensions ``names`` (HTML), "" if there are none."""
    if not stopped:
        return ""
    arms = {trial["name"]: trial["arm"] for trial in results.plan["trials"]}
    columns = [Column(name) for name in names]
    columns += [Column("epochs", is_number=True), Column(f"{config.stopping_metric} then", is_number=True)]
    rows = []
    for each in stopped[:_MAX_ROWS]:
        levels = arms[each.name]
        row = [Cell(escape(str(levels[name])) if name in levels else '<span class="sd">–</span>') for name in names]
        row.append(Cell(f'{each.epoch} <span class="sd">of {each.num_epochs}</span>', value=each.epoch))
        value = "undefined" if each.value is None else f"{each.value:.4g}"
        row.append(Cell(value, value="" if each.value is None else each.value))
        rows.append(row)
    rest = len(stopped) - len(rows)
    text = "They fell behind, and not all of their replicates were trained to the end: none of them can be chosen."
    text += " All of them are in arms.csv." if rest else ""
    return f"<h3>Which were stopped early?</h3>{note(text)}{table(columns, rows)}"
