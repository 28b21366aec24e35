"""``robustsweep select``: choose an arm, write its model with a card, register it in MLflow, report each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.analysis.results import TITLES, Results, load_results
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.plan import describe_skipped
from orchestrator.planning.states import STOPPED
from orchestrator.selection.export import Exported, export_selection
from orchestrator.selection.ranking import RULES, Selection, SelectionCriteria, describe_value, select_arm
from orchestrator.study.study_file import Study
from trainables.storage.folder import Folder

#: Ranked arms that a terminal shows.
_SHOWN_ARMS = 20


@dataclass(frozen=True)
class SelectOptions:
    """Options of ``robustsweep select``."""

    criteria: SelectionCriteria
    #: Path or URI of the folder to write; None for a folder below the ledger.
    out: str | None = None
    onnx: bool = False
    #: Name in MLflow's model registry; None if the model is not to be registered.
    register: str | None = None
    alias: str | None = None
    #: Label of the data set whose arms are ranked; None for a study on a single one.
    data_set: str | None = None


def select_model(
    study: Study, request: SelectOptions, *, storage: str, mlflow: str | None = None, write_line: Callable[[str], None]
) -> dict[str, Any]:
    """Choose, export, check and register a model; return a summary as JSON values.

    Args:
        study: content of the study file.
        request: options of the command.
        storage: root of the ledger.
        mlflow: value of ``--mlflow``.
        write_line: callback that receives the lines for the user.

    Raises:
        RobustSweepError: any of its subclasses, with a message for the user.
    """
    ledger = Ledger(storage, study.study)
    named = [metric for metric in TITLES if (request.criteria.by or "").endswith(metric)]
    results = load_results(ledger, max(named, key=len, default=None))
    if request.data_set is not None:
        results = results.select_data_set(request.data_set)
    selection = select_arm(results, request.criteria)
    for line in describe_selection(selection, results):
        write_line(line)
    out = None if request.out is None else Folder(request.out)
    cache_dir = study.execution.cache_dir.expanduser()
    exported = export_selection(ledger, results, selection, out=out, cache_dir=cache_dir, onnx=request.onnx)
    for line in _describe_export(exported):
        write_line(line)
    done: dict[str, Any] = {"selection": selection.as_json(), "folder": exported.folder.uri}
    done["files"] = list(exported.files)
    done["checks"] = [asdict(check) for check in exported.checks]
    if request.register is not None:
        from orchestrator.selection.registry import register_model

        uri = mlflow_uri(study, ledger, mlflow)
        registered = register_model(
            uri, ledger, selection, exported, name=request.register, alias=request.alias, write_line=write_line
        )
        done["registered"] = asdict(registered)
    return done


def mlflow_uri(study: Study, ledger: Ledger, flag: str | None) -> str:
    """Return the tracking URI of the study's store."""
    from orchestrator.tracking.addresses import resolve_tracking_uri

    return resolve_tracking_uri(ledger, flag=flag, study_value=study.execution.mlflow)


def describe_selection(selection: Selection, results: Results) -> list[str]:
    """Return the ranking, the numbers of incomplete trials and the choice, as lines."""
    counts = selection.counts
    who = "ORACLE: test, shifted or external data choose" if selection.oracle else selection.chooser
    lines = [
        f"{counts['complete']} of {counts['planned']} trials complete"
        + "".join(f", {counts[state]} {state}" for state in ("failed", "interrupted", "missing") if counts[state])
        + (f", {counts[STOPPED]} stopped early" if counts.get(STOPPED) else ""),
        *(f"left out of the plan: {line}" for line in describe_skipped(results.plan["skipped"])),
        f"arms by {selection.column} ({who}), mean ± sd over replicates:",
    ]
    shown = selection.ranking[:_SHOWN_ARMS]
    width = max(len(arm.label) for arm in shown)
    for place, arm in enumerate(shown, start=1):
        mark = "*" if arm.name == selection.arm.name else " "
        lacking = f"  {arm.complete} of {arm.planned} complete" if arm.complete < arm.planned else ""
        lines.append(f"{mark}{place:>3}  {arm.label:<{width}}  {describe_value(arm)}{lacking}")
    if len(selection.ranking) > len(shown):
        lines.append(f"      and {len(selection.ranking) - len(shown)} more")
    lines.append(f"chosen: {selection.label}, replicate {selection.replicate} ({selection.signature})")
    candidate = results.read_candidate(selection.signature)
    if candidate:
        values = ", ".join(f"{name} {value}" for name, value in candidate["tuned"].items()) or "no setting applies"
        by = results.plan["tuning"]["metric"]
        lines.append(f"tuned: {values} (candidate {candidate['candidate']}, the best of its replicate by {by})")
    lines.append(f"rule {selection.rule}: {RULES[selection.rule]}")
    return [*lines, *(f"  {each}" for each in (*selection.reasons, *selection.remarks))]


def _describe_export(exported: Exported) -> list[str]:
    lines = [f"checked: {check.describe()}" for check in exported.checks]
    return [*lines, *(f"written: {exported.folder.uri}/{name}" for name in exported.files)]
