"""Sections of the page that compares studies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import combinations

import pandas as pd

from orchestrator.analysis.comparison.compare import Comparison
from orchestrator.analysis.comparison.pairs import Difference, Pair
from orchestrator.analysis.comparison.sides import MEASURES, Side
from orchestrator.analysis.results import TITLES
from orchestrator.analysis.wording import plural, sentence
from orchestrator.planning.states import COMPLETE
from orchestrator.report.overview import MAX_ARMS, draw_arms, sort_arms
from orchestrator.report.page import TALL_ROWS, Cell, Column, Section, callout, embed, facts, note, p_cell, table
from orchestrator.report.sections.answer import measured_cell
from orchestrator.report.style import Figure
from orchestrator.statistics.intervals import MIN_REPLICATES
from orchestrator.statistics.paired_tests import min_units, smallest_p
from trainables.evaluation.metrics import EVALUATED

EXPLORATORY = (
    "Exploratory: this comparison was made after the results. No hypothesis was registered for it, and the studies may "
    "differ in more than one thing (see Settings)."
)
#: Fewest arms of a study that the figure shows, however many studies there are.
_MIN_ARMS = 4


def overview_section(compared: Comparison) -> Section:
    """Return the first section: what was compared with what, beside the figure of all arms."""
    brief = "".join(
        f'<p class="brief"><b>{escape(heading)}</b>{escape(text)}<br><span>{escape(more)}</span></p>'
        for heading, text, more in _describe_sides(compared)
    )
    number = len(compared.settings)
    links = f'<p class="more">{plural(number, "setting")} that differ{"s" * (number == 1)}: '
    links += '<a href="#settings">Settings</a></p>'
    if compared.common.left_out:
        which = plural(len(compared.common.left_out), "shift")
        links += f'<p class="more">{which} in no mean, because not all studies have them alike: '
        links += '<a href="#left-out">Left out</a></p>'
    figure = _figure(compared)
    drawn = "" if figure is None else f"<div>{embed(figure, 'figure-overview')}</div>"
    body = f'<div class="overview"><div>{brief}{links}{callout(EXPLORATORY)}</div>{drawn}</div>'
    return Section("overview", "Overview", "At a glance", body)


def _describe_sides(compared: Comparison) -> Iterator[tuple[str, str, str]]:
    """Yield heading, text and range of differences for every two sides."""
    for first, second in combinations(compared.sides, 2):
        heading = f"{second.label} against {first.label}"
        own = [pair for pair in compared.pairs if _is_between(pair, first, second)]
        if not own:
            yield (
                heading,
                "No arm of one has the label or levels of an arm of the other.",
                "--pair 'A vs B' compares two arms.",
            )
            continue
        paired = [pair for pair in own if pair.unpaired is None]
        reasons = dict.fromkeys(pair.unpaired for pair in own if pair.unpaired is not None)
        text = f"{plural(len(paired), 'arm')} paired over replicates" if paired else ""
        if reasons:
            text += ("; " if text else "") + f"{len(own) - len(paired)} not paired: {'; '.join(map(str, reasons))}"
        measure = "common_mean" if compared.common.cells else "unshifted"
        found = [each for pair in own if (each := pair.differences[measure].mean) is not None]
        more = f"{sentence(MEASURES[measure])}, difference of the arms: " + (
            f"{_points(min(found))} to {_points(max(found))} points" if found else "undefined"
        )
        yield heading, f"{text}.", f"{more}."


def _is_between(pair: Pair, first: Side, second: Side) -> bool:
    return {pair.first.side.label, pair.second.side.label} == {first.label, second.label}


def _figure(compared: Comparison) -> Figure | None:
    column = "common_mean" if compared.common.cells else "unshifted"
    most = max(_MIN_ARMS, MAX_ARMS // len(compared.sides))
    parts = [
        sort_arms(compared.arms[compared.arms["study"] == side.label], f"{column}.mean", compared.metric, most=most)
        for side in compared.sides
    ]
    cut = [
        f"{side.label}: the {most} best of {n} arms"
        for side, (_, n) in zip(compared.sides, parts, strict=True)
        if n > most
    ]
    arms = pd.concat([arms for arms, _ in parts], ignore_index=True)
    if arms.empty or not compared.common.cells:
        return None
    return draw_arms(
        arms,
        compared.trials,
        columns=("unshifted", "common_mean"),
        metric=compared.metric,
        num_classes=len(compared.sides[0].results.plan["data"]["classes"]),
        note="Study by study, its arms in order of the shifted mean." + (f" {'; '.join(cut)}." if cut else ""),
        shifts=plural(len(compared.common.names), "common shift"),
    )


def arms_section(compared: Comparison) -> Section:
    """Return the section with the table of all arms: mean ± sd over replicates, and n."""
    arms, metric = compared.arms, compared.metric
    measures = [measure for measure in MEASURES if arms[f"{measure}.mean"].notna().any()]
    columns = [Column("study"), Column("arm"), Column("complete", is_number=True)]
    columns += [Column(MEASURES[measure], is_number=True) for measure in measures]
    data = {arm.label: (side.fingerprint, arm.trained_on) for side in compared.sides for arm in side.arms}
    on_same = {images: arms[[data[label] == images for label in arms["label"]]] for images in data.values()}
    rows = [
        [
            Cell(escape(arm["study"])),
            Cell(escape(arm["arm"])),
            Cell(f"{arm[COMPLETE]} / {arm['planned']}", int(arm[COMPLETE])),
            *(
                measured_cell(on_same[data[arm["label"]]], arm, measure, EVALUATED[metric].higher_is_better)
                for measure in measures
            ),
        ]
        for _, arm in arms.iterrows()
    ]
    text = (
        f"{sentence(TITLES[metric])} in %, mean ± standard deviation over the n complete replicates of an arm. Means "
        "under shift are over the shifts × severities that all studies have at the same strength, so they may differ "
        "from those in a study’s own report. Bold is the best mean of a column among the arms on the same images, "
        "which need not be better than the next; scores on different images are not on the same scale."
    )
    body = note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
    return Section("arms", "Arms", "How good is each arm of each study?", body)


def pairs_section(compared: Comparison) -> Section:
    """Return the section with the differences between arms of two studies."""
    pairs = compared.pairs
    text = (
        f"Second arm minus first arm in points of {TITLES[compared.metric]}. Replicates are paired where both trials "
        "have the same images in the same sets and the same seed; replicates that share a pretrained encoder are one "
        f"unit. Interval: paired t over units, from {MIN_REPLICATES} on; p: exact two-sided sign flips of whole units, "
        f"from {min_units()} on, corrected after Holm over all pairs on a measure. Where nothing is paired, the "
        "difference of the means is described, and nothing is tested: images or seeds differ, too."
    )
    if len(compared.sides) == 2:
        text += f" Every difference is {compared.sides[1].label} − {compared.sides[0].label}."
    if not pairs:
        problem = (
            "No arm of a study has the label or levels of an arm of another. Name arms to compare with --pair 'A vs B'."
        )
        return Section("pairs", "Differences", "Which arms differ between studies?", callout(problem, "warn"))
    has_p = any(each.p_value is not None for pair in pairs for each in pair.differences.values())
    text += _describe_smallest_p(pairs)
    is_named = len(compared.sides) > 2
    columns = [
        Column("measure"),
        Column("arm"),
        *((Column("second − first"),) if is_named else ()),
        Column("difference, points", is_number=True),
        Column("95 % interval", is_number=True, sortable=False),
        *((Column("p", is_number=True), Column("p, Holm", is_number=True)) if has_p else ()),
        Column("over", sortable=False),
        Column("also differ in", sortable=False),
    ]
    rows = [
        _row(pair, measure, each, is_named=is_named, has_p=has_p)
        for measure in ("common_mean", "common_worst", "unshifted")
        for pair in pairs
        if (each := pair.differences[measure]).mean is not None
    ]
    body = note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
    return Section("pairs", "Differences", "Which arms differ between studies?", body)


def _describe_smallest_p(pairs: Sequence[Pair]) -> str:
    """Return the sentence on the smallest p after Holm that a measure allows, if that is above .05 on all of them."""
    tested = [
        [each for pair in pairs if (each := pair.differences[measure]).p_value is not None] for measure in MEASURES
    ]
    smallest = [len(found) * smallest_p(max(each.num_changed for each in found)) for found in tested if found]
    if not smallest or min(smallest) <= 0.05:
        return ""
    return (
        f" With so many pairs and so few replicates p after Holm is at least {min(*smallest, 1.0):.3f}: read the "
        "intervals, which are not corrected, or compare fewer arms."
    )


def _row(pair: Pair, measure: str, difference: Difference, *, is_named: bool, has_p: bool) -> list[Cell]:
    assert difference.mean is not None
    interval, settings = difference.interval, pair.settings
    one, other = pair.first.short, pair.second.short
    listed = "".join(f"<div>{escape(each)}</div>" for each in settings)
    return [
        Cell(escape(MEASURES[measure])),
        Cell(escape(one if one == other else f"{other} − {one}")),
        *((Cell(escape(f"{pair.second.side.label} − {pair.first.side.label}")),) if is_named else ()),
        Cell(_points(difference.mean), difference.mean),
        Cell("–" if interval is None else f"{_points(interval.low)} to {_points(interval.high)}"),
        *((p_cell(difference.p_value), p_cell(difference.p_holm)) if has_p else ()),
        Cell(escape("; ".join([pair.describe_units(measure), *pair.remarks])), css="wide"),
        Cell(
            f"<details><summary>{plural(len(settings), 'field')}</summary>{listed}</details>" if settings else "nothing"
        ),
    ]


def _points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "−")  # + 0.0: no −0.0


def settings_section(compared: Comparison) -> Section:
    """Return the section with the settings in which the studies differ."""
    found = compared.settings
    if found.empty:
        body = note("The studies have the same settings, data, versions and devices.")
    else:
        columns = [Column("field"), *(Column(side.label) for side in compared.sides)]
        rows = [
            [Cell(escape(str(value)), css="wide" if n else "") for n, value in enumerate(row)]
            for row in found.itertuples(index=False)
        ]
        text = "Everything that is the same in all studies is left out. Each of these may be behind a difference above."
        body = note(text) + table(columns, rows, tall=len(rows) > TALL_ROWS)
    return Section("settings", "Settings", "In what do the studies differ?", body)


def left_out_section(compared: Comparison) -> Section:
    """Return the section on shifts that are in no mean, incomplete trials, and arms without a counterpart."""
    columns = [Column("what"), Column("which"), Column("why", sortable=False)]
    rows = [["shift", name, why] for name, why in compared.common.left_out.items()]
    paired = {arm.label for pair in compared.pairs for arm in (pair.first, pair.second)}
    for _, arm in compared.arms.iterrows():
        if arm[COMPLETE] < arm["planned"]:
            why = f"{arm['planned'] - arm[COMPLETE]} of {arm['planned']} trials are not complete"
            rows.append(["trial", arm["label"], why])
        if arm["label"] not in paired:
            rows.append(
                ["arm, from differences", arm["label"], "no other study has an arm of this label or these levels"]
            )
    if not rows:
        body = note("Nothing: every shift, trial and arm is in the tables above.")
    else:
        body = table(
            columns, [[Cell(escape(text), css="wide" if n else "") for n, text in enumerate(row)] for row in rows]
        )
    return Section("left-out", "Left out", "What is left out, and why?", body)


def provenance_section(compared: Comparison, digests: Mapping[str, str], files: Mapping[str, str]) -> Section:
    """Return where the numbers come from, and the files beside the page.

    Args:
        compared: tables of the comparison.
        digests: label of a side → ``results_sha256``.
        files: name of a file → description of its content.
    """
    rows = {}
    for side in compared.sides:
        plan = side.results.plan
        commit = plan["git_commit"] or "not in a git repository"
        rows[side.label] = (
            f"{plan['question'] or plan['study']} Results sha256 {digests[side.label]}; data {plan['data']['name']}, "
            f"fingerprint {plan['data']['fingerprint']}; code {commit}"
        )
    rows["common shifts"] = ", ".join(compared.common.names) or "none"
    links = ", ".join(f'<a href="{escape(name)}">{escape(name)}</a> ({escape(what)})' for name, what in files.items())
    body = facts(rows) + f'<p class="note">Beside this page: {links}.</p>'
    return Section("provenance", "Provenance", "Provenance", body)
