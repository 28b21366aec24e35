"""What a study may take and has taken: trials, wall time, GPU time, money. Execution: never hashed.

What has been taken is counted over all runs of a study, because running again is how a study goes on: otherwise a
budget would be new after every interruption. Trials are counted in the ledger; time lies in ``usage.json`` beside them,
written every ``SAVE_SECONDS`` while a driver executes, so that a killed one has lost no more than that.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from orchestrator.attempts import spent_seconds
from orchestrator.reconcile import ABSENT, COMPLETE, FAILED, STOPPED, Actions
from trainables.errors import LeaseError, StorageError
from trainables.finished import EPOCHS
from trainables.frozen import Frozen, PositiveInt
from trainables.storage import Folder

if TYPE_CHECKING:
    from orchestrator.ledger import Ledger, Record
    from orchestrator.plan import Work

_logger = logging.getLogger(__name__)

USAGE = "usage.json"
#: A driver that is killed has not written down this much of each slot's time.
SAVE_SECONDS = 10.0
#: Limit → how it is said.
_UNITS = {"trials": "trials", "wall_hours": "wall hours", "gpu_hours": "GPU-hours", "money": "money"}


class Budget(Frozen):
    """What all runs of a study may take together; at least one limit."""

    trials: PositiveInt | None = Field(None, description="Trials that have begun, however they ended; not stages.")
    wall_hours: float | None = Field(None, gt=0, le=1e6, description="Hours in which a driver executes the study.")
    gpu_hours: float | None = Field(None, gt=0, le=1e9, description="Of trials and stages, lost attempts included.")
    money: float | None = Field(None, gt=0, le=1e12, description="GPU-hours times price_per_gpu_hour.")

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if not self.limits():
            raise ValueError(f"expected at least one of {', '.join(_UNITS)}")
        return self

    def limits(self) -> dict[str, float]:
        """Return limit → how much of it may be taken."""
        return {name: value for name, value in self if value is not None}


@dataclass(frozen=True)
class Usage:
    """The time that a study has taken, over all its runs."""

    #: While a driver executed.
    wall_seconds: float = 0.0
    #: Of all slots together, while they had work.
    slot_seconds: float = 0.0
    #: The same, times the share of a GPU that each slot holds.
    gpu_seconds: float = 0.0


@dataclass(frozen=True)
class Standing:
    """How a study stands to its budget."""

    #: Limit → how much of it may be taken.
    limits: Mapping[str, float]
    #: Limit → how much of it has been taken.
    taken: Mapping[str, float]
    #: Trials that have begun.
    begun: frozenset[str] = frozenset()

    @property
    def spent(self) -> tuple[str, ...]:
        """The limits that are reached."""
        return tuple(name for name, limit in self.limits.items() if self.taken[name] >= limit)

    def hold_back(self, actions: Actions) -> Actions:
        """Return the actions that the budget has room for; what it has not is ``held_back``.

        A trial that has begun goes on as long as there is time; of new ones there are as many as ``trials`` allows, in
        the plan's order, and only the stages that they need.
        """
        allowed: float = math.inf
        if set(self.spent) - {"trials"}:
            return replace(actions, start=(), resume=(), held_back=actions.open)
        if "trials" in self.limits:
            allowed = self.limits["trials"] - self.taken["trials"]
        kept: set[str] = set()
        for work in actions.open:
            if work.kind == "trial" and (work.signature in self.begun or allowed > 0):
                allowed -= work.signature not in self.begun
                kept |= {work.signature, *work.needs}
        return replace(
            actions,
            start=tuple(work for work in actions.start if work.signature in kept),
            resume=tuple(work for work in actions.resume if work.signature in kept),
            held_back=tuple(work for work in actions.open if work.signature not in kept),
        )

    def begin(self, works: Collection[Work]) -> Standing:
        """Return how the study stands once the trials among ``works`` have begun."""
        new = {work.signature for work in works if work.kind == "trial"} - self.begun
        taken = {**self.taken, "trials": self.taken["trials"] + len(new)}
        return replace(self, taken=taken, begun=self.begun | new)

    def count_held_back(self, *, interrupted: int, missing: int) -> int:
        """Return how many of the trials that are not complete would not start if the study was run again."""
        if set(self.spent) - {"trials"}:
            return interrupted + missing
        if "trials" in self.limits:
            return max(0, missing - max(0, int(self.limits["trials"] - self.taken["trials"])))
        return 0

    def describe(self) -> str:
        """Return how much of each limit has been taken: "3 of 10 trials, 0.25 of 2 GPU-hours"."""
        return ", ".join(
            f"{_format(self.taken[name])} of {_format(limit)} {_UNITS[name]}" for name, limit in self.limits.items()
        )

    def as_json(self) -> dict[str, Any]:
        """Return limits, what has been taken of each, and which are spent, as JSON values."""
        return {"limits": dict(self.limits), "taken": dict(self.taken), "spent": list(self.spent)}


def _format(value: float) -> str:
    """Return a number of at most two decimals, more only where all of them would be zero."""
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def describe_needs(standing: Standing, needs: Mapping[str, float | None]) -> list[str]:
    """Return one line per limit: what is taken, what the rest is estimated to take, and whether that fits.

    Args:
        standing: to the budget.
        needs: limit → what is still to be taken; None where it is not known.
    """
    lines = []
    for name, limit in standing.limits.items():
        taken, more = standing.taken[name], needs[name]
        of = f"{_UNITS[name]}: {_format(taken)} taken"
        if more is None:
            lines.append(f"{of}, of {_format(limit)}; whether the rest fits is not known")
        else:
            fits = "fits" if taken + more <= limit else "does NOT fit"
            lines.append(f"{of} + {_format(more)} to come = {_format(taken + more)} of {_format(limit)}: {fits}")
    return lines


def measure(usage: Usage, *, num_trials: int, price_per_gpu_hour: float | None) -> dict[str, float]:
    """Return limit → how much of it has been taken; ``money`` only where a price is known."""
    hours = usage.gpu_seconds / 3600
    taken = {"trials": float(num_trials), "wall_hours": usage.wall_seconds / 3600, "gpu_hours": hours}
    return taken if price_per_gpu_hour is None else taken | {"money": hours * price_per_gpu_hour}


def read_standing(ledger: Ledger, about: Mapping[str, Any] | None, states: Mapping[str, str]) -> Standing | None:
    """Return how a study stands to its budget, None when it has none.

    Args:
        ledger: of the study.
        about: ``describe_budget``'s.
        states: signature → state of everything in the ledger.

    Raises:
        StorageError: the ledger is damaged.
    """
    if about is None:
        return None
    begun = find_begun(ledger, states) if "trials" in about["limits"] else frozenset[str]()
    price = about["price_per_gpu_hour"]
    taken = measure(read_usage(ledger), num_trials=len(begun), price_per_gpu_hour=price)
    return Standing(about["limits"], taken, begun)


def describe_compute(ledger: Ledger, standing: Standing | None) -> dict[str, str]:
    """Return name → what all runs of a study have taken, in words, and of which budget; what is known of it."""
    facts = {}
    usage = find_usage(ledger)
    if usage is not None:
        hours = [usage.wall_seconds / 3600, usage.slot_seconds / 3600, usage.gpu_seconds / 3600]
        wall, slots, gpus = map(_format, hours)
        facts["taken"] = f"{wall} wall hours, {slots} slot-hours, {gpus} GPU-hours; all runs, lost attempts included"
    return facts if standing is None else facts | {"budget": standing.describe()}


def describe_budget(budget: Budget | None, price_per_gpu_hour: float | None) -> dict[str, Any] | None:
    """Return a budget as ``plan.json`` holds it, for the report."""
    return None if budget is None else {"limits": budget.limits(), "price_per_gpu_hour": price_per_gpu_hour}


def find_begun(ledger: Ledger, states: Mapping[str, str]) -> frozenset[str]:
    """Return the trials that a budget counts: all that have begun, also those that are no longer planned.

    Not those that were only written down as failed because their stage had, or as stopped early because another
    replicate was.
    """
    begun = {name for name in (ledger.root / "trials").children() if states.get(name, ABSENT) != ABSENT}
    failed = [signature for signature in begun if states[signature] == FAILED]
    never = {
        signature
        for signature in failed
        if ledger.folder("trial", signature).read_json("failure.json")["reason"] == "upstream"
    }
    stopped = (signature for signature in begun if states[signature] == STOPPED)
    never |= {signature for signature in stopped if not ledger.folder("trial", signature).exists(EPOCHS)}
    return frozenset(begun - never)


# ------------------------------------------------------------------ time


class Meter:
    """Counts the time of a run on top of what was taken before. May be called from any thread.

    Args:
        before: what the runs before have taken.
        limits: of ``Budget.limits``.
        price_per_gpu_hour: None: there is no price, and no limit of money.
        on_spent: called once, with the number of stages and trials that are not handed out because of the budget.
        clock: seconds; does not go on while the machine is suspended.
    """

    def __init__(
        self,
        before: Usage | None = None,
        *,
        limits: Mapping[str, float] | None = None,
        price_per_gpu_hour: float | None = None,
        on_spent: Callable[[int], None] = lambda number: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits, hourly = limits or {}, price_per_gpu_hour
        self._wall_limit = 3600 * limits.get("wall_hours", math.inf)
        money = limits["money"] / hourly if "money" in limits and hourly is not None else math.inf
        self._gpu_limit = 3600 * min(limits.get("gpu_hours", math.inf), money)
        self.on_spent = on_spent
        #: What a slot of Ray holds.
        self.gpus_per_slot = 0.0
        self._clock, self._lock = clock, threading.Lock()
        self._usage = before or Usage()
        self._since = clock()
        #: Slot → the GPUs it holds, and since when it is counted.
        self._slots: dict[str, tuple[float, float]] = {}
        self._gpus = 0.0

    def report(self, slot: str, *, gpus: float, busy_seconds: float) -> None:
        """Count the time of a slot until its ``end``; what it says itself is right, between reports the clock is.

        Args:
            slot: its name.
            gpus: that it holds; a fraction where several share one.
            busy_seconds: how long it has worked since it began, or since its last ``end``.
        """
        with self._lock:
            self._go_on()
            began = self._since - busy_seconds
            held, counted_from = self._slots.get(slot, (0.0, self._since))
            self._slots[slot] = gpus, began
            self._gpus += gpus - held
            self._add(0.0, counted_from - began, (counted_from - began) * gpus)

    def end(self, slot: str) -> None:
        """Count the time of a slot no more."""
        with self._lock:
            self._go_on()
            self._slots.pop(slot, None)
            self._gpus = sum(held for held, _ in self._slots.values())  # anew: nothing is left of rounding

    def read(self) -> Usage:
        """Return what has been taken until now."""
        with self._lock:
            self._go_on()
            return self._usage

    def seconds_left(self) -> float:
        """Return when the budget will be spent if all slots go on, in seconds; 0 when it is, inf without one."""
        with self._lock:
            self._go_on()
            gpus = max(self._gpus, self.gpus_per_slot)
            gpu_left = self._gpu_limit - self._usage.gpu_seconds
            left = gpu_left / gpus if gpus else math.inf if gpu_left > 0 else 0.0
            return max(0.0, min(self._wall_limit - self._usage.wall_seconds, left))

    def _go_on(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        self._add(passed, passed * len(self._slots), passed * self._gpus)

    def _add(self, wall: float, slots: float, gpus: float) -> None:
        usage = self._usage
        self._usage = Usage(usage.wall_seconds + wall, usage.slot_seconds + slots, usage.gpu_seconds + gpus)


@contextmanager
def keeping(meter: Meter, root: Folder) -> Iterator[Meter]:
    """Write what a meter says into the folder of a ledger while the body runs, from a thread, and when it ends.

    Raises:
        StorageError: nothing can be written there at the beginning; later that is a warning, since a study should not
            end because of its accounts.
    """
    _write(root, meter.read())
    over = threading.Event()

    def save() -> None:
        while not over.wait(SAVE_SECONDS):
            _try_to_write(root, meter.read())

    thread = threading.Thread(target=save, name="usage", daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        over.set()
        thread.join()
        _try_to_write(root, meter.read())


def _try_to_write(root: Folder, usage: Usage) -> None:
    try:
        _write(root, usage)
    except (StorageError, LeaseError) as error:
        _logger.warning("could not write down what the study has taken, trying again later: %s", error)


def _write(root: Folder, usage: Usage) -> None:
    root.write_json(USAGE, {name: round(seconds, 3) for name, seconds in asdict(usage).items()})


def find_usage(ledger: Ledger) -> Usage | None:
    """Return what all runs of a study have taken, None where their account is missing or damaged."""
    return Usage(**ledger.root.read_json(USAGE)) if ledger.root.is_intact(USAGE) else None


def read_usage(ledger: Ledger) -> Usage:
    """Return what all runs of a study have taken.

    Where ``usage.json`` is missing or damaged it is reckoned from what is complete or has failed: attempts that were
    cut off together with their driver or machine are not in it.
    """
    usage = find_usage(ledger)
    if usage is not None:
        return usage
    ended = (COMPLETE, FAILED, STOPPED)
    return reckon([record for kind in ("stage", "trial") for record in ledger.records(kind, states=ended)])


def reckon(records: Collection[Record]) -> Usage:
    """Return the least that stages and trials must have taken; what ran on a GPU had all of it."""
    spans, slots, gpus = [], 0.0, 0.0
    for record in records:
        seconds, end_ms = spent_seconds(record), _find_end_ms(record)
        spans.append((end_ms / 1000 - seconds, end_ms / 1000))
        slots += seconds
        if record.result is not None and record.result["environment"]["device"] != "cpu":
            gpus += seconds
    wall, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        wall += max(0.0, end - max(begin, until))
        until = max(until, end)
    return Usage(wall, slots, gpus)


def _find_end_ms(record: Record) -> float:
    """Return when a stage or trial was last heard of."""
    if record.result is not None:
        return float(record.result["finished_ms"])
    return float(record.epochs[-1]["timestamp_ms"] if record.epochs else record.config["created_ms"])
