"""State of a study, read from the ledger alone: fast, without data, Ray or MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from orchestrator.execution.shared_works import find_claims
from orchestrator.ledger.lease import Lease, describe, is_alive, read_leases
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.usage import read_budget_status
from orchestrator.planning.budget import BudgetStatus, describe_budget
from orchestrator.planning.states import ABSENT, COMPLETE, FAILED, INTERRUPTED, STOPPED
from orchestrator.study.study_file import Study

#: Names of the counts of ``status``, in trials. running + interrupted + missing + failed + complete = planned; a study
#: with early stopping also counts stopped trials.
COUNTS = ("planned", "complete", "running", "failed", "interrupted", "missing")
#: Further count of a study with ``tuning``, whose trials are candidates: arms × replicates that can be chosen for.
_TUNED = "tuned_replicates"


def compute_status(study: Study, *, storage: str) -> dict[str, int]:
    """Return the counts over the trials of the last plan; before the first run all are missing.

    A trial that has begun and not ended is running while a driver is alive, else interrupted; where several drivers
    share the study, while the driver that has it is alive. With early stopping,
    stopped trials have a count of their own: they will not be continued. With
    ``tuning`` every candidate is a trial, and the replicates that have all of theirs are counted besides.
    """
    ledger = Ledger(storage, study.study)
    if not ledger.root.exists("plan.json"):
        planned = sum(study.count_replicates(arm.levels) for arm in study.candidates(study.arms()))
        if study.search is not None:
            planned = study.search.num_trials * study.replicates
        none = dict.fromkeys(COUNTS, 0) | ({STOPPED: 0} if study.stops_early else {})
        none |= {_TUNED: 0} if study.tuning else {}
        return none | {"planned": planned, "missing": planned}
    states = ledger.states()
    plan = ledger.read_plan()
    trials = [states.get(trial["signature"], ABSENT) for trial in plan["trials"]]
    trials += [ABSENT] * plan.get("to_come", 0)
    begun = trials.count(INTERRUPTED) + (0 if study.stops_early else trials.count(STOPPED))
    living = find_living(ledger)
    if living:
        held = {signature for signature, claim in find_claims(ledger).items() if claim.holder in living}
        running = sum(trial["signature"] in held for trial in plan["trials"])
    else:
        running = begun if Lease(ledger).holder() else 0
    return {
        "planned": len(trials),
        "complete": trials.count(COMPLETE),
        **({STOPPED: trials.count(STOPPED)} if study.stops_early else {}),
        "running": running,
        "failed": trials.count(FAILED),
        "interrupted": begun - running,
        "missing": trials.count(ABSENT),
        **({_TUNED: _count_tuned(plan, states)} if "tuning" in plan else {}),
    }


def find_living(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Return name → lease of the drivers that share a study and live; none if one runs it alone."""
    return {name: lease for name, lease in read_leases(ledger.root).items() if is_alive(lease)}


def find_drivers(study: Study, *, storage: str) -> list[dict[str, Any]]:
    """Return the drivers that share the study now, by part: shard, host, pid, since_ms, how many works each runs."""
    ledger = Ledger(storage, study.study)
    running = Counter(claim.holder for claim in find_claims(ledger).values())
    drivers = [
        {key: lease[key] for key in ("shard", "host", "pid", "since_ms")} | {"running": running[name]}
        for name, lease in find_living(ledger).items()
    ]
    return sorted(drivers, key=lambda driver: ([int(part) for part in driver["shard"].split("/")], driver["since_ms"]))


def _count_tuned(plan: Mapping[str, Any], states: Mapping[str, str]) -> int:
    """Return how many arms × replicates have all of their candidates complete."""
    found: dict[tuple[str, int], bool] = {}
    for trial in plan["trials"]:
        key = (trial["name"], trial["replicate"])
        found[key] = found.get(key, True) and states.get(trial["signature"]) == COMPLETE
    return sum(found.values())


def find_budget_status(study: Study, *, storage: str) -> BudgetStatus | None:
    """Return the usage of the budget in the current study file, None if the file has no budget."""
    execution, ledger = study.execution, Ledger(storage, study.study)
    if execution.budget is None:
        return None
    return read_budget_status(ledger, describe_budget(execution.budget, execution.price_per_gpu_hour), ledger.states())


def is_out_of_budget(counts: Mapping[str, int], budget_status: BudgetStatus | None) -> bool:
    """Return whether trials are missing and the budget would keep another run from starting any of them."""
    if budget_status is None or counts["running"]:
        return False
    interrupted, missing = counts["interrupted"], counts["missing"]
    return 0 < budget_status.count_held_back(interrupted=interrupted, missing=missing) == interrupted + missing


def find_damaged(study: Study, *, storage: str) -> list[str]:
    """Return descriptions of damaged files, one per stage or trial. Reads every byte of complete ones."""
    ledger = Ledger(storage, study.study)
    ledger.states(every_byte=True)
    return list(ledger.damaged.values())


def render_status(
    counts: Mapping[str, int],
    console: Console,
    budget_status: BudgetStatus | None = None,
    drivers: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Print the counts, one per line, the usage of the budget, and the drivers that share the study."""
    width = max(12, *map(len, counts))
    for name, count in counts.items():
        console.print(f"{name.replace('_', ' '):<{width}} {count}", highlight=False)
    if budget_status is not None:
        console.print(f"{'budget':<12} {budget_status.describe()}", highlight=False, markup=False)
    for driver in drivers:
        runs = f"{describe(driver)}, runs {driver['running']}"
        console.print(f"{'driver':<12} {driver['shard']}  {runs}", highlight=False, markup=False, soft_wrap=True)
    if is_out_of_budget(counts, budget_status):
        console.print("the budget is spent: raise execution.budget and run again", highlight=False)
