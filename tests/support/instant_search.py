"""A search whose trials take no time: their results are a formula of their configuration. Tests only."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.reconcile import reconcile
from orchestrator.planning.works import Work
from orchestrator.search.proposals import Search
from orchestrator.study.study_file import Study, parse_study
from tests.support.plans import StatedFacts
from trainables.config import TrialConfig

HEAD = "study: s\ndata: {kind: digits}\n"
SPACE = """\
factors: {augmentation: [none, strong]}
search:
  num_trials: 10
  parallel: 3
  sampler: {kind: tpe, num_startup: 4}
  space:
    training.learning_rate: {low: 1e-4, high: 1e-1, log: true}
    augmentation.strength: {low: 0, high: 1, step: 0.25}
"""
#: A space of eight configurations.
FINITE = """\
search:
  num_trials: 10
  parallel: 3
  space:
    training.epochs: {low: 1, high: 4}
    regulariser: {choices: [none, dropout]}
"""


class CrashError(Exception):
    """The process is gone."""


def read(text: str = SPACE, *overrides: str) -> Study:
    return parse_study(HEAD + text, source="s.yaml", overrides=overrides)


def score(config: TrialConfig) -> float:
    """Best at a learning rate of 0.01 with strong augmentation of strength 0.5."""
    strength = getattr(config.augmentation, "strength", 0.0)
    return 0.9 - 0.1 * abs(math.log10(config.training.learning_rate) + 2) - 0.2 * abs(strength - 0.5)


def measure(config: TrialConfig) -> dict[str, float]:
    value = score(config) - 0.01 * config.replicate
    return {
        "validation/balanced_accuracy": value,
        "validation/ece": 0.3 * config.training.learning_rate,
        "robustness/worst_shift_balanced_accuracy": value - 0.1 * config.training.learning_rate,
    }


class Place:
    """A ledger, and a driver without slots: it carries out what it is given, one work after the other."""

    def __init__(self, folder: Path, study: Study | None = None) -> None:
        self.study = study or read()
        self.ledger = Ledger(str(folder), self.study.study)
        self.num_run = 0

    def search(self) -> Search:
        """Return the search as a new process would know it."""
        search = Search(self.study, self.ledger, self.study.arms(), StatedFacts())
        search.update_states(self.ledger.states())
        return search

    def finish(self, work: Work, metrics: dict[str, float] | None = None, **changes: Any) -> None:
        """Leave the result of a trial."""
        assert isinstance(work.config, TrialConfig)
        self.ledger.begin(work, study=self.study.study, git_commit=None)
        measured = measure(work.config) if metrics is None else metrics
        result = {"metrics": measured, "num_parameters": 5, "undefined": {}, "files": {}}
        self.ledger.folder("trial", work.signature).write_json("result.json", result | changes)
        self.num_run += 1

    def run(self, step: Callable[[], None] = lambda: None) -> Search:
        """Run the search to its end; ``step`` is called before and after each thing that happens, and may crash."""
        search = self.search()
        append = self.ledger.root.append_line

        def append_line(name: str, line: str) -> None:
            step()
            append(name, line)
            step()

        search._ledger.root.append_line = append_line  # type: ignore[method-assign]
        try:
            search.next_works(lambda *_: None)
            actions = reconcile(search.plan, self.ledger.states())
            search.mark_dispatched(actions)
            todo = list(actions.open)
            while todo:
                work = todo.pop(0)
                step()
                self.finish(work)
                step()
                search.record_end(work.signature, "complete")
                todo += search.next_works(lambda *_: None)
        finally:
            del search._ledger.root.append_line
        return search


class CrashAt:
    """Crashes at the ``number``-th step."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> None:
        if self.left == 0:
            raise CrashError
        self.left -= 1


def names(search: Search) -> list[str]:
    return [proposal.arm.name for proposal in search.proposals]
