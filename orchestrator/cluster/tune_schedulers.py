"""Apply Tune's schedulers to trials that Tune does not know: our Tune trials are slots that carry chunks.

Which trials are compared, and what happens to one that is to stop, is decided in ``search/early_stopping.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.cluster.connection import tune
from orchestrator.study.search.config import ASHA, EarlyStoppingConfig

_STOP = tune.schedulers.TrialScheduler.STOP
_RESULT_TIME, _RESULT_VALUE = "epoch", "value"


@dataclass(frozen=True)
class _TrialStub:
    """Part of a Tune trial that Tune's schedulers read."""

    trial_id: str


class _ControllerStub:
    """Part of Tune's controller that its schedulers read: no trial waits for a slot that another could yield."""

    def get_live_trials(self) -> list[Any]:
        return []


class StoppingRule:
    """Decides which configurations are to stop, from all results that it was given.

    Args:
        config: rule and its parameters.
        max_epochs: epochs of the longest training.
        higher_is_better: whether a higher value is better.
    """

    def __init__(self, config: EarlyStoppingConfig, *, max_epochs: int, higher_is_better: bool) -> None:
        self._is_asha = isinstance(config, ASHA)
        self._trials: dict[str, _TrialStub] = {}
        common = {
            "time_attr": _RESULT_TIME,
            "metric": _RESULT_VALUE,
            "mode": "max" if higher_is_better else "min",
            "grace_period": config.grace_epochs,
        }
        if isinstance(config, ASHA):
            self._scheduler: Any = tune.schedulers.AsyncHyperBandScheduler(
                max_t=max_epochs,
                reduction_factor=config.reduction_factor,
                brackets=config.brackets,
                stop_last_trials=False,
                **common,
            )
        else:
            self._scheduler = tune.schedulers.MedianStoppingRule(
                min_samples_required=config.min_samples, hard_stop=True, **common
            )

    def judge(self, configuration: str, epoch: int, value: float) -> bool:
        """Add the result of a running configuration; return whether it is to stop. Not to be called again after that.

        Args:
            configuration: its identifier; also the seed with which its bracket is drawn.
            epoch: epoch of the result, higher than in the call before.
            value: value after this epoch.
        """
        action = self._scheduler.on_trial_result(_ControllerStub(), self._find(configuration), _describe(epoch, value))
        return bool(action == _STOP)

    def record(self, configuration: str, epoch: int, value: float) -> None:
        """Add the result of a configuration that is no longer judged, since others are compared with it."""
        if self._is_asha:
            self.judge(configuration, epoch, value)
        else:
            self._scheduler.on_trial_complete(_ControllerStub(), self._find(configuration), _describe(epoch, value))

    def _find(self, configuration: str) -> _TrialStub:
        if configuration not in self._trials:
            self._trials[configuration] = _TrialStub(configuration)
            before = np.random.get_state()
            # ASHA draws the bracket from the global generator: with this seed it is the same in every run.
            np.random.seed(int.from_bytes(hashlib.blake2b(configuration.encode(), digest_size=4).digest(), "big"))
            self._scheduler.on_trial_add(_ControllerStub(), self._trials[configuration])
            np.random.set_state(before)
        return self._trials[configuration]


def _describe(epoch: int, value: float) -> dict[str, Any]:
    return {_RESULT_TIME: epoch, _RESULT_VALUE: value}
