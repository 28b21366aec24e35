"""Command ``robustsweep data check``: its options. The work is done in ``data_check.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Overrides, StudyFile, VerifyData

data = typer.Typer(help="The data of a study.", no_args_is_help=True)


@data.callback()
def _data() -> None:
    """Keep ``check`` a command of its own: Typer would merge a single one into the group."""


@data.command("check")
def check(
    study: StudyFile,
    out: Annotated[
        Path | None, typer.Option(help="The PNG, written if images look alike.", show_default="<study>-similar.png")
    ] = None,
    verify_data: VerifyData = False,
    overrides: Overrides = None,
) -> None:
    """Read the data, describe them and draw images that look like copies of each other side by side."""
    from orchestrator.cli.data_check import check_data
    from orchestrator.study.study_file import load_study

    loaded = load_study(study, overrides or ())
    check_data(loaded, out or Path(f"{loaded.study}-similar.png"), write_line=typer.echo, verify=verify_data)
