"""What the report does not rest on, and why: a study must not look more complete than it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape

from orchestrator.reconcile import COMPLETE, STOPPED
from orchestrator.report.html import Cell, Column, Section, note, plural, table
from orchestrator.report.tables import Results

#: Longer tables scroll inside the page.
TALL_ROWS = 24

#: Trials listed one by one; a study of 10,000 that has just begun would be a page of them.
MAX_TRIALS = 500


def left_out_section(results: Results) -> Section:
    """Return everything that is left out, how many of it and why; and each trial that is not complete."""
    columns = [Column("what"), Column("how many", is_number=True), Column("which", sortable=False), Column("why")]
    rows = [
        [Cell(escape(what)), Cell(f"{count:,}", count), Cell(escape(which), css="wide"), Cell(escape(why), css="wide")]
        for what, count, which, why in find_left_out(results)
    ]
    if rows:
        body = note("Nothing of this is in a table, figure or mean above.") + table(columns, rows)
    else:
        body = note(
            "Nothing: every planned trial is complete, no arm was skipped, no metric is undefined, no file is damaged, "
            "no image was set aside."
        )
    return Section("left-out", "Left out", "What is left out, and why?", body + _trials(results))


def find_left_out(results: Results) -> Iterator[tuple[str, int, str, str]]:
    """Yield what is left out, how many, which, and why."""
    skipped: dict[str, list[str]] = {}
    for arm in results.plan["skipped"]:
        skipped.setdefault(arm["reason"], []).append(arm["name"])
    for reason, names in skipped.items():
        yield "arm, skipped by the plan", len(names), _short(names), reason
    incomplete = results.trials[~results.trials["state"].isin([COMPLETE, STOPPED])]
    for key, group in incomplete.groupby(["state", "reason"], sort=False):
        state, why = map(str, key)
        arms = [results.labels[name] for name in dict.fromkeys(group["name"])]
        yield f"{state} trial", len(group), _short(arms), why or "not run yet: run the study again"
    stopped = results.trials[results.trials["state"] == STOPPED]
    if len(stopped):
        arms = [results.labels[name] for name in dict.fromkeys(stopped["name"])]
        why = "the search has stopped it early: it, or another replicate of its configuration, fell behind"
        yield "trial, stopped early", len(stopped), _short(arms), why
    yield from _undefined(results)
    for text in results.damaged:
        yield "damaged file", 1, text, "run the study again: it is made anew"
    if results.orphaned:
        why = "in the ledger, but no longer planned: the study file has changed"
        yield "trial of an earlier plan", len(results.orphaned), _short(list(results.orphaned)), why
    images = Counter(bad["problem"] for bad in results.plan["data"]["quarantined"])
    for problem, count in images.items():
        files = [_image(bad) for bad in results.plan["data"]["quarantined"] if bad["problem"] == problem]
        yield "image, set aside", count, _short(files), problem


def _undefined(results: Results) -> Iterator[tuple[str, int, str, str]]:
    found = Counter(
        (key, why)
        for record in results.records.values()
        if record.result is not None
        for key, why in record.result["undefined"].items()
    )
    keys: dict[tuple[str, int], list[str]] = {}
    for (key, why), count in found.items():
        keys.setdefault((why, count), []).append(key)
    for (why, count), names in keys.items():
        yield "undefined metric", len(names), f"{_short(names)} in {count} of {len(results.complete)} trials", why


def _image(bad: dict[str, object]) -> str:
    return f"{bad['file_name']}" + ("" if bad["row"] is None else f" (row {bad['row']})")


def _short(names: list[str], limit: int = 12) -> str:
    return "; ".join(names[:limit]) + (f"; and {len(names) - limit:,} more" if len(names) > limit else "")


def _trials(results: Results) -> str:
    """Return each trial that is not complete: all of them are also in trials.csv."""
    incomplete = results.trials[results.trials["state"] != COMPLETE]
    if incomplete.empty:
        return ""
    shown = incomplete.head(MAX_TRIALS)
    titles = ("state", "arm", "replicate", "signature", "reason")
    columns = [Column(title, is_number=title == "replicate") for title in titles]
    rows = [
        [
            Cell(escape(trial["state"].replace("_", " "))),
            Cell(escape(results.labels[trial["name"]])),
            Cell(str(trial["replicate"]), value=trial["replicate"]),
            Cell(f"<code>{escape(trial['signature'])}</code>"),
            Cell(escape(trial["reason"]), css="wide"),
        ]
        for trial in shown.to_dict("records")
    ]
    more = len(incomplete) - len(shown)
    text = f"{plural(len(incomplete), 'trial')} not complete, one by one."
    text += f" {more:,} more are in trials.csv." if more else ""
    return f"<h3>{escape('Which trials?')}</h3>" + note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
