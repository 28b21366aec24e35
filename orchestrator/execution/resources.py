"""Resources of this machine and of a trial, and how many trials fit, under Ray's names ``CPU`` and ``GPU``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.study.execution_config import ExecutionConfig
from trainables.cpus import count_cpus
from trainables.errors import StudyError

#: Device files of GPU drivers: NVIDIA, AMD, and either of them under WSL.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True)
class Slots:
    """Resources of one trial, and how many trials may run at once."""

    cpus: float
    gpus: float
    max_concurrent: int | None


def find_local_resources(execution: ExecutionConfig) -> dict[str, float] | None:
    """Return the resources of this machine for local slots, None if all trials are to run in Ray.

    Trials that may take a GPU run in Ray, which divides the GPUs among them.
    """
    has_gpu = execution.device != "cpu" and any(Path(name).exists() for name in _GPU_DEVICES)
    if not execution.local_executor or has_gpu or execution.gpus_per_trial not in ("auto", 0):
        return None
    return {"CPU": float(count_cpus()), "GPU": 0.0}


def count_gpus(execution: ExecutionConfig) -> int:
    """Return how many NVIDIA GPUs this machine has for trials, without importing torch."""
    return 0 if execution.device == "cpu" else len(list(Path("/dev").glob("nvidia[0-9]*")))


def check_fits(resources: Mapping[str, float], slots: Slots) -> None:
    """Raise if a trial is larger than this machine: Ray would wait for ever for a machine to be added.

    Raises:
        StudyError: a trial asks for more CPUs or GPUs than there are.
    """
    for key, asked, found in (
        ("cpus_per_trial", slots.cpus, resources.get("CPU", 0.0)),
        ("gpus_per_trial", slots.gpus, resources.get("GPU", 0.0)),
    ):
        if asked > found:
            raise StudyError(
                f"execution.{key}: a trial asks for {asked:g}, and this machine has {found:g}; "
                "ask for less, or join a cluster with --address"
            )


def num_local_slots(resources: Mapping[str, float], slots: Slots) -> int:
    """Return how many trials the local executor runs at once: as many as there are CPUs for, up to the maximum."""
    fitting = int(resources["CPU"] / slots.cpus + 1e-9)
    return fitting if slots.max_concurrent is None else min(fitting, slots.max_concurrent)


def num_slots(resources: Mapping[str, float], slots: Slots) -> int:
    """Return how many trials fit at once; at least 1, so that an empty autoscaling cluster starts to grow."""
    if slots.max_concurrent is not None:
        return slots.max_concurrent
    fits = [resources.get("CPU", 0.0) / slots.cpus] if slots.cpus else []
    if slots.gpus:
        fits.append(resources.get("GPU", 0.0) / slots.gpus)
    return max(1, int(min(fits, default=1.0) + 1e-9))
