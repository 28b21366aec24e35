"""Ledger → one HTML file and its tables: the whole report, read from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from orchestrator.ledger import Ledger
from orchestrator.plan import describe_skipped
from orchestrator.report import provenance, sections
from orchestrator.report.answer import Answer, answer
from orchestrator.report.effects import compute_effects, effects_table
from orchestrator.report.examples import Examples, build_examples
from orchestrator.report.html import render_page
from orchestrator.report.tables import Results, arms_table, load_results, results_sha256
from trainables.config import TrialConfig
from trainables.errors import RobustSweepError
from trainables.storage import Folder

FILES = {
    "trials.csv": "a row per planned trial",
    "arms.csv": "mean, sd and n per arm",
    "shifts.csv": "a row per trial, set, shift and severity",
    "effects.csv": "main effects on every headline number",
}


@dataclass(frozen=True)
class Report:
    """Where the report lies and what it says in a few lines."""

    #: Path or URI of the page.
    html: str
    #: Paths or URIs of the tables beside it.
    csv: tuple[str, ...]
    #: A few lines for a terminal.
    summary: str
    #: planned, complete, failed, interrupted, missing.
    counts: dict[str, int]
    #: Digest of all results without times.
    results_sha256: str


def write_report(
    ledger: Ledger, *, cache_dir: Path, metric: str = "balanced_accuracy", examples: bool = True
) -> Report:
    """Write ``report/index.html`` and its CSV files into the ledger, whatever state the study is in.

    Args:
        ledger: of the study.
        cache_dir: decoded images of this node, for the examples.
        metric: accuracy, balanced_accuracy or auroc: what arms are compared by.
        examples: draw an image under every shift; needs torch and the data.

    Raises:
        StudyError: the study was never planned, or the metric is unknown.
        StorageError: the ledger is damaged, or the storage refuses.
    """
    results = load_results(ledger, metric)
    arms = arms_table(results)
    effects = {measure.column: compute_effects(results, measure.column) for measure in results.measures}
    words = answer(results, arms, effects.get(f"robustness/mean_{metric}", []))
    digest = results_sha256(results)
    pictures, problem = _examples(results, cache_dir) if examples else (None, None)

    shown = {c: effects[c] for c in (f"robustness/mean_{metric}", f"id/{metric}") if c in effects}
    main = effects.get(f"robustness/mean_{metric}", [])
    parts = [
        sections.answer_section(words),
        sections.arms_section(results, arms) if len(arms) else None,
        sections.effects_section(results, shown),
        sections.shifts_section(results, arms, main),
        sections.transfer_section(results, main),
        sections.training_section(results, main),
        sections.examples_section(pictures, problem),
        sections.problems_section(results),
        provenance.provenance_section(results, digest=digest, files=FILES),
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
        "trials.csv": results.trials,
        "arms.csv": arms,
        "shifts.csv": results.shifts,
        "effects.csv": effects_table([effect for rows in effects.values() for effect in rows]),
    }
    return _write(ledger.root / "report", page, tables, (results, words, digest))


def _examples(results: Results, cache_dir: Path) -> tuple[Examples | None, str | None]:
    """Return the examples, or in words why there are none: a report must not fail because images have moved."""
    records = list(results.records.values())
    if not records:
        return None, "No trial has started, so it is not known which images to show."
    try:
        return build_examples(TrialConfig.model_validate(records[0].config["config"]), cache_dir=cache_dir), None
    except RobustSweepError as error:
        return None, f"No examples are shown, because the images could not be had here: {error}"


def _write(folder: Folder, page: str, tables: dict[str, pd.DataFrame], about: tuple[Results, Answer, str]) -> Report:
    results, words, digest = about
    for name, frame in tables.items():
        folder.write(name, frame.to_csv(index=False, lineterminator="\n").encode())
    folder.write("index.html", page.encode())  # last: a page never lies beside older tables
    uri = folder.uri.rstrip("/")
    return Report(
        html=f"{uri}/index.html",
        csv=tuple(f"{uri}/{name}" for name in tables),
        summary=_summary(results, words),
        counts=results.counts,
        results_sha256=digest,
    )


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
