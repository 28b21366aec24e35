"""Choice of the epoch whose weights are evaluated, from the records of all epochs so far.

Only in-distribution validation is looked at, shifted or not. The choice is a pure function of the records, which every
checkpoint holds, so an interrupted and continued training chooses the same epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainables.config import TrainingConfig

#: Names in the records of ConfidNet's epochs: its loss on validation images, and the average precision of the wrong
#: predictions among them, ranked from the least confident; the latter is absent where none or all are wrong.
CONFIDENCE_LOSS, CONFIDENCE_AP = "confidence/val_loss", "confidence/val_failure_ap"


def reads_select_by(training: TrainingConfig) -> bool:
    """Return whether the value of ``select_by`` decides anything: the checkpoint, or when the training ends."""
    return training.select == "best" or training.patience is not None


def reads_shifted_validation(training: TrainingConfig) -> bool:
    """Return whether what decides is measured on shifted validation images (``evaluation.validation_shifts``)."""
    return reads_select_by(training) and "/" in training.select_by


def select_epoch(history: Sequence[Mapping[str, Any]], training: TrainingConfig) -> int:
    """Return the epoch whose weights are evaluated: the last one, or the best by ``select_by``.

    Of epochs with equal values the one with the lower validation loss is chosen, and of these the latest: on a few
    hundred images, balanced accuracies are often equal.

    Args:
        history: record of every epoch so far, at least one: ``{"epoch": …, "metrics": {"val/loss": …, …}}``.
        training: settings of the training.
    """
    if training.select == "last":
        return int(history[-1]["epoch"])
    name = f"val/{training.select_by}"
    best = max(_orient(record["metrics"][name], training) for record in history)
    tied = [record for record in history if _orient(record["metrics"][name], training) == best]
    if len(tied) == 1:
        return int(tied[0]["epoch"])
    return int(min(tied, key=lambda record: (record["metrics"]["val/loss"], -record["epoch"]))["epoch"])


def select_confidence_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """Return the epoch whose confidence is kept: that with the highest average precision of wrong predictions.

    Of epochs with equal values, and where it is undefined, the one with the lower validation loss is chosen, and of
    these the latest. The classifier does not change, so it is defined in all epochs or in none.

    Source: AUPR-Error, the main metric of Corbière et al. 2019, whose code measures it on validation after every epoch,
    keeps all of them and leaves the choice to the reader; fd-shifts takes the last or the best by a validation metric.

    Args:
        history: record of every epoch of ConfidNet so far, at least one.
    """

    def rank(record: Mapping[str, Any]) -> tuple[float, float, int]:
        metrics = record["metrics"]
        return metrics.get(CONFIDENCE_AP, 0.0), -metrics[CONFIDENCE_LOSS], int(record["epoch"])

    return int(max(history, key=rank)["epoch"])


def count_epochs_without_improvement(history: Sequence[Mapping[str, Any]], training: TrainingConfig) -> int:
    """Return the number of epochs since ``select_by`` was better than in all epochs before; an equal value is not."""
    values = [_orient(record["metrics"][f"val/{training.select_by}"], training) for record in history]
    return len(values) - 1 - values.index(max(values)) if values else 0


def _orient(value: float, training: TrainingConfig) -> float:
    return -value if training.select_by == "loss" else value
