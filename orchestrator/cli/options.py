"""Arguments and options that several commands of the command line have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class FigureFormat(StrEnum):
    """File format of figures."""

    svg = "svg"
    png = "png"


class ChecklistName(StrEnum):
    """Checklist for authors."""

    claim = "claim"
    tripod_ai = "tripod-ai"


StudyFile = Annotated[Path, typer.Argument(help="The study file.", show_default=False)]
StudyOrName = Annotated[
    str, typer.Argument(help="The study file, or the name of a study that was run.", show_default=False)
]
Storage = Annotated[str | None, typer.Option(help="Root of the ledger: path or fsspec URI.", show_default="results")]
Mlflow = Annotated[str | None, typer.Option(help="MLflow tracking URI.", show_default="SQLite beside the ledger")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join.", show_default="this machine")]
Part = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Share the study with other drivers, without Ray; begin with part I of N."
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="key.path=value, overrides the file. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Metric = Annotated[str | None, typer.Option(help="Metric of the tables and figures.", show_default="that of the task")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings, failures and results only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every start and epoch, too.")]
VerifyData = Annotated[
    bool, typer.Option("--verify-data", help="Read every byte of the data instead of trusting sizes and times.")
]
Checklists = Annotated[
    list[ChecklistName] | None, typer.Option("--checklist", help="Fill a checklist from the study. Repeatable.")
]
