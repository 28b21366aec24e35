"""Results of an adaptive search: best configurations, importance of each choice, trials stopped early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.analysis.wording import plural
from orchestrator.planning.states import STOPPED
from orchestrator.search.outcomes import Outcome, average_curves, compute_outcome, read_curve
from orchestrator.search.sampler import SampledPoint, make_directions, make_trial
from orchestrator.study.search.config import SearchConfig
from orchestrator.study.search.space import Space, Value, make_dimension
from trainables.evaluation.metrics import is_higher_better

#: Fewest complete configurations for importances. Assumption: as many as a search proposes at random at its start.
MIN_CONFIGURATIONS = 10
#: Share of configurations that PED-ANOVA treats as best, and their smallest number, from Optuna's documentation.
_BEST_SHARE, _MIN_BEST = 0.1, 5
KINDS = {"ped_anova": "PED-ANOVA", "fanova": "fANOVA"}


@dataclass(frozen=True)
class Configuration:
    """One configuration that the search proposed, with its outcome."""

    name: str
    #: Factor or field → label, for those that apply to the configuration.
    levels: dict[str, str]
    #: None if a replicate is not complete, or a metric is undefined.
    outcome: Outcome | None

    @property
    def is_feasible(self) -> bool:
        """Whether the outcome is known and meets all constraints."""
        return self.outcome is not None and all(excess <= 0 for excess in self.outcome.excess.values())

    @property
    def values(self) -> tuple[float, ...]:
        """Values in the order of the objectives; the outcome must be known."""
        assert self.outcome is not None
        return self.outcome.values


@dataclass(frozen=True)
class Found:
    """Search of a study: its settings and the configurations it proposed."""

    config: SearchConfig
    #: Configurations in the order of proposal.
    configurations: tuple[Configuration, ...]
    #: Factor → labels, for factors with more than one.
    factors: dict[str, list[str]]

    @property
    def known(self) -> list[Configuration]:
        """Configurations with a known outcome."""
        return [each for each in self.configurations if each.outcome is not None]


def find_configurations(results: Results) -> Found | None:
    """Return the search of a study, None for a study without a search."""
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
    return compute_outcome(config, values)


# ------------------------------------------------------------------------------------------------ importance


def compute_importances(found: Found) -> pd.DataFrame:
    """Return one row per objective and dimension: its importance by PED-ANOVA and by fANOVA, each adding up to 1.

    fANOVA (Hutter et al. 2014) is the share of variance over the whole space, for dimensions that every configuration
    has; PED-ANOVA (Watanabe et al. 2023) measures which dimensions distinguish the best configurations from all. An
    objective has no rows with fewer than ``MIN_CONFIGURATIONS`` known configurations, or if all have the same value.
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
        point = SampledPoint(_numbers(found, each), {"trial": {}, "study": {}})
        study.add_trial(make_trial(space, point, Outcome("complete", (value,))))
    share = max(_BEST_SHARE, _MIN_BEST / len(values))
    evaluators = {
        "ped_anova": PedAnovaImportanceEvaluator(target_quantile=share),
        "fanova": FanovaImportanceEvaluator(seed=0),
    }
    return {kind: get_param_importances(study, evaluator=evaluator) for kind, evaluator in evaluators.items()}


def _numbers(found: Found, configuration: Configuration) -> dict[str, Value]:
    """Return the varied values of a configuration, with labels of numbers converted to numbers."""
    values: dict[str, Value] = {name: configuration.levels[name] for name in found.factors}
    for name, parameter in found.config.space.items():
        if name in configuration.levels:
            label = configuration.levels[name]
            dimension = make_dimension(name, parameter)
            values[name] = label if dimension.choices else int(label) if dimension.is_integer else float(label)
    return values


def find_best(found: Found) -> list[Configuration]:
    """Return feasible configurations: for one objective all, best first; for several the Pareto front in plan order."""
    known = [each for each in found.known if each.is_feasible]
    signs = np.array([1.0 if each.higher_is_better else -1.0 for each in found.config.objectives])
    scores = np.array([each.values for each in known]).reshape(len(known), len(signs)) * signs
    if len(signs) == 1:
        return [known[number] for number in np.argsort(-scores[:, 0], kind="stable")]
    at_least = (scores[:, None, :] >= scores[None, :, :]).all(axis=2)  # row is as good as column everywhere
    better = at_least & (scores[:, None, :] > scores[None, :, :]).any(axis=2)
    return [each for each, beaten in zip(known, better.any(axis=0), strict=True) if not beaten]


@dataclass(frozen=True)
class Stopped:
    """One configuration that was stopped early."""

    name: str
    #: Last epoch of the replicate that was trained longest, and the planned number of epochs.
    epoch: int
    num_epochs: int
    #: Value after that epoch of the metric that trials are judged by, mean over the replicates that have it; None if
    #: undefined.
    value: float | None


def find_stopped(results: Results, config: SearchConfig) -> list[Stopped]:
    """Return the early-stopped configurations, sorted by last epoch (latest first), then by value (best first)."""
    found = []
    sign = 1 if is_higher_better(config.stopping_metric) == config.objectives[0].higher_is_better else -1
    for name, group in results.trials[results.trials["name"].isin(results.stopped_arms)].groupby("name", sort=False):
        records = [results.records[signature] for signature in group["signature"] if signature in results.records]
        curve = average_curves([read_curve(config, record.epochs) for record in records])
        epoch = max(curve, default=0)
        num_epochs = max(record.config["config"]["training"]["epochs"] for record in records)
        found.append(Stopped(str(name), epoch, num_epochs, sign * curve[epoch] if curve else None))
    better = -1 if is_higher_better(config.stopping_metric) else 1
    return sorted(found, key=lambda each: (-each.epoch, 0.0 if each.value is None else better * each.value))


def count_epochs(results: Results) -> tuple[int, int]:
    """Return the number of epochs that early stopping saved, and the planned number over all trials that started."""
    saved = total = 0
    for record in results.records.values():
        num_epochs = record.config["config"]["training"]["epochs"]
        total += num_epochs
        if record.state == STOPPED:
            saved += num_epochs - len({line["epoch"] for line in record.epochs})
    return saved, total


def describe_stopped(results: Results, stopped: Sequence[Stopped]) -> str:
    """Return in words how many configurations were stopped early and how many epochs that saved."""
    saved, total = count_epochs(results)
    trials = int((results.trials["state"] == STOPPED).sum())
    share = f" ({100 * saved / total:.0f} %)" if total else ""
    return (
        f"{plural(len(stopped), 'configuration')} ({plural(trials, 'trial')}) stopped early, which saved {saved:,} of "
        f"{total:,} epochs{share}"
    )
