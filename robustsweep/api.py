"""The functions of ``robustsweep``: each calls what the command of its name calls, with the study file's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from orchestrator.driver.terminal.summary import Summary
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.study.study_file import Study
    from trainables.config import Execution, TrialConfig


def plan(study: Study, *, storage: str | None = None) -> pd.DataFrame:
    """Return one row per stage and trial of a study: what it is, and what ``run`` would do with it.

    Columns: ``kind`` ("stage" or "trial"), ``signature``, ``name``, one ``arm/<factor>`` per factor, ``replicate``, and
    ``action`` ("to run", "to resume", "complete", "failed", "held back", "stopped early" or "not needed").

    Args:
        study: the study (``load_study``).
        storage: root of the ledger, path or URI; None: that of the study file.

    Raises:
        RobustSweepError: the study, its data or its storage cannot be used; the message names every problem.
    """
    import pandas as pd

    from orchestrator.driver.prepare import prepare

    prepared = prepare(study, storage=storage or study.execution.storage)
    actions = prepared.list_actions()
    rows = [
        {
            "kind": work.kind,
            "signature": work.signature,
            "name": work.name,
            **{f"arm/{factor}": level for factor, level in (work.levels or {}).items()},
            "replicate": work.replicate,
            "action": actions[work.signature],
        }
        for work in prepared.plan.works
    ]
    return pd.DataFrame(rows)


def run(
    study: Study,
    *,
    storage: str | None = None,
    mlflow: str | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    console: Console | None = None,
) -> Summary:
    """Run what is open, resume what was interrupted, write the report; return the counts of trials.

    Args:
        study: the study (``load_study``).
        storage: root of the ledger, path or URI; None: that of the study file.
        mlflow: tracking URI; None: the environment, the study file, or a SQLite file beside the ledger.
        address: address of a Ray cluster; None: that of the study file, or this machine.
        retry_failed: whether failed trials are tried again.
        console: where progress is printed; None: the terminal or notebook.

    Raises:
        RobustSweepError: the request is wrong, or the infrastructure failed. What is complete stays so.
    """
    from orchestrator.cli.select import register_if_asked
    from orchestrator.driver.run import run_study
    from orchestrator.driver.terminal.console import PrintableConsole

    root, console = storage or study.execution.storage, console or PrintableConsole()
    summary = run_study(study, storage=root, mlflow=mlflow, address=address, console=console, retry_failed=retry_failed)
    register_if_asked(study, summary, storage=root, mlflow=mlflow, console=console)
    return summary


def status(study: Study | str, *, storage: str | None = None) -> dict[str, int]:
    """Return the number of planned, complete, running, failed, interrupted and missing trials of the last plan.

    Args:
        study: a study, the path of its file, or the name of one that was run.
        storage: root of the ledger, path or URI; None: that of the study file.
    """
    from orchestrator.cli.status import compute_status

    opened = _open(study, storage)
    return compute_status(opened, storage=storage or opened.execution.storage)


def results(study: Study | str, *, storage: str | None = None, metric: str = "balanced_accuracy") -> StudyResults:
    """Return the results of a study as tidy tables, in whatever state it is.

    Args:
        study: a study, the path of its file, or the name of one that was run.
        storage: root of the ledger, path or URI; None: that of the study file.
        metric: accuracy, balanced_accuracy or auroc, for ``arms``.

    Raises:
        StudyError: the study was never run, or the metric is unknown.
        StorageError: the ledger is damaged; the message names the file.
    """
    from orchestrator.analysis.results import load_results
    from orchestrator.analysis.tables.arms import arms_table
    from orchestrator.ledger.ledger import Ledger

    opened = _open(study, storage)
    ledger = Ledger(storage or opened.execution.storage, opened.study)
    found = load_results(ledger, metric)
    return StudyResults(
        found.trained.trials, found.shifts, arms_table(found), ledger, tuple(found.plan["data"]["classes"])
    )


@dataclass(frozen=True)
class StudyResults:
    """Tidy tables of a study."""

    #: One row per planned trial: signature, arm, levels, replicate, state, reason, times and every metric. With
    #: ``tuning`` all candidates, with their number, their values and whether they were chosen.
    trials: pd.DataFrame
    #: One row per complete trial (chosen candidate), set, shift and severity.
    shifts: pd.DataFrame
    #: One row per arm: counts by state; mean, sample standard deviation and n of each headline number.
    arms: pd.DataFrame
    _ledger: Ledger
    _classes: tuple[str, ...]

    def predictions(self, signature: str) -> pd.DataFrame:
        """Return one row per image, set, shift and severity of a complete trial: label, predicted, probabilities.

        Raises:
            StudyError: the trial is not complete.
            StorageError: its predictions are damaged.
        """
        from orchestrator.analysis.predictions.table import predictions_table

        return predictions_table(self._ledger, signature, self._classes)


def run_trial(
    config: TrialConfig | Mapping[str, Any], *, folder: str | Path, execution: Execution | None = None
) -> dict[str, Any]:
    """Train and evaluate one model in this process, without Ray and MLflow; return the content of ``result.json``.

    Called again after an interruption it continues from the last checkpoint.

    Args:
        config: description of the trial, or its fields as plain values; missing ones have their defaults.
        folder: folder or URI that everything is written to.
        execution: device, threads, cache; None: the defaults.

    Raises:
        ConfigError: the config is not valid, or starts from a stage, which only a study runs.
        RobustSweepError: the data or the training cannot be used; the message says what to do.
    """
    from pydantic import ValidationError

    from orchestrator.planning.identity import compute_signature
    from trainables.config import Execution, TrialConfig
    from trainables.data.load import load_dataset
    from trainables.errors import ConfigError
    from trainables.pretraining_config import TrainedStep
    from trainables.storage.folder import Folder
    from trainables.trial import run_trial

    try:
        trial = config if isinstance(config, TrialConfig) else TrialConfig.model_validate(config)
    except ValidationError as error:
        raise ConfigError(f"this is no description of a trial: {error}") from error
    if isinstance(trial.pretraining, TrainedStep):
        raise ConfigError(
            f"pretraining: found {trial.pretraining.kind}, a stage that only a study runs; put the trial into a study "
            "file"
        )
    execution = execution or Execution()
    data = load_dataset(trial.data, cache_dir=execution.cache_dir.expanduser())
    signature = compute_signature(trial, data.fingerprint)
    return run_trial(trial, signature=signature, folder=Folder(str(folder)), execution=execution)


def _open(study: Study | str, storage: str | None) -> Study:
    """Return the study, or the one of a file or name."""
    from orchestrator.cli.lookup import open_study

    return open_study(study, storage=storage) if isinstance(study, str) else study
