"""What a report was made from, beside it: ``run`` does not write a report again that would say the same."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass

from orchestrator.settled import SOURCE
from trainables.finished import describe_files, find_change
from trainables.storage import Folder

PAGE, VERDICTS = "report/index.html", "report/verdicts.csv"
#: Name of a table beside the page → what is in it.
TABLES = {
    "trials.csv": "a row per planned trial",
    "arms.csv": "mean, sd and n per arm",
    "shifts.csv": "a row per trial, set, shift and severity",
    "effects.csv": "main effects on every headline number",
    "balanced_errors.csv": "BE and rBE per arm, relative to the reference",
    "verdicts.csv": "what came of every hypothesis",
    "costs.csv": "seconds, device hours (finished, without a result) and memory per arm",
}
#: The same for a paper: LaTeX with booktabs, and Markdown.
PAPER_TABLES = {
    "arms.md": "arms, Markdown",
    "arms.tex": "arms, LaTeX",
    "effects.md": "main effects, Markdown",
    "effects.tex": "main effects, LaTeX",
}
#: Folder of the figures as files, where they were asked for.
FIGURES = "report/figures"
_FILES = (PAGE, *(f"report/{name}" for name in TABLES | PAPER_TABLES))
#: What arms are compared by, unless one is asked for.
DEFAULT_METRIC = "balanced_accuracy"


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
    #: Digest of the page.
    page_sha256: str


@dataclass(frozen=True)
class Source:
    """What a report is made from."""

    #: ``settled.compute_state`` of the study.
    state: str
    metric: str
    #: An image under every shift is drawn.
    examples: bool


def write_source(root: Folder, source: Source, report: Report) -> None:
    """Remember what ``report`` was made from; call it when all its files are written."""
    said = {"summary": report.summary, "counts": report.counts}
    said |= {"results_sha256": report.results_sha256, "page_sha256": report.page_sha256}
    root.write_json(SOURCE, {"source": asdict(source), "report": said, "files": describe_files(root, _FILES)})


def read_report(root: Folder, source: Source) -> Report | None:
    """Return the report in the folder of a ledger, None unless it was made from ``source`` and all of it is there."""
    if not root.is_intact(SOURCE):
        return None
    found = root.read_json(SOURCE)
    if found["source"] != asdict(source) or not all(map(root.exists, _FILES)):
        return None
    if "files" not in found or find_change(root, found["files"], since=SOURCE) is not None:
        return None  # written by an older version, or damaged
    return locate_report(root, **found["report"])


def find_report(root: Folder, state: str) -> Report | None:
    """Return the report of this state of the study, whatever it was asked to show; None: there is none."""
    if not root.is_intact(SOURCE):
        return None
    return read_report(root, Source(**(root.read_json(SOURCE)["source"] | {"state": state})))


def read_verdicts(root: Folder) -> list[dict[str, str]]:
    """Return the rows of ``verdicts.csv`` of a report that is there; "" is undefined."""
    return list(csv.DictReader(io.StringIO(root.read(VERDICTS).decode())))


def locate_report(
    root: Folder, *, summary: str, counts: dict[str, int], results_sha256: str, page_sha256: str
) -> Report:
    """Return what is known of the report in the folder of a ledger."""
    uri = root.uri.rstrip("/")
    return Report(
        html=f"{uri}/{PAGE}",
        csv=tuple(f"{uri}/report/{name}" for name in TABLES),
        summary=summary,
        counts=counts,
        results_sha256=results_sha256,
        page_sha256=page_sha256,
    )
