"""Configuration of the initial weights: a chain of steps, each of which starts from the one before.

In a study file a chain may be a list (``[imagenet, {kind: contrastive}]``). Its only representation here is nested: a
step that is trained names the one before as ``init``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trainables.contrastive_config import Method, MoCoViews, SimClr, Views
from trainables.data_config import DataConfig, UnlabelledFolderData
from trainables.frozen import SET_ONLY, UNHASHED, Fraction, Frozen, PositiveInt, Rate, Weight


class ScratchPretraining(Frozen):
    """Random initial weights, the same for all arms of a replicate."""

    kind: Literal["scratch"] = "scratch"


class ImageNetPretraining(Frozen):
    """Supervised ImageNet weights: a file, an installed package, the hub cache, or a download, in this order."""

    kind: Literal["imagenet"] = "imagenet"
    weights: str = Field(
        "default", description="torchvision weights name (IMAGENET1K_V1) or timm tag; default: its, or a package's."
    )
    file: Path | None = Field(None, description="A state dict (.safetensors, .pth).", json_schema_extra=UNHASHED)
    file_sha256: str | None = Field(None, description="Digest of the file or package; filled in by the plan.")
    on_unavailable: Literal["error", "skip"] = Field(
        "error", description="No weights reachable: stop, or leave the arm out loudly.", json_schema_extra=UNHASHED
    )


class WeightsPretraining(Frozen):
    """Other published weights of the same network, or a file: RadImageNet, DINOv3, a colleague's."""

    kind: Literal["weights"] = "weights"
    name: str | None = Field(
        None, description="NETWORK.TAG of timm (timm/resnet18.fb_ssl_yfcc100m_ft_in1k) or torchvision; none: file."
    )
    file: Path | None = Field(None, description="A state dict (.safetensors, .pth).", json_schema_extra=UNHASHED)
    file_sha256: str | None = Field(None, description="Digest of the file; filled in by the plan.")
    licence: str | None = Field(None, description="Terms of use, for the report.", json_schema_extra=UNHASHED)
    pretrained_on: str | None = Field(
        None,
        description="Images that the weights were trained on; none: whether test images are among them is unknown, "
        "and said beside every verdict.",
        json_schema_extra=UNHASHED,
    )
    on_unavailable: Literal["error", "skip"] = Field(
        "error", description="No weights reachable: stop, or leave the arm out loudly.", json_schema_extra=UNHASHED
    )

    @model_validator(mode="after")
    def _one_source(self) -> WeightsPretraining:
        if (self.name is None) == (self.file is None):
            found = "neither name nor file" if self.name is None else "both name and file"
            raise ValueError(f"found {found} for weights, expected one of them")
        return self


#: Images of a step: a data set, of which the training split is used, or a folder without labels.
StepData = Annotated[DataConfig | UnlabelledFolderData, Field(discriminator="kind")]


def _list_sources(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | Frozen) else value


class TrainedStep(Frozen):
    """Base class of the steps that are trained, each once for all trials that start from it."""

    init: PretrainingConfig = Field(ScratchPretraining(), description="Step that this one starts from.")
    encoders: PositiveInt | Literal["per_replicate"] = Field(
        1,
        description="Independent trainings of this step; replicate r, or encoder r of the next step, starts from "
        "encoder r modulo their number.",
        json_schema_extra=UNHASHED,  # TrialConfig.encoder decides the result
    )
    transductive: bool = Field(
        False,
        description="The step may see test or external images of the study: allowed, and said in every statement.",
        json_schema_extra=SET_ONLY,
    )
    fingerprints: tuple[str, ...] = Field(
        (), description="Of the images in data; filled in by the plan.", json_schema_extra=SET_ONLY
    )

    @property
    def sources(self) -> tuple[DataConfig | UnlabelledFolderData, ...]:
        """Images that the step has of its own; () if it is trained on the study's training split."""
        raise NotImplementedError

    def with_sources(self, sources: Sequence[DataConfig | UnlabelledFolderData]) -> TrainedStep:
        """Return the step on other images."""
        raise NotImplementedError


class SupervisedPretraining(TrainedStep):
    """Training with the labels of another data source, with AdamW and a cosine schedule; the head is thrown away."""

    kind: Literal["supervised"] = "supervised"
    data: DataConfig = Field(description="Source of images and labels, brought to the study's side and channels.")
    epochs: PositiveInt = Field(20, description="Passes over the source's training images; the last one counts.")
    batch_size: PositiveInt = Field(64, description="Images per step.")
    learning_rate: Rate = Field(1e-3, description="Of all layers.")
    weight_decay: Weight = Field(1e-2, description="Decoupled, on all weights but biases and normalisation.")
    warmup_epochs: Weight = Field(0.0, description="Fewer than epochs.")
    crop_scale_min: Fraction | None = Field(None, description="Smallest area share of RandomResizedCrop; none: off.")
    horizontal_flip: bool = Field(False, description="Mirrors left and right with probability ½.")

    @property
    def sources(self) -> tuple[DataConfig | UnlabelledFolderData, ...]:
        """The one source."""
        return (self.data,)

    def with_sources(self, sources: Sequence[DataConfig | UnlabelledFolderData]) -> SupervisedPretraining:
        """Return the step on another source."""
        return self.model_copy(update={"data": sources[0]})

    @model_validator(mode="after")
    def _reaches_its_rate(self) -> SupervisedPretraining:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: found {self.warmup_epochs:g} of {self.epochs} epochs, which never train at "
                "learning_rate; expected fewer"
            )
        return self


class ContrastivePretraining(TrainedStep):
    """Pretraining on two views of every image, without labels, from any step."""

    kind: Literal["contrastive"] = "contrastive"
    method: Method = Field(SimClr(), description="What is asked of the two views, and how weights are updated.")
    data: Annotated[tuple[StepData, ...], BeforeValidator(_list_sources)] = Field(
        (),
        description="Sources of images, of which the training splits are used together; none: the study's own.",
        json_schema_extra=SET_ONLY,
    )
    epochs: PositiveInt = Field(200, description="Passes over the training images, without labels. 200: MoCo v2.")
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] = Field(
        256, description="Images; simclr tells each apart from the others of its batch."
    )
    micro_batch_size: Annotated[int, Field(ge=2, lt=2**31)] | None = Field(
        None,
        description="Images whose activations are held at once; the gradient is still that of the batch, but batch "
        "statistics are those of the part. none: all.",
    )
    views: Views = Field(MoCoViews(), description="What two views of an image differ in, after crop and flip.")
    crop_scale_min: Fraction = Field(0.2, description="Smallest area share of RandomResizedCrop. .2: MoCo v2.")
    horizontal_flip: bool = Field(True, description="Off where left and right mean something, as in digits.")

    @property
    def sources(self) -> tuple[DataConfig | UnlabelledFolderData, ...]:
        """Images that the step has of its own; () if it is trained on the study's training split."""
        return self.data

    def with_sources(self, sources: Sequence[DataConfig | UnlabelledFolderData]) -> ContrastivePretraining:
        """Return the step on other images."""
        return self.model_copy(update={"data": tuple(sources)})

    @model_validator(mode="after")
    def _reaches_its_rate(self) -> ContrastivePretraining:
        if self.method.warmup_epochs >= self.epochs:
            raise ValueError(
                f"method.warmup_epochs: found {self.method.warmup_epochs:g} of {self.epochs} epochs, which never train "
                "at method.learning_rate; expected fewer"
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size: found {self.micro_batch_size}, more than the {self.batch_size} of batch_size; "
                "expected fewer, or none"
            )
        return self

    @model_validator(mode="after")
    def _scales_its_steps(self) -> ContrastivePretraining:
        if self.method.optimiser == "lars" and self.method.weight_decay == 0.0:
            raise ValueError(
                "method.weight_decay: found 0 with optimiser: lars, which scales the steps of decaying weights alone, "
                "so that it would be plain sgd; expected more, such as 1e-6, or optimiser: sgd"
            )
        return self


#: Kinds that need no training, and so can only begin a chain.
_UNTRAINED = ("scratch", "imagenet", "weights")


def _read_step(step: Any, number: int) -> dict[str, Any]:
    """Return step ``number`` (from 1) of a list as a mapping."""
    if not isinstance(step, str | Mapping):
        raise ValueError(f"found {step!r} as step {number}, expected a kind or a mapping with the key kind")
    fields = {"kind": step} if isinstance(step, str) else dict(step)
    if number > 1 and any(str(name).split(".")[0] == "init" for name in fields):
        raise ValueError(f"found init in step {number}, which starts from step {number - 1}; leave it out")
    if number > 1 and fields.get("kind") in _UNTRAINED:
        raise ValueError(
            f"found {fields['kind']} as step {number}, which would replace what the steps before it have learned; "
            "expected a step that is trained: supervised or contrastive"
        )
    return fields


def nest_steps(value: Any) -> Any:
    """Return a chain that is written as a list in its nested form; a bare kind as a mapping, all else as it is.

    Raises:
        ValueError: the list is empty, or a step after the first has an ``init`` or is not trained.
    """
    if isinstance(value, str):
        return {"kind": value}
    if not isinstance(value, list | tuple):
        return value
    if not value:
        raise ValueError("found no steps, expected at least one")
    nested: Any = None
    for number, step in enumerate(value, 1):
        fields = _read_step(step, number)
        nested = fields if nested is None else fields | {"init": nested}
    return nested


PretrainingConfig = Annotated[
    ScratchPretraining | ImageNetPretraining | WeightsPretraining | SupervisedPretraining | ContrastivePretraining,
    Field(discriminator="kind"),
    BeforeValidator(nest_steps),
]
for _step in (TrainedStep, SupervisedPretraining, ContrastivePretraining):
    _step.model_rebuild()  # a step contains steps


def list_steps(pretraining: PretrainingConfig) -> list[PretrainingConfig]:
    """Return the steps of a chain, the first one first."""
    steps = [pretraining]
    while isinstance(steps[0], TrainedStep):
        steps.insert(0, steps[0].init)
    return steps


def list_trained(pretraining: PretrainingConfig) -> list[SupervisedPretraining | ContrastivePretraining]:
    """Return the steps of a chain that are trained, the first one first."""
    return [step for step in list_steps(pretraining) if isinstance(step, TrainedStep)]


def uses_study_data(pretraining: PretrainingConfig) -> bool:
    """Return whether a step of a chain is trained on the study's own images, which have no data of their own."""
    return any(not step.sources for step in list_trained(pretraining))
