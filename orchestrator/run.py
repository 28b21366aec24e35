"""MAIN PATH: study → plan → reconcile with the ledger → execute what is open → report. Reads like a paragraph.

``run`` and ``resume`` are the same: what the ledger says is complete is not touched, what was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orchestrator.identity import canonical_json
from orchestrator.ledger import Lease, Ledger
from orchestrator.plan import Plan, Work, make_plan
from orchestrator.progress import StudyProgress
from orchestrator.reconcile import ABSENT, COMPLETE, FAILED, INTERRUPTED, Actions, reconcile
from orchestrator.shipping import Shipper
from orchestrator.study import Study
from orchestrator.tracking_store import TrackingError, redact, resolve_tracking_uri
from orchestrator.world import World, check_networks, check_sections
from trainables.config import Execution, TrialConfig

if TYPE_CHECKING:
    from orchestrator.scheduling import Slots
    from orchestrator.tracking import Tracker


@dataclass(frozen=True)
class Summary:
    """How a study stands, in trials; what ``run`` ends with. ``missing`` is neither complete nor failed."""

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


@dataclass(frozen=True)
class Prepared:
    """A study looked up in the world and in the ledger: everything ``plan`` shows and ``run`` needs."""

    study: Study
    ledger: Ledger
    world: World
    plan: Plan
    actions: Actions
    about: dict[str, Any]

    @property
    def trial_configs(self) -> list[TrialConfig]:
        """Configs of all planned trials."""
        return [work.config for work in self.plan.trials if isinstance(work.config, TrialConfig)]


def prepare(study: Study, *, storage: str, retry_failed: bool = False, mlflow: str | None = None) -> Prepared:
    """Look up data, weights and ledger; return the plan and what is to be done.

    Raises:
        DataError: the data are unusable; every problem is named.
        WeightsUnavailableError: pretrained weights cannot be had.
        StudyError: settings do not fit the data.
    """
    world = World(study.execution.cache_dir)
    arms = study.arms()
    check_sections((arm.config for arm in arms), world)
    plan = make_plan(arms, replicates=study.replicates, facts=world)
    ledger = Ledger(storage, study.study)
    actions = reconcile(plan, ledger.states(), retry_failed=retry_failed)
    return Prepared(study, ledger, world, plan, actions, _describe(study, world, mlflow=mlflow))


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
    with Lease(ledger):
        prepared = prepare(study, storage=storage, retry_failed=retry_failed, mlflow=redact(tracking_uri))
        check_networks(prepared.trial_configs)
        announce(prepared, console)
        ledger.write_plan(prepared.plan, prepared.about)
        with shipping(prepared, tracking_uri) as running:
            if prepared.actions.open:
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
        f"{len(plan.trials)} trials and {len(plan.stages)} stages planned; {done} trials complete, "
        f"{len(actions.resume)} to resume, {kinds['trial']} trials and {kinds['stage']} stages to run",
    )
    for skipped in plan.skipped:
        console.print(
            f"[bold yellow]left out[/bold yellow] {skipped.name} ({skipped.num_trials} trials): {skipped.reason}",
            soft_wrap=True,
            highlight=False,
        )
    num_bad = sum(len(dataset.quarantined) for dataset in prepared.world.datasets)
    if num_bad:
        console.print(f"[bold yellow]quarantined[/bold yellow] {num_bad} images are set aside; the report names them")
    if actions.failed:
        failed = sum(work.kind == "trial" for work in actions.failed)
        console.print(f"[bold red]failed before[/bold red] {failed} trials; --retry-failed tries them again")
    if actions.orphaned:
        console.print(f"{len(actions.orphaned)} stages and trials in the ledger are no longer planned; they are kept")


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

        def begin(work: Work) -> None:
            ledger.begin(work, study=study.study, git_commit=commit)

        def listen(what: str, work: Work, details: dict[str, Any]) -> None:
            if what == "ended" and details["status"] == FAILED:
                ledger.record_failure(work, details, study=study.study, git_commit=commit)
            notice(work.kind, work.signature)
            progress.listen(what, work, details)

        with terminating_in_order():
            resources = scheduling.connect(address or study.execution.address)
            try:
                scheduling.execute(
                    actions.open,
                    complete=[work.signature for work in actions.skip],
                    ledger=ledger,
                    execution=resolve_execution(study).model_dump(mode="json"),
                    slots=resolve_slots(study, resources),
                    on_start=begin,
                    listen=listen,
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
            console.print(f"[yellow]the report is not in MLflow yet:[/yellow] {error}", soft_wrap=True)
    console.print(report.summary, soft_wrap=True, highlight=False)
    return summary


def summarise(plan: Plan, states: Mapping[str, str], *, report: str | None = None, unshipped: int = 0) -> Summary:
    """Return how the study stands, counted over planned trials."""
    dead = {stage.signature for stage in plan.stages if states.get(stage.signature) == FAILED}
    counts: Counter[str] = Counter()
    for trial in plan.trials:
        state = states.get(trial.signature, ABSENT)
        counts[FAILED if state != COMPLETE and dead & set(trial.needs) else state] += 1
    return Summary(
        planned=len(plan.trials),
        complete=counts[COMPLETE],
        failed=counts[FAILED],
        interrupted=counts[INTERRUPTED],
        missing=counts[INTERRUPTED] + counts[ABSENT],
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
def terminating_in_order() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C: Tune stops its trials in order on SIGINT and knows nothing of SIGTERM."""

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


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
        "study_sha256": hashlib.sha256(canonical_json(base).encode()).hexdigest(),
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
