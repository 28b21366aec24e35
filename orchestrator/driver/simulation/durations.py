"""Durations of stages and trials for a simulation: a mean and a spread for each, measured, given or assumed."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from orchestrator.driver.prepare import Prepared
from orchestrator.driver.terminal.time_left import TRAINING_SHARE
from orchestrator.ledger.durations import spent_seconds, took_seconds
from orchestrator.ledger.record import Record
from orchestrator.ledger.usage import find_usage
from orchestrator.planning.works import Work
from trainables.config import MatchingConfig, TrialConfig
from trainables.errors import StudyError

#: Standard deviation of the logarithm of a duration where nothing was measured (assumption).
SPREAD = 0.1
#: Origins of a number: stated by the user, measured for this study, measured by a benchmark of the project, chosen.
GIVEN, MEASURED, BENCHMARK, ASSUMED = "given", "measured", "benchmark", "assumption"
_TEXT = re.compile(r"(?P<mean>\d+(\.\d+)?)\s*(?:(?:±|\+-|\+/-)\s*(?P<spread>\d+(\.\d+)?))?")


@dataclass(frozen=True)
class Duration:
    """Distribution of a duration: lognormal, with this mean in seconds."""

    mean: float
    #: Standard deviation of its logarithm.
    sigma: float = 0.0
    #: Number of measurements behind the mean; 0: it is not a measured one, and counts as exact.
    count: int = 0


@dataclass(frozen=True)
class Durations:
    """Durations of stages and trials: by signature, else by name, else by kind."""

    source: str
    #: "given", "measured", "assumption": whence the means, and whence the spread ``sigma``.
    origin: str
    spread_origin: str
    by_kind: Mapping[str, Duration]
    by_name: Mapping[str, Duration] = field(default_factory=dict)
    by_signature: Mapping[str, Duration] = field(default_factory=dict)
    #: Share of a trial's time that its training takes; the rest is evaluation, which a lost attempt begins anew.
    training_share: float = TRAINING_SHARE
    share_origin: str = ASSUMED
    #: Seconds in a slot for each stage or trial beside its own; None if the ledger does not tell.
    overhead: float | None = None
    #: Whether all of them were measured on CPUs.
    is_on_cpu: bool = False

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm of a trial's duration."""
        return self.by_kind["trial"].sigma

    @property
    def overhead_origin(self) -> str:
        """Origin of the overhead in a slot."""
        return BENCHMARK if self.overhead is None else MEASURED

    def find(self, work: Work) -> tuple[str, Duration]:
        """Return the key under which the duration of a stage or trial is known, and the duration."""
        for key, known in ((work.signature, self.by_signature), (work.name, self.by_name)):
            if key in known:
                return key, known[key]
        return work.kind, self.by_kind.get(work.kind) or self.by_kind["trial"]

    def speed_up(self, speed: float) -> Durations:
        """Return the durations on machines that are ``speed`` times as fast."""

        def scale(known: Mapping[str, Duration]) -> dict[str, Duration]:
            return {key: replace(each, mean=each.mean / speed) for key, each in known.items()}

        return replace(
            self,
            by_kind=scale(self.by_kind),
            by_name=scale(self.by_name),
            by_signature=scale(self.by_signature),
        )


class Draw:
    """Durations of one simulation.

    A mean that was measured ``count`` times is itself uncertain: it is drawn once for all stages and trials of its
    name, with the standard error of the logarithm.

    Args:
        durations: distributions to draw from.
        random: generator of this simulation.
    """

    def __init__(self, durations: Durations, random: np.random.Generator) -> None:
        self._durations, self._random = durations, random
        self._means: dict[str, float] = {}
        self._drawn: dict[str, float] = {}

    def __call__(self, work: Work) -> float:
        """Return the seconds that a stage or trial takes without interruption; the same for every attempt."""
        seconds = self._drawn.get(work.signature)
        if seconds is None:
            key, duration = self._durations.find(work)
            mean = self._means.get(key)
            if mean is None:
                error = duration.sigma / math.sqrt(duration.count) if duration.count else 0.0
                mean = self._means[key] = duration.mean * math.exp(error * self._random.standard_normal())
            sigma = duration.sigma
            seconds = mean * math.exp(sigma * self._random.standard_normal() - sigma**2 / 2) if sigma else mean
            self._drawn[work.signature] = seconds
        return seconds

    def epochs(self, work: Work) -> tuple[int, float]:
        """Return the number of epochs of a stage or trial, and the share of its time that they take."""
        config = work.config
        if isinstance(config, TrialConfig):
            return config.training.total_epochs, self._durations.training_share
        if isinstance(config, MatchingConfig):
            return config.training.total_epochs, self._durations.training_share
        return config.pretraining.epochs, 1.0


def parse_seconds(text: str, *, option: str) -> Duration:
    """Return the duration that a user has given: ``90``, or ``90±20`` with its standard deviation.

    Raises:
        StudyError: the text is something else.
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None or float(found["mean"]) <= 0:
        raise StudyError(f"{option}: found {text!r}, expected seconds above 0 as 90 or with their spread as 90±20")
    mean, spread = float(found["mean"]), found["spread"]
    sigma = SPREAD if spread is None else math.sqrt(math.log1p((float(spread) / mean) ** 2))
    return Duration(mean, sigma)


def give_durations(trial: str, stage: str | None) -> Durations:
    """Return durations that a user has given as text (``parse_seconds``); a stage takes as long as a trial without."""
    known = {"trial": parse_seconds(trial, option="--seconds")}
    if stage is not None:
        known["stage"] = parse_seconds(stage, option="--stage-seconds")
    says = any("±" in text or "+" in text for text in (trial, stage or ""))
    return Durations("given", GIVEN, GIVEN if says else ASSUMED, known)


def measure_durations(prepared: Prepared) -> Durations | None:
    """Return the durations of the complete stages and trials of a study, None if no trial is complete."""
    started = [each for kind in ("stage", "trial") for each in prepared.ledger.records(kind)]
    records = [record for record in started if record.result is not None]
    trials = [record for record in records if record.kind == "trial"]
    if not trials:
        return None
    took: dict[str, list[float]] = defaultdict(list)
    for record in records:
        took[record.config["name"]].append(max(took_seconds(record), 1e-3))
    sigma = _fit_spread(list(took.values()))
    spread = SPREAD if sigma is None else sigma
    by_kind = {
        kind: _describe([max(took_seconds(record), 1e-3) for record in records if record.kind == kind], spread)
        for kind in {record.kind for record in records}
    }
    share = _measure_training_share(trials)
    return Durations(
        f"{len(trials)} finished trials",
        MEASURED,
        ASSUMED if sigma is None else MEASURED,
        by_kind,
        {name: _describe(seconds, spread) for name, seconds in took.items()},
        training_share=TRAINING_SHARE if share is None else share,
        share_origin=ASSUMED if share is None else MEASURED,
        overhead=_measure_overhead(prepared, started),
        is_on_cpu=all(_find_device(record) == "cpu" for record in trials),
    )


def _find_device(record: Record) -> str | None:
    return None if record.result is None else record.result.get("environment", {}).get("device")


def list_durations(source: str, works: Sequence[Work], seconds: Sequence[float], *, is_on_cpu: bool) -> Durations:
    """Return durations from expected seconds of each stage or trial, of a like study or a pilot."""
    known = {work.signature: Duration(took, SPREAD) for work, took in zip(works, seconds, strict=True)}
    mean = Duration(sum(seconds) / len(seconds), SPREAD)
    return Durations(source, MEASURED, ASSUMED, {"trial": mean}, by_signature=known, is_on_cpu=is_on_cpu)


def _describe(seconds: Sequence[float], sigma: float) -> Duration:
    return Duration(sum(seconds) / len(seconds), sigma, len(seconds))


def _fit_spread(groups: Sequence[Sequence[float]]) -> float | None:
    """Return the standard deviation of the logarithm within the groups, pooled; None with too few measurements."""
    logs = [np.log(seconds) for seconds in groups]
    freedom = sum(len(each) - 1 for each in logs)
    if freedom < 2:
        return None
    return math.sqrt(sum(float(((each - each.mean()) ** 2).sum()) for each in logs) / freedom)


def _measure_training_share(trials: Sequence[Record]) -> float | None:
    pairs = [
        (
            sum(line["metrics"]["seconds"] for line in record.epochs if "seconds" in line["metrics"]),
            took_seconds(record),
        )
        for record in trials
        if record.epochs
    ]
    trained, total = sum(seconds for seconds, _ in pairs), sum(seconds for _, seconds in pairs)
    return min(1.0, trained / total) if trained and total else None


def _measure_overhead(prepared: Prepared, records: Sequence[Record]) -> float | None:
    """Return the mean seconds in a slot beside a stage's or trial's own time, None if the ledger does not tell."""
    usage = find_usage(prepared.ledger)
    if usage is None:
        return None
    left = usage.slot_seconds - sum(map(spent_seconds, records))
    return left / len(records) if left > 0 else None
