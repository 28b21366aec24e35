"""Estimate of a study's time and cost, from its finished trials, trials of similar studies or a short pilot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.driver.prepare import Prepared, resolve_execution
from orchestrator.execution.gpu_sharing import choose_gpus_per_trial
from orchestrator.execution.resources import Slots, count_gpus, needs_slot, num_slots
from orchestrator.ledger.durations import took_seconds
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.identity import compute_identity
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.trial_checks import check_trials
from orchestrator.planning.works import Work
from trainables.config import StageConfig, TrialConfig, read_trial_config
from trainables.cpus import count_cpus
from trainables.data_config import DataConfig
from trainables.errors import ConfigError
from trainables.frozen import canonical_json
from trainables.pretraining_config import ContrastivePretraining
from trainables.storage.folder import Folder

#: Maximum number of kinds of trial that a pilot times, to stay short; further kinds get the mean.
MAX_PILOTS = 6
#: Time that all pilots together should take at most, imports and single long steps aside.
PILOT_SECONDS = 30.0
#: Maximum number of other studies on the same storage that are read, and of trials per study.
MAX_LIKE_STUDIES, MAX_LIKE_TRIALS = 5, 100
#: Time to start Ray and to import packages in the first workers, measured on 2 cores (10–20 s).
STARTUP_SECONDS = 15.0
#: Folders of the predictions of a trial, of any task.
_STORED = ("predictions/", "cases/")


@dataclass(frozen=True)
class Estimate:
    """Estimated time and cost of the open stages and trials. ``source`` names the origin of the figures."""

    source: str
    seconds_per_trial: float | None
    work_seconds: float | None
    wall_seconds: float | None
    gpu_hours: float | None
    slots: int
    #: ``gpu_hours`` times ``execution.price_per_gpu_hour``, None if either is unknown.
    money: float | None = None
    #: Signature of every planned stage, also of complete ones → seconds, as far as they are known.
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    #: Size of the predictions of all open trials, None if no pilot was made and no trial has finished.
    stored_bytes: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def estimate(prepared: Prepared, *, allow_pilot: bool) -> Estimate:
    """Return the estimate for all open stages and trials on this machine, without regard to the budget.

    Args:
        prepared: study with its plan.
        allow_pilot: whether to time a few steps per kind of trial if no trial has finished yet (imports torch, takes
            some seconds).
    """
    slots, gpus = _count_slots(prepared)
    todo = prepared.actions.open + prepared.actions.held_back
    todo += tuple(prepared.search.make_example_trials() if prepared.search else ())
    price = prepared.study.execution.price_per_gpu_hour
    stages = _time_finished_stages(prepared)
    if not todo:
        return Estimate("nothing is open", None, 0.0, 0.0, 0.0, slots, None if price is None else 0.0, stages)
    source, seconds = _from_ledgers(prepared, todo, on_gpu=gpus > 0)
    each_bytes = _find_stored_bytes(prepared)
    if seconds is None and allow_pilot:
        source, seconds, each_bytes = time_pilot(prepared, todo)
    source += ", as if nothing was stopped early" if prepared.study.stops_early else ""
    if seconds is None:
        source = "unknown: no trial has finished, and no pilot was made"
        return Estimate(source, None, None, None, None, slots, stage_seconds=stages)
    timed = list(zip(todo, seconds, strict=True))
    trials = [took for work, took in timed if work.kind == "trial"]
    total = sum(seconds)
    return Estimate(
        source=source,
        seconds_per_trial=sum(trials) / len(trials) if trials else None,
        work_seconds=total,
        wall_seconds=STARTUP_SECONDS + max(total / slots, _critical_path(todo, seconds)),
        gpu_hours=total * gpus / 3600,
        slots=slots,
        money=None if price is None else total * gpus / 3600 * price,
        stage_seconds=stages | {work.signature: took for work, took in timed if work.kind == "stage"},
        stored_bytes=None if each_bytes is None else int(each_bytes * len(trials)),
    )


def _find_stored_bytes(prepared: Prepared) -> float | None:
    """Return the mean size of the predictions of the first complete trials, None if there are none."""
    first = {trial.signature for trial in prepared.plan.trials[:MAX_LIKE_TRIALS]}
    records = prepared.ledger.records("trial", signatures=first, states=(COMPLETE,))
    sizes = [
        sum(about["bytes"] for name, about in record.result["files"].items() if name.startswith(_STORED))
        for record in records
        if record.result is not None
    ]
    return sum(sizes) / len(sizes) if sizes else None


def expect_seconds(prepared: Prepared) -> dict[str, float]:
    """Return signature → expected seconds of the open stages and trials, from finished ones of this or a like study.

    Empty if there are none: no pilot is made.
    """
    todo = prepared.actions.open
    if not todo:
        return {}
    _, seconds = _from_ledgers(prepared, todo, on_gpu=_count_slots(prepared)[1] > 0)
    return {} if seconds is None else {work.signature: took for work, took in zip(todo, seconds, strict=True)}


def _from_ledgers(prepared: Prepared, todo: Sequence[Work], *, on_gpu: bool) -> tuple[str, list[float] | None]:
    """Return the source, and per stage or trial its expected seconds; None if no ledger has a trial to go by."""
    source, seconds = _from_finished(prepared, todo)
    return (source, seconds) if seconds is not None else time_like_studies(prepared, todo, on_gpu=on_gpu)


def _time_finished_stages(prepared: Prepared) -> dict[str, float]:
    """Return signature → seconds of the planned stages that are complete."""
    planned = {stage.signature for stage in prepared.plan.stages}
    records = prepared.ledger.records("stage", signatures=planned, states=(COMPLETE,)) if planned else []
    return {record.signature: took_seconds(record) for record in records if record.result is not None}


def _critical_path(todo: Sequence[Work], seconds: Sequence[float]) -> float:
    """Return the seconds of the longest way from a stage that nothing waits before to a trial."""
    took = {work.signature: cost for work, cost in zip(todo, seconds, strict=True)}
    ends: dict[str, float] = {}
    for work in sorted(todo, key=lambda work: (work.kind != "stage", len(work.needs))):  # chains from their first step
        ends[work.signature] = took[work.signature] + max((ends.get(need, 0.0) for need in work.waits_for), default=0.0)
    return max(ends.values())


def _count_slots(prepared: Prepared) -> tuple[int, float]:
    """Return how many trials fit on this machine at once, and how many GPUs each takes."""
    execution = prepared.study.execution
    num_gpus = count_gpus(execution)
    gpus = execution.gpus_per_trial
    if gpus == "auto" and num_gpus:
        records = [each for kind in ("stage", "trial") for each in prepared.ledger.records(kind, states=(COMPLETE,))]
        works, size = prepared.actions.open + prepared.actions.held_back, execution.evaluation_batch_size
        todo = [work for work in works if needs_slot(execution, work)]
        gpus = choose_gpus_per_trial(todo, records, evaluation_batch_size=size).gpus
    elif gpus == "auto":
        gpus = 0.0
    slots = Slots(cpus=execution.cpus_per_trial, gpus=gpus, max_concurrent=execution.max_concurrent_trials)
    # Trials that need GPUs which this machine lacks will run on a cluster: as many at once as this machine has cores.
    return num_slots({"CPU": count_cpus(), "GPU": num_gpus or math.inf}, slots), gpus


def _from_finished(prepared: Prepared, todo: Sequence[Work]) -> tuple[str, list[float] | None]:
    """Return the source, and per stage or trial the mean seconds of finished ones of the same name, else of all.

    The seconds are None if no trial has finished.
    """
    durations: dict[str, list[float]] = {}
    num_trials = 0
    for kind in ("trial", "stage"):
        for record in prepared.ledger.records(kind, states=(COMPLETE,)):
            if record.result is not None:
                took = took_seconds(record)
                durations.setdefault(kind, []).append(took)
                durations.setdefault(record.config["name"], []).append(took)
                num_trials += kind == "trial"
    if not num_trials:
        return "", None
    known = [durations.get(work.name) or durations.get(work.kind) or durations["trial"] for work in todo]
    return f"{num_trials} finished trials", [sum(took) / len(took) for took in known]


def time_like_studies(prepared: Prepared, todo: Sequence[Work], *, on_gpu: bool) -> tuple[str, list[float] | None]:
    """Return the source, and per stage or trial the mean seconds of the same kind in other studies on the storage.

    The seconds are None if no trial of the same kind has finished there.
    """
    kinds = [_kind_of(work, prepared) for work in todo]
    durations: dict[str, list[float]] = {}
    found = []
    for ledger in _find_other_ledgers(prepared):
        trials = {row["signature"] for row in ledger.read_plan()["trials"][:MAX_LIKE_TRIALS]}
        known = len(durations)
        for record in ledger.records("trial", signatures=trials, states=(COMPLETE,)):
            try:
                kind = _kind_of_trial(read_trial_config(record.config["config"]))
            except ConfigError:
                continue  # of another version of this package, which may have taken another time
            was_on_gpu = record.result is not None and record.result["environment"]["device"] != "cpu"
            if kind in kinds and was_on_gpu == on_gpu:
                durations.setdefault(kind, []).append(took_seconds(record))
        found += [ledger.study] * (len(durations) > known)
    if not durations:
        return "", None
    means = {kind: sum(took) / len(took) for kind, took in durations.items()}
    mean = sum(means.values()) / len(means)
    source = f"{sum(map(len, durations.values()))} finished trials of a like study ({', '.join(found)})"
    return source, [means.get(kind, mean) for kind in kinds]


def _find_other_ledgers(prepared: Prepared) -> list[Ledger]:
    """Return the ledgers of other studies of the same images on the same storage, latest run first."""
    storage, data = prepared.ledger.storage, prepared.about["data"]["fingerprint"]
    found = []
    for name in Folder(storage).children():
        if name != prepared.study.study and (Folder(storage) / name).is_intact("plan.json"):
            ledger = Ledger(storage, name)
            plan = ledger.read_plan()
            if plan["data"]["fingerprint"] == data:
                found.append((plan["written_ms"], name))
    return [Ledger(storage, name) for _, name in sorted(found, reverse=True)[:MAX_LIKE_STUDIES]]


def time_pilot(prepared: Prepared, todo: Sequence[Work]) -> tuple[str, list[float], float]:
    """Return the source, the seconds of every stage or trial, and the mean size of a trial's predictions in bytes."""
    from trainables.pilot import time_trial  # imports torch

    check_trials(prepared.open_configs, prepared.inputs)  # the pilot times only some of them
    execution = resolve_execution(prepared.study)
    kinds = {_kind_of(work, prepared): work for work in reversed(todo)}  # the first of each kind
    timed = list(kinds.items())[-MAX_PILOTS:][::-1]
    each = PILOT_SECONDS / len(timed)
    timings = {key: time_trial(_as_trial(work, prepared), execution, max_seconds=each) for key, work in timed}
    mean = sum(t.trial_seconds for t in timings.values()) / len(timings)
    seconds = []
    for work in todo:
        timing = timings.get(_kind_of(work, prepared))
        if isinstance(work.config, StageConfig):
            epoch = timing.epoch_seconds if timing else mean
            seconds.append(epoch * _count_passes(work.config, _as_trial(work, prepared).data, prepared))
        else:
            seconds.append(timing.trial_seconds if timing else mean)
    return (
        f"a pilot of a few steps of {len(timings)} of {len(kinds)} kinds of trials and stages on this machine",
        seconds,
        sum(timing.stored_bytes for timing in timings.values()) / len(timings),
    )


def _count_passes(stage: StageConfig, data: DataConfig, prepared: Prepared) -> float:
    """Return how many epochs of a trial on ``data`` a stage trains for: one per view and as many as it has images."""
    step, num_images = stage.pretraining, len(prepared.inputs.dataset(data).splits["train"])
    own = sum(len(source.splits["train"]) for source in prepared.inputs.list_sources(step, data)) or num_images
    views = 2 if isinstance(step, ContrastivePretraining) else 1
    return views * step.epochs * own / num_images


def _as_trial(work: Work, prepared: Prepared) -> TrialConfig:
    """Return a trial whose epochs take the time of a stage's: the study's images have the size of those of a step."""
    if isinstance(work.config, TrialConfig):
        return work.config
    trial = next(trial for trial in prepared.plan.trials if work.signature in trial.needs)
    assert isinstance(trial.config, TrialConfig)
    return TrialConfig(data=trial.config.data, model=work.config.model)


def _kind_of(work: Work, prepared: Prepared) -> str:
    return _kind_of_trial(_as_trial(work, prepared))


def _kind_of_trial(config: TrialConfig) -> str:
    """Return a key of the settings that determine a trial's time: data, network, augmentation, training, evaluation."""
    parts = [config.data, config.model, config.augmentation, config.training, config.evaluation]
    return canonical_json([compute_identity(part) | {"split_seed": None} for part in parts])
