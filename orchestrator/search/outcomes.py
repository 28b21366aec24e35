"""Metrics of a search's configurations, from the results and curves of their trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.planning.states import COMPLETE
from orchestrator.study.search.config import (
    SearchConfig,
    aggregate,
    find_epoch_metric,
)
from trainables.evaluation.metrics import is_higher_better

#: State of a configuration with a replicate that has not ended; the other states are in ``planning.states``.
RUNNING = "running"


@dataclass(frozen=True)
class Outcome:
    """State and values of a proposal, as far as they are known."""

    state: str
    #: Values of the objectives, in their order.
    values: tuple[float, ...] = ()
    #: Metric → excess over the constraint on it; 0 or less satisfies the constraint.
    excess: Mapping[str, float] = field(default_factory=dict)
    #: Reason of a failure or of an early stop.
    reason: str = ""
    #: Epoch → value after it, in the direction of the objective; only with early stopping.
    curve: Mapping[int, float] = field(default_factory=dict)


def compute_outcome(config: SearchConfig, values: Mapping[str, Sequence[float]]) -> Outcome:
    """Return the outcome of a configuration whose replicates are all complete.

    Args:
        config: configuration of the search.
        values: metric → its value in each replicate.
    """
    found = {
        each.metric: aggregate(values[each.metric], config.aggregate, higher_is_better=each.higher_is_better)
        for each in (*config.objectives, *config.constraints)
    }
    excess: dict[str, float] = {}
    for constraint in config.constraints:
        broken = constraint.compute_excess(found[constraint.metric])
        excess[constraint.metric] = max(broken, excess.get(constraint.metric, broken))
    return Outcome(COMPLETE, tuple(found[each.metric] for each in config.objectives), excess)


def read_curve(config: SearchConfig, lines: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return epoch → value of the metric that trials are judged by, from the lines of ``epochs.jsonl``.

    The sign is changed if the metric and the first objective differ in whether higher is better: samplers know only one
    direction.
    """
    metric = find_epoch_metric(config.stopping_metric)
    sign = 1 if is_higher_better(config.stopping_metric) == config.objectives[0].higher_is_better else -1
    found = {line["epoch"]: line["metrics"].get(metric) for line in lines}
    return {epoch: sign * value for epoch, value in found.items() if value is not None}


def average_curves(curves: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return epoch → mean over the replicates that have this epoch."""
    epochs = sorted({epoch for curve in curves for epoch in curve})
    found = {epoch: [curve[epoch] for curve in curves if epoch in curve] for epoch in epochs}
    return {epoch: sum(values) / len(values) for epoch, values in found.items()}
