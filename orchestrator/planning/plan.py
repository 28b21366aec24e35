"""Plan of a study: stages and trials, each signature once, the longest stages first. No file, clock or network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from textwrap import shorten
from typing import Any, Protocol

from orchestrator.planning.identity import compute_identity, compute_signature, hash_identity
from trainables.confidence_config import ConfidNet, NoConfidence
from trainables.config import MatchingConfig, StageConfig, TrialConfig
from trainables.evaluation_config import EvaluationConfig
from trainables.pretraining_config import ContrastivePretraining, ImageNetPretraining


class ArmLike(Protocol):
    """One combination of levels and the config it resolves to (``orchestrator.study.grid.Arm``)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def levels(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def config(self) -> TrialConfig: ...  # noqa: D102
    @property
    def candidate(self) -> int | None: ...  # noqa: D102
    @property
    def tuned(self) -> Mapping[str, str]: ...  # noqa: D102


class Facts(Protocol):
    """Facts about data and weights that planning needs, looked up beforehand (``orchestrator.planning.inputs``)."""

    def fingerprint(self, config: TrialConfig) -> str:
        """Return the fingerprint of the trial's data."""

    def missing_weights(self, config: TrialConfig) -> str | None:
        """Return the reason why the ImageNet weights are unavailable, None if they are available or not needed."""

    def resolve(self, config: TrialConfig) -> TrialConfig:
        """Return the config with the fields filled in that its files decide (digest of a weights file)."""


@dataclass(frozen=True)
class Work:
    """A stage or trial, the unit that a slot runs."""

    kind: str  # "stage" or "trial"
    signature: str
    name: str
    config: TrialConfig | StageConfig
    data_fingerprint: str
    #: Signatures of the stages that have to be complete first.
    needs: tuple[str, ...] = ()
    #: Factor → level; empty for a stage.
    levels: Mapping[str, str] | None = None
    replicate: int | None = None
    #: Number of trials that need this stage; 0 for a trial.
    num_dependants: int = 0
    #: Number of the candidate that a trial is, and field → its value; None and empty without ``tuning``.
    candidate: int | None = None
    tuned: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name for people: "contrastive · strong · r0", with " · c1" of a candidate; or the name of a stage."""
        if self.kind == "stage":
            return self.name
        levels = list((self.levels or {}).values()) or [self.name]
        candidate = [] if self.candidate is None else [f"c{self.candidate}"]
        return " · ".join([*levels, f"r{self.replicate}", *candidate])

    @property
    def encoders(self) -> tuple[str, ...]:
        """Signatures of the contrastive stages among ``needs``; the other one chooses severities."""
        return tuple(need for need in self.needs if need != self.matching)

    @property
    def matching(self) -> str | None:
        """Signature of the stage that chooses the severities, None if they are not matched."""
        return self.config.matching if isinstance(self.config, TrialConfig) else None


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

    def as_json(self) -> dict[str, Any]:
        """Return stages, trials and skipped arms as JSON values, without the configs (they are in the ledger)."""
        return {
            "stages": [_row(stage) for stage in self.stages],
            "trials": [_row(trial) for trial in self.trials],
            "skipped": [asdict(skipped) | {"levels": dict(skipped.levels)} for skipped in self.skipped],
            **({"to_come": self.num_to_come} if self.num_to_come else {}),
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

    Replicate r has the split of ``replace_split`` and contrastive encoder r modulo ``pretraining.encoders``. Replicates
    vary slowest, so that an interrupted study has complete comparisons rather than complete arms.

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
            matching = None if reference is None else _match(config, reference, facts)
            if matching is not None:
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
            own = {"replicate": replicate, "encoder": _choose_encoder(base, replicate, number)}
            config = base.model_copy(update=own)
            needs = []
            stage = _stage_of(config, fingerprint)
            if stage is not None:
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
    """Return the stages, longest first, with ``num_dependants`` set."""
    dependants = Counter(need for trial in trials for need in trial.needs)
    counted = (replace(stage, num_dependants=dependants[stage.signature]) for stage in stages)
    return tuple(sorted(counted, key=lambda stage: -_cost(stage)))


def _cost(stage: Work) -> float:
    """Return the length of a stage in epochs, infinite if all trials wait for it; ties keep the order of the file."""
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


def _choose_encoder(config: TrialConfig, replicate: int, num_replicates: int) -> int | None:
    """Return the number of the contrastive encoder that a replicate starts from, None if it starts from none."""
    pretraining = config.pretraining
    if not isinstance(pretraining, ContrastivePretraining):
        return None
    return replicate % (num_replicates if pretraining.encoders == "per_replicate" else pretraining.encoders)


def _stage_of(config: TrialConfig, fingerprint: str) -> Work | None:
    pretraining = config.pretraining
    if not isinstance(pretraining, ContrastivePretraining) or config.encoder is None:
        return None
    stage = StageConfig(
        data=config.data, model=config.model, pretraining=pretraining, seed=config.seed, encoder=config.encoder
    )
    name = f"{pretraining.method.kind} on {config.data.kind} from {pretraining.init.kind}"
    if stage.encoder:
        name += f", encoder {stage.encoder}"
    return Work("stage", compute_signature(stage, fingerprint), name, stage, fingerprint)


def _match(config: TrialConfig, reference: ArmLike, facts: Facts) -> Work:
    """Return the stage that chooses the severities of a trial: the reference's training, on the trial's data."""
    asked, trained = config.evaluation, facts.resolve(reference.config)
    evaluation = EvaluationConfig(
        modality=asked.modality,
        shifts=asked.shifts,
        severities="matched",
        validation_shifts=asked.validation_shifts,
        shift_seed=asked.shift_seed,
    )
    sections = ("model", "pretraining", "augmentation", "regulariser")
    training = trained.training
    if isinstance(training.confidence, ConfidNet):  # which changes nothing in the classifier that is matched on
        training = training.model_copy(update={"confidence": NoConfidence()})
    stage = MatchingConfig(
        **{section: getattr(trained, section) for section in sections},
        training=training,
        data=config.data,
        evaluation=evaluation,
        seed=config.seed,
        targets=asked.matching.targets,
    )
    fingerprint = facts.fingerprint(config)
    return Work(
        "stage", compute_signature(stage, fingerprint), f"severities matched on {reference.name}", stage, fingerprint
    )


def imagenet_of(config: TrialConfig) -> ImageNetPretraining | None:
    """Return the ImageNet weights that a trial or its contrastive stage starts from, None if neither does."""
    pretraining = config.pretraining
    if isinstance(pretraining, ContrastivePretraining):
        pretraining = pretraining.init
    return pretraining if isinstance(pretraining, ImageNetPretraining) else None
