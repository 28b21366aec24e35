"""Number of trials that share a GPU, from the memory that finished ones have taken: pure functions over ledger records.

Nothing is guessed: until every kind of open stage and trial has been measured once, a trial has a GPU to itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.ledger.record import Record
from orchestrator.planning.identity import compute_identity
from orchestrator.planning.works import Work
from trainables.frozen import canonical_json

#: Most trials on one GPU: beyond a few they take turns instead of sharing (assumption; not measured).
MAX_TRIALS_PER_GPU = 8
#: Share of a GPU's memory that stays free for fragmentation, a desktop or other processes (assumption).
MEMORY_MARGIN = 0.15
#: Regularisers that need additional memory: a second copy of the weights, densities of every pixel.
_HUNGRY_REGULARISERS = frozenset({"sam", "stain_normalisation"})


@dataclass(frozen=True)
class GpuShare:
    """Share of a GPU that one stage or trial takes, and the reason in words for the user."""

    gpus: float
    reason: str


def choose_gpus_per_trial(
    todo: Sequence[Work],
    records: Iterable[Record],
    *,
    evaluation_batch_size: int,
    gpu_memory_mib: float | None = None,
    max_per_gpu: int = MAX_TRIALS_PER_GPU,
    margin: float = MEMORY_MARGIN,
) -> GpuShare:
    """Return the share of a GPU in which every open stage and trial fits, 1.0 until all of their kinds were measured.

    Args:
        todo: open stages and trials; one share serves all of them.
        records: records of the ledger, stages and trials.
        evaluation_batch_size: setting of the run to come; measurements with a larger one are used too, as safe.
        gpu_memory_mib: memory of the smallest GPU; None: that of the smallest on which a kind was measured.
        max_per_gpu: largest number of trials on one GPU, at least 1.
        margin: share of the memory that stays free, in [0, 1).
    """
    measured = _measure(records, evaluation_batch_size)
    kinds = {describe_kind(work.kind, compute_identity(work.config)): work.name for work in todo}
    unknown = [name for kind, name in kinds.items() if kind not in measured]
    if not kinds:
        return GpuShare(1.0, "nothing is open")
    if unknown:
        of = f"{len(unknown)} of {len(kinds)} kinds of work"
        return GpuShare(1.0, f"one trial a GPU: the memory of {of} is not known yet ({unknown[0]} is one)")
    peak, memory = max(measured[kind][0] for kind in kinds), min(measured[kind][1] for kind in kinds)
    memory = memory if gpu_memory_mib is None else gpu_memory_mib
    fitting = int(memory * (1.0 - margin) / peak)
    count = max(1, min(fitting, max_per_gpu))
    why = f"the largest of {len(kinds)} kinds of work took {peak:,.0f} of {memory:,.0f} MiB"
    limit = f", at most {max_per_gpu}" if fitting > max_per_gpu else f", {margin:.0%} stay free"
    return GpuShare(round_share(count), f"{_count(count)} a GPU: {why}{limit}")


def round_share(count: int) -> float:
    """Return 1 / ``count`` rounded down to Ray's unit of 0.0001, so that ``count`` of them are never more than 1."""
    return math.floor(10_000 / count) / 10_000


def compute_next_share(gpus: float) -> float:
    """Return the share of a GPU for trials that had no memory with ``gpus`` of one: half as many trials on it."""
    return round_share(max(1, int(1 / gpus + 1e-9) // 2))


def describe_kind(kind: str, identity: dict[str, Any]) -> str:
    """Return the settings that decide the memory of a stage or trial, as canonical JSON.

    These are network, images, policy, batch size, precision, optimiser…

    Args:
        kind: stage or trial.
        identity: identity of its config, as ``config.json`` holds it.
    """
    parts: dict[str, Any] = {"kind": kind, "model": identity["model"], "data": identity["data"]}
    if kind == "stage":
        parts["pretraining"] = identity["pretraining"]
    else:
        training = identity["training"]
        parts["augmentation"] = identity["augmentation"]["kind"]
        parts["regulariser"] = sorted(_list_kinds(identity["regulariser"]) & _HUNGRY_REGULARISERS)
        parts |= {name: training[name] for name in ("batch_size", "precision", "optimiser")}
        if training.get("confidence", {}).get("kind") == "confidnet":  # a second encoder; the others are one output
            parts["confidence"] = "confidnet"
    return canonical_json(parts)


def _list_kinds(regulariser: dict[str, Any]) -> set[str]:
    return {regulariser["kind"], *(name for name, part in regulariser.items() if isinstance(part, dict))}


def _measure(records: Iterable[Record], evaluation_batch_size: int) -> dict[str, tuple[float, float]]:
    """Return kind → largest peak, and memory of the smallest GPU it was measured on, in MiB."""
    measured: dict[str, tuple[float, float]] = {}
    for record in records:
        result = record.result
        if result is None or "peak_gpu_memory_mib" not in result:  # open, or finished on a CPU
            continue
        if result["environment"]["evaluation_batch_size"] < evaluation_batch_size:
            continue
        if result["environment"].get("processes", 1) > 1:
            continue  # the peak of one of the processes, with its share of a batch
        kind = describe_kind(record.kind, record.config["identity"])
        peak, memory = measured.get(kind, (0.0, math.inf))
        measured[kind] = max(peak, result["peak_gpu_memory_mib"]), min(memory, result["gpu_memory_mib"])
    return measured


def _count(count: int) -> str:
    return "one trial" if count == 1 else f"{count} trials"
