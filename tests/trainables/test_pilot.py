from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_configs import tiny_trial
from trainables.config import Execution, TrialConfig
from trainables.data.load import load_dataset
from trainables.models.networks import Classifier
from trainables.pilot import time_trial
from trainables.training.step import TrainingStep


def test_a_pilot_takes_the_steps_of_its_regulariser(cache_dir: Path) -> None:
    execution = Execution(device="cpu", num_threads=1, cache_dir=cache_dir)
    timings = time_trial(tiny_trial(regulariser={"kind": "combined", "sam": {}, "dropout": {}}), execution)
    assert timings.training_epochs == 2
    assert timings.trial_seconds > timings.evaluation_seconds > 0.0


@pytest.mark.parametrize(("max_seconds", "steps"), [(0.0, 1), (1000.0, 4)])
def test_a_pilot_ends_in_time_and_still_measures(
    max_seconds: float, steps: int, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    run = TrainingStep.run
    monkeypatch.setattr(TrainingStep, "run", lambda *words, **more: (done.append(1), run(*words, **more))[1])
    execution = Execution(device="cpu", num_threads=1, cache_dir=cache_dir)
    config = tiny_trial(training={"epochs": 2, "label_fraction": 1.0, "batch_size": 16})
    timings = time_trial(config, execution, max_seconds=max_seconds)
    assert len(done) == steps
    assert timings.epoch_seconds > 0.0 < timings.evaluation_seconds


def test_a_pilot_counts_the_epochs_of_confidnet_and_the_passes_of_mc_dropout(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image takes a second, and ten with scores of the model's own."""

    def time_prediction(
        task: Any, model: Classifier, images: Any, config: TrialConfig, *args: Any, **more: Any
    ) -> float:
        return 10.0 if config.evaluation.mc_dropout or model.confidence else 1.0

    monkeypatch.setattr("trainables.pilot._time_prediction", time_prediction)
    execution = Execution(device="cpu", num_threads=1, cache_dir=cache_dir)
    data = load_dataset(tiny_trial().data, cache_dir=cache_dir)
    train, val = 0.1 * len(data.splits["train"]), len(data.splits["val"])
    confidence = {"kind": "confidnet", "epochs": 7, "fine_tuning_epochs": 3}
    plain, learned, drawn = (
        time_trial(tiny_trial(regulariser={"kind": "dropout"}, **sections), execution)
        for sections in ({}, {"training": {"confidence": confidence}}, {"evaluation": {"mc_dropout": 3}})
    )
    assert plain.confidence_seconds == drawn.confidence_seconds == 0.0
    # Ten passes over the training and validation images, and three epochs of training steps and validation more.
    steps = learned.epoch_seconds - val
    assert learned.confidence_seconds == pytest.approx(10 * (train + val) + 3 * (steps + val), rel=0.02)
    parts = 2 * learned.epoch_seconds + learned.confidence_seconds + learned.evaluation_seconds
    assert learned.trial_seconds == pytest.approx(parts)
    assert learned.evaluation_seconds == drawn.evaluation_seconds == 10 * plain.evaluation_seconds
