"""A study by its name: what the ledger knows of one that was run, for commands that only look at what is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.ledger.ledger import Ledger
from orchestrator.study.execution_config import ExecutionConfig
from orchestrator.study.problems import explain
from orchestrator.study.study_file import Study, load_study
from orchestrator.study.yaml_source import Source, apply_override
from trainables.errors import StudyError
from trainables.storage.folder import Folder

#: What a study may be called.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Folders of a storage that are looked at for names to suggest.
_MAX_LISTED = 50


def open_study(what: str, *, storage: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """Return the study in a file, or the one of this name as it was last run.

    Of a study that is found by name ``factors`` may have lost their order, and of ``execution`` only budget, MLflow,
    cache and storage are known.

    Args:
        what: path of a study file, or a name.
        storage: value of ``--storage``; None: what the file says, or the default.
        overrides: ``dotted.path=YAML value`` each; for a name only below ``execution``.

    Raises:
        StudyError: there is neither such a file nor such a study, or what is there cannot be read.
        StorageError: the storage cannot be read, or the plan is damaged.
    """
    if Path(what).is_file():
        return load_study(what, overrides)
    root = storage or _default_storage(overrides)
    ledger = Ledger(root, what) if _NAME.fullmatch(what) else None
    if ledger is None or not ledger.root.exists("plan.json"):
        names = list_studies(root)
        there = f"the studies there are {', '.join(names)}" if names else "there is no study there"
        raise StudyError(
            f"found no study file {what!r}, and no study of that name in {root}: {there}; give a file or a name, and "
            "say with --storage where the study lies"
        )
    plan = ledger.read_plan()
    tree = _read_execution(plan, ledger, overrides)
    values = plan["base"] | tree.value
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        for key, _, text in explain(error, Study, values):
            tree.report(key, text)
        advice = "if another version of RobustSweep has written that, give the study file instead of its name"
        raise StudyError(f"{tree.describe_problems()}\n{advice}") from error


def list_studies(storage: str) -> list[str]:
    """Return the names of studies that were run with a storage, at most ``_MAX_LISTED``."""
    folder = Folder(storage)
    return [name for name in islice(folder.children(), _MAX_LISTED) if (folder / name).exists("plan.json")]


def _default_storage(overrides: Sequence[str]) -> str:
    """Return where studies lie unless the command line says otherwise."""
    named = [override.partition("=")[2] for override in overrides if override.startswith("execution.storage=")]
    return named[-1] if named else str(ExecutionConfig.model_fields["storage"].default)


def _read_execution(plan: Mapping[str, Any], ledger: Ledger, overrides: Sequence[str]) -> Source:
    """Return what is known of ``execution``, as the only section of a study file."""
    budget = plan.get("budget") or {"limits": None, "price_per_gpu_hour": None}  # older plans have none
    known = {
        "budget": budget["limits"],
        "price_per_gpu_hour": budget["price_per_gpu_hour"],
        "mlflow": _read_mlflow(plan["mlflow"], ledger),
        "cache_dir": plan.get("cache_dir"),
        "storage": ledger.storage,
    }
    tree = Source(f"{ledger.root.uri}/plan.json", {"execution": {k: v for k, v in known.items() if v is not None}})
    for override in overrides:
        apply_override(tree, override)
    if tree.problems:
        raise StudyError(tree.describe_problems())
    others = sorted(set(tree.value) - {"execution"})
    if others:
        raise StudyError(
            f"asked for the study {ledger.study!r} by name, with --set {', '.join(others)}: of a study that was run "
            "only execution can be set; give the study file to change more"
        )
    return tree


def _read_mlflow(address: str | None, ledger: Ledger) -> str | None:
    """Return the MLflow store of the last run; None for the one beside the ledger, which may have moved with it."""
    is_default = address is not None and re.fullmatch(rf"sqlite:///.*/{re.escape(ledger.study)}/mlflow\.db", address)
    return None if is_default else address
