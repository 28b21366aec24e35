from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.execution import resources
from orchestrator.execution.resources import (
    JointSlots,
    Slots,
    check_fits,
    check_joint_fits,
    count_gpus,
    find_local_resources,
    has_gpu,
    is_joint,
    needs_slot,
    num_joint_slots,
    num_local_slots,
    num_slots,
)
from orchestrator.study.execution_config import ExecutionConfig
from tests.support.plans import make_stage, make_trial
from trainables.cpus import count_cpus
from trainables.errors import StudyError


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "most", "expected"),
    [
        ({"CPU": 8.0}, 1.0, 0.0, None, 8),
        ({"CPU": 8.0}, 3.0, 0.0, None, 2),
        ({"CPU": 8.0, "GPU": 1.0}, 1.0, 0.25, None, 4),
        ({"CPU": 8.0, "GPU": 3.0}, 0.1, 0.1, None, 30),
        ({"CPU": 8.0}, 1.0, 0.0, 3, 3),
        ({}, 1.0, 1.0, None, 1),  # an autoscaling cluster that is empty yet
    ],
)
def test_slots_are_what_fits(
    resources: dict[str, float], cpus: float, gpus: float, most: int | None, expected: int
) -> None:
    assert num_slots(resources, Slots(cpus, gpus, most)) == expected


def test_a_trial_larger_than_the_machine_is_refused() -> None:
    check_fits({"CPU": 2.0}, Slots(2.0, 0.0, None))
    with pytest.raises(StudyError, match=r"gpus_per_trial: a trial asks for 1, and this machine has 0"):
        check_fits({"CPU": 2.0}, Slots(1.0, 1.0, None))
    with pytest.raises(StudyError, match=r"cpus_per_trial: a trial asks for 2.5, and this machine has 2"):
        check_fits({"CPU": 2.0}, Slots(2.5, 0.0, None))


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file by which a GPU is known; there is none yet."""
    monkeypatch.setattr(resources, "_GPU_DEVICES", (str(tmp_path / "nvidiactl"),))
    return tmp_path / "nvidiactl"


@pytest.mark.parametrize(
    ("execution", "without_gpu", "with_gpu"),
    [
        ({}, True, False),
        ({"device": "cpu"}, True, True),
        ({"gpus_per_trial": 0}, True, False),
        ({"gpus_per_trial": 0, "device": "cpu"}, True, True),
        ({"gpus_per_trial": 0.5}, False, False),  # Ray says that there is none
        ({"local_executor": False, "device": "cpu"}, False, False),
    ],
)
def test_the_driver_runs_only_what_takes_no_gpu(
    gpu: Path, execution: dict[str, Any], without_gpu: bool, with_gpu: bool
) -> None:
    found = find_local_resources(ExecutionConfig(**execution))
    assert found == ({"CPU": float(count_cpus()), "GPU": 0.0} if without_gpu else None)
    gpu.touch()
    assert (find_local_resources(ExecutionConfig(**execution)) is not None) is with_gpu


@pytest.mark.parametrize(("cpus", "most", "expected"), [(1.0, None, 8), (3.0, None, 2), (1.0, 3, 3), (1.0, 99, 8)])
def test_own_slots_are_what_fits_and_no_more_than_asked(cpus: float, most: int | None, expected: int) -> None:
    assert num_local_slots({"CPU": 8.0}, Slots(cpus, 0.0, most)) == expected


def test_the_processes_of_a_stage_have_to_fit_together() -> None:
    slots = JointSlots(3, 2.0, 1.0)
    check_joint_fits({"CPU": 6.0, "GPU": 3.0}, slots, kind="stage")
    with pytest.raises(StudyError, match=r"processes_per_trial: 3 processes ask for 3 GPUs together, .* has 2;"):
        check_joint_fits({"CPU": 6.0, "GPU": 2.0}, slots, kind="trial")
    assert num_joint_slots({"CPU": 13.0, "GPU": 6.0}, slots) == 2
    assert num_joint_slots({}, slots) == 1  # an empty cluster starts to grow
    for name in ("processes_per_stage", "processes_per_trial"):
        assert find_local_resources(ExecutionConfig(**{"device": "cpu", name: 2})) is None


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 2), ("0", 1), ("0,1,2", 2), ("", 0), ("-1", 0), ("NoDevFiles", 0), ("1,-1,0", 1), ("GPU-8f2a", 1),
        ("MIG-1c,MIG-2d,MIG-3e", 3),
    ],
)  # fmt: skip
def test_gpus_are_those_that_cuda_shows(
    gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int
) -> None:
    gpu.touch()
    for number in range(2):
        (tmp_path / f"nvidia{number}").touch()
    monkeypatch.setattr(resources, "_NVIDIA", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert count_gpus(ExecutionConfig()) == count
    assert has_gpu(ExecutionConfig()) is (count > 0)
    assert (count_gpus(ExecutionConfig(device="cpu")), has_gpu(ExecutionConfig(device="cpu"))) == (0, False)


@pytest.mark.parametrize(
    ("execution", "joint", "in_slots"),
    [
        ({}, [], ["stage", "trial"]),
        ({"processes_per_stage": 2}, ["stage"], ["trial"]),
        ({"processes_per_trial": 2}, ["trial"], ["stage", "trial"]),  # where the trial is evaluated
    ],
)
def test_what_several_processes_train_and_what_slots_run(
    execution: dict[str, int], joint: list[str], in_slots: list[str]
) -> None:
    works, config = [make_stage("stage"), make_trial("trial")], ExecutionConfig(**execution)
    assert [work.name for work in works if is_joint(config, work)] == joint
    assert [work.name for work in works if needs_slot(config, work)] == in_slots
