"""Losses of a segmentation, per pixel that is annotated; those of segmentation-models-pytorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from trainables.data.dataset import UNCOUNTED
from trainables.data.groups import check_groups
from trainables.evaluation.segmentation.annotated import restrict
from trainables.regularisers import LabelSmoothing, RegulariserConfig, SpectralDecoupling, find_part
from trainables.task_config import DiceCrossEntropy, Focal, SegmentationTask, Tversky
from trainables.training.losses import Terms, per_index, spectral_decoupling


class SegmentationLoss:
    """Loss of the pixels that are annotated, plus spectral decoupling per pixel if the regulariser has it.

    Args:
        task: which loss.
        regulariser: spectral decoupling and label smoothing (of cross-entropy) are taken from it.
        num_classes: number of classes, the background included.
        device: device of the training.
        annotated: source × class: whether a data set annotates the class. Where it does not, its images' pixels are
            told apart among the other classes only. None: all are annotated.

    Raises:
        ConfigError: several λ or γ are not one per class.
    """

    def __init__(
        self,
        task: SegmentationTask,
        regulariser: RegulariserConfig,
        *,
        num_classes: int,
        device: torch.device,
        annotated: Bool[Tensor, "sources classes"] | None = None,
    ) -> None:
        smoothing = find_part(regulariser, LabelSmoothing)
        self._smoothing = 0.0 if smoothing is None else smoothing.epsilon
        self._overlap = _build_overlap(task, num_classes)
        self._has_cross_entropy = isinstance(task.loss, DiceCrossEntropy)
        self._annotated = None if annotated is None else annotated.to(device)
        check_groups(regulariser, weighs_classes=False, num_classes=num_classes, num_groups=0)
        self._penalty = find_part(regulariser, SpectralDecoupling)
        self._weight: Tensor | float = 0.0
        self._gamma: Tensor | float = 0.0
        if self._penalty is not None:
            self._weight, self._gamma = per_index(self._penalty.weight, device), per_index(self._penalty.gamma, device)
            self._weight = 0.5 * self._weight if self._penalty.half else self._weight

    def __call__(
        self,
        logits: Float[Tensor, "n classes *space"],
        targets: UInt8[Tensor, "n *space"],
        sources: Int64[Tensor, " n"],
        step: int,
    ) -> Terms:
        """Return each term by its name, scalars on the device; the loss is their sum.

        Args:
            logits: unnormalised outputs.
            targets: index of the true class, or ``UNCOUNTED``.
            sources: index of each image's data set.
            step: optimiser steps so far.
        """
        wanted = targets.long()
        restricted = restrict(logits.float(), sources, self._annotated)
        terms: Terms = {name: loss(restricted, wanted) for name, loss in self._overlap.items()}
        if "focal" in terms and not bool((wanted != UNCOUNTED).any()):  # the library's is the mean of nothing
            terms["focal"] = logits.sum() * 0.0
        if self._has_cross_entropy:
            losses = F.cross_entropy(restricted, wanted, ignore_index=UNCOUNTED, reduction="sum")
            if self._smoothing > 0.0:
                losses = (1.0 - self._smoothing) * losses + self._smoothing * self._spread(restricted, wanted, sources)
            terms["cross_entropy"] = losses / (wanted != UNCOUNTED).sum().clamp(min=1)
        if self._penalty is not None and step >= self._penalty.delay_steps:
            terms["spectral_decoupling"] = self._penalise(logits, wanted, sources)
        return terms

    def _spread(
        self,
        restricted: Float[Tensor, "n classes *space"],
        targets: Int64[Tensor, "n *space"],
        sources: Int64[Tensor, " n"],
    ) -> Tensor:
        """Return the sum over counted pixels of the mean of −log p over the classes that the image's data annotate."""
        losses = -restricted.log_softmax(1) * (targets != UNCOUNTED)[:, None]
        if self._annotated is None:
            return losses.mean(1).sum()
        among = self._annotated[sources]
        shares = (among / among.sum(1, keepdim=True))[(..., *[None] * (losses.ndim - 2))]
        return (losses * shares).sum()

    def _penalise(
        self,
        logits: Float[Tensor, "n classes *space"],
        targets: Int64[Tensor, "n *space"],
        sources: Int64[Tensor, " n"],
    ) -> Tensor:
        """Return spectral decoupling; an output for a class that the image's data do not annotate counts as γ."""
        assert self._penalty is not None
        is_counted = targets != UNCOUNTED
        if not bool(is_counted.any()):
            return logits.sum() * 0.0
        counted, labels = logits.float().movedim(1, -1)[is_counted], targets[is_counted]
        if self._annotated is not None:
            own = sources[(..., *[None] * (targets.ndim - 1))].expand_as(targets)
            among = self._annotated[own[is_counted]]
            offset = self._gamma[labels][:, None] if isinstance(self._gamma, Tensor) else self._gamma
            counted = torch.where(among, counted, offset)
        is_grouped = isinstance(self._weight, Tensor) or isinstance(self._gamma, Tensor)
        return spectral_decoupling(
            counted,
            labels,
            weight=self._weight,
            gamma=self._gamma,
            groups=labels if is_grouped else None,
            reduction=self._penalty.reduction,
            target=self._penalty.target,
        )


def _build_overlap(task: SegmentationTask, num_classes: int) -> dict[str, nn.Module]:
    from segmentation_models_pytorch import losses

    foreground = list(range(1, num_classes))
    if isinstance(task.loss, DiceCrossEntropy):
        return {"dice": losses.DiceLoss("multiclass", classes=foreground, ignore_index=UNCOUNTED)}
    if isinstance(task.loss, Focal):
        return {"focal": losses.FocalLoss("multiclass", gamma=task.loss.gamma, ignore_index=UNCOUNTED)}
    assert isinstance(task.loss, Tversky)
    alpha, beta = task.loss.alpha, task.loss.beta
    return {
        "tversky": losses.TverskyLoss("multiclass", classes=foreground, ignore_index=UNCOUNTED, alpha=alpha, beta=beta)
    }
