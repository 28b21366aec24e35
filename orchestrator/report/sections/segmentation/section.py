"""Report section: how well pixels are told apart, on which data set, and what the worst cases look like."""

from __future__ import annotations

from html import escape
from pathlib import Path

import pandas as pd

from orchestrator.analysis.failure_detection import EnsembleScores
from orchestrator.analysis.results import Results
from orchestrator.analysis.segmentation.by_data_set import DataSetScore, DataSetScores, score_data_sets
from orchestrator.analysis.segmentation.cases import Cases, find_worst, load_cases
from orchestrator.analysis.tables.arms import describe_best_arm, find_best_arm
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, embed, note, table
from orchestrator.report.sections.segmentation.ensemble import show_ensemble
from orchestrator.report.sections.segmentation.figures import draw_areas, draw_data_sets, draw_score
from orchestrator.report.sections.segmentation.pictures import draw_cases
from orchestrator.statistics.intervals import MIN_REPLICATES
from trainables.errors import RobustSweepError
from trainables.evaluation.confidence import find_title
from trainables.evaluation.metrics import SEGMENTATION_METRICS

#: Cases that are shown.
NUM_WORST = 6
#: Score whose dots are drawn against Dice, as it is stored.
SCORE = "predictive_entropy/foreground"


def segmentation_section(
    results: Results, ledger: Ledger, ensemble: EnsembleScores | None, arms: pd.DataFrame, cache_dir: Path | None
) -> Section | None:
    """Return the section, None if no trial is a segmentation.

    Args:
        results: tables of the study.
        ledger: ledger of the study; the cases of one trial are read.
        ensemble: the ensemble of the arm that validation chooses, if there is one.
        arms: ``arms_table(results)``.
        cache_dir: folder of this node's decoded images; None: no pictures.
    """
    scores = score_data_sets(results)
    if scores is None:
        return None
    body = _score_table(results, scores) + embed(draw_data_sets(scores, results.labels), "figure-data-sets")
    if ensemble is not None:
        label = results.labels.get(ensemble.arm, ensemble.arm)
        body += show_ensemble(ensemble, f"{describe_best_arm(results)} ({label})")
    arm = find_best_arm(results, arms, f"val/{results.metric}")
    cases = None if arm is None else load_cases(results, ledger, arm)
    if arm is not None and cases is not None:
        body += _show_worst(results, cases, results.labels.get(arm, arm), cache_dir)
        for name, figure in (
            ("figure-areas", draw_areas(cases, scores.data_sets)),
            ("figure-dice-score", draw_score(cases, SCORE, find_title(SCORE), scores.data_sets)),
        ):
            body += "" if figure is None else embed(figure, name)
    return Section("segmentation", "Segmentation", "How well are pixels told apart, and where not?", body)


def _score_table(results: Results, scores: DataSetScores) -> str:
    columns = [Column("arm"), Column("tested on")]
    columns += [Column(SEGMENTATION_METRICS[name].title, is_number=True) for name in scores.metrics]
    rows = []
    for arm in scores.arms:
        label = results.labels.get(arm, arm)
        for data_set in scores.data_sets:
            found = [scores.scores.get((arm, data_set, name)) for name in scores.metrics]
            if any(each is not None for each in found):
                cells = [_cell(each, name) for each, name in zip(found, scores.metrics, strict=True)]
                rows.append([Cell(escape(label), label), Cell(escape(data_set), data_set), *cells])
    text = (
        "Unshifted test images: mean over cases, then over independently trained models; small: 95 % t interval over "
        f"these, from {MIN_REPLICATES} on. A missed structure counts with the diagonal of the image in surface "
        "distances and with 0 in overlaps; cases where truth and prediction are empty count in no mean. Errors of "
        "calibration are those of all pixels, and of those near the structures, where the background does not decide. "
        "HD95 is in mm, or in pixels where the files give no spacing."
    )
    return note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)


def _cell(score: DataSetScore | None, name: str) -> Cell:
    if score is None:
        return Cell("–", "")
    digits = 3 if SEGMENTATION_METRICS[name].high <= 1 else 1  # distances are of some mm
    small = "" if score.interval is None else f"{score.interval.low:.{digits}f} to {score.interval.high:.{digits}f}"
    return Cell(f'{score.mean:.{digits}f}<br><span class="sd">{small}</span>', score.mean)


def _show_worst(results: Results, cases: Cases, label: str, cache_dir: Path | None) -> str:
    """Return the worst cases as pictures, or why there are none; nothing if none are asked for."""
    if cache_dir is None:
        return ""
    try:
        worst = find_worst(results, cases, cache_dir, number=NUM_WORST)
    except RobustSweepError as error:
        return callout(f"No cases are shown, because the images could not be had here: {error}", "warn")
    text = (
        f"The {len(worst)} cases with the lowest Dice of the {describe_best_arm(results)} ({label}, replicate "
        f"{cases.replicate}), of all its test images. Errors: green found, orange missed, blue invented; uncertainty: "
        "entropy of the predicted probabilities, white is the largest."
    )
    return note(text) + draw_cases(worst)
