"""The parts of the page, from tables, effects and examples. Each returns None when the study has nothing for it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from orchestrator.reconcile import COMPLETE
from orchestrator.report.answer import Answer, missing_pairs
from orchestrator.report.curves import severity_curves, training_curves
from orchestrator.report.differences import compute_differences, difference_map
from orchestrator.report.effects import Effect, rank_factors
from orchestrator.report.examples import Examples
from orchestrator.report.figures import effects_figure, heat_map
from orchestrator.report.html import Cell, Column, Section, callout, embed, note, table, views
from orchestrator.report.plot import sentence
from orchestrator.report.stain_grid import MARGIN, Grid, Line, compute_grid, stain_heat_maps, summarise_copies
from orchestrator.report.tables import METRICS, Results

#: Longer tables scroll inside the page.
TALL_ROWS = 24


def answer_section(answer: Answer) -> Section:
    """Return the findings in words."""
    if answer.problem is not None:
        return Section("answer", "Answer", "No answer yet", callout(answer.problem, "warn"))
    cards = "".join(
        f'<div class="answer{"" if number else " first"}"><p class="head">{escape(statement.heading)}</p>'
        f'<p class="main">{escape(statement.headline)}</p><p>{escape(statement.text)}</p></div>'
        for number, statement in enumerate(answer.statements)
    )
    return Section("answer", "Answer", "The answer in words", f'<div class="answers">{cards}</div>')


# ------------------------------------------------------------------------------------------------ arms


def arms_section(results: Results, arms: pd.DataFrame) -> Section:
    """Return the table of arms: mean ± sd over replicates, the replicates as dots, what is incomplete."""
    is_grid = "search" not in results.plan
    factors = [factor for factor in results.factors if is_grid and f"arm/{factor}" in arms]
    names = [Column(factor) for factor in factors] or [Column("arm")]
    chooser = results.measures[0].column if results.measures else None
    shifted = f"robustness/mean_{results.metric}"
    limits = _limits(results, shifted)
    columns = [*names, Column("complete", is_number=True)]
    columns += [Column(measure.short, is_number=True) for measure in results.measures]
    if limits:
        columns.append(Column(f"replicates, {100 * limits[0]:.0f}–{100 * limits[1]:.0f} %", sortable=False))
    eligible = arms[~arms["name"].isin(results.stopped_arms)]
    marks = {column: _best(eligible, column) for column in (f"val/{results.metric}", shifted)}
    tags = {marks[f"val/{results.metric}"]: "chosen"}
    tags[marks[shifted]] = "oracle" if marks[shifted] not in tags else "chosen and oracle"
    rows = []
    for _, arm in arms.iterrows():
        tag = tags.get(arm["name"]) if chooser and len(arms) > 1 else None
        row = [Cell(escape(arm[f"arm/{factor}"])) for factor in factors] or [Cell(escape(arm["label"]))]
        if tag:
            html = f'{row[-1].html}<br><span class="tag {tag.split()[0]}">{tag}</span>'
            row[-1] = Cell(html, value=arm["label"])
        row.append(_completeness(results, arm))
        row += [_measured(arms, arm, measure.column, measure.higher_is_better) for measure in results.measures]
        if limits:
            values = results.trials.loc[results.trials["name"] == arm["name"], shifted]
            row.append(Cell(_strip(values, limits)))
        rows.append(row)
    replicates = int(arms["planned"].max())
    text = (
        f"{sentence(METRICS[results.metric])} in %, mean ± standard deviation over replicates (n = {replicates} "
        "planned per arm); ECE, the expected calibration error, in % too, lower is better. Bold is the best of a "
        "column, and only the validation column may choose. The dots are the replicates’ mean shifted value. Click a "
        "heading to sort."
    )
    if replicates == 1:
        text += " With one replicate there is no standard deviation: differences between arms may be chance."
    return Section(
        "arms", "Arms", "How good is each arm?", note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
    )


def _limits(results: Results, column: str) -> tuple[float, float] | None:
    if column not in results.trials or not results.trials[column].notna().any():
        return None
    low, high = float(results.trials[column].min()), float(results.trials[column].max())
    return np.floor(20 * low) / 20, max(np.ceil(20 * high) / 20, np.floor(20 * low) / 20 + 0.05)


def _best(arms: pd.DataFrame, column: str) -> str | None:
    name = f"{column}.mean"
    return str(arms["name"].iloc[int(arms[name].argmax())]) if name in arms and len(arms) else None


def _completeness(results: Results, arm: pd.Series) -> Cell:
    text = f"{arm[COMPLETE]} / {arm['planned']}"
    if arm[COMPLETE] < arm["planned"]:
        states = [state for state in results.states if state != COMPLETE and arm[state]]
        lacking = ", ".join(f"{arm[state]} {state.replace('_', ' ')}" for state in states)
        text = f'{text}<br><span class="tag short">{lacking}</span>'
    return Cell(text, value=arm[COMPLETE])


def _measured(arms: pd.DataFrame, arm: pd.Series, column: str, higher_is_better: bool) -> Cell:
    mean, sd, n = (arm[f"{column}.{part}"] for part in ("mean", "sd", "n"))
    if pd.isna(mean):
        return Cell('<span class="sd">undefined</span>' if arm[COMPLETE] else '<span class="sd">–</span>', value="")
    every = arms[f"{column}.mean"]
    best = len(arms) > 1 and mean == (every.max() if higher_is_better else every.min())
    spread = f' <span class="sd">± {100 * sd:.1f}</span>' if not pd.isna(sd) else ' <span class="sd">n = 1</span>'
    if 1 < n < arm[COMPLETE]:
        spread += f' <span class="sd">n = {n}</span>'
    return Cell(f"{100 * mean:.1f}{spread}", value=float(mean), css="best" if best else "")


def _strip(values: pd.Series, limits: tuple[float, float]) -> str:
    low, high = limits
    dots = "".join(
        f'<circle cx="{4 + 102 * (value - low) / (high - low):.1f}" cy="8" r="3.5">'
        f"<title>{100 * value:.1f} %</title></circle>"
        for value in values.dropna()
    )
    return f'<svg class="strip" width="110" height="16" role="img"><line x1="4" x2="106" y1="8" y2="8"/>{dots}</svg>'


# ------------------------------------------------------------------------------------------------ figures


def effects_section(results: Results, effects: Mapping[str, Sequence[Effect]]) -> Section | None:
    """Return the main effects as a figure and a table; None without a factor that has two levels."""
    shown = {measure: rows for measure, rows in effects.items() if rows}
    if not shown:
        return None
    titles = {measure.column: measure.title for measure in results.measures}
    figure = effects_figure(shown, {column: titles.get(column, column) for column in shown})
    rows = [_effect_row(effect) for effect in next(iter(shown.values()))]
    columns = [
        Column("factor"),
        Column("level vs reference"),
        Column("difference, points", is_number=True),
        Column("95 % interval", is_number=True, sortable=False),
        Column("what the interval is over", sortable=False),
        Column("p over shift types", is_number=True),
        Column("p, Holm", is_number=True),
    ]
    lead = next(iter(shown))
    text = (
        f"Effects on {titles.get(lead, lead)}. p: two-sided Wilcoxon signed-rank test over the shift types’ mean "
        "differences, corrected after Holm for the number of rows; it asks whether the effect has the same sign across "
        "shifts, not across replicates."
    )
    body = embed(figure, "figure-effects") + note(text) + table(columns, rows)
    return Section("effects", "Effects", "Main effect of each factor", body)


def _effect_row(effect: Effect) -> list[Cell]:
    interval, resampled = effect.interval, effect.resampled
    if effect.num_missing:
        resampled += f"; {missing_pairs(effect.num_missing)}"
    p_value, p_holm = (_p(p) for p in (effect.p_value, effect.p_holm))
    if effect.p_value is not None:
        p_value = Cell(f'{p_value.html} <span class="sd">n = {effect.num_shifts}</span>', value=p_value.value)
    difference = effect.difference
    return [
        Cell(escape(effect.factor)),
        Cell(f'{escape(effect.level)} <span class="sd">vs {escape(effect.reference)}</span>'),
        Cell("–", "") if difference is None else Cell(f"{100 * difference:+.1f}", difference),
        Cell("–" if interval is None else f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}"),
        Cell(escape(resampled)),
        p_value,
        p_holm,
    ]


def _p(value: float | None) -> Cell:
    if value is None:
        return Cell("–", "")
    return Cell(f"{value:.3f}" if value >= 0.001 else "&lt; 0.001", value)


def shifts_section(results: Results, arms: pd.DataFrame, effects: Sequence[Effect]) -> Section | None:
    """Return heat map and severity curves (by each factor, and by arm), and the stain grid where there is one."""
    heat, grid, differences = heat_map(results), compute_grid(results), compute_differences(results)
    curves = {}
    for factor in rank_factors(results, effects):
        groups = dict(zip(results.trials["signature"], results.trials[f"arm/{factor}"], strict=True))
        levels = results.levels(factor)
        curves[factor] = severity_curves(results, groups, f"level of {factor}, over all other factors", shown=levels)
    groups = {s: results.labels[n] for s, n in zip(results.trials["signature"], results.trials["name"], strict=True)}
    column = f"val/{results.metric}.mean"
    ranked = arms.sort_values(column, ascending=False, kind="stable") if column in arms else arms
    curves["arm"] = severity_curves(results, groups, "arm", shown=list(ranked["label"]))
    drawn = {name: figure for name, figure in curves.items() if figure is not None}
    body = (
        ""
        if heat is None or not drawn
        else embed(heat, "figure-heat")
        + ("" if differences is None else embed(difference_map(results, differences), "figure-differences"))
        + views(drawn, "figure-severity", "One curve per")
    )
    if grid is not None:
        body += embed(stain_heat_maps(results, grid), "figure-stains") + _copies_table(results, grid)
    return Section("shifts", "Shifts", "Where does it break?", body) if body else None


def _copies_table(results: Results, grid: Grid) -> str:
    """Return mean, smallest value and share below the floor per arm, over the stain cells and over the other shifts."""
    columns = [Column("arm")]
    kinds = ("stain cells", "other shifts") if grid.scores.shape[1] else ("stain cells",)
    for kind in kinds:
        columns += [Column(f"{kind}: mean", is_number=True), Column("smallest", is_number=True)]
        columns.append(Column(f"below {100 * grid.floor:.0f} %", is_number=True))
    rows = []
    for name in grid.cells.index:
        other, stains = summarise_copies(grid, str(name))
        row = [Cell(escape(results.labels[str(name)]))]
        for line in (stains, other)[: len(kinds)]:
            row += _kept(line)
        rows.append(row)
    text = (
        f"Over {grid.cells.shape[1]} stain cells and {grid.scores.shape[1]} other copies of the test set, means "
        f"over replicates in %. The floor is {100 * MARGIN:.0f} points below the best arm’s unshifted score."
    )
    return note(text) + table(columns, rows)


def _kept(line: Line | None) -> list[Cell]:
    if line is None:
        return [Cell("–", ""), Cell("–", ""), Cell("–", "")]
    smallest = f'{100 * line.smallest:.1f} <span class="sd">{escape(line.where)}</span>'
    return [
        Cell(f"{100 * line.mean:.1f}", line.mean),
        Cell(smallest, line.smallest),
        Cell(f"{100 * line.share_below:.0f}", line.share_below),
    ]


def training_section(results: Results, effects: Sequence[Effect]) -> Section | None:
    """Return the training curves, coloured by the factor with the largest effect."""
    order = rank_factors(results, effects)
    signatures = results.trials["signature"]
    colours = results.trials[f"arm/{order[0]}"] if order else pd.Series("trial", index=signatures.index)
    levels = results.levels(order[0]) if order else ["trial"]
    figure = training_curves(results, dict(zip(signatures, colours, strict=True)), levels)
    if figure is None:
        return None
    return Section("training", "Training", "Training", embed(figure, "figure-training"))


# ------------------------------------------------------------------------------------------------ examples


def examples_section(examples: Examples | None, problem: str | None) -> Section | None:
    """Return the grid of shifted images, or why there is none; None when none was asked for."""
    title = "What do the shifts look like?"
    if examples is None:
        return Section("examples", "Examples", title, callout(problem, "warn")) if problem else None
    original = _image(examples.original, "unshifted", examples.scaled)
    head = "".join(f"<th>{severity}</th>" for severity in examples.severities)
    rows = []
    for shift, cells in examples.rows.items():
        name = shift.replace("_", " ")
        images = "".join(f"<td>{_image(png, f'{name}, strength {text}', examples.scaled)}</td>" for png, text in cells)
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{original}</td>{images}</tr>')
    half = (len(rows) + 1) // 2
    tables = "".join(
        f'<table class="examples"><thead><tr><th scope="row">severity</th><th>0</th>{head}</tr></thead>'
        f"<tbody>{''.join(part)}</tbody></table>"
        for part in (rows[:half], rows[half:])
    )
    scaled = " Scaled down for the page; shifted at full size." if examples.scaled else ""
    text = f"Test image {examples.image}, exactly as the models were given it.{scaled} Hover for the strength."
    return Section("examples", "Examples", title, f'{note(text)}<div class="scroll gallery">{tables}</div>')


def _image(png: bytes, text: str, smooth: bool) -> str:
    data = base64.b64encode(png).decode()
    css = ' class="smooth"' if smooth else ""
    return f'<img{css} src="data:image/png;base64,{data}" alt="{escape(text)}" title="{escape(text)}" loading="lazy">'
