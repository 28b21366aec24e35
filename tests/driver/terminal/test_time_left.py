from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.driver.terminal.time_left import TimeLeft
from orchestrator.planning.works import Work
from tests.support.plans import make_stage, make_trial

SLOTS = 2
EPOCHS = 20  # of ``make_trial``


def play(
    works: list[Work],
    durations: Mapping[str, float],
    *,
    expected: Mapping[str, float] = {},
    look_at: Callable[[float], bool] = lambda now: False,
) -> tuple[list[tuple[float, float | None]], float]:
    """Run ``works`` in order on two slots by a scripted clock; return (time, seconds left) at every end, and the end.

    Training takes half of each trial, in equal epochs.
    """
    left = TimeLeft(works, expected=expected)
    waiting, running, seen, now = list(works), [], [], 0.0  # type: ignore[var-annotated]
    while waiting or running:
        while waiting and len(running) < SLOTS:
            work = waiting.pop(0)
            left.start(work, now)
            heapq.heappush(running, (now + durations[work.signature], work.signature, work, now))
        now, _, work, started = heapq.heappop(running)
        for epoch in range(1, EPOCHS + 1):
            left.train(work, epoch, started + durations[work.signature] * 0.5 * epoch / EPOCHS)
        left.evaluate(work, started + durations[work.signature] * 0.5)
        left.end(work, now, is_complete=True)
        seen.append((now, left.compute(now)))
    return seen, now


def make_study(spread: float, seed: int) -> tuple[list[Work], dict[str, float]]:
    """Return 8 arms × 6 replicates, and durations: arms differ threefold, trials of one arm by ``spread``."""
    rng = np.random.default_rng(seed)
    works = [make_trial(f"arm {arm}", replicate=replicate) for replicate in range(6) for arm in range(8)]
    works = [
        Work(work.kind, f"{number:03}", work.name, work.config, "d", (), work.levels, work.replicate)
        for number, work in enumerate(works)
    ]
    by_arm = {f"arm {arm}": 5.0 * 3 ** (arm / 7) for arm in range(8)}
    return works, {work.signature: by_arm[work.name] * float(rng.lognormal(0, spread)) for work in works}


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_the_time_left_is_right_within_a_factor_of_one_and_a_half(spread: float, seed: int) -> None:
    works, durations = make_study(spread, seed)
    seen, end = play(works, durations)
    for share in (0.25, 0.5):
        now, left = min(seen, key=lambda each: abs(each[0] - share * end))
        assert left is not None
        assert 1 / 1.5 < left / (end - now) < 1.5, (share, left, end - now)


def test_half_way_it_is_much_better_than_that() -> None:
    ratios = []
    for seed in range(20):
        seen, end = play(*make_study(0.3, seed))
        now, left = min(seen, key=lambda each: abs(each[0] - 0.5 * end))
        assert left is not None
        ratios.append(left / (end - now))
    assert 0.9 < np.median(ratios) < 1.1
    assert max(np.abs(np.log(ratios))) < np.log(1.2)


def test_what_the_plan_expects_counts_from_the_start_and_is_corrected_by_what_trials_take() -> None:
    works, durations = make_study(0.0, 0)
    expected = {signature: seconds / 3 for signature, seconds in durations.items()}  # a machine three times as fast
    left = TimeLeft(works, expected=expected)
    left.start(works[0], 0.0)
    left.start(works[1], 0.0)
    first = left.compute(0.0)
    assert first == pytest.approx(sum(expected.values()) / SLOTS + 5.0 / 4)  # a quarter of the longest, 15 s / 3
    seen, end = play(works, durations, expected=expected)
    now, later = seen[3]
    assert later is not None
    assert 1 / 1.2 < later / (end - now) < 1.2


def test_before_any_trial_has_finished_running_ones_are_extrapolated_from_their_epochs() -> None:
    works, _ = make_study(0.0, 0)
    left = TimeLeft(works[:4], expected={})
    assert left.compute(0.0) is None
    left.start(works[0], 0.0)
    assert left.compute(1.0) is None
    for epoch in range(1, 11):
        left.train(works[0], epoch, 2.0 + 0.5 * epoch)  # two seconds to start, then half a second an epoch
    # 12 s of training, .6 of 20 s, of which 7 are over; three more wait for one slot.
    assert left.compute(7.0) == pytest.approx(13.0 + 60.0)


def test_a_trained_trial_that_waits_for_its_evaluation_has_only_that_to_come() -> None:
    """Twice: 12 s of training in several processes, then 8 s of evaluation in a slot, after a pause."""
    works, _ = make_study(0.0, 0)
    left, now = TimeLeft(works[:2], expected={}), 0.0
    for work in works[:2]:
        left.start(work, now)
        for epoch in range(1, 21):
            left.train(work, epoch, now + 0.6 * epoch)
        now += 12.0
        left.hand_over(work, now)
    assert left.compute(now + 5.0) == pytest.approx(2 * 8.0)
    now += 100.0
    left.start(works[0], now)
    left.evaluate(works[0], now)
    assert left.compute(now + 2.0) == pytest.approx(6.0 + 8.0)
    left.end(works[0], now + 10.0, is_complete=True)  # 22 s, rather than 20
    assert left.compute(now + 10.0) == pytest.approx(10.0)


def test_a_failed_trial_says_nothing_about_the_others() -> None:
    works, _ = make_study(0.0, 0)
    left = TimeLeft(works[:3], expected={})
    left.start(works[0], 0.0)
    left.end(works[0], 0.1, is_complete=False)
    assert left.compute(0.1) is None
    left.start(works[1], 0.1)
    left.end(works[1], 10.1, is_complete=True)
    assert left.compute(10.1) == pytest.approx(10.0)


def test_a_long_stage_bounds_the_time_from_below_and_trials_to_come_count() -> None:
    stage = make_stage("pretraining")
    works, _ = make_study(0.0, 0)
    expected = {stage.signature: 100.0} | {work.signature: 1.0 for work in works[:10]}
    left = TimeLeft([stage, *works[:10]], expected=expected, num_to_come=10)
    left.start(stage, 0.0)
    left.start(works[0], 0.0)
    assert left.compute(0.0) == pytest.approx(100.0)
    left.end(stage, 100.0, is_complete=True)
    left.end(works[0], 101.0, is_complete=True)
    assert left.compute(101.0) == pytest.approx((9 + 10) * 101 / 2 + 101 / 4)  # trials took 101 times what was expected


def test_nothing_open_takes_no_time() -> None:
    assert TimeLeft([], expected={}).compute(0.0) == 0.0


@pytest.mark.parametrize(("kind", "views"), [("contrastive", 2), ("supervised", 1)])
def test_trials_are_guessed_from_the_epochs_of_the_first_stage(kind: str, views: int) -> None:
    stage = make_stage("stage", epochs=6)
    stage = replace(stage, config=stage.config.model_copy(update={"kind": kind}))
    trials = [make_trial("arm", replicate=replicate) for replicate in range(4)]
    left = TimeLeft([stage, *trials], expected={})
    left.start(stage, 0.0)
    assert left.compute(5.0) is None  # nothing has ended, not even an epoch
    left.train(stage, 1, 12.0)
    left.train(stage, 2, 22.0)
    # An epoch of the stage takes 10 s, of a trial half of it if the stage has two views; evaluation adds two thirds.
    epochs = stage.config.pretraining.epochs
    whole = 12.0 + 10.0 * (epochs - 1)
    each = 10.0 / views * EPOCHS / 0.6
    assert left.compute(22.0) == pytest.approx(whole - 22.0 + 4 * each)


def test_drivers_that_share_a_study_share_its_time() -> None:
    works = [make_trial("a", replicate=number) for number in range(20)]
    works = [
        Work(work.kind, f"{number:03}", work.name, work.config, "d", (), work.levels, work.replicate)
        for number, work in enumerate(works)
    ]
    left = TimeLeft(works, expected={})
    left.start(works[0], 0.0)
    left.end(works[0], 10.0, is_complete=True)
    alone, shared = (left.compute(10.0, num_drivers=number) for number in (1, 4))
    assert alone == 190.0
    assert shared == pytest.approx(190.0 / 4 + 3 / 4 * 10.0 / 2)  # on average, slots wait for half of the last one
