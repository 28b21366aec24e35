"""Configuration of ``training.confidence``: a score that is learned to tell right predictions from wrong ones.

Where a number is not from the paper that a docstring names, the comment or description says so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainables.frozen import LARGEST, Frozen, PositiveInt, Rate, Scale


class NoConfidence(Frozen):
    """No learned confidence: the classifier alone, whose outputs every other score is computed from."""

    kind: Literal["none"] = "none"

    @property
    def extra_epochs(self) -> int:
        """Epochs after those of the classifier."""
        return 0


class DeepGamblers(Frozen):
    """An abstention logit (Liu et al. 2019): loss −log(p_y + r/reward), confidence 1 − r with the abstention's r."""

    kind: Literal["deep_gamblers"] = "deep_gamblers"
    reward: Annotated[float, Field(gt=1.0, le=LARGEST)] = Field(
        10.0,
        description="o, what a right bet pays. Between 1 and the number of classes an abstention can pay; above, the "
        "loss tends to cross-entropy. 10 to 20: Bungert et al. 2023.",
    )
    pretrain_epochs: int = Field(
        0, ge=0, lt=2**31, description="The first of training.epochs, with plain cross-entropy; fewer than all."
    )

    @property
    def extra_epochs(self) -> int:
        """Epochs after those of the classifier."""
        return 0


class DeVries(Frozen):
    """A confidence output c that asks for hints (DeVries and Taylor 2018): p′ = c·p + (1−c)·y, and λ·(−log c)."""

    kind: Literal["devries"] = "devries"
    weight: Annotated[float, Field(gt=0.0, le=LARGEST)] = Field(
        0.1, description="λ at first; it follows the budget from step to step."
    )
    budget: Scale = Field(0.3, description="β: λ falls by 1 % where the mean of −log c is below it, else rises.")
    hint_probability: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.5, description="That an image gets the hint; the others are plain cross-entropy."
    )

    @property
    def extra_epochs(self) -> int:
        """Epochs after those of the classifier."""
        return 0


class ConfidNet(Frozen):
    """A network that predicts the true class's probability of the finished, frozen classifier (Corbière et al. 2019).

    First layers on the classifier's penultimate features, then these layers together with a copy of the encoder.
    """

    kind: Literal["confidnet"] = "confidnet"
    # The papers train hundreds of epochs at 1e-4, then tens at 1e-7 to 1e-6. The numbers of epochs and the larger rate
    # of fine-tuning are assumptions for short trainings; at 1e-3 the layers can saturate (docs/training_confidence.md).
    epochs: PositiveInt = Field(20, description="Of the layers, after training.epochs.")
    learning_rate: Rate = Field(1e-4, description="Of the layers; Adam, constant.")
    fine_tuning_epochs: int = Field(
        5, ge=0, lt=2**31, description="Of the copied encoder with the layers, after that; 0: there is no copy."
    )
    fine_tuning_learning_rate: Rate = Field(1e-5, description="Of the encoder and the layers; Adam, constant.")
    hidden_units: Annotated[int, Field(gt=0, le=65_536)] = Field(400, description="Of every hidden layer.")
    hidden_layers: Annotated[int, Field(gt=0, le=100)] = Field(4, description="Before the one output.")

    @property
    def extra_epochs(self) -> int:
        """Epochs after those of the classifier."""
        return self.epochs + self.fine_tuning_epochs


ConfidenceConfig = Annotated[NoConfidence | DeepGamblers | DeVries | ConfidNet, Field(discriminator="kind")]
