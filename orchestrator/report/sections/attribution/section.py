"""Report section: where the models look, by arm and method, beside what chance, the middle and random weights give."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from orchestrator.analysis.attribution.agreement import RankAgreement, rank_agreement
from orchestrator.analysis.attribution.scores import ArmScore, AttributionScores, list_untold, score_arms
from orchestrator.analysis.results import Results
from orchestrator.ledger.ledger import Ledger
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, embed, note, table
from orchestrator.report.sections.attribution.figure import draw_concentrations
from orchestrator.report.sections.attribution.overlays import draw_overlays
from orchestrator.statistics.intervals import MIN_REPLICATES
from trainables.evaluation.attribution.table import ADJUSTED_RATIO, OVERALL, WITHOUT_RELEVANCE, split_attribution
from trainables.evaluation.metrics import ATTRIBUTION_METRICS

#: Method → title in a sentence.
METHOD_TITLES: Mapping[str, str] = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "integrated gradients",
    "expected_gradients": "expected gradients",
    "occlusion": "occlusion",
}


def attribution_section(results: Results, ledger: Ledger, cache_dir: Path | None) -> Section | None:
    """Return the section, None if no trial was asked where it looks.

    Args:
        results: tables of the study.
        ledger: ledger of the study; the maps of one trial per arm are read.
        cache_dir: folder of this node's decoded images, under the overlays; None: no overlays.
    """
    scores = score_arms(results)
    if scores is None:
        return None
    body = _lead(scores) + _warn_untold(results, scores) + _score_table(results, scores)
    figure = draw_concentrations(results, scores, METHOD_TITLES)
    body += "" if figure is None else embed(figure, "figure-attribution")
    agreements = rank_agreement(results), rank_agreement(results, (ADJUSTED_RATIO,))
    body += "".join(_agreement_table(each) for each in agreements if each is not None)
    if cache_dir is not None:
        body += draw_overlays(results, ledger, cache_dir, METHOD_TITLES)
    return Section("attribution", "Attention", "Where do the models look?", body)


def _lead(scores: AttributionScores) -> str:
    named = ", ".join(METHOD_TITLES[method] for method in scores.methods)
    alone = "" if len(scores.methods) > 1 else " A single method cannot show whether methods agree: add another."
    return note(
        f"Relevance for the logit of the true class by {named}, scored on lesion masks of test images. Read every "
        "number beside its baselines: the same method on the same network with random weights, and a Gaussian around "
        "the middle of the image (centre prior). A claim that relevance is higher or lower gets no verdict if another "
        f"method, or another metric of the same thing, has an effect in the other direction.{alone}"
    )


def _warn_untold(results: Results, scores: AttributionScores) -> str:
    untested: dict[str, list[str]] = {}
    for (arm, method, name), score in scores.scores.items():
        if name == OVERALL[0] and score.gain is None:
            untested.setdefault(method, []).append(arm)
    told, unknown = (
        [
            f"{METHOD_TITLES[method]}: {', '.join(results.labels.get(arm, arm) for arm in arms)}"
            for method, arms in found
        ]
        for found in (list_untold(scores, OVERALL[0]).items(), untested.items())
    )
    text = (
        f"Not told from, or below, random weights in {ATTRIBUTION_METRICS[OVERALL[0]].title} (95 % interval of the "
        "paired difference): nothing shows that these maps depend on what was learned, and not on the network's "
        "architecture and the image alone."
    )
    why = (
        f"Not compared with random weights in {ATTRIBUTION_METRICS[OVERALL[0]].title}: an interval takes "
        f"{MIN_REPLICATES} independently trained models; replicates that share a pretrained encoder are one."
    )
    return (callout(text, "warn", told) if told else "") + (callout(why, "warn", unknown) if unknown else "")


def _score_table(results: Results, scores: AttributionScores) -> str:
    shown = [name for name in (*OVERALL, ADJUSTED_RATIO) if name in scores.metrics]
    if any(name == WITHOUT_RELEVANCE and score.mean > 0 for (_, _, name), score in scores.scores.items()):
        shown.append(WITHOUT_RELEVANCE)
    columns = [Column("arm"), Column("method")]
    columns += [Column(ATTRIBUTION_METRICS[name].title, is_number=True) for name in shown]
    rows = []
    for arm in scores.arms:
        label = results.labels.get(arm, arm)
        for method in scores.methods:
            found = [scores.scores.get((arm, method, name)) for name in shown]
            cells = [_score_cell(score, name) for score, name in zip(found, shown, strict=True)]
            rows.append([Cell(escape(label), label), Cell(METHOD_TITLES[method], METHOD_TITLES[method]), *cells])
    for arms, values in _list_priors(scores, shown).items():
        where = "any arm" if len(arms) == len(scores.arms) else ", ".join(results.labels.get(a, a) for a in arms)
        cells = [Cell("–", "") if value is None else Cell(_number(value, name), value) for value, name in values]
        rows.append([Cell(escape(where), where), Cell("centre prior", "centre prior"), *cells])
    text = (
        f"Mean over independently trained models; small: 95 % t interval, from {MIN_REPLICATES} on, and the mean with "
        f"random weights. {ATTRIBUTION_METRICS[ADJUSTED_RATIO].title.capitalize()}: "
        f"{ATTRIBUTION_METRICS[ADJUSTED_RATIO].formula}."
    )
    return note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)


def _list_priors(scores: AttributionScores, shown: list[str]) -> dict[tuple[str, ...], list[tuple[float | None, str]]]:
    """Return arms → their values of the centre prior; arms with the same images share them."""
    found: dict[tuple[float | None, ...], list[str]] = {}
    for arm in scores.arms:
        found.setdefault(tuple(scores.prior.get((arm, name)) for name in shown), []).append(arm)
    return {tuple(arms): list(zip(values, shown, strict=True)) for values, arms in found.items()}


def _score_cell(score: ArmScore | None, name: str) -> Cell:
    if score is None:
        return Cell("–", "")
    small = [] if score.interval is None else [
        f"{_number(score.interval.low, name)} to {_number(score.interval.high, name)}"
    ]  # fmt: skip
    small += [] if score.randomised is None else [f"random {_number(score.randomised, name)}"]
    return Cell(f'{_number(score.mean, name)}<br><span class="sd">{" · ".join(small)}</span>', score.mean)


def _number(value: float, name: str) -> str:
    return f"{100 * value:.1f} %" if ATTRIBUTION_METRICS[name].is_share else f"{value:.2f}"


def _agreement_table(agreement: RankAgreement) -> str:
    titles = [_title(column) for column in agreement.columns]
    columns = [Column(""), *(Column(title, is_number=True) for title in titles)]
    rows = []
    for title, values in zip(titles, agreement.kendall, strict=True):
        cells = [
            Cell("–", "") if np.isnan(value) else Cell(f"{value:+.2f}".replace("-", "−"), float(value))
            for value in values
        ]
        rows.append([Cell(escape(title), title), *cells])
    text = (
        f"Do methods and metrics rank the {agreement.noun} alike? Kendall’s τ over {agreement.number} "
        f"{agreement.noun}: 1 the same order, 0 unrelated, −1 the reverse. Where they do not agree, a ranking of "
        f"{agreement.noun} depends on the method that was picked."
    )
    return note(text) + table(columns, rows)


def _title(column: str) -> str:
    found = split_attribution(column)
    assert found is not None
    return f"{METHOD_TITLES[found[0]]}, {ATTRIBUTION_METRICS[found[2]].title}"
