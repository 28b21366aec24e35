from __future__ import annotations

import resource

import pytest
import torch

from trainables.config import Execution
from trainables.training import provenance
from trainables.training.acceleration import Choice
from trainables.training.loop import Outcome


def test_cpu_utilisation_is_cpu_time_over_duration_in_percent_of_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "sum_cpu_seconds", lambda: 40.0)
    monkeypatch.setattr(provenance.time, "monotonic", lambda: 120.0)
    started = provenance.Start(wall_ms=0, monotonic_seconds=100.0, cpu_seconds=10.0)
    told = provenance.describe_run("s", started, Outcome(1, 1), torch.device("cpu"), Choice(), Execution())
    assert told["duration_seconds"] == 20.0
    assert told["cpu_utilization_percentage"] == 150.0  # 30 CPU seconds in 20 seconds: one and a half threads


def test_cpu_time_is_that_of_the_process_and_of_ended_children() -> None:
    sum(number * number for number in range(300_000))
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    expected = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    assert provenance.sum_cpu_seconds() == pytest.approx(expected, abs=0.1)  # the clock's tick is 0.01 s
