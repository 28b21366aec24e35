"""Checks of the hypotheses of a study file: names, levels, metrics, arms that cannot be paired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from orchestrator.study.contrasts import (
    ContrastError,
    find_contrast,
    group_cells,
    read_numbers,
)
from orchestrator.study.fields import suggest
from orchestrator.study.grid import Arm, Grid, format_label, read_match
from orchestrator.study.hypotheses import (
    TESTED,
    Correlation,
    Hypothesis,
    Interaction,
    NonInferiority,
    Trend,
    counts_shifts,
    counts_sites,
    find_shift_metric,
    find_site_metric,
    iterate_selectors,
    list_gains,
    list_measured,
    list_metrics,
    read_hypothesis,
    split_metric,
)
from orchestrator.study.problems import list_options
from orchestrator.study.yaml_source import Key, Source, format_key
from trainables.evaluation.attribution.table import find_attribution
from trainables.evaluation.metric_tables.views import is_of_class, split_view
from trainables.evaluation.metrics import (
    RELATIVE,
    find_detection,
    find_representation,
    list_metrics_of,
)
from trainables.shifts.tables import FAMILIES, GENERAL, GROUPS, OTHER, STAIN_NAME, load_aliases, load_tables

#: Callback that receives the text of a problem, then the keys below the hypothesis.
Report = Callable[..., None]


def check_hypotheses(tree: Source, grid: Grid, arms: Sequence[Arm]) -> None:
    """Report all problems of the hypotheses of a study file. Hypotheses that are not valid are left to its validation.

    Args:
        tree: source of the study file, which also receives the problems.
        grid: grid of the study.
        arms: arms of the study. Pairing is checked only if the file has no other problem.
    """
    listed = tree.value.get("hypotheses")
    read: dict[Key, Hypothesis] = {}
    for index, entry in enumerate(listed if isinstance(listed, list) else ()):
        hypothesis = read_hypothesis(entry)
        if hypothesis is not None:
            read["hypotheses", index] = hypothesis
    _check_names(read, tree)
    _check_families(read, tree)
    raw = tree.value.get("factors")
    raw = raw if isinstance(raw, Mapping) else {}
    is_sound = grid.is_complete and bool(arms) and not tree.problems
    factors = {factor: [label for label, _ in levels] for factor, levels in grid.factors.items()}
    for key, hypothesis in read.items():
        num_problems = len(tree.problems)
        report: Report = partial(_report_below, tree, key)
        _check_selectors(hypothesis, key, raw, grid, tree)
        _check_factors(hypothesis, report)
        _check_trend(hypothesis, raw, factors, report)
        _check_correlation(hypothesis, raw, report)
        _check_severities(hypothesis, report)
        for measured, place in _list_measured(hypothesis, report):
            _check_metric(measured, tree.value.get("evaluation"), place)
            _check_shift(measured, tree.value.get("evaluation"), grid, place)
            _check_family(measured, place)
        if is_sound and len(tree.problems) == num_problems:
            try:
                levels = [arm.levels for arm in arms]
                if isinstance(hypothesis, Correlation):
                    group_cells(hypothesis, levels, factors)
                else:
                    find_contrast(hypothesis, levels, factors)
            except ContrastError as error:
                report(str(error))


def _list_measured(hypothesis: Hypothesis, report: Report) -> list[tuple[Hypothesis, Report]]:
    """Return what is measured by one metric, with the callback for its problems: both gains of a correlation."""
    if not isinstance(hypothesis, Correlation) or hypothesis.with_metric is None:
        return [(hypothesis, report)]

    def place(text: str, *below: str | int) -> None:
        report(text, *("with_metric" if key == "metric" else key for key in below))

    first, other = list_gains(hypothesis)
    return [(first, report), (other, place)]


def _check_correlation(hypothesis: Hypothesis, raw: Mapping[str, Any], report: Report) -> None:
    if not isinstance(hypothesis, Correlation):
        return
    if hypothesis.across not in raw:
        report(f"there is no factor {hypothesis.across!r}{list_options(hypothesis.across, list(raw))}", "across")
    one, other = list_gains(hypothesis)
    if (one.metric, one.treatment, one.control) == (other.metric, other.treatment, other.control):
        report("found the same gain twice; expected with_metric, or with_treatment and with_control", "with_metric")


def _report_below(tree: Source, key: Key, text: str, *below: str | int) -> None:
    tree.report((*key, *below), text)


def _check_names(read: Mapping[Key, Hypothesis], tree: Source) -> None:
    seen: dict[str, Key] = {}
    for key, hypothesis in read.items():
        # Names become metrics in MLflow, which have to differ on file systems that ignore case, too.
        first = seen.setdefault(hypothesis.name.lower(), key)
        if first != key:
            text = f"the name {hypothesis.name!r} is there twice, first in {format_key(first)}; names are unique"
            tree.report((*key, "name"), f"{text}, upper and lower case being the same")


def _check_families(read: Mapping[Key, Hypothesis], tree: Source) -> None:
    seen: dict[str, Hypothesis] = {}
    for key, hypothesis in read.items():
        first = seen.setdefault(hypothesis.family, hypothesis)
        if first.alpha != hypothesis.alpha:
            found = f"found {hypothesis.alpha} where {first.name} of the same family {first.family!r} has {first.alpha}"
            tree.report((*key, "alpha"), f"{found}; one family has one error rate")


def _check_selectors(hypothesis: Hypothesis, key: Key, raw: Mapping[str, Any], grid: Grid, tree: Source) -> None:
    for field, when in iterate_selectors(hypothesis):
        read_match(when, (*key, field), raw, grid.factors, tree.report)


def _check_factors(hypothesis: Hypothesis, report: Report) -> None:
    """Report sides that name different factors, and factors that are named again in ``at`` or ``where``."""
    if isinstance(hypothesis, Correlation):
        _check_gains(hypothesis, report)
        taken = dict.fromkeys(hypothesis.treatment, "treatment")
    elif isinstance(hypothesis, Trend):
        taken = {hypothesis.factor: "factor"}
        if (hypothesis.treatment is None) != (hypothesis.control is None):
            report("found treatment or control alone; a trend is of both sides' difference, or of the metric itself")
        elif hypothesis.treatment is not None:
            if hypothesis.factor in hypothesis.treatment:
                report(f"{hypothesis.factor} is the factor of the trend; name others", "treatment", hypothesis.factor)
            taken |= dict.fromkeys(hypothesis.treatment, "treatment")
            _check_sides(hypothesis, "treatment", "control", report)
    else:
        taken = dict.fromkeys(hypothesis.treatment, "treatment")
        _check_sides(hypothesis, "treatment", "control", report)
    if isinstance(hypothesis, Interaction):
        for factor in [factor for factor in hypothesis.at if factor in taken]:
            report(f"{factor} is named in treatment too; an interaction is between two factors", "at", factor)
        taken |= dict.fromkeys(hypothesis.at, "at")
        _check_sides(hypothesis, "at", "versus", report)
    for factor in [factor for factor in hypothesis.where or {} if factor in taken]:
        report(f"{factor} is named in {taken[factor]} too; restrict it there", "where", factor)


def _check_gains(hypothesis: Correlation, report: Report) -> None:
    """Report sides of the two gains that name different factors, or the factor across which they are correlated."""
    other = list_gains(hypothesis)[1]
    _check_sides(hypothesis, "treatment", "control", report)
    if hypothesis.with_treatment is not None or hypothesis.with_control is not None:
        _check_sides(other, "treatment", "control", partial(_report_other, report))
    for field, when in iterate_selectors(hypothesis):
        if field != "where" and hypothesis.across in when:
            report(f"{hypothesis.across} is the factor across which gains are correlated", field, hypothesis.across)


def _report_other(report: Report, text: str, *below: str | int) -> None:
    report(text, *(f"with_{key}" for key in below))


def _check_sides(hypothesis: Hypothesis, first: str, second: str, report: Report) -> None:
    one, other = getattr(hypothesis, first), getattr(hypothesis, second)
    if set(one) != set(other):
        names = f"{first} names {', '.join(one)} and {second} {', '.join(other)}"
        report(f"{names}; name the same factors in both, so that everything else is equal", second)
    elif one == other:
        report(f"{first} and {second} are the same, so there is nothing to compare", second)


def _check_trend(
    hypothesis: Hypothesis, raw: Mapping[str, Any], factors: Mapping[str, Sequence[str]], report: Report
) -> None:
    if not isinstance(hypothesis, Trend):
        return
    if hypothesis.factor not in raw:
        report(f"there is no factor {hypothesis.factor!r}{list_options(hypothesis.factor, list(raw))}", "factor")
    elif hypothesis.factor in factors:
        labels = factors[hypothesis.factor]
        try:
            known = read_numbers(labels)
        except ContrastError as error:
            report(str(error), "factor")
            return
        for index, number in enumerate(hypothesis.levels or ()):
            if number not in known:
                text = format_label(number)
                report(f"{hypothesis.factor} has no level {text!r}{list_options(text, list(labels))}", "levels", index)


def _check_metric(hypothesis: Hypothesis, evaluation: Any, report: Report) -> None:
    metric = hypothesis.metric
    view, within = split_view(metric)
    kind, _, last = split_metric(metric)
    described = find_representation(metric) or find_attribution(metric)
    if described is not None and described.is_descriptive and isinstance(hypothesis, NonInferiority):
        report(f"found {metric!r}, of which neither more nor less is worse; compare it, or test equivalence", "metric")
    if _is_view(view, evaluation):
        _check_in_view(view, within, report)
    elif kind and last not in TESTED and kind not in RELATIVE:
        report(f"found {metric!r}, there is no metric {last!r}{list_options(last, list(TESTED))}", "metric")
    elif not (kind or metric in list_metrics() or find_detection(metric) or described):
        more = (
            "; expected a column of trials.csv such as id/accuracy, <kind>/<name>/<metric> with shift, family, slope, "
            "drop, relative_drop, external or dataset, be/<name> or rbe/<name>, failure/<score>/augrc, "
            "ood/<score>/<set>/auroc, representation/<name> or attribution/<method>/<metric>"
        )
        report(f"there is no metric {metric!r}{suggest(metric, list_metrics()) or more}", "metric")
    if counts_shifts(hypothesis) and find_shift_metric(metric) is None:
        expected = "expected the mean over shifts of a metric: robustness/mean_… or calibration/mean_shifted_…"
        report(f"over shifts, found {metric!r}, {expected}", "metric")
    if counts_sites(hypothesis) and find_site_metric(metric) is None:
        report(f"over sites, found {metric!r}, expected the mean over sites of a metric: external/mean_…", "metric")


def _is_view(view: str, evaluation: Any) -> bool:
    """Return whether a study's base evaluation has a label map of this name, or it is a class."""
    known = evaluation.get("label_maps") if isinstance(evaluation, Mapping) else None
    first = view.partition("/")[0]
    return bool(view) and (is_of_class(first) or (isinstance(known, Mapping) and first in known))


def _check_in_view(view: str, within: str, report: Report) -> None:
    """Report a metric that label maps and classes do not have; whether there is such a view depends on the data."""
    kind, _, last = split_metric(within)
    known = list_metrics_of(view)
    if kind == "external" and last not in known:
        report(f"there is no metric {last!r} of {view}{list_options(last, list(known))}", "metric")
    elif kind != "external" and within not in list_metrics(view):
        more = "; expected a column of trials.csv such as id/auroc, robustness/mean_auroc or external/<set>/auroc"
        report(f"there is no metric {within!r} of {view}{suggest(within, list_metrics(view)) or more}", "metric")


def _check_severities(hypothesis: Hypothesis, report: Report) -> None:
    metrics = [each.metric for each in list_measured(hypothesis)]
    if hypothesis.severities is not None and not any(split_metric(metric)[0] == "shift" for metric in metrics):
        found = f"found severities with the metric {' and '.join(metrics)}"
        report(f"{found}; they belong to shift/<name>/<metric>", "severities")


def _check_family(hypothesis: Hypothesis, report: Report) -> None:
    kind, name, _ = split_metric(hypothesis.metric)
    known = list(dict.fromkeys([*(hypothesis.families or ()), *FAMILIES, OTHER]))
    if kind in RELATIVE:
        known.insert(0, "mean")
    if kind in ("family", *RELATIVE) and name not in known:
        report(f"there is no family of shifts {name!r}{list_options(name, known)}", "metric")


def _check_shift(hypothesis: Hypothesis, evaluation: Any, grid: Grid, report: Report) -> None:
    """Report shifts and severities that the study does not evaluate. Shifts from packages are not looked up."""
    kind, name, _ = split_metric(hypothesis.metric)
    varies = any(assignment.path[0] == "evaluation" for assignment in grid.assignments() if len(assignment.source) > 2)
    section = evaluation if isinstance(evaluation, Mapping) else {}
    asked = section.get("shifts", "all")
    asked = [asked] if isinstance(asked, str) else asked
    if kind != "shift" or varies or not isinstance(asked, list):
        return
    own = [entry for entry in asked if isinstance(entry, Mapping)]
    if any("compose" in entry and "name" not in entry for entry in own) and "_then_" in name:
        return
    shifts, aliases = load_tables()[GENERAL], load_aliases()
    words = [aliases.get(entry, entry) for entry in asked if isinstance(entry, str)]
    known = [word for word in words if word not in GROUPS] + [str(entry["name"]) for entry in own if "name" in entry]
    if any(word in GROUPS for word in words):
        known += list(shifts)
    has_stains = "stain-grid" in words or any("stain" in entry for entry in own)
    if name not in known and not (has_stains and STAIN_NAME.fullmatch(name)):
        report(f"the study evaluates no shift {name!r}{list_options(name, known)}", "metric")
    severities = section.get("severities", [1, 2, 3, 4, 5])
    if name in shifts and isinstance(severities, list):
        for index, severity in enumerate(hypothesis.severities or ()):
            if severity not in severities:
                found = f"found {severity}, the study evaluates severities {', '.join(map(str, severities))}"
                report(found, "severities", index)
