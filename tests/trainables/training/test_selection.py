"""Which epoch is evaluated: the best on validation, whose ties are broken by the loss, or the last."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from trainables.config import TrainingConfig
from trainables.training.selection import count_epochs_without_improvement, reads_shifted_validation, select_epoch

Record = dict[str, Any]


def records(*values: tuple[float, float]) -> list[Record]:
    """Return records of epochs with these balanced accuracies and losses."""
    return [
        {"epoch": epoch, "metrics": {"val/balanced_accuracy": value, "val/loss": loss}}
        for epoch, (value, loss) in enumerate(values, start=1)
    ]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (records((0.5, 1.0)), 1),
        (records((0.5, 1.0), (0.6, 2.0), (0.4, 0.1)), 2),
        (records((0.6, 0.9), (0.6, 0.8), (0.6, 0.85)), 2),  # the lower loss
        (records((0.6, 0.8), (0.6, 0.8), (0.5, 0.1)), 2),  # the later epoch
        (records((0.6, 0.8), (0.6, 0.9), (0.6, 0.8), (0.6, 0.9)), 3),
    ],
)
def test_ties_go_to_the_lower_loss_and_then_to_the_later_epoch(history: list[Record], expected: int) -> None:
    assert select_epoch(history, TrainingConfig()) == expected
    assert select_epoch(history, TrainingConfig(select="last")) == len(history)


def test_equal_losses_go_to_the_later_epoch() -> None:
    assert select_epoch(records((0.9, 0.5), (0.1, 0.4), (0.2, 0.4), (0.3, 0.6)), TrainingConfig(select_by="loss")) == 3


def test_the_choice_never_returns_to_an_epoch_that_was_passed_over() -> None:
    """Weights of the chosen epoch alone are kept: a new epoch is chosen, or the choice stays."""
    draw = random.Random(0)
    for _ in range(200):
        history = records(*((draw.randint(0, 2) / 2, draw.randint(0, 2) / 2) for _ in range(8)))
        chosen = [select_epoch(history[:length], TrainingConfig()) for length in range(1, 9)]
        assert all(new in (old, length) for length, (old, new) in enumerate(pairwise(chosen), 2))


def test_patience_counts_from_the_first_of_equal_values() -> None:
    history = records((0.5, 1.0), (0.7, 0.9), (0.6, 0.1), (0.7, 0.2))
    assert [count_epochs_without_improvement(history[:length], TrainingConfig()) for length in range(5)] == [
        0, 0, 0, 1, 2,
    ]  # fmt: skip
    by_loss = TrainingConfig(select_by="loss")
    assert [count_epochs_without_improvement(history[:length], by_loss) for length in range(1, 5)] == [0, 0, 0, 1]


def test_shifted_validation_chooses_and_ends_a_training() -> None:
    by = "robustness/mean_auroc"
    training = TrainingConfig(select_by=by, patience=2)
    history = [
        {"epoch": epoch, "metrics": {"val/auroc": clean, f"val/{by}": shifted, "val/loss": 1.0}}
        for epoch, (clean, shifted) in enumerate([(0.7, 0.5), (0.8, 0.6), (0.9, 0.4)], start=1)
    ]
    assert select_epoch(history, training) == 2
    assert count_epochs_without_improvement(history, training) == 1
    assert reads_shifted_validation(training)
    assert reads_shifted_validation(training.model_copy(update={"select": "last"}))
    assert not reads_shifted_validation(TrainingConfig(select_by=by, select="last"))
    assert not reads_shifted_validation(TrainingConfig(patience=2))
