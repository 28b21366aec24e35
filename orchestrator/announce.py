"""What a command says before anything happens: labelled lines, what there is, what will run, loudly what will not."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape

from orchestrator.plan import describe_skipped
from orchestrator.prepare import Prepared


def say(console: Console, label: str, text: str) -> None:
    """Print one labelled line; text from the user is not markup."""
    console.print(f"{label:<8} {text}", soft_wrap=True, highlight=False, markup=False)


def warn(console: Console, label: str, text: str) -> None:
    """Print one line that stands out; text from the user is not markup."""
    console.print(f"[bold yellow]{label}[/bold yellow] {escape(text)}", soft_wrap=True, highlight=False)


def announce(prepared: Prepared, console: Console) -> None:
    """Say what there is, what will run, and loudly what will not."""
    plan, actions = prepared.plan, prepared.actions
    kinds = Counter(work.kind for work in actions.open)
    done = sum(work.kind == "trial" for work in actions.skip)
    say(
        console,
        "plan",
        f"{_count(len(plan.trials), 'trial')} and {_count(len(plan.stages), 'stage')}; {_count(done, 'trial')} "
        f"complete, {_count(kinds['trial'], 'trial')} and {_count(kinds['stage'], 'stage')} to run"
        + (f", {len(actions.resume)} of them to resume" if actions.resume else ""),
    )
    for line in describe_skipped(plan.as_json()["skipped"]):
        warn(console, "left out", line)
    num_bad = sum(len(dataset.quarantined) for dataset in prepared.world.datasets)
    if num_bad:
        warn(console, "quarantined", f"{_count(num_bad, 'image')}; the report names them")
    if actions.failed:
        failed = sum(work.kind == "trial" for work in actions.failed)
        warn(console, "failed before", f"{_count(failed, 'trial')}; --retry-failed tries again")
    if actions.orphaned:
        say(console, "kept", f"{len(actions.orphaned)} stages and trials in the ledger that are no longer planned")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
