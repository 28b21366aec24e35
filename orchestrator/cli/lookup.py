"""Lookup of a study by its file, or by its name once it was run, for commands that run no trials."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.ledger.ledger import Ledger
from orchestrator.study.execution_config import ExecutionConfig
from orchestrator.study.problems import explain
from orchestrator.study.study_file import Study, compute_study_sha256, load_study
from orchestrator.study.yaml_source import Source, apply_override
from trainables.errors import StudyError
from trainables.frozen import canonical_json
from trainables.storage.folder import Folder

#: Valid name of a study.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Maximum number of folders of a storage that are searched for study names.
_MAX_LISTED = 50
#: Maximum number of differences and of characters per value that are printed.
_MAX_DIFFERENCES, _MAX_VALUE = 10, 60


def open_study(what: str, *, storage: str | None = None, overrides: Sequence[str] = ()) -> Study:
    """Return the study of a study file, or the study of this name as it was last run.

    In a study found by name, ``factors`` may have lost their order, and ``execution`` has its defaults except for
    budget, GPU price, MLflow, cache and storage.

    Args:
        what: path of a study file, or name of a study.
        storage: value of ``--storage``, used for a name only; if None, ``execution.storage`` of the overrides or the
            default.
        overrides: assignments ``dotted.path=YAML value``; for a name only below ``execution``.

    Raises:
        StudyError: there is neither such a file nor such a study, or the study cannot be read.
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
    """Return the names of studies that were run with a storage, from its first ``_MAX_LISTED`` folders."""
    folder = Folder(storage)
    return [name for name in islice(folder.children(), _MAX_LISTED) if (folder / name).exists("plan.json")]


def describe_differences(study: Study, *, storage: str) -> list[str]:
    """Return lines that say how a study differs from the one that was last run; none if it does not or none was run.

    Raises:
        StorageError: the storage cannot be read, or the plan is damaged.
    """
    ledger = Ledger(storage, study.study)
    if not ledger.root.exists("plan.json"):
        return []
    plan = ledger.read_plan()
    if plan["study_sha256"] == compute_study_sha256(study):
        return []
    try:  # fields that a later version has added have their defaults
        base = Study.model_validate(plan["base"]).describe()
    except ValidationError:
        base = plan["base"]
    before, now = (dict(_flatten(json.loads(canonical_json(values)))) for values in (base, study.describe()))
    keys = sorted(key for key in before | now if before.get(key) != now.get(key))
    if not keys:
        return []
    lines = [f"  {key}: {_shorten(before.get(key))} was run, now {_shorten(now.get(key))}" for key in keys]
    more = [f"  and {len(lines) - _MAX_DIFFERENCES} more"] if len(lines) > _MAX_DIFFERENCES else []
    first = "the study differs from the one that was last run; this is about that one"
    return [first, *lines[:_MAX_DIFFERENCES], *more]


def _flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the JSON of every value that is no mapping, or an empty one."""
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _flatten(below, f"{key}.{name}" if key else str(name))
    else:
        yield key, json.dumps(value, ensure_ascii=False)


def _shorten(value: str | None) -> str:
    """Return the JSON of a value, cut if it is long; None is a key that is not there."""
    if value is None:
        return "nothing"
    return value if len(value) <= _MAX_VALUE else f"{value[:_MAX_VALUE]}…"


def _default_storage(overrides: Sequence[str]) -> str:
    """Return the storage of the last ``execution.storage=`` override, or the default."""
    named = [override.partition("=")[2] for override in overrides if override.startswith("execution.storage=")]
    return named[-1] if named else str(ExecutionConfig.model_fields["storage"].default)


def _read_execution(plan: Mapping[str, Any], ledger: Ledger, overrides: Sequence[str]) -> Source:
    """Return the fields of ``execution`` that the plan stores, overrides applied, as a study file of this section."""
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
    """Return the MLflow store of the last run, None for one beside the ledger, which may have moved with it."""
    is_default = address is not None and re.fullmatch(rf"sqlite:///.*/{re.escape(ledger.study)}/mlflow\.db", address)
    return None if is_default else address
