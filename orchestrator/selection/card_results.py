"""Numbers of a model card: results by set, robustness by shift, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.wording import explain_used, mark_used, percent, plural, sentence, word_seen
from orchestrator.ledger.derived import find_task
from orchestrator.selection.card_format import CardPart, Grid, Text
from orchestrator.selection.part_scores import PartScore, PartScores
from orchestrator.selection.ranking import Selection
from orchestrator.statistics.intervals import Summary, summarise
from trainables.evaluation.metrics import (
    CARD_METRICS,
    EVALUATED,
    find_metric,
    list_metrics_of,
    name_over_shifts,
    name_unshifted,
)
from trainables.evaluation.validation_fit import compute_predictive_values


def show_performance(results: Results, selection: Selection, chosen: pd.DataFrame, parts: PartScores) -> CardPart:
    """Return the metrics of the arm on every set, and on parts of its test set."""
    metrics = CARD_METRICS[find_task(results.plan)]
    rows = []
    for title, (prefix, number) in _list_sets(results).items():
        columns = {name: f"{prefix}/{name}" if prefix else name_unshifted(name) for name in metrics}
        if any(column in chosen for column in columns.values()):
            values = [_mean(chosen, column) for column in columns.values()]
            rows.append([title, number, *values, _own(chosen, selection, columns[results.metric])])
    titles = [EVALUATED[name].title for name in metrics]
    blocks: list[Text | Grid] = [
        Text(
            f"Mean ± standard deviation over {plural(selection.arm.complete, 'replicate')} of the arm; the last column "
            f"is the exported replicate.{_explain_distances(metrics)}"
        ),
        Grid(["set", "images", *titles, f"this model: {TITLES[results.metric]}"], rows),
    ]
    for kind, listed in (("site", parts.sites), ("class", parts.classes)):
        if listed:
            blocks.append(Text(f"In-distribution test set, per {kind}{parts.of_replicates}:"))
            heads = [score.title for score in listed[0].scores]
            blocks.append(Grid([kind, "images", *heads], [_show_part(part) for part in listed]))
    return CardPart("Results", blocks)


def _list_sets(results: Results) -> dict[str, tuple[str, str]]:
    """Return title of a set → prefix of its headline numbers ("" for the test set's), and number of its images."""
    data = results.plan["data"]
    images = {name: f"{number:,}" for name, number in data["num_images"].items()}
    components = data.get("components", {})
    sets = {"validation": ("val", images.get("val", "0")), "in-distribution test": ("", images.get("test", "0"))}
    for name, part in components.items():
        sets[f"test images of {name}"] = (f"dataset/{name}", f"{part['num_images']:,}")
    for name in results.external_sets:
        if name not in components:
            sets[f"{name} (external)"] = (f"external/{name}", images.get(name, "0"))
    return sets


def _explain_distances(metrics: Sequence[str]) -> str:
    if all(EVALUATED[name].high < math.inf for name in metrics):
        return ""
    return " Distances are in mm, in px where the files do not say how large a pixel is."


def _show_part(part: PartScore) -> list[str]:
    values = [_word(score.summary.mean, score.summary.sd, is_share=score.is_share) for score in part.scores]
    return [part.name, f"{part.num_images:,}", *values]


def _word(mean: float | None, sd: float | None = None, *, is_share: bool = True) -> str:
    """Return shares in percent, other numbers as they are, with their standard deviation where it is known."""
    if is_share or mean is None or pd.isna(mean):
        return percent(mean, sd)
    return f"{mean:.2f}" if sd is None or pd.isna(sd) else f"{mean:.2f} ± {sd:.2f}"


def _percent(summary: Summary) -> str:
    return percent(summary.mean, summary.sd)


def _mean(chosen: pd.DataFrame, column: str) -> str:
    if column not in chosen:
        return "undefined"
    summary = summarise(chosen[column])
    return _word(summary.mean, summary.sd, is_share=find_metric(column).is_share)


def _own(chosen: pd.DataFrame, selection: Selection, column: str) -> str:
    if column not in chosen:
        return "undefined"
    own = float(chosen.loc[chosen["signature"] == selection.signature, column].iloc[0])
    return _word(own, is_share=find_metric(column).is_share)


def show_robustness(results: Results, selection: Selection, chosen: pd.DataFrame) -> CardPart:
    """Return the main metric of the arm under every shift."""
    metric, frame = results.metric, results.shifts
    frame = frame[(frame["name"] == selection.arm.name) & (frame["set"] == "test") & (frame["severity"] > 0)]
    if frame.empty or metric not in frame:
        return CardPart("Robustness", [Text("The study tested no shift.")])
    rows = []
    for shift, group in frame.groupby("shift", sort=False):
        by_severity = group.groupby("severity")[metric].mean()
        worst = by_severity.idxmin() if by_severity.notna().any() else None
        at = group[group["severity"] == worst][metric]
        rows.append(
            (by_severity.min(), str(shift), _percent(summarise(group.groupby("signature")[metric].mean())), at, worst)
        )
    rows.sort(key=lambda row: (pd.isna(row[0]), row[0]))
    _, name, _, values, severity = rows[0]
    grid = [
        [
            mark_used(shift, results.used_types),
            word_seen(results.seen, [selection.arm.name], shift) or "not known",
            mean,
            _percent(summarise(at)),
            "–" if at_ is None else str(at_),
        ]
        for _, shift, mean, at, at_ in rows
    ]
    text = (
        f"{sentence(TITLES[metric])} on the shifted test set, mean ± standard deviation over replicates, by the "
        f"worst severity. Over all of them {_mean(chosen, f'robustness/mean_{metric}')}; the worst is {name} at "
        f"severity {severity}: {_percent(summarise(values))}. Unshifted: {_mean(chosen, f'id/{metric}')}."
        f"{explain_used(results.used_types)}"
    )
    unused = f"robustness/mean_unused_{metric}"
    if unused in chosen:
        text = f"Over shifts not used for selection: {_mean(chosen, unused)}. {text}"
    return CardPart(
        "Robustness",
        [Text(text), Grid(["shift", "training policy", "mean over severities", "worst severity", "which"], grid)],
    )


def show_calibration(results: Results, selection: Selection, chosen: pd.DataFrame) -> CardPart:
    """Return the calibration errors of the arm, and this model's thresholds of validation, where it has some."""
    known = {name: each for name, each in list_metrics_of("", find_task(results.plan)).items() if each.is_calibration}
    errors = [name for name in known if name.endswith("ece")]
    grids = [_show_errors(results, selection, chosen, name) for name in errors]
    scores = ", ".join(
        f"{each.title} {summary.mean:.3f}"
        for name, each in known.items()
        if name not in errors and not each.is_fitted and name_unshifted(name) in chosen
        if (summary := summarise(chosen[name_unshifted(name)])).mean is not None
    )
    text = (
        f"Expected calibration error, lower is better. On the in-distribution test set also: {scores}."
        if scores
        else ""
    )
    blocks: list[Text | Grid] = [Text(text)] if text else []
    return CardPart("Calibration", [*blocks, *grids, *_thresholds(results, selection, chosen)])


def _show_errors(results: Results, selection: Selection, chosen: pd.DataFrame, error: str) -> Grid:
    columns = {
        "in-distribution test": name_unshifted(error),
        "mean over shifts": name_over_shifts("mean", error),
        "worst shift": name_over_shifts("worst_shift", error),
    }
    columns |= {f"{name} (external)": f"external/{name}/{error}" for name in results.external_sets}
    rows = [
        [f"{title}{scaling}", _mean(chosen, f"{column}{suffix}"), _own(chosen, selection, f"{column}{suffix}")]
        for title, column in columns.items()
        for scaling, suffix in (("", ""), (", after temperature scaling", "_scaled"))
        if f"{column}{suffix}" in chosen
    ]
    return Grid(["set", EVALUATED[error].title, "this model"], rows)


#: Prevalences at which predictive values are given. Our choice: screening, an outpatient clinic, a balanced test set.
_PREVALENCES = (0.01, 0.1, 0.5)


def _thresholds(results: Results, selection: Selection, chosen: pd.DataFrame) -> list[Text | Grid]:
    """Return this model's sensitivity, specificity and predictive values at validation's thresholds, if it has any."""
    record = results.records[selection.signature]
    fit = {} if record.result is None else record.result.get("validation_fit", {})
    own = chosen[chosen["signature"] == selection.signature].iloc[0]
    rows = []
    for at, title in (("specificity_95", "95 % specificity"), ("sensitivity_95", "95 % sensitivity")):
        shares = [float(own.get(f"id/{name}_at_{at}", np.nan)) for name in ("sensitivity", "specificity")]
        if f"threshold_at_{at}" not in fit or np.isnan(shares).any():
            continue
        values = (compute_predictive_values(shares[0], shares[1], prevalence) for prevalence in _PREVALENCES)
        pairs = [f"{percent(positive)} / {percent(negative)}" for positive, negative in values]
        rows.append([title, f"{fit[f'threshold_at_{at}']:.4g}", *map(percent, shares), *pairs])
    if not rows:
        return []
    text = (
        "This model on the in-distribution test set, at thresholds of f₁ − f₀ (class 1 is positive) chosen on "
        "validation. Predictive values (positive / negative) are for populations with so many positives (Bayes)."
    )
    heads = [f"PPV / NPV at {100 * prevalence:g} %" for prevalence in _PREVALENCES]
    return [Text(text), Grid(["validation", "threshold", "sensitivity", "specificity", *heads], rows)]
