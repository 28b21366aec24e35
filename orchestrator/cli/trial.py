"""Run of one stage or trial in this process, without Ray and without a fork, for a debugger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.driver.child_process import run_request
from orchestrator.driver.prepare import find_git_commit, prepare, resolve_execution
from orchestrator.execution.chunk_settings import locate_stages
from orchestrator.execution.meter import Meter, saving_usage
from orchestrator.execution.resources import count_gpus
from orchestrator.ledger.lease import Lease
from orchestrator.ledger.usage import read_own_usage
from orchestrator.planning.states import COMPLETE
from orchestrator.study.study_file import Study
from trainables.errors import StudyError
from trainables.storage.claims import find_claim, release_claim, take_claim


def run_single(study: Study, signature: str, *, storage: str, echo: Callable[[str], None]) -> str:
    """Run the stage or trial whose signature starts with ``signature``; return its folder.

    Stages that it needs must be complete. Breakpoints in ``trainables`` are reached, exceptions are not caught.

    Raises:
        StudyError: no signature or more than one matches, or a needed stage is not complete.
        SupersededError: another driver has taken over meanwhile, and runs it.
    """
    prepared = prepare(study, storage=storage)
    ledger = prepared.ledger
    work = prepared.plan.find(signature)
    if work is None:
        known = "\n".join(f"  {work.signature}  {work.kind}  {work.name}" for work in prepared.plan.works[:20])
        raise StudyError(f"looked for exactly one stage or trial {signature!r}; the plan has\n{known}")
    states = ledger.states()
    missing = [need for need in work.waits_for if states.get(need) != COMPLETE]
    if missing:
        raise StudyError(f"{work.name} starts from the stage {missing[0]}, which is not complete; run that first")

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            shown = "  ".join(f"{name} {value:.4g}" for name, value in event["metrics"].items())
            echo(f"epoch {event['epoch']}  {shown}")

    meter = Meter(read_own_usage(ledger))  # the time counts towards the budget, but no limit is enforced
    meter.report("single", gpus=float(count_gpus(study.execution) > 0), busy_seconds=0.0)
    with Lease(ledger) as lease, saving_usage(meter, ledger.root):
        ledger.begin(work, study=study.study, git_commit=find_git_commit())
        folder, claims = ledger.folder(work.kind, work.signature), ledger.claims(work.signature)
        last = find_claim(claims)
        claim = take_claim(claims, 1 if last is None else last.number + 1)
        execution = resolve_execution(study, ledger).model_dump(mode="json")
        execution["early_stopping"] = False  # a single trial runs to its last epoch
        request = {
            "folder": folder.uri,
            "claims": claims.uri,
            "claim": claim.name,
            **locate_stages(ledger, work),
            "execution": execution,
            "lease": lease.ticket,
        }
        run_request(request, report)
        release_claim(claims, claim)
    return folder.uri
