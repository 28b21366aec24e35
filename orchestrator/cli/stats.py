"""Command ``robustsweep stats``: its arguments. The work is done in ``analysis/tidy/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def stats(
    results: Annotated[Path, typer.Argument(help="CSV with a row per evaluation of a model.", show_default=False)],
    config: Annotated[Path, typer.Option("--config", help="YAML: what its columns are.", show_default=False)],
    out: Annotated[
        str | None, typer.Option(help="Folder or fsspec URI for CSV, Markdown and LaTeX.", show_default="none")
    ] = None,
) -> None:
    """Apply the report's statistics to results of other tools. Prints Markdown; --out adds the scores per shift."""
    from orchestrator.analysis.tidy.reading import load_tidy
    from orchestrator.analysis.tidy.tables import compute_tables, write_tables

    tables = compute_tables(*load_tidy(results, config))
    for table in [table for table in tables if not table.is_long]:
        typer.echo(f"## {table.name}\n\n{table.markdown()}")
    for path in write_tables(tables, out) if out is not None else ():
        typer.echo(path)
