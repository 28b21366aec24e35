"""Checks of what does not work with ``--shard``, before anything starts, and resources of a driver without Ray."""

from __future__ import annotations

import os

from orchestrator.execution.resources import count_gpus, has_gpu
from orchestrator.study.execution_config import ExecutionConfig
from orchestrator.study.study_file import Study
from trainables.cpus import count_cpus
from trainables.errors import StudyError


def check_shardable(study: Study, *, address: str | None) -> None:
    """Check that several drivers can share a study.

    Args:
        study: the study.
        address: Ray cluster that the command line or the study names.

    Raises:
        StudyError: they cannot; the message says why, and what to do.
    """
    execution = study.execution
    if address is not None:
        raise StudyError(
            f"--shard: found the Ray cluster {address} (--address, execution.address), expected none: drivers that "
            "share a study train on their own machines, without Ray. Leave one of the two out"
        )
    if study.search is not None:
        raise StudyError(
            "--shard: found a search, whose next trials depend on results; several drivers can share a study only if "
            "its trials are known beforehand. Run it with one driver, and --address for a cluster"
        )
    if not execution.local_executor:
        raise StudyError(
            "--shard: found execution.local_executor: false, which sends all trials to Ray, expected true: each driver "
            "trains in slots of its own"
        )
    for name in ("processes_per_stage", "processes_per_trial"):
        number = getattr(execution, name)
        if number > 1:
            raise StudyError(
                f"--shard: found execution.{name}: {number}, which takes Ray; set it to 1, or run the study with one "
                "driver"
            )
    if execution.budget is not None and execution.budget.trials is not None:
        raise StudyError(
            "--shard: found execution.budget.trials, which drivers that start trials at the same time could exceed; "
            "limit wall_hours, gpu_hours or money instead, or run the study with one driver"
        )


def find_own_resources(execution: ExecutionConfig) -> dict[str, float]:
    """Return the CPUs and GPUs of a driver that trains on its own machine, without Ray.

    Raises:
        StudyError: the driver sees several GPUs, which it could not tell apart.
    """
    number = _count_visible_gpus(execution) if has_gpu(execution) else 0
    if number > 1:
        raise StudyError(
            f"--shard: found {number} GPUs, expected at most one for each driver; start one driver per GPU, each with "
            "its own CUDA_VISIBLE_DEVICES (SLURM: --gpus-per-task=1), or set execution.device: cpu"
        )
    return {"CPU": float(count_cpus()), "GPU": float(number)}


def _count_visible_gpus(execution: ExecutionConfig) -> int:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count_gpus(execution) if named is None else len([name for name in named.split(",") if name.strip()])
