"""What is open → done: at one desk, by the driver's own slots and by Ray; everybody who should know is told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from orchestrator.backstage import Backstage
from orchestrator.budget import Meter, keeping, read_usage
from orchestrator.desk import Desk, Job
from orchestrator.early_stopping import EarlyStopping, judging
from orchestrator.head_start import HeadStart
from orchestrator.lease import Lease
from orchestrator.ledger import describe_work
from orchestrator.notify import Notifier
from orchestrator.open_work import OpenWork
from orchestrator.packing import choose_gpus_per_trial
from orchestrator.plan import Work
from orchestrator.prepare import Prepared, find_git_commit, resolve_execution
from orchestrator.progress import StudyProgress
from orchestrator.reconcile import COMPLETE, FAILED, INTERRUPTED
from orchestrator.resources import Slots, check_fits, num_own_slots
from orchestrator.searching import Growth
from orchestrator.zygote import DISK_FULL
from trainables.errors import DiskFullError


@dataclass(frozen=True)
class Watch:
    """Who is told while a study is executed."""

    notifier: Notifier
    #: The shipper: kind and signature of what has changed in the ledger.
    notice: Callable[[str, str], None]
    #: Optuna's storage: the search has changed.
    show: Callable[[], None]


class Listener:
    """Hears of every start, event and end at the desk, and passes it on: ledger, MLflow, people, search.

    Args:
        prepared: the study.
        watch: who is told.
        progress: what the terminal shows.
        stop: set when nothing more is to be handed out.
        early: who judges the trials of a search; None: nobody does.
    """

    def __init__(
        self,
        prepared: Prepared,
        watch: Watch,
        progress: StudyProgress,
        stop: threading.Event,
        *,
        early: EarlyStopping | None = None,
    ) -> None:
        self._prepared, self._watch, self._progress, self._stop = prepared, watch, progress, stop
        self._early = early
        self._commit = find_git_commit()
        self._full: str | None = None
        self.growth = Growth(prepared, listen=self.hear, stop=stop, show=watch.show, on_spent=self.tell_spent)

    def describe(self, work: Work) -> dict[str, Any]:
        """Return the content of ``config.json`` of a work."""
        return describe_work(work, study=self._prepared.study.study, git_commit=self._commit)

    def hear(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Take what has happened to a work: started, event or ended."""
        if what == "ended" and details["status"] == FAILED:
            details = self._record_failure(work, details)
        if details.get("reason") == DISK_FULL:
            self._full = self._full or details["message"]
            self._stop.set()
        elif what == "ended" and details["status"] == FAILED:
            self._watch.notifier.tell_failure(work, details)
        if what == "ended":
            self.growth.settle(work, details)
        if self._early is not None:
            self._early.hear(what, work, details)
        self._watch.notice(work.kind, work.signature)
        self._progress.listen(what, work, details)

    def _record_failure(self, work: Work, details: dict[str, Any]) -> dict[str, Any]:
        ledger, study = self._prepared.ledger, self._prepared.study.study
        try:
            ledger.record_failure(work, details, study=study, git_commit=self._commit)
        except DiskFullError as error:
            return {"status": INTERRUPTED, "reason": DISK_FULL, "message": str(error)}
        return details

    def tell_spent(self, num_works: int) -> None:
        """Take that the budget is spent, and how many works are not started because of it."""
        text = f"the budget is spent: what runs goes on to its end, {num_works} stages and trials are not started"
        self._progress.say(text)
        self._watch.notifier.tell("budget", text)

    def check(self) -> None:
        """Raise what has stopped the study, if something has.

        Raises:
            DiskFullError: somebody found no room for what it wrote.
            RobustSweepError: the search cannot go on.
        """
        if self._full is not None:
            raise DiskFullError(self._full)
        if self._early is not None:
            self._early.check()
        self.growth.check()


def execute_open(prepared: Prepared, backstage: Backstage, lease: Lease, watch: Watch, *, console: Console) -> None:
    """Run everything that is open, and what a search proposes meanwhile, on this machine or a cluster.

    Raises:
        DiskFullError: somebody found no room for what it wrote. Everything is stopped: other trials would end likewise.
    """
    actions = prepared.actions
    num_works = len(actions.open) + prepared.plan.num_to_come
    with (
        StudyProgress(console, num_works=num_works, num_done=len(actions.skip)) as progress,
        stopping_in_order(progress.say) as stop,
        judging(prepared, stop) as early,
    ):
        listener = Listener(prepared, watch, progress, stop, early=early)
        meter = make_meter(prepared, on_spent=listener.tell_spent)
        desk = make_desk(prepared, backstage, lease, listener, meter)
        with (
            keeping(meter, prepared.ledger.root),
            starting_at_once(prepared, backstage, desk, stop=stop, say=progress.say) as needs_ray,
        ):
            if needs_ray:
                execute_in_ray(prepared, backstage, desk, stop=stop, say=progress.say)
    listener.check()


def make_desk(prepared: Prepared, backstage: Backstage, lease: Lease, listener: Listener, meter: Meter) -> Desk:
    """Return the desk at which all slots work, with all that is open."""
    execution, ledger, actions = prepared.study.execution, prepared.ledger, prepared.actions
    job = Job(
        execution=resolve_execution(prepared.study, ledger).model_dump(mode="json"),
        token=backstage.token,
        preload=backstage.preload,
        max_retries=execution.max_retries,
        stall_seconds=60.0 * execution.stall_minutes,
        describe=listener.describe,
        lease=lease.ticket,
    )
    todo = OpenWork(actions.open, complete=[work.signature for work in actions.skip], num_slots=1)
    find_more = listener.growth.find_more
    return Desk(todo, ledger=ledger, job=job, listen=listener.hear, find_more=find_more, meter=meter)


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
