"""Replay a study's plan on a simulated cluster, several times, and summarise what it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from orchestrator.driver import child_process
from orchestrator.driver.estimate import time_like_studies, time_pilot
from orchestrator.driver.prepare import Prepared, resolve_execution
from orchestrator.driver.simulation.cluster import REPLACEMENT_MINUTES, Cluster, Overheads
from orchestrator.driver.simulation.course import follow_plan, follow_search, scratch_ledger
from orchestrator.driver.simulation.durations import (
    ASSUMED,
    GIVEN,
    Draw,
    Durations,
    give_durations,
    list_durations,
    measure_durations,
)
from orchestrator.driver.simulation.event_loop import EventLoop
from orchestrator.driver.simulation.outcome import Outcome
from orchestrator.driver.simulation.simulator import NextLoss, Simulator
from orchestrator.driver.simulation.slots import World
from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.gpu_sharing import choose_gpus_per_trial
from orchestrator.execution.meter import Meter
from orchestrator.execution.resources import JointSlots, has_gpu, is_joint, needs_slot, num_joint_slots
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.usage import read_usage
from orchestrator.planning.budget import Usage
from orchestrator.planning.reconcile import Actions
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.works import Work
from trainables.cpus import count_cpus
from trainables.errors import StudyError


@dataclass(frozen=True)
class Scenario:
    """Input of a simulation: stages and trials, their durations, the cluster."""

    prepared: Prepared
    #: Stages and trials to run, in the plan's order.
    works: tuple[Work, ...]
    #: Signatures that count as complete already.
    complete: tuple[str, ...]
    durations: Durations
    cluster: Cluster
    overheads: Overheads
    #: Usage of the budget before.
    usage: Usage = field(default_factory=Usage)


def choose_cluster(
    prepared: Prepared,
    *,
    nodes: int,
    gpus: int,
    cpus: int | None = None,
    spot_loss: float = 0.0,
    replacement_minutes: float | None = None,
) -> Cluster:
    """Return the cluster of a study: slots as a run would make them of these nodes.

    Args:
        prepared: the study.
        nodes: number of nodes.
        gpus: GPUs of a node.
        cpus: CPUs of a node; None: enough for its GPUs, or as many as this machine has if trials take no GPU.
        spot_loss: losses per node and hour.
        replacement_minutes: minutes until a lost node is replaced, None: ``REPLACEMENT_MINUTES``.

    Raises:
        StudyError: a trial does not fit on a node, or is trained by several processes.
    """
    execution = prepared.study.execution
    if execution.processes_per_trial > 1:
        raise StudyError(
            f"simulate: found execution.processes_per_trial: {execution.processes_per_trial}, and only trials of one "
            "process are simulated (stages of any number are); set it to 1"
        )
    share = execution.gpus_per_trial
    if share == "auto" and gpus:
        records = [each for kind in ("stage", "trial") for each in prepared.ledger.records(kind, states=(COMPLETE,))]
        todo = [work for work in prepared.actions.open if needs_slot(execution, work)]
        share = choose_gpus_per_trial(todo, records, evaluation_batch_size=execution.evaluation_batch_size).gpus
    elif share == "auto":
        share = 0.0
    found = {"CPU": cpus or (math.inf if share else count_cpus()), "GPU": float(gpus)}
    _check_fits(found, execution.cpus_per_trial, share)
    fits = [found["CPU"] / execution.cpus_per_trial] + ([gpus / share] if share else [])
    joint = JointSlots(execution.processes_per_stage, execution.cpus_per_trial, 1.0 if share else 0.0)
    minutes = REPLACEMENT_MINUTES if replacement_minutes is None else replacement_minutes
    return Cluster(
        nodes,
        int(min(fits) + 1e-9),
        gpus=gpus,
        gpus_per_slot=share,
        spot_loss=spot_loss,
        replacement_seconds=60 * minutes,
        replacement_origin=ASSUMED if replacement_minutes is None else GIVEN,
        max_concurrent=execution.max_concurrent_trials,
        is_local=nodes == 1 and not gpus and not spot_loss and execution.local_executor and joint.num_processes == 1,
        processes_per_stage=joint.num_processes,
        num_joint=num_joint_slots({name: nodes * number for name, number in found.items()}, joint),
    )


def _check_fits(node: Mapping[str, float], cpus: float, gpus: float) -> None:
    for name, asked, key in (("CPU", cpus, "cpus"), ("GPU", gpus, "gpus")):
        if asked > node[name]:
            raise StudyError(
                f"simulate: a trial asks for {asked:g} {name}s (execution.{key}_per_trial), and a node has "
                f"{node[name]:g}; give more with --{key}, or less with --set execution.{key}_per_trial=…"
            )


def make_scenario(
    prepared: Prepared, durations: Durations, cluster: Cluster, *, whole: bool, overheads: Overheads | None = None
) -> Scenario:
    """Return the scenario of what is open, or of the whole plan as if nothing had run yet.

    A search is always simulated from its beginning, since what it proposes depends on what has ended before.
    """
    if overheads is None:
        overheads = Overheads() if durations.overhead is None else Overheads(per_trial=durations.overhead)
    if prepared.search is not None:
        return Scenario(prepared, (), (), durations, cluster, overheads)
    if whole:
        actions = Actions(prepared.plan.works, (), (), (), ())
        if prepared.budget_status is not None:
            unspent = dict.fromkeys(prepared.budget_status.limits, 0.0)
            actions = replace(prepared.budget_status, taken=unspent, begun=frozenset()).hold_back(actions)
        return Scenario(prepared, actions.start, (), durations, cluster, overheads)
    done = tuple(work.signature for work in prepared.actions.skip)
    usage = read_usage(prepared.ledger)
    return Scenario(prepared, prepared.actions.open, done, durations, cluster, overheads, usage)


def find_durations(
    prepared: Prepared,
    *,
    seconds: str | None = None,
    stage_seconds: str | None = None,
    on_gpu: bool = False,
    allow_pilot: bool = False,
) -> Durations:
    """Return the durations of a study: as given, else of its finished trials, of a like study, or of a short pilot.

    Args:
        prepared: the study.
        seconds: seconds of a trial as the user has given them (``parse_seconds``).
        stage_seconds: the same of a stage.
        on_gpu: whether trials of like studies that ran on a GPU count; otherwise those on a CPU.
        allow_pilot: whether a pilot may be run.

    Raises:
        StudyError: nothing is given, nothing has finished, and no pilot is allowed.
    """
    if seconds is not None:
        return give_durations(seconds, stage_seconds)
    if stage_seconds is not None:
        raise StudyError(f"--stage-seconds: found {stage_seconds} without --seconds, expected both or none")
    measured = measure_durations(prepared)
    if measured is not None:
        return measured
    works = prepared.search.make_example_trials() if prepared.search else prepared.plan.works
    source, found = time_like_studies(prepared, works, on_gpu=on_gpu)
    is_on_cpu = not on_gpu
    if found is None and allow_pilot:
        source, found, _ = time_pilot(prepared, works)
        is_on_cpu = not has_gpu(prepared.study.execution)
    if found is None:
        raise StudyError(
            "simulate: looked for the time of a trial and found none: no trial of this study or of a like one has "
            "finished; give --seconds 90±20, or leave out --no-pilot"
        )
    return list_durations(source, works, found, is_on_cpu=is_on_cpu)


def simulate(scenario: Scenario, *, repeats: int, seed: int, next_loss: NextLoss | None = None) -> list[Outcome]:
    """Return the outcomes of several simulated runs, each with durations and losses of its own.

    Args:
        scenario: what is simulated.
        repeats: number of runs.
        seed: seed of all of them.
        next_loss: when nodes are lost; None: at random, as often as the cluster says.
    """
    seeds = [np.random.SeedSequence([seed, number]) for number in range(repeats)]
    return [simulate_once(scenario, each, next_loss) for each in seeds]


def simulate_once(scenario: Scenario, seed: np.random.SeedSequence, next_loss: NextLoss | None = None) -> Outcome:
    """Return the outcome of one simulated run."""
    prepared, execution, cluster = scenario.prepared, scenario.prepared.study.execution, scenario.cluster
    of_durations, of_losses, of_scores = map(np.random.default_rng, seed.spawn(3))
    loop = EventLoop()
    with scratch_ledger(prepared.study.study) as ledger:
        if prepared.search is None:
            course = follow_plan(scenario.works, ledger)
        else:
            course = follow_search(prepared, ledger, of_scores)
        world = World(loop, Draw(scenario.durations, of_durations), scenario.overheads, course.hooks)
        losses = next_loss or _draw_losses(cluster, of_losses)
        simulator = Simulator(world, cluster, losses, max_retries=execution.max_retries)

        def handle(what: str, work: Work, details: dict[str, Any]) -> None:
            simulator.handle(what, work, details)
            course.on_event(what, work, details)

        meter = Meter(
            scenario.usage,
            limits={} if execution.budget is None else execution.budget.limits(),
            price_per_gpu_hour=execution.price_per_gpu_hour,
            on_spent=simulator.report_spent,
            clock=lambda: loop.now,
        )
        joint = partial(is_joint, execution)
        queue = WorkQueue(course.works, complete=scenario.complete, num_slots=cluster.num_slots, is_joint=joint)
        settings = _make_settings(prepared)
        dispatcher = Dispatcher(
            queue, ledger=ledger, settings=settings, on_event=handle, find_more=course.find_more, meter=meter
        )
        outcome = simulator.run(dispatcher, queue)
        course.check()
        return outcome


def _draw_losses(cluster: Cluster, random: np.random.Generator) -> NextLoss:
    return lambda node: random.exponential(3600.0 / cluster.spot_loss) if cluster.spot_loss else math.inf


def _make_settings(prepared: Prepared) -> ChunkSettings:
    execution = prepared.study.execution
    return ChunkSettings(
        execution=resolve_execution(prepared.study).model_dump(mode="json"),
        token="simulation",
        module=child_process.MODULE,
        preload=(),
        max_retries=execution.max_retries,
        stall_seconds=60.0 * execution.stall_minutes,
        describe=lambda work: {"signature": work.signature},  # nothing is written
    )
