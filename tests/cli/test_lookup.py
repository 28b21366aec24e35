"""A study by its name: what was run is found again, and what is not there is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.lookup import describe_differences, list_studies, open_study
from orchestrator.cli.status import compute_status
from orchestrator.ledger.ledger import Ledger
from orchestrator.study.study_file import load_study
from orchestrator.tracking.addresses import resolve_tracking_uri
from tests.conftest import FinishedStudy
from tests.support.command_line import call_words
from tests.support.tiny_study import copy_place
from trainables.errors import StudyError


def change_plan(storage: Path, **changes: object) -> Ledger:
    ledger = Ledger(str(storage), "tiny")
    ledger.root.write_json("plan.json", ledger.read_plan() | changes)
    return ledger


def test_a_study_that_was_run_is_the_one_of_its_file(finished_study: FinishedStudy) -> None:
    place = finished_study.place
    storage = str(place.storage)
    known, from_file = open_study("tiny", storage=storage), load_study(place.study)
    assert known.describe() == from_file.describe()
    assert describe_differences(known, storage=storage) == []
    assert known.execution.cache_dir == from_file.execution.cache_dir
    assert known.execution.storage == storage
    assert compute_status(known, storage=storage)["complete"] == 4
    assert open_study(str(place.study), storage=storage) == from_file
    assert open_study("tiny", overrides=[f"execution.storage={storage}"]).execution.storage == storage


@pytest.mark.parametrize("what", ["tinny", "tiny.yaml", "../tiny", "/nowhere/tiny.yaml", ""])
def test_what_is_neither_a_file_nor_a_name_is_one_message(finished_study: FinishedStudy, what: str) -> None:
    storage = str(finished_study.place.storage)
    (Path(storage) / "no study").mkdir(exist_ok=True)
    with pytest.raises(
        StudyError, match=r"found no study file .* no study of that name.*: the studies there are tiny;"
    ):
        open_study(what, storage=storage)
    assert list_studies(storage) == ["tiny"]


def test_a_storage_without_a_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"there is no study there; .*--storage"):
        open_study("tiny", storage=str(tmp_path / "nowhere"))


def test_only_how_it_is_executed_can_be_set_without_the_file(finished_study: FinishedStudy, tmp_path: Path) -> None:
    storage = str(finished_study.place.storage)
    known = open_study("tiny", storage=storage, overrides=[f"execution.cache_dir={tmp_path}"])
    assert known.execution.cache_dir == tmp_path
    with pytest.raises(StudyError, match=r"--set replicates: .*only execution can be set; give the study file"):
        open_study("tiny", storage=storage, overrides=["replicates=3"])
    with pytest.raises(StudyError, match=r"execution\.devise"):
        open_study("tiny", storage=storage, overrides=["execution.devise=cpu"])


def test_budget_and_mlflow_are_those_of_the_last_run(finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = copy_place(finished_study.place, tmp_path)
    storage = str(place.storage)
    assert open_study("tiny", storage=storage).execution.mlflow is None  # beside the ledger, wherever that is now
    budget = {"limits": {"trials": 3, "money": 5.0}, "price_per_gpu_hour": 2.5}
    ledger = change_plan(place.storage, mlflow="http://***@server:5000", budget=budget)
    execution = open_study("tiny", storage=storage).execution
    assert execution.budget is not None
    assert (execution.budget.limits(), execution.price_per_gpu_hour) == (budget["limits"], 2.5)
    with pytest.raises(StudyError, match=r"without the password.*--mlflow"):
        resolve_tracking_uri(ledger, flag=None, study_value=execution.mlflow, environment={})
    change_plan(place.storage, base=ledger.read_plan()["base"] | {"data": {"kind": "crystals"}})
    with pytest.raises(StudyError, match=r"data.kind: .*crystals[\s\S]*another version.*give the study file"):
        open_study("tiny", storage=storage)


def test_differences_from_what_was_run_are_named_by_key(finished_study: FinishedStudy) -> None:
    storage = str(finished_study.place.storage)
    changed = load_study(
        finished_study.place.study, ["training.epochs=7", "factors.augmentation=[none, strong, trivialaugment]"]
    )
    first, *lines = describe_differences(changed, storage=storage)
    assert first == "the study differs from the one that was last run; this is about that one"
    assert "  training.epochs: 3 was run, now 7" in lines
    assert any(line.startswith("  factors.augmentation: ") and '"trivialaugment"' in line for line in lines)
    assert len(lines) == 2
    assert describe_differences(changed, storage=f"{storage}/elsewhere") == []


@pytest.mark.parametrize("command", ["status", "report", "select"])
def test_commands_about_a_study_say_that_its_file_differs(
    finished_study: FinishedStudy, tmp_path: Path, command: str
) -> None:
    place = copy_place(finished_study.place, tmp_path)
    done = call_words(command, *place.flags, "--set", "training.epochs=7")
    assert "differs from the one that was last run" in done.stderr
    assert "training.epochs: 3 was run, now 7" in done.stderr


def test_fields_that_a_later_version_has_added_are_no_difference(finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = copy_place(finished_study.place, tmp_path)
    plan = Ledger(str(place.storage), "tiny").read_plan()
    base = plan["base"] | {"data": {key: value for key, value in plan["base"]["data"].items() if key != "on_leak"}}
    change_plan(place.storage, base=base, study_sha256="of an earlier version")
    assert describe_differences(open_study("tiny", storage=str(place.storage)), storage=str(place.storage)) == []
    assert describe_differences(load_study(place.study), storage=str(place.storage)) == []
