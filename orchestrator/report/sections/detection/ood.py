"""Report section: which score tells images that the model should not judge, and whether what is flagged also fails."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

from orchestrator.analysis.failure_detection import DetectionRows, EnsembleScores, OodTable, tabulate_ood
from orchestrator.analysis.results import Results
from orchestrator.analysis.tables.arms import find_best_arm
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, note, table
from orchestrator.statistics.intervals import MIN_REPLICATES, t_interval
from trainables.evaluation.confidence import find_title
from trainables.evaluation.metrics import OOD_METRICS
from trainables.evaluation.segmentation_ood.ensemble_agreement import PAIRWISE_DICE

_ROLES = {"near": "near", "far": "far", "covariate": "covariate: no success in itself"}


def ood_section(
    results: Results, rows: DetectionRows | None, ensemble: EnsembleScores | None, arms: pd.DataFrame
) -> Section | None:
    """Return the section on the arm that validation chooses, None without foreign images and held-out classes.

    Args:
        results: tables of the study.
        rows: ``load_detection_rows(results, ledger)``.
        ensemble: the ensemble of the arm that validation chooses, if there is one.
        arms: ``arms_table(results)``.
    """
    arm = find_best_arm(results, arms, f"val/{results.metric}")
    if rows is None or arm is None:
        return None
    found = tabulate_ood(results, rows, arm)
    if found is None or not {"near", "far"} & set(found.roles.values()):
        return None
    label = results.labels.get(arm, arm)
    auroc, fpr = OOD_METRICS["auroc"], OOD_METRICS["fpr_at_95_tpr"]
    text = (
        f"Arm {label}: {auroc.title} between the unshifted test images and each set ({auroc.formula}), in percent; "
        f"small: 95 % t interval over independently trained models, from {MIN_REPLICATES} on, and {fpr.title}. Near "
        "sets show classes that were held out, far sets something else altogether. Covariate sets show the same "
        "classes under shifts or from elsewhere: flagging them is no success in itself, and whether what is flagged "
        "there also fails is what the table of failures judges (all shifts, external sets)."
    )
    if ensemble is not None and ensemble.voted:
        text += (
            f" The {find_title(PAIRWISE_DICE)} is of the ensemble of these {ensemble.num_members} models: one "
            "unit without an interval, and never bold."
        )
    body = note(text) + _table(found, ensemble)
    return Section("foreign", "Foreign images", "Does the model notice images it should not judge?", body)


def _table(found: OodTable, ensemble: EnsembleScores | None) -> str:
    sets = list(found.roles)
    columns = [Column("score")]
    columns += [Column(f"{name} ({_ROLES[found.roles[name]]})", is_number=True) for name in sets]
    best = {name: max((_mean(found, score, name) for score in found.scores), default=np.nan) for name in sets}
    rows = []
    for score in found.scores:
        title = find_title(score)
        cells = [Cell(escape(title), title)]
        for name in sets:
            values = found.values.get((score, name))
            if values is None:
                cells.append(Cell("–", ""))
                continue
            mean, interval = float(np.mean(values["auroc"])), t_interval(values["auroc"])
            small = "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f} · "
            small += f"FPR {100 * float(np.mean(values['fpr_at_95_tpr'])):.0f}"
            css = "best" if mean == best[name] and found.roles[name] != "covariate" else ""
            cells.append(Cell(f'{100 * mean:.1f}<br><span class="sd">{small}</span>', mean, css))
        rows.append(cells)
    rows += [] if ensemble is None or not ensemble.voted else [_ensemble_row(ensemble, sets)]
    return table(columns, rows, tall=len(rows) > TALL_ROWS)


def _ensemble_row(ensemble: EnsembleScores, sets: Sequence[str]) -> list[Cell]:
    title = find_title(PAIRWISE_DICE)
    cells = [Cell(escape(title), title)]
    by_name = {each.name: each.ood for each in ensemble.voted}
    for name in sets:
        values = by_name.get(name)
        if not values:
            cells.append(Cell("–", ""))
            continue
        small = f'<span class="sd">FPR {100 * values["fpr_at_95_tpr"]:.0f}</span>'
        cells.append(Cell(f"{100 * values['auroc']:.1f}<br>{small}", values["auroc"]))
    return cells


def _mean(found: OodTable, score: str, name: str) -> float:
    values = found.values.get((score, name))
    return -np.inf if values is None else float(np.mean(values["auroc"]))
