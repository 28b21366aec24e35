"""Commands ``robustsweep init``, ``examples`` and ``schema``: study files to begin with, and what they may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.driver.terminal.echo import echo


def init(
    source: Annotated[
        Path,
        typer.Option(
            "--from",
            help="CSV manifest, folder of images, with masks or without, or npz in MedMNIST's form.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Study file to write.")] = Path("study.yaml"),
    minutes: Annotated[float, typer.Option(min=1, help="How long the study should take on this machine.")] = 30.0,
) -> None:
    """Look at images and write a commented study file for them, sized for this machine."""
    from orchestrator.execution.resources import count_gpus
    from orchestrator.study.execution_config import ExecutionConfig
    from orchestrator.templates.write_study import write_study

    execution = ExecutionConfig()
    cache_dir = execution.cache_dir.expanduser()
    has_gpu = count_gpus(execution) > 0
    echo(f"reading {source}")
    written = write_study(source, out, minutes=minutes, cache_dir=cache_dir, has_gpu=has_gpu)
    echo(f"wrote    {written.path}: {written.num_trials} trials, about {max(written.seconds / 60, 1):.0f} min here")
    if written.seconds > 60 * minutes * 1.05:
        echo(f"         that is more than {minutes:g} min: fewer arms, replicates or pixels take less")
    echo(f"plan     robustsweep plan {written.path}")
    echo(f"run      robustsweep run {written.path}")


def examples(
    folder: Annotated[Path, typer.Argument(help="Folder to copy them to.")] = Path("robustsweep-examples"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files of the same names.")] = False,
) -> None:
    """Copy the shipped study files into a folder."""
    from orchestrator.templates.examples import copy_examples

    for path in copy_examples(folder, overwrite=force):
        echo(f"robustsweep run {path}")


def schema() -> None:
    """Print the JSON schema of a study file, for editors."""
    from orchestrator.study.schema import study_schema

    echo(json.dumps(study_schema(), indent=1))
