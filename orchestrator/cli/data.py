"""Command ``robustsweep data check``: description of a study's data, and a sheet of near-duplicates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import Overrides, StudyFile, VerifyData
from orchestrator.driver.terminal.echo import echo
from trainables.errors import StorageError, StudyError

if TYPE_CHECKING:
    from orchestrator.study.study_file import Study

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
    from orchestrator.study.study_file import load_study

    loaded = load_study(study, overrides or ())
    check_data(loaded, out or Path(f"{loaded.study}-similar.png"), write_line=echo, verify=verify_data)


def check_data(study: Study, path: Path, *, write_line: Callable[[str], None], verify: bool = False) -> None:
    """Read every data set of a study, write what was understood, and draw its near-duplicates.

    Args:
        study: study whose arms name the data.
        path: PNG of the near-duplicates; of a further data set ``<stem>-2.png`` and so on.
        write_line: receives the lines of the description.
        verify: whether to read every byte instead of trusting sizes and times.

    Raises:
        StudyError: the study has no arm.
        DataError: an image, label or split is unusable.
        StorageError: the image cannot be written.
    """
    from orchestrator.planning.inputs import Inputs
    from trainables.data.contact_sheet import MAX_SHOWN, draw_pairs
    from trainables.data.describe import describe_dataset

    inputs = Inputs(study.execution.cache_dir, verify=verify)
    for arm in study.arms():
        inputs.dataset(arm.config.data)
    if not inputs.datasets:
        raise StudyError(f"looked for the data of {study.study} and found no arm: exclude fewer")
    for number, dataset in enumerate({each.fingerprint: each for each in inputs.datasets}.values(), start=1):
        write_line(f"{dataset.name}, fingerprint {dataset.fingerprint[:12]}")
        for label, line in describe_dataset(dataset).items():
            write_line(f"  {label}: {line}")
        if not dataset.similar.pairs:
            continue
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_pairs(dataset).save(target, format="PNG")
        except OSError as error:
            raise StorageError(f"could not write {target}: {error}; choose another --out") from error
        num_pairs = sum(dataset.similar.counts.values())
        shown = f", {MAX_SHOWN} of {num_pairs:,} pairs" if num_pairs > MAX_SHOWN else ""
        write_line(f"look at them{shown}: {target.absolute()}")
