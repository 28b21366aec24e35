"""``run --shard``: one of several drivers of one study in one ledger, on machines that share nothing but the storage.

Each driver begins with its part and goes on with what is left; the claims in the ledger decide which stages and trials
it gets. A driver ends when the whole study is complete and its books are closed, by whichever driver keeps them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial

from rich.console import Console

from orchestrator.driver.estimate import expect_seconds
from orchestrator.driver.events import EventHandler, Observers
from orchestrator.driver.execute import enlarge_share, handling_signals, make_dispatcher, make_source, resolve_slots
from orchestrator.driver.live.prometheus import check_metrics
from orchestrator.driver.live.publish import publishing
from orchestrator.driver.prepare import Prepared, find_git_commit
from orchestrator.driver.run import announce_places, notifying, prepare_run
from orchestrator.driver.runtime import Runtime
from orchestrator.driver.search_loop import refresh
from orchestrator.driver.shards.books import Books
from orchestrator.driver.shards.checks import check_shardable, find_own_resources
from orchestrator.driver.shards.watch import LOOK_SECONDS, Shared, Watch
from orchestrator.driver.terminal.announce import announce, print_line
from orchestrator.driver.terminal.progress import StudyProgress
from orchestrator.driver.terminal.summary import Summary, add_budget, summarise
from orchestrator.execution.dispatcher import Dispatcher
from orchestrator.execution.local_executor import LocalExecutor
from orchestrator.execution.meter import Meter, saving_usage
from orchestrator.execution.resources import Slots, check_fits, num_local_slots
from orchestrator.execution.shared_works import SharedWorks
from orchestrator.ledger.derived import compute_state, find_report
from orchestrator.ledger.lease import Lease, describe
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.other_studies import adopt_stage
from orchestrator.ledger.shards.leases import CONCLUSION, DriverLease, Drivers, compute_plan_sha256
from orchestrator.ledger.shards.shard import Shard
from orchestrator.ledger.usage import read_others_usage
from orchestrator.study.study_file import Study
from trainables.errors import SupersededError


def choose_run(shard: str | None) -> Callable[..., Summary]:
    """Return ``run_study``, or ``run_shard`` of a part of the study such as "2/4".

    Raises:
        StudyError: it is no part.
    """
    from orchestrator.driver.run import run_study

    return run_study if shard is None else partial(run_shard, shard=Shard.parse(shard))


def run_shard(  # noqa: PLR0913 - the options of a command
    study: Study,
    *,
    shard: Shard,
    storage: str,
    mlflow: str | None,
    address: str | None,
    console: Console,
    retry_failed: bool = False,
    verify_data: bool = False,
) -> Summary:
    """Run stages and trials together with other drivers until the study is complete; return a summary.

    Args:
        study: study to run.
        shard: part that this driver begins with.
        storage: root of the ledger, path or URI.
        mlflow: tracking URI, as for ``run_study``.
        address: Ray cluster; refused, as is one in the study file.
        console: console for progress and messages.
        retry_failed: whether to run again what had failed before the first of the drivers began.
        verify_data: whether to read every byte of the data instead of trusting sizes and times.

    Raises:
        RobustSweepError: the request is wrong; raised before anything starts.
    """
    check_shardable(study, address=address or study.execution.address)
    check_metrics(study.execution)
    resources = find_own_resources(study.execution)
    ledger = Ledger(storage, study.study)
    tracking_uri = announce_places(study, ledger, mlflow, console)
    Lease(ledger).check_alone()  # before the data are read, which may take long
    with Runtime(study, address=None, resources=resources) as runtime:
        prepared = prepare_run(
            study, runtime, ledger, retry_failed=retry_failed, verify_data=verify_data, mlflow=tracking_uri
        )
        with DriverLease(prepared.ledger, shard=shard, plan_sha256=compute_plan_sha256(prepared.plan)) as lease:
            member = Member(prepared, runtime, lease, shard, console=console, retry_failed=retry_failed)
            return member.run(tracking_uri)


def run_own_slots(
    dispatcher: Dispatcher,
    resources: Mapping[str, float],
    slots: Slots,
    *,
    stop: threading.Event,
    print_line: Callable[[str], None],
) -> None:
    """Run what is free, with a larger share of the GPU whenever all that is left had no memory with a smaller one.

    Args:
        dispatcher: source of stages and trials.
        resources: CPUs and GPUs of this driver.
        slots: resources of one trial at first.
        stop: event that ends running trials.
        print_line: prints a message.
    """
    while not (stop.is_set() or dispatcher.is_finished):
        dispatcher.set_gpus(0.0, local=slots.gpus)
        with LocalExecutor(dispatcher, num_local_slots(resources, slots), stop=stop, has_ray=False) as local:
            local.wait()
        slots = enlarge_share(slots, dispatcher, print_line=print_line)


class Member:
    """One of the drivers that share a study, once it has its lease.

    Args:
        prepared: the study.
        runtime: processes of this driver.
        lease: lease of this driver.
        shard: part that it begins with.
        console: console for progress and messages.
        retry_failed: whether to run again what had failed before.
    """

    def __init__(
        self,
        prepared: Prepared,
        runtime: Runtime,
        lease: DriverLease,
        shard: Shard,
        *,
        console: Console,
        retry_failed: bool,
    ) -> None:
        self._runtime, self._lease, self._shard, self._console = runtime, lease, shard, console
        self._retry_failed = retry_failed
        self._drivers = Drivers(prepared.ledger.root, lease.driver)
        # Of what failed, only what had failed before is tried again, and only if this is asked for.
        since_ms = lease.since_all_ms if retry_failed else 0
        self._works = SharedWorks(prepared.ledger, driver=lease.driver, since_ms=since_ms)
        self._prepared = refresh(self._adopt_stages(prepared), retry_failed=retry_failed)

    def _adopt_stages(self, prepared: Prepared) -> Prepared:
        """Copy the stages that other studies have completed, and that no other driver has taken."""
        commit, adopted = find_git_commit(), {}
        self._drivers.look()
        taken = self._works.look(self._drivers.lives)
        for signature, other in prepared.find_adoptable().items():
            stage = prepared.plan.find(signature)
            assert stage is not None
            with suppress(SupersededError):
                if signature not in taken and adopt_stage(
                    prepared.ledger, stage, other, lease=self._lease, git_commit=commit, take=self._works.take
                ):
                    adopted[signature] = other
        return replace(prepared, elsewhere={}, adopted=adopted)

    def run(self, tracking_uri: str) -> Summary:
        """Run what is free until everything has ended; return the summary of the study."""
        announce(self._prepared, self._console)
        others = [lease for name, lease in self._drivers.living.items() if name != self._lease.driver]
        told = [f"{lease['shard']} ({describe(lease)})" for lease in others]
        print_line(self._console, "shard", f"{self._shard}, together with {', '.join(told) or 'nobody yet'}")
        with (
            notifying(self._prepared, self._console) as notifier,
            Books(self._prepared, tracking_uri, self._lease.driver, retry_failed=self._retry_failed) as books,
        ):
            books.try_to_take(self._drivers.lives, is_first=True)
            observers = Observers(notifier, books.notify, lambda: None)
            is_stopped = bool(self._prepared.actions.open) and self._execute(books, observers)
            if is_stopped and len(self._drivers.look()) > 1:
                books.leave(self._works.look(self._drivers.lives))
                return self._summarise()
            summary = self._conclude(books)
            if self._prepared.actions.open and not summary.is_concluded_elsewhere:
                notifier.notify("end", f"{summary.describe()}. Report: {summary.report}")
            return summary

    def _execute(self, books: Books, observers: Observers) -> bool:
        """Run what is free, and wait for what others run, until everything has ended; return whether it was stopped."""
        prepared, works = self._prepared, self._works
        ordered = self._shard.order(prepared.actions.open)
        with (
            StudyProgress(
                self._console,
                works=ordered,
                num_done=len(prepared.actions.skip),
                expect_seconds=partial(expect_seconds, prepared),
            ) as progress,
            handling_signals(progress.print_line) as stop,
        ):
            handler = EventHandler(prepared, observers, progress, stop)
            meter = self._make_meter(handler, books)
            dispatcher = make_dispatcher(
                prepared, self._runtime, self._lease, handler, meter, works=ordered, shared=works
            )
            slots = self._resolve_slots(progress)
            source = make_source(prepared, handler, meter, dispatcher, progress)
            with (
                saving_usage(meter, prepared.ledger.root, driver=self._lease.driver),
                publishing(source, prepared.ledger.root, print_line=progress.print_line),
                Watch(
                    prepared,
                    Shared(self._drivers, works, books),
                    dispatcher=dispatcher,
                    meter=meter,
                    stop=stop,
                    show=progress.set_num_drivers,
                ) as watch,
            ):
                resources = self._runtime.local_resources
                assert resources is not None
                run_own_slots(dispatcher, resources, slots, stop=stop, print_line=progress.print_line)
        watch.check()
        handler.check()
        return stop.is_set()

    def _make_meter(self, handler: EventHandler, books: Books) -> Meter:
        execution = self._prepared.study.execution
        return Meter(
            limits={} if execution.budget is None else execution.budget.limits(),
            price_per_gpu_hour=execution.price_per_gpu_hour,
            on_spent=lambda number: handler.report_spent(number, notifies=books.is_kept),
            others=read_others_usage(self._prepared.ledger, self._lease.driver),
        )

    def _resolve_slots(self, progress: StudyProgress) -> Slots:
        resources = self._runtime.local_resources
        assert resources is not None
        slots = resolve_slots(self._prepared, resources, print_line=progress.print_line)
        check_fits(resources, slots)
        return slots

    def _conclude(self, books: Books) -> Summary:
        """Close the books, or wait until another driver has; return the summary."""
        while not books.is_kept:
            summary = self._find_conclusion()
            if summary is not None:
                return summary
            self._drivers.look()
            if not books.try_to_take(self._drivers.lives):
                time.sleep(LOOK_SECONDS)
        return books.conclude(self._runtime, self._console)

    def _find_conclusion(self) -> Summary | None:
        """Return the summary if another driver has closed the books for the present state, None if not."""
        ledger = self._prepared.ledger
        if not ledger.root.is_intact(CONCLUSION):
            return None
        said, state = ledger.root.read_json(CONCLUSION), compute_state(ledger.read_plan(), ledger.states())
        report = find_report(ledger.root, state)
        if said["state"] != state or report is None:
            return None
        print_line(self._console, "report", f"{report.html}, written by another driver")
        return self._summarise(report=report.html, unshipped=said["unshipped"])

    def _summarise(self, *, report: str | None = None, unshipped: int = 0) -> Summary:
        states = self._prepared.ledger.states()
        summary = summarise(self._prepared.plan, states, report=report, unshipped=unshipped)
        return replace(add_budget(summary, self._prepared, states), is_concluded_elsewhere=True)
