"""Choice of an arm and a replicate by a rule on in-distribution validation; a choice by anything else is an oracle's.

Pure: uses only the tables and records of ``analysis.results``.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd

from orchestrator.analysis.results import Results
from orchestrator.ledger.derived import find_main_metric
from orchestrator.planning.states import COMPLETE, STOPPED
from orchestrator.planning.works import tell_remarks
from orchestrator.statistics.intervals import summarise
from trainables.errors import ConfigError, StudyError
from trainables.evaluation.metrics import AGGREGATES, EVALUATED, is_higher_better, name_over_validation_shifts

BEST, ONE_STANDARD_ERROR = "best", "one-standard-error"
RULES = {
    BEST: "the best mean over replicates; of equal ones the first in the plan",
    ONE_STANDARD_ERROR: "the simplest arm whose mean is within one standard error of the best arm's: fewest weights, "
    "then fewest pretraining stages, then least time per trial, then the better mean",
}
#: Prefix of the only columns that may choose an arm, besides those over shifted validation images; MLflow's headline
#: numbers have the same under the longer prefix.
VALIDATION, _HEADLINE = "val/", "validation/"
#: Starts of columns that have it, too: failure/<score>/… and dataset/<name>/… name those on validation, like a metric's
#: short name.
_OF_VALIDATION = ("failure/", "dataset/")
#: Columns over shifted validation images: numbers of the trial alone, so that they have the longer prefix.
_OVER_SHIFTS = frozenset(name_over_validation_shifts(how, metric) for how in AGGREGATES for metric in EVALUATED)


@dataclass(frozen=True)
class SelectionCriteria:
    """Criteria by which an arm and a replicate are chosen."""

    #: A metric on validation ("auroc", "dataset/drive/dice", "validation/robustness/mean_auroc"), or with ``oracle``
    #: any column of the trials ("robustness/worst_shift_auroc"); None: the main metric of the study's task.
    by: str | None = None
    rule: str = BEST
    #: Whether test, shifted or external data may choose.
    oracle: bool = False
    #: Replicate to choose; None for the best one by the same column.
    replicate: int | None = None
    #: Whether to choose although trials are missing.
    incomplete: bool = False


@dataclass(frozen=True)
class RankedArm:
    """One arm with the values by which it is ranked."""

    name: str
    label: str
    mean: float | None
    #: Standard deviation with ddof 1; None with one replicate.
    sd: float | None
    #: Complete replicates with a defined value.
    n: int
    planned: int
    complete: int
    #: Weights of the network, pretraining stages it starts from, mean seconds per trial; None if no trial is complete.
    num_parameters: int | None
    num_stages: int
    seconds: float | None


@dataclass(frozen=True)
class Selection:
    """Chosen arm and replicate, with the ranking and the reasons."""

    column: str
    higher_is_better: bool
    rule: str
    oracle: bool
    #: Best first; arms without a defined value last.
    ranking: tuple[RankedArm, ...]
    arm: RankedArm
    replicate: int
    signature: str
    #: Reasons for the choice of the arm and of the replicate, in words.
    reasons: tuple[str, ...]
    #: Numbers of planned, complete, failed, interrupted and missing trials.
    counts: dict[str, int]
    #: What has to be said of the pretraining of the arm, as phrases.
    remarks: tuple[str, ...]

    @property
    def chooser(self) -> str:
        """The images that chose, in words."""
        if self.oracle:
            return "test, shifted or external data: an oracle"
        shifted = ", shifted (evaluation.validation_shifts)" if self.column in _OVER_SHIFTS else ""
        return f"in-distribution validation{shifted}"

    @property
    def label(self) -> str:
        """Label of the arm, marked if an oracle chose it."""
        return f"{self.arm.label} (oracle)" if self.oracle else self.arm.label

    def as_json(self) -> dict[str, Any]:
        """Return the selection as JSON values."""
        return asdict(self) | {"ranking": [asdict(arm) for arm in self.ranking], "reasons": list(self.reasons)}


def select_arm(results: Results, criteria: SelectionCriteria) -> Selection:
    """Return the chosen arm and replicate.

    Raises:
        StudyError: the column or rule does not exist, the column is not validation and ``oracle`` is not set, trials
            are missing and ``incomplete`` is not set, or the replicate is not complete.
    """
    if criteria.rule not in RULES:
        raise StudyError(f"asked for the rule {criteria.rule!r}; expected one of {', '.join(RULES)}")
    if results.data_sets:
        listed = ", ".join(dict.fromkeys(results.data_sets.values()))
        raise StudyError(
            "asked which arm to choose, and the arms are on several data sets, whose numbers do not compare; expected "
            f"--data-set with one of {listed}"
        )
    _check_counts(results, criteria)
    criteria = replace(criteria, by=criteria.by or find_main_metric(results.plan))
    column = find_column(results.complete, criteria)
    _check_same_images(results, column)
    higher = _is_higher_better(column)
    ranking = rank_arms(results, column, higher_is_better=higher)
    if not ranking or ranking[0].mean is None:
        raise StudyError(f"looked for {column} and no complete trial has a defined value; choose another --by")
    arm, reasons = _choose(ranking, criteria.rule, column)
    replicate, signature, reason = _choose_replicate(results, arm, column, criteria.replicate)
    return Selection(
        column=column,
        higher_is_better=higher,
        rule=criteria.rule,
        oracle=criteria.oracle,
        ranking=ranking,
        arm=arm,
        replicate=replicate,
        signature=signature,
        reasons=(*reasons, reason),
        counts=results.counts,
        remarks=tell_remarks(results.plan, [arm.name]),
    )


def _check_counts(results: Results, criteria: SelectionCriteria) -> None:
    counts = results.counts
    said = ", ".join(
        f"{count} {state.replace('_', ' ')}" for state, count in counts.items() if count or state == COMPLETE
    )
    if results.complete.empty:
        raise StudyError(f"asked which arm to choose, and no trial is complete ({said}); run the study first")
    if counts[COMPLETE] + counts.get(STOPPED, 0) < counts["planned"] and not criteria.incomplete:
        raise StudyError(
            f"asked which arm to choose, and not all trials are complete ({said}): another arm may turn out to be "
            "better; go on with `robustsweep run`, or choose among what is complete with --incomplete"
        )


def _check_same_images(results: Results, column: str) -> None:
    """Check that a column is of the same images in all arms that have it.

    Raises:
        StudyError: it is of the validation images of each arm, and arms are trained on different data sets.
    """
    if results.tested_on and "dataset/" not in column:
        known = sorted({name for names in results.tested_on.values() for name in names})
        metric = column.rpartition("/")[2]
        raise StudyError(
            f"asked which arm to choose by {column}, and the arms are trained on different data sets (data.train_on), "
            "whose images do not compare; expected --by with the images of one of them: "
            f"{', '.join(f'dataset/{name}/{metric}' for name in known)}, which chooses among the arms that are trained "
            "on it"
        )


def find_column(complete: pd.DataFrame, criteria: SelectionCriteria) -> str:
    """Return the column that the criteria name.

    Args:
        complete: rows of the complete trials in the trials table.
        criteria: criteria of which ``by`` and ``oracle`` are read.

    Raises:
        StudyError: the column does not exist, it is not validation and ``oracle`` is not set, or it is validation and
            ``oracle`` is set.
    """
    assert criteria.by is not None
    asked = criteria.by if criteria.by in _OVER_SHIFTS else criteria.by.removeprefix(_HEADLINE)
    by = asked if "/" in asked else f"{VALIDATION}{asked}"
    if asked.startswith(_OF_VALIDATION) and not criteria.oracle:
        by = f"{_HEADLINE}{asked}"
    known = [str(each) for each in complete if "/" in str(each) and not str(each).startswith(("arm/", _HEADLINE))]
    starts = tuple(f"{_HEADLINE}{start}" for start in _OF_VALIDATION)
    known += [str(each) for each in complete if each in _OVER_SHIFTS or str(each).startswith(starts)]
    validation = [column for column in known if column.startswith((VALIDATION, _HEADLINE))]
    others = [column for column in known if column not in validation]
    if by not in known:
        listed = others if criteria.oracle else [column.removeprefix(VALIDATION) for column in validation]
        lacking = "; there are no shifted validation images: evaluation.validation_shifts is empty"
        raise StudyError(
            f"--by: looked for {criteria.by!r} among the results; expected one of {', '.join(listed)}"
            f"{lacking if by in _OVER_SHIFTS and not _OVER_SHIFTS & set(known) else ''}"
        )
    if by in others and not criteria.oracle:
        raise StudyError(
            f"--by: {by} is not in-distribution validation: an arm chosen by it has seen the data that it is judged by "
            f"(rule: only {VALIDATION}… and {_HEADLINE}robustness/… choose); add --oracle to do so, and everything "
            "will say that an oracle chose"
        )
    if by in validation and criteria.oracle:
        raise StudyError(f"--oracle: {by} is in-distribution validation, which is no oracle; leave --oracle out")
    return by


def _is_higher_better(column: str) -> bool:
    try:
        return is_higher_better(column)
    except ConfigError as error:
        raise StudyError(f"--by: it is not known whether a high or a low {column} is better; {error}") from error


def rank_arms(results: Results, column: str, *, higher_is_better: bool) -> tuple[RankedArm, ...]:
    """Return all arms, best mean first; equal arms in plan order, arms without a defined value last.

    Arms that a search has stopped early are left out, even if one of their replicates is complete.
    """
    arms = []
    for name, group in results.trials[~results.trials["name"].isin(results.stopped_arms)].groupby("name", sort=False):
        summary = summarise(group[column])
        done = group[group["state"] == COMPLETE]
        records = [results.records[signature] for signature in done["signature"]]
        stages = [len(results.needs[signature]) for signature in group["signature"]]
        arms.append(
            RankedArm(
                name=str(name),
                label=results.labels[str(name)],
                mean=summary.mean,
                sd=summary.sd,
                n=summary.n,
                planned=len(group),
                complete=len(done),
                num_parameters=max(
                    (record.result["num_parameters"] for record in records if record.result), default=None
                ),
                num_stages=max(stages),
                seconds=float(done["duration_seconds"].mean()) if len(done) else None,
            )
        )
    sign = -1.0 if higher_is_better else 1.0
    return tuple(sorted(arms, key=lambda arm: math.inf if arm.mean is None else sign * arm.mean))


def _choose(ranking: tuple[RankedArm, ...], rule: str, column: str) -> tuple[RankedArm, list[str]]:
    best = ranking[0]
    ties = [arm for arm in ranking[1:] if arm.mean == best.mean]
    reason = f"Best mean {column} over replicates: {describe_value(best)}."
    if rule == BEST:
        tied = f" {len(ties)} more had the same; this one is the first in the plan." if ties else ""
        return best, [reason + tied]
    if best.sd is None:
        raise StudyError(
            f"--rule {ONE_STANDARD_ERROR}: the best arm ({best.label}) has {best.n} replicate, and a standard error "
            f"needs two; run more replicates, or use --rule {BEST}"
        )
    error = best.sd / math.sqrt(best.n)
    assert best.mean is not None
    near = [arm for arm in ranking if arm.mean is not None and abs(arm.mean - best.mean) <= error]
    # min keeps the first of equals, and the ranking has the best first.
    chosen = min(near, key=lambda arm: (arm.num_parameters or 0, arm.num_stages, arm.seconds or 0.0))
    within = f"{len(near)} of {len(ranking)} arms are within one standard error ({error:.4g}) of the best mean {column}"
    return chosen, [
        f"{within}, {describe_value(best)} of {best.label}.",
        f"The simplest of them: {chosen.num_parameters:,} weights, {chosen.num_stages} pretraining stages, "
        f"{chosen.seconds:.1f} s per trial; {describe_value(chosen)}.",
    ]


def _choose_replicate(results: Results, arm: RankedArm, column: str, wanted: int | None) -> tuple[int, str, str]:
    """Return replicate, signature and reason."""
    rows = results.complete
    rows = rows[rows["name"] == arm.name]
    if wanted is not None:
        rows = rows[rows["replicate"] == wanted]
        if rows.empty:
            raise StudyError(
                f"--replicate: looked for replicate {wanted} of {arm.label}, which has {arm.complete} complete of "
                f"{arm.planned} (0 to {arm.planned - 1}); choose one that is complete"
            )
        return wanted, str(rows["signature"].iloc[0]), f"Replicate {wanted} was asked for."
    rows = rows[rows[column].notna()].sort_values("replicate")
    values = rows[column]
    best = rows.iloc[int(values.argmax() if _is_higher_better(column) else values.argmin())]
    reason = f"Replicate {best['replicate']} has the best {column} of its {len(rows)} complete ones: {best[column]:.4f}"
    tied = " (the first of equals)" if (values == best[column]).sum() > 1 else ""
    return int(best["replicate"]), str(best["signature"]), f"{reason}{tied}."


def describe_value(arm: RankedArm) -> str:
    """Return text such as "0.9123 ± 0.0045 (n = 3)", "undefined" if there is no value."""
    if arm.mean is None:
        return "undefined"
    spread = "" if arm.sd is None else f" ± {arm.sd:.4f}"
    return f"{arm.mean:.4f}{spread} (n = {arm.n})"
