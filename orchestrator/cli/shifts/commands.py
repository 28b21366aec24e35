"""Commands ``robustsweep shifts preview | export``: their options. The work is done in ``files.py``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Overrides, StudyFile
from orchestrator.driver.terminal.echo import echo

shifts = typer.Typer(
    help="The shifts of a study, on its own test images (those of the first arm).", no_args_is_help=True
)


class Layout(StrEnum):
    """File layout of exported images."""

    npz = "npz"
    folder = "folder"


@shifts.command("preview")
def preview(
    study: StudyFile,
    out: Annotated[Path | None, typer.Option(help="The PNG.", show_default="<study>-shifts.png")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images, one per class from the last one on.")] = 1,
    overrides: Overrides = None,
) -> None:
    """Draw every shift at every severity as the models receive it. Prints the path of the image."""
    from orchestrator.cli.shifts.files import preview_shifts
    from orchestrator.study.study_file import load_study

    loaded = load_study(study, overrides or ())
    echo(preview_shifts(loaded, out or Path(f"{loaded.study}-shifts.png"), num_images=images))


@shifts.command("export")
def export(
    study: StudyFile,
    out: Annotated[Path, typer.Option(help="Folder to write to.", show_default=False)],
    layout: Annotated[Layout, typer.Option("--format", help="npz as MedMNIST-C, folder as ImageNet-C.")] = Layout.npz,
    overrides: Overrides = None,
) -> None:
    """Write the shifted test sets as files. Prints one path per shift: a file or a folder."""
    from orchestrator.cli.shifts.files import export_shifts
    from orchestrator.study.study_file import load_study

    for path in export_shifts(load_study(study, overrides or ()), out, layout=layout.value):
        echo(path)
