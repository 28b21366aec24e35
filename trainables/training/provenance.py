"""Provenance of a trial's or stage's run: times, CPU, memory, device and versions."""

from __future__ import annotations

import platform
import resource
import sys
import time
from importlib.metadata import version
from typing import Any, NamedTuple

import torch

from trainables.config import Execution
from trainables.cpus import count_cpus
from trainables.process_usage import sum_cpu_seconds
from trainables.training.acceleration import Choice
from trainables.training.loop import Outcome

#: GPU memory of a process in MiB that torch does not reserve: context, kernels, libraries. Assumption: not measured.
GPU_CONTEXT_MIB = 600.0


class Start(NamedTuple):
    """Start of a call on two clocks: the date, and one that neither a clock step nor a suspended machine moves.

    Beside them the CPU time that the process had used by then.
    """

    wall_ms: int
    monotonic_seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> Start:
        """Return this moment."""
        return cls(int(time.time() * 1000), time.monotonic(), sum_cpu_seconds())


def describe_run(
    signature: str, started: Start, outcome: Outcome, device: torch.device, choice: Choice, execution: Execution
) -> dict[str, Any]:
    """Return times, epochs, CPU utilisation, peak memory, device and versions for ``result.json``."""
    seconds = time.monotonic() - started.monotonic_seconds
    # ru_maxrss is KiB on Linux and bytes on macOS.
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "signature": signature,
        "started_ms": started.wall_ms,
        "finished_ms": int(time.time() * 1000),
        "duration_seconds": round(seconds, 3),
        "epochs": outcome.epochs,
        "best_epoch": outcome.best_epoch,
        **({} if outcome.confidence_epoch is None else {"confidence_epoch": outcome.confidence_epoch}),
        # Of one core, as top counts: two busy threads make 200.
        "cpu_utilization_percentage": round(100 * (sum_cpu_seconds() - started.cpu_seconds) / seconds, 1),
        "peak_rss_mib": round(rss, 1),
        **measure_gpu_memory(device),
        "environment": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "num_threads": torch.get_num_threads(),
            "num_cpus": count_cpus(),
            **choice.model_dump(),
            "acceleration": "off" if execution.acceleration is None else "probe",
            "evaluation_batch_size": execution.evaluation_batch_size,
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "python": platform.python_version(),
        },
    }


def reset_gpu_peak(device: torch.device) -> None:
    """Reset the peak of GPU memory, which an earlier trial of this process or a probe may have raised."""
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def measure_gpu_memory(device: torch.device) -> dict[str, float]:
    """Return this process's peak GPU memory and the GPU's total memory in MiB; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    peak, total = torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    return {
        "peak_gpu_memory_mib": round(peak / 2**20 + GPU_CONTEXT_MIB, 1),
        "gpu_memory_mib": round(total / 2**20, 1),
    }
