"""Ranges over simulated runs, the critical path in words, and what would shorten it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.driver.simulation.cluster import Cluster
from orchestrator.driver.simulation.outcome import Outcome, Step
from orchestrator.driver.terminal.time_left import format_duration

#: Quantiles of a range that has 90 % of the runs in it.
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True)
class Range:
    """Median of a figure over the simulated runs, and the range that has 90 % of them."""

    median: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return the three numbers."""
        return {"median": self.median, "p5": self.low, "p95": self.high}


@dataclass(frozen=True)
class Summary:
    """Summary of simulated runs of one scenario."""

    #: Name of each figure → its range.
    figures: Mapping[str, Range]
    #: The run whose makespan is the median.
    typical: Outcome
    advice: str

    def as_json(self) -> dict[str, Any]:
        """Return ranges, critical path of the typical run and advice as JSON values."""
        return {
            "figures": {name: found.as_json() for name, found in self.figures.items()},
            "critical_path": [vars(step) for step in self.typical.path],
            "advice": self.advice,
        }


def summarise(outcomes: Sequence[Outcome], cluster: Cluster, *, price: float | None) -> Summary:
    """Return the summary of the outcomes of one scenario.

    Args:
        outcomes: simulated runs, at least one.
        cluster: their cluster.
        price: price of a GPU for an hour; of a node without GPUs. None: unknown.
    """
    read: dict[str, Callable[[Outcome], float]] = {
        "makespan_seconds": lambda each: each.makespan,
        "utilisation": lambda each: each.utilisation,
        "node_hours": lambda each: each.node_hours,
        "gpu_hours": lambda each: each.gpu_hours,
        "lost_seconds": lambda each: each.lost,
        "nodes_lost": lambda each: each.nodes_lost,
        "attempts_lost": lambda each: each.attempts_lost,
        "complete": lambda each: each.complete,
        "failed": lambda each: each.failed,
        "stopped_early": lambda each: each.stopped_early,
        "held_back": lambda each: each.held_back,
        "longest_chain_seconds": lambda each: each.longest_chain,
        "driver_busy": lambda each: each.driver_busy,
        "tracking_behind_seconds": lambda each: each.tracking_behind,
    }
    if price is not None:
        read["cost"] = lambda each: price * (each.gpu_hours if cluster.gpus else each.node_hours)
    typical = sorted(outcomes, key=lambda each: each.makespan)[len(outcomes) // 2]
    figures = {name: _find_range([find(each) for each in outcomes]) for name, find in read.items()}
    return Summary(figures, typical, advise(typical, cluster))


def _find_range(values: Sequence[float]) -> Range:
    low, median, high = np.quantile(values, [_LOW, 0.5, _HIGH]).tolist()
    return Range(median, low, high)


def describe_path(path: Sequence[Step]) -> list[str]:
    """Return the critical path in words, neighbouring trials of one slot as one phrase."""
    phrases = []
    for is_stage, group in itertools.groupby(path, key=lambda step: step.kind == "stage"):
        steps = list(group)
        seconds = format_duration(sum(step.seconds for step in steps))
        if is_stage or len(steps) == 1:
            phrases += [f"{step.label} ({format_duration(step.seconds)})" for step in steps]
        else:
            phrases.append(f"{len(steps)} trials one after another in a slot ({seconds}), the last {steps[-1].label}")
    return phrases


def advise(outcome: Outcome, cluster: Cluster) -> str:
    """Return a sentence: what keeps this run from being shorter, and what would shorten it."""
    slots = cluster.num_slots
    ideal = outcome.useful / slots
    chain, idle = outcome.longest_chain, outcome.makespan - max(ideal, outcome.longest_chain)
    stages = [step for step in outcome.path if step.kind == "stage"]
    if outcome.failed:
        return (
            f"Of {outcome.failed + outcome.complete} stages and trials {outcome.failed} fail, lost with their nodes "
            "more often than execution.max_retries allows: raise it, or make them shorter."
        )
    if outcome.lost > 0.1 * outcome.useful:
        return "Lost work takes more than a tenth: shorter epochs, or nodes that are lost less often, would shorten it."
    if outcome.driver_busy > 0.7:
        return (
            f"Tune's loop is busy for {outcome.driver_busy:.0%} of the time: several drivers, each with a share of the "
            "trials (run --shard), would shorten it; more nodes would not."
        )
    if chain >= ideal:
        longest = max(stages, key=lambda step: step.seconds).label if stages else "its longest trial"
        return (
            f"No cluster does it in less than {format_duration(chain)}, the longest chain of stages and a trial: "
            f"shortening {longest} helps, more slots do not."
        )
    if idle > 0.25 * outcome.makespan:
        return (
            f"{format_duration(idle)} are not work: starting, stages that others wait for, and slots that are idle at "
            f"the end; fewer slots than {slots} would cost less and take little longer."
        )
    return (
        f"Work fills the slots: twice as many would take about {format_duration(outcome.makespan - ideal / 2)}, and no "
        f"number of them less than {format_duration(chain)}."
    )
