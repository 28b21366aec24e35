"""Ray Tune's schedulers as we drive them: who falls behind is stopped, who leads never is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from orchestrator.cluster.tune_schedulers import StoppingRule
from orchestrator.study.search.config import ASHA, EarlyStoppingConfig, MedianStopping

RULES = {
    "asha": ASHA(grace_epochs=2, reduction_factor=2),
    "brackets": ASHA(grace_epochs=1, reduction_factor=2, brackets=3),
    "median": MedianStopping(grace_epochs=2, min_samples=2),
}
EPOCHS = 16


def run(
    config: EarlyStoppingConfig, curves: Mapping[str, Sequence[float]], *, higher_is_better: bool = True
) -> dict[str, int]:
    """Train all at once, epoch by epoch; return which trials were stopped after which epoch."""
    rule = StoppingRule(config, max_epochs=EPOCHS, higher_is_better=higher_is_better)
    stopped: dict[str, int] = {}
    for epoch in range(1, EPOCHS + 1):
        for trial, values in curves.items():
            if trial in stopped:
                continue
            if epoch == EPOCHS:
                rule.record(trial, epoch, values[epoch - 1])
            elif rule.judge(trial, epoch, values[epoch - 1]):
                stopped[trial] = epoch
    return stopped


def plant(num: int, *, sign: float = 1.0) -> dict[str, list[float]]:
    """Return learning curves that never cross; trial 0 is the best."""
    return {str(rank): [sign * (1 - 0.1 * rank) * (1 - 0.5**epoch) for epoch in range(EPOCHS)] for rank in range(num)}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_worst_are_stopped_and_the_best_never(name: str, sign: float) -> None:
    stopped = run(RULES[name], plant(8, sign=sign), higher_is_better=sign > 0)
    assert "0" not in stopped
    assert len(stopped) >= 3
    if name != "brackets":  # there it depends on the bracket, too
        assert "7" in stopped
        assert max(stopped.values()) < EPOCHS
    assert min(stopped.values()) >= RULES[name].grace_epochs


def test_asha_stops_at_its_rungs_only() -> None:
    stopped = run(RULES["asha"], plant(8))
    assert set(stopped.values()) <= {2, 4, 8}


def test_the_first_at_a_rung_goes_on_and_so_do_equal_ones() -> None:
    assert run(RULES["asha"], {"0": [0.1] * EPOCHS, "1": [0.1] * EPOCHS, "2": [0.1] * EPOCHS}) == {}


def test_the_median_waits_for_as_many_others_as_it_is_told() -> None:
    assert run(MedianStopping(grace_epochs=1, min_samples=3), plant(3)) == {}
    assert run(MedianStopping(grace_epochs=1, min_samples=2), plant(3)).keys() == {"2"}


@pytest.mark.parametrize("name", RULES)
def test_what_is_recorded_counts_as_what_was_judged(name: str) -> None:
    judged, recorded = (StoppingRule(RULES[name], max_epochs=EPOCHS, higher_is_better=True) for _ in range(2))
    for trial in "abc":
        for epoch in range(1, EPOCHS):
            assert not judged.judge(trial, epoch, 0.1 * epoch)  # all alike: nobody is behind
            recorded.record(trial, epoch, 0.1 * epoch)
    decisions = [
        next((epoch for epoch in range(1, EPOCHS) if rule.judge("late", epoch, 0.09 * epoch)), None)
        for rule in (judged, recorded)
    ]
    assert decisions[0] == decisions[1] is not None


def test_a_bracket_is_drawn_from_the_trial_alone() -> None:
    curves = plant(8)
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    first = run(RULES["brackets"], curves)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]
    np.random.seed(2)
    assert run(RULES["brackets"], curves) == first
