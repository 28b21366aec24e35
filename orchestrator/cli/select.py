"""Command ``robustsweep select``: its options. The work is done in ``selection/select_model.py``.

Also what ``run`` does at its end if the study file asks to register the chosen model.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, Mlflow, Overrides, Storage, StudyOrName
from orchestrator.driver.terminal.echo import echo
from trainables.errors import RobustSweepError, StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.driver.terminal.summary import Summary
    from orchestrator.study.study_file import Study


class Rule(StrEnum):
    """Rule by which the arm is chosen."""

    best = "best"
    one_standard_error = "one-standard-error"


def select(  # noqa: PLR0913 - the options of a command are its arguments
    study: StudyOrName,
    *,
    by: Annotated[
        str | None,
        typer.Option(
            help="Metric on validation, or validation/robustness/…; with --oracle any column.",
            show_default="that of the task",
        ),
    ] = None,
    rule: Annotated[
        Rule, typer.Option(help="best mean over replicates, or the simplest arm within one standard error of it.")
    ] = Rule.best,
    oracle: Annotated[bool, typer.Option("--oracle", help="Let test, shifted or external data choose.")] = False,
    replicate: Annotated[
        int | None, typer.Option(help="Whose model to take.", show_default="the best by the same column")
    ] = None,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="Choose although trials are missing.")] = False,
    out: Annotated[
        str | None, typer.Option(help="Folder or fsspec URI to write.", show_default="<ledger>/selected/<arm>")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file too; needs the extra onnx.")] = False,
    register: Annotated[str | None, typer.Option(help="Name in MLflow's model registry.", show_default="no")] = None,
    alias: Annotated[str | None, typer.Option(help="Alias of the registered version.", show_default="none")] = None,
    data_set: Annotated[
        str | None, typer.Option(help="Choose among its arms, in a study on several.", show_default="none")
    ] = None,
    storage: Storage = None,
    mlflow: Mlflow = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Choose an arm by in-distribution validation, export its model with a card and register it in MLflow."""
    from orchestrator.cli.lookup import describe_differences, open_study
    from orchestrator.selection.ranking import SelectionCriteria
    from orchestrator.selection.select_model import SelectOptions, select_model

    if alias is not None and register is None:
        raise StudyError("--alias names a version in MLflow's model registry; give the model's name with --register")
    loaded = open_study(study, storage=storage, overrides=overrides or ())
    for line in describe_differences(loaded, storage=storage or loaded.execution.storage):
        echo(line, err=True)
    criteria = SelectionCriteria(by, rule.value, oracle, replicate, incomplete)
    done = select_model(
        loaded,
        SelectOptions(criteria, out, onnx, register, alias, data_set),
        storage=storage or loaded.execution.storage,
        mlflow=mlflow,
        write_line=(lambda line: echo(line, err=True)) if as_json else echo,
    )
    if as_json:
        echo(json.dumps(done))


def register_if_asked(study: Study, summary: Summary, *, storage: str, mlflow: str | None, console: Console) -> None:
    """Register the chosen model of a complete study with ``execution.register``; a failure is a warning.

    Args:
        study: the study that was run.
        summary: counts of its trials.
        storage: root of the ledger.
        mlflow: value of ``--mlflow``.
        console: where the lines are printed.
    """
    if study.execution.register is None or not summary.is_complete or summary.is_concluded_elsewhere:
        return
    from orchestrator.driver.terminal.announce import print_line, warn
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.selection.register_best import describe_command, list_models, register_best

    for name, data_set in list_models(Ledger(storage, study.study).read_plan()).items():
        try:
            uri = register_best(study, storage=storage, mlflow=mlflow, name=name, data_set=data_set)
        except RobustSweepError as error:
            again = describe_command(study, storage=storage, mlflow=mlflow, name=name, data_set=data_set)
            warn(console, "register", f"{error}; the study is complete, register its model with: {again}")
        else:
            print_line(console, "registered", uri or f"{name}: its model was registered before")
