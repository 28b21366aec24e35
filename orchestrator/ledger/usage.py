"""Wall time that all drivers of a study have used (``usage.json``), and the budget that is left."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.ledger.durations import spent_seconds
from orchestrator.planning.budget import Standing, Usage, format_amount, measure
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, STOPPED
from trainables.storage.completeness import EPOCHS

if TYPE_CHECKING:
    from orchestrator.ledger.ledger import Ledger
    from orchestrator.ledger.record import Record

USAGE = "usage.json"


def read_standing(ledger: Ledger, about: Mapping[str, Any] | None, states: Mapping[str, str]) -> Standing | None:
    """Return how a study stands to its budget, None when it has none.

    Args:
        ledger: of the study.
        about: ``describe_budget``'s.
        states: signature → state of everything in the ledger.

    Raises:
        StorageError: the ledger is damaged.
    """
    if about is None:
        return None
    begun = find_begun(ledger, states) if "trials" in about["limits"] else frozenset[str]()
    price = about["price_per_gpu_hour"]
    taken = measure(read_usage(ledger), num_trials=len(begun), price_per_gpu_hour=price)
    return Standing(about["limits"], taken, begun)


def describe_compute(ledger: Ledger, standing: Standing | None) -> dict[str, str]:
    """Return name → what all runs of a study have taken, in words, and of which budget; what is known of it."""
    facts = {}
    usage = find_usage(ledger)
    if usage is not None:
        hours = [usage.wall_seconds / 3600, usage.slot_seconds / 3600, usage.gpu_seconds / 3600]
        wall, slots, gpus = map(format_amount, hours)
        facts["taken"] = f"{wall} wall hours, {slots} slot-hours, {gpus} GPU-hours; all runs, lost attempts included"
    return facts if standing is None else facts | {"budget": standing.describe()}


def find_begun(ledger: Ledger, states: Mapping[str, str]) -> frozenset[str]:
    """Return the trials that a budget counts: all that have begun, also those that are no longer planned.

    Not those that were only written down as failed because their stage had, or as stopped early because another
    replicate was.
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
    """Return what all runs of a study have taken, None where their account is missing or damaged."""
    return Usage(**ledger.root.read_json(USAGE)) if ledger.root.is_intact(USAGE) else None


def read_usage(ledger: Ledger) -> Usage:
    """Return what all runs of a study have taken.

    Where ``usage.json`` is missing or damaged it is reckoned from what is complete or has failed: attempts that were
    cut off together with their driver or machine are not in it.
    """
    usage = find_usage(ledger)
    if usage is not None:
        return usage
    ended = (COMPLETE, FAILED, STOPPED)
    return estimate_usage([record for kind in ("stage", "trial") for record in ledger.records(kind, states=ended)])


def estimate_usage(records: Collection[Record]) -> Usage:
    """Return the least that stages and trials must have taken; what ran on a GPU had all of it."""
    spans, slots, gpus = [], 0.0, 0.0
    for record in records:
        seconds, end_ms = spent_seconds(record), _find_end_ms(record)
        spans.append((end_ms / 1000 - seconds, end_ms / 1000))
        slots += seconds
        if record.result is not None and record.result["environment"]["device"] != "cpu":
            gpus += seconds
    wall, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        wall += max(0.0, end - max(begin, until))
        until = max(until, end)
    return Usage(wall, slots, gpus)


def _find_end_ms(record: Record) -> float:
    """Return when a stage or trial was last heard of."""
    if record.result is not None:
        return float(record.result["finished_ms"])
    return float(record.epochs[-1]["timestamp_ms"] if record.epochs else record.config["created_ms"])
