"""Additions of a study to a simulated run: results of trials, proposals of a search, and which trials stop early.

Proposals and early stopping are those of a run, on a ledger in memory. Scores are drawn, because nobody knows them.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.driver.execute import make_stopping_rule
from orchestrator.driver.prepare import Prepared
from orchestrator.driver.search_loop import SearchLoop
from orchestrator.driver.simulation.slots import Hooks
from orchestrator.execution.dispatcher import OnEvent
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.works import Work
from orchestrator.search.early_stopping import Judge
from orchestrator.search.proposals import Search
from orchestrator.study.search.config import SearchConfig, find_epoch_metric
from trainables.evaluation.metrics import is_higher_better
from trainables.storage.completeness import EPOCHS, RESULT, is_stopped

#: Standard deviation of a replicate around its configuration, and of the score after the first of many epochs around
#: that after the last, in standard deviations of the configurations (assumptions).
REPLICATE_NOISE, EPOCH_NOISE = 0.3, 0.5


@dataclass
class Course:
    """Additions of a study to a simulated run."""

    #: Stages and trials to begin with.
    works: Sequence[Work]
    hooks: Hooks
    #: Called with the events of the dispatcher.
    on_event: OnEvent = lambda what, work, details: None
    #: Returns further stages and trials (``Dispatcher``).
    find_more: Callable[[], Sequence[Work]] = tuple
    #: Raises the error that has ended a search, if there is one.
    check: Callable[[], None] = lambda: None


@contextmanager
def scratch_ledger(study: str) -> Iterator[Ledger]:
    """Yield an empty ledger in memory: nothing of a simulation is ever written beside a real one."""
    storage = f"memory://robustsweep-{uuid.uuid4().hex}"
    ledger = Ledger(storage, study)
    try:
        yield ledger
    finally:
        for name in list(ledger.root.children()):
            ledger.root.remove(name)


def follow_plan(works: Sequence[Work], ledger: Ledger) -> Course:
    """Return the course of a study that runs its whole plan."""
    results = _Results(ledger)
    return Course(works, Hooks(finish=results.write), results.handle)


def follow_search(prepared: Prepared, ledger: Ledger, random: np.random.Generator) -> Course:
    """Return the course of a search from its beginning."""
    study = prepared.study
    search = Search(study, ledger, study.arms(), prepared.inputs)
    prepared = replace(prepared, ledger=ledger, search=search, plan=search.plan)
    scores = _Scores(search.config, random)
    results = _Results(ledger, scores)
    judge = Judge(search, ledger, make_stopping_rule) if study.stops_early else None

    def handle(what: str, work: Work, details: dict[str, Any]) -> None:
        results.handle(what, work, details)
        if what == "ended":
            loop.record_end(work, details)
        if judge is not None and work.kind == "trial":
            judge.process_event(what, work, details)
            judge.write()

    def end_epoch(work: Work, epoch: int, share: float) -> dict[str, Any]:
        value = scores.after(work, share)
        line = {"epoch": epoch, "timestamp_ms": epoch, "metrics": {scores.epoch_metric: value}}
        ledger.folder("trial", work.signature).append_line(EPOCHS, json.dumps(line))
        return {"event": "epoch", **line}

    loop = SearchLoop(prepared, on_event=handle, stop=threading.Event(), show=lambda: None)
    hooks = Hooks(finish=results.write)
    if judge is not None:
        hooks.is_stopped = lambda work: work.kind == "trial" and is_stopped(ledger.folder("trial", work.signature))
        hooks.end_epoch = end_epoch
    return Course(search.next_works(lambda work, details: None), hooks, handle, loop.find_more, loop.check)


class _Scores:
    """Scores of the trials of a search: normally distributed, those of replicates and of early epochs around them."""

    def __init__(self, config: SearchConfig, random: np.random.Generator) -> None:
        self._config, self._random = config, random
        self._of: dict[str, float] = {}
        self.epoch_metric = find_epoch_metric(config.stopping_metric) or ""

    def _draw(self, key: str, mean: float, sd: float) -> float:
        if key not in self._of:
            self._of[key] = mean + sd * float(self._random.standard_normal())
        return self._of[key]

    def _score(self, work: Work) -> float:
        return self._draw(work.signature, self._draw(work.name, 0.0, 1.0), REPLICATE_NOISE)

    def after(self, work: Work, share: float) -> float:
        """Return the metric that trials are judged by after a share of the epochs."""
        score = self._score(work) + EPOCH_NOISE * (1 - share) * float(self._random.standard_normal())
        return _scale(self._config.stopping_metric, score)

    def measure(self, work: Work) -> dict[str, float]:
        """Return the metrics of a finished trial that the search reads."""
        return {name: _scale(name, self._score(work)) for name in self._config.metrics if name != "num_parameters"}


def _scale(metric: str, score: float) -> float:
    """Return a metric, around 0.5, of a trial with this score, in standard deviations above the mean."""
    return 0.5 + (0.05 if is_higher_better(metric) else -0.05) * score


class _Results:
    """Writer of results where dispatcher and search look for them."""

    def __init__(self, ledger: Ledger, scores: _Scores | None = None) -> None:
        self._ledger, self._scores = ledger, scores
        #: Hosts of which the dispatcher has found a result; it looks for no other.
        self._hosts: set[str] = set()

    def handle(self, what: str, work: Work, details: dict[str, Any]) -> None:
        """Process an event of the dispatcher (``dispatcher.OnEvent``)."""
        if what == "ended" and details["status"] == COMPLETE and "host" in details:
            self._hosts.add(details["host"])

    def write(self, work: Work, host: str) -> None:
        """Write a result: of each trial of a search, else as long as the dispatcher looks for it."""
        is_scored = self._scores is not None and work.kind == "trial"
        if not is_scored and host in self._hosts:
            return
        metrics = self._scores.measure(work) if self._scores is not None and is_scored else {}
        result = {"files": {}, "metrics": metrics, "undefined": {}, "num_parameters": 1_000_000}
        self._ledger.folder(work.kind, work.signature).write_json(RESULT, result)
