"""The numbers of a simulation that no study file has: each with its value and origin."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.driver.simulation.cluster import Cluster, Overheads
from orchestrator.driver.simulation.course import EPOCH_NOISE, REPLICATE_NOISE
from orchestrator.driver.simulation.durations import ASSUMED, BENCHMARK, GIVEN, Durations
from orchestrator.driver.terminal.time_left import format_duration


@dataclass(frozen=True)
class Assumption:
    """One number of a simulation in words."""

    name: str
    value: str
    #: "given", "measured", "benchmark" or "assumption".
    origin: str


def list_assumptions(
    durations: Durations, cluster: Cluster, overheads: Overheads, *, speed: float, stops_early: bool
) -> list[Assumption]:
    """Return the numbers on which a simulation rests.

    Args:
        durations: durations of stages and trials.
        cluster: simulated cluster.
        overheads: what scheduling takes.
        speed: how many times as fast the simulated machines are.
        stops_early: whether trials may be stopped early.
    """
    found = [
        Assumption("seconds of a trial", _describe_durations(durations), durations.origin),
        Assumption("their spread (lognormal)", f"{durations.sigma:.1%}", durations.spread_origin),
        Assumption("share of training in a trial", f"{durations.training_share:.0%}", durations.share_origin),
        Assumption("slot time beside each trial", f"{overheads.per_trial:.2f} s", durations.overhead_origin),
    ]
    if cluster.gpus and durations.is_on_cpu and speed == 1.0:
        found.append(Assumption("speed of a GPU against the CPU measured", "1 ×; give --speed", ASSUMED))
    elif speed != 1.0:
        found.append(Assumption("speed against that", f"{speed:g} ×", GIVEN))
    if stops_early:
        noise = f"drawn; noise {EPOCH_NOISE:g} sd at first, {REPLICATE_NOISE:g} of replicates"
        found.append(Assumption("scores that decide what stops", noise, ASSUMED))
    if cluster.is_local:
        found.append(Assumption("start of the first trial", f"{overheads.local_start:g} s", BENCHMARK))
    else:
        found.append(Assumption("start of Ray", f"{overheads.start:g} s", BENCHMARK))
        found.append(Assumption("start of a slot's actor", f"{overheads.actor:g} s", ASSUMED))
        found.append(Assumption("next chunk of a slot", f"{overheads.chunk:g} s", BENCHMARK))
        found.append(Assumption("Tune's loop, a message", f"{1000 * overheads.message:.0f} ms", BENCHMARK))
    found.append(Assumption("shipping a trial to MLflow", f"{1000 * overheads.ship:.0f} ms", BENCHMARK))
    if cluster.spot_loss:
        found += [
            Assumption("losses per node and hour", f"{cluster.spot_loss:g}, at random times", GIVEN),
            Assumption("until a loss is noticed", f"{overheads.notice:g} s", ASSUMED),
            Assumption(
                "until a node is replaced", format_duration(cluster.replacement_seconds), cluster.replacement_origin
            ),
        ]
        if cluster.processes_per_stage > 1:
            found.append(Assumption("losses during joint stages", "none", ASSUMED))
    return found


def _describe_durations(durations: Durations) -> str:
    trial = durations.by_kind["trial"].mean
    stage = durations.by_kind.get("stage")
    stages = "" if stage is None else f", of a stage {_format(stage.mean)}"
    return f"{_format(trial)}{stages} ({durations.source})"


def _format(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"
