"""Estimate of the time until a study's open stages and trials have ended, updated as they start and end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.planning.works import Work
from trainables.config import TrialConfig

#: Share of a trial's time that its training takes, as long as no trial has shown another: evaluation under some ten to
#: thirty shifts takes the rest. Measured on the shipped studies on 2 cores: .4 to .8.
TRAINING_SHARE = 0.6


@dataclass
class _Running:
    work: Work
    started: float
    #: First epoch that was reported, and when: a trial that continues does not begin at epoch 1.
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None
    evaluating_since: float | None = None

    def shift(self, seconds: float) -> _Running:
        """Return the same with all times later by ``seconds``."""
        first, last = (None if each is None else (each[0], each[1] + seconds) for each in (self.first, self.last))
        return _Running(self.work, self.started + seconds, first, last)


class TimeLeft:
    """Estimator of the seconds until all open stages and trials have ended.

    A stage or trial is expected to take as long as finished ones of the same name, else as those of its kind, corrected
    by what was expected of both before the run. Until one has finished, running ones are extrapolated from epochs.

    Args:
        works: open stages and trials.
        expected: signature → seconds that the plan expects, of those for which it has an estimate.
        num_to_come: number of trials that a search has yet to propose.
    """

    def __init__(self, works: Sequence[Work], *, expected: Mapping[str, float], num_to_come: int = 0) -> None:
        self._open = {work.signature: work for work in works}
        self._num_to_come = num_to_come
        self._expected = dict(expected)
        self._running: dict[str, _Running] = {}
        #: Signature → trials that several processes have trained, and that wait to be evaluated; they ended at 0.
        self._trained: dict[str, _Running] = {}
        #: Name, or kind, of stages and trials → seconds of those that have finished, and what was expected of them.
        self._took: dict[str, list[float]] = defaultdict(list)
        self._hoped: dict[str, list[float]] = defaultdict(list)
        self._training_shares: list[float] = []
        self._num_slots = 1

    def start(self, work: Work, now: float) -> None:
        """Count a stage or trial as running since ``now`` (seconds of any clock that only moves forward)."""
        if work.signature not in self._open and work.signature not in self._running:
            self._num_to_come = max(self._num_to_come - 1, 0)
        self._open.pop(work.signature, None)
        trained = self._trained.pop(work.signature, None)
        self._running[work.signature] = _Running(work, now) if trained is None else trained.shift(now)
        self._num_slots = max(self._num_slots, len(self._running))

    def train(self, work: Work, epoch: int, now: float) -> None:
        """Count ``epoch`` of a running stage or trial as trained at ``now``."""
        row = self._running.get(work.signature)
        if row is not None:
            row.first = row.first or (epoch, now)
            row.last = (epoch, now)

    def evaluate(self, work: Work, now: float) -> None:
        """Count a running trial as evaluated since ``now``, unless it is already."""
        row = self._running.get(work.signature)
        if row is not None and row.evaluating_since is None:
            row.evaluating_since = now

    def end(self, work: Work, now: float, *, is_complete: bool) -> None:
        """Remove a stage or trial; only the time of a complete one counts for those to come."""
        row = self._running.pop(work.signature, None)
        self._open.pop(work.signature, None)
        self._trained.pop(work.signature, None)
        if row is None or not is_complete:
            return
        took = max(now - row.started, 1e-3)
        for key in (work.name, work.kind):
            self._took[key].append(took)
            if work.signature in self._expected:
                self._hoped[key].append(self._expected[work.signature])
        if row.evaluating_since is not None and row.first is not None and row.first[0] == 1:
            self._training_shares.append((row.evaluating_since - row.started) / took)

    def put_back(self, work: Work) -> None:
        """Count a running stage or trial as open again: it is started anew later."""
        self._running.pop(work.signature, None)
        self._open[work.signature] = work

    def hand_over(self, work: Work, now: float) -> None:
        """Count a trained trial as open: it goes on, with its evaluation, later."""
        row = self._running.get(work.signature)
        self.put_back(work)
        if row is not None:
            self._trained[work.signature] = row.shift(-now)

    def compute(self, now: float, *, num_drivers: int = 1) -> float | None:
        """Return the estimated seconds left, None as long as nothing is known about any trial's time.

        Args:
            now: the time.
            num_drivers: number of drivers that share the study, each with as many slots.
        """
        typical = {kind: self._guess_kind(kind, now) for kind in ("stage", "trial")}
        untouched = [work for work in self._open.values() if work.signature not in self._trained]
        names = Counter((work.kind, work.name, self._expected.get(work.signature)) for work in untouched)
        waiting, longest = 0.0, 0.0
        for (kind, name, expected), number in names.items():
            seconds = self._guess(kind, name, expected, typical[kind])
            if seconds is None:
                return None
            waiting += number * seconds
            longest = max(longest, seconds)
        if self._num_to_come:
            if typical["trial"] is None:
                return None
            waiting += self._num_to_come * typical["trial"]
        paused = [row.shift(now) for row in self._trained.values()]
        rows = [*paused, *self._running.values()]
        found = [self._guess_left(row, typical[row.work.kind], now) for row in rows]
        left = [each for each in found if each is not None]
        if len(left) < len(found):
            return None
        trained, running = left[: len(paused)], left[len(paused) :]
        waiting, longest = waiting + sum(trained), max([longest, *trained])
        slots = max(1, min(self._num_slots * num_drivers, len(self._open) + self._num_to_come + len(running)))
        # At the end slots wait for the last trial, on average for half of one.
        idle = (slots - 1) / slots * longest / 2 if waiting else 0.0
        return max((waiting + sum(running)) / slots + idle, longest, *running, 0.0)

    def _guess(self, kind: str, name: str, expected: float | None, typical: float | None) -> float | None:
        if self._took.get(name):
            return _mean(self._took[name])
        if expected is None:
            return typical
        known = self._hoped.get(kind)
        # How much longer than expected those took of which something was expected: another machine, a busy one.
        return expected if not known else expected * sum(self._took[kind]) / (_mean(known) * len(self._took[kind]))

    def _guess_kind(self, kind: str, now: float) -> float | None:
        if self._took.get(kind):
            return _mean(self._took[kind])
        expected = [
            seconds for key, seconds in self._expected.items() if key in self._open and kind == self._open[key].kind
        ]
        if expected:
            return _mean(expected)
        rows = [*self._running.values(), *(row.shift(now) for row in self._trained.values())]
        whole = [self._extrapolate(row, now) for row in rows if row.work.kind == kind]
        known = [seconds for seconds in whole if seconds is not None]
        if known:
            return _mean(known)
        return self._guess_from_stages() if kind == "trial" else self._guess_kind("trial", now)

    def _guess_from_stages(self) -> float | None:
        """Return how long a trial would take whose epochs last as long as those of the stages that run, per view.

        A contrastive stage is trained on two views of every image. None before the first epoch of a stage, and with
        trials of which something else is known.
        """
        open_configs = [work.config for work in self._open.values()]
        epochs = [each.training.total_epochs for each in open_configs if isinstance(each, TrialConfig)]
        each = [
            (_time_epoch(row), 2 if row.work.config.kind == "contrastive" else 1)  # type: ignore[union-attr]
            for row in self._running.values()
            if row.work.kind == "stage"
        ]
        known = [seconds / views for seconds, views in each if seconds is not None]
        return _mean(known) * _mean(epochs) / TRAINING_SHARE if epochs and known else None

    def _extrapolate(self, row: _Running, now: float) -> float | None:
        """Return how long a running stage or trial would take from epoch 1 on, None before its first epoch."""
        each = _time_epoch(row)
        if each is None or row.first is None:
            return None
        config = row.work.config
        epochs = config.training.total_epochs if isinstance(config, TrialConfig) else config.pretraining.epochs
        # Time before the first epoch's end includes the start, which a trial has once.
        seconds = row.first[1] - row.started + (epochs - 1) * each
        if not isinstance(config, TrialConfig):
            return seconds
        share = _mean(self._training_shares) if self._training_shares else TRAINING_SHARE
        return max(seconds / share, now - row.started)

    def _guess_left(self, row: _Running, typical: float | None, now: float) -> float | None:
        expected = self._expected.get(row.work.signature)
        whole = self._guess(row.work.kind, row.work.name, expected, typical)
        whole = self._extrapolate(row, now) if whole is None else whole
        if whole is None:
            return None
        spent = now - row.started
        return whole - spent if spent < whole else 0.1 * whole  # late: nothing says how late


def _time_epoch(row: _Running) -> float | None:
    """Return the seconds of an epoch of a running stage or trial, None before its first one has ended."""
    if row.first is None or row.last is None:
        return None
    trained = row.last[0] - row.first[0]
    return (row.last[1] - row.first[1]) / trained if trained else row.first[1] - row.started


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def format_duration(seconds: float) -> str:
    """Return "2 d 4 h", "1 h 05 min", "12 min" or "40 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"
