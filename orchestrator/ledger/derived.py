"""Files that note which state of the ledger the report and MLflow show. Deleting them costs time, never results."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from orchestrator.planning.states import ABSENT
from trainables.errors import StudyError
from trainables.evaluation.metrics import MAIN_METRICS
from trainables.frozen import canonical_json
from trainables.storage.completeness import describe_files, find_change
from trainables.storage.folder import Folder

PAGE, VERDICTS = "report/index.html", "report/verdicts.csv"
#: Name of a table beside the page → its content.
TABLES = {
    "trials.csv": "a row per planned trial",
    "arms.csv": "mean, sd and n per arm",
    "shifts.csv": "a row per trial, set, shift and severity",
    "effects.csv": "main effects on every headline number",
    "balanced_errors.csv": "BE and rBE per arm, relative to the reference",
    "failure_detection.csv": "AUGRC per arm, confidence score and condition",
    "verdicts.csv": "what came of every hypothesis",
    "costs.csv": "seconds, device hours (finished, without a result) and memory per arm",
}
#: Tables for a paper → their content: LaTeX with booktabs, and Markdown.
PAPER_TABLES = {
    "arms.md": "arms, Markdown",
    "arms.tex": "arms, LaTeX",
    "effects.md": "main effects, Markdown",
    "effects.tex": "main effects, LaTeX",
}
#: Folder of the figures as files, if they were requested.
FIGURES = "report/figures"
_FILES = (PAGE, *(f"report/{name}" for name in TABLES | PAPER_TABLES))


def find_main_metric(plan: Mapping[str, Any]) -> str:
    """Return the metric by which the arms of a study are compared, unless another is given.

    Plans of earlier versions name none: theirs are classifications.
    """
    named = plan.get("metric")
    return next((each for each in MAIN_METRICS.values() if each == named), MAIN_METRICS["classification"])


def find_task(plan: Mapping[str, Any]) -> str:
    """Return the kind of task of a study: classification or segmentation."""
    metric = find_main_metric(plan)
    return next(task for task, each in MAIN_METRICS.items() if each == metric)


def check_is_classification(plan: Mapping[str, Any], wanted: str) -> None:
    """Check that a study classifies images.

    Args:
        plan: plan of the study.
        wanted: what needs one class per image, in words that follow "asked to".

    Raises:
        StudyError: it segments them.
    """
    if find_task(plan) != "classification":
        raise StudyError(
            f"asked to {wanted} of {plan['study']}, which is a study of segmentations; expected one that classifies "
            "images (task: classification). Its trials have all their scores; --on evaluates them on new images"
        )


@dataclass(frozen=True)
class Report:
    """Location and summary of a report."""

    #: Path or URI of the page.
    html: str
    #: Paths or URIs of the tables beside it.
    csv: tuple[str, ...]
    #: A few lines for a terminal.
    summary: str
    #: Number of trials that are planned, complete, failed, interrupted, missing.
    counts: dict[str, int]
    #: Digest of all results without times.
    results_sha256: str
    #: Digest of the page.
    page_sha256: str


@dataclass(frozen=True)
class Source:
    """State and options from which a report is made."""

    #: ``compute_state`` of the study.
    state: str
    metric: str
    #: Whether an image under every shift is drawn.
    examples: bool


def write_source(root: Folder, source: Source, report: Report) -> None:
    """Write the source from which ``report`` was made. Call it when all files of the report are written."""
    said = {"summary": report.summary, "counts": report.counts}
    said |= {"results_sha256": report.results_sha256, "page_sha256": report.page_sha256}
    root.write_json(SOURCE, {"source": asdict(source), "report": said, "files": describe_files(root, _FILES)})


def read_report(root: Folder, source: Source) -> Report | None:
    """Return the report in the folder of a ledger, None unless it was made from ``source`` and is intact."""
    if not root.is_intact(SOURCE):
        return None
    found = root.read_json(SOURCE)
    if found["source"] != asdict(source) or not all(map(root.exists, _FILES)):
        return None
    if "files" not in found or find_change(root, found["files"], since=SOURCE) is not None:
        return None  # written by an older version, or damaged
    return locate_report(root, **found["report"])


def find_report(root: Folder, state: str) -> Report | None:
    """Return the report of this state of the study, with whatever options; None if there is none."""
    if not root.is_intact(SOURCE):
        return None
    return read_report(root, Source(**(root.read_json(SOURCE)["source"] | {"state": state})))


def read_verdicts(root: Folder) -> list[dict[str, str]]:
    """Return the rows of ``verdicts.csv`` of an existing report; "" is undefined."""
    return list(csv.DictReader(io.StringIO(root.read(VERDICTS).decode())))


def locate_report(
    root: Folder, *, summary: str, counts: dict[str, int], results_sha256: str, page_sha256: str
) -> Report:
    """Return a ``Report`` with the locations of its files in the folder of a ledger."""
    uri = root.uri.rstrip("/")
    return Report(
        html=f"{uri}/{PAGE}",
        csv=tuple(f"{uri}/report/{name}" for name in TABLES),
        summary=summary,
        counts=counts,
        results_sha256=results_sha256,
        page_sha256=page_sha256,
    )


#: Keys of a plan that neither the report nor MLflow shows.
_ASIDE = ("written_ms", "cache_dir")
SOURCE, SHIPPED = "report/source.json", "shipped.json"


def compute_state(plan: Mapping[str, Any], states: Mapping[str, str]) -> str:
    """Return the digest of everything that the report and MLflow depend on: plan, states, version of RobustSweep.

    The content of a complete record never changes; every other change calls ``invalidate`` first.

    Args:
        plan: content of ``plan.json``, of which the time of writing and the folder of cached images do not count.
        states: signature → state of everything in the ledger.
    """
    said = {key: value for key, value in plan.items() if key not in _ASIDE}
    begun = {signature: state for signature, state in states.items() if state != ABSENT}
    text = canonical_json([metadata.version("robustsweep"), said, begun])
    return hashlib.sha256(text.encode()).hexdigest()


def stops_early(plan: Mapping[str, Any]) -> bool:
    """Return whether the study of a ``plan.json`` stops trials early, and does not continue those it has stopped."""
    return bool(plan.get("search", {}).get("early_stopping"))


def invalidate(root: Folder) -> None:
    """Remove ``source.json`` and ``shipped.json``. Call it before anything in the ledger changes."""
    root.remove(SOURCE)
    invalidate_shipped(root)


def invalidate_shipped(root: Folder) -> None:
    """Remove ``shipped.json``. Call it before anything is sent to MLflow."""
    root.remove(SHIPPED)
