"""Command ``robustsweep evaluate``: its options. The work is done in ``driver/evaluate.py``."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from orchestrator.cli.options import Mlflow, Overrides, Storage, StudyOrName
from trainables.errors import redact


def evaluate(
    study: StudyOrName,
    storage: Storage = None,
    mlflow: Mlflow = None,
    overrides: Overrides = None,
    scores: Annotated[
        str | None,
        typer.Option(help="Names of confidence scores, with commas.", show_default="all that stored predictions give"),
    ] = None,
) -> None:
    """Add confidence scores, and the study's label maps, to finished trials from stored predictions; report and ship.

    Nothing is trained. What a trial has already is left as it is, in the ledger and in MLflow.
    """
    from rich.progress import Progress

    from orchestrator.cli.lookup import open_study
    from orchestrator.driver.evaluate import add_views, evaluate_trials, list_addable_scores
    from orchestrator.ledger.derived import check_is_classification
    from orchestrator.ledger.lease import Lease
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.report.write import write_report
    from orchestrator.tracking.addresses import resolve_tracking_uri
    from orchestrator.tracking.shipper import sync

    loaded = open_study(study, storage=storage, overrides=overrides or ())
    ledger = Ledger(storage or loaded.execution.storage, loaded.study)
    check_is_classification(ledger.read_plan(), "add scores or label maps to the trials")
    uri = resolve_tracking_uri(ledger, flag=mlflow, study_value=loaded.execution.mlflow)
    names = list_addable_scores() if scores is None else [name.strip() for name in scores.split(",") if name.strip()]
    with Lease(ledger):
        with Progress(transient=True) as progress:
            task = progress.add_task("trials", total=None)
            done = evaluate_trials(
                ledger, names, on_trial=lambda number, total: progress.update(task, completed=number, total=total)
            )
            task = progress.add_task("label maps and classes", total=None)
            viewed = add_views(
                ledger,
                loaded.evaluation.label_maps,
                per_class=loaded.evaluation.per_class,
                on_trial=lambda number, total: progress.update(task, completed=number, total=total),
            )
        changed = {each.signature for each in (*done, *viewed) if each.is_new}
        done += viewed
        typer.echo(f"{len(changed)} trials evaluated, {len({each.signature for each in done})} are complete")
        reasons = Counter(f"{name}: {why}" for each in done for name, why in each.undefined.items())
        for reason, number in reasons.items():
            typer.echo(f"without {reason} ({number} trials)")
        report = write_report(ledger, cache_dir=loaded.execution.cache_dir.expanduser())
        shipped = sync(ledger, uri)
    typer.echo(f"{shipped.shipped} records shipped to {redact(uri)}, {shipped.skipped} were there already")
    typer.echo(report.html)
