"""Report section: results with and without the images whose label people have marked as wrong."""

from __future__ import annotations

from html import escape

import pandas as pd

from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.wording import plural
from orchestrator.ledger.annotations import read_annotations
from orchestrator.ledger.derived import find_task
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, note, table
from orchestrator.statistics.intervals import summarise
from trainables.errors import StudyError

_PAIRS = (("whole", "kept", ""), ("shifted_whole", "shifted_kept", ", mean over shifts"))


def marked_section(results: Results, ledger: Ledger) -> Section | None:
    """Return the section, None if no label of an evaluated image is marked as wrong.

    Args:
        results: tables of the study.
        ledger: ledger of the study, with what people have said about images.
    """
    annotations = [each for each in read_annotations(ledger.root) if each.label_is_wrong]
    if not annotations or results.complete.empty:
        return None
    from orchestrator.analysis.predictions.marked import compare_marked  # imports torch

    what = "mask" if find_task(results.plan) == "segmentation" else "label"
    title = f"What if {what}s that people have marked are wrong?"
    try:
        found = compare_marked(results, ledger, annotations)
    except StudyError as error:
        return Section("marked", f"Marked {what}s", title, callout(f"Not compared: {error}"))
    if found.empty:
        return None
    counts = found.groupby("set", sort=False)["num_marked"].max()
    listed = ", ".join(f"{plural(int(count), 'image')} of {name}" for name, count in counts.items())
    text = (
        f"Marked in the explorer: {listed}. Here they are left out; everything else on this page counts every image as "
        f"it is labelled. Whoever marks {what}s has seen what the models say of these images: leaving out errors that "
        f"look like wrong {what}s flatters every model. {TITLES[results.metric]} in percent, mean ± sd over replicates."
    )
    rows = _rows(results, found)
    columns = [Column("arm"), Column("images"), *(Column(each, is_number=True) for each in ("all", "without marked"))]
    columns.append(Column("difference, points", is_number=True))
    return Section("marked", f"Marked {what}s", title, note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS))


def _rows(results: Results, found: pd.DataFrame) -> list[list[Cell]]:
    rows = []
    for (name, set_name), own in found.groupby(["name", "set"], sort=False):
        label = results.labels.get(str(name), str(name))
        for whole, kept, words in _PAIRS:
            if whole not in own or own[whole].isna().all():
                continue
            change = float((own[kept] - own[whole]).mean())
            cells = [Cell(escape(label), label), Cell(escape(f"{set_name}{words}"))]
            cells += [_share(own[whole]), _share(own[kept]), Cell(f"{100 * change:+.2f}", change)]
            rows.append(cells)
    return rows


def _share(values: pd.Series) -> Cell:
    summary = summarise(values)
    if summary.mean is None:
        return Cell("–", "")
    spread = "" if summary.sd is None else f' <span class="sd">± {100 * summary.sd:.1f}</span>'
    return Cell(f"{100 * summary.mean:.1f}{spread}", summary.mean)
