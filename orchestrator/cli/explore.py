"""Command ``robustsweep explore``: its options. The work is done in ``orchestrator/explorer``."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Mlflow, Overrides, Storage, StudyOrName
from orchestrator.driver.terminal.echo import echo
from trainables.errors import redact

#: Name of the page among the files of the study's run in MLflow.
EXPLORER = "explorer.html"

if TYPE_CHECKING:
    from orchestrator.explorer.study import ExploredStudy
    from orchestrator.ledger.ledger import Ledger


def explore(  # noqa: PLR0913 - the options of a command are its arguments
    study: StudyOrName,
    *,
    storage: Storage = None,
    overrides: Overrides = None,
    host: Annotated[
        str, typer.Option(help="Address to bind; any but this machine's own needs the token in the printed link.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port.", show_default="a free one")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write one trial as a page that needs no server, and end.", show_default="no")
    ] = None,
    trial: Annotated[
        str | None,
        typer.Option(help="Signature of the trial to show first, or to export.", show_default="the first complete one"),
    ] = None,
    log: Annotated[
        bool,
        typer.Option(
            "--log", help="Attach the page to the study's run in MLflow, and end; of the arm that validation chooses."
        ),
    ] = False,
    mlflow: Mlflow = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a web browser.")] = True,
) -> None:
    """Look at images that trained models get wrong, and how sure they are. Ctrl-C stops the server."""
    from orchestrator.cli.lookup import describe_differences, open_study
    from orchestrator.explorer.serve import open_page, serve
    from orchestrator.explorer.study import ExploredStudy
    from orchestrator.ledger.ledger import Ledger

    loaded = open_study(study, storage=storage, overrides=overrides or ())
    root = storage or loaded.execution.storage
    for line in describe_differences(loaded, storage=root):
        echo(line, err=True)
    cache_dir = Path(loaded.execution.cache_dir).expanduser()
    explored = ExploredStudy(Ledger(root, loaded.study), cache_dir)
    try:
        shown = _choose_trial(explored.ledger) if log and trial is None else trial
        number = explored.first if shown is None else explored.find_signature(shown)
        if log:
            _log(explored, number, flag=mlflow, study_value=loaded.execution.mlflow)
        if export is not None:
            _export(explored, number, export)
        if export is not None or log:
            return
        if not explored.is_segmentation:
            explored.prepare_now(number)
        with serve(explored, host=host, port=port) as served:
            url = served.url if trial is None else f"{served.url}#t={number}"
            echo(f"explorer {url}")
            echo("Ctrl-C stops it")
            sys.stdout.flush()
            if browser:
                open_page(url)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM must stop the server, too
            served.wait()
    except KeyboardInterrupt:
        echo("stopped")
    finally:
        explored.close()


def _choose_trial(ledger: Ledger) -> str:
    """Return the signature of the trial that ``select`` takes, among what is complete."""
    from orchestrator.analysis.results import load_results
    from orchestrator.selection.ranking import SelectionCriteria, select_arm

    results = load_results(ledger)
    return select_arm(results, SelectionCriteria(by=results.metric, incomplete=True)).signature


def _log(explored: ExploredStudy, number: int, *, flag: str | None, study_value: str | None) -> None:
    """Attach the exported page of a trial to the study's run in MLflow."""
    from orchestrator.explorer.export import export_page
    from orchestrator.tracking.addresses import resolve_tracking_uri
    from orchestrator.tracking.client import attach_page

    ledger = explored.ledger
    uri = resolve_tracking_uri(ledger, flag=flag, study_value=study_value)
    with tempfile.TemporaryDirectory(prefix="robustsweep-") as folder:
        written = export_page(explored, number, Path(folder) / EXPLORER)
        attach_page(uri, ledger.study, EXPLORER, Path(written.path).read_text(encoding="utf-8"))
    echo(f"{EXPLORER} ({written.num_bytes / 1e6:.1f} MB) is attached to the study's run in {redact(uri)}")
    if written.left_out is not None:
        echo(written.left_out)


def _export(explored: ExploredStudy, number: int, path: Path) -> None:
    from orchestrator.explorer.export import export_page

    written = export_page(explored, number, path)
    echo(f"{written.path} ({written.num_bytes / 1e6:.1f} MB)")
    if written.left_out is not None:
        echo(written.left_out)
