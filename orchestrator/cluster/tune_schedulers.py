"""Tune's schedulers, told the results of trials that Tune does not know: our Tune trials are slots that carry chunks.

Which trials are compared, and what becomes of one that is to stop, is decided in ``early_stopping.py``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.cluster.connection import tune
from orchestrator.study.search_config import ASHA, EarlyStoppingConfig

_STOP = tune.schedulers.TrialScheduler.STOP
_RESULT_TIME, _RESULT_VALUE = "epoch", "value"


@dataclass(frozen=True)
class _TrialStub:
    """As much of a Tune trial as its schedulers look at."""

    trial_id: str


class _ControllerStub:
    """As much of Tune's controller: nobody waits for a slot that a trial could yield."""

    def get_live_trials(self) -> list[Any]:
        return []


class StoppingRule:
    """Says which trials are to stop, from the results of all that it was told of.

    Args:
        config: which rule.
        max_epochs: of the longest training.
        higher_is_better: of the values.
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

    def judge(self, trial: str, epoch: int, value: float) -> bool:
        """Take the result of a trial that goes on; return whether it is to stop. Not to be called again when it is.

        Args:
            trial: its configuration; decides, in no other way than by chance, on the bracket.
            epoch: higher than in the call before.
            value: after this epoch.
        """
        action = self._scheduler.on_trial_result(_ControllerStub(), self._find(trial), _describe(epoch, value))
        return bool(action == _STOP)

    def record(self, trial: str, epoch: int, value: float) -> None:
        """Take the result of a trial that is not judged any more: others are compared with it. As ``judge``."""
        if self._is_asha:
            self.judge(trial, epoch, value)
        else:
            self._scheduler.on_trial_complete(_ControllerStub(), self._find(trial), _describe(epoch, value))

    def _find(self, trial: str) -> _TrialStub:
        if trial not in self._trials:
            self._trials[trial] = _TrialStub(trial)
            before = np.random.get_state()
            # ASHA draws the bracket from the global generator: so it comes out the same in every run.
            np.random.seed(int.from_bytes(hashlib.blake2b(trial.encode(), digest_size=4).digest(), "big"))
            self._scheduler.on_trial_add(_ControllerStub(), self._trials[trial])
            np.random.set_state(before)
        return self._trials[trial]


def _describe(epoch: int, value: float) -> dict[str, Any]:
    return {_RESULT_TIME: epoch, _RESULT_VALUE: value}
