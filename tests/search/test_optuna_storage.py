"""What Optuna's storage shows of a search; it can be lost, foreign, or away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.states import COMPLETE, FAILED
from orchestrator.search.optuna_storage import Exporter, StorageWriter, resolve_storage
from orchestrator.search.proposals import Search
from tests.support.instant_search import SPACE, Place, read
from trainables.errors import StorageError, StudyError


class Stage:
    """A search of which three proposals are made, and a database."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.place = Place(folder, read(SPACE, *overrides))
        self.search = self.place.search()
        self.works = self.search.next_works(lambda *_: None)
        self.uri = f"sqlite:///{folder}/optuna.db"

    def finish(self, number: int) -> None:
        self.place.finish(self.works[number])
        self.search.record_end(self.works[number].signature, COMPLETE)

    def project(self, search: Search | None = None) -> None:
        search = search or self.search
        StorageWriter(self.uri, "s", search.config, search.space).project(search.show())

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=self.uri)

    @property
    def states(self) -> list[str]:
        return [trial.state.name for trial in self.study.get_trials()]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def describe(study: optuna.Study) -> list[Any]:
    return [(t.state, t.values, t.params, t.user_attrs, t.constraints, t.distributions) for t in study.get_trials()]


def test_every_proposal_is_a_trial_that_goes_on_under_its_number(stage: Stage) -> None:
    stage.project()
    assert stage.states == ["RUNNING"] * 3
    stage.finish(1)
    stage.search.record_end(stage.works[2].signature, FAILED)
    stage.project()
    stage.project()  # again changes nothing
    assert stage.states == ["RUNNING", "COMPLETE", "FAIL"]
    trial, proposal = stage.study.get_trials()[1], stage.search.proposals[1]
    assert tuple(trial.values) == stage.search.get_outcome(proposal).values
    assert trial.params == proposal.point.values
    assert trial.user_attrs["signature"] == stage.works[1].signature
    assert stage.study.best_trial.number == 1
    assert stage.study.metric_names == ["validation/balanced_accuracy"]


def test_a_lost_database_is_made_again(stage: Stage) -> None:
    stage.project()
    for number in range(3):
        stage.finish(number)
    stage.project()
    before = describe(stage.study)
    Path(stage.uri.removeprefix("sqlite:///")).unlink()
    stage.project(stage.place.search())
    assert describe(stage.study) == before
    assert stage.states == ["COMPLETE"] * 3


def test_trials_that_the_ledger_does_not_know_are_told_as_failed(stage: Stage) -> None:
    stage.project()
    orphan = stage.study.ask()
    stage.study.enqueue_trial({})
    stage.project()
    assert stage.states == ["RUNNING"] * 3 + ["FAIL", "FAIL"]
    assert orphan.number == 3
    assert len(stage.search.next_works(lambda *_: None)) == 0  # they count for nothing


def test_a_failed_trial_that_was_tried_again_has_a_second_trial(stage: Stage) -> None:
    stage.search.record_end(stage.works[0].signature, FAILED)
    stage.project()
    stage.finish(0)
    stage.project()
    stage.project()
    assert stage.states == ["FAIL", "RUNNING", "RUNNING", "COMPLETE"]


def test_constraints_are_shown(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "search.constraints=[{metric: validation/ece, at_most: 0.0}]")
    stage.project()
    stage.finish(0)
    stage.project()
    trial, *others = stage.study.get_trials()
    excess = trial.constraints["validation/ece"]
    assert excess > 0
    assert trial.system_attrs["constraints"] == [excess]  # where optuna-dashboard looks
    assert set(trial.constraints.values()) == {excess}
    assert not any(other.constraints for other in others)  # not known yet
    with pytest.raises(ValueError, match=r"No feasible trials|No trials"):
        _ = stage.study.best_trial


def test_other_objectives_or_levels_replace_the_study(stage: Stage, tmp_path: Path) -> None:
    stage.finish(0)
    stage.project()
    both = "search.objectives=[{metric: validation/balanced_accuracy}, {metric: validation/ece}]"
    other = Place(tmp_path, read(SPACE, both, "factors.augmentation=[none, strong, augmix]")).search()
    stage.project(other)
    assert [direction.name for direction in stage.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert stage.states == ["COMPLETE", "RUNNING", "RUNNING"]


def test_a_study_of_somebody_else_is_not_touched(stage: Stage) -> None:
    foreign = optuna.create_study(study_name="s", storage=stage.uri)
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(StorageError, match=r"has a study 's' that is not RobustSweep's; rename"):
        stage.project()
    assert len(stage.study.get_trials()) == 1


def test_the_thread_shows_the_last_state_and_says_what_is_wrong(stage: Stage, tmp_path: Path) -> None:
    exporting = Exporter(StorageWriter(stage.uri, "s", stage.search.config, stage.search.space))
    exporting.show(stage.search.show())
    stage.finish(0)
    exporting.show(stage.search.show())
    assert exporting.finish() is None
    assert stage.states == ["COMPLETE", "RUNNING", "RUNNING"]
    (tmp_path / "bad.db").write_bytes(b"no database, but long enough to be looked at as one" * 99)
    uri = f"sqlite:///{tmp_path}/bad.db"
    bad = Exporter(StorageWriter(uri, "s", stage.search.config, stage.search.space))
    bad.show(stage.search.show())
    problem = bad.finish()
    assert problem is not None
    assert "not a database" in problem


def test_where_the_storage_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(tmp_path), "s")
    monkeypatch.chdir(tmp_path)
    assert resolve_storage(ledger, None) == f"sqlite:///{tmp_path}/s/optuna.db"
    assert resolve_storage(ledger, "sqlite:///o.db") == f"sqlite:///{tmp_path}/o.db"
    assert resolve_storage(ledger, "postgresql://u:p@h/d") == "postgresql+psycopg2://u:p@h/d"
    assert resolve_storage(Ledger("memory://x", "s"), None) is None
    for wrong in ("o.db", "redis://h", "sqlite:///:memory:", "http://h"):
        with pytest.raises(StudyError, match=r"execution.optuna: found .*, expected an address starting with"):
            resolve_storage(ledger, wrong)
