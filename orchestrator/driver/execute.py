"""Execute a study's open stages and trials: in the driver's own slots first, on Ray Tune if enough work is left."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from rich.console import Console

from orchestrator.driver import child_process
from orchestrator.driver.estimate import expect_seconds
from orchestrator.driver.events import EventHandler, Observers
from orchestrator.driver.live.publish import Source, publishing
from orchestrator.driver.prepare import Prepared, resolve_execution
from orchestrator.driver.runtime import Runtime
from orchestrator.driver.terminal.progress import StudyProgress
from orchestrator.execution.chunk_settings import ChunkSettings
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.gpu_sharing import choose_gpus_per_trial, compute_next_share
from orchestrator.execution.local_executor import LocalExecutor
from orchestrator.execution.meter import Meter, saving_usage
from orchestrator.execution.resources import (
    JointSlots,
    Slots,
    check_fits,
    check_joint_fits,
    is_joint,
    needs_slot,
    num_local_slots,
)
from orchestrator.execution.shared_works import SharedWorks
from orchestrator.execution.work_queue import WorkQueue
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.usage import read_own_usage, read_shared_usage, record_dashboard
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.works import Work
from orchestrator.search.early_stopping import INTERRUPT_TIMEOUT_SECONDS, PATIENCE_SECONDS, EarlyStopping, Rule
from orchestrator.study.search.config import SearchConfig
from trainables.errors import TerminatedError
from trainables.evaluation.metrics import is_higher_better


def execute_open(prepared: Prepared, runtime: Runtime, lease: Lease, observers: Observers, *, console: Console) -> None:
    """Run all open stages and trials, and those that a search proposes meanwhile, on this machine or a cluster.

    Raises:
        DiskFullError: a disk is full. Everything is stopped, because other trials would fail in the same way.
    """
    actions = prepared.actions
    with (
        StudyProgress(
            console,
            works=actions.open,
            num_done=len(actions.skip),
            num_to_come=prepared.plan.num_to_come,
            expect_seconds=partial(expect_seconds, prepared),
        ) as progress,
        handling_signals(progress.print_line) as stop,
        stopping_early(prepared, stop) as early,
    ):
        handler = EventHandler(prepared, observers, progress, stop, early=early)
        meter = make_meter(prepared, on_spent=handler.report_spent)
        dispatcher = make_dispatcher(prepared, runtime, lease, handler, meter)
        source = make_source(prepared, handler, meter, dispatcher, progress)
        with (
            saving_usage(meter, prepared.ledger.root),
            publishing(source, prepared.ledger.root, print_line=progress.print_line),
            running_locally(prepared, runtime, dispatcher, stop=stop, print_line=progress.print_line) as needs_ray,
        ):
            if needs_ray:
                execute_in_ray(prepared, runtime, dispatcher, stop=stop, print_line=progress.print_line)
    handler.check()


def make_stopping_rule(config: SearchConfig, max_epochs: int) -> Rule:
    """Return the rule that decides which trials of a replicate stop early (``tune_schedulers.StoppingRule``)."""
    from orchestrator.cluster.tune_schedulers import StoppingRule  # imports ray

    assert config.early_stopping is not None
    higher_is_better = is_higher_better(config.stopping_metric)
    return StoppingRule(config.early_stopping, max_epochs=max_epochs, higher_is_better=higher_is_better)


@contextmanager
def stopping_early(prepared: Prepared, stop: threading.Event) -> Iterator[EarlyStopping | None]:
    """Judge the trials of a search while the body runs; yield its ``EarlyStopping``, None without one."""
    if prepared.search is None or not prepared.study.stops_early:
        yield None
        return
    early = EarlyStopping(prepared.search, prepared.ledger, make_stopping_rule, stop=stop)
    patience = INTERRUPT_TIMEOUT_SECONDS
    try:
        yield early
        patience = PATIENCE_SECONDS
    finally:
        early.finish(patience)


def make_dispatcher(
    prepared: Prepared,
    runtime: Runtime,
    lease: Lease,
    handler: EventHandler,
    meter: Meter,
    *,
    works: Sequence[Work] | None = None,
    shared: SharedWorks | None = None,
) -> Dispatcher:
    """Return the dispatcher of all slots.

    Args:
        prepared: the study.
        runtime: its processes.
        lease: lease of the driver.
        handler: handler of events.
        meter: counts the time of the slots.
        works: open stages and trials in the order of preference; None: in the plan's.
        shared: what other drivers have, None if there is one driver.
    """
    execution, ledger, actions = prepared.study.execution, prepared.ledger, prepared.actions
    settings = ChunkSettings(
        execution=resolve_execution(prepared.study, ledger).model_dump(mode="json"),
        token=runtime.token,
        module=child_process.MODULE,
        preload=runtime.preload,
        max_retries=execution.max_retries,
        stall_seconds=60.0 * execution.stall_minutes,
        orphan_seconds=60.0 * execution.orphan_minutes,
        describe=handler.describe,
        lease=lease.ticket,
    )
    complete = [work.signature for work in actions.skip]
    joint = partial(is_joint, execution)
    todo = WorkQueue(actions.open if works is None else works, complete=complete, num_slots=1, is_joint=joint)
    return Dispatcher(
        todo,
        ledger=ledger,
        settings=settings,
        on_event=handler.handle,
        find_more=handler.search_loop.find_more,
        meter=meter,
        shared=shared,
    )


def make_meter(prepared: Prepared, *, on_spent: Callable[[int], None]) -> Meter:
    """Return a meter that adds the time of this run to the usage of earlier runs."""
    execution = prepared.study.execution
    return Meter(
        read_own_usage(prepared.ledger),
        others=read_shared_usage(prepared.ledger),
        limits={} if execution.budget is None else execution.budget.limits(),
        price_per_gpu_hour=execution.price_per_gpu_hour,
        on_spent=on_spent,
    )


def make_source(
    prepared: Prepared, handler: EventHandler, meter: Meter, dispatcher: Dispatcher, progress: StudyProgress
) -> Source:
    """Return what the snapshots of a run are made of."""
    return Source(
        prepared.study.study,
        handler.live,
        meter,
        seconds_left=progress.estimate_seconds_left,
        num_slots=lambda: dispatcher.num_slots,
        execution=prepared.study.execution,
        before=meter.read(),
        since_ms=int(time.time() * 1000),
    )


@contextmanager
def running_locally(
    prepared: Prepared,
    runtime: Runtime,
    dispatcher: Dispatcher,
    *,
    stop: threading.Event,
    print_line: Callable[[str], None],
) -> Iterator[bool]:
    """Start the driver's own slots if it may have some, and yield whether Ray is needed.

    Yields once the work is done (False), or is known to take long enough for Ray (True).
    """
    own = runtime.local_resources
    if own is None:
        yield True
        return
    slots = resolve_slots(prepared, own, print_line=print_line)
    check_fits(own, slots)
    with LocalExecutor(dispatcher, num_local_slots(own, slots), stop=stop) as local:
        yield local.wait()


def execute_in_ray(
    prepared: Prepared,
    runtime: Runtime,
    dispatcher: Dispatcher,
    *,
    stop: threading.Event,
    print_line: Callable[[str], None],
) -> None:
    """Run the dispatcher's stages and trials on Ray, which replaces the driver's own slots.

    What several processes train and the slots of Tune take turns: the processes wait until there is room for all of
    them, which slots that are never idle would not leave. So do slots with a small and with a larger share of a GPU.
    """
    resources = runtime.wait_for_ray()
    from orchestrator.cluster import joint_trainer, tune_executor  # imports ray

    if runtime.dashboard is not None:
        print_line(f"Ray dashboard: {runtime.dashboard}")
        record_dashboard(prepared.ledger, runtime.dashboard)
    is_said = runtime.local_resources is not None  # reported when the local slots started
    slots = resolve_slots(prepared, resources, print_line=(lambda line: None) if is_said else print_line)
    if runtime.is_local:
        check_fits(resources, slots)
    study, execution = prepared.study, prepared.study.execution
    while True:
        for kind, number in (("stage", execution.processes_per_stage), ("trial", execution.processes_per_trial)):
            joint = JointSlots(number, slots.cpus, 1.0 if slots.gpus else 0.0)
            dispatcher.set_gpus(slots.gpus, joint=joint.num_processes * joint.gpus)
            if stop.is_set() or not dispatcher.has_joint(kind):
                continue
            if runtime.is_local:
                check_joint_fits(resources, joint, kind=kind)
            joint_trainer.execute(dispatcher, child_process.run_request, kind=kind, slots=joint, stop=stop)
        if stop.is_set() or dispatcher.is_finished:
            return
        tune_executor.execute(
            dispatcher,
            study=study.study,
            slots=slots,
            max_retries=execution.max_retries,
            stop=stop,
            probed=runtime.probed_nodes,
            print_line=print_line,
        )
        if stop.is_set() or not (dispatcher.waits_for_joint or dispatcher.waits_for_share):
            return
        slots = enlarge_share(slots, dispatcher, print_line=print_line)


def enlarge_share(slots: Slots, dispatcher: Dispatcher, *, print_line: Callable[[str], None]) -> Slots:
    """Return slots with the next larger share of a GPU, for what had no memory with the share of ``slots``.

    It is handed out again, with a message. If there is none, nothing changes.
    """
    if not dispatcher.waits_for_share:
        return slots
    larger = replace(slots, gpus=compute_next_share(slots.gpus))
    count = dispatcher.release_held()
    told = "1 stage or trial" if count == 1 else f"{count} stages and trials"
    print_line(f"{told} had no memory with {slots.gpus:g} of a GPU: from now on each takes {larger.gpus:g}")
    return larger


def resolve_slots(prepared: Prepared, resources: Mapping[str, float], *, print_line: Callable[[str], None]) -> Slots:
    """Return the resources of one trial and how many run at once; report the reason for its share of a GPU."""
    execution, ledger = prepared.study.execution, prepared.ledger
    gpus = execution.gpus_per_trial
    if gpus == "auto" and resources.get("GPU", 0.0) > 0 and execution.device != "cpu":
        records = [record for kind in ("stage", "trial") for record in ledger.records(kind, states=(COMPLETE,))]
        todo = [work for work in prepared.actions.open if needs_slot(execution, work)]
        share = choose_gpus_per_trial(todo, records, evaluation_batch_size=execution.evaluation_batch_size)
        print_line(share.reason)
        gpus = share.gpus
    elif gpus == "auto":
        gpus = 0.0
    limits = {} if execution.budget is None else execution.budget.limits()
    if gpus == 0.0 and limits.keys() & {"gpu_hours", "money"}:
        print_line("no trial takes a GPU here: gpu_hours and money in execution.budget limit nothing")
    return Slots(cpus=execution.cpus_per_trial, gpus=gpus, max_concurrent=execution.max_concurrent_trials)


@contextmanager
def handling_signals(announce: Callable[[str], None]) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT sets; a second one raises KeyboardInterrupt, any SIGTERM TerminatedError.

    A SIGTERM is followed by SIGKILL within seconds, for Ray's jobs after 3 s.
    """
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if number == signal.SIGTERM:
            raise TerminatedError
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        announce("stopping: running trials go on from their last epoch next time; once more to stop at once")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
