"""Memory format, precision and ``torch.compile``, chosen by a short probe on the real network and batch.

The choice changes how sums are rounded. It is therefore made once per network, batch size and device, stored in the
ledger and used by all trials of a study, which stay comparable. Without a probe a rule decides
(``default_choice``). Measured on CPUs only so far: none of this has run on a GPU.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset
from trainables.errors import CheckpointError, StorageError
from trainables.frozen import Frozen
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.storage.folder import Folder
from trainables.storage.patient_lock import locked

#: Least speed-up over the default for another choice: two timings of one step differ by a few per cent.
MIN_GAIN = 1.1
#: Shortest training for which compiling is tried, since compiling takes 10 s to minutes. An assumption.
COMPILE_ABOVE_SECONDS = 120.0
#: Untimed steps; then seconds of timed steps, with their least and largest number. The fastest timed step counts.
_WARMUP_STEPS, _TIMED_SECONDS, _MIN_STEPS, _MAX_STEPS = 2, 0.5, 5, 50

Clock = Callable[[], float]
MemoryFormat = Literal["contiguous", "channels_last"]


class Choice(Frozen):
    """Memory format, precision and compiling with which a network runs."""

    memory_format: MemoryFormat = "contiguous"
    precision: Literal["float32", "bfloat16"] = "float32"
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the forward pass; bfloat16 runs under autocast."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def place(self, model: Classifier) -> Classifier:
        """Convert the weights of ``model`` to the memory format in place; return it."""
        return model.to(memory_format=torch.channels_last) if self.memory_format == "channels_last" else model

    def build_forward(self, forward: Callable[[Tensor], Tensor], batch_size: int) -> Callable[[Tensor], Tensor]:
        """Return the forward pass of training: ``forward``, a model or a method of one, compiled if it is chosen.

        A batch of another size (the last one) runs uncompiled.
        """
        if not self.compiled:
            return forward
        compiled = torch.compile(forward, dynamic=False)
        return lambda images: compiled(images) if len(images) == batch_size else forward(images)


class Timing(Frozen):
    """Measured times of one candidate; a failed candidate has ``failure`` instead."""

    choice: Choice
    step_seconds: float | None = None
    compile_seconds: float = 0.0
    failure: str | None = None

    def total_seconds(self, steps: int) -> float:
        """Return the seconds of a training of ``steps`` optimiser steps; infinite for a failed candidate."""
        return float("inf") if self.step_seconds is None else self.compile_seconds + steps * self.step_seconds


class Decision(Frozen):
    """A choice and the timings that it is based on; the first timing is that of the default."""

    choice: Choice
    key: dict[str, Any]
    timings: tuple[Timing, ...]
    planned_steps: int


def resolve_memory_format(config: ModelConfig, model: Classifier, device: torch.device) -> MemoryFormat:
    """Return ``model.memory_format`` of the study; for auto what is faster as a rule, which depends on the network.

    channels_last is taken on GPUs, and on CPUs for networks with depthwise convolutions, which are 1.4 to 2.7 times
    as fast in it (docs/networks.md). Networks of volumes are contiguous: channels_last is a format of images.
    """
    if model.mean.ndim > 4:
        return "contiguous"
    if config.memory_format != "auto":
        return config.memory_format
    return "channels_last" if device.type == "cuda" or model.has_depthwise_convolutions else "contiguous"


def default_choice(config: ModelConfig, model: Classifier, precision: torch.dtype, device: torch.device) -> Choice:
    """Return the choice without a probe: the memory format of ``resolve_memory_format``, never compiled."""
    return Choice(
        memory_format=resolve_memory_format(config, model, device),
        precision="bfloat16" if precision == torch.bfloat16 else "float32",
    )


def list_candidates(default: Choice, *, any_precision: bool, any_format: bool = True) -> list[Choice]:
    """Return the uncompiled candidates, the default first.

    Args:
        default: choice of the device without a probe.
        any_precision: whether to try both precisions: on a GPU, if the trial has ``training.precision: auto``.
        any_format: whether to try both memory formats: if the trial has ``model.memory_format: auto``.
    """
    formats: tuple[MemoryFormat, ...] = ("contiguous", "channels_last") if any_format else (default.memory_format,)
    precisions: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    everything = [
        Choice(memory_format=memory_format, precision=precision)
        for memory_format in formats
        for precision in (precisions if any_precision else (default.precision,))
    ]
    return [default, *(choice for choice in everything if choice != default)]


def choose(timings: Sequence[Timing], *, planned_steps: int) -> Choice:
    """Return the choice with the shortest training, compiling included.

    Args:
        timings: timings of the candidates, the default first. Others count only if their step is at least ``MIN_GAIN``
            times as fast.
        planned_steps: optimiser steps of one trial. Every trial compiles again, in its own process.
    """
    default = timings[0]
    if default.step_seconds is None:
        return default.choice
    faster = [
        timing
        for timing in timings
        if timing.step_seconds is not None and timing.step_seconds * MIN_GAIN <= default.step_seconds
    ]
    return min([default, *faster], key=lambda timing: timing.total_seconds(planned_steps)).choice


def probe(
    config: TrialConfig, data: Dataset, device: torch.device, *, default: Choice, clock: Clock = time.perf_counter
) -> Decision:
    """Time a few steps of each candidate on this trial's network and batch; return the decision.

    Compiling is tried with the best uncompiled choice only, if the training is long enough. The probe draws from
    torch's global generator.

    Args:
        config: config of the trial.
        data: data set; its first training images are the batch.
        device: device of the training.
        default: choice of the device without a probe.
        clock: function that returns the time in seconds.
    """
    key = describe_key(config, data, device)
    images = config.training.label_fraction * len(data.splits["train"])
    steps = config.training.epochs * math.ceil(images / config.training.batch_size)
    bench = _StepTimer(config, data, device, clock)
    # On a CPU bfloat16 is 1.7 to 2.3 times as fast, but unreliable: some gradients are left uninitialised
    # (oneDNN 3.13, a strided convolution over one pixel; docs/log.md, 2026-11-22).
    any_precision = config.training.precision == "auto" and device.type == "cuda"
    any_format = config.model.memory_format == "auto"
    candidates = list_candidates(default, any_precision=any_precision, any_format=any_format)
    # Two rounds over all candidates, since the load of the machine varies.
    first, second = ([bench.time(choice) for choice in candidates] for _ in range(2))
    timings = [_faster(*pair) for pair in zip(first, second, strict=True)]
    best = choose(timings, planned_steps=steps)
    seconds = next(timing for timing in timings if timing.choice == best).total_seconds(steps)
    if COMPILE_ABOVE_SECONDS < seconds < float("inf"):
        timings.append(bench.time(best.model_copy(update={"compiled": True})))
    return Decision(choice=choose(timings, planned_steps=steps), key=key, timings=tuple(timings), planned_steps=steps)


class _StepTimer:
    """Timer of optimiser steps over one batch of the trial."""

    def __init__(self, config: TrialConfig, data: Dataset, device: torch.device, clock: Clock) -> None:
        self._config, self._device, self._clock = config, device, clock
        train = data.splits["train"]
        rows = slice(0, min(config.training.batch_size, len(train)))
        self._images = torch.from_numpy(train.images[rows].copy()).to(device)
        self._labels = torch.from_numpy(train.labels[rows].copy()).to(device)
        self._num_classes = data.num_classes

    def time(self, choice: Choice) -> Timing:
        """Return the seconds of a step and of compiling, which is the excess of the first step over the fastest."""
        try:
            seconds = self._time_steps(choice)
        except RuntimeError as error:  # torch raises it for no memory, no kernel for this format, no compiler
            return Timing(choice=choice, failure=f"{type(error).__name__}: {str(error)[:500]}")
        step = min(seconds[_WARMUP_STEPS:])
        compiling = max(0.0, seconds[0] - step) if choice.compiled else 0.0
        return Timing(choice=choice, step_seconds=step, compile_seconds=compiling)

    def _time_steps(self, choice: Choice) -> list[float]:
        _, channels, _, size = self._images.shape
        model = build_model(self._config.model, num_classes=self._num_classes, channels=channels, image_size=size).to(
            self._device
        )
        model = choice.place(model).train()
        forward = choice.build_forward(model, len(self._images))
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
        seconds: list[float] = []
        while not _is_enough(seconds[_WARMUP_STEPS:]):
            began = self._now()
            with torch.autocast(self._device.type, choice.dtype, enabled=choice.precision != "float32"):
                logits = forward(model.normalise(self._images))
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(logits.float(), self._labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            seconds.append(self._now() - began)
        return seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return self._clock()


def _faster(first: Timing, second: Timing) -> Timing:
    """Return the faster of two timings of one choice, or a failed one if either failed."""
    if first.step_seconds is None or second.step_seconds is None:
        return first if first.step_seconds is None else second
    return first if first.step_seconds <= second.step_seconds else second


def _is_enough(seconds: Sequence[float]) -> bool:
    return len(seconds) >= _MIN_STEPS and (sum(seconds) >= _TIMED_SECONDS or len(seconds) >= _MAX_STEPS)


def describe_key(config: TrialConfig, data: Dataset, device: torch.device) -> dict[str, Any]:
    """Return the conditions for which a decision is valid: network, images, batch size, precision, device, torch."""
    _, channels, _, size = data.splits["train"].images.shape
    return {
        "model": config.model.model_dump(mode="json"),
        "image_size": size,
        "channels": channels,
        "batch_size": config.training.batch_size,
        "precision": config.training.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}",
        "torch": torch.__version__,
    }


def choose_acceleration(
    config: TrialConfig,
    model: Classifier,
    data: Dataset,
    execution: Execution,
    *,
    device: torch.device,
    precision: torch.dtype,
) -> Choice:
    """Return memory format, precision and compiling: the study's decision, or without probes what a rule says.

    Args:
        config: config of the trial.
        model: its network.
        data: its data set.
        execution: with the folder of the study's probes, or none.
        device: device of the training.
        precision: what ``training.precision`` means on it.

    Raises:
        CheckpointError: if the stored decision is for other conditions.
        StorageError: if it is damaged, or the storage cannot be read or written.
    """
    default = default_choice(config.model, model, precision, device)
    if execution.acceleration is None:
        return default

    def measure() -> Decision:
        # The trial's own draws go on as if there were no probe.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return probe(config, data, device, default=default)

    decision = decide(
        Folder(execution.acceleration),
        describe_key(config, data, device),
        measure,
        lock=execution.cache_dir.expanduser() / "acceleration.lock",
    )
    return decision.choice


def decide(folder: Folder, key: dict[str, Any], measure: Callable[[], Decision], *, lock: Path) -> Decision:
    """Return the study's decision for ``key``. The first trial measures and stores it, all others read it.

    Args:
        folder: the study's folder of decisions, ``<hash of the key>/<time>-<process>.<copy>.json``; the earliest is
            valid. Each is stored twice, since nothing else records how complete trials were run.
        key: conditions of the decision (``describe_key``).
        measure: function that runs the probe.
        lock: lock file on this node; one process at a time measures, undisturbed by others.

    Raises:
        CheckpointError: if the stored decision is for another key.
        StorageError: if both copies are damaged, or the storage cannot be read or written.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / name
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock):
        if not _list_decisions(place):
            decision = measure()
            if not _list_decisions(place):  # another node may have been faster
                moment = f"{time.time_ns():020d}-{os.getpid()}"
                for copy in ("a", "b"):
                    place.write_json(f"{moment}.{copy}.json", decision.model_dump(mode="json"))
    earliest = _find_earliest(place)
    found = Decision.model_validate(place.read_json(earliest))
    if found.key != key:
        raise CheckpointError(
            f"read the decision {earliest} in {place.uri}: it is for {found.key}, expected {key}; remove the folder"
        )
    return found


def _list_decisions(place: Folder) -> list[str]:
    return sorted(child for child in place.children() if child.endswith(".json"))


def _find_earliest(place: Folder) -> str:
    """Return the file name of an intact copy of the earliest decision."""
    names = _list_decisions(place)
    first = names[0].partition(".")[0]
    intact = [name for name in names if name.startswith(f"{first}.") and place.is_intact(name)]
    if not intact:
        raise StorageError(
            f"read the decision {names[0]} in {place.uri}, how to run the trials of this study, and found it damaged, "
            "its copy too; remove the folder and run again with --retry-failed: it is made anew, perhaps otherwise"
        )
    return intact[0]
