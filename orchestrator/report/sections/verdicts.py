"""Report section: the verdicts, as the first part of the page and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.inference.verdicts import NO_VERDICT, VERDICTS, Verdict
from orchestrator.analysis.results import Results
from orchestrator.analysis.wording import NO_BREAK, plural, sentence
from orchestrator.ledger.preregistration import (
    DELETED,
    EXPLORATORY,
    PREREGISTERED,
    Registered,
    read_versions,
    trace_hypotheses,
)
from orchestrator.planning.ceteris_paribus import read_differences, read_matching
from orchestrator.report.page import Section, callout, facts, note
from orchestrator.study.contrasts import describe_needed
from orchestrator.study.hypotheses import (
    Correlation,
    Directed,
    Equivalence,
    Hypothesis,
    NonInferiority,
    counts_sites,
    describe_comparison,
    get_claimed_size,
    list_measured,
)
from trainables.evaluation.metrics import find_metric

if TYPE_CHECKING:
    from orchestrator.analysis.predictions.patients import PatientAssessment

#: Size of the strip with effect and interval, px.
_WIDTH, _HEIGHT, _MARGIN = 300, 44, 14
#: Side of the picture of a correlation, px.
_SCATTER = 160
#: Units that are drawn as dots; more would be a bar.
_MAX_UNITS = 200


def verdict_section(results: Results, verdicts: Sequence[Verdict]) -> Section | None:
    """Return the section with the verdict on every hypothesis, None for a study that never had one."""
    versions = read_versions(results.plan)
    if not versions:
        return None
    body = note(_describe_all(verdicts)) if verdicts else ""
    if any(version["after_damage"] for version in versions):
        body += callout("hypotheses.json was damaged: what was registered before is lost, and so is when.", "warn")
    traced = trace_hypotheses(versions)
    judged = {each.registered.name for each in verdicts}
    unreadable = [each.name for each in traced if each.status != DELETED and each.name not in judged]
    if unreadable:
        body += callout("Not judged, because this version does not understand them:", "bad", unreadable)
    deleted = [each for each in traced if each.status == DELETED]
    if deleted:
        items = [f"{each.name}: {each.content['claim']} ({each.remark})" for each in deleted]
        body += callout("Deleted after results were known:", "bad", items)
    body += "".join(_card(each, results.plan) for each in verdicts)
    return Section("verdicts", "Verdicts", "What was claimed, and what came of it", body)


def summarise_verdicts(verdicts: Sequence[Verdict]) -> list[str]:
    """Return one line per hypothesis."""
    return [
        f"{sentence(each.verdict)}{' (exploratory)' * (each.registered.status == EXPLORATORY)}: "
        f"{each.hypothesis.claim.strip().rstrip('.')}. {describe_evidence(each)}"
        for each in verdicts
    ]


def _describe_all(verdicts: Sequence[Verdict]) -> str:
    early = sum(each.registered.status == PREREGISTERED for each in verdicts)
    late = len(verdicts) - early
    counts = [(sum(each.verdict == verdict for each in verdicts), verdict) for verdict in VERDICTS]
    found = ", ".join(f"{count} {verdict}" for count, verdict in counts if count)
    written = (
        f"{early} of them written before any trial was complete"
        if late
        else "all written before any trial was complete"
    )
    text = (
        f"{len(verdicts)} claimed ({written}): {found}. A verdict counts independently trained models; p-values are "
        "corrected after Holm within a family, intervals are not."
    )
    return text + " What is exploratory was chosen in the light of results, and needs a new study." * bool(late)


def describe_evidence(verdict: Verdict) -> str:
    """Return effect, interval, p-values and scope as text, or the reason why there are none."""
    evidence = verdict.evidence
    pairs = f"{evidence.num_complete} of {evidence.num_planned} pairs"
    if evidence.effect is None:
        return f"{sentence(verdict.reason)} ({pairs})."
    text = describe_effect(verdict)
    if verdict.patients is not None and verdict.patients.interval is not None:
        interval = verdict.patients.interval
        low, high = (_number(verdict, value) for value in (interval.low, interval.high))
        text += f", over patients too {low} to {high}"
    for name, p_value, corrected in (
        ("p", evidence.p_value, verdict.corrected.claim),
        ("p of the size", evidence.p_size, verdict.corrected.size),
    ):
        if p_value is not None:
            text += f", {name} {_p(p_value)}"
            if corrected is not None and corrected != p_value:
                text += f" (after correction {_p(corrected).removeprefix('= ')})"
    scope = "" if evidence.scope is None else f"; {evidence.scope.describe()}"
    return f"{text}; {evidence.units}, {pairs}{scope}. {sentence(verdict.reason)}."


def describe_effect(verdict: Verdict) -> str:
    """Return the effect with its interval, or why there is none."""
    evidence = verdict.evidence
    if evidence.effect is None:
        return sentence(verdict.reason)
    text = _effect(verdict, evidence.effect)
    if evidence.interval is None:
        return text
    low, high = (_number(verdict, value) for value in (evidence.interval.low, evidence.interval.high))
    return f"{text} ({100 * evidence.interval.level:g}{NO_BREAK}% interval {low} to {high})"


def _effect(verdict: Verdict, value: float) -> str:
    if isinstance(verdict.hypothesis, Correlation):
        return f"{_COEFFICIENTS[verdict.hypothesis.test]} = {_number(verdict, value)}"
    return (
        f"{_number(verdict, value)} points"
        if find_metric(verdict.hypothesis.metric).is_share
        else _number(verdict, value)
    )


#: Test of a correlation → name of its coefficient.
_COEFFICIENTS = {"spearman": "Spearman’s ρ", "pearson": "Pearson’s r"}


def _number(verdict: Verdict, value: float) -> str:
    if isinstance(verdict.hypothesis, Correlation):
        return f"{value:+.2f}"
    return f"{100 * value:+z.1f}" if find_metric(verdict.hypothesis.metric).is_share else f"{value:+z.3g}"


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"


#: Verdict → class of its card.
_CSS = dict(
    zip(VERDICTS, ("supported", "direction", "notsupported", "contradicted", "notenough", "noverdict"), strict=True)
)


def css_of(verdict: Verdict) -> str:
    """Return the class of a verdict's card."""
    return _CSS[verdict.verdict]


def _card(verdict: Verdict, plan: Mapping[str, Any]) -> str:
    hypothesis, registered = verdict.hypothesis, verdict.registered
    css = css_of(verdict)
    mark = "" if registered.status == PREREGISTERED else f'<span class="tag short">{escape(registered.status)}</span>'
    return (
        f'<div class="verdict {css}"><div class="head"><b>{escape(sentence(verdict.verdict))}</b>'
        f"{escape(hypothesis.name)}{mark}</div>"
        f'<p class="claim">{escape(hypothesis.claim)}</p><p>{escape(describe_evidence(verdict))}</p>'
        f"{_strip(verdict)}{_changes(registered)}{_details(verdict, plan)}</div>"
    )


def _changes(registered: Registered) -> str:
    if registered.status != EXPLORATORY:
        return ""
    return callout(f"Exploratory: {registered.remark}.", "warn", registered.changes)


def _details(verdict: Verdict, plan: Mapping[str, Any]) -> str:
    hypothesis, evidence = verdict.hypothesis, verdict.evidence
    differences = read_differences(plan, hypothesis.name)
    severities = "" if hypothesis.severities is None else f", severity {', '.join(map(str, hypothesis.severities))}"
    how = f"{hypothesis.test.replace('_', ' ')} over {evidence.units}"
    if counts_sites(hypothesis):
        how += ": the larger of its p over sites and that of a t test over sites and trainings"
    rows = {
        "compared": describe_comparison(hypothesis),
        "metric": f"{hypothesis.metric}{severities}",
        "claimed": _describe_claim(verdict),
        "test": "none: shift types are not independently trained"
        if verdict.verdict == NO_VERDICT
        else f"{how}, α = {hypothesis.alpha:g}, family {hypothesis.family}",
        "registered": registered_text(verdict.registered),
    }
    if verdict.patients is not None:
        rows["over patients"] = _describe_patients(verdict.patients)
    if differences:
        rows["differs"] = "; ".join(differences)
    elif differences is not None:
        rows["differs"] = "nothing but the named factors"
    rows["tuning"] = read_matching(plan, hypothesis.name)
    if evidence.gains:
        shares = [find_metric(gain.metric).is_share for gain in list_measured(hypothesis)]
        rows["gains"] = "; ".join(
            f"{level} {' and '.join(_gain(*each) for each in zip(pair, shares, strict=True))}"
            for level, pair in evidence.gains.items()
        )
    if evidence.means:
        rows["means"] = "; ".join(f"{part} {_mean(verdict, value)}" for part, value in evidence.means.items())
    if evidence.num_missing:
        rows["missing"] = (
            f"{evidence.num_missing} of {evidence.num_planned} planned pairs; {hypothesis.max_missing:.0%} may be"
        )
    if evidence.effect is not None and not evidence.has_enough_units and verdict.verdict != NO_VERDICT:
        rows["would do"] = (
            f"{evidence.num_needed} levels of {hypothesis.across}"
            if isinstance(hypothesis, Correlation)
            else describe_needed(hypothesis, evidence.num_needed)
            if counts_sites(hypothesis)
            else f"{plural(evidence.num_needed, 'independently trained replicate')} of every arm"
        )
    return f"<details><summary>How it was tested</summary>{facts(rows)}</details>"


def _describe_patients(assessment: PatientAssessment) -> str:
    """Return what the interval over patients is made of, or why there is none."""
    if assessment.interval is None:
        return assessment.problem or ""
    parts = assessment.interval.components
    return (
        f"95{NO_BREAK}% interval over {plural(assessment.num_replicates, 'replicate')} and "
        f"{plural(assessment.num_patients or 0, 'patient')} (images without a patient count as one each), "
        f"{assessment.interval.df:.0f} degrees of freedom; standard deviations of replicates "
        f"{100 * parts.replicate_sd:.1f}, patients {100 * parts.patient_sd:.1f} and the rest "
        f"{100 * parts.residual_sd:.1f} points"
    )


def _describe_claim(verdict: Verdict) -> str:
    hypothesis = verdict.hypothesis
    if isinstance(hypothesis, Correlation):
        return "a correlation " + {"higher": "above 0", "lower": "below 0"}.get(hypothesis.direction, "other than 0")
    size = _effect(verdict, get_claimed_size(hypothesis)).lstrip("+")
    if isinstance(hypothesis, Equivalence):
        return f"differs by less than {size}, in both directions"
    if isinstance(hypothesis, NonInferiority):
        return f"not worse by {size} or more"
    claimed = "other than 0" if hypothesis.direction == "two-sided" else hypothesis.direction
    return f"{claimed}, by more than {size}" if hypothesis.smallest_effect else claimed


def registered_text(registered: Registered) -> str:
    """Return the registration status and the reason for it."""
    return f"{registered.status}: {registered.remark}"


def _mean(verdict: Verdict, value: float) -> str:
    return f"{100 * value:.1f}{NO_BREAK}%" if find_metric(verdict.hypothesis.metric).is_share else f"{value:.3g}"


def _list_marks(hypothesis: Hypothesis) -> list[float]:
    """Return the effects that the hypothesis is tested against, other than 0."""
    size = get_claimed_size(hypothesis)
    if not size:
        return []
    if not isinstance(hypothesis, Directed):
        both = isinstance(hypothesis, Equivalence)
        return [size, -size] if both else [-size if find_metric(hypothesis.metric).higher_is_better else size]
    return [sign * size for sign in {"higher": (1,), "lower": (-1,), "two-sided": (1, -1)}[hypothesis.direction]]


def _strip(verdict: Verdict) -> str:
    """Return an SVG of the units' differences, their mean and interval to scale, with 0 and the claimed size."""
    evidence = verdict.evidence
    if evidence.effect is None:
        return ""
    if evidence.gains is not None:
        return _scatter(verdict, evidence.gains)
    marks = _list_marks(verdict.hypothesis)
    ends = [] if evidence.interval is None else [evidence.interval.low, evidence.interval.high]
    shown = [0.0, evidence.effect, *marks, *ends, *evidence.differences]
    low, high = min(shown), max(shown)
    scale = (_WIDTH - 2 * _MARGIN) / ((high - low) or 1.0)

    def x(value: float) -> str:
        return f"{_MARGIN + (value - low) * scale:.1f}"

    lines = [f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="4" y2="28"/><text x="{x(0)}" y="40">0</text>']
    for mark in marks:
        text = f"{_effect(verdict, mark)}: the claimed size"
        lines.append(
            f'<line class="matters" x1="{x(mark)}" x2="{x(mark)}" y1="4" y2="28"><title>{escape(text)}</title></line>'
            f'<text x="{x(mark)}" y="40">{escape(_number(verdict, mark))}</text>'
        )
    for value in evidence.differences[:_MAX_UNITS]:
        title = f"<title>{escape(_effect(verdict, value))}</title>"
        lines.append(f'<circle class="unit" cx="{x(value)}" cy="25" r="2.5">{title}</circle>')
    if ends:
        lines.append(f'<line class="interval" x1="{x(ends[0])}" x2="{x(ends[1])}" y1="14" y2="14"/>')
    lines.append(f'<circle cx="{x(evidence.effect)}" cy="14" r="5"/>')
    label = escape(f"differences of units, their mean and interval: {describe_evidence(verdict)}")
    return (
        f'<svg class="strip" width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}">{"".join(lines)}</svg>'
    )


def _gain(value: float, is_share: bool) -> str:
    return f"{100 * value:+.1f}" if is_share else f"{value:+.3g}"


def _scatter(verdict: Verdict, gains: Mapping[str, tuple[float, float]]) -> str:
    """Return an SVG of the two gains of every unit, with lines at 0: the first gain upwards, the other to the right."""
    places = []
    for values in zip(*gains.values(), strict=True):
        low, high = min(0.0, *values), max(0.0, *values)
        places.append([(value - low) / ((high - low) or 1.0) for value in (0.0, *values)])
    up, right = places
    side = _SCATTER - 2 * _MARGIN

    def x(share: float) -> str:
        return f"{_MARGIN + share * side:.1f}"

    def y(share: float) -> str:
        return f"{_MARGIN + (1 - share) * side:.1f}"

    ends = _MARGIN, _SCATTER - _MARGIN
    shown = [
        f'<line class="zero" x1="{x(right[0])}" x2="{x(right[0])}" y1="{ends[0]}" y2="{ends[1]}"/>',
        f'<line class="zero" x1="{ends[0]}" x2="{ends[1]}" y1="{y(up[0])}" y2="{y(up[0])}"/>',
    ]
    shares = [find_metric(gain.metric).is_share for gain in list_measured(verdict.hypothesis)]
    for (level, pair), across, upwards in zip(gains.items(), right[1:], up[1:], strict=True):
        title = f"{level}: {' and '.join(_gain(*each) for each in zip(pair, shares, strict=True))}"
        shown.append(f'<circle cx="{x(across)}" cy="{y(upwards)}" r="4"><title>{escape(title)}</title></circle>')
    label = escape(f"both gains of every level: {describe_evidence(verdict)}")
    return (
        f'<svg class="strip" width="{_SCATTER}" height="{_SCATTER}" role="img" aria-label="{label}">'
        f"{''.join(shown)}</svg>"
    )
