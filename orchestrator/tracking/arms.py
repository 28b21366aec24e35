"""One run per arm in MLflow: the mean over its complete replicates, with an interval where there are enough of them.

The charts of *by arm* (``views``) are drawn from these runs: of a thousand trials they need a few dozen runs. A study
with one replicate has none, there each trial is an arm.

MLflow keeps every value that a metric ever had, and would draw old and new means in one line. So the run of an arm is
replaced: first the new one is written completely, then the old one is deleted. Whatever a crash leaves (an unfinished
run, two runs) is removed by ``find``, and a run carries the digest of its trials, so that a lost update is noticed.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.ledger.derived import find_main_metric
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.record import Record
from orchestrator.planning.states import COMPLETE
from orchestrator.statistics.intervals import summarise, t_interval
from orchestrator.study.contrasts import find_units
from orchestrator.tracking.client import Metric, Param, search_runs
from orchestrator.tracking.projection import (
    ARM_TAG,
    MAX_ENTITIES_PER_CALL,
    MAX_PARAMS_PER_CALL,
    PARENT_TAG,
    STATUSES,
    Point,
    Projection,
    label_arm,
    list_headlines,
    make_key,
    order_levels,
    project,
)
from orchestrator.tracking.views import BAND, Shown
from trainables.errors import StorageError
from trainables.evaluation.metrics import MAIN_CALIBRATION, MAIN_METRICS

_logger = logging.getLogger(__name__)

#: Ends of the keys of an interval's ends.
LOWER, UPPER = ".lower", ".upper"
#: Tag of an arm's run: which trials are in it.
_TRIALS_TAG = "robustsweep.trials"
#: Part of that digest: runs that another layout has written are replaced.
_LAYOUT = "1"
_MAX_METRICS_PER_CALL = MAX_ENTITIES_PER_CALL - MAX_PARAMS_PER_CALL
#: As many trials tell which shifts are worst, and which metrics there are; that orders the charts, no more.
_SAMPLE = 20


@dataclass(frozen=True)
class Trial:
    """Numbers of a complete trial that enter the run of its arm."""

    #: (key, step) of each value; the same object for trials with the same keys.
    keys: tuple[tuple[str, int], ...]
    values: np.ndarray
    start_ms: int
    last_ms: int
    needs: tuple[str, ...]


@dataclass
class Arm:
    """One arm and its complete trials."""

    params: dict[str, str]
    signatures: set[str] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """Digest of which trials are complete."""
        return hashlib.sha256(" ".join([_LAYOUT, *sorted(self.signatures)]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ArmRun:
    """Run of an arm in MLflow."""

    run_id: str
    digest: str
    #: Key → value at the largest step, as MLflow's tables show it.
    metrics: dict[str, float]


def summarise_arm(trials: Sequence[Trial]) -> list[Point]:
    """Return the points of an arm's run: means, and below and above them the ends of 95 % intervals.

    ``<key>`` is the mean, ``<key>.lower`` and ``<key>.upper`` are there for at least five independent replicates
    (``t_interval``). ``shift/<name>/<metric>.band`` has lower end, mean and upper end at each step, which MLflow draws
    as a line in a band when it groups runs. Headline numbers are at step 0, curves at step = severity.

    Args:
        trials: complete trials of one arm, at least one.
    """
    moment = max(trial.last_ms for trial in trials)
    units = find_units([trial.needs for trial in trials])
    places: dict[tuple[str, int], list[tuple[int, float]]] = defaultdict(list)
    for number, trial in enumerate(trials):
        for place, value in zip(trial.keys, trial.values.tolist(), strict=True):
            places[place].append((number, value))
    points = [Point("replicates", float(len(trials)), moment, 0)]
    for (key, step), found in places.items():
        values = [value for _, value in found]
        mean = summarise(values).mean
        if mean is None:
            continue
        points.append(Point(key, mean, moment, step))
        interval = t_interval(_average_units(values, [units[number] for number, _ in found]))
        if interval is None:
            continue
        ends = (interval.low, interval.high)
        points += [Point(f"{key}{end}", value, moment, step) for end, value in zip((LOWER, UPPER), ends, strict=True)]
        if key.startswith("shift/"):
            points += [Point(f"{key}{BAND}", value, moment, step) for value in ends]
            points.append(Point(f"{key}{BAND}", mean, moment + 1, step))  # tables show the latest value of a step
    return points


def _average_units(values: Sequence[float], units: Sequence[int]) -> list[float]:
    """Return the mean of each independent unit: replicates that share an encoder are one."""
    by_unit: dict[int, list[float]] = defaultdict(list)
    for value, unit in zip(values, units, strict=True):
        by_unit[unit].append(value)
    return [sum(each) / len(each) for each in by_unit.values()]


class ArmRuns:
    """Runs of a study's arms.

    Args:
        ledger: ledger of the study.
        about: content of ``plan.json``.
    """

    def __init__(self, ledger: Ledger, about: Mapping[str, Any]) -> None:
        self._ledger = ledger
        self._about = about
        # With ``tuning`` a replicate is its chosen candidate, which results decide: the view shows the trials.
        self.is_needed = about["replicates"] > 1 and "tuning" not in about
        self._arms: dict[str, Arm] = {}
        self._trials: dict[str, Trial] = {}
        self._shapes: dict[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]] = {}
        self._keys: set[str] = set()
        self._has_caught_up = False
        #: Label of an arm with an unreadable trial → digest of its trials.
        self._unreadable: dict[str, str] = {}
        #: Label of an arm → its run.
        self._runs: dict[str, ArmRun] = {}

    def find(self, client: Any, experiment_id: str, parent_run_id: str) -> None:
        """Find the runs of arms below the study's run; delete unfinished, second and lost ones.

        Call it within ``translating_errors``.
        """
        self._runs = {}
        for found in list(search_runs(client, experiment_id, "tags.`robustsweep.kind` = 'arm'")):
            tags = found.data.tags
            label = tags.get(ARM_TAG, "")
            is_whole = found.info.status == STATUSES[COMPLETE] and tags.get(PARENT_TAG) == parent_run_id
            if self.is_needed and is_whole and label not in self._runs:
                self._runs[label] = ArmRun(found.info.run_id, tags.get(_TRIALS_TAG, ""), dict(found.data.metrics))
            else:
                client.delete_run(found.info.run_id)

    def add(self, record: Record, projection: Projection) -> None:
        """Add a complete trial that has been shipped."""
        if record.kind == "trial" and record.state == COMPLETE:
            self._join(record.config)
            if self.is_needed or len(self._trials) < _SAMPLE:
                self._trials[record.signature] = self._extract(record, projection)

    def remove(self, client: Any, config: Mapping[str, Any]) -> None:
        """Delete the run of an arm, because one of its trials runs again. Call it within ``translating_errors``."""
        label = label_arm(config)
        if label in self._runs:
            client.delete_run(self._runs.pop(label).run_id)
        self._trials.pop(config["signature"], None)

    def update(self, client: Any, experiment_id: str, parent_run_id: str) -> int:
        """Replace the runs of arms that have other complete trials than before; return the number of new runs.

        Call it within ``translating_errors``.
        """
        self._catch_up()
        if not self.is_needed:
            return 0
        for label in self._runs.keys() - self._arms.keys():  # no longer planned
            client.delete_run(self._runs.pop(label).run_id)
        stale = [
            label
            for label, arm in self._arms.items()
            if (label not in self._runs or self._runs[label].digest != arm.digest)
            and self._unreadable.get(label) != arm.digest
        ]
        for label in stale:
            old = self._runs.get(label)
            try:
                trials = [self._read(signature) for signature in sorted(self._arms[label].signatures)]
            except StorageError as error:
                _logger.warning("arm %s has no run in MLflow: %s", label, error)
                self._unreadable[label] = self._arms[label].digest
                self._runs.pop(label, None)
            else:
                self._runs[label] = self._write(client, experiment_id, parent_run_id, label, trials)
            if old is not None:
                client.delete_run(old.run_id)
        return len(stale)

    def describe(self) -> Shown:
        """Return what the views have to show; call it after ``update``."""
        sample = self._read_sample()
        ends: dict[str, list[float]] = defaultdict(list)  # shift → means at the highest severity
        for trial in sample:
            for (key, step), value in zip(trial.keys, trial.values.tolist(), strict=True):
                if key.startswith("shift/") and step == max(other for each, other in trial.keys if each == key):
                    ends[key.split("/")[1]].append(value)
        levels: dict[str, set[str]] = defaultdict(set)
        for arm in self._arms.values():
            for factor, level in arm.params.items():
                levels[factor].add(level)
        of_runs = [set(run.metrics) for run in self._runs.values()]
        return Shown(
            factors=tuple(factor for factor, found in levels.items() if len(found) > 1),
            has_arm_runs=self.is_needed,
            num_arms=len(self._arms),
            shifts=tuple(sorted(ends, key=lambda name: float(np.mean(ends[name])))),
            has_bands=bool(of_runs) and all(any(key.endswith(BAND) for key in keys) for keys in of_runs),
            keys=frozenset(self._keys.union(*of_runs)),
            created_ms=self._about["written_ms"],
            metric=self._metric,
            calibration=next(MAIN_CALIBRATION[task] for task, each in MAIN_METRICS.items() if each == self._metric),
        )

    @property
    def _metric(self) -> str:
        return find_main_metric(self._about)

    def _read_sample(self) -> list[Trial]:
        signatures = sorted(signature for arm in self._arms.values() for signature in arm.signatures)
        found = []
        for signature in signatures[:_SAMPLE]:
            try:
                found.append(self._read(signature))
            except StorageError as error:
                _logger.debug("the order of charts does without trial %s: %s", signature, error)
        return found

    def _catch_up(self) -> None:
        """Learn once which planned trials were complete before this driver started."""
        if self._has_caught_up:
            return
        states = self._ledger.states()
        for trial in self._about["trials"]:
            if states.get(trial["signature"]) == COMPLETE:
                self._join(trial)
        self._has_caught_up = True

    def _join(self, about: Mapping[str, Any]) -> None:
        levels = order_levels(about)
        arm = self._arms.setdefault(label_arm(about), Arm({make_key(key): str(level) for key, level in levels.items()}))
        arm.signatures.add(about["signature"])

    def _extract(self, record: Record, projection: Projection) -> Trial:
        assert record.result is not None
        headlines = list_headlines(record.result)
        kept: dict[tuple[str, int], float] = {}
        scores = (*projection.scores, *(point for points in projection.added.values() for point in points))
        for point in scores:
            if point.key in headlines:
                kept[point.key, 0] = point.value
            elif point.key.startswith("shift/") and point.key.endswith(f"/{self._metric}"):
                kept[point.key, point.step] = point.value
        self._keys.update(point.key for point in scores)
        self._keys.update(point.key for points in projection.epochs.values() for point in points)
        keys = tuple(kept)
        keys = self._shapes.setdefault(keys, keys)
        values = np.array(list(kept.values()), dtype=np.float64)
        # All trials share the stage that chooses severities, which makes them no less independent.
        matching = record.config["config"].get("matching")
        encoders = tuple(need for need in record.config["needs"] if need != matching)
        return Trial(keys, values, projection.start_ms, projection.last_ms, encoders)

    def _read(self, signature: str) -> Trial:
        if signature not in self._trials:
            record = self._ledger.read("trial", signature)
            self._trials[signature] = self._extract(record, project(record))
        return self._trials[signature]

    def _write(
        self, client: Any, experiment_id: str, parent_run_id: str, label: str, trials: Sequence[Trial]
    ) -> ArmRun:
        """Create the run of an arm; its status is sent last, so that ``find`` tells a complete one."""
        arm = self._arms[label]
        digest, points = arm.digest, summarise_arm(trials)
        tags = {"robustsweep.kind": "arm", ARM_TAG: label, "mlflow.runName": label, _TRIALS_TAG: digest}
        start_ms, last_ms = min(trial.start_ms for trial in trials), max(trial.last_ms for trial in trials)
        created = client.create_run(experiment_id, start_time=start_ms, tags=tags | {PARENT_TAG: parent_run_id})
        run_id = str(created.info.run_id)
        for start in range(0, len(points), _MAX_METRICS_PER_CALL):
            metrics = [
                Metric(point.key, point.value, point.timestamp_ms, point.step)
                for point in points[start : start + _MAX_METRICS_PER_CALL]
            ]
            params = [] if start else [Param(key, value) for key, value in arm.params.items()]
            client.log_batch(run_id, metrics=metrics, params=params)
        client.set_terminated(run_id, STATUSES[COMPLETE], end_time=last_ms)
        return ArmRun(run_id, digest, {point.key: point.value for point in points})
