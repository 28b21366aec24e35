"""Configuration of the evaluation: shifts, their severities, and how matched severities are chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, JsonValue, Tag, model_validator

from trainables.data_config import DataConfig
from trainables.frozen import SET_ONLY, UNHASHED, Frozen, Seed, Text


def _check_ascending(targets: tuple[float, ...]) -> tuple[float, ...]:
    if list(targets) != sorted(set(targets)):
        raise ValueError(f"found {list(targets)}, expected shares that ascend, each once")
    return targets


#: A word is compared with the one that there is, everything else with a list: one problem, not two.
Severities = Annotated[
    Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1), Tag("listed")]
    | Annotated[Literal["matched"], Tag("word")],
    Discriminator(lambda found: "word" if isinstance(found, str) else "listed"),
]
#: Loss at severity 1, 2, …, as a share of the accuracy above chance.
Shares = Annotated[
    tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...],
    Field(min_length=1, max_length=5),
    AfterValidator(_check_ascending),
]
#: Assumption: from a loss that is just measurable on some hundred images to half of what was learned, roughly doubling,
#: so that no severity is at the floor, where all models are equal.
TARGETS = (0.05, 0.1, 0.2, 0.35, 0.5)


class MatchingTargets(Frozen):
    """Settings of ``severities: matched``: the loss of a reference arm on its validation images at each severity."""

    targets: Shares = Field(
        TARGETS, description="Severity 1, 2, …: share of the accuracy above chance that the reference loses."
    )
    reference: dict[str, str | int | float | bool | None] | None = Field(
        None, description="Levels that only the reference arm has; null: that of report.reference, else the first arm."
    )


def word_targets(targets: Sequence[float]) -> str:
    """Return in words what matched severities mean: "severity 1 = −5 %, 2 = −10 % of the accuracy above chance"."""
    levels = ", ".join(f"{level} = −{100 * target:g} %" for level, target in enumerate(targets, 1))
    return f"severity {levels} of the accuracy above chance"


#: What a set of images is to the training data: the same classes from elsewhere or under a shift, other classes that
#: look alike, or something else altogether.
Role = Literal["covariate", "near", "far"]
FeatureSet = Literal["train", "val", "test", "external", "ood", "shifts"]
#: Sets whose features are stored unless a study says otherwise.
UNSHIFTED_SETS: tuple[FeatureSet, ...] = ("train", "val", "test", "external", "ood")


def _expand_switch(found: object) -> object:
    """Return the sets that true and false stand for; everything else as it is."""
    return (UNSHIFTED_SETS if found else ()) if isinstance(found, bool) else found


class ForeignData(Frozen):
    """Another data source. Its test images are brought to the size and channels of the study's."""

    data: DataConfig = Field(description="As in data of the study, other kinds as well.")
    role: Role = Field("far", description="What it is to the training data.")
    fingerprint: str | None = Field(
        None, description="Of its images; filled in by the plan.", json_schema_extra=SET_ONLY
    )


class RepresentationConfig(Frozen):
    """Settings of the statistics of what a network's layers hold (``representation/…``)."""

    num_images: int = Field(
        1000, ge=4, description="Unshifted test images that they are computed from at most, evenly spaced."
    )
    layers: tuple[str, ...] | Literal["auto"] = Field(
        (),
        description="Modules of the network, such as layer3 or blocks.4, that are described too, and compared with the "
        "initial weights; auto: the first convolution and the last layer of every stage.",
    )


AttributionName = Literal["grad_cam", "integrated_gradients", "expected_gradients", "occlusion"]


class AttributionConfig(Frozen):
    """Where models look: attributions of test images, scored against their lesion masks (``docs/attribution.md``)."""

    methods: Annotated[tuple[AttributionName, ...], Field(min_length=1)] = Field(
        ("grad_cam", "integrated_gradients"),
        description="Methods of attribution. With one alone it is not seen whether methods agree; occlusion is an "
        "independent check and takes 225 passes an image.",
    )
    images: int = Field(
        100, ge=1, le=1000, description="Test images with lesions that are scored, the same ones for every trial."
    )
    relevance: Literal["positive", "absolute"] = Field(
        "positive", description="What counts: evidence for the true class, or for and against it alike."
    )
    cases: int = Field(
        3, ge=0, le=20, description="Of these images, how many maps are kept for overlays.", json_schema_extra=UNHASHED
    )
    masks_sha256: str | None = Field(
        None, description="Of the files with masks; filled in by the plan.", json_schema_extra=SET_ONLY
    )

    @model_validator(mode="after")
    def _methods_once(self) -> AttributionConfig:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"found the methods {', '.join(self.methods)}; expected each once")
        return self


#: First parts of the names of headline numbers, which no label map may have.
KINDS = (
    "validation", "val", "id", "calibration", "robustness", "external", "shift", "family", "slope", "drop",
    "relative_drop", "dataset", "be", "rbe", "failure", "ood", "representation", "attribution",
    "pretraining", "num_parameters", "ssl", "train", "test", "arm",
)  # fmt: skip
_VIEW = re.compile(r"[a-z][a-z0-9_]*")


def _check_view(name: str) -> str:
    if not _VIEW.fullmatch(name) or name in KINDS or name.startswith("class_"):
        raise ValueError(
            f"found {name!r}, expected a name of small letters, digits and _, which does not begin with class_ and is "
            f"none of {', '.join(KINDS)}"
        )
    return name


def _check_merges(merged: dict[str, str | None]) -> dict[str, str | None]:
    if len({name for name in merged.values() if name is not None}) < 2:
        raise ValueError(f"found {merged}, expected two classes or more to tell apart")
    return merged


#: Class → name of the class that it becomes part of; null leaves its images out.
MergedClasses = Annotated[dict[Text, Text | None], AfterValidator(_check_merges)]


class EvaluationConfig(Frozen):
    """Settings of the evaluation of every trained model."""

    modality: Literal[
        "auto", "general", "fundus", "dermoscopy", "chest_xray", "pathology",
        "blood", "ultrasound", "ct", "oct", "microscopy",
    ] = Field("auto", description="Which severity tables; auto: what the data set says, else general.")  # fmt: skip
    shifts: tuple[str | dict[str, JsonValue], ...] | Literal["all", "imagenet-c", "medmnist-c", "stain-grid"] = Field(
        "all",
        description="Names of shifts and groups, and mappings: {compose: [name/severity, …], name: …}, "
        "{name: …, op: …, strengths: […]}, {stain: {haematoxylin: […], eosin: […]}}.",
    )
    severities: Severities = Field(
        (1, 2, 3, 4, 5), description="1 is mild, 5 severe; matched: strengths of equal difficulty."
    )
    matching: MatchingTargets = Field(
        MatchingTargets(),
        description="With severities: matched.",
        json_schema_extra=UNHASHED,  # TrialConfig.matching decides the result
    )
    validation_shifts: tuple[str, ...] = Field(
        (), description="Names as in shifts: of validation images, so that validation/robustness/… may choose."
    )
    shift_seed: Seed = Field(0, description="Of the shifts' randomness; the same for all trials.")
    ece_bins: int = Field(15, gt=0, le=10_000, description="Bins of confidence of the expected calibration error.")
    mc_dropout: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Passes with dropout on, for the scores mc_dropout_…; 0: none. The network needs a dropout layer.",
        json_schema_extra=SET_ONLY,
    )
    label_maps: dict[Annotated[str, AfterValidator(_check_view)], MergedClasses] = Field(
        {},
        description="Name → merged classes, on which the trained model is evaluated as well: class → name of the class "
        "that it becomes part of, null to leave its images out. Metrics are <name>/id/auroc, …; robustsweep evaluate "
        "adds them later.",
        json_schema_extra=UNHASHED,  # as confidence_scores; the plan refuses another map of the same name
    )
    per_class: bool = Field(
        False,
        description="Sensitivity and one-vs-rest AUROC of every class, too: class_<index>/id/sensitivity, ….",
        json_schema_extra=UNHASHED,
    )
    store_features: Annotated[tuple[FeatureSet, ...], BeforeValidator(_expand_switch)] = Field(
        UNSHIFTED_SETS,
        description="Sets of which penultimate features are kept (float16); shifts: of the shifted test images, too; "
        "false: none.",
    )
    store_layers: tuple[str, ...] = Field(
        (),
        description="Modules of the network, such as layer3 or blocks.4, of whose activations the means and spectral "
        "signatures are kept for these sets, too (mahalanobis_layers, spectral_signature).",
        json_schema_extra=SET_ONLY,
    )
    representation: RepresentationConfig = Field(
        RepresentationConfig(),
        description="Statistics of what the network makes of test images.",
        json_schema_extra=SET_ONLY,
    )
    foreign: dict[str, ForeignData] = Field(
        {},
        description="Name → other data source, on whose images every prediction is wrong (out-of-distribution "
        "detection).",
        json_schema_extra=SET_ONLY,
    )
    roles: dict[str, Role] = Field(
        {},
        description="Set → what it is to the training data. Default: shifts and external sets covariate, held_out "
        "near, foreign sets far.",
        json_schema_extra=SET_ONLY,
    )
    confidence_scores: tuple[str, ...] = Field(
        ("msr", "max_logit", "predictive_entropy", "energy", "margin"),
        description="Scores by which wrong predictions and foreign images are told (failure/…, ood/…), beside those "
        "that the model itself gives; robustsweep evaluate adds others later.",
        json_schema_extra=UNHASHED,  # every score is what it is, whichever are computed beside it
    )
    attribution: AttributionConfig | None = Field(
        None,
        description="Where models look, scored against lesion masks (phantom, or csv with a column mask); null: not "
        "computed.",
        json_schema_extra=SET_ONLY,
    )

    @property
    def is_matched(self) -> bool:
        """Whether the strengths of the severities are chosen by a stage of the study (``MatchingConfig``)."""
        return self.severities == "matched"

    def find_role(self, name: str) -> Role:
        """Return the role of a set beside train, val and test."""
        if name in self.roles:
            return self.roles[name]
        if name in self.foreign:
            return self.foreign[name].role
        return "near" if name == "held_out" else "covariate"

    @property
    def levels(self) -> tuple[int, ...]:
        """The severities in ascending order."""
        if self.severities == "matched":
            return tuple(range(1, len(self.matching.targets) + 1))
        return tuple(sorted(self.severities))

    @model_validator(mode="after")
    def _matching_has_an_effect(self) -> EvaluationConfig:
        if not self.is_matched and self.matching != MatchingTargets():
            raise ValueError("found matching, which needs severities: matched; set that, or take matching away")
        return self


class MatchedEvaluation(EvaluationConfig):
    """Settings of an evaluation together with the strengths that its stage has chosen; never part of a study file."""

    #: Shift → strength per severity.
    strengths: dict[str, tuple[float | tuple[float, ...], ...]]
