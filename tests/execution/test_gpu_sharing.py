from __future__ import annotations

from typing import Any

import pytest

from orchestrator.execution.gpu_sharing import (
    GpuShare,
    choose_gpus_per_trial,
    compute_next_share,
    describe_kind,
    round_share,
)
from orchestrator.ledger.record import Record
from orchestrator.planning.identity import compute_identity
from orchestrator.planning.works import Work
from tests.support.plans import make_stage, make_trial, plan_of

GPU_MIB = 80_000.0


def record(work: Work, peak_mib: float | None, *, gpu_mib: float = GPU_MIB, evaluation_batch_size: int = 256) -> Record:
    """A finished piece of work; ``None``: it finished on a CPU."""
    result: dict[str, Any] = {"environment": {"evaluation_batch_size": evaluation_batch_size}}
    if peak_mib is not None:
        result |= {"peak_gpu_memory_mib": peak_mib, "gpu_memory_mib": gpu_mib}
    return Record(work.signature, work.kind, {"identity": compute_identity(work.config)}, [], result, None)


def choose(todo: list[Work], records: list[Record], **settings: Any) -> GpuShare:
    return choose_gpus_per_trial(todo, records, **{"evaluation_batch_size": 256, **settings})


def trials(text: str) -> list[Work]:
    return list(plan_of(text).trials)


def test_a_trial_has_its_gpu_until_its_memory_is_known() -> None:
    todo = [make_trial("a", replicate=1), make_trial("a", replicate=2)]
    share = choose(todo, [])
    assert share.gpus == 1.0
    assert "1 of 1 kinds of work is not known yet (a is one)" in share.reason
    assert choose(todo, [record(make_trial("a"), None)]).gpus == 1.0
    open_record = Record("s", "trial", {"identity": compute_identity(todo[0].config)}, [], None, None)
    assert choose(todo, [open_record]).gpus == 1.0


@pytest.mark.parametrize(
    ("peak", "expected"),
    # 68,000 of 80,000 MiB are used: 8 of 8,500 just fit, 7 of 8,501, one of more than half.
    [(1000.0, 0.125), (8500.0, 0.125), (8501.0, 0.1428), (20_000.0, 0.3333), (35_000.0, 1.0), (90_000.0, 1.0)],
)
def test_as_many_trials_as_fit(peak: float, expected: float) -> None:
    measured, todo = make_trial("a", replicate=0), [make_trial("a", replicate=1)]
    share = choose(todo, [record(measured, peak)])
    assert share.gpus == expected
    assert f"{peak:,.0f} of 80,000 MiB" in share.reason


def test_the_largest_work_and_the_smallest_gpu_decide() -> None:
    small, large = trials("factors: {training.batch_size: [16, 64]}")
    records = [record(small, 1000.0), record(large, 20_000.0), record(large, 10_000.0, gpu_mib=50_000.0)]
    assert choose([small, large], records).gpus == 0.5  # two of 20,000 in 42,500
    assert choose([small], records).gpus == 0.125
    assert choose([small, large], records, gpu_memory_mib=GPU_MIB).gpus == 0.3333
    assert choose([small, large], records, gpu_memory_mib=GPU_MIB, margin=0.0).gpus == 0.25
    assert choose([small], records, max_per_gpu=3).reason.endswith("at most 3")


def test_a_stage_that_was_never_measured_keeps_the_gpu() -> None:
    stage, trial = make_stage("simclr"), make_trial("a")
    assert choose([stage, trial], [record(trial, 1000.0)]).gpus == 1.0
    assert choose([stage, trial], [record(trial, 1000.0), record(stage, 30_000.0)]).gpus == 0.5


def test_a_larger_evaluation_batch_has_to_be_measured_anew() -> None:
    todo = [make_trial("a")]
    records = [record(make_trial("a"), 1000.0, evaluation_batch_size=256)]
    assert choose(todo, records, evaluation_batch_size=512).gpus == 1.0
    assert choose(todo, records, evaluation_batch_size=128).gpus == 0.125


def test_what_does_not_change_the_memory_shares_a_measurement() -> None:
    def kinds(text: str) -> int:
        return len({describe_kind("trial", compute_identity(trial.config)) for trial in trials(text)})

    assert (
        kinds("factors: {regulariser: [none, label_smoothing], training.learning_rate: [0.1, 0.2]}\nreplicates: 3") == 1
    )
    assert kinds("factors: {regulariser: [none, mixup, sam, stain_normalisation]}") == 3
    assert kinds("factors: {regulariser: {a: sam, b: {kind: combined, sam: {}, dropout: {}}}}") == 1
    assert kinds("factors: {training.confidence: [none, devries, deep_gamblers, confidnet]}") == 2
    assert kinds("factors: {training.batch_size: [16, 64], training.optimiser: [sgd, adamw]}") == 4
    assert kinds("factors: {model.name: [resnet18, resnet34], augmentation: [none, strong]}") == 4


def test_shares_never_exceed_a_gpu_in_rays_unit() -> None:
    for count in range(1, 65):
        assert round(round_share(count) * 10_000) * count <= 10_000


@pytest.mark.parametrize(
    ("share", "larger"),
    [(0.125, 0.25), (0.1428, 0.3333), (0.25, 0.5), (0.3333, 1.0), (0.5, 1.0), (0.7, 1.0), (1.0, 1.0)],
)
def test_the_next_share_is_that_of_half_as_many_trials(share: float, larger: float) -> None:
    assert compute_next_share(share) == larger


def test_nothing_open_takes_nothing_but_says_so() -> None:
    assert choose([], []) == GpuShare(1.0, "nothing is open")
