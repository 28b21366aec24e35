"""Command ``robustsweep stats``: its arguments. The work is done in ``analysis/tidy/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
        typer.echo(f"## {table.name}\n\n{table.markdown()}")
    for path in paths:
        typer.echo(path)
