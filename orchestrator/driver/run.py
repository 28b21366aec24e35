"""MAIN PATH: study → plan → reconcile with the ledger → execute open stages and trials → report.

To resume is to run again: complete stages and trials are not touched, interrupted ones continue.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.driver.events import Observers
from orchestrator.driver.execute import execute_open
from orchestrator.driver.live.prometheus import check_metrics
from orchestrator.driver.notifications import Notifier
from orchestrator.driver.prepare import Prepared, find_git_commit, prepare
from orchestrator.driver.runtime import Runtime
from orchestrator.driver.search_loop import exporting, refresh, write_extended_plan
from orchestrator.driver.terminal.announce import announce, print_line, warn
from orchestrator.driver.terminal.summary import Summary, add_budget, summarise
from orchestrator.execution.resources import check_device
from orchestrator.ledger.derived import Report, Source, compute_state, find_main_metric, invalidate, read_report
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.other_studies import adopt_stage
from orchestrator.ledger.record import describe_upstream
from orchestrator.planning.states import ABSENT, FAILED
from orchestrator.search.optuna_storage import resolve_storage
from orchestrator.study.study_file import Study
from orchestrator.tracking.addresses import TrackingError, resolve_tracking_uri
from orchestrator.tracking.server import check_access
from orchestrator.tracking.shipped import is_shipped
from orchestrator.tracking.shipper import MAX_WAIT_SECONDS, PATIENCE_SECONDS, Shipper
from trainables.errors import redact
from trainables.storage.claims import CLAIMS, find_claim, release_claim

if TYPE_CHECKING:
    from orchestrator.tracking.tracker import Tracker

#: How long a driver that is interrupted still ships records.
_INTERRUPT_TIMEOUT_SECONDS = 1.0


def run_study(
    study: Study,
    *,
    storage: str,
    mlflow: str | None,
    address: str | None,
    console: Console,
    retry_failed: bool = False,
    verify_data: bool = False,
) -> Summary:
    """Run the stages and trials that the ledger lacks, write the report and return a summary.

    Args:
        study: study to run.
        storage: root of the ledger, path or URI.
        mlflow: tracking URI; if None, from the environment, the study file, or a SQLite file beside the ledger.
        address: Ray cluster; if None, ``execution.address`` or this machine.
        console: console for progress and messages.
        retry_failed: whether to run failed trials again.
        verify_data: whether to read every byte of the data instead of trusting sizes and times.

    Raises:
        RobustSweepError: the request is wrong; raised before anything starts.
    """
    check_metrics(study.execution)
    ledger = Ledger(storage, study.study)
    tracking_uri = announce_places(study, ledger, mlflow, console)
    resolve_storage(ledger, study.execution.optuna)  # a wrong address is refused before anything starts
    Lease(ledger).check()  # before the data are read, which may take long
    check_access(tracking_uri)
    with Runtime(study, address=address or study.execution.address) as runtime:
        prepared = prepare_run(
            study, runtime, ledger, retry_failed=retry_failed, verify_data=verify_data, mlflow=tracking_uri
        )
        ledger = prepared.ledger  # of all who write: the lease guards this object, not the folder
        with Lease(ledger) as lease:  # nothing has been written before, except probes, which are gone again
            prepared = refresh(adopt_stages(prepared, lease), retry_failed=retry_failed)
            announce(prepared, console)
            prepared.registration.write(ledger.root)
            ledger.write_plan(prepared.plan, prepared.about)
            with notifying(prepared, console) as notifier:
                return execute_and_report(
                    prepared, runtime, lease, notifier, console=console, tracking_uri=tracking_uri
                )


def announce_places(study: Study, ledger: Ledger, mlflow: str | None, console: Console) -> str:
    """Print where the ledger and MLflow are; return MLflow's tracking URI.

    Raises:
        RobustSweepError: an address is wrong.
    """
    tracking_uri = resolve_tracking_uri(ledger, flag=mlflow, study_value=study.execution.mlflow)
    print_line(console, "study", f"{study.study}: {study.question}")
    print_line(console, "ledger", ledger.root.uri)
    print_line(console, "MLflow", redact(tracking_uri))
    return tracking_uri


def prepare_run(
    study: Study, runtime: Runtime, ledger: Ledger, *, retry_failed: bool, verify_data: bool, mlflow: str
) -> Prepared:
    """Return the study with its plan; if something is open, its trials have been checked, and processes are starting.

    Raises:
        RobustSweepError: the request is wrong.
    """
    if not ledger.root.exists("plan.json"):
        runtime.start_fork_server()  # a new study: something will run, and importing torch takes seconds
    prepared = prepare(
        study, storage=ledger.storage, retry_failed=retry_failed, verify_data=verify_data, mlflow=redact(mlflow)
    )
    if prepared.is_open:
        if runtime.is_local:
            check_device(study.execution, prepared.open_configs)
        runtime.start()
        runtime.check(prepared.open_configs)
        runtime.probe_storage(prepared.ledger)
    return prepared


def execute_and_report(
    prepared: Prepared, runtime: Runtime, lease: Lease, notifier: Notifier, *, console: Console, tracking_uri: str
) -> Summary:
    """Execute open stages and trials, update MLflow and Optuna's storage, write the report and return a summary."""
    with exporting(prepared, console) as show, shipping(prepared, tracking_uri) as running:
        record_upstream_failures(prepared)
        release_ended_claims(prepared)
        if running is not None and prepared.actions.open:
            observers = Observers(notifier, running.shipper.notify, show)
            execute_open(prepared, runtime, lease, observers, console=console)
            prepared = write_extended_plan(prepared)
        get_report = start_report(prepared, runtime, lease)  # while the last records are shipped
    summary = conclude(prepared, running, get_report(), console)
    if prepared.actions.open:
        notifier.notify("end", f"{summary.describe()}. Report: {summary.report}")
    return summary


def adopt_stages(prepared: Prepared, lease: Lease) -> Prepared:
    """Copy the stages that other studies have completed and that something open starts from; return the study.

    Its states are those before; a stage that could not be copied is run.
    """
    commit, adopted = find_git_commit(), {}
    for signature, other in prepared.find_adoptable().items():
        stage = prepared.plan.find(signature)
        assert stage is not None
        if adopt_stage(prepared.ledger, stage, other, lease=lease, git_commit=commit):
            adopted[signature] = other
    return replace(prepared, elsewhere={}, adopted=adopted)


def record_upstream_failures(prepared: Prepared) -> None:
    """Record a failure of each trial whose stage failed in an earlier run: trials of new arms that share the stage."""
    states, commit = prepared.states, find_git_commit()
    stages = {stage.signature: stage for stage in prepared.plan.stages}
    for work in prepared.actions.failed:
        if states.get(work.signature, ABSENT) != FAILED:
            failed = next(stages[need] for need in work.needs if states.get(need) == FAILED)
            details = describe_upstream(failed)
            prepared.ledger.record_failure(work, details, study=prepared.study.study, git_commit=commit)


def release_ended_claims(prepared: Prepared) -> None:
    """Release the claims of what is complete: an attempt that outlived its driver ends well, and nobody releases it."""
    ledger = prepared.ledger
    complete = {work.signature for work in prepared.actions.skip}
    for signature in complete.intersection((ledger.root / CLAIMS).children()):
        claim = find_claim(ledger.claims(signature))
        if claim is not None:
            release_claim(ledger.claims(signature), claim)


@dataclass
class Shipping:
    """Shipper of a running study. ``unshipped`` counts records that MLflow lacks, set when shipping has ended."""

    shipper: Shipper
    unshipped: int = 0
    #: Signatures that other drivers go on with: their runs stay open in MLflow.
    left_open: Collection[str] = ()


@contextmanager
def shipping(prepared: Prepared, tracking_uri: str) -> Iterator[Shipping | None]:
    """Ship the ledger to MLflow while the body runs. Yields None if MLflow shows everything and nothing is open."""
    if find_current_report(prepared, tracking_uri) is not None:
        yield None
        return
    if prepared.actions.open:
        invalidate(prepared.ledger.root)

    def make_tracker() -> Tracker:
        from orchestrator.tracking.tracker import (
            Tracker,  # imports mlflow: in the shipper's thread, once a trial trains
        )

        return Tracker(tracking_uri, prepared.ledger, about=prepared.about | prepared.plan.as_json())

    shipper = Shipper(make_tracker, prepared.ledger, resumed=[work.signature for work in prepared.actions.open])
    running = Shipping(shipper)
    shipper.start()
    patience = _INTERRUPT_TIMEOUT_SECONDS
    try:
        yield running
        patience = PATIENCE_SECONDS
    finally:
        running.unshipped = shipper.finish(
            timeout_seconds=patience, max_seconds=MAX_WAIT_SECONDS, left_open=running.left_open
        )


@contextmanager
def notifying(prepared: Prepared, console: Console) -> Iterator[Notifier]:
    """Yield the notifier that ``execution.notify`` configures. Notifies at once if the budget leaves nothing to run."""
    actions = prepared.actions
    num_held_back = len(actions.held_back) + prepared.num_withheld
    config = prepared.study.execution.notify if actions.open or num_held_back else None
    with Notifier(config, study=prepared.study.study, warn=lambda text: warn(console, "notify", text)) as notifier:
        if num_held_back and not actions.open:
            notifier.notify("budget", f"nothing is started: {num_held_back} stages and trials are held back")
        yield notifier


def find_current_report(prepared: Prepared, tracking_uri: str) -> Report | None:
    """Return the report if it was written and shipped for this state of the study, None if anything is left to do."""
    root, states = prepared.ledger.root, prepared.states
    new_failures = any(states.get(work.signature) != FAILED for work in prepared.actions.failed)
    if prepared.actions.open or new_failures:
        return None
    plan = prepared.ledger.read_plan()
    state = compute_state(plan, states)
    report = read_report(root, Source(state, find_main_metric(plan), examples=True))
    if report is None or not is_shipped(root, tracking_uri, state=state, page_sha256=report.page_sha256):
        return None
    return report


def start_report(prepared: Prepared, runtime: Runtime, lease: Lease) -> Callable[[], Report]:
    """Start writing the report unless it is current, and return a function that returns it.

    Without a fork server the returned function writes the report itself.
    """
    ledger = prepared.ledger
    plan = ledger.read_plan()
    report = read_report(
        ledger.root, Source(compute_state(plan, ledger.states()), find_main_metric(plan), examples=True)
    )
    if report is not None:
        return lambda: report
    if runtime.is_started:
        return runtime.start_report(ledger, lease.ticket)
    from orchestrator.report.write import write_report  # imports pandas

    return partial(write_report, ledger, cache_dir=prepared.study.execution.cache_dir.expanduser())


def conclude(prepared: Prepared, shipped: Shipping | None, report: Report, console: Console) -> Summary:
    """Attach the report to MLflow's parent run, print its location and return the summary.

    Attaches nothing if MLflow shows the report already, or lacks records.
    """
    ledger = prepared.ledger
    states = ledger.states()
    unshipped = shipped.unshipped if shipped else 0
    early_stopping = prepared.study.stops_early
    summary = summarise(prepared.plan, states, report=report.html, unshipped=unshipped, early_stopping=early_stopping)
    summary = add_budget(summary, prepared, states)
    if shipped is not None and unshipped == 0:
        try:
            shipped.shipper.conclude(report, is_complete=summary.is_complete)
        except TrackingError as error:
            warn(console, "the report is not in MLflow yet", str(error))
    console.print(report.summary, soft_wrap=True, highlight=False, markup=False)
    if shipped is None:
        print_line(
            console, "settled", "nothing has changed since the report was written and everything shipped to MLflow"
        )
    print_line(console, "report", report.html)
    return summary
