"""Report section: what the trained networks make of images, in numbers, spectra and similarities."""

from __future__ import annotations

from html import escape

import pandas as pd

from orchestrator.analysis.predictions.layers import ArmLayers, load_arm_layers, tabulate_statistics
from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, note, table, views
from orchestrator.statistics.intervals import summarise
from trainables.evaluation.metrics import REPRESENTATION_METRICS

#: Most arms of which spectra and layers are drawn; more lines are not told apart.
MAX_ARMS = 12


def representation_section(results: Results, ledger: Ledger) -> Section | None:
    """Return the section, None if no complete trial stores what its layers hold.

    Args:
        results: tables of the study.
        ledger: ledger of the study; stored spectra and features are read.
    """
    statistics = tabulate_statistics(results)
    if statistics.empty:
        return None
    body = _table(results, statistics)
    arms = load_arm_layers(results, ledger)
    if arms:
        body += _figures(results, ledger, dict(list(arms.items())[:MAX_ARMS]))
    return Section("representations", "Representations", "What have the networks learned to see?", body)


def _table(results: Results, statistics: pd.DataFrame) -> str:
    found = [name for name in REPRESENTATION_METRICS if name in statistics]
    columns = [Column("arm"), *(Column(_head(name), is_number=True) for name in found)]
    rows = []
    for name, own in statistics.groupby("name", sort=False):
        label = results.labels.get(str(name), str(name))
        rows.append([Cell(escape(label), label), *(_cell(own[metric]) for metric in found)])
    text = (
        "Of the penultimate features on unshifted test images, mean ± sd over independently trained models: replicates "
        "that share a pretrained encoder are one. ↑ higher is better, ↓ lower; "
        "the others describe. None of them chooses a model: networks with the same accuracy differ in all of them. "
        "The table of metrics (docs/metrics.md) has the formulas."
    )
    return note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)


def _head(name: str) -> str:
    metric = REPRESENTATION_METRICS[name]
    return metric.title if metric.is_descriptive else f"{metric.title} {'↑' if metric.higher_is_better else '↓'}"


def _cell(values: pd.Series) -> Cell:
    summary = summarise(values)
    if summary.mean is None:
        return Cell("–", "")
    digits = 2 if abs(summary.mean) < 10 else 1
    spread = "" if summary.sd is None else f' <span class="sd">± {summary.sd:.{digits}f}</span>'
    return Cell(f"{summary.mean:.{digits}f}{spread}", summary.mean)


def _figures(results: Results, ledger: Ledger, arms: dict[str, ArmLayers]) -> str:
    from orchestrator.analysis.predictions.similarity import compare_arms  # imports torch
    from orchestrator.report.sections.representation.figures import draw_initial, draw_similarity, draw_spectra

    layers = list(dict.fromkeys(layer for stored in arms.values() for layer in reversed(stored.spectra)))
    body = views({layer: draw_spectra(layer, arms, results.labels) for layer in layers}, "figure-spectra", "Layer:")
    similarity = compare_arms(results, ledger)
    if similarity is not None:
        body += views(draw_similarity(similarity, results.labels), "figure-similarity", "Measure:")
    initial = {results.labels.get(name, name): stored for name, stored in arms.items() if stored.compared}
    drawn = {label: draw_initial(stored, label) for label, stored in initial.items()}
    return body + (views(drawn, "figure-initial", "Arm:") if drawn else "")
