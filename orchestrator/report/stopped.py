"""What a search has stopped early: which configurations, how far they came, and what that has saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.reconcile import STOPPED
from orchestrator.report.html import Cell, Column, note, plural, table
from orchestrator.report.tables import Results
from orchestrator.search import average_curves, read_curve
from orchestrator.search_config import SearchConfig, is_higher_better

_MAX_ROWS = 10


@dataclass(frozen=True)
class Stopped:
    """One configuration that was stopped early."""

    name: str
    #: The last epoch of the replicate that came farthest, and how many it would have had.
    epoch: int
    num_epochs: int
    #: What it was judged by after that epoch, mean over the replicates that have it; None: it was not defined.
    value: float | None


def find_stopped(results: Results, config: SearchConfig) -> list[Stopped]:
    """Return the configurations that were stopped early, those that came farthest first, of these the best first."""
    found = []
    sign = 1 if is_higher_better(config.judged_by) == config.objectives[0].higher_is_better else -1
    for name, group in results.trials[results.trials["name"].isin(results.stopped_arms)].groupby("name", sort=False):
        records = [results.records[signature] for signature in group["signature"] if signature in results.records]
        curve = average_curves([read_curve(config, record.epochs) for record in records])
        epoch = max(curve, default=0)
        num_epochs = max(record.config["config"]["training"]["epochs"] for record in records)
        found.append(Stopped(str(name), epoch, num_epochs, sign * curve[epoch] if curve else None))
    better = -1 if is_higher_better(config.judged_by) else 1
    return sorted(found, key=lambda each: (-each.epoch, 0.0 if each.value is None else better * each.value))


def count_epochs(results: Results) -> tuple[int, int]:
    """Return how many epochs were not trained because of early stopping, and how many there would have been in all."""
    saved = total = 0
    for record in results.records.values():
        num_epochs = record.config["config"]["training"]["epochs"]
        total += num_epochs
        if record.state == STOPPED:
            saved += num_epochs - len({line["epoch"] for line in record.epochs})
    return saved, total


def describe_stopped(results: Results, stopped: Sequence[Stopped]) -> str:
    """Return in words how many were stopped and what that has saved."""
    saved, total = count_epochs(results)
    trials = int((results.trials["state"] == STOPPED).sum())
    share = f" ({100 * saved / total:.0f} %)" if total else ""
    return (
        f"{plural(len(stopped), 'configuration')} ({plural(trials, 'trial')}) stopped early, which saved {saved:,} of "
        f"{total:,} epochs{share}"
    )


def stopped_table(results: Results, config: SearchConfig, stopped: Sequence[Stopped], names: Sequence[str]) -> str:
    """Return a row per configuration, with the dimensions ``names`` of the search (HTML); "" when there is none."""
    if not stopped:
        return ""
    arms = {trial["name"]: trial["arm"] for trial in results.plan["trials"]}
    columns = [Column(name) for name in names]
    columns += [Column("epochs", is_number=True), Column(f"{config.judged_by} then", is_number=True)]
    rows = []
    for each in stopped[:_MAX_ROWS]:
        levels = arms[each.name]
        row = [Cell(escape(str(levels[name])) if name in levels else '<span class="sd">–</span>') for name in names]
        row.append(Cell(f'{each.epoch} <span class="sd">of {each.num_epochs}</span>', value=each.epoch))
        value = "undefined" if each.value is None else f"{each.value:.4g}"
        row.append(Cell(value, value="" if each.value is None else each.value))
        rows.append(row)
    rest = len(stopped) - len(rows)
    text = "They fell behind, and not all of their replicates were trained to the end: none of them can be chosen."
    text += " All of them are in arms.csv." if rest else ""
    return f"<h3>Which were stopped early?</h3>{note(text)}{table(columns, rows)}"
