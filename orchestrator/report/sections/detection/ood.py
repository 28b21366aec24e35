"""Report section: which score tells images that the model should not judge, and whether what is flagged also fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd

from orchestrator.analysis.failure_detection import DetectionRows, EnsembleScores, OodTable, tabulate_ood
from orchestrator.analysis.results import Results
from orchestrator.analysis.tables.arms import find_best_arm
from orchestrator.ledger.derived import find_task
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, note, table
from orchestrator.statistics.intervals import MIN_REPLICATES, t_interval
from trainables.evaluation.confidence import find_title
from trainables.evaluation.metrics import OOD_METRICS, REJECTION_METRICS
from trainables.evaluation.segmentation_ood.ensemble_agreement import PAIRWISE_DICE

#: Metric of ``REJECTION_METRICS`` → its share in words.
_SHARES = {"sensitivity": "share of the set flagged", "specificity": "share of test images kept"}
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
    shows = "classes that were held out" if find_task(results.plan) == "classification" else "something alike"
    text = (
        f"Arm {label}: {auroc.title} between the unshifted test images and each set ({auroc.formula}), in percent; "
        f"small: 95 % t interval over independently trained models, from {MIN_REPLICATES} on, and {fpr.title}. Near "
        f"sets show {shows}, far sets something else altogether. Covariate sets show the same under shifts or from "
        "elsewhere: flagging them is no success in itself, and whether what is flagged there also fails is what the "
        "table of failures judges (all shifts, external sets)."
    )
    rejection = [name for name in REJECTION_METRICS if any(name in each for each in found.values.values())]
    if rejection:
        text += " At the threshold that 95 % of the validation images reach, in percent: " + ", ".join(
            f"{name}, the {_SHARES[name]}" for name in rejection
        )
        text += "."
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
            small += _describe_rates({metric: float(np.mean(of_units)) for metric, of_units in values.items()})
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
        small = f'<span class="sd">{_describe_rates(values)}</span>'
        cells.append(Cell(f"{100 * values['auroc']:.1f}<br>{small}", values["auroc"]))
    return cells


def _describe_rates(values: Mapping[str, float]) -> str:
    """Return FPR, and sensitivity and specificity where they are known, in percent."""
    known = [name for name in REJECTION_METRICS if np.isfinite(values.get(name, np.nan))]
    shares = "".join(f" · {name[:4]}. {100 * values[name]:.0f}" for name in known)
    return f"FPR {100 * values['fpr_at_95_tpr']:.0f}{shares}"


def _mean(found: OodTable, score: str, name: str) -> float:
    values = found.values.get((score, name))
    return -np.inf if values is None else float(np.mean(values["auroc"]))
