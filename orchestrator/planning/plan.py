"""Plan of a study: stages and trials, each signature once, the longest stages first. No file, clock or network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from textwrap import shorten
from typing import Any, Protocol

from orchestrator.planning.identity import compute_identity, hash_identity
from orchestrator.planning.works import (
    REMARKS,
    ArmLike,
    Work,
    choose_encoders,
    find_remarks,
    make_matching,
    make_stages,
)
from trainables.config import MatchingConfig, StageConfig, TrialConfig


class Facts(Protocol):
    """Facts about data and weights that planning needs, looked up beforehand (``orchestrator.planning.inputs``)."""

    def fingerprint(self, config: TrialConfig) -> str:
        """Return the fingerprint of the trial's data."""

    def missing_weights(self, config: TrialConfig) -> str | None:
        """Return the reason why published weights are unavailable, None if they are available or not needed."""

    def resolve(self, config: TrialConfig) -> TrialConfig:
        """Return the config with the fields filled in that its files decide (digests of weights, images of steps)."""


@dataclass(frozen=True)
class Skipped:
    """An arm left out because its weights are unavailable and the study allows to skip it."""

    name: str
    levels: Mapping[str, str]
    num_trials: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """Stages and trials that a study should have. Stages come before trials, the longest first."""

    stages: tuple[Work, ...]
    trials: tuple[Work, ...]
    skipped: tuple[Skipped, ...] = ()
    #: Number of trials that a search has yet to propose.
    num_to_come: int = 0

    @property
    def works(self) -> tuple[Work, ...]:
        """Stages, then trials, in the order of dispatch."""
        return self.stages + self.trials

    def find(self, signature: str) -> Work | None:
        """Return the stage or trial whose signature starts with ``signature``, None if none or several do."""
        found = [work for work in self.works if work.signature.startswith(signature)]
        return found[0] if len(found) == 1 else None

    @property
    def remarks(self) -> dict[str, list[str]]:
        """Arm → what every statement about it has to say of its pretraining; only arms with something."""
        configs = {(trial.name, trial.candidate): trial.config for trial in self.trials}
        found: dict[str, dict[str, None]] = {}
        for (name, _), config in configs.items():
            for remark in find_remarks(config.pretraining):
                found.setdefault(name, {})[remark] = None
        return {name: list(remarks) for name, remarks in found.items()}

    def as_json(self) -> dict[str, Any]:
        """Return stages, trials, skipped arms and remarks as JSON values, without the configs (of the ledger)."""
        return {
            "stages": [_row(stage) for stage in self.stages],
            "trials": [_row(trial) for trial in self.trials],
            "skipped": [asdict(skipped) | {"levels": dict(skipped.levels)} for skipped in self.skipped],
            **({"to_come": self.num_to_come} if self.num_to_come else {}),
            **({REMARKS: remarks} if (remarks := self.remarks) else {}),
        }


def _row(work: Work) -> dict[str, Any]:
    row: dict[str, Any] = {"signature": work.signature, "name": work.name, "needs": list(work.needs)}
    if work.kind == "trial":
        row |= {"arm": dict(work.levels or {}), "replicate": work.replicate}
        return row | describe_candidate(work)
    return row | {"kind": work.config.kind, "num_dependants": work.num_dependants}  # type: ignore[union-attr]


def describe_candidate(work: Work) -> dict[str, Any]:
    """Return number and settings of a candidate as JSON values, nothing for other trials and stages."""
    return {} if work.candidate is None else {"candidate": work.candidate, "tuned": dict(work.tuned)}


def describe_skipped(skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per reason for the skipped arms of ``Plan.as_json``: number of trials, reason and arms."""
    return [
        f"{sum(arm['num_trials'] for arm in arms)} trials: {reason}. Arms: {'; '.join(arm['name'] for arm in arms)}"
        for reason, arms in _group_by_reason(skipped).items()
    ]


def _group_by_reason(skipped: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for arm in skipped:
        by_reason.setdefault(arm["reason"], []).append(arm)
    return by_reason


#: Longest reason in a brief line; the report has it whole.
_MAX_REASON = 76


def describe_skipped_briefly(skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one short line per reason for the skipped arms of ``Plan.as_json``: their number and the start of it."""
    return [
        f"{len(arms)} arm{'s' * (len(arms) > 1)} of {sum(arm['num_trials'] for arm in arms)} trials: "
        f"{shorten(reason, _MAX_REASON, placeholder=' …')}; details in the report"
        for reason, arms in _group_by_reason(skipped).items()
    ]


def make_plan(
    arms: Sequence[ArmLike],
    *,
    replicates: int | Callable[[Mapping[str, str]], int],
    facts: Facts,
    references: Mapping[str, ArmLike] | None = None,
) -> Plan:
    """Return the plan of a study: every arm × replicate, and each stage that these trials need once.

    With ``tuning`` an arm comes once per candidate, one after the other.

    Replicate r has the split of ``replace_split`` and the encoders of ``choose_encoders``. Replicates vary slowest, so
    that an interrupted study has complete comparisons rather than complete arms.

    Args:
        arms: arms of the study.
        replicates: number of replicates of all arms, or of the arm with some levels.
        facts: facts about data and weights.
        references: name of each arm whose severities are matched → the arm on which they are.
    """
    numbers = [replicates if isinstance(replicates, int) else replicates(arm.levels) for arm in arms]
    stages: dict[str, Work] = {}
    trials: dict[str, Work] = {}
    skipped: dict[str, Skipped] = {}
    runnable = []
    for arm, number in zip(arms, numbers, strict=True):
        reference = (references or {}).get(arm.name)
        reason = facts.missing_weights(arm.config)
        if reason is None and reference is not None:
            reason = facts.missing_weights(reference.config)
        if reason is None:
            config = facts.resolve(arm.config)
            if reference is not None:
                trained = facts.resolve(reference.config)
                matching = make_matching(config, reference, trained, facts.fingerprint(config))
                stages.setdefault(matching.signature, matching)
                config = config.model_copy(update={"matching": matching.signature})
            splits = [replace_split(config, replicate) for replicate in range(_num_splits(config, number))]
            known = [(each, compute_identity(each), facts.fingerprint(each)) for each in splits]
            runnable.append((arm, arm.name, known, number))
        else:
            before = skipped[arm.name].num_trials if arm.name in skipped else 0
            skipped[arm.name] = Skipped(arm.name, arm.levels, before + number, reason)
    for replicate in range(max(numbers, default=0)):
        for arm, name, known, number in runnable:
            if replicate >= number:
                continue
            base, identity, fingerprint = known[replicate % len(known)]
            own = {"replicate": replicate, **choose_encoders(base, replicate, number)}
            config = base.model_copy(update=own)
            needs = []
            for stage in make_stages(config, fingerprint):
                stages.setdefault(stage.signature, stage)
                needs.append(stage.signature)
            if base.matching is not None:
                needs.append(base.matching)
            # Equals compute_signature(config, …), but computes the identity once per arm and split, not per trial.
            signature = hash_identity(identity | own, fingerprint)
            work = Work(
                "trial", signature, name, config, fingerprint, tuple(needs), arm.levels, replicate,
                candidate=arm.candidate, tuned=arm.tuned,
            )  # fmt: skip
            trials.setdefault(signature, work)
    return Plan(_order_stages(stages.values(), trials.values()), tuple(trials.values()), tuple(skipped.values()))


def merge_plans(plans: Iterable[Plan], *, skipped: Sequence[Skipped] = (), num_to_come: int = 0) -> Plan:
    """Return one plan with the stages and trials of all ``plans``, each signature once, replicates varying slowest.

    Args:
        plans: plans to merge; their own skipped arms are ignored.
        skipped: skipped arms of the result.
        num_to_come: number of trials that a search has yet to propose.
    """
    stages: dict[str, Work] = {}
    trials: dict[str, Work] = {}
    for plan in plans:
        for stage in plan.stages:
            stages.setdefault(stage.signature, stage)
        for trial in plan.trials:
            trials.setdefault(trial.signature, trial)
    ordered = sorted(trials.values(), key=lambda trial: trial.replicate or 0)
    return Plan(_order_stages(stages.values(), ordered), tuple(ordered), tuple(skipped), num_to_come)


def _order_stages(stages: Iterable[Work], trials: Iterable[Work]) -> tuple[Work, ...]:
    """Return the stages with ``num_dependants`` set, those first that the longest way to a trial begins with.

    So a stage comes after the one that it starts from, and ties keep the order of the file.
    """
    dependants = Counter(need for trial in trials for need in trial.needs)
    counted = [replace(stage, num_dependants=dependants[stage.signature]) for stage in stages]
    left: dict[str, float] = {}
    for stage in sorted(counted, key=lambda stage: -len(stage.needs)):  # the last steps of chains first
        left[stage.signature] = _cost(stage) + left.get(stage.signature, 0.0)
        for need in stage.waits_for:
            left[need] = max(left.get(need, 0.0), left[stage.signature])
    return tuple(sorted(counted, key=lambda stage: -left[stage.signature]))


def _cost(stage: Work) -> float:
    """Return the length of a stage in epochs, infinite if all trials wait for it."""
    if isinstance(stage.config, MatchingConfig):
        return math.inf
    assert isinstance(stage.config, StageConfig)
    return float(stage.config.pretraining.epochs)


def replace_split(config: TrialConfig, replicate: int) -> TrialConfig:
    """Return the config of a replicate's trial with the seed of its split; all else is replicate 0's."""
    if config.data.split == "fixed" or replicate == 0:
        return config
    from trainables.data.splits import derive_split_seed  # imports NumPy

    seed = derive_split_seed(config.data.split_seed, replicate)
    return config.model_copy(update={"data": config.data.model_copy(update={"split_seed": seed})})


def _num_splits(config: TrialConfig, num_replicates: int) -> int:
    return 1 if config.data.split == "fixed" else num_replicates
