"""Training losses on plain tensors, and the one that a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from trainables.config import LabelSmoothing, RegulariserConfig, SpectralDecoupling
from trainables.errors import ConfigError


def spectral_decoupling(
    logits: Float[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
    *,
    weight: Float[Tensor, " n"] | float,
    gamma: Float[Tensor, " n"] | float = 0.0,
    half: bool = True,
    reduction: str = "mean",
    target: str = "all",
) -> Float[Tensor, ""]:
    """Return the L2 penalty on the logits, λ·mean_b(reduce_c (f − γ)²), with ½ if ``half``. In float32 under AMP.

    Args:
        logits: unnormalised outputs f.
        labels: index of the true class.
        weight: λ, one for all or one per sample.
        gamma: offset γ, one for all or one per sample.
        half: multiply by ½ (the papers' form).
        reduction: over classes, ``mean`` or ``sum``.
        target: ``all`` logits, or only the ``true_class``'s.

    Source: Pezeshki et al. 2020 (Gradient Starvation), eq. 13; Pohjonen et al. 2022 (arXiv 2103.17171).
    """
    logits = logits.float()
    offset = gamma[:, None] if isinstance(gamma, Tensor) else gamma
    squares = (logits - offset).square()
    if target == "true_class":
        per_sample = squares.gather(1, labels[:, None]).squeeze(1)
    else:
        per_sample = squares.mean(1) if reduction == "mean" else squares.sum(1)
    return (0.5 if half else 1.0) * (weight * per_sample).mean()


def spectral_decoupling_binary(
    logit: Float[Tensor, " n"], sign: Float[Tensor, " n"], *, weight: float
) -> Float[Tensor, ""]:
    """Return mean log(1 + e^{−yf}) + (λ/2)·mean f² for y ∈ {−1, +1}: the form the theory is written in.

    Source: Pezeshki et al. 2020, eq. 13.
    """
    return F.softplus(-sign * logit).mean() + 0.5 * weight * logit.square().mean()


def mixup(
    images: Float[Tensor, "n c h w"], *, alpha: float, generator: np.random.Generator
) -> tuple[Float[Tensor, "n c h w"], Int64[Tensor, " n"], float]:
    """Return mixed images, the index of each image's partner, and the share of the first image.

    The share is Beta(α, α), drawn once per batch (Zhang et al. 2018, algorithm 1).
    """
    share = float(generator.beta(alpha, alpha))
    partner = torch.from_numpy(generator.permutation(len(images))).to(images.device)
    return share * images + (1.0 - share) * images[partner], partner, share


#: (logits, labels, sites, optimiser step) → size of each term, to be summed.
Loss = Callable[[Tensor, Tensor, Tensor, int], dict[str, Tensor]]


@dataclass(frozen=True)
class ClassificationLoss:
    """Cross-entropy, and the penalty of the regulariser if it has one. Calling it returns each term by its name."""

    regulariser: RegulariserConfig
    class_weights: Tensor | None
    weight: Tensor | float = 0.0
    gamma: Tensor | float = 0.0

    def __call__(self, logits: Tensor, labels: Tensor, sites: Tensor, step: int) -> dict[str, Tensor]:
        """Return ``{"cross_entropy": …, "spectral_decoupling": …}``, scalars on the logits' device."""
        smoothing = self.regulariser.epsilon if isinstance(self.regulariser, LabelSmoothing) else 0.0
        terms = {
            "cross_entropy": F.cross_entropy(
                logits.float(), labels, weight=self.class_weights, label_smoothing=smoothing
            )
        }
        regulariser = self.regulariser
        if isinstance(regulariser, SpectralDecoupling) and step >= regulariser.delay_steps:
            index = labels if regulariser.group_by == "class" else sites
            terms["spectral_decoupling"] = spectral_decoupling(
                logits,
                labels,
                weight=self.weight[index] if isinstance(self.weight, Tensor) else self.weight,
                gamma=self.gamma[index] if isinstance(self.gamma, Tensor) else self.gamma,
                half=regulariser.half,
                reduction=regulariser.reduction,
                target=regulariser.target,
            )
        return terms


def build_loss(
    regulariser: RegulariserConfig,
    *,
    class_weights: Tensor | None,
    num_classes: int,
    num_sites: int,
    device: torch.device,
) -> Loss:
    """Return the loss of a trial.

    Raises:
        ConfigError: spectral decoupling with several λ or γ, and not one per class (or site).
    """
    weight: Tensor | float = 0.0
    gamma: Tensor | float = 0.0
    if isinstance(regulariser, SpectralDecoupling):
        count = num_classes if regulariser.group_by == "class" else num_sites
        weight = _per_index(regulariser.weight, count, "weight", regulariser.group_by, device)
        gamma = _per_index(regulariser.gamma, count, "gamma", regulariser.group_by, device)
    return ClassificationLoss(regulariser, class_weights, weight, gamma)


def _per_index(
    value: float | Sequence[float], count: int, key: str, group_by: str, device: torch.device
) -> Tensor | float:
    if isinstance(value, int | float):
        return float(value)
    if len(value) != count:
        raise ConfigError(
            f"regulariser.{key}: found {len(value)} values, expected one or {count} (one per {group_by} of the data)"
        )
    return torch.tensor(value, dtype=torch.float32, device=device)
