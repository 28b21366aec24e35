"""Writer of a comparison: one HTML file and its tables, made from the ledgers of several studies."""

from __future__ import annotations

import pandas as pd

from orchestrator.analysis.comparison.compare import Comparison
from orchestrator.analysis.comparison.pairs import pairs_table
from orchestrator.analysis.results import TITLES, results_sha256
from orchestrator.analysis.tables.formats import TextTable
from orchestrator.analysis.wording import plural, sentence
from orchestrator.planning.states import COMPLETE
from orchestrator.report.comparison import sections
from orchestrator.report.page import callout, render_page
from orchestrator.report.sections.provenance import describe_tested_on
from trainables.storage.folder import Folder

#: File name → what it holds.
TABLES = {
    "trials.csv": "every complete trial",
    "arms.csv": "mean, sd and n of every arm",
    "pairs.csv": "differences between arms of two studies",
    "settings.csv": "settings that differ",
    "shifts_left_out.csv": "shifts that are in no mean",
}


def write_comparison(compared: Comparison, out: str) -> list[str]:
    """Write ``index.html`` and its tables into a folder; return the paths, the page first.

    Args:
        compared: tables of the comparison.
        out: folder or fsspec URI.

    Raises:
        StorageError: the storage refused.
    """
    folder = Folder(out)
    left_out = pd.DataFrame(compared.common.left_out.items(), columns=["shift", "why"])
    frames = (compared.trials.drop(columns=["name", "label"]), compared.arms.drop(columns=["name", "label"]))
    for name, frame in zip(TABLES, (*frames, pairs_table(compared.pairs), compared.settings, left_out), strict=True):
        folder.write(name, TextTable(frame).csv().encode())
    folder.write("index.html", _render(compared).encode())  # last, so that a page never lies beside older tables
    return [f"{out.rstrip('/')}/{name}" for name in ("index.html", *TABLES)]


def _tell_tested_on(compared: Comparison) -> str:
    """Return which arms are tested on images of which data sets, if these differ (HTML)."""
    if not compared.tested_on:
        return ""
    return callout(f"{describe_tested_on(compared.tested_on, {})} No difference between others is paired.", "warn")


def _tell_remarks(compared: Comparison) -> str:
    """Return what has to be said of the pretraining of arms, with their names (HTML)."""
    arms: dict[str, list[str]] = {}
    for arm in (arm for side in compared.sides for arm in side.arms):
        for remark in arm.remarks:
            arms.setdefault(remark, []).append(arm.label)
    return "".join(callout(f"{sentence(remark)}.", "warn", labels) for remark, labels in arms.items())


def _render(compared: Comparison) -> str:
    names = [side.label for side in compared.sides]
    digests = {side.label: results_sha256(side.results) for side in compared.sides}
    planned, complete = (int(compared.arms[column].sum()) for column in ("planned", COMPLETE))
    lacking = callout(
        f"{planned - complete} of {planned} trials are not complete. Every mean is over what is complete, so arms may "
        "rest on different replicates.",
        "bad",
    )
    return render_page(
        title=f"{' and '.join(names)}: comparison",
        eyebrow=f"Comparison of {compared.num_studies} studies",
        question=f"How do {', '.join(names[:-1])} and {names[-1]} compare?",
        lede=f"{sentence(TITLES[compared.metric])}; {plural(len(compared.arms), 'arm')}, "
        f"{plural(complete, 'complete trial')}; means under shift over "
        f"{plural(len(compared.common.names), 'shift')} that all have.",
        status=lacking * (complete < planned) + _tell_tested_on(compared) + _tell_remarks(compared),
        sections=[
            sections.overview_section(compared),
            sections.arms_section(compared),
            sections.pairs_section(compared),
            sections.settings_section(compared),
            sections.left_out_section(compared),
            sections.provenance_section(compared, digests, TABLES),
        ],
        footer="One file that needs no network, made by RobustSweep from the studies’ ledgers.",
    )
