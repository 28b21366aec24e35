"""Report section: which confidence score ranks the wrong predictions last, in distribution, under shifts, elsewhere."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from orchestrator.analysis.failure_detection import (
    ALL_SHIFTS,
    IN_DISTRIBUTION,
    MAX_TRIALS,
    DetectionRows,
    Ranking,
    Standing,
    describe_ranking,
    rank_scores,
    tabulate_conditions,
    tabulate_means,
)
from orchestrator.analysis.results import Results
from orchestrator.analysis.tables.arms import describe_best_arm, find_best_arm
from orchestrator.ledger.derived import find_task
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, embed, note, table
from orchestrator.statistics.intervals import MIN_REPLICATES
from trainables.evaluation.confidence import find_title
from trainables.evaluation.metrics import FAILURE_METRICS, SEGMENTATION_FAILURE_METRICS

if TYPE_CHECKING:
    from orchestrator.analysis.failure_detection import EnsembleScores
    from orchestrator.analysis.predictions.confidence_curves import ConfidenceCurves

#: Metric of the table; values are shown times 1,000, as in the papers.
METRIC = "augrc"
_SHOWN_FACTOR = 1000
#: What bold means and ≈ marks, in the texts of the tables of scores.
_MARKS = (
    "Bold is the lowest mean; ≈ marks scores that are not told from it by paired intervals (95 % for all comparisons "
    "of a column together)."
)


def failure_section(
    results: Results,
    ledger: Ledger,
    rows: DetectionRows | None,
    ensemble: EnsembleScores | None,
    arms: pd.DataFrame,
) -> Section | None:
    """Return the section on the arm that validation chooses, and on all arms; None if no trial has a score.

    Args:
        results: tables of the study.
        ledger: ledger of the study; the chosen arm's predictions are read for the figures.
        rows: ``load_detection_rows(results, ledger)``.
        ensemble: the deep ensemble of the arm that validation chooses, if there is one.
        arms: ``arms_table(results)``.
    """
    means = tabulate_means(results, METRIC)
    if means.empty:
        return None
    names = [
        *means,
        *({} if rows is None else rows.failures["score"].unique()),
        *({} if rows is None else rows.undefined),
    ]
    titles = {str(name): find_title(str(name)) for name in names}
    arm = find_best_arm(results, arms, f"val/{results.metric}")
    body = ""
    if rows is None:
        body = note(
            f"Of studies with more than {MAX_TRIALS:,} complete trials, families of shifts, external sets and curves "
            "are not read: only what every trial has among its headline numbers is shown."
        )
    elif arm is not None:
        body = _describe_arm(results, ledger, rows, ensemble, arm, titles)
    body += _arm_table(results, means, titles)
    undefined = rows.undefined if rows is not None else {}
    if undefined:
        body += callout(
            "Scores that no trial has:", items=[f"{titles[name]}: {why}" for name, why in undefined.items()]
        )
    is_of_cases = find_task(results.plan) == "segmentation"
    title = (
        "Does the model know which segmentations are bad?" if is_of_cases else "Does the model know when it is wrong?"
    )
    return Section("failures", "Failures", title, body)


def _describe_arm(
    results: Results,
    ledger: Ledger,
    rows: DetectionRows,
    ensemble: EnsembleScores | None,
    arm: str,
    titles: Mapping[str, str],
) -> str:
    """Return text, table and figures on one arm; of segmentations without those that need stored outputs."""
    from orchestrator.analysis.predictions.confidence_curves import (  # imports torch
        compute_confidence_curves,
        select_curves,
    )

    ranking = rank_scores(results, rows, arm, METRIC)
    if not ranking.standings:
        return ""
    chosen = describe_best_arm(results)
    label = results.labels.get(arm, arm)
    if find_task(results.plan) == "segmentation":
        own = rows.failures[rows.failures["name"] == arm]
        return _lead(ranking, titles, label, chosen) + _case_table(results, own, ranking, titles, ensemble)
    signatures = [str(each) for each in results.complete.loc[results.complete["name"] == arm, "signature"]]
    drawn = select_curves(list(ranking.standings), ranking.leaders)
    curves = compute_confidence_curves(ledger, signatures, drawn)
    body = _lead(ranking, titles, label, chosen) + _score_table(ranking, titles, ensemble)
    body += "" if curves is None else _figures(curves, titles, label)
    return body + _referral_table(results, rows, arm, titles)


def _lead(ranking: Ranking, titles: Mapping[str, str], label: str, chosen: str) -> str:
    sentences = " ".join(describe_ranking(ranking, titles))
    return note(f"Of the {chosen} (“{label}”). {sentences}")


def _score_table(ranking: Ranking, titles: Mapping[str, str], ensemble: EnsembleScores | None) -> str:
    metric = FAILURE_METRICS[ranking.metric]
    text = (
        f"{metric.title} × {_SHOWN_FACTOR:,}, lower is better: {metric.formula} ({metric.source}). Mean over "
        f"{ranking.num_units} independently trained models; small: 95 % t interval, from {MIN_REPLICATES} on, and the "
        f"rank. {_MARKS} Errors that no score flags raise a whole column: columns do not compare."
    )
    of_ensemble = (
        "A deep ensemble of these {num} models is one model more, with errors of its own: it is one unit, so it has no "
        "interval over replicates and no rank."
    )
    return _table(ranking, titles, ensemble, text, of_ensemble)


def _case_table(
    results: Results,
    own: pd.DataFrame,
    ranking: Ranking,
    titles: Mapping[str, str],
    ensemble: EnsembleScores | None,
) -> str:
    """Return the table of the scores of cases of a segmentation, with their correlation with Dice.

    Args:
        results: tables of the study.
        own: rows of failures of the arm.
        ranking: its ranking.
        titles: score → title.
        ensemble: its ensemble, if there is one.
    """
    metric, spearman = FAILURE_METRICS[METRIC], SEGMENTATION_FAILURE_METRICS["spearman"]
    correlations = tabulate_conditions(results, own, "spearman").mean() if "spearman" in own else pd.Series(dtype=float)
    more = {key: f" · ρ {found:.2f}".replace("-", "−") for key, found in correlations.items() if not pd.isna(found)}
    text = (
        f"{metric.title} × {_SHOWN_FACTOR:,}, lower is better: area under the sum of the risks 1 − Dice of the cases "
        f"that are kept, divided by all cases, over the coverage ({metric.source}). Mean over {ranking.num_units} "
        f"independently trained models; small: 95 % t interval, from {MIN_REPLICATES} on, the rank, and ρ, "
        f"{spearman.title} ({spearman.formula}), a mean over models, too. {_MARKS} Low Dice raises a whole "
        "column: columns do not compare. Scores of layers are of unshifted images alone."
    )
    of_ensemble = (
        "Pairwise Dice is of the ensemble of these {num} models, and judges its vote: one unit without interval and "
        "rank. Dice of shifted images is not known of the vote, whose members store what they predict on unshifted "
        "ones."
    )
    return _table(ranking, titles, ensemble, text, of_ensemble, more)


def _table(
    ranking: Ranking,
    titles: Mapping[str, str],
    ensemble: EnsembleScores | None,
    text: str,
    of_ensemble: str,
    more: Mapping[Hashable, str] | None = None,
) -> str:
    """Return the table score × condition below its text.

    Args:
        ranking: scores of the chosen arm.
        titles: score → title.
        ensemble: its ensemble, if there is one.
        text: how to read the table.
        of_ensemble: how to read the rows of an ensemble of ``{num}`` members.
        more: (condition, score) → what stands beside the rank.
    """
    columns = [Column("confidence score"), *(Column(each, is_number=True) for each in ranking.conditions)]
    rows = []
    for score, of_conditions in ranking.standings.items():
        cells = [Cell(escape(titles[score]), titles[score])]
        cells += [
            _cell(ranking, score, each, of_conditions.get(each), (more or {}).get((each, score), ""))
            for each in ranking.conditions
        ]
        rows.append(cells)
    if ensemble is not None and ensemble.augrc:
        rows += _ensemble_rows(ranking, ensemble)
        text += " " + of_ensemble.format(num=ensemble.num_members)
    return note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)


def _cell(ranking: Ranking, score: str, condition: str, standing: Standing | None, more: str) -> Cell:
    if standing is None:
        return Cell("–", "")
    best, *rivals = ranking.tied.get(condition, ("",))
    small = f"#{standing.rank}" + (" ≈" if score in rivals else "") + more
    if standing.interval is not None:
        low, high = (_SHOWN_FACTOR * each for each in (standing.interval.low, standing.interval.high))
        small = f"{low:.1f} to {high:.1f} · {small}"
    text = f'{_SHOWN_FACTOR * standing.mean:.1f}<br><span class="sd">{small}</span>'
    return Cell(text, standing.mean, "best" if score == best else "")


def _ensemble_rows(ranking: Ranking, ensemble: EnsembleScores) -> list[list[Cell]]:
    rows = []
    for name, of_conditions in ensemble.augrc.items():
        title = find_title(name)
        cells = [Cell(escape(title), title)]
        for condition in ranking.conditions:
            value = of_conditions.get(condition)
            cells.append(Cell("–", "") if value is None else Cell(f"{_SHOWN_FACTOR * value:.1f}", value))
        rows.append(cells)
    return rows


def _referral_table(results: Results, rows: DetectionRows, arm: str, titles: Mapping[str, str]) -> str:
    """Return the table of what a threshold that keeps 80 % of validation does elsewhere."""
    own = rows.failures[rows.failures["name"] == arm]
    kept, wrong = (
        tabulate_conditions(results, own, name).mean().unstack("condition", sort=False)
        for name in ("coverage_at_coverage_80", "risk_at_coverage_80")
    )
    shown = [each for each in (IN_DISTRIBUTION, ALL_SHIFTS) if each in kept]
    columns = [Column("confidence score")]
    columns += [Column(f"{what}, {each}", is_number=True) for each in shown for what in ("kept", "wrong among them")]
    body = []
    for score in kept.index:
        title = titles[str(score)]
        cells = [Cell(escape(title), title)]
        for each in shown:
            cells += [_share(kept.loc[score, each]), _share(wrong.loc[score, each])]
        body.append(cells)
    text = (
        "What a clinic would deploy: the threshold that refers one validation image in five, fixed there and "
        "applied unchanged. Where images look stranger than validation did, more of them are referred, or more errors "
        "are kept. Means over the trained models; severities, shifts and types of shift averaged as everywhere."
    )
    return note(text) + table(columns, body)


def _share(value: float) -> Cell:
    return Cell("–", "") if pd.isna(value) else Cell(f"{100 * value:.1f} %", float(value))


def _figures(curves: ConfidenceCurves, titles: Mapping[str, str], label: str) -> str:
    from orchestrator.report.sections.detection.figures import draw_confidences, draw_reliability, draw_risks

    return (
        embed(draw_risks(curves, titles, label), "figure-risk-coverage")
        + embed(draw_reliability(curves, label), "figure-reliability")
        + embed(draw_confidences(curves, label), "figure-confidences")
    )


def _arm_table(results: Results, means: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Return the table arm × score of the mean over all shifts; nothing for a single arm."""
    if len(means) < 2:
        return ""
    columns = [Column("arm"), *(Column(titles[str(score)], is_number=True) for score in means)]
    best = means.min(axis=None)
    body: list[list[Cell]] = []
    for name, values in means.iterrows():
        label = results.labels.get(str(name), str(name))
        body.append([Cell(escape(label), label)])
        for value in values:
            known = not pd.isna(value)
            css = "best" if known and value == best else ""
            body[-1].append(Cell(f"{_SHOWN_FACTOR * value:.1f}", float(value), css) if known else Cell("–", ""))
    text = (
        f"{FAILURE_METRICS[METRIC].title} × {_SHOWN_FACTOR:,} on average over the shifts, of every arm: fewer errors "
        "and a better ranking both lower it. Mean over replicates; bold is the lowest mean, which the next need not be "
        "told from."
    )
    return note(text) + table(columns, body, tall=len(body) > TALL_ROWS)
