"""Checks for hypotheses that the data or the plan cannot support: shifts that are not evaluated, too few replicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.planning.plan import Plan
from orchestrator.study.contrasts import (
    ContrastError,
    compute_smallest_p,
    find_contrast,
    list_compared,
    num_units_needed,
)
from orchestrator.study.fields import suggest
from orchestrator.study.grid import Arm
from orchestrator.study.hypotheses import (
    Hypothesis,
    split_metric,
)
from trainables.errors import StudyError

if TYPE_CHECKING:
    from trainables.config import DataConfig
    from trainables.data.dataset import Dataset


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
        if split_metric(hypothesis.metric)[0] == "shift":
            for index in list_compared(hypothesis, [arm.levels for arm in arms]):
                _check_evaluated(f"hypotheses[{number}] ({hypothesis.name})", hypothesis, arms[index], load)


def _check_evaluated(key: str, hypothesis: Hypothesis, arm: Arm, load: Callable[[DataConfig], Dataset]) -> None:
    from trainables.evaluation.robustness import choose_shifts  # imports torch

    name = split_metric(hypothesis.metric)[1]
    shifts, left_out = choose_shifts(load(arm.config.data), arm.config.evaluation)
    severities: dict[str, list[int]] = {}
    for shift in shifts[1:]:  # the first is the identity
        severities.setdefault(shift.name, []).append(shift.severity)
    found = f"{key}.metric: found {hypothesis.metric!r}, and the arm {arm.name!r} is not evaluated under {name!r}"
    if f"shift/{name}" in left_out:
        raise StudyError(f"{found}: it {left_out[f'shift/{name}']}")
    if name not in severities:
        raise StudyError(f"{found}; its shifts are {', '.join(severities) or 'none'}{suggest(name, list(severities))}")
    missing = sorted(set(hypothesis.severities or ()) - set(severities[name]))
    if missing:
        raise StudyError(
            f"{key}.severities: found {', '.join(map(str, missing))}, and the arm {arm.name!r} is evaluated under "
            f"{name!r} at the severities {', '.join(map(str, severities[name]))}"
        )


def find_unsupportable(
    hypotheses: Sequence[Hypothesis], plan: Plan, factors: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yield one line per hypothesis that no result of this plan could support, with the reason.

    The p-value of a hypothesis over shifts is not checked, because the number of shifts is not known here.
    """
    arms = {trial.name: dict(trial.levels or {}) for trial in plan.trials}
    num_replicates = len({trial.replicate for trial in plan.trials})
    best: dict[str, list[tuple[Hypothesis, str, float]]] = {}
    for hypothesis in hypotheses:
        try:
            contrast = find_contrast(hypothesis, list(arms.values()), factors)
        except ContrastError as error:
            yield f"{hypothesis.name}: the plan has nothing to compare: {error}"
            continue
        num_levels, num_units, noun = len(contrast.parts), num_replicates, "replicates"
        needed = num_units_needed(hypothesis, num_levels)
        if hypothesis.over == "cells" and num_replicates < needed:
            num_units, noun = len(contrast.cells) * num_replicates, "cells"
        p = 0.0 if hypothesis.over == "shifts" else compute_smallest_p(hypothesis, num_units, num_levels)
        found = f"{hypothesis.name}: with {num_units} {noun} p is at least {p:.3g}"
        if p > hypothesis.alpha:
            yield f"{found}, whatever the results; {needed} are needed"
        best.setdefault(hypothesis.family, []).append((hypothesis, found, min(p, 1.0)))
    yield from _find_hopeless_after_correction(best)


def _find_hopeless_after_correction(best: Mapping[str, Sequence[tuple[Hypothesis, str, float]]]) -> Iterator[str]:
    from orchestrator.statistics.paired_tests import holm  # imports NumPy

    for family, members in best.items():
        for (hypothesis, found, p), corrected in zip(members, holm([p for _, _, p in members]), strict=True):
            if corrected is not None and p <= hypothesis.alpha < corrected:
                after = f"{corrected:.3g} after correction for the family {family!r}"
                yield f"{found}, {after}; more replicates, or fewer hypotheses in it"


def check_external_sets(hypotheses: Sequence[Hypothesis], names: Sequence[str]) -> None:
    """Check that the data have the external sets that the hypotheses name.

    Args:
        hypotheses: hypotheses of a study file.
        names: names of the external sets of the data.

    Raises:
        StudyError: if the data have no such set.
    """
    for number, hypothesis in enumerate(hypotheses):
        kind, name, _ = split_metric(hypothesis.metric)
        if kind == "external" and name not in names:
            known = f"the data have {', '.join(names)}" if names else "the data have none"
            raise StudyError(
                f"hypotheses[{number}].metric: found {hypothesis.metric!r}, expected an external set of the data: "
                f"{known}{suggest(name, names)}"
            )
