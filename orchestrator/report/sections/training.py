"""Report sections: training curves, and the cost of every arm in time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.costs import arm_costs_table, join_devices
from orchestrator.analysis.effects import Effect, rank_factors
from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.wording import plural
from orchestrator.ledger.durations import took_seconds
from orchestrator.planning.budget import Usage
from orchestrator.planning.states import COMPLETE
from orchestrator.report.curves import training_curves
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, embed, note, table
from orchestrator.report.style import (
    Figure,
    colour,
    describe_chance,
    first_colour_of,
    floats,
    layout_of,
    seed_dots,
    subsample_dots,
)

#: Ratio of dearest to cheapest arm above which the axis is logarithmic.
_LOG_FROM = 20.0


def cost_section(
    results: Results, costs: pd.DataFrame, effects: Sequence[Effect], usage: Usage | None
) -> Section | None:
    """Return the section with cost against mean shifted score and one row per arm, None if no trial took any time.

    Args:
        results: tables of the study.
        costs: ``costs_table(results)``.
        effects: effects on the mean shifted metric; the factor with the largest determines the colours.
        usage: time that the budget counts; None if its record is missing or damaged.
    """
    if costs.empty:
        return None
    arms = arm_costs_table(results, costs)
    figure = _figure(results, costs, effects)
    said = _text(results, costs) + _describe_usage(arms, usage)
    body = ("" if figure is None else embed(figure, "figure-cost")) + note(said) + _table(arms)
    return Section("cost", "Cost", "What does an arm take?", body)


def _text(results: Results, costs: pd.DataFrame) -> str:
    complete = costs["trial_seconds"].dropna()
    done = [stage for stage in results.stages if stage.state == COMPLETE]
    text = (
        f"{plural(len(complete), 'complete trial')}, {_hours(complete.sum() / 3600)} of trials on "
        f"{join_devices(costs['device']) or 'no device'}. Seconds are of training and all evaluations, epochs before "
        "an interruption included; where several trials share a device they count in full, so hours are an upper bound "
        "of what the devices were held."
    )
    if done:
        text += (
            f" {plural(len(done), 'stage')} took {_hours(sum(map(took_seconds, done)) / 3600)} more, shared equally "
            "among the trials planned to start from each: an arm of its own would pay for all of it."
        )
    if costs["peak_gpu_memory_mib"].notna().any():
        text += " GPU memory is what the process reserved at most, and its context."
    return text


def _describe_usage(arms: pd.DataFrame, usage: Usage | None) -> str:
    """Return in words how much time was lost, and why the table sums to less than the time that budgets count."""
    finished, lost, total = (float(arms[name].sum()) for name in ("finished_hours", "lost_hours", "hours"))
    text = f" All arms: {_hours(finished)} for what is complete"
    text += (
        f", {_hours(lost)} without a result (attempts that were lost or failed, trials that failed, were stopped early "
        f"or are unfinished), {_hours(total)} together."
        if lost
        else "; no attempt that was lost or failed has left a note."
    )
    if usage is not None and usage.slot_seconds / 3600 > total:
        held = usage.slot_seconds / 3600
        text += (
            f" Budgets count {_hours(held)}, all the time that slots had work: {_hours(held - total)} more, for "
            "starting processes, attempts cut off together with their driver or machine, and trials no longer planned."
        )
    return text


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _table(arms: pd.DataFrame) -> str:
    has_gpu = arms["peak_gpu_memory_mib"].notna().any()
    columns = [Column("arm"), Column("n", is_number=True), Column("seconds per trial", is_number=True)]
    columns += [Column("share of stages, s", is_number=True), Column("finished", is_number=True)]
    columns += [Column("without a result", is_number=True), Column("device time in all", is_number=True)]
    columns += [Column("peak memory, GiB", is_number=True)]
    columns += [Column("peak GPU memory, GiB", is_number=True)] if has_gpu else []
    rows = []
    for arm in arms.to_dict("records"):
        sd = arm["trial_seconds.sd"]
        spread = "" if pd.isna(sd) else f' <span class="sd">± {sd:,.1f}</span>'
        row = [
            Cell(escape(str(arm["label"]))),
            Cell(str(arm["n"]), arm["n"]),
            _number(arm["trial_seconds.mean"], ",.1f", spread),
            Cell(f"{arm['stage_seconds_per_trial']:,.1f}", arm["stage_seconds_per_trial"]),
            *(Cell(_hours(arm[name]) if arm[name] else "–", arm[name]) for name in ("finished_hours", "lost_hours")),
            Cell(_hours(arm["hours"]), arm["hours"]),
            _gib(arm["peak_rss_mib"]),
        ]
        rows.append([*row, _gib(arm["peak_gpu_memory_mib"])] if has_gpu else row)
    return table(columns, rows, tall=len(rows) > TALL_ROWS)


def _number(value: float | None, form: str, more: str = "") -> Cell:
    return Cell("–", "") if value is None or pd.isna(value) else Cell(f"{value:{form}}{more}", float(value))


def _gib(mib: float | None) -> Cell:
    return _number(None if mib is None else mib / 1024, ".2f")


def _figure(results: Results, costs: pd.DataFrame, effects: Sequence[Effect]) -> Figure | None:
    shifted = f"robustness/mean_{results.metric}"
    if shifted not in results.complete:
        return None
    order = rank_factors(results, effects)
    groups = ["name", *([f"arm/{order[0]}"] if order else [])]
    trials = costs.merge(results.complete[["signature", shifted, *groups[1:]]], on="signature").dropna(subset=[shifted])
    if trials.empty:
        return None
    trials = trials.assign(seconds=trials["trial_seconds"] + trials["stage_seconds"])
    means = trials.groupby(groups, sort=False)[["seconds", shifted]].agg(["mean", "std", "count"]).reset_index()
    drawn, subset = subsample_dots(trials["name"])
    seen = trials.iloc[drawn]
    data: list[dict[str, Any]] = []
    first = first_colour_of(results, order[0] if order else None)
    for index, level in enumerate(results.levels(order[0]) if order else [None], start=first):
        is_seed = np.ones(len(seen), bool) if level is None else (seen[groups[1]] == level).to_numpy()
        is_arm = np.ones(len(means), bool) if level is None else (means[groups[1]] == level).to_numpy()
        own = seen[is_seed]
        data.append(seed_dots(results, own, floats(own["seconds"].round(1)), shifted, (index, "%{x:.1f} s, %{y:.1%}")))
        data.append(_means(results, means[is_arm], shifted, (level, index)))
    spread = float(means[("seconds", "mean")].max() / max(float(means[("seconds", "mean")].min()), 1e-9))
    axis: dict[str, Any] = {"title": {"text": "seconds per trial, share of stages included"}, "zeroline": False}
    axis |= {"type": "log", "dtick": 1} if spread > _LOG_FROM else {"rangemode": "tozero"}
    title = f"mean shifted {TITLES[results.metric]}"
    layout = layout_of(xaxis=axis, yaxis={"title": {"text": title}, "tickformat": ".0%", "zeroline": False})
    layout["margin"] |= {"l": 72, "t": 40}
    hue = f" Colour: {order[0]}." if order else ""
    return Figure(
        title="Is robustness bought with training time?",
        note=(
            f"A large dot is an arm’s mean (n = {len(means)} arms, {len(trials)} trials), its bars ± one standard "
            f"deviation over replicates; small dots are its seeds.{hue}{describe_chance(results)}{subset}"
        ),
        data=data,
        layout=layout,
        height_px=400,
        axes=("seconds", title),
    )


def _means(results: Results, arms: pd.DataFrame, shifted: str, level: tuple[str | None, int]) -> dict[str, Any]:
    bars = {"thickness": 1, "width": 0, "color": colour(level[1])}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escape(level[0] or "arm"),
        "showlegend": level[0] is not None,
        "x": floats(arms[("seconds", "mean")]),
        "y": floats(arms[(shifted, "mean")]),
        "error_x": {"array": floats(arms[("seconds", "std")]), **bars},
        "error_y": {"array": floats(arms[(shifted, "std")]), **bars},
        "marker": {"size": 11, "color": colour(level[1]), "line": {"width": 1, "color": "#ffffff"}},
        "hovertext": [escape(results.labels[name]) for name in arms[("name", "")]],
        "hovertemplate": "%{hovertext}<br>%{x:.1f} s, %{y:.1%}, n = %{customdata[0]}<extra></extra>",
        "customdata": [[int(n)] for n in arms[(shifted, "count")]],
        "meta": {"panel": "arm", "columns": ["n"]},
    }


def training_section(results: Results, effects: Sequence[Effect]) -> Section | None:
    """Return the section with training curves, coloured by the factor with the largest effect; None without curves."""
    order = rank_factors(results, effects)
    signatures = results.trials["signature"]
    colours = results.trials[f"arm/{order[0]}"] if order else pd.Series("trial", index=signatures.index)
    levels = results.levels(order[0]) if order else ["trial"]
    first = first_colour_of(results, order[0] if order else None)
    figure = training_curves(results, dict(zip(signatures, colours, strict=True)), levels, first_colour=first)
    if figure is None:
        return None
    return Section("training", "Training", "Training", embed(figure, "figure-training"))
