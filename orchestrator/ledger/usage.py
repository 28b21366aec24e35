"""Time that all runs of a study have used, and how much of its budget that is, and on what cluster.

usage.json            of the drivers that ran it alone
usage/<driver>.json   of one that shared it with others (``run --shard``), and from when to when it ran
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.ledger.durations import spent_seconds
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import Record
from orchestrator.planning.budget import BudgetStatus, Usage, format_amount, measure
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, STOPPED
from trainables.storage.completeness import EPOCHS

USAGE = "usage.json"
#: Folder with the usage of drivers that shared the study.
SHARED_USAGE = "usage"
#: The cluster that the last run on one has joined.
CLUSTER = "cluster.json"


def record_dashboard(ledger: Ledger, url: str) -> None:
    """Write down the address of the dashboard of the cluster that the study runs on, for the report and MLflow."""
    ledger.root.write_json(CLUSTER, {"dashboard": url})


def find_dashboard(ledger: Ledger) -> str | None:
    """Return the address of the dashboard of the last cluster that the study ran on, None if it has run on none."""
    return str(ledger.root.read_json(CLUSTER)["dashboard"]) if ledger.root.is_intact(CLUSTER) else None


def read_budget_status(
    ledger: Ledger, about: Mapping[str, Any] | None, states: Mapping[str, str]
) -> BudgetStatus | None:
    """Return how much of its budget a study has used, None if it has no budget.

    Args:
        ledger: ledger of the study.
        about: result of ``describe_budget``.
        states: signature → state of everything in the ledger.

    Raises:
        StorageError: the ledger is damaged.
    """
    if about is None:
        return None
    begun = find_begun(ledger, states) if "trials" in about["limits"] else frozenset[str]()
    price = about["price_per_gpu_hour"]
    taken = measure(read_usage(ledger), num_trials=len(begun), price_per_gpu_hour=price)
    return BudgetStatus(about["limits"], taken, begun)


def describe_compute(ledger: Ledger, budget_status: BudgetStatus | None) -> dict[str, str]:
    """Return the time that all runs of a study have used, its cluster and its budget in words, as far as known."""
    facts = {}
    usage = find_usage(ledger)
    if usage is not None:
        hours = [usage.wall_seconds / 3600, usage.slot_seconds / 3600, usage.gpu_seconds / 3600]
        wall, slots, gpus = map(format_amount, hours)
        facts["taken"] = (
            f"{wall} wall hours, {slots} hours of trials and stages, {gpus} GPU hours; all runs, lost attempts included"
        )
    dashboard = find_dashboard(ledger)
    if dashboard is not None:
        facts["Ray dashboard"] = f"{dashboard} while the cluster runs"
    return facts if budget_status is None else facts | {"budget": budget_status.describe()}


def find_begun(ledger: Ledger, states: Mapping[str, str]) -> frozenset[str]:
    """Return the trials that a budget counts: all that have begun, also those that are no longer planned.

    Trials that were only recorded, as failed because their stage failed or as stopped early because another replicate
    was stopped, do not count.
    """
    begun = {name for name in (ledger.root / "trials").children() if states.get(name, ABSENT) != ABSENT}
    failed = [signature for signature in begun if states[signature] == FAILED]
    never = {
        signature
        for signature in failed
        if ledger.folder("trial", signature).read_json("failure.json")["reason"] == "upstream"
    }
    stopped = (signature for signature in begun if states[signature] == STOPPED)
    never |= {signature for signature in stopped if not ledger.folder("trial", signature).exists(EPOCHS)}
    return frozenset(begun - never)


def find_usage(ledger: Ledger) -> Usage | None:
    """Return the usage of all runs of a study, None if nothing intact tells of any."""
    alone, shared = _find_own_usage(ledger), read_shared_usage(ledger)
    return None if alone is None and shared == Usage() else add_usage(alone or Usage(), shared)


def read_usage(ledger: Ledger) -> Usage:
    """Return the usage of all runs of a study, estimated as in ``read_own_usage`` if ``usage.json`` is missing."""
    return add_usage(read_own_usage(ledger), read_shared_usage(ledger))


def add_usage(first: Usage, second: Usage) -> Usage:
    """Return the sum of two usages."""
    return Usage(
        first.wall_seconds + second.wall_seconds,
        first.slot_seconds + second.slot_seconds,
        first.gpu_seconds + second.gpu_seconds,
    )


def read_shared_usage(ledger: Ledger) -> Usage:
    """Return the usage of the drivers that shared a study; the time in which several ran counts once."""
    folder = ledger.root / SHARED_USAGE
    found = [folder.read_json(name) for name in folder.children() if name.endswith(".json") and folder.is_intact(name)]
    spans = [(each["since_ms"] / 1000, each["until_ms"] / 1000) for each in found]
    return Usage(
        _measure_union(spans),
        sum(each["slot_seconds"] for each in found),
        sum(each["gpu_seconds"] for each in found),
    )


def read_others_usage(ledger: Ledger, driver: str) -> Usage:
    """Return the usage of all runs of a study without that of one of the drivers that share it."""
    whole, name = read_usage(ledger), f"{SHARED_USAGE}/{driver}.json"
    if not ledger.root.is_intact(name):
        return whole
    mine = ledger.root.read_json(name)
    seconds = (mine["until_ms"] - mine["since_ms"]) / 1000
    left = whole.wall_seconds - seconds, whole.slot_seconds - mine["slot_seconds"]
    return Usage(*(max(0.0, each) for each in (*left, whole.gpu_seconds - mine["gpu_seconds"])))


def _measure_union(spans: Collection[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _find_own_usage(ledger: Ledger) -> Usage | None:
    return Usage(**ledger.root.read_json(USAGE)) if ledger.root.is_intact(USAGE) else None


def read_own_usage(ledger: Ledger) -> Usage:
    """Return the usage of the drivers that ran a study alone.

    If ``usage.json`` is missing or damaged, and no drivers have shared the study, it is estimated from complete, failed
    and stopped stages and trials: attempts that were cut off together with their driver or machine are not in it.
    """
    usage = _find_own_usage(ledger)
    if usage is not None:
        return usage
    if any((ledger.root / SHARED_USAGE).children()):
        return Usage()
    ended = (COMPLETE, FAILED, STOPPED)
    return estimate_usage([record for kind in ("stage", "trial") for record in ledger.records(kind, states=ended)])


def estimate_usage(records: Collection[Record]) -> Usage:
    """Return the least time that stages and trials must have used. Those that ran on a GPU count as having it alone."""
    spans, slots, gpus = [], 0.0, 0.0
    for record in records:
        seconds, end_ms = spent_seconds(record), _find_end_ms(record)
        spans.append((end_ms / 1000 - seconds, end_ms / 1000))
        slots += seconds
        if record.result is not None and record.result["environment"]["device"] != "cpu":
            gpus += seconds
    return Usage(_measure_union(spans), slots, gpus)


def _find_end_ms(record: Record) -> float:
    """Return the time of the last sign of life of a stage or trial, in ms."""
    if record.result is not None:
        return float(record.result["finished_ms"])
    return float(record.epochs[-1]["timestamp_ms"] if record.epochs else record.config["created_ms"])
