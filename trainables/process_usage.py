"""CPU time, memory and GPU that this process uses, sampled where a training reports anyway: no thread, no process."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Memory of this process in pages: total, resident, … (Linux).
_PAGES = Path("/proc/self/statm")


def sum_cpu_seconds() -> float:
    """Return the CPU time of this process, all threads, and of its children that have ended, in seconds."""
    return sum(os.times()[:4])


class UsageSampler:
    """Sampler of what this process has used since the last sample.

    Args:
        device: device of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moment, self._cpu_seconds = time.monotonic(), sum_cpu_seconds()

    def sample(self) -> dict[str, float]:
        """Return ``system/…`` metrics, as far as they can be known here; the first two words are MLflow's.

        ``cpu_utilization_percentage`` since the last sample (100 is one core), ``rss_mib`` now, and on a GPU
        ``gpu_memory_mib``, which torch has reserved for this process, and ``gpu_utilization_percentage`` of the whole
        GPU within the last second, if ``nvidia-ml-py`` is installed.
        """
        moment, cpu_seconds = time.monotonic(), sum_cpu_seconds()
        percentage = 100 * (cpu_seconds - self._cpu_seconds) / max(moment - self._moment, 1e-6)
        self._moment, self._cpu_seconds = moment, cpu_seconds
        found = {"cpu_utilization_percentage": round(percentage, 1), **_measure_memory(), **self._measure_gpu()}
        return {f"system/{name}": value for name, value in found.items()}

    def _measure_gpu(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        import torch  # its user has imported it

        found = {"gpu_memory_mib": round(torch.cuda.memory_reserved(self._device) / 2**20, 1)}
        if find_spec("pynvml") is None:
            return found
        import pynvml

        try:
            return found | {"gpu_utilization_percentage": float(torch.cuda.utilization(self._device))}
        except (pynvml.NVMLError, RuntimeError):  # a part of a GPU (MIG), or a driver that does not tell
            return found


def _measure_memory() -> dict[str, float]:
    try:
        resident = int(_PAGES.read_text().split()[1])
    except FileNotFoundError:  # macOS
        return {}
    return {"rss_mib": round(resident * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)}
