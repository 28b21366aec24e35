"""MAIN PATH: study → plan → reconcile with the ledger → execute what is open → report. Reads like a paragraph.

``run`` and ``resume`` are the same: what the ledger says is complete is not touched, what was interrupted goes on.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from orchestrator.ledger import Lease, Ledger, describe_upstream
from orchestrator.plan import Plan, Work, describe_skipped, make_plan
from orchestrator.progress import StudyProgress
from orchestrator.reconcile import ABSENT, COMPLETE, FAILED, INTERRUPTED, Actions, reconcile
from orchestrator.shipping import Shipper
from orchestrator.status import compute_study_sha256
from orchestrator.study import Study
from orchestrator.tracking_store import TrackingError, redact, resolve_tracking_uri
from orchestrator.world import World, check_batches, check_trials
from trainables.config import Execution, TrialConfig

if TYPE_CHECKING:
    from orchestrator.scheduling import Slots
    from orchestrator.tracking import Tracker


@dataclass(frozen=True)
class Summary:
    """How a study stands, in trials; what ``run`` ends with. ``missing`` has never begun."""

    planned: int
    complete: int
    failed: int
    interrupted: int
    missing: int
    skipped_arms: int
    unshipped: int
    report: str | None

    @property
    def is_complete(self) -> bool:
        """Whether every planned trial is complete."""
        return self.complete == self.planned

    @property
    def is_only_failed(self) -> bool:
        """Whether everything that is not complete has failed: running again would start nothing."""
        return self.failed > 0 and self.interrupted == self.missing == 0


@dataclass(frozen=True)
class Prepared:
    """A study looked up in the world and in the ledger: everything ``plan`` shows and ``run`` needs."""

    study: Study
    ledger: Ledger
    world: World
    plan: Plan
    #: Signature → state, of everything in the ledger.
    states: Mapping[str, str]
    actions: Actions
    about: dict[str, Any]

    @property
    def open_configs(self) -> list[TrialConfig]:
        """Configs of the trials that will run."""
        return [work.config for work in self.actions.open if isinstance(work.config, TrialConfig)]


def prepare(study: Study, *, storage: str, retry_failed: bool = False, mlflow: str | None = None) -> Prepared:
    """Look up data, weights and ledger; return the plan and what is to be done.

    Raises:
        DataError: the data are unusable; every problem is named.
        WeightsUnavailableError: pretrained weights cannot be had.
        StudyError: settings do not fit the data.
    """
    world = World(study.execution.cache_dir)
    arms = study.arms()
    check_batches((arm.config for arm in arms), world)
    plan = make_plan(arms, replicates=study.replicates, facts=world)
    ledger = Ledger(storage, study.study)
    states = ledger.states()
    actions = reconcile(plan, states, retry_failed=retry_failed)
    return Prepared(study, ledger, world, plan, states, actions, _describe(study, world, mlflow=mlflow))


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
    say(console, "study", f"{study.study}: {study.question}")
    say(console, "ledger", ledger.root.uri)
    say(console, "MLflow", redact(tracking_uri))
    lease = Lease(ledger)
    lease.check()  # before the data are read, which may take long
    prepared = prepare(study, storage=storage, retry_failed=retry_failed, mlflow=redact(tracking_uri))
    check_trials(prepared.open_configs, prepared.world)
    with lease:  # nothing has been written before
        states = ledger.states()
        actions = reconcile(prepared.plan, states, retry_failed=retry_failed)
        prepared = replace(prepared, states=states, actions=actions)
        announce(prepared, console)
        ledger.write_plan(prepared.plan, prepared.about)
        with shipping(prepared, tracking_uri) as running:
            record_upstream_failures(prepared)
            if actions.open:
                execute_open(prepared, address=address, console=console, notice=running.shipper.notice)
        return conclude(prepared, running, console)


def announce(prepared: Prepared, console: Console) -> None:
    """Say what there is, what will run, and loudly what will not."""
    plan, actions = prepared.plan, prepared.actions
    kinds = Counter(work.kind for work in actions.open)
    done = sum(work.kind == "trial" for work in actions.skip)
    say(
        console,
        "plan",
        f"{_count(len(plan.trials), 'trial')} and {_count(len(plan.stages), 'stage')}; {_count(done, 'trial')} "
        f"complete, {_count(kinds['trial'], 'trial')} and {_count(kinds['stage'], 'stage')} to run"
        + (f", {len(actions.resume)} of them to resume" if actions.resume else ""),
    )
    for line in describe_skipped(plan.as_json()["skipped"]):
        warn(console, "left out", line)
    num_bad = sum(len(dataset.quarantined) for dataset in prepared.world.datasets)
    if num_bad:
        warn(console, "quarantined", f"{_count(num_bad, 'image')}; the report names them")
    if actions.failed:
        failed = sum(work.kind == "trial" for work in actions.failed)
        warn(console, "failed before", f"{_count(failed, 'trial')}; --retry-failed tries again")
    if actions.orphaned:
        say(console, "kept", f"{len(actions.orphaned)} stages and trials in the ledger that are no longer planned")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def record_upstream_failures(prepared: Prepared) -> None:
    """Write down that trials cannot start whose stage failed in an earlier run: new arms that share it."""
    states, commit = prepared.states, find_git_commit()
    stages = {stage.signature: stage for stage in prepared.plan.stages}
    for work in prepared.actions.failed:
        if states.get(work.signature, ABSENT) != FAILED:
            failed = next(stages[need] for need in work.needs if states.get(need) == FAILED)
            details = describe_upstream(failed)
            prepared.ledger.record_failure(work, details, study=prepared.study.study, git_commit=commit)


@dataclass
class Shipping:
    """The projection to MLflow of a running study; ``unshipped`` is known when it has ended."""

    tracker: Tracker
    shipper: Shipper
    unshipped: int = 0


@contextmanager
def shipping(prepared: Prepared, tracking_uri: str) -> Iterator[Shipping]:
    """Ship the ledger to MLflow while the body runs."""
    from orchestrator.tracking import Tracker  # imports mlflow

    tracker = Tracker(tracking_uri, prepared.ledger, about=prepared.about | prepared.plan.as_json())
    shipper = Shipper(tracker, prepared.ledger, resumed=[work.signature for work in prepared.actions.open])
    running = Shipping(tracker, shipper)
    shipper.start()
    try:
        yield running
    finally:
        running.unshipped = shipper.finish(timeout_seconds=60.0)


def execute_open(
    prepared: Prepared, *, address: str | None, console: Console, notice: Callable[[str, str], None]
) -> None:
    """Run everything that is open, on this machine or a cluster."""
    from orchestrator import scheduling  # imports ray

    study, ledger, actions = prepared.study, prepared.ledger, prepared.actions
    commit = find_git_commit()
    with StudyProgress(console, num_works=len(actions.open), num_done=len(actions.skip)) as progress:

        def listen(what: str, work: Work, details: dict[str, Any]) -> None:
            if what == "started":
                ledger.begin(work, study=study.study, git_commit=commit)
            elif what == "ended" and details["status"] == FAILED:
                ledger.record_failure(work, details, study=study.study, git_commit=commit)
            notice(work.kind, work.signature)
            progress.listen(what, work, details)

        address = address or study.execution.address
        try:
            resources = scheduling.connect(address)
            slots = resolve_slots(study, resources)
            if address is None:
                scheduling.check_fits(resources, slots)
            with stopping_in_order(progress.say) as stop:
                scheduling.execute(
                    actions.open,
                    complete=[work.signature for work in actions.skip],
                    ledger=ledger,
                    execution=resolve_execution(study).model_dump(mode="json"),
                    slots=slots,
                    listen=listen,
                    stop=stop,
                )
        finally:
            scheduling.disconnect()


def conclude(prepared: Prepared, shipped: Shipping, console: Console) -> Summary:
    """Write the report, attach it to MLflow's parent run, print where everything is."""
    from orchestrator.report.write import write_report  # imports pandas

    report = write_report(prepared.ledger, cache_dir=prepared.study.execution.cache_dir.expanduser())
    summary = summarise(prepared.plan, prepared.ledger.states(), report=report.html, unshipped=shipped.unshipped)
    if shipped.unshipped == 0:
        try:
            shipped.tracker.log_report(
                prepared.ledger.root.read("report/index.html"),
                summary=report.counts | {"skipped_arms": len(prepared.plan.skipped)},
                is_complete=summary.is_complete,
            )
        except TrackingError as error:
            warn(console, "the report is not in MLflow yet", str(error))
    console.print(report.summary, soft_wrap=True, highlight=False, markup=False)
    say(console, "report", report.html)
    return summary


def summarise(plan: Plan, states: Mapping[str, str], *, report: str | None = None, unshipped: int = 0) -> Summary:
    """Return how the study stands, counted over planned trials."""
    counts = Counter(states.get(trial.signature, ABSENT) for trial in plan.trials)
    return Summary(
        planned=len(plan.trials),
        complete=counts[COMPLETE],
        failed=counts[FAILED],
        interrupted=counts[INTERRUPTED],
        missing=counts[ABSENT],
        skipped_arms=len(plan.skipped),
        unshipped=unshipped,
        report=report,
    )


def resolve_execution(study: Study) -> Execution:
    """Return what a worker has to know about its machine's share."""
    execution = study.execution
    return Execution(
        device=execution.device,
        num_threads=max(1, int(execution.cpus_per_trial)),
        cache_dir=execution.cache_dir.expanduser(),
        evaluation_batch_size=execution.evaluation_batch_size,
    )


def resolve_slots(study: Study, resources: Mapping[str, float]) -> Slots:
    """Return what one trial takes of the cluster."""
    from orchestrator.scheduling import Slots

    execution = study.execution
    gpus = execution.gpus_per_trial
    if gpus == "auto":
        gpus = 1.0 if resources.get("GPU", 0.0) > 0 and execution.device != "cpu" else 0.0
    return Slots(
        cpus=execution.cpus_per_trial,
        gpus=gpus,
        max_concurrent=execution.max_concurrent_trials,
        max_retries=execution.max_retries,
        stall_seconds=60.0 * execution.stall_minutes,
    )


@contextmanager
def stopping_in_order(announce: Callable[[str], None]) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets; a second signal is a KeyboardInterrupt."""
    stop = threading.Event()

    def handle(*_: object) -> None:
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


def find_git_commit() -> str | None:
    """Return the commit of the working folder, with ``-dirty`` where there are changes; None outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def say(console: Console, label: str, text: str) -> None:
    """Print one labelled line; text from the user is not markup."""
    console.print(f"{label:<8} {text}", soft_wrap=True, highlight=False, markup=False)


def warn(console: Console, label: str, text: str) -> None:
    """Print one line that stands out; text from the user is not markup."""
    console.print(f"[bold yellow]{label}[/bold yellow] {escape(text)}", soft_wrap=True, highlight=False)


def _describe(study: Study, world: World, *, mlflow: str | None) -> dict[str, Any]:
    """What the report has to know about the study, as ``plan.json`` holds it."""
    data = world.dataset(study.data)
    sets = data.splits | data.external
    base = study.model_dump(mode="json", exclude={"execution"})
    return {
        "study": study.study,
        "question": study.question,
        "factors": {factor: list(levels) for factor, levels in _levels(study).items()},
        "replicates": study.replicates,
        "seed": study.seed,
        "data": {
            "name": data.name,
            "kind": study.data.kind,
            "classes": list(data.classes),
            "fingerprint": data.fingerprint,
            "num_images": {name: len(images) for name, images in sets.items()},
            "quarantined": [vars(bad) for dataset in world.datasets for bad in dataset.quarantined],
            "modality": data.modality,
        },
        "mlflow": mlflow,
        "git_commit": find_git_commit(),
        "versions": {
            name: _version(name) for name in ("robustsweep", "ray", "torch", "torchvision", "mlflow", "numpy")
        },
        "written_ms": int(time.time() * 1000),
        "study_sha256": compute_study_sha256(study),
        "base": base,
    }


def _levels(study: Study) -> dict[str, dict[str, None]]:
    """Factor → its levels in the order of the file (keys of a dict)."""
    levels: dict[str, dict[str, None]] = {}
    for arm in study.arms():
        for factor, level in arm.levels.items():
            levels.setdefault(factor, {})[level] = None
    return levels


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
