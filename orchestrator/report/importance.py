"""What an adaptive search has found: the best configurations, how it got there, and which choices mattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.report.html import Cell, Column, Section, callout, embed, note, plural, table
from orchestrator.report.plot import PALETTE, Figure, floats, layout_of
from orchestrator.report.stopped import Stopped, describe_stopped, find_stopped, stopped_table
from orchestrator.report.tables import METRICS, Results
from orchestrator.sampling import Outcome, Question, make_directions, make_trial
from orchestrator.search import judge
from orchestrator.search_config import Objective, SearchConfig
from orchestrator.search_space import Space, Value, make_dimension

#: With fewer complete configurations nothing is said about importance. Assumption: as many as random ones at the start.
MIN_CONFIGURATIONS = 10
#: PED-ANOVA asks what the best share of configurations has in common; Optuna's documentation wants 5 among them.
_BEST_SHARE, _MIN_BEST = 0.1, 5
_MAX_ROWS = 10

KINDS = {"ped_anova": "PED-ANOVA", "fanova": "fANOVA"}


@dataclass(frozen=True)
class Configuration:
    """One configuration that was searched, with what came of it."""

    name: str
    #: Factor or field → label, of those that applied.
    levels: dict[str, str]
    #: None: not all of its replicates are complete, or a metric is undefined.
    outcome: Outcome | None

    @property
    def is_feasible(self) -> bool:
        """Whether it is known and keeps to all constraints."""
        return self.outcome is not None and all(excess <= 0 for excess in self.outcome.excess.values())

    @property
    def values(self) -> tuple[float, ...]:
        """In the order of the objectives."""
        assert self.outcome is not None
        return self.outcome.values


@dataclass(frozen=True)
class Found:
    """A search as the report sees it."""

    config: SearchConfig
    #: In the order in which they were proposed.
    configurations: tuple[Configuration, ...]
    #: Dimension → labels it took, or ().
    factors: dict[str, list[str]]

    @property
    def known(self) -> list[Configuration]:
        """Those with an outcome."""
        return [each for each in self.configurations if each.outcome is not None]


def find_configurations(results: Results) -> Found | None:
    """Return what was searched, None for a study without a search."""
    said = results.plan.get("search")
    if said is None:
        return None
    config = SearchConfig.model_validate({key: value for key, value in said.items() if key != "is_oracle"})
    trials = results.trials
    arms = {trial["name"]: trial["arm"] for trial in results.plan["trials"]}
    found = []
    for name, group in trials.groupby("name", sort=False):
        levels = {str(factor): str(level) for factor, level in arms[name].items()}
        found.append(Configuration(str(name), levels, _judge(config, results, group)))
    varied = {factor: list(map(str, labels)) for factor, labels in results.plan["factors"].items() if len(labels) > 1}
    return Found(config, tuple(found), varied)


def _judge(config: SearchConfig, results: Results, group: pd.DataFrame) -> Outcome | None:
    values: dict[str, list[float]] = {}
    for name in config.metrics:
        if name == "num_parameters":
            done = [results.records[s].result for s in group["signature"] if s in results.records]
            column = pd.Series([None if each is None else each[name] for each in done], dtype=float)
        else:
            column = group[name] if name in group else pd.Series(dtype=float)
        if len(column) < len(group) or column.isna().any() or str(group["name"].iloc[0]) in results.stopped_arms:
            return None
        values[name] = [float(value) for value in column]
    return judge(config, values)


# ------------------------------------------------------------------------------------------------ importance


def compute_importances(found: Found) -> pd.DataFrame:
    """Return one row per objective and dimension: its importance by PED-ANOVA and by fANOVA, each adding up to 1.

    fANOVA (Hutter et al. 2014) is the share of variance over the whole space, of dimensions that every configuration
    has; PED-ANOVA (Watanabe et al. 2023) asks what tells the best configurations from all. Empty with too few
    configurations, or where all are alike.
    """
    rows: list[dict[str, Any]] = []
    for number, objective in enumerate(found.config.objectives):
        values = [each.values[number] for each in found.known]
        if len(values) >= MIN_CONFIGURATIONS and len(set(values)) > 1:
            shares = _evaluate(found, number, values)
            names = dict.fromkeys([*shares["ped_anova"], *shares["fanova"]])
            rows += [
                {"objective": objective.metric, "dimension": name}
                | {kind: shares[kind].get(name) for kind in KINDS}
                | {"num_configurations": len(values)}
                for name in names
            ]
    columns = ["objective", "dimension", *KINDS, "num_configurations"]
    return pd.DataFrame(rows, columns=columns)


def _evaluate(found: Found, number: int, values: Sequence[float]) -> dict[str, dict[str, float]]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=make_directions(found.config)[number])
    space = Space([], found.config.space, factors=found.factors)
    for each, value in zip(found.known, values, strict=True):
        question = Question(_numbers(found, each), {"trial": {}, "study": {}})
        study.add_trial(make_trial(space, question, Outcome("complete", (value,))))
    share = max(_BEST_SHARE, _MIN_BEST / len(values))
    evaluators = {
        "ped_anova": PedAnovaImportanceEvaluator(target_quantile=share),
        "fanova": FanovaImportanceEvaluator(seed=0),
    }
    return {kind: get_param_importances(study, evaluator=evaluator) for kind, evaluator in evaluators.items()}


def _numbers(found: Found, configuration: Configuration) -> dict[str, Value]:
    """Return the values that vary, numbers as numbers."""
    values: dict[str, Value] = {name: configuration.levels[name] for name in found.factors}
    for name, parameter in found.config.space.items():
        if name in configuration.levels:
            label = configuration.levels[name]
            dimension = make_dimension(name, parameter)
            values[name] = label if dimension.choices else int(label) if dimension.is_integer else float(label)
    return values


# ------------------------------------------------------------------------------------------------ the page


def search_section(results: Results) -> Section | None:
    """Return what the search has found; None for a study without one."""
    found = find_configurations(results)
    if found is None:
        return None
    stopped = find_stopped(results, found.config)
    body = note(_describe(found, results, stopped))
    if found.config.is_oracle:
        guides = [each.metric for each in (*found.config.objectives, *found.config.constraints) if not each.is_honest]
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
        text += f" The answer in words looks at validation {METRICS[results.metric]} alone."
    return text


def find_best(found: Found) -> list[Configuration]:
    """Return the best feasible configurations: of one objective in order, of several the Pareto front in plan order."""
    known = [each for each in found.known if each.is_feasible]
    signs = np.array([1.0 if each.higher_is_better else -1.0 for each in found.config.objectives])
    scores = np.array([each.values for each in known]).reshape(len(known), len(signs)) * signs
    if len(signs) == 1:
        return [known[number] for number in np.argsort(-scores[:, 0], kind="stable")]
    at_least = (scores[:, None, :] >= scores[None, :, :]).all(axis=2)  # row is as good as column everywhere
    better = at_least & (scores[:, None, :] > scores[None, :, :]).any(axis=2)
    return [each for each, beaten in zip(known, better.any(axis=0), strict=True) if not beaten]


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
    """Return the objective of every configuration in the order of proposal, and the best so far."""
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
    line = {"color": PALETTE[1], "width": 2, "shape": "hv"}
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
    """Return the first two objectives of every configuration, those on the Pareto front marked."""
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
        "marker": {"size": 8, "opacity": 0.75, "color": PALETTE[0 if index == 0 else 1]},
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
