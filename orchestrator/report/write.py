"""Ledger → one HTML file and its tables: the whole report, read from top to bottom."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.ledger import Ledger
from orchestrator.plan import describe_skipped
from orchestrator.report import importance, provenance, sections
from orchestrator.report.answer import Answer, answer
from orchestrator.report.effects import compute_effects, effects_table
from orchestrator.report.examples import Examples, build_examples
from orchestrator.report.html import render_page
from orchestrator.report.source import DEFAULT_METRIC, PAGE, TABLES, Report, Source, locate_report, write_source
from orchestrator.report.tables import Results, arms_table, balanced_errors_table, load_results, results_sha256
from orchestrator.report.text import TextTable
from orchestrator.settled import SOURCE, compute_state
from trainables.config import TrialConfig
from trainables.errors import RobustSweepError
from trainables.storage import Folder


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause the search for cycles: 10,000 records are millions of objects without one (2 s of 5 s reading them)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collection()
def write_report(ledger: Ledger, *, cache_dir: Path, metric: str = DEFAULT_METRIC, examples: bool = True) -> Report:
    """Write ``report/index.html`` and its tables into the ledger, whatever state the study is in.

    Args:
        ledger: of the study.
        cache_dir: decoded images of this node, for the examples.
        metric: accuracy, balanced_accuracy or auroc: what arms are compared by.
        examples: draw an image under every shift; needs torch and the data.

    Raises:
        StudyError: the study was never planned, or the metric is unknown.
        StorageError: the ledger is damaged, or the storage refuses.
    """
    state = compute_state(ledger.read_plan(), ledger.states())  # first: the report is old if they change meanwhile
    results = load_results(ledger, metric)
    arms = arms_table(results)
    # The arms of a search are no grid: there is nothing that they could be paired by.
    measures = [] if "search" in results.plan else results.measures
    effects = {measure.column: compute_effects(results, measure.column) for measure in measures}
    words = answer(results, arms, effects.get(f"robustness/mean_{metric}", []))
    digest = results_sha256(results)
    pictures, problem = _examples(results, cache_dir) if examples else (None, None)

    shown = {c: effects[c] for c in (f"robustness/mean_{metric}", f"id/{metric}") if c in effects}
    main = effects.get(f"robustness/mean_{metric}", [])
    parts = [
        sections.answer_section(words),
        importance.search_section(results),
        sections.arms_section(results, arms) if len(arms) else None,
        sections.effects_section(results, shown),
        sections.shifts_section(results, arms, main),
        sections.transfer_section(results, main),
        sections.training_section(results, main),
        sections.examples_section(pictures, problem),
        sections.problems_section(results),
        provenance.provenance_section(results, digest=digest, files=TABLES),
    ]
    page = render_page(
        title=f"{ledger.study}: robustness report",
        eyebrow=f"Robustness study · {ledger.study}",
        question=results.plan["question"] or ledger.study,
        lede=provenance.lede(results),
        status=provenance.status(results),
        sections=[part for part in parts if part is not None],
        footer="One file that needs no network, made by RobustSweep from the study’s ledger.",
    )
    tables = {
        "trials.csv": results.text["trials"],
        "arms.csv": TextTable(arms),
        "shifts.csv": results.text["shifts"],
        "effects.csv": TextTable(effects_table([effect for rows in effects.values() for effect in rows])),
        "balanced_errors.csv": TextTable(balanced_errors_table(results)),
    }
    _write(ledger.root, page, tables)
    report = locate_report(
        ledger.root,
        summary=_summary(results, words),
        counts=results.counts,
        results_sha256=digest,
        page_sha256=hashlib.sha256(page.encode()).hexdigest(),
    )
    write_source(ledger.root, Source(state, metric, examples=pictures is not None), report)
    return report


def _examples(results: Results, cache_dir: Path) -> tuple[Examples | None, str | None]:
    """Return the examples, or in words why there are none: a report must not fail because images have moved."""
    records = list(results.records.values())
    if not records:
        return None, "No trial has started, so it is not known which images to show."
    try:
        return build_examples(TrialConfig.model_validate(records[0].config["config"]), cache_dir=cache_dir), None
    except RobustSweepError as error:
        return None, f"No examples are shown, because the images could not be had here: {error}"


def _write(root: Folder, page: str, tables: dict[str, TextTable]) -> None:
    root.remove(SOURCE)
    for name, table in tables.items():
        root.write(f"report/{name}", table.csv().encode())
    root.write(PAGE, page.encode())  # last: a page never lies beside older tables


def _summary(results: Results, words: Answer) -> str:
    counts = results.counts
    lines = [", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "complete")]
    if words.problem is not None:
        lines.append(words.problem)
    lines += [f"{s.heading}: {s.headline}. {s.text}" for s in words.statements]
    skipped = results.plan["skipped"]
    if skipped:
        lines += [f"Left out of the plan: {line}" for line in describe_skipped(skipped)]
    return "\n".join(lines)
