"""The plan as JSON for programs and as tables for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.driver.estimate import Estimate
from orchestrator.driver.prepare import Prepared
from orchestrator.driver.terminal.announce import announce, count, print_line, warn
from orchestrator.driver.terminal.time_left import format_duration
from orchestrator.ledger.preregistration import trace_hypotheses
from orchestrator.planning.budget import describe_needs
from orchestrator.planning.ceteris_paribus import read_differences, read_matching
from orchestrator.planning.encoders import EncoderUse, find_chains, find_encoder_uses, list_chain_lines
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.works import Work
from trainables.config import MatchingConfig

_MAX_ARMS = 60


def describe_plan(prepared: Prepared, costs: Estimate) -> dict[str, Any]:
    """Return counts, estimate, stages, trials (with their state) and skipped arms."""
    actions = prepared.actions
    states = prepared.list_actions()
    plan = prepared.plan.as_json()
    for row in plan["stages"] + plan["trials"]:
        row["state"] = states[row["signature"]]
    return {
        "study": prepared.study.study,
        "ledger": prepared.ledger.root.uri,
        "counts": count_trials(prepared),
        "estimate": costs.as_json(),
        **({} if prepared.budget_status is None else {"budget": _describe_budget_status(prepared, costs)}),
        "hypotheses": [
            {"name": each.name, "claim": each.content["claim"], "status": each.status, "remark": each.remark}
            | {"differences": read_differences(prepared.about, each.name)}
            | {"tuning": read_matching(prepared.about, each.name)}
            for each in trace_hypotheses(prepared.registration.versions)
        ],
        "chains": [step.as_json(states, costs.stage_seconds) for step in find_chains(prepared.plan)],
        "remarks": prepared.plan.remarks,
        "encoders": [_describe_encoders(use, prepared, costs) for use in find_encoder_uses(prepared.plan)],
        **({"tuning": prepared.about["tuning"]} if prepared.study.tuning else {}),
        "matched": _read_matched(prepared),
        **plan,
        "orphaned": list(actions.orphaned),
    }


def count_trials(prepared: Prepared) -> dict[str, int]:
    """Return state → number of trials, and the numbers of stages and of open stages."""
    actions = prepared.actions
    return {
        "planned": len(prepared.plan.trials) + prepared.plan.num_to_come,
        "complete": _trials(actions.skip),
        "to_resume": _trials(actions.resume),
        "to_run": _trials(actions.start),
        **({"to_come": prepared.plan.num_to_come} if prepared.search else {}),
        **({"stopped_early": _trials(actions.stopped)} if prepared.study.stops_early else {}),
        "failed": _trials(actions.failed),
        "stages": len(prepared.plan.stages),
        "stages_open": sum(work.kind == "stage" for work in actions.open),
    }


def find_needs(prepared: Prepared, costs: Estimate) -> dict[str, float | None]:
    """Return limit of a budget → amount still needed to complete all trials, None if unknown."""
    todo = prepared.actions.open + prepared.actions.held_back
    to_come = prepared.plan.num_to_come
    begun = prepared.budget_status.begun if prepared.budget_status is not None else frozenset()
    return {
        "trials": to_come + sum(work.kind == "trial" and work.signature not in begun for work in todo),
        "wall_hours": None if costs.wall_seconds is None else costs.wall_seconds / 3600,
        "gpu_hours": costs.gpu_hours,
        "money": costs.money,
    }


def _describe_budget_status(prepared: Prepared, costs: Estimate) -> dict[str, Any]:
    """Return usage and needs of the budget as JSON values. ``fits`` is None for a limit whose need is unknown."""
    budget_status, needs = prepared.budget_status, find_needs(prepared, costs)
    assert budget_status is not None
    fits = {
        name: None if needs[name] is None else budget_status.taken[name] + needs[name] <= limit  # type: ignore[operator]
        for name, limit in budget_status.limits.items()
    }
    return budget_status.as_json() | {"needs": {name: needs[name] for name in fits}, "fits": fits}


def _trials(works: Any) -> int:
    return sum(work.kind == "trial" for work in works)


def render_plan(prepared: Prepared, console: Console) -> None:
    """Print data, stages and arms."""
    print_line(console, "study", f"{prepared.study.study}: {prepared.study.question}")
    print_line(console, "ledger", prepared.ledger.root.uri)
    announce(prepared, console)
    states = prepared.list_actions()
    if prepared.plan.stages:
        stages = Table("stage", "signature", "trials that wait for it", "state", title="stages, longest first")
        for stage in prepared.plan.stages:
            row = (stage.name, stage.signature, str(stage.num_dependants), states[stage.signature])
            stages.add_row(*map(escape, row))
        console.print(stages)
    for name, found in _read_matched(prepared).items():
        console.print(_tabulate_matched(name, found))
    planned = Counter(trial.name for trial in prepared.plan.trials)
    todo = prepared.actions.open + prepared.actions.held_back
    still_open = Counter(work.name for work in todo if work.kind == "trial")
    what = "arms" if prepared.search is None else "configurations proposed so far"
    tuning = prepared.study.tuning
    title = f"{len(planned)} {what} × {_describe_numbers(planned)} replicates"
    title += f" × {tuning.candidates} candidates" if tuning else ""
    arms = Table("arm", "trials", "open", title=title)
    for name, number in list(planned.items())[:_MAX_ARMS]:
        arms.add_row(escape(name), str(number), str(still_open[name]))
    if len(planned) > _MAX_ARMS:
        arms.add_row(f"… and {len(planned) - _MAX_ARMS} more arms (--json lists all)", "", "")
    if planned:
        console.print(arms)


def _describe_numbers(planned: Mapping[str, int]) -> str:
    """Return the number of trials per arm, "3 to 6" if arms have different numbers, "0" without any."""
    fewest, most = min(planned.values(), default=0), max(planned.values(), default=0)
    return str(most) if fewest == most else f"{fewest} to {most}"


def _read_matched(prepared: Prepared) -> dict[str, Any]:
    """Return name of each complete stage that has chosen severities → what it has found (``match_strengths``)."""
    stages = [stage for stage in prepared.plan.stages if isinstance(stage.config, MatchingConfig)]
    records = [prepared.ledger.read("stage", each.signature) for each in stages if _is_complete(each, prepared)]
    return {record.config["name"]: record.result["matching"] for record in records if record.result is not None}


def _is_complete(stage: Work, prepared: Prepared) -> bool:
    return prepared.states.get(stage.signature) == COMPLETE


def _tabulate_matched(name: str, found: Mapping[str, Any]) -> Table:
    levels = [f"{level}: −{100 * target:g} %" for level, target in enumerate(found["targets"], 1)]
    strengths = Table("shift", *levels, title=escape(f"{name}: strengths"))
    for shift, matches in found["shifts"].items():
        strengths.add_row(escape(shift), *map(_word_match, matches))
    return strengths


def _word_match(match: Mapping[str, Any]) -> str:
    numbers = match["strength"] if isinstance(match["strength"], list) else [match["strength"]]
    text = ", ".join(f"{number:.3g}" for number in numbers)
    return text if match["reached"] else f"{text} (not reached)"


def render_estimate(prepared: Prepared, costs: Estimate, console: Console) -> None:
    """Print the chains, the estimate, whether it fits the budget, and the encoders with the cost of more."""
    for number, line in enumerate(list_chain_lines(find_chains(prepared.plan), _describe_stages(prepared, costs))):
        print_line(console, "" if number else "chains", line)
    console.print(describe_estimate(costs), highlight=False)
    for use in find_encoder_uses(prepared.plan):
        decides_nothing = use.num_units < min(2, use.num_replicates)
        (warn if decides_nothing else print_line)(console, "encoders", describe_encoder_use(use, prepared, costs))
    if prepared.budget_status is not None:
        for line in describe_needs(prepared.budget_status, find_needs(prepared, costs)):
            print_line(console, "budget", line)


def _describe_stages(prepared: Prepared, costs: Estimate) -> dict[str, str]:
    """Return signature of every stage → its state and cost: "to run, ≈ 3 min"."""
    known, states = costs.stage_seconds, prepared.list_actions()
    return {
        stage.signature: states[stage.signature]
        + (
            f", {'≈ ' * (states[stage.signature] != COMPLETE)}{format_duration(known[stage.signature])}"
            if stage.signature in known
            else ""
        )
        for stage in prepared.plan.stages
    }


def _describe_encoders(use: EncoderUse, prepared: Prepared, costs: Estimate) -> dict[str, Any]:
    """Return the encoders of some arms, and what one per replicate would add, as JSON values."""
    return {
        "stage": use.stage,
        "arms": list(use.arms),
        "encoders": len(use.encoders),
        "replicates": use.num_replicates,
        "units": use.num_units,
        "more_stages": use.num_more,
        "more_seconds": _estimate_more_encoders(use, costs),
        "trials_anew": sum(prepared.states.get(signature) == COMPLETE for signature in use.reused),
    }


def _estimate_more_encoders(use: EncoderUse, costs: Estimate) -> float | None:
    """Return how many seconds the stages of one encoder per replicate add, None if no such stage's time is known."""
    total = 0.0
    for stages in use.steps:
        known = [costs.stage_seconds[signature] for signature in stages if signature in costs.stage_seconds]
        if not known:
            return None
        total += math.ceil((use.num_replicates - len(stages)) / costs.slots) * sum(known) / len(known)
    return total


def describe_encoder_use(use: EncoderUse, prepared: Prepared, costs: Estimate) -> str:
    """Return in one line how many encoders some arms have, what they decide, and the cost of more."""
    told = _describe_encoders(use, prepared, costs)
    number, replicates = told["encoders"], told["replicates"]
    arms = use.arms[0] if len(use.arms) == 1 else f"{len(use.arms)} arms"
    line = f"{count(number, 'encoder')} for {count(replicates, 'replicate')} of {arms}"
    line += f" ({use.stage})"
    if not use.num_more:
        return line
    kind = "supervised" if use.stage.startswith("supervised") else "contrastive"
    decides = f"{use.num_units} units, not {replicates}"
    if use.num_units == 1:
        decides = f"decides nothing about {kind} pretraining"
        decides += "" if number == 1 else ", because they share a step before"
    every = "in every trained step " * (len(use.steps) > 1)
    added = f"+{count(use.num_more, 'stage')}"
    if told["trials_anew"]:
        added += f" and {count(told['trials_anew'], 'complete trial')} anew"
    if told["more_seconds"] is not None:
        added += f", ≈ {format_duration(told['more_seconds'])} for the stages on {count(costs.slots, 'slot')}"
    return f"{line}: {decides}; pretraining.encoders: per_replicate {every}costs {added}"


def describe_estimate(costs: Estimate) -> str:
    """Return the estimate in words, with its source."""
    if costs.wall_seconds is None or costs.work_seconds is None:
        return f"estimate: {costs.source}"
    if not costs.work_seconds:
        return "estimate: nothing is open"
    per_trial = f", {costs.seconds_per_trial:.0f} s a trial" if costs.seconds_per_trial is not None else ""
    return (
        f"estimate from {costs.source}: {format_duration(costs.wall_seconds)} on {costs.slots} slots{per_trial}, "
        f"{costs.gpu_hours:.2f} GPU-hours"
        + (f", {costs.money:.2f} in money" if costs.money is not None else "")
        + (f"; predictions and features {_format_bytes(costs.stored_bytes)}" if costs.stored_bytes else "")
    )


def _format_bytes(number: int) -> str:
    """Return a size with its unit: 12 MB, 3.4 GB."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB" if number >= 1e6 else "below 1 MB"
