from __future__ import annotations

import importlib.util
import os
import sys
import types

import numpy as np
import pytest
import torch

from trainables import process_usage
from trainables.process_usage import UsageSampler

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_cpu_utilisation_is_that_since_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    moments, seconds = iter([100.0, 110.0, 114.0]), iter([1.0, 16.0, 17.0])
    monkeypatch.setattr(process_usage.time, "monotonic", lambda: next(moments))
    monkeypatch.setattr(process_usage, "sum_cpu_seconds", lambda: next(seconds))
    sampler = UsageSampler(CPU)
    used = [sampler.sample()["system/cpu_utilization_percentage"] for _ in range(2)]
    assert used == [150.0, 25.0]  # 15 s in 10 s: one and a half threads; 1 s in 4 s


def read_resident_mib() -> float:
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_is_what_is_resident_now() -> None:
    """Beside what the kernel says at that moment: a difference of two samples also holds what Python gives back."""
    sampler = UsageSampler(CPU)
    held = np.ones(2**23)  # 64 MiB
    assert sampler.sample()["system/rss_mib"] == pytest.approx(read_resident_mib(), abs=8)
    del held
    assert sampler.sample()["system/rss_mib"] == pytest.approx(read_resident_mib(), abs=8)


def test_without_proc_memory_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    monkeypatch.setattr(process_usage, "_PAGES", process_usage.Path(tmp_path) / "statm")
    assert UsageSampler(CPU).sample().keys() == {"system/cpu_utilization_percentage"}


def test_a_gpu_tells_memory_and_utilisation_unless_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refuse(device: torch.device) -> int:
        raise NVMLError("not supported")

    def utilisation() -> float | None:
        found = UsageSampler(GPU).sample()
        assert found["system/gpu_memory_mib"] == 300.0
        return found.get("system/gpu_utilization_percentage")

    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = NVMLError  # type: ignore[attr-defined]
    nvml.__spec__ = importlib.util.spec_from_loader("pynvml", None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300 * 2**20)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 87)
    monkeypatch.setattr(process_usage, "find_spec", lambda name: None)
    assert utilisation() is None
    monkeypatch.setattr(process_usage, "find_spec", importlib.util.find_spec)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert utilisation() == 87.0
    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert utilisation() is None
