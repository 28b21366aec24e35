from __future__ import annotations

from pathlib import Path

from tests.support.tiny_configs import tiny_trial
from trainables.config import Execution
from trainables.pilot import time_trial


def test_a_pilot_takes_the_steps_of_its_regulariser(cache_dir: Path) -> None:
    execution = Execution(device="cpu", num_threads=1, cache_dir=cache_dir)
    timings = time_trial(tiny_trial(regulariser={"kind": "combined", "sam": {}, "dropout": {}}), execution)
    assert timings.training_epochs == 2
    assert timings.trial_seconds > timings.evaluation_seconds > 0.0
