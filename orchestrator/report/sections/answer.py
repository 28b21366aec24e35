"""Report sections: the answer in words, and the table of arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

from orchestrator.analysis.effects import Effect
from orchestrator.analysis.results import TITLES, Results
from orchestrator.analysis.tables.arms import find_best_arm
from orchestrator.analysis.wording import NO_BREAK, percent, plural, sentence
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.works import tell_remarks
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, note, table
from orchestrator.report.style import describe_chance
from orchestrator.statistics.intervals import MIN_REPLICATES, Interval, t_interval
from trainables.evaluation.metrics import name_over_validation_shifts


def answer_section(answer: Answer) -> Section:
    """Return the section with the findings in words."""
    if answer.problem is not None:
        return Section("answer", "Answer", answer.heading, callout(answer.problem, "warn"))
    cards = "".join(
        f'<div class="answer{"" if number else " first"}"><p class="head">{escape(statement.heading)}</p>'
        f'<p class="main">{escape(statement.headline)}</p><p>{escape(statement.text)}</p></div>'
        for number, statement in enumerate(answer.statements)
    )
    said = note("± is one standard deviation over replicates; differences have an interval, or the reason for none.")
    return Section("answer", "Answer", "The answer in words", f'{said}<div class="answers">{cards}</div>')


# ------------------------------------------------------------------------------------------------ arms


def arms_section(results: Results, arms: pd.DataFrame) -> Section:
    """Return the section with the table of arms: mean ± sd over replicates, replicates as dots, incomplete trials."""
    is_grid = "search" not in results.plan
    factors = [factor for factor in results.factors if is_grid and f"arm/{factor}" in arms]
    names = [Column(factor) for factor in factors] or [Column("arm")]
    chooser = results.measures[0].column if results.measures else None
    shifted = f"robustness/mean_{results.metric}"
    limits = _limits(results, shifted)
    columns = [*names, Column("complete", is_number=True)]
    columns += [Column(measure.short, is_number=True) for measure in results.measures]
    if limits:
        columns.append(Column(f"replicates, {100 * limits[0]:.0f}–{100 * limits[1]:.0f} %", sortable=False))
    marks = {column: find_best_arm(results, arms, column) for column in (f"val/{results.metric}", shifted)}
    tags = {marks[f"val/{results.metric}"]: "chosen"}
    tags[marks[shifted]] = "oracle" if marks[shifted] not in tags else "chosen and oracle"
    rows = []
    for _, arm in arms.iterrows():
        tag = tags.get(arm["name"]) if chooser and len(arms) > 1 and not results.tested_on else None
        row = [Cell(escape(arm[f"arm/{factor}"])) for factor in factors] or [Cell(escape(arm["label"]))]
        if tag:
            html = f'{row[-1].html}<br><span class="tag {tag.split()[0]}">{tag}</span>'
            row[-1] = Cell(html, value=arm["label"])
        row.append(_completeness(results, arm))
        others = arms[arms["name"] == arm["name"]] if results.tested_on else arms  # that compare with it
        row += [measured_cell(others, arm, measure.column, measure.higher_is_better) for measure in results.measures]
        if limits:
            values = results.trials.loc[results.trials["name"] == arm["name"], shifted]
            row.append(Cell(_strip(values, limits)))
        rows.append(row)
    replicates, fewest = int(arms["planned"].max()), int(arms["planned"].min())
    numbers = f"{fewest} to {replicates}" if fewest < replicates else str(replicates)
    text = (
        f"{sentence(TITLES[results.metric])} in %, mean ± standard deviation over replicates (n = {numbers} "
        "planned per arm); ECE, the expected calibration error, in % too, lower is better. "
        + ("" if results.tested_on else "Bold is the best mean of a column, which need not be better than the next; ")
        + "only validation columns may choose. The dots are the replicates’ mean shifted value. Click a heading to "
        "sort."
    ).replace(". only", ". Only")
    if any(measure.column.startswith("robustness/mean_unseen_") for measure in results.measures):
        text += (
            " A shift is seen by a policy if the augmentation of any arm contains a change of its kind; the same "
            "shifts count for every arm."
        )
    if results.used_types:
        text += (
            " A shift was used for selection if it, or one of its kind, was applied to validation images; only the "
            "means over others say what choosing by shifts is worth."
        )
    text += describe_chance(results)
    if replicates == 1:
        text += " With one replicate there is no standard deviation: differences between arms may be chance."
    return Section(
        "arms", "Arms", "How good is each arm?", note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
    )


def _limits(results: Results, column: str) -> tuple[float, float] | None:
    if column not in results.trials or not results.trials[column].notna().any():
        return None
    low, high = float(results.trials[column].min()), float(results.trials[column].max())
    return np.floor(20 * low) / 20, max(np.ceil(20 * high) / 20, np.floor(20 * low) / 20 + 0.05)


def _completeness(results: Results, arm: pd.Series) -> Cell:
    text = f"{arm[COMPLETE]} / {arm['planned']}"
    if arm[COMPLETE] < arm["planned"]:
        states = [state for state in results.states if state != COMPLETE and arm[state]]
        lacking = ", ".join(f"{arm[state]} {state.replace('_', ' ')}" for state in states)
        text = f'{text}<br><span class="tag short">{lacking}</span>'
    return Cell(text, value=arm[COMPLETE])


def measured_cell(arms: pd.DataFrame, arm: pd.Series, column: str, higher_is_better: bool) -> Cell:
    """Return mean ± sd of an arm in %, bold if no arm has a better mean.

    Args:
        arms: all arms of the table: ``complete``, and mean, sd and n of the column.
        arm: row of ``arms``.
        column: name of the measure.
        higher_is_better: whether higher values are better.
    """
    mean, sd, n = (arm[f"{column}.{part}"] for part in ("mean", "sd", "n"))
    if pd.isna(mean):
        return Cell('<span class="sd">undefined</span>' if arm[COMPLETE] else '<span class="sd">–</span>', value="")
    every = arms[f"{column}.mean"]
    best = len(arms) > 1 and mean == (every.max() if higher_is_better else every.min())
    spread = f' <span class="sd">± {100 * sd:.1f}</span>' if not pd.isna(sd) else ' <span class="sd">n = 1</span>'
    if 1 < n < arm[COMPLETE]:
        spread += f' <span class="sd">n = {n}</span>'
    return Cell(f"{100 * mean:.1f}{spread}", value=float(mean), css="best" if best else "")


def _strip(values: pd.Series, limits: tuple[float, float]) -> str:
    low, high = limits
    dots = "".join(
        f'<circle cx="{4 + 102 * (value - low) / (high - low):.1f}" cy="8" r="3.5">'
        f"<title>{100 * value:.1f} %</title></circle>"
        for value in values.dropna()
    )
    return f'<svg class="strip" width="110" height="16" role="img"><line x1="4" x2="106" y1="8" y2="8"/>{dots}</svg>'


@dataclass(frozen=True)
class Statement:
    """One finding: a short heading, the finding itself, and a text with numbers and n."""

    heading: str
    headline: str
    text: str


@dataclass(frozen=True)
class Answer:
    """Findings of a study in words; without findings, ``problem`` is the reason."""

    statements: tuple[Statement, ...]
    problem: str | None = None
    #: Heading of the problem.
    heading: str = "No answer yet"


def missing_pairs(count: int) -> str:
    """Return in words how many planned pairs are missing."""
    return f"{count} planned {'pair is' if count == 1 else 'pairs are'} missing"


def answer(results: Results, arms: pd.DataFrame, effects: Sequence[Effect]) -> Answer:
    """Return the findings of a study.

    Args:
        results: tables of the study.
        arms: ``arms_table(results)``.
        effects: effects on the mean shifted metric.
    """
    metric = results.metric
    arms = arms[~arms["name"].isin(results.stopped_arms)]  # some of their replicates may be complete
    chooser, shifted = f"val/{metric}.mean", f"robustness/mean_{metric}.mean"
    if not len(results.complete):
        return Answer((), "No trial is complete, so there is no answer yet.")
    if not len(arms):
        return Answer((), "Every configuration that has a complete trial was stopped early: there is none to choose.")
    if results.tested_on:
        return Answer(
            (),
            "Arms are trained on different data sets, and validation, test and shifted images are of these: no arm is "
            "chosen among them. The section Segmentation compares them on the same images.",
            heading="No arm is chosen",
        )
    missing = [column.removesuffix(".mean") for column in (chooser, shifted) if column not in arms]
    if missing:
        return Answer((), f"No complete trial has a defined {' or '.join(missing)}, so no arm can be chosen by it.")
    chosen, best = (arms.iloc[int(arms[column].argmax())] for column in (chooser, shifted))
    statements = [_chosen(results, arms, chosen)]
    if len(arms) > 1:
        statements += [*_chosen_on_shifts(results, arms, chosen), _oracle(results, arms, chosen, best)]
    largest = [effect for effect in effects if effect.difference is not None]
    if largest:
        statements.append(_largest(results, largest))
    return Answer(tuple(statements))


def _remark(results: Results, *arms: str) -> str:
    """Return what has to be said of the pretraining of arms, as sentences behind others; "" if there is nothing."""
    return "".join(f" {sentence(remark)}." for remark in tell_remarks(results.plan, arms))


def _value(arm: pd.Series, column: str) -> str:
    return percent(arm.get(f"{column}.mean"), arm.get(f"{column}.sd"))


def _n(arm: pd.Series, column: str) -> str:
    n = int(arm[f"{column}.n"])
    text = f"n = {n} of {arm['planned']} replicates" if n < arm["planned"] else f"n = {n}"
    return text.replace(" ", NO_BREAK)


def _chosen(results: Results, arms: pd.DataFrame, arm: pd.Series) -> Statement:
    metric, title = results.metric, TITLES[results.metric]
    column = f"val/{metric}"
    ties = int((arms[f"{column}.mean"] == arm[f"{column}.mean"]).sum()) - 1
    tied = f" {ties} further arm{'s' if ties > 1 else ''} tied; the first in the plan is named." if ties else ""
    rivals = tied or _describe_rivals(results, arms, arm)
    heading = "Chosen on in-distribution validation" if len(arms) > 1 else "The only arm"
    return Statement(
        heading,
        str(arm["label"]),
        f"Validation {title} {_value(arm, column)} ({_n(arm, column)}): {_value(arm, f'id/{metric}')} on the "
        f"in-distribution test set, {_value(arm, f'robustness/mean_{metric}')} on average over the shifts, "
        f"{_value(arm, f'robustness/worst_shift_{metric}')} under the worst one.{rivals}"
        f"{_remark(results, arm['name'])}",
    )


def _describe_rivals(results: Results, arms: pd.DataFrame, chosen: pd.Series) -> str:
    """Return in words which other arms validation does not tell from the chosen one; nothing if there is no other."""
    column = f"val/{results.metric}"
    rivals = arms[(arms["name"] != chosen["name"]) & arms[f"{column}.mean"].notna()]
    if not len(rivals):
        return ""
    rivals = rivals.sort_values(f"{column}.mean", ascending=False, kind="stable")
    scores = results.complete.pivot(index="replicate", columns="name", values=column)
    differences = {str(name): _differ(results, scores, str(chosen["name"]), str(name)) for name in rivals["name"]}
    nearest = rivals.iloc[0]
    first = differences[str(nearest["name"])]
    if not len(first):
        return f" The next arm, {nearest['label']}, shares no replicate with it, so they are not compared."
    gap = f"The next, {nearest['label']}, is {100 * float(first.mean()):z.1f} points below it"
    intervals = {name: t_interval(each) for name, each in differences.items()}
    interval = intervals[str(nearest["name"])]
    if interval is not None:
        gap += f" ({100 * interval.low:+z.1f} to {100 * interval.high:+z.1f}, n = {len(first)})."
    else:
        sd = float(first.std(ddof=1)) if len(first) > 1 else float("nan")
        why = f"{plural(len(first), 'independent replicate')} in common, an interval takes {MIN_REPLICATES}"
        if pd.isna(sd):
            gap += f", with {why}: how far that is chance is not known."
        else:
            where = "within" if abs(float(first.mean())) <= sd else "more than"
            gap += f", {where} one standard deviation of the paired difference ({100 * sd:.1f}); {why}."
    return f" {gap}{_count_told(results, str(chosen['name']), differences, intervals)}"


def _count_told(
    results: Results, chosen: str, differences: Mapping[str, pd.Series[float]], intervals: Mapping[str, Interval | None]
) -> str:
    """Return in words from how many other arms validation tells the chosen one, and which could not be tested and why.

    Nothing if no arm could be tested.

    Args:
        results: tables of the study.
        chosen: name of the chosen arm.
        differences: name of another arm → paired differences, one per independent unit.
        intervals: name of another arm → interval of their mean, None where there are too few.
    """
    known = [each for each in intervals.values() if each is not None]
    if not known:
        return ""
    close = sum(each.low <= 0 <= each.high for each in known)
    counts: dict[str, int] = {}
    for name, each in differences.items():
        if intervals[name] is None:
            unit = results.name_unit(results.complete[results.complete["name"].isin([chosen, name])])
            shared = plural(len(each), unit.replace("independent", "pretrained"))
            why = f"{shared} in common" if unit == "replicate" else f"replicates start from {shared}"
            counts[why] = counts.get(why, 0) + 1
    untested = "".join(
        f"; {count} could not be tested ({why}, an interval takes {MIN_REPLICATES})" for why, count in counts.items()
    )
    return (
        f" Of {plural(len(intervals), 'other arm')}, validation tells it from {len(known) - close} and not from {close}"
        f"{untested}. By 95 % t intervals of paired differences, not corrected for the choice of the best."
    )


def _differ(results: Results, scores: pd.DataFrame, chosen: str, other: str) -> pd.Series[float]:
    """Return the paired differences in validation, one per independent unit that both arms have."""
    paired = (scores[chosen] - scores[other]).dropna() if {chosen, other} <= set(scores) else pd.Series(dtype=float)
    trials = results.complete[results.complete["name"].isin([chosen, other])]
    units = results.group_replicates(trials)
    return paired.groupby([units[int(replicate)] for replicate in paired.index]).mean()


def _flattered(count: int) -> str:
    return f", and the best of {count} means is flattered" if count > 1 else ""


def _oracle(results: Results, arms: pd.DataFrame, chosen: pd.Series, best: pd.Series) -> Statement:
    column = f"robustness/mean_{results.metric}"
    gap = 100 * (best[f"{column}.mean"] - chosen[f"{column}.mean"])
    if best["name"] == chosen["name"]:
        lost = "Validation chose the same arm: here nothing was lost by choosing without looking at the shifts."
    elif pd.isna(gap):
        lost = "The arm that validation chose has no defined value to compare with."
    else:
        lost = f"With these trained models, choosing on validation gave up {gap:.1f} points of it."
    return Statement(
        "Best under shift, in hindsight (oracle)",
        str(best["label"]),
        f"Mean shifted {TITLES[results.metric]} {_value(best, column)} ({_n(best, column)}). {lost} "
        f"The oracle looks at test data to choose: it is a bound, not a choice{_flattered(len(arms))}."
        f"{_remark(results, best['name'], chosen['name'])}",
    )


def _chosen_on_shifts(results: Results, arms: pd.DataFrame, clean: pd.Series) -> list[Statement]:
    """Return what choosing on shifted validation images wins back under other shifts; nothing without such images."""
    metric = results.metric
    chooser, judge = name_over_validation_shifts("mean", metric), f"robustness/mean_unused_{metric}"
    if f"{chooser}.mean" not in arms or not arms[f"{chooser}.mean"].notna().any():
        return []
    chosen = arms.iloc[int(arms[f"{chooser}.mean"].argmax())]
    text = f"Mean {TITLES[metric]} on shifted validation images {_value(chosen, chooser)} ({_n(chosen, chooser)})."
    if f"{judge}.mean" not in arms:
        text += (
            " Every shift of the test set was used for the choice, or is of a kind that was: none is left to judge it."
        )
    else:
        best = arms.iloc[int(arms[f"{judge}.mean"].argmax())]
        num_unused = sum(kind not in results.used_types for kind in results.type_means(metric))
        text += (
            f" Under the {plural(num_unused, 'shift type')} not used for the choice {_value(chosen, judge)}; the best "
            f"in hindsight there is {best['label']} with {_value(best, judge)}. {_won_back(chosen, clean, best, judge)}"
        )
    text += _remark(results, chosen["name"], clean["name"])
    return [Statement("Chosen on shifted validation", str(chosen["label"]), text)]


def _won_back(chosen: pd.Series, clean: pd.Series, best: pd.Series, judge: str) -> str:
    if chosen["name"] == clean["name"]:
        return "Unshifted validation chose the same arm: nothing was won or lost by choosing on shifts."
    lost, left = (100 * (best[f"{judge}.mean"] - arm[f"{judge}.mean"]) for arm in (clean, chosen))
    if pd.isna(lost) or pd.isna(left):
        return "One of the arms has no defined value there to compare with."
    won = f"won back {lost - left:.1f} of them" if left <= lost else f"lost {left - lost:.1f} more"
    return (
        f"With these trained models, choosing on unshifted validation gave up {lost:.1f} points of it; choosing on "
        f"shifted validation {won}."
    )


def _largest(results: Results, effects: Sequence[Effect]) -> Statement:
    effect = max(effects, key=lambda effect: abs(effect.difference or 0.0))
    difference = 100 * (effect.difference or 0.0)
    heading = f"Largest effect on mean shifted {TITLES[results.metric]}"
    headline = f"{effect.factor}: {effect.level} instead of {effect.reference}, {difference:+.1f} points"
    missing = f" {sentence(missing_pairs(effect.num_missing))}." if effect.num_missing else ""
    shifts = ""
    if effect.num_shifts:
        shifts = f" In that direction under {effect.num_same_direction} of {effect.num_shifts} shift types."
    picked = f" It was picked as the largest of {len(effects)}, which flatters it." if len(effects) > 1 else ""
    compared = results.trials["name"][results.trials[f"arm/{effect.factor}"].isin([effect.level, effect.reference])]
    picked += _remark(results, *dict.fromkeys(compared))
    if effect.interval is None:
        text = f"{effect.units}. It was seen in these trained models, on this test set."
        return Statement(heading, headline, f"{text}{missing}{shifts}{picked}")
    low, high = 100 * effect.interval.low, 100 * effect.interval.high
    zero = " The interval contains 0: it cannot be told from no effect." if low <= 0 <= high else ""
    text = (
        f"95 % t interval {low:+.1f} to {high:+.1f} over {effect.over}: what other "
        "seeds would give on this test set, not what other patients or sites would."
    )
    return Statement(heading, headline, f"{text}{missing}{zero}{shifts}{picked}")
