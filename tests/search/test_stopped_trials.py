"""What was stopped early: to the sampler, in Optuna's storage, in the report, and for whoever selects."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from orchestrator.analysis.results import Results, load_results
from orchestrator.analysis.search_results import find_best, find_configurations
from orchestrator.analysis.tables.arms import arms_table
from orchestrator.cli.plan import describe_plan
from orchestrator.cli.status import compute_status, render_status
from orchestrator.driver.prepare import prepare
from orchestrator.driver.terminal.announce import announce
from orchestrator.driver.terminal.summary import summarise
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.reconcile import reconcile
from orchestrator.planning.states import COMPLETE, FAILED, STOPPED
from orchestrator.planning.works import Work
from orchestrator.report.sections.answer import answer
from orchestrator.report.sections.search import search_section
from orchestrator.report.write import write_report
from orchestrator.search import sampler
from orchestrator.search.optuna_storage import StorageWriter
from orchestrator.search.outcomes import RUNNING, Outcome, read_curve
from orchestrator.search.proposals import Search
from orchestrator.selection.ranking import SelectionCriteria, rank_arms, select_arm
from orchestrator.study.study_file import Study, parse_study
from tests.search.test_proposals import SAMPLERS, refuse
from tests.support.instant_search import FINITE, SPACE, Place, measure, read
from tests.support.synthetic_ledger import make_result
from trainables.errors import StudyError

RULE = "search.early_stopping={kind: asha, grace_epochs: 2}"


def leave_stopped(ledger: Ledger, work: Work, values: Sequence[float]) -> None:
    """Leave a trial that was stopped after so many epochs."""
    ledger.begin(work, study="s", git_commit=None)
    folder = ledger.folder("trial", work.signature)
    for epoch, value in enumerate(values, start=1):
        line = {"epoch": epoch, "timestamp_ms": 1000 + epoch, "metrics": {"val/balanced_accuracy": value}}
        folder.append_line("epochs.jsonl", json.dumps(line))
    stop = {"rule": "asha", "metric": "validation/balanced_accuracy", "values": {work.signature: 0.25}}
    folder.write_json("stop.json", stop | {"epoch": 2, "value": 0.25, "timestamp_ms": 2000})


class Stage:
    """A search with early stopping, and three proposals with two replicates each."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.place = Place(folder, read(SPACE, RULE, "replicates=2", *overrides))
        self.search = self.place.search()
        self.search.next_works(refuse)

    def works(self, number: int) -> tuple[Work, ...]:
        return self.search.proposals[number].plan.trials

    def stop(self, work: Work, *values: float) -> None:
        leave_stopped(self.place.ledger, work, values)
        self.search.record_end(work.signature, STOPPED)

    def finish(self, work: Work) -> None:
        self.place.finish(work)
        self.search.record_end(work.signature, COMPLETE)

    def outcome(self, number: int, search: Search | None = None) -> Outcome:
        search = search or self.search
        return search.get_outcome(search.proposals[number])


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


# ------------------------------------------------------------------ search


def test_a_stopped_configuration_is_known_with_its_curve_and_no_value(stage: Stage) -> None:
    first, second = stage.works(0)
    stage.stop(first, 0.1, 0.2, 0.3)
    assert stage.outcome(0).state == RUNNING  # the other one is under way
    stage.stop(second, 0.3)
    outcome = stage.outcome(0)
    assert (outcome.state, outcome.values) == (STOPPED, ())
    assert outcome.curve == pytest.approx({1: 0.2, 2: 0.2, 3: 0.3})
    assert outcome.reason == "stopped early after 3 epochs"
    assert stage.outcome(0, stage.place.search()) == outcome  # all of it is in the ledger


def test_one_complete_replicate_does_not_make_it_complete_and_a_failed_one_makes_it_failed(stage: Stage) -> None:
    for number, end in enumerate((stage.finish, lambda work: stage.search.record_end(work.signature, FAILED))):
        end(stage.works(number)[0])
        stage.stop(stage.works(number)[1], 0.1)
    assert [stage.outcome(number).state for number in (0, 1)] == [STOPPED, FAILED]


def test_without_early_stopping_it_is_open_again(stage: Stage, tmp_path: Path) -> None:
    for work in stage.works(0):
        stage.stop(work, 0.1, 0.2)
    other = Place(tmp_path, read(SPACE, "replicates=2")).search()
    assert [proposal.signature for proposal in other.proposals] == [p.signature for p in stage.search.proposals]
    assert stage.outcome(0, other).state == RUNNING
    actions = reconcile(other.plan, stage.place.ledger.states())
    assert {work.signature for work in actions.resume} == {work.signature for work in stage.works(0)}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_lives_with_what_was_stopped(sampler: str, tmp_path: Path) -> None:
    place = Place(tmp_path, read(SPACE, RULE, f"search.sampler={SAMPLERS[sampler]}", "search.num_trials=12"))
    search = place.search()
    todo = search.next_works(refuse)
    for number, work in enumerate(todo):  # it grows meanwhile
        if number % 2:
            leave_stopped(place.ledger, work, [0.1 * number] * (1 + number))
        else:
            place.finish(work)
        search.record_end(work.signature, STOPPED if number % 2 else COMPLETE)
        todo += search.next_works(refuse)
    assert search.is_over
    assert len(todo) == search.num_distinct == 12  # stopped ones count, and none is run twice
    again = place.search()
    assert again.next_works(refuse) == []
    states = [
        again.get_outcome(each).state for each in again.proposals if each.signature in {w.signature for w in todo}
    ]
    assert states.count(STOPPED) >= 6


def test_a_stopped_configuration_that_is_proposed_again_is_answered(tmp_path: Path) -> None:
    place = Place(tmp_path, read(FINITE, "search.early_stopping={kind: asha, grace_epochs: 1}"))
    search = place.search()
    todo = search.next_works(refuse)
    for work in todo:
        leave_stopped(place.ledger, work, [0.1])
        search.record_end(work.signature, STOPPED)
        todo += search.next_works(refuse)
    assert search.is_exhausted
    assert len(todo) == len({work.signature for work in todo}) == 8


def test_cma_es_ranks_the_stopped_behind_the_complete_by_how_far_they_came() -> None:
    config = read(SPACE, RULE).search
    assert config is not None
    outcomes = [
        Outcome(COMPLETE, (0.9,)),
        Outcome(COMPLETE, (0.1,), {"c": -1.0}),
        Outcome(STOPPED, curve={1: 0.9, 5: 0.3}),
        Outcome(STOPPED, curve={1: 0.1, 2: 0.8}),
        Outcome(STOPPED, curve={1: 0.9, 2: 0.4}),
        Outcome(COMPLETE, (0.95,), {"c": 0.1}),
        Outcome(COMPLETE, (0.99,), {"c": 0.2}),
        Outcome(FAILED),
    ]
    rates = [sampler._compute_ranking_key(config, outcome) for outcome in outcomes]
    assert rates == sorted(rates)  # type: ignore[type-var]
    assert len(set(rates)) == len(rates)
    assert sampler._compute_ranking_key(config, Outcome(RUNNING)) is None


def test_a_curve_has_the_direction_of_the_objective() -> None:
    lines = [{"epoch": 1, "metrics": {"val/loss": 0.5, "val/ece": 0.2}}, {"epoch": 2, "metrics": {"val/ece": 0.1}}]
    by_loss = read(SPACE, "search.early_stopping={kind: asha, metric: validation/nll}").search
    assert by_loss is not None
    assert read_curve(by_loss, lines) == {1: -0.5}  # the objective is an accuracy
    by_itself = read(SPACE, RULE, "search.objectives=[{metric: validation/ece}]").search
    assert by_itself is not None
    assert read_curve(by_itself, lines) == {1: 0.2, 2: 0.1}


# ------------------------------------------------------------------ Optuna's storage


def test_optuna_shows_it_pruned_with_its_learning_curve(stage: Stage, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/optuna.db"

    def project(search: Search) -> list[optuna.trial.FrozenTrial]:
        StorageWriter(uri, "s", search.config, search.space).project(search.show())
        return optuna.load_study(study_name="s", storage=uri).get_trials()

    project(stage.search)
    for work in stage.works(0):
        stage.stop(work, 0.1, 0.2)
    for work in stage.works(1):
        stage.finish(work)
    trial, whole, running = project(stage.search)
    assert [each.state.name for each in (trial, whole, running)] == ["PRUNED", "COMPLETE", "RUNNING"]
    assert (trial.values, trial.intermediate_values) == ([0.2], {1: 0.1, 2: 0.2})
    assert trial.user_attrs["robustsweep.reason"] == "stopped early after 2 epochs"
    assert project(stage.search)[0].datetime_complete == trial.datetime_complete  # again changes nothing
    Path(uri.removeprefix("sqlite:///")).unlink()
    assert project(stage.place.search())[0].intermediate_values == trial.intermediate_values
    goes_on = Place(tmp_path, read(SPACE, "replicates=2")).search()
    assert [each.state.name for each in project(goes_on)] == ["PRUNED", "COMPLETE", "RUNNING", "RUNNING"]


# ------------------------------------------------------------------ how the study stands

HEAD = "study: s\nquestion: Why?\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\n"


def make_study(cache_dir: Path, *overrides: str) -> Study:
    always = [f"execution.cache_dir={cache_dir}", "search.num_trials=6", "training.epochs=5", "replicates=2"]
    return parse_study(HEAD + SPACE, source="s.yaml", overrides=[*always, *overrides])


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """A finished search of which every third configuration was stopped: of the first its second replicate."""
    folder = tmp_path_factory.mktemp("stopped")
    prepared = prepare(make_study(cache_dir, RULE), storage=str(folder))
    search, ledger = prepared.search, prepared.ledger
    assert search is not None
    search.update_states({})
    todo = search.next_works(refuse)
    for work in todo:  # it grows meanwhile
        names = [proposal.arm.name for proposal in search.proposals]
        number, replicate = names.index(work.name), work.replicate
        if number % 3 or (number == 0 and replicate == 0):
            result = make_result(work, ())
            metrics = result["metrics"] | measure(work.config)  # type: ignore[arg-type]
            if number == 0:
                metrics["validation/balanced_accuracy"] = 0.99  # the best there is, and not to be chosen
            ledger.begin(work, study="s", git_commit=None)
            ledger.folder("trial", work.signature).write_json("result.json", result | {"metrics": metrics})
            search.record_end(work.signature, COMPLETE)
        else:
            leave_stopped(ledger, work, [0.1, 0.2, 0.3])
            search.record_end(work.signature, STOPPED)
        todo += search.next_works(refuse)
    ledger.write_plan(search.plan, prepared.about)
    return folder


def text_of(results: Results) -> str:
    section = search_section(results)
    assert section is not None
    return " ".join(re.sub(r"<script.*?</script>|<[^>]+>", " ", section.body, flags=re.DOTALL).split())


def test_what_was_stopped_is_settled_and_counted(storage: Path, cache_dir: Path) -> None:
    study = make_study(cache_dir, RULE)
    counts = compute_status(study, storage=str(storage))
    assert (counts["planned"], counts["complete"], counts[STOPPED], counts["missing"]) == (12, 9, 3, 0)
    console = Console(file=StringIO(), width=200)
    render_status(counts, console)
    assert "stopped early 3" in console.file.getvalue()  # type: ignore[attr-defined]
    prepared = prepare(study, storage=str(storage))
    assert not prepared.is_open
    assert len(prepared.actions.stopped) == 3
    announce(prepared, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "9 trials complete, 3 stopped early, 0 trials and 0 stages to run" in said
    assert "stopping asha, by validation/balanced_accuracy, from 2 epochs on" in said
    summary = summarise(prepared.plan, prepared.states, early_stopping=True)
    assert summary.is_complete
    assert summary.describe() == "9 of 12 trials are complete, 3 were stopped early"
    told = describe_plan(prepared, NO_COSTS)
    assert told["counts"]["stopped_early"] == 3
    assert [row["state"] for row in told["trials"]].count("stopped early") == 3


class _Costs:
    def as_json(self) -> dict[str, Any]:
        return {}


NO_COSTS: Any = _Costs()


def test_for_a_study_that_stops_nothing_it_is_open(storage: Path, cache_dir: Path) -> None:
    study = make_study(cache_dir)
    counts = compute_status(study, storage=str(storage))
    assert STOPPED not in counts
    assert (counts["complete"], counts["interrupted"]) == (9, 3)
    prepared = prepare(study, storage=str(storage))
    assert len(prepared.actions.resume) == 3
    summary = summarise(prepared.plan, prepared.states)
    assert (summary.interrupted, summary.is_complete) == (3, False)


def test_the_report_says_what_was_stopped_and_what_that_has_saved(storage: Path) -> None:
    results = load_results(Ledger(str(storage), "s"))
    assert results.counts == {"planned": 12, "complete": 9, STOPPED: 3, "failed": 0, "interrupted": 0, "missing": 0}
    text = text_of(results)
    assert "6 configurations of 6 proposed, 4 complete" in text
    assert "2 configurations (3 trials) stopped early, which saved 6 of 60 epochs (10 %)" in text
    assert "Which were stopped early?" in text
    assert "3 of 5" in text
    found = find_configurations(results)
    assert found is not None
    assert len(find_best(found)) == 4
    assert not {each.name for each in find_best(found)} & results.stopped_arms
    assert len(results.stopped_arms) == 2


def test_the_page_tells_it_from_what_is_missing(storage: Path, tmp_path: Path) -> None:
    ledger = Ledger(str(storage), "s")
    report = write_report(ledger, cache_dir=tmp_path, examples=False)
    assert report.summary.startswith("12 planned, 9 complete, 3 stopped early\n")
    page = ledger.root.read("report/index.html").decode()
    assert "trials are not complete. Every mean" not in page
    assert "trial, stopped early" in page
    assert "stopped after epoch 3 of 5: validation/balanced_accuracy 0.25 after epoch 2 (asha)" in page


def test_it_is_never_selected_however_good_one_replicate_was(storage: Path) -> None:
    results = load_results(Ledger(str(storage), "s"))
    trials = results.trials.copy()
    is_stopped = trials["name"].isin(results.stopped_arms)
    trials.loc[is_stopped & (trials["state"] == COMPLETE), "val/balanced_accuracy"] = 1.0
    changed = replace(results, trials=trials)
    arms = arms_table(changed)
    assert arms["val/balanced_accuracy.mean"].max() == 1.0
    ranking = rank_arms(changed, "val/balanced_accuracy", higher_is_better=True)
    assert len(ranking) == 4
    assert not {arm.name for arm in ranking} & results.stopped_arms
    assert select_arm(changed, SelectionCriteria()).arm == ranking[0]
    words = answer(changed, arms, [])
    assert words.statements[0].headline == ranking[0].label
    only = replace(changed, trials=trials[is_stopped])
    with pytest.raises(StudyError, match="no complete trial has a defined value"):
        select_arm(only, SelectionCriteria())
    assert answer(only, arms_table(only), []).problem is not None
