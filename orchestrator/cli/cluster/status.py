"""Command ``robustsweep status``: its options. The counts come from ``cli/status.py``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from orchestrator.cli.options import AsJson, Overrides, Storage, StudyOrName
from orchestrator.cluster.exit_codes import COMPLETE, INCOMPLETE, OUT_OF_BUDGET
from orchestrator.driver.terminal.echo import echo


def status(
    study: StudyOrName,
    *,
    storage: Storage = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="Job server of a cluster, http://HEAD:8265: say what its job does, too.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read all of what is complete, compare checksums.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how many trials are planned, complete, running, failed, interrupted, missing."""
    from orchestrator.cli.lookup import describe_differences, open_study
    from orchestrator.cli.status import (
        compute_status,
        find_budget_status,
        find_damaged,
        find_drivers,
        is_out_of_budget,
        render_status,
    )
    from orchestrator.driver.terminal.console import PrintableConsole

    loaded = open_study(study, storage=storage, overrides=overrides or ())
    where = storage or loaded.execution.storage
    counts = compute_status(loaded, storage=where)
    budget_status = find_budget_status(loaded, storage=where)
    drivers = find_drivers(loaded, storage=where)
    job = {} if address is None else {"job": _describe_job(loaded.study, where, address)}
    if as_json:
        budget = {} if budget_status is None else {"budget": budget_status.as_json()}
        echo(json.dumps(counts | budget | ({"drivers": drivers} if drivers else {}) | job))
    else:
        render_status(counts, PrintableConsole(), budget_status, drivers)
        for text in job.values():
            echo(f"{'job':<12} {text}")
    for line in describe_differences(loaded, storage=where):
        echo(line, err=True)
    damaged = find_damaged(loaded, storage=where) if verify else []
    for damage in damaged:
        echo(f"damaged: {damage}; remove that file and run the study again: it is made anew", err=True)
    incomplete = OUT_OF_BUDGET if is_out_of_budget(counts, budget_status) and not damaged else INCOMPLETE
    raise typer.Exit(COMPLETE if counts["complete"] == counts["planned"] and not damaged else incomplete)


def _describe_job(study: str, storage: str, address: str) -> str:
    """Return a line about the last attempt at running the study as a job."""
    from orchestrator.cluster.jobs.ray_server import RayJobServer
    from orchestrator.cluster.jobs.study_jobs import Jobs
    from orchestrator.ledger.ledger import Ledger

    def ignore(text: str) -> None:
        pass

    return Jobs(RayJobServer(address), Ledger(storage, study), say=ignore, write=ignore).describe()
