"""One row per planned trial, and one per trial × set × shift × severity.

Rows come from the plan, not from the folders in the ledger, so a missing trial is a row and not a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from orchestrator.analysis.tables.evaluations import Evaluations, evaluations_table
from orchestrator.analysis.tuning import CANDIDATE, TUNED
from orchestrator.ledger.derived import stops_early
from orchestrator.ledger.record import Record, describe_stop
from orchestrator.planning.states import COMPLETE, FAILED, INTERRUPTED, STOPPED

#: State, in every table, of a planned trial without a folder in the ledger.
MISSING = "missing"


def trials_table(
    plan: dict[str, Any], records: dict[str, Record], stages: list[Record], evaluations: Mapping[str, Evaluations]
) -> pd.DataFrame:
    """Return one row per planned trial with its arm, levels, replicate, state, reason, times and all metrics."""
    broken = {stage.signature: stage for stage in stages if stage.state == FAILED}
    rows, known = [], list_states(plan)
    for trial in plan["trials"]:
        record = records.get(trial["signature"])
        state = record.state if record else MISSING
        state = state if state in known else INTERRUPTED  # stopped early by a search that no longer stops early
        row = _key(trial) | _describe_candidate(trial)
        row |= {"state": state, "reason": _reason(trial, record, broken)}
        if record is not None and record.result is not None:
            result = record.result
            row |= {name: result.get(name) for name in ("epochs", "best_epoch", "duration_seconds", "peak_rss_mib")}
            row |= {f"val/{name}": value for name, value in evaluations[trial["signature"]].validation.items()}
            row |= dict(sorted(result["metrics"].items()))
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["signature", "name", "replicate", "state", "reason"])


def list_states(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the states that a planned trial can be in."""
    return (COMPLETE, *((STOPPED,) if stops_early(plan) else ()), FAILED, INTERRUPTED, MISSING)


def _key(trial: dict[str, Any]) -> dict[str, Any]:
    levels = {f"arm/{factor}": str(level) for factor, level in trial["arm"].items()}
    return {"signature": trial["signature"], "name": trial["name"], **levels, "replicate": trial["replicate"]}


def _describe_candidate(trial: dict[str, Any]) -> dict[str, Any]:
    if "candidate" not in trial:
        return {}
    return {CANDIDATE: trial["candidate"]} | {f"{TUNED}{name}": label for name, label in trial["tuned"].items()}


def _reason(trial: dict[str, Any], record: Record | None, broken: dict[str, Record]) -> str:
    if record is not None and record.failure is not None and record.result is None:
        return f"{record.failure['reason']}: {record.failure['message']}"
    if record is not None and record.state == STOPPED:
        return f"stopped {describe_stop(record)}"
    dead = [need for need in trial["needs"] if need in broken]
    if dead and (record is None or record.result is None):
        return f"upstream: stage {dead[0]} failed"
    return ""


def shifts_table(plan: dict[str, Any], evaluations: Mapping[str, Evaluations]) -> pd.DataFrame:
    """Return one row per complete trial × set × shift × severity. A strength of several numbers is JSON text."""
    complete = [trial for trial in plan["trials"] if trial["signature"] in evaluations]
    packed = [evaluations[trial["signature"]] for trial in complete]
    if not any(each.about for each in packed):
        return pd.DataFrame(columns=["signature", "name", "replicate", "set", "shift", "severity"])
    return evaluations_table(pd.DataFrame(list(map(_key, complete))), packed)
