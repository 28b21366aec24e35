"""Commands ``robustsweep compare`` and ``stats``: results of several studies, and of other tools.

The work is done in ``analysis/comparison/`` with ``report/comparison/``, and in ``analysis/tidy/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Metric, Storage
from orchestrator.driver.terminal.echo import echo
from trainables.errors import StudyError


def compare(
    studies: Annotated[
        list[str], typer.Argument(help="Study files, or names of studies that were run.", show_default=False)
    ],
    storage: Storage = None,
    metric: Metric = None,
    out: Annotated[str, typer.Option(help="Folder or fsspec URI to write.")] = "comparison",
    pair: Annotated[
        list[str] | None,
        typer.Option(help='"A vs B": two arms to compare besides those of the same label. Repeatable.'),
    ] = None,
    data_set: Annotated[
        str | None,
        typer.Option(help="Of studies on several data sets, the one to compare.", show_default="all"),
    ] = None,
) -> None:
    """Compare studies that were run: one page and its tables. Prints their paths.

    Arms of the same label are compared, paired over replicates where both studies have the same images and seeds. Means
    under shift are over the shifts that all studies have.
    """
    from orchestrator.analysis.comparison.compare import compare_studies
    from orchestrator.cli.lookup import describe_differences, open_study
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.report.comparison.write import write_comparison

    named = [_split(each) for each in pair or ()]
    ledgers = []
    for what in studies:
        loaded = open_study(what, storage=storage)
        root = storage or loaded.execution.storage
        for line in describe_differences(loaded, storage=root):
            echo(f"{loaded.study}: {line}", err=True)
        ledgers.append(Ledger(root, loaded.study))
    for path in write_comparison(compare_studies(ledgers, metric=metric, named=named, data_set=data_set), out):
        echo(path)


def _split(pair: str) -> tuple[str, str]:
    arms = [arm.strip() for arm in pair.split(" vs ")]
    if len(arms) != 2 or not all(arms):
        raise StudyError(f"--pair: found {pair!r}, expected two arms with vs between them, as in 'strong vs heavy'")
    return arms[0], arms[1]


def stats(
    results: Annotated[
        list[Path], typer.Argument(help="CSV files with a row per evaluation of a model.", show_default=False)
    ],
    config: Annotated[Path, typer.Option("--config", help="YAML: what its columns are.", show_default=False)],
    out: Annotated[
        str | None, typer.Option(help="Folder or fsspec URI for CSV, Markdown and LaTeX.", show_default="none")
    ] = None,
) -> None:
    """Apply the report's statistics to results of other tools. Prints Markdown; --out adds the scores per shift.

    With a configuration that has the key "reported" the rows are reported means of methods, and the answer is the
    probability that a claim of outperformance is false.
    """
    from orchestrator.analysis.tidy.reading import load_tidy
    from orchestrator.analysis.tidy.reported import compute_reported, is_reported, load_reported
    from orchestrator.analysis.tidy.tables import compute_tables, write_tables

    if is_reported(config):
        tables = [compute_reported(*load_reported(results, config))]
    else:
        tables = compute_tables(*load_tidy(results, config))
    # Written first: a reader of the output that goes away (| head) must not cost the files.
    paths = write_tables(tables, out) if out is not None else []
    for table in [table for table in tables if not table.is_long]:
        echo(f"## {table.name}\n\n{table.markdown()}")
    for path in paths:
        echo(path)
