"""``robustsweep run``, ``plan``, ``report`` and so on: all commands of the command line.

Exit codes: 0 all trials complete, 1 some failed or are missing, 2 the request was wrong, 3 infrastructure failed,
4 some are missing because the budget is spent: the same command would start nothing, 5 stopped in order by SIGTERM: the
same command goes on.
Heavy packages are imported only in the commands that need them.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.cluster.jobs import logs, stop, submit
from orchestrator.cli.cluster.simulate import simulate
from orchestrator.cli.cluster.status import status
from orchestrator.cli.cluster.top import top
from orchestrator.cli.compare import compare, stats
from orchestrator.cli.data import data
from orchestrator.cli.evaluate import evaluate
from orchestrator.cli.explore import explore
from orchestrator.cli.init import examples, init, schema
from orchestrator.cli.options import (
    Address,
    AsJson,
    Checklists,
    FigureFormat,
    Metric,
    Mlflow,
    Overrides,
    Part,
    Quiet,
    Storage,
    StudyFile,
    StudyOrName,
    Verbose,
    VerifyData,
)
from orchestrator.cli.select import register_if_asked, select
from orchestrator.cli.shifts.commands import shifts
from orchestrator.cluster.exit_codes import (
    COMPLETE,
    INCOMPLETE,
    INFRASTRUCTURE,
    OUT_OF_BUDGET,
    STOPPED,
    WRONG_REQUEST,
)
from orchestrator.driver.terminal.echo import PrintableFormatter, echo
from trainables.errors import (
    ClusterLostError,
    InfrastructureError,
    RobustSweepError,
    StorageError,
    TerminatedError,
    redact,
)

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

    from orchestrator.study.study_file import Study

app = typer.Typer(
    name="robustsweep",
    help="Find out which training choices hold up under distribution shift: one YAML file in, a robustness study out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(shifts, name="shifts")
app.add_typer(data, name="data")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        echo(f"robustsweep {metadata.version('robustsweep')}")
        raise typer.Exit


@app.callback()
def robustsweep(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Find out which training choices hold up under distribution shift: one YAML file in, a robustness study out."""


@app.command()
def run(  # noqa: PLR0913 - the options of a command are its arguments
    study: StudyFile,
    *,
    storage: Storage = None,
    mlflow: Mlflow = None,
    address: Address = None,
    shard: Part = None,
    overrides: Overrides = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed trials again.")] = False,
    verify_data: VerifyData = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Run open stages and trials, resume interrupted ones and write the report. Run it again after any interruption."""
    from orchestrator.driver.shards.run import choose_run
    from orchestrator.driver.terminal.console import Terminal

    _stop_at_sigterm()
    loaded = _load(study, overrides)
    if quiet and verbose:
        raise RobustSweepError("run: found --quiet and --verbose; give one of them")
    console = Terminal(stderr=as_json, detail="quiet" if quiet else "verbose" if verbose else "normal")
    flags = {"--storage": storage, "--mlflow": mlflow, "--set": overrides}
    again = _command("run", study, flags | {"--address": address, "--shard": shard})
    run_study = choose_run(shard)
    try:
        summary = run_study(
            loaded,
            storage=_storage(loaded, storage),
            mlflow=mlflow,
            address=address,
            console=console,
            retry_failed=retry_failed,
            verify_data=verify_data,
        )
    except KeyboardInterrupt as interrupt:
        _print(console, f"stopped; go on with: {again}")
        _exit_without_cleanup(STOPPED if isinstance(interrupt, TerminatedError) else INCOMPLETE)
    except ClusterLostError as error:
        echo(f"error: {error}", err=True)
        _print(console, f"go on with{', or with the --address of another head' * bool(address)}: {again}")
        _exit_without_cleanup(INFRASTRUCTURE)
    register_if_asked(loaded, summary, storage=_storage(loaded, storage), mlflow=mlflow, console=console)
    if as_json:
        echo(json.dumps(vars(summary)))
    if summary.unshipped:
        later = _command("sync", study, flags)
        _print(console, f"{summary.unshipped} records are not shipped to MLflow yet; once it can be reached: {later}")
    if not summary.is_complete:
        first = "raise execution.budget, then " * summary.is_out_of_budget
        last = " --retry-failed" * summary.is_only_failed
        _print(console, f"{summary.describe()}; {first}go on with: {again}{last}")
    _print(console, f"look at the runs with: {_command('ui', study, flags)}")
    incomplete = OUT_OF_BUDGET if summary.is_out_of_budget else INCOMPLETE
    raise typer.Exit(COMPLETE if summary.is_complete else incomplete)


@app.command()
def plan(
    study: StudyFile,
    storage: Storage = None,
    overrides: Overrides = None,
    pilot: Annotated[bool, typer.Option(help="Time a few steps when no trial has finished yet.")] = True,
    verify_data: VerifyData = False,
    as_json: AsJson = False,
) -> None:
    """Show stages and trials with their states, and the estimated time and cost of the open ones."""
    from orchestrator.cli.plan import describe_plan, render_estimate, render_plan
    from orchestrator.driver.estimate import estimate
    from orchestrator.driver.prepare import prepare

    loaded = _load(study, overrides)
    prepared = prepare(loaded, storage=_storage(loaded, storage), verify_data=verify_data)
    if not as_json:
        render_plan(prepared, _console())  # at once: a pilot takes its time
    costs = estimate(prepared, allow_pilot=pilot)
    if as_json:
        echo(json.dumps(describe_plan(prepared, costs)))
    else:
        render_estimate(prepared, costs, _console())


@app.command()
def report(
    study: StudyOrName,
    storage: Storage = None,
    overrides: Overrides = None,
    metric: Metric = None,
    figures: Annotated[FigureFormat | None, typer.Option(help="Write each figure as a file, and its data.")] = None,
    checklists: Checklists = None,
) -> None:
    """Rewrite the report from the ledger."""
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.report.checklist import write_checklist
    from orchestrator.report.figure_files import write_figures
    from orchestrator.report.write import write_report

    loaded = _open(study, storage, overrides)
    _warn_of_differences(loaded, storage)
    ledger = Ledger(_storage(loaded, storage), loaded.study)
    written = write_report(ledger, cache_dir=loaded.execution.cache_dir.expanduser(), metric=metric)
    _console().print(written.summary, soft_wrap=True, highlight=False, markup=False)
    images = write_figures(ledger.root, figures.value) if figures is not None else []
    images += [write_checklist(ledger, name) for name in dict.fromkeys(checklists or ())]
    for where in (written.html, *written.csv, *images):
        echo(where)


for command in (
    init,
    examples,
    schema,
    evaluate,
    select,
    explore,
    compare,
    stats,
    status,
    submit,
    logs,
    stop,
    simulate,
    top,
):
    app.command()(command)


@app.command()
def ui(
    study: StudyOrName,
    storage: Storage = None,
    mlflow: Mlflow = None,
    overrides: Overrides = None,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1.", show_default="a free one")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the arms in a web browser.")] = True,
) -> None:
    """Start MLflow on 127.0.0.1 with the study's store, print links and open the arms. Ctrl-C stops the server."""
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.tracking.addresses import resolve_tracking_uri
    from orchestrator.tracking.server import open_page, serve_ui

    loaded = _open(study, storage, overrides)
    ledger = Ledger(_storage(loaded, storage), loaded.study)
    uri = resolve_tracking_uri(ledger, flag=mlflow, study_value=loaded.execution.mlflow)
    with serve_ui(uri, loaded.study, port=port) as server:
        for line in server.links.describe():
            echo(line)
        sys.stdout.flush()
        if browser:
            open_page(server.links.by_arm)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM must stop the server, too
        try:
            server.wait()
        except KeyboardInterrupt:
            echo("stopped")


@app.command()
def sync(study: StudyOrName, storage: Storage = None, mlflow: Mlflow = None, overrides: Overrides = None) -> None:
    """Ship all records of the ledger and the report to MLflow. This rebuilds a lost MLflow store."""
    from orchestrator.ledger.lease import Lease
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.tracking.addresses import resolve_tracking_uri
    from orchestrator.tracking.shipper import sync as sync_ledger

    loaded = _open(study, storage, overrides)
    ledger = Ledger(_storage(loaded, storage), loaded.study)
    uri = resolve_tracking_uri(ledger, flag=mlflow, study_value=loaded.execution.mlflow)
    with Lease(ledger):
        result = sync_ledger(ledger, uri)
    echo(f"{result.shipped} records shipped to {redact(uri)}, {result.skipped} were there already")


@app.command()
def trial(
    study: StudyFile,
    signature: Annotated[str, typer.Argument(help="Signature of a stage or trial, or its first digits.")],
    storage: Storage = None,
    overrides: Overrides = None,
) -> None:
    """Run one stage or trial in this process without Ray, for debugging."""
    from orchestrator.cli.trial import run_single

    loaded = _load(study, overrides)
    folder = run_single(loaded, signature, storage=_storage(loaded, storage), echo=echo)
    echo(f"complete: {folder}")


@app.command()
def doctor(
    study: Annotated[Path | None, typer.Argument(help="The study file, for what it names.", show_default=False)] = None,
    storage: Storage = None,
    mlflow: Mlflow = None,
    address: Address = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine: versions, GPU, Ray, storage, MLflow, weights cache."""
    from orchestrator.cli.doctor import examine, render_findings

    if study is not None:
        execution = _load(study, overrides).execution
        storage, mlflow = storage or execution.storage, mlflow or execution.mlflow
        address = address or execution.address
    findings = examine(storage=storage or "results", mlflow=mlflow, address=address)
    if as_json:
        echo(json.dumps([vars(finding) for finding in findings]))
    else:
        render_findings(findings, _console())
    raise typer.Exit(COMPLETE if all(finding.ok for finding in findings) else INFRASTRUCTURE)


def _stop_at_sigterm() -> None:
    """Make SIGTERM, which schedulers and `docker stop` send, stop this process in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    signal.signal(signal.SIGTERM, stop)


def _exit_without_cleanup(code: int) -> None:
    """Exit without Ray's shutdown, which takes seconds. The kernel ends Ray's processes with this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _load(path: Path, overrides: list[str] | None) -> Study:
    from orchestrator.study.study_file import load_study

    return load_study(path, overrides or ())


def _open(what: str, storage: str | None, overrides: list[str] | None) -> Study:
    from orchestrator.cli.lookup import open_study

    return open_study(what, storage=storage, overrides=overrides or ())


def _warn_of_differences(study: Study, storage: str | None) -> None:
    from orchestrator.cli.lookup import describe_differences

    for line in describe_differences(study, storage=_storage(study, storage)):
        echo(line, err=True)


def _storage(study: Study, flag: str | None) -> str:
    return flag or study.execution.storage


def _command(name: str, study: Path, flags: dict[str, Any]) -> str:
    """Return a shell command line for the same study, quoted and without passwords."""
    words = ["robustsweep", name, str(study)]
    for flag, value in flags.items():
        for word in value if isinstance(value, list) else [value]:
            words += [flag, redact(word)] if word is not None else []
    return shlex.join(words)


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _console() -> Console:
    from orchestrator.driver.terminal.console import PrintableConsole

    return PrintableConsole()


def main() -> Any:
    """Run the command line; a ``RobustSweepError`` becomes one message and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal or file in ASCII or cp1252 gets "?", and no traceback
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    try:
        return app()
    except (StorageError, InfrastructureError) as error:
        echo(f"error: {error}", err=True)
        sys.exit(INFRASTRUCTURE)
    except RobustSweepError as error:
        echo(f"error: {error}", err=True)
        sys.exit(WRONG_REQUEST)
