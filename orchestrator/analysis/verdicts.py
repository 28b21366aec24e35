"""Verdict on every hypothesis: supported, not supported, contradicted, or not enough data.

The rule, in this order (with examples in ``docs/hypotheses.md``). *Effect* is the mean over units; all tests are
two-sided, and p-values of a family are corrected after Holm.

1. not enough data: more planned pairs are missing than ``max_missing`` allows, or there are so few units that p could
   not fall to α, correction included, even if all of them agreed;
2. supported: p ≤ α after correction, the effect has the claimed direction and is at least ``smallest_effect``;
3. contradicted: p ≤ α after correction and the effect has the other direction; or the interval contains no effect of
   ``smallest_effect`` or more in the claimed direction;
4. not supported: everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from orchestrator.analysis.evidence import Evidence, Measured, assess_evidence
from orchestrator.analysis.results import Results
from orchestrator.ledger.preregistration import (
    DELETED,
    PREREGISTERED,
    Registered,
    list_preregistered,
    read_versions,
    trace_hypotheses,
)
from orchestrator.statistics.intervals import Interval
from orchestrator.statistics.paired_tests import holm
from orchestrator.study.hypotheses import Hypothesis, read_hypothesis

SUPPORTED, NOT_SUPPORTED = "supported", "not supported"
CONTRADICTED, NOT_ENOUGH = "contradicted", "not enough data"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, CONTRADICTED, NOT_ENOUGH)


@dataclass(frozen=True)
class Verdict:
    """Verdict on one hypothesis, with its evidence."""

    hypothesis: Hypothesis
    registered: Registered
    evidence: Evidence
    #: p-value, Holm-corrected within the family; None if the test gave none.
    p_holm: float | None
    #: One of ``VERDICTS``.
    verdict: str
    #: Reason for the verdict, in words.
    reason: str
    #: Time of the last event that the verdict rests on: a trial completed, or hypotheses registered.
    moment_ms: int


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
    found = [(hypothesis, registered, assess_evidence(hypothesis, measured)) for hypothesis, registered in current]
    about = [(hypothesis.family, registered) for hypothesis, registered, _ in found]
    promised = list_preregistered(versions)
    corrected = correct([evidence.p_value for _, _, evidence in found], about, promised)
    best = correct([evidence.smallest_p for _, _, evidence in found], about, promised)
    moment_ms = max([version["registered_ms"] for version in versions] + _find_ends(results), default=0)
    verdicts = []
    for (hypothesis, registered, evidence), p_holm, best_p in zip(found, corrected, best, strict=True):
        verdict, reason = decide(hypothesis, evidence, p_holm, best_p)
        verdicts.append(Verdict(hypothesis, registered, evidence, p_holm, verdict, reason, moment_ms))
    return verdicts


def _find_ends(results: Results) -> list[int]:
    return [record.result["finished_ms"] for record in results.records.values() if record.result is not None]


def correct(
    p_values: Sequence[float | None],
    about: Sequence[tuple[str, Registered]],
    promised: Sequence[Mapping[str, Any]],
) -> list[float | None]:
    """Return p-values, Holm-corrected within their families. A p-value of None counts as 1 for the others.

    A preregistered hypothesis is corrected for all preregistered hypotheses of its family, including those since
    changed or deleted (p = 1); an exploratory one for these and for all exploratory ones of its family.

    Args:
        p_values: p-value of each hypothesis.
        about: family and history of each hypothesis.
        promised: content of each preregistered hypothesis.
    """
    kept = {registered.name for _, registered in about if registered.status == PREREGISTERED}
    lost = [content["family"] for content in promised if content["name"] not in kept]
    corrected: list[float | None] = []
    for number, (family, registered) in enumerate(about):
        is_early = registered.status == PREREGISTERED
        members = [
            position
            for position, (other, its) in enumerate(about)
            if other == family and (its.status == PREREGISTERED or not is_early)
        ]
        known = [1.0 if (p := p_values[position]) is None else p for position in members]
        adjusted = holm(known + [1.0] * lost.count(family))[members.index(number)]
        corrected.append(None if p_values[number] is None else adjusted)
    return corrected


# --------------------------------------------------------------------------- the rule


def decide(hypothesis: Hypothesis, evidence: Evidence, p_holm: float | None, best_p: float | None) -> tuple[str, str]:
    """Return the verdict and the reason for it.

    Args:
        hypothesis: claim to judge.
        evidence: evidence for the claim.
        p_holm: corrected p-value.
        best_p: corrected p-value if all units of all hypotheses of the family agreed.
    """
    lacking = _find_lack(hypothesis, evidence, best_p)
    if lacking is not None:
        return NOT_ENOUGH, lacking
    assert evidence.effect is not None
    smallest, claimed = hypothesis.smallest_effect, hypothesis.direction
    signed = {"higher": evidence.effect, "lower": -evidence.effect, "two-sided": abs(evidence.effect)}[claimed]
    is_significant = p_holm is not None and p_holm <= hypothesis.alpha
    is_too_small = bool(smallest) and evidence.interval is not None and _excludes(evidence.interval, smallest, claimed)
    rules = (
        (is_significant and signed >= smallest and signed > 0, SUPPORTED, "significant, and large enough to matter"),
        (is_significant and signed < 0, CONTRADICTED, "significant in the other direction"),
        (is_too_small, CONTRADICTED, "no effect that would matter is in the interval"),
        (is_significant, NOT_SUPPORTED, "significant, but smaller than what matters"),
        (p_holm is None, NOT_SUPPORTED, "too many differences are exactly 0 for a test"),
    )
    return next(((verdict, why) for holds, verdict, why in rules if holds), (NOT_SUPPORTED, "not significant"))


def _find_lack(hypothesis: Hypothesis, evidence: Evidence, best_p: float | None) -> str | None:
    if evidence.problem is not None:
        return evidence.problem
    if evidence.num_missing > hypothesis.max_missing * evidence.num_planned:
        return f"{evidence.num_missing} of {evidence.num_planned} planned pairs are missing"
    if evidence.num_units < evidence.num_needed:
        return f"{evidence.units}, {evidence.num_needed} are needed for p ≤ {hypothesis.alpha:g}"
    if best_p is not None and best_p > hypothesis.alpha:
        return f"{evidence.units} cannot give p ≤ {hypothesis.alpha:g} after correction for the family"
    return None


def _excludes(interval: Interval, smallest: float, claimed: str) -> bool:
    """Return whether the interval contains no effect of at least ``smallest`` in the claimed direction."""
    if claimed == "higher":
        return interval.high < smallest
    if claimed == "lower":
        return interval.low > -smallest
    return -smallest < interval.low and interval.high < smallest


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
            "direction": each.hypothesis.direction,
            "smallest_effect": each.hypothesis.smallest_effect,
            "effect": each.evidence.effect,
            "low": each.evidence.interval.low if each.evidence.interval else None,
            "high": each.evidence.interval.high if each.evidence.interval else None,
            "level": 1 - each.hypothesis.alpha,
            "test": each.hypothesis.test,
            "over": each.evidence.units,
            "p": each.evidence.p_value,
            "p_holm": each.p_holm,
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
