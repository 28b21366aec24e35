"""Verdict on every hypothesis: supported, not supported, contradicted, or not enough data.

The rule (with examples in ``docs/hypotheses.md``). *Effect* is the mean over independently trained units; p-values of a
family are corrected after Holm; *significant* means p ≤ α after correction.

1. not enough data: more planned pairs are missing than ``max_missing`` allows, or there are so few units that p could
   not fall to α, correction included, even if all of them agreed;
2. supported: the effect has the claimed direction, significantly, and is significantly larger than the claimed size;
3. contradicted: the effect has the other direction, significantly, or is significantly smaller than the claimed size;
4. supported (direction): the effect has the claimed direction, significantly, and its size is open;
5. not supported: everything else.

A hypothesis over shifts gets no verdict: it is told under how many families of shifts the trained models agree. One on
where models look gets none if methods of attribution, or metrics of the same thing, disagree in direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from orchestrator.analysis.attribution.agreement import find_disagreement
from orchestrator.analysis.inference.correlation import assess_correlation
from orchestrator.analysis.inference.evidence import Agreement, Evidence, assess_evidence
from orchestrator.analysis.inference.measured import Measured
from orchestrator.analysis.results import Results
from orchestrator.analysis.wording import plural
from orchestrator.ledger.preregistration import (
    DELETED,
    PREREGISTERED,
    Registered,
    list_preregistered,
    read_versions,
    trace_hypotheses,
)
from orchestrator.statistics.paired_tests import holm_nested
from orchestrator.study.contrasts import describe_needed
from orchestrator.study.hypotheses import (
    Correlation,
    Directed,
    Equivalence,
    Hypothesis,
    NonInferiority,
    counts_replicates,
    counts_shifts,
    counts_sites,
    get_claimed_size,
    read_hypothesis,
)
from trainables.evaluation.metrics import is_higher_better

if TYPE_CHECKING:
    from orchestrator.analysis.predictions.patients import PatientAssessment

SUPPORTED, SUPPORTED_DIRECTION, NOT_SUPPORTED = "supported", "supported (direction)", "not supported"
CONTRADICTED, NOT_ENOUGH, NO_VERDICT = "contradicted", "not enough data", "no verdict"
VERDICTS = (SUPPORTED, SUPPORTED_DIRECTION, NOT_SUPPORTED, CONTRADICTED, NOT_ENOUGH, NO_VERDICT)


@dataclass(frozen=True)
class Corrected:
    """p-values of one hypothesis: of the claim as such, and of its size. None: there is none."""

    claim: float | None
    size: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Verdict on one hypothesis, with its evidence."""

    hypothesis: Hypothesis
    registered: Registered
    evidence: Evidence
    #: p-values of the claim and of its size, Holm-corrected within the family; None if the test gave none.
    corrected: Corrected
    #: One of ``VERDICTS``.
    verdict: str
    #: Reason for the verdict, in words.
    reason: str
    #: Time of the last event that the verdict rests on: a trial completed, or hypotheses registered.
    moment_ms: int
    #: Interval over replicates and patients (``over_patients``); None if there is none to be had.
    patients: PatientAssessment | None = None


def judge(results: Results) -> list[Verdict]:
    """Return the verdict on every hypothesis of the study as it was last run, in the order of the study file.

    Hypotheses that another version of RobustSweep wrote and this one cannot read are left out; the report lists them.
    """
    versions = read_versions(results.plan)
    current = [
        (hypothesis, registered)
        for registered in trace_hypotheses(versions)
        if registered.status != DELETED and (hypothesis := read_hypothesis(registered.content)) is not None
    ]
    measured = Measured(results)
    found = [(hypothesis, registered, assess(hypothesis, measured)) for hypothesis, registered in current]
    about = [(hypothesis, registered) for hypothesis, registered, _ in found]
    promised = list_preregistered(versions)
    corrected = correct([Corrected(evidence.p_value, evidence.p_size) for _, _, evidence in found], about, promised)
    best = correct([Corrected(evidence.smallest_p) for _, _, evidence in found], about, promised)
    moment_ms = max([version["registered_ms"] for version in versions] + _find_ends(results), default=0)
    verdicts = []
    for (hypothesis, registered, evidence), p_values, best_p in zip(found, corrected, best, strict=True):
        verdict, reason = decide(hypothesis, evidence, p_values, best_p.claim)
        if verdict not in (NOT_ENOUGH, NO_VERDICT) and evidence.effect is not None:
            disagreement = find_disagreement(hypothesis, evidence.effect, measured)
            verdict, reason = (verdict, reason) if disagreement is None else (NO_VERDICT, disagreement)
        verdicts.append(Verdict(hypothesis, registered, evidence, p_values, verdict, reason, moment_ms))
    return verdicts


def assess(hypothesis: Hypothesis, measured: Measured) -> Evidence:
    """Return the evidence for one hypothesis of any kind."""
    if isinstance(hypothesis, Correlation):
        return assess_correlation(hypothesis, measured)
    return assess_evidence(hypothesis, measured)


def _find_ends(results: Results) -> list[int]:
    return [record.result["finished_ms"] for record in results.records.values() if record.result is not None]


def correct(
    p_values: Sequence[Corrected],
    about: Sequence[tuple[Hypothesis, Registered]],
    promised: Sequence[Mapping[str, Any]],
) -> list[Corrected]:
    """Return p-values, Holm-corrected within their families. A p-value of None counts as 1 for the others.

    A preregistered hypothesis is corrected for all preregistered hypotheses of its family, including those since
    changed or deleted (p = 1); an exploratory one for these and for all exploratory ones of its family. Hypotheses over
    shifts have no p-value and do not count.

    Args:
        p_values: uncorrected p-values of each hypothesis.
        about: each hypothesis, and its history.
        promised: content of each preregistered hypothesis.
    """
    kept = {registered.name for _, registered in about if registered.status == PREREGISTERED}
    lost = [content for content in promised if content["name"] not in kept and content.get("over") != "shifts"]
    corrected = []
    for number, (hypothesis, registered) in enumerate(about):
        is_early = registered.status == PREREGISTERED
        members = [
            position
            for position, (other, its) in enumerate(about)
            if other.family == hypothesis.family
            and (its.status == PREREGISTERED or not is_early)
            and (position == number or not counts_shifts(other))
        ]
        num_lost = sum(content["family"] == hypothesis.family for content in lost)
        known = [_list_tests(p_values[position]) for position in members]
        adjusted = holm_nested(known + [[1.0]] * num_lost)[members.index(number)]
        claim, size = p_values[number].claim, p_values[number].size
        corrected.append(Corrected(None if claim is None else adjusted[0], None if size is None else adjusted[-1]))
    return corrected


def _list_tests(p_values: Corrected) -> list[float]:
    claim = 1.0 if p_values.claim is None else p_values.claim
    return [claim] if p_values.size is None else [claim, p_values.size]


# --------------------------------------------------------------------------- the rule


def decide(hypothesis: Hypothesis, evidence: Evidence, p_values: Corrected, best_p: float | None) -> tuple[str, str]:
    """Return the verdict and the reason for it.

    Args:
        hypothesis: claim to judge.
        evidence: evidence for the claim.
        p_values: corrected p-values.
        best_p: corrected p-value if all units of all hypotheses of the family agreed.
    """
    lacking = _find_lack(hypothesis, evidence, best_p)
    if lacking is not None:
        return NOT_ENOUGH, lacking
    if evidence.agreement is not None:
        return NO_VERDICT, _describe_agreement(evidence)
    assert evidence.effect is not None
    is_sure, is_size_sure = (p is not None and p <= hypothesis.alpha for p in (p_values.claim, p_values.size))
    if isinstance(hypothesis, Equivalence | NonInferiority):
        rules = _list_margin_rules(hypothesis, evidence.effect, is_sure=is_sure)
    else:
        rules = _list_rules(hypothesis, evidence.effect, is_sure=is_sure, is_size_sure=is_size_sure)
    rules.append((p_values.claim is None, NOT_SUPPORTED, "too many differences are exactly 0 for a test"))
    verdict, why = next(((verdict, why) for holds, verdict, why in rules if holds), (NOT_SUPPORTED, "not significant"))
    if counts_sites(hypothesis):
        why += f", over {evidence.units}"
    elif isinstance(hypothesis, Correlation) and evidence.scope is not None:
        why += f", over {evidence.units}, for these {plural(evidence.scope.num_models, 'trained model')}"
    return verdict, why


#: Whether a rule holds, the verdict, and the reason.
_Rule = tuple[bool, str, str]


def _list_rules(hypothesis: Directed | Correlation, effect: float, *, is_sure: bool, is_size_sure: bool) -> list[_Rule]:
    """Return the rules for a claimed direction and size, the first that holds decides."""
    size = get_claimed_size(hypothesis)
    signed = {"higher": effect, "lower": -effect, "two-sided": abs(effect)}[hypothesis.direction]
    smaller = "the direction holds, but the effect is" if is_sure else "the effect is"
    return [
        (is_sure and signed < 0, CONTRADICTED, "significant in the other direction"),
        (is_sure and not size, SUPPORTED, "significant"),
        (is_sure and is_size_sure and signed > size, SUPPORTED, "significant, and significantly larger than claimed"),
        (is_size_sure and signed < size, CONTRADICTED, f"{smaller} significantly smaller than claimed"),
        (is_sure, SUPPORTED_DIRECTION, "direction shown, size not shown"),
    ]


def _list_margin_rules(hypothesis: Equivalence | NonInferiority, effect: float, *, is_sure: bool) -> list[_Rule]:
    """Return the rules for a margin. At the margin an equivalence errs with α already, so nothing contradicts it."""
    if isinstance(hypothesis, Equivalence):
        return [(is_sure, SUPPORTED, "significantly within the margin on both sides")]
    gain = effect if is_higher_better(hypothesis.metric) else -effect
    return [
        (is_sure and gain > -hypothesis.margin, SUPPORTED, "significantly above the margin of inferiority"),
        (is_sure, CONTRADICTED, "significantly worse than the margin"),
    ]


def _describe_agreement(evidence: Evidence) -> str:
    assert evidence.agreement is not None
    text = f"consistent over {evidence.agreement.describe()}"
    return text if evidence.scope is None else f"{text}, for these {evidence.scope.num_models} trained models"


def _describe_counts(agreement: Agreement | None) -> dict[str, int | None]:
    return {
        "agreeing_shift_families": None if agreement is None else agreement.num_agreeing_families,
        "shift_families": None if agreement is None else agreement.num_families,
        "agreeing_shift_types": None if agreement is None else agreement.num_agreeing_types,
        "shift_types": None if agreement is None else agreement.num_types,
    }


def _find_lack(hypothesis: Hypothesis, evidence: Evidence, best_p: float | None) -> str | None:
    if evidence.problem is not None:
        return evidence.problem
    if evidence.num_missing > hypothesis.max_missing * evidence.num_planned:
        return f"{evidence.num_missing} of {evidence.num_planned} planned pairs are missing"
    if evidence.agreement is not None:
        return None
    if not evidence.has_enough_units:
        only = ""
        is_one = evidence.scope is not None and evidence.scope.num_encoders == 1 and "group" not in evidence.units
        if is_one and counts_replicates(hypothesis):
            only = "for this encoder: "
        needed = describe_needed(hypothesis, evidence.num_needed)
        return f"{only}{evidence.units}, {needed} are needed for p ≤ {hypothesis.alpha:g}"
    if best_p is not None and best_p > hypothesis.alpha:
        return f"{evidence.units} cannot give p ≤ {hypothesis.alpha:g} after correction for the family"
    return None


def verdicts_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return one row per hypothesis, with effects in the metric's units."""
    rows = [
        {
            "name": each.hypothesis.name,
            "claim": each.hypothesis.claim,
            "status": each.registered.status,
            "verdict": each.verdict,
            "reason": each.reason,
            "metric": each.hypothesis.metric,
            "kind": each.hypothesis.kind,
            "direction": each.hypothesis.direction if isinstance(each.hypothesis, Directed | Correlation) else None,
            "claimed_size": get_claimed_size(each.hypothesis),
            "effect": each.evidence.effect,
            "low": each.evidence.interval.low if each.evidence.interval else None,
            "high": each.evidence.interval.high if each.evidence.interval else None,
            "level": each.evidence.interval.level if each.evidence.interval else None,
            "test": each.hypothesis.test,
            "over": each.evidence.units,
            "scope": each.evidence.scope.describe() if each.evidence.scope else None,
            **_describe_counts(each.evidence.agreement),
            "low_over_patients": each.patients.interval.low if each.patients and each.patients.interval else None,
            "high_over_patients": each.patients.interval.high if each.patients and each.patients.interval else None,
            "p": each.evidence.p_value,
            "p_holm": each.corrected.claim,
            "p_size": each.evidence.p_size,
            "p_size_holm": each.corrected.size,
            "alpha": each.hypothesis.alpha,
            "family": each.hypothesis.family,
            "planned_pairs": each.evidence.num_planned,
            "complete_pairs": each.evidence.num_complete,
            "missing_pairs": each.evidence.num_missing,
            "moment_ms": each.moment_ms,
        }
        for each in verdicts
    ]
    return pd.DataFrame(rows, columns=None if rows else ["name", "claim", "status", "verdict", "reason"])
