"""Checks for hypotheses that the data or the plan cannot support: shifts that are not evaluated, too few replicates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.planning.plan import Plan
from orchestrator.study.contrasts import (
    Contrast,
    ContrastError,
    compute_smallest_p,
    count_encoders,
    describe_needed,
    drop_apart,
    find_contrast,
    find_shared_sites,
    find_units,
    group_cells,
    list_compared,
    name_unit,
    num_units_needed,
)
from orchestrator.study.fields import suggest
from orchestrator.study.grid import Arm
from orchestrator.study.hypotheses import (
    MIN_TREND_LEVELS,
    Correlation,
    Hypothesis,
    counts_replicates,
    counts_shifts,
    counts_sites,
    is_about_families,
    list_measured,
    split_metric,
)
from trainables.errors import StudyError
from trainables.evaluation.families import group_by_family
from trainables.evaluation.metric_tables.views import split_view
from trainables.evaluation.metrics import DROPS, RELATIVE
from trainables.shifts.tables import find_type

if TYPE_CHECKING:
    from trainables.data.dataset import Dataset
    from trainables.data_config import DataConfig


def check_evaluated_shifts(
    hypotheses: Sequence[Hypothesis], arms: Sequence[Arm], load: Callable[[DataConfig], Dataset]
) -> None:
    """Check that the compared arms are evaluated under the shifts and severities that the hypotheses name.

    Imports torch (2 s) if a hypothesis names a shift, because the shifts are chosen by the code that the trials run.

    Args:
        hypotheses: hypotheses of a study file without other problems.
        arms: arms of the study.
        load: loader of a config's data, which decide the severity tables and the shifts left out for grey images.

    Raises:
        StudyError: if an arm is not evaluated under such a shift, or not at such a severity.
        ConfigError: if the evaluation names an unknown shift, severity or modality.
    """
    for number, hypothesis in enumerate(hypotheses):
        for each in list_measured(hypothesis):
            if split_metric(each.metric)[0] in ("shift", "family", "slope", *DROPS, *RELATIVE):
                for index in list_compared(each, [arm.levels for arm in arms]):
                    _check_evaluated(f"hypotheses[{number}] ({each.name})", each, arms[index], load)


def _check_evaluated(key: str, hypothesis: Hypothesis, arm: Arm, load: Callable[[DataConfig], Dataset]) -> None:
    from trainables.evaluation.robustness import choose_shifts  # imports torch

    kind, name, _ = split_metric(hypothesis.metric)
    shifts, left_out = choose_shifts(load(arm.config.data), arm.config.evaluation)
    severities: dict[str, list[int]] = {}
    for shift in shifts[1:]:  # the first is the identity
        severities.setdefault(shift.name, []).append(shift.severity)
    if is_about_families(hypothesis.metric, hypothesis.families or ()):
        families = group_by_family(dict.fromkeys(map(find_type, severities)), hypothesis.families or {})
        if name not in families:
            raise StudyError(
                f"{key}.metric: found {hypothesis.metric!r}, and the arm {arm.name!r} is evaluated under no shift of "
                f"{name!r}; its families are {', '.join(families) or 'none'}"
            )
        of_family = {shift: at for shift, at in severities.items() if find_type(shift) in families[name]}
        _check_slopes(key, hypothesis, arm, of_family)
        return
    if kind in RELATIVE or (kind in DROPS and name == "mean"):  # over all shifts
        return
    found = f"{key}.metric: found {hypothesis.metric!r}, and the arm {arm.name!r} is not evaluated under {name!r}"
    if f"shift/{name}" in left_out:
        raise StudyError(f"{found}: it {left_out[f'shift/{name}']}")
    if name not in severities:
        raise StudyError(f"{found}; its shifts are {', '.join(severities) or 'none'}{suggest(name, list(severities))}")
    _check_slopes(key, hypothesis, arm, {name: severities[name]})
    missing = sorted(set(hypothesis.severities or ()) - set(severities[name]))
    if missing:
        raise StudyError(
            f"{key}.severities: found {', '.join(map(str, missing))}, and the arm {arm.name!r} is evaluated under "
            f"{name!r} at the severities {', '.join(map(str, severities[name]))}"
        )


def _check_slopes(key: str, hypothesis: Hypothesis, arm: Arm, severities: Mapping[str, Sequence[int]]) -> None:
    """Check that an arm is evaluated at enough severities of each shift, if the metric is a slope over them."""
    few = [shift for shift, found in severities.items() if len(found) < MIN_TREND_LEVELS]
    if few and split_metric(hypothesis.metric)[0] == "slope":
        raise StudyError(
            f"{key}.metric: found {hypothesis.metric!r}, and the arm {arm.name!r} is evaluated at "
            f"{len(severities[few[0]])} severities of {few[0]!r}; a slope has at least {MIN_TREND_LEVELS}"
        )


@dataclass(frozen=True)
class Attainable:
    """Smallest p-value that a plan allows for one hypothesis."""

    hypothesis: Hypothesis
    #: Independent units, e.g. "6 replicates", and the replicates that the plan has.
    units: str
    num_replicates: int
    num_encoders: int
    #: Before and after Holm's correction, if all units of all hypotheses of the family agree.
    p_value: float
    p_holm: float
    num_needed: int
    #: Whether replicates are one unit only because arms or steps have different numbers of encoders.
    is_linked: bool = False

    @property
    def is_reached(self) -> bool:
        """Whether some result could decide the hypothesis."""
        return self.p_holm <= self.hypothesis.alpha

    def describe(self) -> str:
        """Return one line: units and the smallest p, or the reason why nothing can be decided."""
        name, alpha = self.hypothesis.name, self.hypothesis.alpha
        if (
            counts_replicates(self.hypothesis)
            and self.num_encoders
            and self.p_value > alpha
            and self.num_replicates >= self.num_needed
        ):
            return (
                f"{name}: {_count(self.num_replicates, 'replicate')} of trials that start from "
                f"{_count(self.num_encoders, 'pretrained encoder')}: a statement for "
                f"{'this encoder' if self.num_encoders == 1 else 'these encoders'}, no verdict; "
                f"{self.num_needed} independent encoders would do"
                f"{', as many in all compared arms and in every step of a chain' if self.is_linked else ''}"
            )
        found = f"{name}: {self.units}, smallest attainable p {self.p_holm:.3g} after correction for the family"
        if self.is_reached:
            return found
        more = (
            f"{_name_needed(self.hypothesis, self.num_needed)} are the fewest"
            if self.p_value > alpha
            else "fewer hypotheses in it, or more"
        )
        return f"{found}, above α = {alpha:g}; {more}"


def find_attainable(
    hypotheses: Sequence[Hypothesis],
    plan: Plan,
    factors: Mapping[str, Sequence[str]],
    *,
    external: Mapping[str, Collection[str]] | None = None,
) -> tuple[list[Attainable], list[str]]:
    """Return the smallest attainable p-values of the hypotheses with a verdict, and a line for each without any arms.

    Args:
        hypotheses: hypotheses of the study file.
        plan: plan of the study.
        factors: factor → its levels, including those that no arm has.
        external: name of each arm → external sets that it is tested on; None: no arm has any.
    """
    from orchestrator.statistics.paired_tests import holm  # imports NumPy

    arms = {trial.name: dict(trial.levels or {}) for trial in plan.trials}
    sites = [frozenset((external or {}).get(name, ())) for name in arms]
    found, without_arms = [], []
    for hypothesis in hypotheses:
        try:
            contrast = find_contrast(hypothesis, list(arms.values()), factors)
            contrast = drop_apart(contrast, hypothesis.metric, sites)
            if isinstance(hypothesis, Correlation):
                group_cells(hypothesis, list(arms.values()), factors)
        except ContrastError as error:
            without_arms.append(f"{hypothesis.name}: the plan has nothing to compare: {error}")
            continue
        if counts_shifts(hypothesis):
            continue
        compared = {list(arms)[arm] for parts in contrast.cells.values() for part in parts for arm in part}
        needs = _find_needs(plan, compared)
        num_trainings = num_units = len(set(find_units(list(needs.values()))))
        noun = name_unit(list(needs.values()))
        units = _count(num_trainings, noun)
        if counts_sites(hypothesis):
            num_units = len(_list_sites(contrast, sites))
            units = f"{_count(num_units, 'external site')} × {units}"
        elif isinstance(hypothesis, Correlation):
            num_units = _count_correlated(hypothesis, plan, arms, factors)
            units = f"{num_units} levels of {hypothesis.across}"
        num_levels = len(contrast.levels or contrast.parts)
        p_value = compute_smallest_p(hypothesis, num_units, num_levels, num_trainings=num_trainings)
        needed = num_units_needed(hypothesis, num_levels)
        encoders = count_encoders(
            trial.encoders for trial in plan.trials if trial.name in compared and trial.replicate in needs
        )
        attainable = Attainable(hypothesis, units, len(needs), encoders, p_value, p_value, needed)
        found.append(replace(attainable, is_linked=noun == "encoder group"))
    for family in {each.hypothesis.family for each in found}:
        members = [number for number, each in enumerate(found) if each.hypothesis.family == family]
        for number, p_holm in zip(members, holm([found[number].p_value for number in members]), strict=True):
            found[number] = replace(found[number], p_holm=p_holm or 0.0)
    return found, without_arms


def _list_sites(contrast: Contrast, sites: Sequence[frozenset[str]]) -> frozenset[str]:
    """Return the external sets on which arms can be compared: those that all arms of some cell have."""
    cells = ([arm for arms in parts for arm in arms] for parts in contrast.cells.values())
    return frozenset[str]().union(*(find_shared_sites(arms, sites) or () for arms in cells))


def _find_needs(plan: Plan, compared: Collection[str]) -> dict[int | None, set[str]]:
    """Return replicate → signatures of the stages behind its trials, of the replicates that all compared arms have."""
    needs: dict[int | None, set[str]] = {}
    found: dict[int | None, set[str]] = {}
    for trial in plan.trials:
        if trial.name in compared:
            needs.setdefault(trial.replicate, set()).update(trial.encoders)
            found.setdefault(trial.replicate, set()).add(trial.name)
    return {replicate: stages for replicate, stages in needs.items() if len(found[replicate]) == len(compared)}


def _count_correlated(
    hypothesis: Correlation, plan: Plan, arms: Mapping[str, Mapping[str, str]], factors: Mapping[str, Sequence[str]]
) -> int:
    """Return the number of levels with both gains, each from trainings of its own if the hypothesis asks for that."""
    names = list(arms)
    number = 0
    for cells in group_cells(hypothesis, list(arms.values()), factors).values():
        needs = _find_needs(plan, {names[arm] for gain in cells for cell in gain for part in cell for arm in part})
        number += len(set(find_units(list(needs.values())))) >= (2 if hypothesis.trainings == "disjoint" else 1)
    return number


def _name_needed(hypothesis: Hypothesis, number: int) -> str:
    if isinstance(hypothesis, Correlation):
        more = " with two independent replicates each" * (hypothesis.trainings == "disjoint")
        return f"{number} levels of {hypothesis.across}{more}"
    needed = describe_needed(hypothesis, number)
    return needed if counts_sites(hypothesis) else f"{needed} replicates"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def check_attainable(
    hypotheses: Sequence[Hypothesis],
    plan: Plan,
    factors: Mapping[str, Sequence[str]],
    *,
    external: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Check that the replicates, and external sites, of a plan can decide its hypotheses by their stated tests.

    A hypothesis that only lacks independent encoders is let through: its effect is shown, for these encoders.

    Raises:
        StudyError: if no result of the plan could decide a hypothesis.
    """
    for each in find_attainable(hypotheses, plan, factors, external=external)[0]:
        lacks_encoders = (
            counts_replicates(each.hypothesis) and each.num_encoders and each.num_replicates >= each.num_needed
        )
        if not each.is_reached and not lacks_encoders:
            raise StudyError(
                f"hypotheses: {each.describe()}; or ask over: shifts, which is no verdict, or leave the hypothesis out"
            )


def check_external_sets(hypotheses: Sequence[Hypothesis], external: Mapping[str, Collection[str]]) -> None:
    """Check that the data have the external sets that the hypotheses name.

    Args:
        hypotheses: hypotheses of a study file.
        external: name of each arm → external sets that it is tested on.

    Raises:
        StudyError: if the data have no such set.
    """
    names = sorted(set[str]().union(*external.values()))
    for number, hypothesis in enumerate(hypotheses):
        for metric in dict.fromkeys(each.metric for each in list_measured(hypothesis)):
            kind, name, _ = split_metric(split_view(metric)[1])
            if kind == "external" and name not in names:
                known = f"the data have {', '.join(names)}" if names else "the data have none"
                raise StudyError(
                    f"hypotheses[{number}].metric: found {metric!r}, expected an external set of the data: "
                    f"{known}{suggest(name, names)}"
                )
