"""Report sections: scores by shift and severity, stain grids, and example images."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

from orchestrator.analysis.differences import compute_differences
from orchestrator.analysis.effects import Effect, rank_factors
from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.stain_grid import MARGIN, Grid, Line, compute_grid, summarise_copies
from orchestrator.analysis.tables.evaluations import drops_table, type_averages
from orchestrator.analysis.wording import plural, sentence, word_strength
from orchestrator.ledger.record import Record
from orchestrator.report.curves import severity_curves
from orchestrator.report.examples import Examples
from orchestrator.report.heat_maps import difference_map, heat_map, stain_heat_maps
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, embed, note, table, views
from orchestrator.report.style import describe_chance, first_colour_of
from trainables.evaluation_config import word_targets


def shifts_section(results: Results, arms: pd.DataFrame, effects: Sequence[Effect]) -> Section | None:
    """Return the section with heat maps, severity curves (by each factor and by arm) and the stain grid, if any."""
    heat, grid = heat_map(results), compute_grid(results)
    differences = None if results.tested_on else compute_differences(results)  # of the same images alone
    curves = {}
    for factor in rank_factors(results, effects):
        groups = dict(zip(results.trials["signature"], results.trials[f"arm/{factor}"], strict=True))
        levels = results.levels(factor)
        curves[factor] = severity_curves(
            results,
            groups,
            f"level of {factor}, over all other factors",
            shown=levels,
            first_colour=first_colour_of(results, factor),
        )
    groups = {s: results.labels[n] for s, n in zip(results.trials["signature"], results.trials["name"], strict=True)}
    column = f"val/{results.metric}.mean"
    ranked = arms.sort_values(column, ascending=False, kind="stable") if column in arms else arms
    first = first_colour_of(results, None)
    curves["arm"] = severity_curves(results, groups, "arm", shown=list(ranked["label"]), first_colour=first)
    drawn = {name: figure for name, figure in curves.items() if figure is not None}
    body = (
        ""
        if heat is None or not drawn
        else embed(heat, "figure-heat")
        + ("" if differences is None else embed(difference_map(results, differences), "figure-differences"))
        + views(drawn, "figure-severity", "One curve per")
    )
    body += "".join(_matching_table(results, stage) for stage in results.stages if "matching" in (stage.result or {}))
    if heat is not None and results.families:
        body += _families_table(results) + _drops_table(results)
    if grid is not None:
        body += embed(stain_heat_maps(results, grid), "figure-stains") + _copies_table(results, grid)
    return Section("shifts", "Shifts", "Where does it break?", body) if body else None


def _find_other_strengths(results: Results, stage: Record) -> list[str]:
    """Return the shifts under which some trial was evaluated at another strength than the stage's result has now."""
    assert stage.result is not None
    users = {trial["signature"] for trial in results.plan["trials"] if stage.signature in trial["needs"]}
    chosen = {
        (shift, level): json.dumps(match["strength"]) if isinstance(match["strength"], list) else match["strength"]
        for shift, matches in stage.result["matching"]["shifts"].items()
        for level, match in enumerate(matches, 1)
    }
    rows = results.shifts[results.shifts["signature"].isin(users)] if len(results.shifts) else results.shifts
    used = rows[["shift", "severity", "strength"]].drop_duplicates() if len(rows) else rows
    return sorted(
        {
            str(shift)
            for shift, level, strength in (used.itertuples(index=False) if len(used) else ())
            if chosen.get((shift, level), strength) != strength
        }
    )


def _matching_table(results: Results, stage: Record) -> str:
    """Return a table of the strengths that a stage has chosen, with the loss of its reference at each."""
    assert stage.result is not None
    found = stage.result["matching"]
    levels = range(1, len(found["targets"]) + 1)
    rows = []
    for shift, matches in found["shifts"].items():
        row = [Cell(escape(shift.replace("_", " ")))]
        for match in matches:
            missed = "" if match["reached"] else ' <span class="tag short">not reached</span>'
            loss = f'<span class="sd">−{100 * match["loss"]:.1f} %</span>'.replace("−-", "+")
            row.append(Cell(f"{escape(word_strength(match['strength']))} {loss}{missed}", value=match["loss"]))
        rows.append(row)
    num_missed = sum(not match["reached"] for matches in found["shifts"].values() for match in matches)
    text = (
        f"{sentence(stage.config['name'])}: strengths chosen on its {found['num_images']:,} validation images "
        f"(replicate 0, balanced accuracy {100 * found['clean']:.1f} %, chance {100 * found['chance']:.1f} %), never "
        f"on test images: {word_targets(found['targets'])}. Each cell: the strength, and what the reference loses at "
        "it on those images."
    )
    if num_missed:
        text += (
            f" {plural(num_missed, 'target')} not reached: the strongest strength that is tried harms less, and stands "
            "in."
        )
    others = _find_other_strengths(results, stage)
    warning = (
        "Some trials were evaluated at other strengths than the stage’s result has now (it was made again, and came "
        f"out differently): {', '.join(others)}. Delete these trials and run the study again."
    )
    head = [Column("shift"), *(Column(f"severity {level}") for level in levels)]
    return note(text) + (callout(warning, "bad") if others else "") + table(head, rows)


def _families_table(results: Results) -> str:
    """Return a table with the mean of each arm under every family of shifts."""
    columns = {family: f"family/{family}/{results.metric}" for family in results.families}
    means = results.trials.groupby("name", sort=False)[list(columns.values())].mean()
    rows = [
        [Cell(escape(results.labels[str(name)]))]
        + [Cell("–", "") if pd.isna(value) else Cell(f"{100 * value:.1f}", float(value)) for value in row]
        for name, row in zip(means.index, means.to_numpy(), strict=True)
        if not np.isnan(row).all()
    ]
    listed = "; ".join(f"{family}: {', '.join(types)}" for family, types in results.families.items())
    text = (
        f"{TITLES[results.metric][:1].upper()}{TITLES[results.metric][1:]} by family of shifts in %: mean over "
        f"replicates, severities and the family’s shifts. {listed}.{describe_chance(results)}"
    )
    return note(text) + table(
        [Column("arm"), *(Column(family, is_number=True) for family in columns)], rows, tall=len(rows) > TALL_ROWS
    )


def _drops_table(results: Results) -> str:
    """Return a table with what each arm loses under shift, in all and under the type that takes most."""
    cells = results.cells(results.metric)
    absolute, relative = (
        type_averages(drops_table(cells, results.test_rows, results.metric, is_relative=each)) for each in (False, True)
    )
    arms = results.trials.set_index("signature")["name"]
    absolute, relative = (each.groupby(arms.reindex(each.index), sort=False).mean() for each in (absolute, relative))
    rows, undefined = [], []
    for name, drops, losses in zip(absolute.index, absolute.to_numpy(), relative.to_numpy(), strict=True):
        if np.isnan(drops).any():
            undefined.append(results.labels[str(name)])
            continue
        worst = int(drops.argmax())
        where = f' <span class="sd">{escape(str(absolute.columns[worst]).replace("_", " "))}</span>'
        row = [Cell(escape(results.labels[str(name)]))]
        for value, end in ((drops.mean(), ""), (losses.mean(), ""), (drops[worst], where), (losses[worst], where)):
            row.append(Cell("–", "") if np.isnan(value) else Cell(f"{100 * value:.1f}{end}", float(value)))
        rows.append(row)
    title = TITLES[results.metric]
    text = (
        f"Drop of {title} under shift: unshifted minus shifted in points, and as a share of the unshifted value "
        "in %; mean over replicates, severities and types of shift, and the type that takes most from the arm, "
        "picked as the largest, which flatters it."
        + (f" Left out, without a value under some type: {', '.join(undefined)}." if undefined else "")
    )
    columns = ("drop, points", "relative drop, %", "largest drop, points", "its relative drop, %")
    head = [Column("arm"), *(Column(column, is_number=True) for column in columns)]
    return note(text) + table(head, rows, tall=len(rows) > TALL_ROWS) if rows else ""


def _copies_table(results: Results, grid: Grid) -> str:
    """Return a table with mean, smallest and share below the floor per arm, over stain cells and over other shifts."""
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
        f"{describe_chance(results)}"
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


# ------------------------------------------------------------------------------------------------ examples


def examples_section(examples: Examples | None, problem: str | None) -> Section | None:
    """Return the section with the grid of shifted images, or with ``problem`` if there is none; None without either."""
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
    return f'<img{css} src="data:image/png;base64,{data}" alt="{escape(text)}" title="{escape(text)}">'
