"""What an arm takes to train and evaluate: seconds, device hours, memory, and its share of the stages before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.reconcile import COMPLETE
from orchestrator.report.effects import Effect, rank_factors
from orchestrator.report.html import Cell, Column, Section, embed, note, plural, table
from orchestrator.report.plot import Figure, colour, every_nth, floats, layout_of, seed_dots
from orchestrator.report.tables import METRICS, Results

#: Cheapest to dearest arm from which on the axis is logarithmic.
_LOG_FROM = 20.0

_TALL_ROWS = 24


def costs_table(results: Results) -> pd.DataFrame:
    """Return one row per complete trial: seconds, its share of the stages it starts from, memory, device.

    ``trial_seconds`` are of the attempt that completed it, from its start to its end: training and all evaluations. A
    stage's seconds are shared equally among all trials planned to start from it, complete or not.
    """
    users = Counter(need for trial in results.plan["trials"] for need in trial["needs"])
    took = {s.signature: s.result["duration_seconds"] for s in results.stages if s.result is not None}
    rows = []
    for trial in results.plan["trials"]:
        record = results.records.get(trial["signature"])
        result = record.result if record is not None else None
        if result is None:
            continue
        rows.append(
            {
                "signature": trial["signature"],
                "name": trial["name"],
                "replicate": trial["replicate"],
                "trial_seconds": float(result["duration_seconds"]),
                "stage_seconds": float(sum(took[need] / users[need] for need in trial["needs"] if need in took)),
                "peak_rss_mib": result.get("peak_rss_mib"),
                "peak_gpu_memory_mib": result.get("peak_gpu_memory_mib"),
                "device": result["environment"]["device"],
            }
        )
    columns = ["signature", "name", "replicate", "trial_seconds", "stage_seconds", "peak_rss_mib"]
    return pd.DataFrame(rows, columns=[*columns, "peak_gpu_memory_mib", "device"])


def arm_costs_table(results: Results, costs: pd.DataFrame) -> pd.DataFrame:
    """Return one row per arm in plan order: n, seconds (mean, sd), stage share, hours, peak memory, devices.

    Args:
        results: the study.
        costs: ``costs_table(results)``.
    """
    rows = []
    for name, group in costs.groupby("name", sort=False):
        seconds = group["trial_seconds"]
        total = seconds.sum() + group["stage_seconds"].sum()
        rows.append(
            {
                "name": name,
                "label": results.labels[str(name)],
                "n": len(group),
                "trial_seconds.mean": seconds.mean(),
                "trial_seconds.sd": seconds.std(ddof=1) if len(group) > 1 else None,
                "stage_seconds_per_trial": group["stage_seconds"].mean(),
                "hours": total / 3600,
                "peak_rss_mib": _largest(group["peak_rss_mib"]),
                "peak_gpu_memory_mib": _largest(group["peak_gpu_memory_mib"]),
                "devices": ", ".join(sorted(set(group["device"]))),
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["name", "label", "n"])


def _largest(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.max()) if len(known) else None


def cost_section(results: Results, costs: pd.DataFrame, effects: Sequence[Effect]) -> Section | None:
    """Return cost against mean shifted score, and a row per arm; None while nothing is complete.

    Args:
        results: the study.
        costs: ``costs_table(results)``.
        effects: on the mean shifted metric; the factor with the largest gives the colours.
    """
    if costs.empty:
        return None
    arms = arm_costs_table(results, costs)
    figure = _figure(results, costs, effects)
    body = ("" if figure is None else embed(figure, "figure-cost")) + note(_text(results, costs)) + _table(arms)
    return Section("cost", "Cost", "What does an arm take?", body)


def _text(results: Results, costs: pd.DataFrame) -> str:
    done = [stage for stage in results.stages if stage.state == COMPLETE]
    hours = costs["trial_seconds"].sum() / 3600
    text = (
        f"{plural(len(costs), 'complete trial')}, {_hours(hours)} of trials on {_listed(costs['device'])}. Seconds are "
        "of the attempt that completed a trial, training and all evaluations; where several trials share a device they "
        "count in full, so hours are an upper bound of what the devices were held."
    )
    if done:
        spent = sum(stage.result["duration_seconds"] for stage in done if stage.result is not None) / 3600
        text += (
            f" {plural(len(done), 'stage')} took {_hours(spent)} more, shared equally among the trials planned to "
            "start from each: an arm of its own would pay for all of it."
        )
    if costs["peak_gpu_memory_mib"].notna().any():
        text += " GPU memory is what the process reserved at most, and its context."
    return text


def _listed(devices: pd.Series) -> str:
    return ", ".join(sorted(set(devices)))


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _table(arms: pd.DataFrame) -> str:
    has_gpu = arms["peak_gpu_memory_mib"].notna().any()
    columns = [Column("arm"), Column("n", is_number=True), Column("seconds per trial", is_number=True)]
    columns += [Column("share of stages, s", is_number=True), Column("device time of the arm", is_number=True)]
    columns += [Column("peak memory, GiB", is_number=True)]
    columns += [Column("peak GPU memory, GiB", is_number=True)] if has_gpu else []
    rows = []
    for arm in arms.to_dict("records"):
        sd = arm["trial_seconds.sd"]
        spread = "" if pd.isna(sd) else f' <span class="sd">± {sd:,.1f}</span>'
        row = [
            Cell(escape(str(arm["label"]))),
            Cell(str(arm["n"]), arm["n"]),
            Cell(f"{arm['trial_seconds.mean']:,.1f}{spread}", arm["trial_seconds.mean"]),
            Cell(f"{arm['stage_seconds_per_trial']:,.1f}", arm["stage_seconds_per_trial"]),
            Cell(_hours(arm["hours"]), arm["hours"]),
            _gib(arm["peak_rss_mib"]),
        ]
        rows.append([*row, _gib(arm["peak_gpu_memory_mib"])] if has_gpu else row)
    return table(columns, rows, tall=len(rows) > _TALL_ROWS)


def _gib(mib: float | None) -> Cell:
    return Cell("–", "") if mib is None or pd.isna(mib) else Cell(f"{mib / 1024:.2f}", float(mib))


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
    drawn, subset = every_nth(trials["name"])
    seen = trials.iloc[drawn]
    data: list[dict[str, Any]] = []
    for index, level in enumerate(results.levels(order[0]) if order else [None]):
        is_seed = np.ones(len(seen), bool) if level is None else (seen[groups[1]] == level).to_numpy()
        is_arm = np.ones(len(means), bool) if level is None else (means[groups[1]] == level).to_numpy()
        own = seen[is_seed]
        data.append(seed_dots(results, own, floats(own["seconds"].round(1)), shifted, (index, "%{x:.1f} s, %{y:.1%}")))
        data.append(_means(results, means[is_arm], shifted, (level, index)))
    spread = float(means[("seconds", "mean")].max() / max(float(means[("seconds", "mean")].min()), 1e-9))
    axis: dict[str, Any] = {"title": {"text": "seconds per trial, share of stages included"}, "zeroline": False}
    axis |= {"type": "log", "dtick": 1} if spread > _LOG_FROM else {"rangemode": "tozero"}
    title = f"mean shifted {METRICS[results.metric]}"
    layout = layout_of(xaxis=axis, yaxis={"title": {"text": title}, "tickformat": ".0%", "zeroline": False})
    layout["margin"] |= {"l": 72, "t": 40}
    hue = f" Colour: {order[0]}." if order else ""
    return Figure(
        title="Is robustness bought with training time?",
        note=(
            f"A large dot is an arm’s mean (n = {len(means)} arms, {len(trials)} trials), its bars ± one standard "
            f"deviation over replicates; small dots are its seeds.{hue}{subset}"
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
        "hovertemplate": "%{hovertext}<br>%{x:.1f} s, %{y:.1%}<extra></extra>",
        "customdata": [[int(n)] for n in arms[(shifted, "count")]],
        "meta": {"panel": "arm", "columns": ["n"]},
    }
