"""Losses that learn classes and a confidence at once: DeepGamblers, DeVries and Taylor. Computed in logarithms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from trainables.confidence_config import ConfidenceConfig, DeepGamblers, DeVries
from trainables.seeding import uniform

#: Factors of λ after a batch whose mean −log c is below the budget, or not. Source: the authors' code (train.py).
_LESS, _MORE = 1.0 / 1.01, 1.0 / 0.99


def deep_gamblers(
    outputs: Float[Tensor, "n outputs"], labels: Int64[Tensor, " n"], *, reward: float
) -> Float[Tensor, " n"]:
    """Return −log(p_y + r/o) per image, where p and r are the softmax over the classes and the abstention.

    Args:
        outputs: logits of the classes, then that of the abstention.
        labels: index of the true class.
        reward: o, what a right bet pays.

    Source: Liu et al. 2019 (arXiv 1907.00208), equation 6.
    """
    shares = F.log_softmax(outputs.float(), dim=1)
    right = shares.gather(1, labels[:, None]).squeeze(1)
    return -torch.logaddexp(right, shares[:, -1] - math.log(reward))


def hinted_cross_entropy(
    logits: Float[Tensor, "n classes"],
    confidence: Float[Tensor, " n"],
    labels: Int64[Tensor, " n"],
    is_hinted: Bool[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Return −log p′_y per image, with p′ = c·p + (1−c)·y for hinted images and p for the others.

    Args:
        logits: logits of the classes.
        confidence: log-odds of c.
        labels: index of the true class, whose one-hot vector is y.
        is_hinted: whether the image gets the hint.

    Source: DeVries and Taylor 2018 (arXiv 1802.04865), equations 2 and 3.
    """
    right = F.log_softmax(logits.float(), dim=1).gather(1, labels[:, None]).squeeze(1)
    confidence = confidence.float()
    hinted = torch.logaddexp(F.logsigmoid(confidence) + right, F.logsigmoid(-confidence))
    return -torch.where(is_hinted, hinted, right)


class GamblersLoss(nn.Module):
    """The loss of DeepGamblers per image; plain cross-entropy of the classes in its first steps.

    Args:
        config: reward.
        pretrain_steps: steps with plain cross-entropy.
    """

    name = "deep_gamblers"

    def __init__(self, config: DeepGamblers, *, pretrain_steps: int) -> None:
        super().__init__()
        self.reward, self.pretrain_steps = config.reward, pretrain_steps

    def forward(
        self, outputs: Float[Tensor, "n outputs"], labels: Int64[Tensor, " n"], *, step: int, seeds: Tensor, adapt: bool
    ) -> tuple[Float[Tensor, " n"], dict[str, Tensor]]:
        """Return the loss per image, and no further terms.

        Args:
            outputs: logits of the classes, then that of the abstention.
            labels: index of the true class.
            step: optimiser steps so far.
            seeds: not used.
            adapt: not used.
        """
        if step < self.pretrain_steps:
            return F.cross_entropy(outputs[:, :-1].float(), labels, reduction="none"), {}
        return deep_gamblers(outputs, labels, reward=self.reward), {}

    def summarise(self) -> dict[str, float]:
        """Return no metrics."""
        return {}


class HintLoss(nn.Module):
    """The loss of DeVries and Taylor; λ is part of the training state, stored in checkpoints.

    Args:
        config: λ, budget, probability of a hint.
    """

    weight: Tensor
    name = "cross_entropy"

    def __init__(self, config: DeVries) -> None:
        super().__init__()
        self.budget, self.hint_probability = config.budget, config.hint_probability
        self.register_buffer("weight", torch.tensor(config.weight))

    def forward(
        self, outputs: Float[Tensor, "n outputs"], labels: Int64[Tensor, " n"], *, step: int, seeds: Tensor, adapt: bool
    ) -> tuple[Float[Tensor, " n"], dict[str, Tensor]]:
        """Return the hinted cross-entropy per image, and λ·mean(−log c) as ``{"confidence_penalty": …}``.

        Args:
            outputs: logits of the classes, then the log-odds of c.
            labels: index of the true class.
            step: not used.
            seeds: seed of each image in this epoch, which decides whether it gets the hint.
            adapt: whether λ follows the budget after this batch; False in a second pass over the same batch.
        """
        logits, confidence = outputs[:, :-1], outputs[:, -1]
        is_hinted = uniform(seeds, stream="hints") < self.hint_probability
        losses = hinted_cross_entropy(logits, confidence, labels, is_hinted)
        asked = -F.logsigmoid(confidence.float()).mean()
        penalty = self.weight.clone() * asked  # before λ changes in place
        if adapt:
            with torch.no_grad():
                self.weight.mul_(torch.where(asked < self.budget, _LESS, _MORE))
        return losses, {"confidence_penalty": penalty}

    def summarise(self) -> dict[str, float]:
        """Return the present λ."""
        return {"confidence_weight": float(self.weight)}


def build_confidence_loss(config: ConfidenceConfig, *, steps_per_epoch: int) -> GamblersLoss | HintLoss | None:
    """Return the loss that takes the place of cross-entropy; None where the classifier is trained as without it.

    Args:
        config: ``training.confidence``.
        steps_per_epoch: optimiser steps per epoch.
    """
    if isinstance(config, DeepGamblers):
        return GamblersLoss(config, pretrain_steps=config.pretrain_epochs * steps_per_epoch)
    return HintLoss(config) if isinstance(config, DeVries) else None
