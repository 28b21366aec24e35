"""A search inside a run: through the command line, and what happens when it cannot go on."""

from __future__ import annotations

import json
import threading
from io import StringIO
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from orchestrator.cli.plan import find_needs
from orchestrator.driver.estimate import estimate
from orchestrator.driver.prepare import Prepared, prepare
from orchestrator.driver.search_loop import SearchLoop, exporting, refresh, write_extended_plan
from orchestrator.driver.terminal.announce import announce
from orchestrator.driver.terminal.summary import add_budget, summarise
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.works import Work
from orchestrator.study.study_file import parse_study
from orchestrator.tracking.client import MlflowClient
from tests.support.command_line import call_words
from tests.support.instant_search import SPACE, measure
from tests.support.tiny_study import Place, make_place
from trainables.errors import StudyError

HEAD = "study: s\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\n"
SMALL = """\
search:
  num_trials: 3
  parallel: 2
  sampler: {kind: random}
  space: {training.learning_rate: {low: 1e-4, high: 1e-2, log: true}}
"""


@pytest.fixture
def prepared(tmp_path: Path, cache_dir: Path) -> Prepared:
    study = parse_study(HEAD + SPACE, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}"])
    return prepare(study, storage=str(tmp_path))


def finish(prepared: Prepared, work: Work, **changes: Any) -> None:
    prepared.ledger.begin(work, study="s", git_commit=None)
    result = {"metrics": measure(work.config), "num_parameters": 5, "undefined": {}, "files": {}}  # type: ignore[arg-type]
    prepared.ledger.folder("trial", work.signature).write_json("result.json", result | changes)


def grow(prepared: Prepared, stop: threading.Event) -> SearchLoop:
    return SearchLoop(prepared, on_event=lambda *_: None, stop=stop, show=lambda: None)


def test_a_look_writes_the_first_round_and_its_plan_grows(prepared: Prepared) -> None:
    assert prepared.is_open
    assert prepared.plan.num_to_come == 10
    assert len(prepared.open_configs) > 2  # from all over the space
    prepared = refresh(prepared, retry_failed=False)
    assert (len(prepared.actions.open), prepared.plan.num_to_come) == (3, 7)
    search_loop = grow(prepared, threading.Event())
    for work in prepared.actions.open:
        assert search_loop.find_more() == []
        finish(prepared, work)
        search_loop.record_end(work, {"status": "complete"})
    assert len(search_loop.find_more()) == 3
    search_loop.check()
    plan = prepared.ledger.read_plan()
    assert (len(plan["trials"]), plan["to_come"]) == (6, 4)
    assert plan["search"]["num_trials"] == 10
    assert not plan["search"]["is_oracle"]
    assert len(write_extended_plan(prepared).plan.trials) == 6


def test_nothing_is_proposed_once_the_study_stops(prepared: Prepared) -> None:
    prepared = refresh(prepared, retry_failed=False)
    stop = threading.Event()
    search_loop = grow(prepared, stop)
    for work in prepared.actions.open:
        finish(prepared, work)
        search_loop.record_end(work, {"status": "complete"})
    stop.set()
    assert search_loop.find_more() == []


def test_a_search_that_cannot_go_on_stops_the_study_and_says_why(prepared: Prepared) -> None:
    prepared = refresh(prepared, retry_failed=False)
    stop = threading.Event()
    search_loop = grow(prepared, stop)
    for work in prepared.actions.open:
        finish(prepared, work, metrics={"validation/accuracy": 0.5})
        search_loop.record_end(work, {"status": "complete"})
    assert search_loop.find_more() == []
    assert stop.is_set()
    with pytest.raises(StudyError, match="looked for validation/balanced_accuracy"):
        search_loop.check()


def test_a_storage_that_is_away_is_said_and_holds_nothing_up(prepared: Prepared, tmp_path: Path) -> None:
    study = prepared.study
    execution = study.execution.model_copy(update={"optuna": f"sqlite:///{tmp_path}/s.yaml/no/folder.db"})
    (tmp_path / "s.yaml").write_text("a file, not a folder")
    changed = Prepared(**(vars(prepared) | {"study": study.model_copy(update={"execution": execution})}))
    console = Console(file=StringIO(), width=200)
    with exporting(changed, console) as show:
        show()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "the search is not in Optuna's storage yet" in said
    assert "the next run tries again" in said


def carry_on(prepared: Prepared) -> tuple[Prepared, list[int]]:
    """Look again and carry out all that is handed out; return the study, and what was said to be held back."""
    spent: list[int] = []
    prepared = refresh(prepared, retry_failed=False)
    search_loop = SearchLoop(
        prepared, on_event=lambda *_: None, stop=threading.Event(), show=lambda: None, on_spent=spent.append
    )
    todo = list(prepared.actions.open)
    while todo:
        work = todo.pop(0)
        finish(prepared, work, duration_seconds=1.0, finished_ms=1000, environment={"device": "cpu"})
        search_loop.record_end(work, {"status": "complete"})
        todo += search_loop.find_more()
    return write_extended_plan(prepared), spent


@pytest.mark.parametrize("order", ["rounds", "asynchronous"])
def test_a_search_stops_when_its_trials_are_spent_and_goes_on_when_there_are_more(
    order: str, tmp_path: Path, cache_dir: Path
) -> None:
    def prepare_with(storage: str, *overrides: str) -> Prepared:
        settings = [f"execution.cache_dir={cache_dir}", f"search.order={order}", *overrides]
        study = parse_study(HEAD + SPACE, source="s.yaml", overrides=settings)
        return prepare(study, storage=str(tmp_path / storage))

    whole, _ = carry_on(prepare_with("undisturbed"))
    assert len(whole.plan.trials) == 10
    names: list[str] = []
    for limit in (2, 5, 6):  # in the first round, in the second, and with it
        prepared, spent = carry_on(prepare_with("s", f"execution.budget={{trials: {limit}}}"))
        counts = add_budget(summarise(prepared.plan, prepared.ledger.states()), prepared, prepared.ledger.states())
        assert (counts.complete, counts.missing, counts.held_back) == (limit, 10 - limit, 10 - limit)
        assert counts.is_out_of_budget
        assert len(spent) == 1
        names = [proposal.arm.name for proposal in prepared.search.proposals]  # type: ignore[union-attr]
        assert len(names) <= limit + 2  # a round of three at most
        again = prepare_with("s", f"execution.budget={{trials: {limit}}}")
        assert not again.is_open
        assert len(refresh(again, retry_failed=False).search.proposals) == len(names)  # type: ignore[union-attr]
    console = Console(file=StringIO(), width=200)
    announce(again, console)
    assert "held back 4 trials: the budget has no room for more" in console.file.getvalue()  # type: ignore[attr-defined]
    assert find_needs(again, estimate(again, allow_pilot=False))["trials"] == 4
    ended, spent = carry_on(prepare_with("s", "execution.budget={trials: 10}"))
    assert not spent
    if order == "rounds":
        assert [trial.name for trial in ended.plan.trials] == [trial.name for trial in whole.plan.trials]
    assert len(ended.plan.trials) == 10
    assert not ended.actions.held_back


def test_hypotheses_about_a_search_are_refused_with_the_reason() -> None:
    sides = "treatment: {augmentation: strong}, control: {augmentation: none}"
    claim = f"{{name: h, claim: c, {sides}, direction: higher, smallest_effect: 0}}"
    with pytest.raises(
        StudyError, match=r"hypotheses: does not go with search: .*no test on them keeps its error rate"
    ):
        parse_study(HEAD + SPACE, source="s.yaml", overrides=[f"hypotheses=[{claim}]"])


def test_a_search_through_the_command_line(tmp_path: Path, cache_dir: Path) -> None:
    place = make_place(tmp_path, cache_dir)
    lines = place.study.read_text().splitlines()
    kept = [line for line in lines if not any(word in line for word in ("scratch", "contrastive", "pretraining"))]
    place.study.write_text("\n".join(kept) + "\n" + SMALL)
    once = ("--set", "training.epochs=1", "--set", "hypotheses=[]")
    done = place.call("run", *once)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "search   random for higher validation/balanced_accuracy; 2 of 3 configurations proposed" in done.stdout
    assert "3 planned, 3 complete" in done.stdout
    check_shown(place)
    settled = place.call("run", *once)
    assert settled.returncode == 0
    assert "settled" in settled.stdout
    counted = json.loads(call_words("status", *place.flags, "--json", *once).stdout)
    assert (counted["planned"], counted["complete"]) == (3, 3)
    words = ("--json", "--no-pilot", *once, "--set", "search.num_trials=5")
    more = json.loads(call_words("plan", *place.flags, *words).stdout)
    assert (more["counts"]["planned"], more["counts"]["complete"], more["counts"]["to_come"]) == (5, 3, 2)
    assert more["estimate"]["work_seconds"] > 0


def check_shown(place: Place) -> None:
    shown = optuna.load_study(study_name="tiny", storage=f"sqlite:///{place.ledger}/optuna.db").get_trials()
    assert [trial.state.name for trial in shown] == ["COMPLETE"] * 3
    states = Ledger(str(place.storage), "tiny").states()
    assert {trial.user_attrs["signature"] for trial in shown} == {s for s, state in states.items()}


STOPPING = """\
search:
  num_trials: 3
  parallel: 1
  sampler: {kind: random}
  space: {training.learning_rate: {choices: [5e-3, 1e-9, 1e-8]}}
  early_stopping: {kind: asha, grace_epochs: 2, reduction_factor: 2}
"""


@pytest.mark.long
def test_a_search_that_stops_early_through_the_command_line(tmp_path: Path, cache_dir: Path) -> None:
    place = make_place(tmp_path, cache_dir)
    lines = place.study.read_text().splitlines()
    kept = [line for line in lines if not any(word in line for word in ("scratch", "contrastive", "pretraining"))]
    kept = [line for line in kept if not line.startswith(("factors", "  augmentation"))]
    place.study.write_text("\n".join(kept) + "\n" + STOPPING)
    # With this seed the one that learns is the first; the others cannot keep up, by epoch 8 at the latest.
    options = (
        "--set",
        "training.epochs=11",
        "--set",
        "training.label_fraction=0.4",
        "--set",
        "hypotheses=[]",
        "--set",
        "seed=3",
    )
    done = place.call("run", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stopping asha, by validation/balanced_accuracy, from 2 epochs on" in done.stdout
    assert "3 planned, 1 complete, 2 stopped early" in done.stdout
    assert done.stdout.count("stopped early after epoch") == 2
    ledger = Ledger(str(place.storage), "tiny")
    states = ledger.states()
    stopped = [signature for signature, state in states.items() if state == "stopped_early"]
    assert (len(stopped), list(states.values()).count("complete")) == (2, 1)
    for signature in stopped:
        folder = ledger.folder("trial", signature)
        assert 2 <= len(folder.read_lines("epochs.jsonl")) < 11
        assert folder.exists("checkpoint.safetensors")
        assert not folder.exists("model.safetensors")
    shown = optuna.load_study(study_name="tiny", storage=f"sqlite:///{place.ledger}/optuna.db").get_trials()
    assert sorted(trial.state.name for trial in shown) == ["COMPLETE", "PRUNED", "PRUNED"]
    assert all(len(trial.intermediate_values) >= 2 for trial in shown)
    runs = find_runs(place)
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED", "KILLED"]
    assert sum("robustsweep.stopped_early" in run.data.tags for run in runs) == 2
    assert "2 configurations (2 trials) stopped early" in (place.ledger / "report" / "index.html").read_text()
    again = place.call("run", *options)
    assert (again.returncode, "settled" in again.stdout) == (0, True), again.stdout + again.stderr
    whole = place.call("run", *options, "--set", "search.early_stopping=null")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "3 planned, 3 complete" in whole.stdout
    assert set(Ledger(str(place.storage), "tiny").states().values()) == {"complete"}
    assert [run.info.status for run in find_runs(place)] == ["FINISHED"] * 3


def find_runs(place: Place) -> list[Any]:
    """Return MLflow's runs of the trials."""
    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [run for run in runs if run.data.tags["robustsweep.kind"] == "trial"]
