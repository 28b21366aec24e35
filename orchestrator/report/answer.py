"""The answer in words: which arm validation would choose, which one was best in hindsight, which factor matters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from orchestrator.report.effects import Effect
from orchestrator.report.plot import sentence
from orchestrator.report.tables import METRICS, Results

#: Below this many resampled units a nominal 95 % interval covers less than 93 % (measured; see ``bootstrap_interval``).
FEW_UNITS = 6

#: Keeps "82.3 ± 1.1 %" on one line.
NO_BREAK = "\u00a0"


@dataclass(frozen=True)
class Statement:
    """One finding: a short heading, its central words, and the sentence that carries numbers and n."""

    heading: str
    headline: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What the report says before any figure; ``problem`` instead of findings where nothing can be said."""

    statements: tuple[Statement, ...]
    problem: str | None = None


def percent(mean: float | None, sd: float | None = None) -> str:
    """Return "82.3 ± 1.1 %" (or "82.3 %" with one value, "undefined" with none)."""
    if mean is None or pd.isna(mean):
        return "undefined"
    text = f"{100 * mean:.1f} %" if sd is None or pd.isna(sd) else f"{100 * mean:.1f} ± {100 * sd:.1f} %"
    return text.replace(" ", NO_BREAK)


def missing_pairs(count: int) -> str:
    """Return in words how many planned pairs lack a side."""
    return f"{count} planned {'pair is' if count == 1 else 'pairs are'} missing"


def answer(results: Results, arms: pd.DataFrame, effects: Sequence[Effect]) -> Answer:
    """Return the findings of a study.

    Args:
        results: the study.
        arms: ``arms_table(results)``.
        effects: effects on the mean shifted metric.
    """
    metric = results.metric
    arms = arms[~arms["name"].isin(results.stopped_arms)]  # one of its replicates may be complete
    chooser, shifted = f"val/{metric}.mean", f"robustness/mean_{metric}.mean"
    if not len(results.complete):
        return Answer((), "No trial is complete, so there is no answer yet.")
    if not len(arms):
        return Answer((), "Every configuration that has a complete trial was stopped early: there is none to choose.")
    missing = [column.removesuffix(".mean") for column in (chooser, shifted) if column not in arms]
    if missing:
        return Answer((), f"No complete trial has a defined {' or '.join(missing)}, so no arm can be chosen by it.")
    chosen, best = (arms.iloc[int(arms[column].argmax())] for column in (chooser, shifted))
    statements = [_chosen(results, arms, chosen), _oracle(results, chosen, best)]
    if len(arms) == 1:
        statements = statements[:1]
    largest = [effect for effect in effects if effect.difference is not None]
    if largest:
        statements.append(_largest(results, largest))
    return Answer(tuple(statements))


def _value(arm: pd.Series, column: str) -> str:
    return percent(arm.get(f"{column}.mean"), arm.get(f"{column}.sd"))


def _n(arm: pd.Series, column: str) -> str:
    n = int(arm[f"{column}.n"])
    text = f"n = {n} of {arm['planned']} replicates" if n < arm["planned"] else f"n = {n}"
    return text.replace(" ", NO_BREAK)


def _chosen(results: Results, arms: pd.DataFrame, arm: pd.Series) -> Statement:
    metric, title = results.metric, METRICS[results.metric]
    column = f"val/{metric}"
    ties = int((arms[f"{column}.mean"] == arm[f"{column}.mean"]).sum()) - 1
    tied = f" {ties} further arm{'s' if ties > 1 else ''} tied; the first in the plan is named." if ties else ""
    heading = "Chosen on in-distribution validation" if len(arms) > 1 else "The only arm"
    return Statement(
        heading,
        str(arm["label"]),
        f"Validation {title} {_value(arm, column)} ({_n(arm, column)}): {_value(arm, f'id/{metric}')} on the "
        f"in-distribution test set, {_value(arm, f'robustness/mean_{metric}')} on average over the shifts, "
        f"{_value(arm, f'robustness/worst_{metric}')} under the worst one.{tied}",
    )


def _oracle(results: Results, chosen: pd.Series, best: pd.Series) -> Statement:
    column = f"robustness/mean_{results.metric}"
    gap = 100 * (best[f"{column}.mean"] - chosen[f"{column}.mean"])
    if best["name"] == chosen["name"]:
        lost = "Validation chose the same arm: nothing was lost by choosing without looking at the shifts."
    elif pd.isna(gap):
        lost = "The arm that validation chose has no defined value to compare with."
    else:
        lost = f"Choosing on validation gave up {gap:.1f} points of it."
    return Statement(
        "Best under shift, in hindsight (oracle)",
        str(best["label"]),
        f"Mean shifted {METRICS[results.metric]} {_value(best, column)} ({_n(best, column)}). {lost} "
        "The oracle looks at test data to choose: it is a bound, not a choice.",
    )


def _largest(results: Results, effects: Sequence[Effect]) -> Statement:
    effect = max(effects, key=lambda effect: abs(effect.difference or 0.0))
    difference = 100 * (effect.difference or 0.0)
    heading = f"Largest effect on mean shifted {METRICS[results.metric]}"
    headline = f"{effect.factor}: {effect.level} instead of {effect.reference}, {difference:+.1f} points"
    if effect.interval is None:
        return Statement(heading, headline, f"{sentence(effect.resampled)}.")
    low, high = 100 * effect.interval.low, 100 * effect.interval.high
    verdict = "" if low > 0 or high < 0 else " The interval contains 0: it cannot be told from no effect."
    few = effect.interval.num_units < FEW_UNITS
    narrow = f" Intervals from {effect.interval.num_units} units are too narrow; read it as a hint." if few else ""
    missing = f" {sentence(missing_pairs(effect.num_missing))}." if effect.num_missing else ""
    picked = f" It was picked as the largest of {len(effects)}, which flatters it." if len(effects) > 1 else ""
    interval = f"95 % interval {low:+.1f} to {high:+.1f}; {effect.resampled}."
    return Statement(heading, headline, f"{interval}{missing}{verdict}{narrow}{picked}")
