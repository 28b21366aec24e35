"""What a study will take: from its finished trials, or from a short pilot; always saying which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.identity import canonical_json, compute_identity
from orchestrator.plan import Work
from orchestrator.prepare import Prepared, resolve_execution
from orchestrator.reconcile import COMPLETE
from trainables.config import StageConfig, TrialConfig

#: More pilots than this would no longer be short; further kinds of trial take the mean.
MAX_PILOTS = 6
#: Start of Ray and of the first workers' imports, measured on 2 cores (10–20 s).
STARTUP_SECONDS = 15.0


@dataclass(frozen=True)
class Estimate:
    """Cost of what is open. ``source`` says where the figures come from."""

    source: str
    seconds_per_trial: float | None
    work_seconds: float | None
    wall_seconds: float | None
    gpu_hours: float | None
    slots: int

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def estimate(prepared: Prepared, *, allow_pilot: bool) -> Estimate:
    """Return the estimate for all open work of a study, on this machine's resources.

    Args:
        prepared: the plan.
        allow_pilot: time a few steps per kind of trial when none has finished yet (imports torch, some seconds).
    """
    slots, gpus = _count_slots(prepared)
    todo = prepared.actions.open + tuple(prepared.search.stand_ins() if prepared.search else ())
    if not todo:
        return Estimate("nothing is open", None, 0.0, 0.0, 0.0, slots)
    source, seconds = _from_finished(prepared, todo)
    if seconds is None and allow_pilot:
        source, seconds = _from_pilot(prepared, todo)
    if seconds is None:
        return Estimate("unknown: no trial has finished, and no pilot was made", None, None, None, None, slots)
    trials = [took for work, took in zip(todo, seconds, strict=True) if work.kind == "trial"]
    total = sum(seconds)
    return Estimate(
        source=source,
        seconds_per_trial=sum(trials) / len(trials) if trials else None,
        work_seconds=total,
        wall_seconds=STARTUP_SECONDS + max(total / slots, _critical_path(todo, seconds)),
        gpu_hours=total * gpus / 3600,
        slots=slots,
    )


def _critical_path(todo: Sequence[Work], seconds: Sequence[float]) -> float:
    took = {work.signature: cost for work, cost in zip(todo, seconds, strict=True)}
    return max(took[work.signature] + max((took.get(need, 0.0) for need in work.needs), default=0.0) for work in todo)


def _count_slots(prepared: Prepared) -> tuple[int, float]:
    """Return how many trials fit on this machine at once, and the GPUs each takes."""
    execution = prepared.study.execution
    gpus = execution.gpus_per_trial
    if gpus == "auto":
        gpus = 0.0 if execution.device == "cpu" or not os.path.exists("/dev/nvidia0") else 1.0
    if execution.max_concurrent_trials is not None:
        return execution.max_concurrent_trials, gpus
    return max(1, int((os.cpu_count() or 1) / execution.cpus_per_trial)), gpus


def _from_finished(prepared: Prepared, todo: Sequence[Work]) -> tuple[str, list[float] | None]:
    """Mean duration of the finished trials of the same arm, else of all; stages likewise."""
    durations: dict[str, list[float]] = {}
    num_trials = 0
    for kind in ("trial", "stage"):
        for record in prepared.ledger.records(kind, states=(COMPLETE,)):
            if record.result is not None:
                took = record.result["duration_seconds"]
                durations.setdefault(kind, []).append(took)
                durations.setdefault(record.config["name"], []).append(took)
                num_trials += kind == "trial"
    if not num_trials:
        return "", None
    known = [durations.get(work.name) or durations.get(work.kind) or durations["trial"] for work in todo]
    return f"{num_trials} finished trials", [sum(took) / len(took) for took in known]


def _from_pilot(prepared: Prepared, todo: Sequence[Work]) -> tuple[str, list[float]]:
    from trainables.pilot import time_trial  # imports torch

    execution = resolve_execution(prepared.study)
    timings: dict[str, Any] = {}
    for work in todo:
        key = _kind_of(work)
        if key not in timings and len(timings) < MAX_PILOTS:
            timings[key] = time_trial(_as_trial(work), execution)
    mean = sum(t.trial_seconds for t in timings.values()) / len(timings)
    seconds = []
    for work in todo:
        timing = timings.get(_kind_of(work))
        if isinstance(work.config, StageConfig):
            # Two views of every image: two images' worth of training each epoch.
            epoch = timing.epoch_seconds if timing else mean
            seconds.append(2.0 * epoch * work.config.pretraining.epochs)
        else:
            seconds.append(timing.trial_seconds if timing else mean)
    return f"a pilot of a few steps of {len(timings)} kinds of work on this machine", seconds


def _as_trial(work: Work) -> TrialConfig:
    if isinstance(work.config, TrialConfig):
        return work.config
    return TrialConfig(data=work.config.data, model=work.config.model)


def _kind_of(work: Work) -> str:
    """What decides the time of a step: data, network, augmentation, batch size, evaluation."""
    config = _as_trial(work)
    parts = [config.data, config.model, config.augmentation, config.training, config.evaluation]
    return canonical_json([compute_identity(part) for part in parts])
