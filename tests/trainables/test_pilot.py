from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_configs import tiny_trial
from trainables.config import Execution
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
