"""Command ``robustsweep evaluate``: its options.

The work is done in ``driver/evaluate.py`` and, on new images, in ``selection/new_images.py``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Mlflow, Overrides, Storage
from orchestrator.driver.terminal.echo import echo
from trainables.errors import StudyError, redact

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.selection.new_images import NewImages
    from orchestrator.study.study_file import Study


def evaluate(  # noqa: PLR0913 - the options of a command are its arguments
    study: Annotated[
        str,
        typer.Argument(
            help="The study file, or the name of a study that was run; with --on also a folder that select wrote.",
            show_default=False,
        ),
    ],
    *,
    storage: Storage = None,
    mlflow: Mlflow = None,
    overrides: Overrides = None,
    scores: Annotated[
        str | None,
        typer.Option(help="Names of confidence scores, with commas.", show_default="all that stored predictions give"),
    ] = None,
    on: Annotated[
        Path | None,
        typer.Option(help="New images: a folder, a manifest, or a YAML file of data settings.", show_default="none"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the new images.", show_default="that of the file or folder")
    ] = None,
    data_set: Annotated[
        str | None, typer.Option(help="Data set of the study whose classes they have.", show_default="all classes")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the tables of --on.", show_default="evaluated/<name> below it")
    ] = None,
) -> None:
    """Add confidence scores, and the study's label maps, to finished trials from stored predictions; report and ship.

    With --on the networks are evaluated on images that the study did not have. Nothing is trained. What a trial has
    already is left as it is, in the ledger and in MLflow.
    """
    from orchestrator.cli.lookup import open_study
    from orchestrator.ledger.derived import check_is_classification
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.tracking.addresses import resolve_tracking_uri

    if on is None and (name, data_set, out) != (None, None, None):
        raise StudyError("--name, --data-set and --out are about new images; give these with --on")
    if on is not None and scores is not None:
        raise StudyError(
            "--scores are computed from stored predictions, and --on predicts new images; give one of them"
        )
    images = None if on is None else _find_new_images(on, name=name, data_set=data_set)
    if images is not None and (Path(study) / "config.json").is_file():
        _evaluate_folder(study, images, out=out)
        return
    loaded = open_study(study, storage=storage, overrides=overrides or ())
    ledger = Ledger(storage or loaded.execution.storage, loaded.study)
    uri = resolve_tracking_uri(ledger, flag=mlflow, study_value=loaded.execution.mlflow)
    if images is not None:
        _evaluate_on(loaded, ledger, images, out=out, uri=uri)
        return
    check_is_classification(ledger.read_plan(), "add scores or label maps to the trials")
    _add_scores(loaded, ledger, scores, uri=uri)


def _find_new_images(on: Path, *, name: str | None, data_set: str | None) -> NewImages:
    from orchestrator.selection.new_images import read_new_images
    from orchestrator.templates.find_data import find_source
    from orchestrator.templates.write_study import MAX_SIDE_CPU

    return read_new_images(
        on,
        name=name,
        data_set=data_set,
        find=lambda: find_source(on.expanduser().absolute(), max_side=MAX_SIDE_CPU),
    )


def _evaluate_folder(exported: str, images: NewImages, *, out: str | None) -> None:
    """Evaluate an exported network and print what was found."""
    from orchestrator.selection.new_images import CASES, MODELS, evaluate_exported, tell_models
    from orchestrator.study.execution_config import ExecutionConfig
    from trainables.storage.folder import Folder

    cache_dir = ExecutionConfig().cache_dir.expanduser()
    folder = None if out is None else Folder(out)
    done = evaluate_exported(Folder(exported), images, out=folder, cache_dir=cache_dir)
    for line in (*tell_models(done), *(f"written: {done.folder.uri}/{each}" for each in (MODELS, CASES))):
        echo(line)


def _evaluate_on(loaded: Study, ledger: Ledger, images: NewImages, *, out: str | None, uri: str) -> None:
    """Evaluate the trials of a study and print what was found."""
    from rich.progress import Progress

    from orchestrator.ledger.lease import Lease
    from orchestrator.selection.new_images import CASES, MODELS, evaluate_study, tell_models
    from trainables.storage.folder import Folder

    cache_dir = loaded.execution.cache_dir.expanduser()
    with Lease(ledger):
        with Progress(transient=True) as progress:
            task = progress.add_task("trials", total=None)
            done = evaluate_study(
                ledger,
                images,
                out=None if out is None else Folder(out),
                cache_dir=cache_dir,
                on_trial=lambda number, total: progress.update(task, completed=number, total=total),
            )
        echo(f"{done.num_new} trials evaluated, {len(done.models)} are complete")
        for line in (*tell_models(done), *(f"written: {done.folder.uri}/{each}" for each in (MODELS, CASES))):
            echo(line)
        _report_and_ship(loaded, ledger, uri=uri)


def _add_scores(loaded: Study, ledger: Ledger, scores: str | None, *, uri: str) -> None:
    """Add scores and label maps to the trials of a study."""
    from rich.progress import Progress

    from orchestrator.driver.evaluate import add_views, evaluate_trials, list_addable_scores
    from orchestrator.ledger.lease import Lease

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
        echo(f"{len(changed)} trials evaluated, {len({each.signature for each in done})} are complete")
        reasons = Counter(f"{name}: {why}" for each in done for name, why in each.undefined.items())
        for reason, number in reasons.items():
            echo(f"without {reason} ({number} trials)")
        _report_and_ship(loaded, ledger, uri=uri)


def _report_and_ship(loaded: Study, ledger: Ledger, *, uri: str) -> None:
    """Write the report and ship the records to MLflow; the caller holds the lease."""
    from orchestrator.report.write import write_report
    from orchestrator.tracking.shipper import sync

    report = write_report(ledger, cache_dir=loaded.execution.cache_dir.expanduser())
    shipped = sync(ledger, uri)
    echo(f"{shipped.shipped} records shipped to {redact(uri)}, {shipped.skipped} were there already")
    echo(report.html)
