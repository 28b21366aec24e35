"""Configuration of the factor ``regulariser``: one kind, or several of them at once (``combined``).

Where a number is not from the paper that a docstring names, the comment or description says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from trainables.frozen import LARGEST, Fraction, Frozen, Scale, Weight

#: Excludes 1, which would leave no activation or branch.
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Offset = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class NoRegulariser(Frozen):
    """No regulariser: plain cross-entropy."""

    kind: Literal["none"] = "none"


class WeightDecay(Frozen):
    """Decoupled (AdamW) or L2 (SGD) weight decay on all weights but biases and normalisation."""

    kind: Literal["weight_decay"] = "weight_decay"
    weight: Weight = Field(1e-2, description="Decay per step, times the learning rate.")


class SpectralDecoupling(Frozen):
    """L2 penalty on the logits (Pezeshki et al. 2020, Pohjonen et al. 2022); weight decay is 0 here.

    With one λ or γ per class or group it is the sum over groups of λ times the mean over the group's images in a batch.
    """

    kind: Literal["spectral_decoupling"] = "spectral_decoupling"
    weight: Weight | tuple[Weight, ...] = Field(0.01, description="λ, or one λ per class or group.")
    half: bool = Field(True, description="½λ instead of λ.")
    reduction: Literal["mean", "sum"] = Field("mean", description="Over classes.")
    target: Literal["all", "true_class"] = Field("all", description="Logits penalised: all, or the label's only.")
    gamma: Offset | tuple[Offset, ...] = Field(0.0, description="Offset, or one per class or group.")
    group_by: str = Field(
        "class", description="What several λ or γ are indexed by: class, site, or a column of the data, values sorted."
    )
    delay_steps: int = Field(0, ge=0, lt=2**31, description="Optimiser steps before the penalty starts.")


class LabelSmoothing(Frozen):
    """Cross-entropy against (1−ε)·one-hot + ε/K (Szegedy et al. 2016)."""

    kind: Literal["label_smoothing"] = "label_smoothing"
    epsilon: Fraction = Field(0.1, description="ε: share of the target that is spread over all K classes.")


class Dropout(Frozen):
    """Dropout before the classification head (Srivastava et al. 2014)."""

    kind: Literal["dropout"] = "dropout"
    probability: Probability = Field(0.5, description="Probability that a feature is dropped.")


class StochasticDepth(Frozen):
    """Residual branches dropped at random per sample (Huang et al. 2016), in networks whose library supports it."""

    kind: Literal["stochastic_depth"] = "stochastic_depth"
    probability: Probability = Field(0.1, description="Of the last branch; grows linearly from 0 with depth.")


class Mixup(Frozen):
    """Convex combinations of pairs of images of a batch, share from Beta(α, α) (Zhang et al. 2018)."""

    kind: Literal["mixup"] = "mixup"
    alpha: float = Field(0.2, gt=0, description="α of Beta(α, α); the smaller, the closer to one of both images.")


class CutMix(Frozen):
    """A rectangle of each image replaced by its partner's, area share 1 − Beta(α, α) (Yun et al. 2019)."""

    kind: Literal["cutmix"] = "cutmix"
    alpha: float = Field(1.0, gt=0, description="α of Beta(α, α); 1: every area is as likely.")


class Sam(Frozen):
    """Sharpness-aware minimisation (Foret et al. 2021): two passes per step, hence twice the time."""

    kind: Literal["sam"] = "sam"
    rho: Scale = Field(0.05, description="Radius of the neighbourhood in which the loss is to be low.")
    adaptive: bool = Field(False, description="Radius relative to each weight (Kwon et al. 2021, who use ρ = .5 to 2).")


class GroupDro(Frozen):
    """Group distributionally robust optimisation (Sagawa et al. 2020): the loss of the worst groups counts most."""

    kind: Literal["group_dro"] = "group_dro"
    group_by: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        ("site",), description="class, site or columns of the data (a phantom's nuisance); groups are combinations."
    )
    step_size: Scale = Field(0.01, description="η of the groups' weights.")
    adjustment: Weight = Field(0.0, description="C: C/√n is added to the loss of a group of n images.")


class StainNormalisation(Frozen):
    """Stain normalisation of every image before the network, in training and in evaluation."""

    kind: Literal["stain_normalisation"] = "stain_normalisation"
    method: Literal["macenko", "reinhard"] = Field(
        "macenko", description="Macenko et al. 2009 (stain vectors), or Reinhard et al. 2001 (moments in Lαβ)."
    )
    target: Literal["reference", "training"] = Field(
        "reference", description="The method's published reference, or the median over the training images."
    )


_PART = "Fields of the kind of this name, {} for its defaults; none: not part of the combination."


class Combined(Frozen):
    """Several regularisers at once, each by its name: ``{weight_decay: {weight: 0.05}, spectral_decoupling: {}}``."""

    kind: Literal["combined"] = "combined"
    weight_decay: WeightDecay | None = Field(None, description=_PART)
    spectral_decoupling: SpectralDecoupling | None = Field(None, description=_PART)
    label_smoothing: LabelSmoothing | None = Field(None, description=_PART)
    dropout: Dropout | None = Field(None, description=_PART)
    stochastic_depth: StochasticDepth | None = Field(None, description=_PART)
    mixup: Mixup | None = Field(None, description=_PART)
    cutmix: CutMix | None = Field(None, description=_PART)
    sam: Sam | None = Field(None, description=_PART)
    group_dro: GroupDro | None = Field(None, description=_PART)
    stain_normalisation: StainNormalisation | None = Field(None, description=_PART)

    @model_validator(mode="after")
    def _go_together(self) -> Combined:
        present = [name for name in type(self).model_fields if name != "kind" and getattr(self, name) is not None]
        if not present:
            raise ValueError("regulariser is combined and names none; name at least one, or use kind: none")
        mixing = [name for name in ("mixup", "cutmix") if name in present]
        if len(mixing) == 2:
            raise ValueError("regulariser combines mixup and cutmix, which both mix the images of a batch; keep one")
        if mixing and self.group_dro is not None:
            raise ValueError(f"regulariser combines {mixing[0]} and group_dro: a mixed image has no group; keep one")
        if self.group_dro is not None and self.spectral_decoupling is not None:
            _check_one_grouping(self.group_dro, self.spectral_decoupling)
        return self


def _check_one_grouping(group_dro: GroupDro, penalty: SpectralDecoupling) -> None:
    several = isinstance(penalty.weight, tuple) or isinstance(penalty.gamma, tuple)
    if several and penalty.group_by != "class" and group_dro.group_by != (penalty.group_by,):
        raise ValueError(
            f"regulariser.spectral_decoupling has one λ or γ per {penalty.group_by}, and regulariser.group_dro has "
            f"groups of {' × '.join(group_dro.group_by)}; expected the same groups: set one group_by to the other's"
        )


RegulariserConfig = Annotated[
    NoRegulariser
    | WeightDecay
    | SpectralDecoupling
    | LabelSmoothing
    | Dropout
    | StochasticDepth
    | Mixup
    | CutMix
    | Sam
    | GroupDro
    | StainNormalisation
    | Combined,
    Field(discriminator="kind"),
]

Part = TypeVar("Part", bound=Frozen)


def find_part(regulariser: RegulariserConfig, kind: type[Part]) -> Part | None:
    """Return the regulariser of class ``kind``, alone or within a combination; None if there is none.

    >>> find_part(Combined(mixup=Mixup(alpha=0.4)), Mixup).alpha
    0.4
    """
    return next((part for part in list_regularisers(regulariser) if isinstance(part, kind)), None)


def list_regularisers(regulariser: RegulariserConfig) -> list[Any]:
    """Return the regulariser, or those within a combination; empty for none."""
    if isinstance(regulariser, Combined):
        parts = (getattr(regulariser, name) for name in Combined.model_fields if name != "kind")
        return [part for part in parts if part is not None]
    return [] if isinstance(regulariser, NoRegulariser) else [regulariser]


def choose_group_columns(regulariser: RegulariserConfig) -> tuple[str, ...]:
    """Return the columns by which the regulariser's loss groups images (see ``data.groups.find_groups``)."""
    dro, penalty = find_part(regulariser, GroupDro), find_part(regulariser, SpectralDecoupling)
    if dro is not None:
        return dro.group_by
    return ("site",) if penalty is None or penalty.group_by == "class" else (penalty.group_by,)
