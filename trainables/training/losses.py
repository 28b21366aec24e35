"""Training losses on plain tensors, and the loss of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainables.data.groups import Groups, check_groups
from trainables.regularisers import GroupDro, LabelSmoothing, RegulariserConfig, SpectralDecoupling, find_part
from trainables.training.confidence_losses import GamblersLoss, HintLoss
from trainables.training.group_dro import GroupWeights


def spectral_decoupling(
    logits: Float[Tensor, "n classes *pixels"],
    labels: Int64[Tensor, "n *pixels"],
    *,
    weight: Float[Tensor, " groups"] | float,
    gamma: Float[Tensor, " groups"] | float = 0.0,
    groups: Int64[Tensor, "n *pixels"] | None = None,
    reduction: str = "mean",
    target: str = "all",
) -> Float[Tensor, ""]:
    """Return the L2 penalty on the logits. In float32 under AMP.

    With one λ and one γ it is λ·mean_i(reduce_c (f_i − γ)²). With a tensor for either, one value per group, it is
    Σ_k λ_k·mean_{i∈k}(reduce_c (f_i − γ_k)²) over the groups k that the batch contains: a rare group counts as much as
    a frequent one, and K groups with equal values give about K times the penalty of one value.

    For segmentation (logits n × classes × h × w) the means are over pixels, too, to match a per-pixel loss that is
    averaged over them.

    Args:
        logits: unnormalised outputs f.
        labels: index of the true class; per pixel in segmentation.
        weight: λ (½λ in the papers' form), one for all or one per group.
        gamma: offset γ, one for all or one per group.
        groups: index of the group of each sample (pixel); needed if λ or γ is a tensor.
        reduction: reduction over classes, ``mean`` or ``sum``.
        target: ``all`` logits, or only that of the ``true_class``.

    Source: Pezeshki et al. 2020 (Gradient Starvation), eq. 13; Pohjonen et al. 2022 (arXiv 2103.17171).
    """
    logits = logits.float()
    offset = gamma[groups][:, None] if isinstance(gamma, Tensor) else gamma
    squares = (logits - offset).square()
    if target == "true_class":
        per_sample = squares.gather(1, labels[:, None]).squeeze(1)
    else:
        per_sample = squares.mean(1) if reduction == "mean" else squares.sum(1)
    if groups is None:
        return weight * per_sample.mean()
    num_groups = len(next(values for values in (weight, gamma) if isinstance(values, Tensor)))
    sizes = _count_members(groups, num_groups)
    return ((weight / sizes.clamp(min=1))[groups] * per_sample).sum()


def _count_members(groups: Int64[Tensor, "n *pixels"], num_groups: int) -> Int64[Tensor, " groups"]:
    """Return the size of each group in the batch, without waiting for the device as ``bincount`` does."""
    return (groups.flatten()[:, None] == torch.arange(num_groups, device=groups.device)).sum(0)


def spectral_decoupling_binary(
    logit: Float[Tensor, " n"], sign: Float[Tensor, " n"], *, weight: float
) -> Float[Tensor, ""]:
    """Return mean log(1 + e^{−yf}) + (λ/2)·mean f² for y ∈ {−1, +1}, the form used in the theory.

    Source: Pezeshki et al. 2020, eq. 13.
    """
    return F.softplus(-sign * logit).mean() + 0.5 * weight * logit.square().mean()


#: Name → size of each term of a loss; the loss is their sum.
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class ClassificationLoss:
    """Cross-entropy or its mean weighted by group DRO, plus the regulariser's penalty if it has one.

    With a learned confidence its loss takes the place of cross-entropy, and plays the same parts.
    """

    class_weights: Tensor | None = None
    smoothing: float = 0.0
    penalty: SpectralDecoupling | None = None
    weight: Tensor | float = 0.0
    gamma: Tensor | float = 0.0
    group_weights: GroupWeights | None = None
    confidence: GamblersLoss | HintLoss | None = None

    def __call__(
        self,
        outputs: Tensor,
        labels: Tensor,
        groups: Tensor,
        step: int,
        *,
        seeds: Tensor | None = None,
        adapt: bool = True,
    ) -> Terms:
        """Return each term by its name: ``{"cross_entropy": …, "spectral_decoupling": …}``, scalars on the device.

        Args:
            outputs: unnormalised outputs, n × classes; with a learned confidence one more column, its output.
            labels: index of the true class.
            groups: index of each image's group, for group DRO and for λ or γ per group.
            step: optimiser steps so far.
            seeds: seed of each image in this epoch; needed with a learned confidence.
            adapt: whether to update the weights of group DRO and of a confidence; False in a second pass over the same
                batch.
        """
        logits = outputs if self.confidence is None else outputs[:, :-1]
        losses, name, further = self._compute_losses(outputs, labels, step, seeds=seeds, adapt=adapt)
        if self.group_weights is not None:
            terms = {"group_dro": self.group_weights(losses, groups, adapt=adapt)}
        elif losses.ndim == 0:
            terms = {name: losses}
        else:
            weights = None if self.class_weights is None else self.class_weights[labels]
            terms = {name: losses.mean() if weights is None else (weights * losses).sum() / weights.sum()}
        terms |= further
        if self.penalty is not None and step >= self.penalty.delay_steps:
            is_grouped = isinstance(self.weight, Tensor) or isinstance(self.gamma, Tensor)
            index = labels if self.penalty.group_by == "class" else groups
            terms["spectral_decoupling"] = spectral_decoupling(
                logits,
                labels,
                weight=self.weight,
                gamma=self.gamma,
                groups=index if is_grouped else None,
                reduction=self.penalty.reduction,
                target=self.penalty.target,
            )
        return terms

    def _compute_losses(
        self, outputs: Tensor, labels: Tensor, step: int, *, seeds: Tensor | None, adapt: bool
    ) -> tuple[Tensor, str, Terms]:
        """Return the loss per image, or its mean where nothing else weighs it, with its name, and further terms."""
        if self.confidence is not None:
            assert seeds is not None
            losses, further = self.confidence(outputs, labels, step=step, seeds=seeds, adapt=adapt)
            return losses, self.confidence.name, further
        reduction = "mean" if self.group_weights is None else "none"
        losses = F.cross_entropy(
            outputs.float(), labels, weight=self.class_weights, label_smoothing=self.smoothing, reduction=reduction
        )
        return losses, "cross_entropy", {}

    @property
    def state(self) -> dict[str, nn.Module]:
        """Modules with the state that the loss keeps between steps, by their names in checkpoints."""
        modules = {"groups": self.group_weights, "confidence_loss": self.confidence}
        return {name: module for name, module in modules.items() if module is not None}

    def summarise(self) -> dict[str, float]:
        """Return the metrics of an epoch: weights and losses of groups, and the weight of the confidence."""
        report = {} if self.group_weights is None else self.group_weights.summarise()
        return report if self.confidence is None else report | self.confidence.summarise()


def build_loss(
    regulariser: RegulariserConfig,
    *,
    class_weights: Tensor | None,
    num_classes: int,
    groups: Groups,
    device: torch.device,
    confidence: GamblersLoss | HintLoss | None = None,
) -> ClassificationLoss:
    """Return the loss of a trial.

    Args:
        regulariser: regulariser of the trial.
        class_weights: one weight per class, or None.
        num_classes: number of classes of the data.
        groups: groups of the training images in use, by ``regularisers.choose_group_columns``.
        device: device of the training.
        confidence: loss that takes the place of cross-entropy, or None.

    Raises:
        ConfigError: if several λ or γ are not one per class (or group), or if group DRO is combined with class weights.
    """
    smoothing, penalty = find_part(regulariser, LabelSmoothing), find_part(regulariser, SpectralDecoupling)
    dro = find_part(regulariser, GroupDro)
    check_groups(
        regulariser,
        weighs_classes=class_weights is not None,
        num_classes=num_classes,
        num_groups=len(groups.names),
    )
    weight: Tensor | float = 0.0
    gamma: Tensor | float = 0.0
    if penalty is not None:
        weight, gamma = per_index(penalty.weight, device), per_index(penalty.gamma, device)
        weight = 0.5 * weight if penalty.half else weight
    group_weights = None
    if dro is not None:
        sizes = torch.from_numpy(np.bincount(groups.index, minlength=len(groups.names)))
        group_weights = GroupWeights(groups.names, sizes, step_size=dro.step_size, adjustment=dro.adjustment).to(device)
    epsilon = smoothing.epsilon if smoothing else 0.0
    confidence = None if confidence is None else confidence.to(device)
    return ClassificationLoss(class_weights, epsilon, penalty, weight, gamma, group_weights, confidence)


def per_index(value: float | Sequence[float], device: torch.device) -> Tensor | float:
    """Return one value for all, or a tensor of one value per class or group."""
    if isinstance(value, int | float):
        return float(value)
    return torch.tensor(value, dtype=torch.float32, device=device)
