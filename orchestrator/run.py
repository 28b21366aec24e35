"""MAIN PATH: study → plan → reconcile with the ledger → execute what is open → report. Reads like a paragraph.

``run`` and ``resume`` are the same: what the ledger says is complete is not touched, what was interrupted goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orchestrator.announce import announce, say, warn
from orchestrator.backstage import Backstage
from orchestrator.budget import Meter, keeping, read_usage
from orchestrator.desk import Desk, Job
from orchestrator.head_start import HeadStart
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger, describe_upstream, describe_work
from orchestrator.notify import Notifier
from orchestrator.open_work import OpenWork
from orchestrator.packing import choose_gpus_per_trial
from orchestrator.plan import Work
from orchestrator.prepare import Prepared, find_git_commit, prepare, resolve_execution
from orchestrator.progress import StudyProgress
from orchestrator.reconcile import ABSENT, COMPLETE, FAILED, INTERRUPTED
from orchestrator.report.source import DEFAULT_METRIC, Report, Source, read_report
from orchestrator.resources import Slots, check_fits, num_own_slots
from orchestrator.search_storage import resolve_storage
from orchestrator.searching import Growth, look_again, showing, write_grown_plan
from orchestrator.settled import compute_state, forget, is_shipped
from orchestrator.shipping import MAX_WAIT_SECONDS, PATIENCE_SECONDS, Shipper
from orchestrator.study import Study
from orchestrator.summary import Summary, account, summarise
from orchestrator.tracking_store import TrackingError, resolve_tracking_uri
from orchestrator.zygote import DISK_FULL
from trainables.errors import DiskFullError, redact

if TYPE_CHECKING:
    from orchestrator.tracking import Tracker

#: How long records are still shipped by a driver that has been told to stop at once.
_HASTE_SECONDS = 1.0


def run_study(
    study: Study,
    *,
    storage: str,
    mlflow: str | None,
    address: str | None,
    console: Console,
    retry_failed: bool = False,
) -> Summary:
    """Bring the ledger to what the study file says, and write the report; return how the study stands.

    Args:
        study: the study.
        storage: ledger root, path or URI.
        mlflow: tracking URI; None: the environment, the study file, or a SQLite file beside the ledger.
        address: Ray cluster; None: this machine.
        console: progress and messages.
        retry_failed: try failed trials again.

    Raises:
        RobustSweepError: before anything starts, when the request is wrong.
    """
    ledger = Ledger(storage, study.study)
    tracking_uri = resolve_tracking_uri(ledger, flag=mlflow, study_value=study.execution.mlflow)
    resolve_storage(ledger, study.execution.optuna)  # a wrong address is refused before anything starts
    say(console, "study", f"{study.study}: {study.question}")
    say(console, "ledger", ledger.root.uri)
    say(console, "MLflow", redact(tracking_uri))
    lease = Lease(ledger)
    lease.check()  # before the data are read, which may take long
    with Backstage(study, address=address or study.execution.address) as backstage:
        if not ledger.root.exists("plan.json"):
            backstage.start_zygote()  # a new study: something will run, and importing torch takes seconds
        prepared = prepare(study, storage=storage, retry_failed=retry_failed, mlflow=redact(tracking_uri))
        if prepared.is_open:
            backstage.start()
            backstage.check(prepared.open_configs)
        with lease:  # nothing has been written before
            prepared = look_again(prepared, retry_failed=retry_failed)
            announce(prepared, console)
            prepared.registration.write(ledger.root)
            ledger.write_plan(prepared.plan, prepared.about)
            with notifying(prepared, console) as notifier:
                return carry_out(prepared, backstage, lease, notifier, console=console, tracking_uri=tracking_uri)


def carry_out(
    prepared: Prepared, backstage: Backstage, lease: Lease, notifier: Notifier, *, console: Console, tracking_uri: str
) -> Summary:
    """Execute what is open, show it in MLflow and Optuna's storage, write the report; return how the study stands."""
    with showing(prepared, console) as show, shipping(prepared, tracking_uri) as running:
        record_upstream_failures(prepared)
        if running is not None and prepared.actions.open:
            watch = Watch(notifier, running.shipper.notice, show)
            execute_open(prepared, backstage, lease, watch, console=console)
            prepared = write_grown_plan(prepared)
        get_report = begin_report(prepared, backstage, lease)  # while the last records are shipped
    summary = conclude(prepared, running, get_report(), console)
    if prepared.actions.open:
        notifier.tell("end", f"{summary.describe()}. Report: {summary.report}")
    return summary


def record_upstream_failures(prepared: Prepared) -> None:
    """Write down that trials cannot start whose stage failed in an earlier run: new arms that share it."""
    states, commit = prepared.states, find_git_commit()
    stages = {stage.signature: stage for stage in prepared.plan.stages}
    for work in prepared.actions.failed:
        if states.get(work.signature, ABSENT) != FAILED:
            failed = next(stages[need] for need in work.needs if states.get(need) == FAILED)
            details = describe_upstream(failed)
            prepared.ledger.record_failure(work, details, study=prepared.study.study, git_commit=commit)


@dataclass(frozen=True)
class Watch:
    """Who is told while a study is executed."""

    notifier: Notifier
    #: The shipper: kind and signature of what has changed in the ledger.
    notice: Callable[[str, str], None]
    #: Optuna's storage: the search has changed.
    show: Callable[[], None]


@dataclass
class Shipping:
    """The projection to MLflow of a running study; ``unshipped`` is known when it has ended."""

    shipper: Shipper
    unshipped: int = 0


@contextmanager
def shipping(prepared: Prepared, tracking_uri: str) -> Iterator[Shipping | None]:
    """Ship the ledger to MLflow while the body runs; None when it shows everything and nothing will change."""
    if find_settled_report(prepared, tracking_uri) is not None:
        yield None
        return
    if prepared.actions.open:
        forget(prepared.ledger.root)

    def make_tracker() -> Tracker:
        from orchestrator.tracking import Tracker  # imports mlflow: in the shipper's thread, once a trial trains

        return Tracker(tracking_uri, prepared.ledger, about=prepared.about | prepared.plan.as_json())

    shipper = Shipper(make_tracker, prepared.ledger, resumed=[work.signature for work in prepared.actions.open])
    running = Shipping(shipper)
    shipper.start()
    patience = _HASTE_SECONDS
    try:
        yield running
        patience = PATIENCE_SECONDS
    finally:
        running.unshipped = shipper.finish(timeout_seconds=patience, max_seconds=MAX_WAIT_SECONDS)


@contextmanager
def notifying(prepared: Prepared, console: Console) -> Iterator[Notifier]:
    """Let people be told, as ``execution.notify`` asks for; at once, when the budget leaves nothing to do."""
    actions = prepared.actions
    config = prepared.study.execution.notify if actions.open or actions.held_back else None
    with Notifier(config, study=prepared.study.study, warn=lambda text: warn(console, "notify", text)) as notifier:
        if actions.held_back and not actions.open:
            notifier.tell("budget", f"nothing is started: {len(actions.held_back)} stages and trials are held back")
        yield notifier


def find_settled_report(prepared: Prepared, tracking_uri: str) -> Report | None:
    """Return the report that was written and shipped for this very state of the study, None when there is work."""
    root, states = prepared.ledger.root, prepared.states
    new_failures = any(states.get(work.signature) != FAILED for work in prepared.actions.failed)
    if prepared.actions.open or new_failures:
        return None
    state = compute_state(prepared.ledger.read_plan(), states)
    report = read_report(root, Source(state, DEFAULT_METRIC, examples=True))
    if report is None or not is_shipped(root, tracking_uri, state=state, page_sha256=report.page_sha256):
        return None
    return report


def execute_open(
    prepared: Prepared,
    backstage: Backstage,
    lease: Lease,
    watch: Watch,
    *,
    console: Console,
) -> None:
    """Run everything that is open, and what a search proposes meanwhile, on this machine or a cluster.

    Raises:
        DiskFullError: somebody found no room for what it wrote. Everything is stopped: other trials would end likewise.
    """
    study, ledger, actions = prepared.study, prepared.ledger, prepared.actions
    commit = find_git_commit()
    full: list[str] = []
    num_works = len(actions.open) + prepared.plan.num_to_come
    with (
        StudyProgress(console, num_works=num_works, num_done=len(actions.skip)) as progress,
        stopping_in_order(progress.say) as stop,
    ):

        def listen(what: str, work: Work, details: dict[str, Any]) -> None:
            if what == "ended" and details["status"] == FAILED:
                try:
                    ledger.record_failure(work, details, study=study.study, git_commit=commit)
                except DiskFullError as error:
                    details = {"status": INTERRUPTED, "reason": DISK_FULL, "message": str(error)}
            if details.get("reason") == DISK_FULL:
                full.append(details["message"])
                stop.set()
            elif what == "ended" and details["status"] == FAILED:
                watch.notifier.tell_failure(work, details)
            if what == "ended":
                growth.settle(work, details)
            watch.notice(work.kind, work.signature)
            progress.listen(what, work, details)

        growth = Growth(prepared, listen=listen, stop=stop, show=watch.show)
        job = Job(
            execution=resolve_execution(study, ledger).model_dump(mode="json"),
            token=backstage.token,
            preload=backstage.preload,
            max_retries=study.execution.max_retries,
            stall_seconds=60.0 * study.execution.stall_minutes,
            describe=lambda work: describe_work(work, study=study.study, git_commit=commit),
            lease=lease.ticket,
        )
        todo = OpenWork(actions.open, complete=[work.signature for work in actions.skip], num_slots=1)

        def tell_spent(num_works: int) -> None:
            text = f"the budget is spent: what runs goes on to its end, {num_works} stages and trials are not started"
            progress.say(text)
            watch.notifier.tell("budget", text)

        meter = make_meter(prepared, on_spent=tell_spent)
        desk = Desk(todo, ledger=ledger, job=job, listen=listen, find_more=growth.find_more, meter=meter)
        with (
            keeping(meter, ledger.root),
            starting_at_once(prepared, backstage, desk, stop=stop, say=progress.say) as needs_ray,
        ):
            if needs_ray:
                execute_in_ray(prepared, backstage, desk, stop=stop, say=progress.say)
    if full:
        raise DiskFullError(full[0])
    growth.check()


def make_meter(prepared: Prepared, *, on_spent: Callable[[int], None]) -> Meter:
    """Return what counts the time of this run on top of what the runs before have taken."""
    execution = prepared.study.execution
    return Meter(
        read_usage(prepared.ledger),
        limits={} if execution.budget is None else execution.budget.limits(),
        price_per_gpu_hour=execution.price_per_gpu_hour,
        on_spent=on_spent,
    )


@contextmanager
def starting_at_once(
    prepared: Prepared, backstage: Backstage, desk: Desk, *, stop: threading.Event, say: Callable[[str], None]
) -> Iterator[bool]:
    """Let the driver's own slots begin, if it may have some; yield, in time, whether Ray is needed."""
    own = backstage.own_resources
    if own is None:
        yield True
        return
    slots = resolve_slots(prepared, own, say=say)
    check_fits(own, slots)
    with HeadStart(desk, num_own_slots(own, slots), stop=stop) as head_start:
        yield head_start.wait()


def execute_in_ray(
    prepared: Prepared, backstage: Backstage, desk: Desk, *, stop: threading.Event, say: Callable[[str], None]
) -> None:
    """Work at the desk with Ray Tune, which takes over from the driver's own slots."""
    resources = backstage.wait_for_ray()
    from orchestrator import scheduling  # imports ray

    is_said = backstage.own_resources is not None  # by those who had a head start
    slots = resolve_slots(prepared, resources, say=(lambda line: None) if is_said else say)
    if backstage.is_local:
        check_fits(resources, slots)
    study = prepared.study
    desk.set_gpus(slots.gpus)
    scheduling.execute(desk, study=study.study, slots=slots, max_retries=study.execution.max_retries, stop=stop)


def begin_report(prepared: Prepared, backstage: Backstage, lease: Lease) -> Callable[[], Report]:
    """Start to write the report, unless there is one of this state of the study; return how to wait for it."""
    ledger = prepared.ledger
    state = compute_state(ledger.read_plan(), ledger.states())
    report = read_report(ledger.root, Source(state, DEFAULT_METRIC, examples=True))
    if report is not None:
        return lambda: report
    if backstage.is_started:
        return backstage.begin_report(ledger, lease.ticket)
    from orchestrator.report.write import write_report  # imports pandas

    return partial(write_report, ledger, cache_dir=prepared.study.execution.cache_dir.expanduser())


def conclude(prepared: Prepared, shipped: Shipping | None, report: Report, console: Console) -> Summary:
    """Attach the report to MLflow's parent run, print where everything is; nothing twice."""
    ledger = prepared.ledger
    states = ledger.states()
    unshipped = shipped.unshipped if shipped else 0
    summary = summarise(prepared.plan, states, report=report.html, unshipped=unshipped)
    summary = account(summary, prepared, states)
    if shipped is not None and unshipped == 0:
        try:
            shipped.shipper.conclude(report, is_complete=summary.is_complete)
        except TrackingError as error:
            warn(console, "the report is not in MLflow yet", str(error))
    console.print(report.summary, soft_wrap=True, highlight=False, markup=False)
    if shipped is None:
        say(console, "settled", "nothing has changed since the report was written and everything shipped to MLflow")
    say(console, "report", report.html)
    return summary


def resolve_slots(prepared: Prepared, resources: Mapping[str, float], *, say: Callable[[str], None]) -> Slots:
    """Return what one trial takes of the cluster; say why it takes that much of a GPU."""
    execution, ledger = prepared.study.execution, prepared.ledger
    gpus = execution.gpus_per_trial
    if gpus == "auto" and resources.get("GPU", 0.0) > 0 and execution.device != "cpu":
        records = [record for kind in ("stage", "trial") for record in ledger.records(kind, states=(COMPLETE,))]
        share = choose_gpus_per_trial(
            prepared.actions.open, records, evaluation_batch_size=execution.evaluation_batch_size
        )
        say(share.reason)
        gpus = share.gpus
    elif gpus == "auto":
        gpus = 0.0
    limits = {} if execution.budget is None else execution.budget.limits()
    if gpus == 0.0 and limits.keys() & {"gpu_hours", "money"}:
        say("no trial takes a GPU here: gpu_hours and money in execution.budget limit nothing")
    return Slots(cpus=execution.cpus_per_trial, gpus=gpus, max_concurrent=execution.max_concurrent_trials)


@contextmanager
def stopping_in_order(announce: Callable[[str], None]) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT sets; a second one, and SIGTERM, are a KeyboardInterrupt.

    Whoever sends SIGTERM kills seconds later: Ray's jobs after 3.
    """
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if stop.is_set() or number == signal.SIGTERM:
            raise KeyboardInterrupt
        stop.set()
        announce("stopping: running trials go on from their last epoch next time; once more to stop at once")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
