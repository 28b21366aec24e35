"""Stages and trials, and the stages that a trial is built on: the chain of its initialisation, matched severities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.planning.identity import compute_signature
from trainables.confidence_config import ConfidNet, NoConfidence
from trainables.config import MatchingConfig, StageConfig, TrialConfig
from trainables.data_config import DataConfig, UnlabelledFolderData
from trainables.evaluation_config import EvaluationConfig
from trainables.frozen import canonical_json
from trainables.model_config import SMALL_STEM_BELOW_PX, ModelConfig
from trainables.pretraining_config import (
    ContrastivePretraining,
    ImageNetPretraining,
    PretrainingConfig,
    SupervisedPretraining,
    TrainedStep,
    WeightsPretraining,
    list_steps,
    list_trained,
    uses_study_data,
)
from trainables.segmentation_data_config import DatasetsData
from trainables.task_config import SegmentationTask


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


@dataclass(frozen=True)
class Work:
    """A stage or trial, the unit that a slot runs."""

    kind: str  # "stage" or "trial"
    signature: str
    name: str
    config: TrialConfig | StageConfig
    data_fingerprint: str
    #: Signatures of all stages that it is built on: the one it starts from, then those of the earlier steps of the
    #: chain, each before the one that it starts from in turn, then the one that chooses severities.
    needs: tuple[str, ...] = ()
    #: Factor → level; empty for a stage.
    levels: Mapping[str, str] | None = None
    replicate: int | None = None
    #: Number of trials that are built on this stage; 0 for a trial.
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
        """Signatures of the trained steps among ``needs``, the last one first; the other one chooses severities."""
        return tuple(need for need in self.needs if need != self.matching)

    @property
    def start(self) -> str | None:
        """Signature of the stage whose weights it starts from, None if it starts from none."""
        return next(iter(self.encoders), None)

    @property
    def matching(self) -> str | None:
        """Signature of the stage that chooses the severities, None if they are not matched."""
        return self.config.matching if isinstance(self.config, TrialConfig) else None

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Signatures of the stages that have to be complete before it begins; these have waited for the others."""
        return tuple(need for need in (self.start, self.matching) if need is not None)


def choose_encoders(config: TrialConfig, replicate: int, num_replicates: int) -> dict[str, Any]:
    """Return ``encoder`` of a replicate's config, None without trained steps, and ``earlier_encoders`` if it has any.

    Replicate r starts from encoder r modulo the number of the last trained step, encoder k of a step from encoder k
    modulo the number of the step before it.
    """
    chosen: list[int] = []
    number = replicate
    for step in reversed(list_trained(config.pretraining)):
        number %= num_replicates if step.encoders == "per_replicate" else step.encoders
        chosen.insert(0, number)
    *earlier, encoder = chosen or (None,)
    return {"encoder": encoder} | ({"earlier_encoders": tuple(earlier)} if earlier else {})


def make_stages(config: TrialConfig, fingerprint: str) -> list[Work]:
    """Return the stages of a trial's chain with its encoders filled in, the one that it starts from first.

    Args:
        config: config of the trial.
        fingerprint: fingerprint of the trial's data.
    """
    if config.encoder is None:
        return []
    encoders = (*config.earlier_encoders, config.encoder)
    stages: list[Work] = []
    for number, step in enumerate(list_trained(config.pretraining)):
        uses_study = uses_study_data(step)
        stage = StageConfig(
            kind=step.kind,
            data=config.data if uses_study else step.sources[0],
            model=_choose_network(step, config),
            # Without labels a network learns nothing of a task: the stage is the same for all.
            **({"task": config.task} if isinstance(step, SupervisedPretraining) else {}),
            pretraining=step,
            seed=config.seed,
            encoder=encoders[number],
            earlier_encoders=encoders[:number],
        )
        content = fingerprint if uses_study else canonical_json(step.fingerprints)
        needs = tuple(earlier.signature for earlier in reversed(stages))
        stages.append(
            Work("stage", compute_signature(stage, content), name_stage(config, stage), stage, content, needs)
        )
    return stages[::-1]


def _choose_network(step: SupervisedPretraining | ContrastivePretraining, config: TrialConfig) -> ModelConfig:
    """Return the network that a step trains: the trial's, with the stem that it has there.

    A segmentation's encoder has the original stem at any size, and a contrastive step trains a classification network,
    whose stem would be small.
    """
    is_segmentation = isinstance(config.task, SegmentationTask)
    if is_segmentation and isinstance(step, ContrastivePretraining) and config.data.image_size < SMALL_STEM_BELOW_PX:
        return config.model.model_copy(update={"stem": "original"})
    return config.model


def name_step(step: PretrainingConfig, config: TrialConfig) -> str:
    """Return a step in words: "imagenet", "simclr on digits", "supervised on phantom"."""
    if isinstance(step, TrainedStep):
        sources = " + ".join(map(_name_source, step.sources)) or config.data.kind
        method = step.method.kind if isinstance(step, ContrastivePretraining) else step.kind
        return f"{method} on {sources}"
    if isinstance(step, WeightsPretraining):
        return f"weights {step.name or (step.file.name if step.file else '')}"
    return step.kind


def _name_source(source: DataConfig | UnlabelledFolderData) -> str:
    return " + ".join(source.trained) if isinstance(source, DatasetsData) else source.kind


def name_stage(config: TrialConfig, stage: StageConfig) -> str:
    """Return the name of a stage: "simclr on digits from imagenet, encoder 1"."""
    steps = list_steps(stage.pretraining)[::-1]
    name = " from ".join(name_step(step, config) for step in steps)
    return f"{name}, encoder {stage.encoder}" if stage.encoder else name


def make_matching(config: TrialConfig, reference: ArmLike, trained: TrialConfig, fingerprint: str) -> Work:
    """Return the stage that chooses the severities of a trial: the reference's training, on the trial's data.

    Args:
        config: config of the trial.
        reference: arm on which severities are matched.
        trained: config of the reference, with what its files decide.
        fingerprint: fingerprint of the trial's data.
    """
    asked = config.evaluation
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
    return Work(
        "stage", compute_signature(stage, fingerprint), f"severities matched on {reference.name}", stage, fingerprint
    )


#: Key of ``plan.json``: arm → what every statement about it has to say of its pretraining; only arms with something.
REMARKS = "remarks"


def find_remarks(pretraining: PretrainingConfig) -> list[str]:
    """Return what every statement about an arm has to say of its chain, as phrases."""
    remarks = []
    transductive = [step for step in list_trained(pretraining) if step.transductive]
    if transductive:
        labels = " and their labels" * any(isinstance(step, SupervisedPretraining) for step in transductive)
        remarks.append(f"transductive: a pretraining may have seen these images{labels}")
    first = list_steps(pretraining)[0]
    if isinstance(first, WeightsPretraining) and first.pretrained_on is None:
        name = first.name or (first.file.name if first.file else "")
        remarks.append(f"whether the weights {name} were trained on these images is unknown")
    return remarks


def tell_remarks(plan: Mapping[str, Any], arms: Iterable[str]) -> tuple[str, ...]:
    """Return what a statement about some arms has to say of their pretraining, each phrase once.

    Args:
        plan: content of ``plan.json``.
        arms: names of the arms.
    """
    known = plan.get(REMARKS, {})
    return tuple(dict.fromkeys(remark for arm in arms for remark in known.get(arm, ())))


def weights_of(config: TrialConfig) -> ImageNetPretraining | WeightsPretraining | None:
    """Return the published weights that a trial's chain begins with, None if it begins with random ones."""
    first = list_steps(config.pretraining)[0]
    return first if isinstance(first, ImageNetPretraining | WeightsPretraining) else None
