"""The complete scientific description of one trial (and of one stage), as frozen pydantic models.

Every field decides a result and is therefore part of the trial's signature, except the fields marked ``UNHASHED``:
they hold locations, or the behaviour when something is missing. Defaults come from the papers in the field; where a
number is an assumption, its comment says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from trainables.augmentation_config import AugmentationConfig, NoAugmentation
from trainables.confidence_config import ConfidenceConfig, DeepGamblers, DeVries, NoConfidence
from trainables.data_config import DataConfig, DigitsData
from trainables.errors import ConfigError
from trainables.evaluation_config import EvaluationConfig, Shares
from trainables.frozen import (
    SELECTED_BY,
    SET_ONLY,
    SMALLEST,
    Frozen,
    PositiveInt,
    Rate,
    Seed,
    SelectBy,
    Weight,
    revised,
)
from trainables.model_config import ModelConfig
from trainables.pretraining_config import (
    ContrastivePretraining,
    PretrainingConfig,
    ScratchPretraining,
    StepData,
    SupervisedPretraining,
    list_trained,
)
from trainables.regularisers import (
    CutMix,
    LabelSmoothing,
    Mixup,
    NoRegulariser,
    RegulariserConfig,
    SpectralDecoupling,
    find_part,
)
from trainables.task_config import ClassificationTask, TaskConfig

#: Part of every signature. Increase it when a field changes its meaning but neither its name nor its type.
SCHEMA_VERSION: Literal[4] = 4


class FineTuning(Frozen):
    """Settings of the layers below the head: which of them are trained, and how fast."""

    layer_decay: Annotated[float, Field(ge=0.01, le=1.0)] = Field(
        1.0, description="Learning rate of a layer as a share of that of the layer above it; 1: all layers alike."
    )
    frozen_stem: bool = Field(False, description="What lies before the first block keeps its initial weights.")
    last_stages: PositiveInt | None = Field(
        None, description="Only so many stages (as in model.stages) and the head are trained; none: all."
    )
    batch_norm: Literal["train", "frozen"] = Field(
        "train",
        description="frozen: all layers normalise by their initial statistics; frozen layers always do.",
    )

    @model_validator(mode="after")
    def _freezes_the_stem_once(self) -> FineTuning:
        if self.frozen_stem and self.last_stages is not None:
            raise ValueError(
                f"found frozen_stem with last_stages: {self.last_stages}, which freezes the stem already; expected one "
                "of them: take frozen_stem away"
            )
        return self


class TrainingConfig(Frozen):
    """Settings of the optimisation, and which epoch's weights are evaluated."""

    epochs: PositiveInt = Field(20, description="Passes over the training images.")
    batch_size: PositiveInt = Field(64, description="Images per step.")
    optimiser: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum.")
    learning_rate: Rate = Field(1e-3, description="Of the head, and of all layers while the factor below is 1.")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="SGD only.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Of the rate; cosine: down to 0, per step.")
    warmup_epochs: Weight = Field(0.0, description="Fewer than epochs.")
    backbone_learning_rate_factor: Weight = Field(1.0, description="Below the head; 0 is a linear probe.")
    fine_tune: FineTuning = Field(
        FineTuning(), description="Frozen layers and rates per layer.", json_schema_extra=SET_ONLY
    )
    gradient_clip_norm: float | None = Field(None, ge=SMALLEST, description="Of the gradient, 2-norm; none: off.")
    class_weights: Literal["none", "balanced"] = Field("none", description="In the loss; balanced: n/(K·n_k).")
    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0,
        description="Of every class in the training split, by group; drawn per replicate.",
        json_schema_extra=revised(2),
    )
    select: Literal["best", "last"] = Field("best", description="Epoch that is evaluated; best: by select_by.")
    select_by: SelectBy = Field(
        "balanced_accuracy",
        description="On validation (a segmentation: dice); ties: the lower loss, then the later epoch. patience, too.",
    )
    patience: PositiveInt | None = Field(None, description="Epochs without improvement before stopping; none: never.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast on GPUs (execution.acceleration: probe: the faster), else float32."
    )
    confidence: ConfidenceConfig = Field(
        NoConfidence(),
        description="Learned with the classes or after them; none: nothing.",
        json_schema_extra=SET_ONLY,
    )

    @property
    def is_linear_probe(self) -> bool:
        """Whether the head alone is trained."""
        return self.backbone_learning_rate_factor == 0.0

    @model_validator(mode="after")
    def _fine_tuning_has_an_effect(self) -> TrainingConfig:
        if self.is_linear_probe and self.fine_tune != FineTuning():
            raise ValueError(
                "found fine_tune with backbone_learning_rate_factor: 0, which trains the head alone; expected a factor "
                "above 0, or no fine_tune"
            )
        return self

    @property
    def total_epochs(self) -> int:
        """Epochs of the classifier and of what is trained after it."""
        return self.epochs + self.confidence.extra_epochs


def _fill_in_source(step: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """Return a step, and those before it, with the study's data trained on one data set where the step names that."""
    filled = dict(step)
    if isinstance(step.get("init"), Mapping):
        filled["init"] = _fill_in_source(step["init"], data)
    if isinstance(step.get("data"), str):
        own = data.model_dump() if isinstance(data, Frozen) else dict(data or {})
        known = own.get("datasets")
        if known is None or step["data"] not in known:
            there = f"data.datasets has {', '.join(known)}" if known else "data is not of the kind datasets"
            raise ValueError(
                f"pretraining.data: found {step['data']!r}, and {there}; expected one of them, or a mapping"
            )
        filled["data"] = own | {"train_on": [step["data"]]}
    return filled


class TrialConfig(Frozen):
    """One arm × one replicate: everything that decides a trial's result."""

    schema_version: Literal[4] = SCHEMA_VERSION
    data: DataConfig = DigitsData()
    task: TaskConfig = Field(ClassificationTask(), description="What the network predicts.", json_schema_extra=SET_ONLY)
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = ScratchPretraining()
    augmentation: AugmentationConfig = NoAugmentation()
    regulariser: RegulariserConfig = NoRegulariser()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Seed = Field(0, description="Study seed.")
    replicate: int = Field(0, ge=0, lt=2**31)
    encoder: int | None = Field(
        None, ge=0, lt=2**31, description="Which encoder of the last trained step; filled in by the plan."
    )
    earlier_encoders: tuple[int, ...] = Field(
        (),
        description="Which encoders of the trained steps before it; filled in by the plan.",
        json_schema_extra=SET_ONLY,
    )
    matching: str | None = Field(
        None, description="Stage that has chosen matched severities; filled in by the plan.", json_schema_extra=SET_ONLY
    )

    @model_validator(mode="before")
    @classmethod
    def _name_sources(cls, values: Any) -> Any:
        """Replace the name of one of several data sets, where a supervised step has it as its data, by these."""
        if not isinstance(values, Mapping) or not isinstance(values.get("pretraining"), Mapping):
            return values
        return {**values, "pretraining": _fill_in_source(values["pretraining"], values.get("data"))}

    @model_validator(mode="after")
    def _select_by_a_metric_of_the_task(self) -> TrialConfig:
        training, allowed = self.training, SELECTED_BY[self.task.kind]
        if training.select_by not in allowed and "select_by" not in training.model_fields_set:
            self.__dict__["training"] = training.model_copy(update={"select_by": allowed[0]})
        elif training.select_by not in allowed:
            raise ValueError(
                f"training.select_by: found {training.select_by} with task: {self.task.kind}; expected one of "
                f"{', '.join(allowed)}"
            )
        return self

    @model_validator(mode="after")
    def _can_select(self) -> TrialConfig:
        if "/" in self.training.select_by and not self.evaluation.validation_shifts:
            raise ValueError(
                f"training.select_by: found {self.training.select_by}, and no shift in evaluation.validation_shifts"
            )
        return self

    @model_validator(mode="after")
    def _confidence_knows_the_true_class(self) -> TrialConfig:
        confidence, epochs = self.training.confidence, self.training.epochs
        if not isinstance(confidence, DeepGamblers | DeVries):
            return self
        for part in (Mixup, CutMix, LabelSmoothing):
            if find_part(self.regulariser, part) is not None:
                raise ValueError(
                    f"training.confidence: found {confidence.kind} with the regulariser "
                    f"{part.model_fields['kind'].default}, whose targets are not the one true class that this loss "
                    "needs; expected confidnet, which is trained after the classifier, another regulariser, or these "
                    "arms in exclude"
                )
        if isinstance(confidence, DeepGamblers) and confidence.pretrain_epochs >= epochs:
            raise ValueError(
                f"training.confidence.pretrain_epochs: found {confidence.pretrain_epochs} of {epochs} training.epochs, "
                "which never train the abstention; expected fewer"
            )
        return self

    @model_validator(mode="after")
    def _one_value_per_class_or_group(self) -> TrialConfig:
        penalty = find_part(self.regulariser, SpectralDecoupling)
        if penalty is not None and isinstance(penalty.weight, tuple) and isinstance(penalty.gamma, tuple):
            num_weights, num_gammas = len(penalty.weight), len(penalty.gamma)
            if num_weights != num_gammas:
                raise ValueError(
                    f"regulariser.weight has {num_weights} values and regulariser.gamma {num_gammas}; "
                    "give one value, or one per class or group to both"
                )
        return self


def read_trial_config(stored: Mapping[str, Any]) -> TrialConfig:
    """Return a trial's config, validated from the JSON that was stored in the trial's folder.

    Raises:
        ConfigError: if it has another schema version, in which fields mean something else, or a value that was allowed
            when it was stored and is not any more.
    """
    version = stored.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"schema_version: read the config of a stored trial, found {version}, expected {SCHEMA_VERSION}: another "
            "version of RobustSweep ran the trial; run the study again, or read it with that version"
        )
    try:
        return TrialConfig.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{'.'.join(map(str, first['loc']))}: read the config of a stored trial, found {first['input']!r}: "
            f"{first['msg']}; read it with the version of RobustSweep that ran it"
        ) from error


class StageConfig(Frozen):
    """Complete description of one stage: the chain up to a trained step, which all that starts from it share."""

    schema_version: Literal[4] = SCHEMA_VERSION
    kind: Literal["supervised", "contrastive"] = "contrastive"
    #: The study's, if a step of the chain is trained on it; else the first source of the last step.
    data: StepData
    task: TaskConfig = Field(
        ClassificationTask(), description="What a supervised step trains.", json_schema_extra=SET_ONLY
    )
    model: ModelConfig
    pretraining: Annotated[SupervisedPretraining | ContrastivePretraining, Field(discriminator="kind")]
    seed: Seed = 0
    encoder: int = Field(0, ge=0, lt=2**31, description="Which of the independent trainings of the last step.")
    earlier_encoders: tuple[int, ...] = Field(
        (), description="Which encoders of the trained steps before it.", json_schema_extra=SET_ONLY
    )

    @property
    def stream(self) -> int | str | None:
        """Part of all seeds of the stage: its encoder and its place in the chain.

        None for encoder 0 of the first trained step, so that it is the one that studies had before.
        """
        number = len(list_trained(self.pretraining)) - 1
        return f"{self.encoder} of step {number}" if number else self.encoder or None


class MatchingConfig(TrialConfig):
    """Complete description of the stage that chooses matched severities: the training of the reference, and targets.

    Of its evaluation only shifts, modality and seed count, and its results are those of validation images alone.
    """

    kind: Literal["matching"] = "matching"
    targets: Shares


class Execution(Frozen):
    """Settings for running a trial on this machine. Never part of a signature: no result depends on them."""

    device: str = Field("auto", description="auto: cuda if there is one, else cpu.")
    num_threads: PositiveInt = Field(1, description="CPU threads of the trial: its share.")
    cache_dir: Path = Field(Path("~/.cache/robustsweep"), description="Decoded images, one copy per node.")
    shift_cache_gib: Weight = Field(
        20.0, description="Disk on this node for shifted copies of test sets; 0: every trial shifts anew."
    )
    evaluation_batch_size: PositiveInt = Field(256, description="Images per batch in evaluation.")
    acceleration: str | None = Field(
        None, description="Folder or URI of the study's probes of memory format, precision, compiling; null: no probe."
    )
    early_stopping: bool = Field(
        False, description="Before every epoch a trial looks for stop.json in its folder, and ends where there is one."
    )
