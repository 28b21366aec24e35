"""Resources of this machine and of a trial, and how many trials fit, under Ray's names ``CPU`` and ``GPU``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from glob import glob
from itertools import takewhile
from pathlib import Path

from orchestrator.planning.works import Work
from orchestrator.study.execution_config import ExecutionConfig
from trainables.config import StageConfig, TrialConfig
from trainables.cpus import count_cpus
from trainables.errors import StudyError

#: Device files of GPU drivers: NVIDIA, AMD, and either of them under WSL.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
#: NVIDIA GPUs, a file each; parts of one (MIG) have none of their own.
_NVIDIA = "/dev/nvidia[0-9]*"


@dataclass(frozen=True)
class Slots:
    """Resources of one trial, and how many trials may run at once."""

    cpus: float
    gpus: float
    max_concurrent: int | None


@dataclass(frozen=True)
class JointSlots:
    """Number of the processes that train a stage or trial together, and resources of each."""

    num_processes: int
    cpus: float
    gpus: float


def find_local_resources(execution: ExecutionConfig) -> dict[str, float] | None:
    """Return the resources of this machine for local slots, None if all trials are to run in Ray.

    Trials that may take a GPU run in Ray, which divides the GPUs among them, and so does what several processes train.
    """
    if max(execution.processes_per_stage, execution.processes_per_trial) > 1:
        return None
    if not execution.local_executor or has_gpu(execution) or execution.gpus_per_trial not in ("auto", 0):
        return None
    return {"CPU": float(count_cpus()), "GPU": 0.0}


def check_device(execution: ExecutionConfig, configs: Iterable[TrialConfig]) -> None:
    """Check that trials which need a GPU are not run on this machine if it has none.

    Raises:
        StudyError: ``execution.device`` is cuda, or a trial has bfloat16, and there is no GPU.
    """
    if has_gpu(execution):
        return
    if execution.device == "cuda":
        raise StudyError(
            "execution.device: found cuda, and this machine has no GPU; set it to auto or cpu, or join a cluster with "
            "--address"
        )
    if any(config.training.precision == "bfloat16" for config in configs):
        raise StudyError(
            "training.precision: found bfloat16, and this machine has no GPU: on a CPU torch computes wrong gradients; "
            "set it to auto or float32, or join a cluster with --address"
        )


def has_gpu(execution: ExecutionConfig) -> bool:
    """Return whether this machine has a GPU that trials may use, of any maker, without importing torch.

    There is none for them if ``CUDA_VISIBLE_DEVICES`` hides all.
    """
    return execution.device != "cpu" and _list_visible() != [] and any(Path(name).exists() for name in _GPU_DEVICES)


def count_gpus(execution: ExecutionConfig) -> int:
    """Return how many NVIDIA GPUs, or parts of GPUs (MIG), trials may use on this machine, without importing torch."""
    if execution.device == "cpu":
        return 0
    found, visible = len(glob(_NVIDIA)), _list_visible()
    if visible is None or found == 0:
        return found
    is_part = any(name.startswith("MIG-") for name in visible)
    return len(visible) if is_part else min(found, len(visible))


def _list_visible() -> list[str] | None:
    """Return the GPUs that ``CUDA_VISIBLE_DEVICES`` names, None if it is not set.

    As CUDA reads it: what follows a negative number, or one that is no GPU, does not count.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return list(takewhile(lambda name: name.isdecimal() or name.startswith(("GPU-", "MIG-")), names))


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


def is_joint(execution: ExecutionConfig, work: Work) -> bool:
    """Return whether several processes train a stage, or a trial, together, as the study says."""
    if work.kind == "trial":
        return execution.processes_per_trial > 1
    return isinstance(work.config, StageConfig) and execution.processes_per_stage > 1


def needs_slot(execution: ExecutionConfig, work: Work) -> bool:
    """Return whether a slot runs a stage or trial, at least its evaluation."""
    return work.kind == "trial" or not is_joint(execution, work)


def check_joint_fits(resources: Mapping[str, float], slots: JointSlots, *, kind: str) -> None:
    """Raise if the processes of a stage or trial (``kind``) are larger than this machine: Ray would wait for ever.

    Raises:
        StudyError: they ask for more CPUs or GPUs than there are.
    """
    for what, each in (("CPU", slots.cpus), ("GPU", slots.gpus)):
        asked, found = slots.num_processes * each, resources.get(what, 0.0)
        if asked > found:
            raise StudyError(
                f"execution.processes_per_{kind}: {slots.num_processes} processes ask for {asked:g} {what}s together, "
                f"and this machine has {found:g}; ask for fewer, or join a cluster with --address"
            )


def num_joint_slots(resources: Mapping[str, float], slots: JointSlots) -> int:
    """Return how many stages, or trials, of several processes fit at once; at least 1, as ``num_slots``."""
    asked = {"CPU": slots.num_processes * slots.cpus, "GPU": slots.num_processes * slots.gpus}
    fits = [resources.get(what, 0.0) / each for what, each in asked.items() if each]
    return max(1, int(min(fits, default=1.0) + 1e-9))


def num_local_slots(resources: Mapping[str, float], slots: Slots) -> int:
    """Return how many trials the local executor runs at once: as many as CPUs and GPUs allow, up to the maximum."""
    fits = [resources["CPU"] / slots.cpus, *([resources["GPU"] / slots.gpus] if slots.gpus else [])]
    fitting = int(min(fits) + 1e-9)
    return fitting if slots.max_concurrent is None else min(fitting, slots.max_concurrent)


def num_slots(resources: Mapping[str, float], slots: Slots) -> int:
    """Return how many trials fit at once; at least 1, so that an empty autoscaling cluster starts to grow."""
    if slots.max_concurrent is not None:
        return slots.max_concurrent
    fits = [resources.get("CPU", 0.0) / slots.cpus] if slots.cpus else []
    if slots.gpus:
        fits.append(resources.get("GPU", 0.0) / slots.gpus)
    return max(1, int(min(fits, default=1.0) + 1e-9))
