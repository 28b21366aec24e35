"""``execution.register: best``: the chosen model is registered at the end of a run, once; a failure costs nothing."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.cli.select import register_if_asked
from orchestrator.driver.terminal.summary import Summary
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection import register_best
from orchestrator.selection.ranking import SelectionCriteria, select_arm
from orchestrator.selection.register_best import REGISTERED, list_models
from orchestrator.study.study_file import Study, load_study
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.shipper import sync
from tests.support.mlflow_stores import make_database
from tests.support.trained_study import TrainedStudy
from trainables.storage.folder import Folder

COMPLETE = Summary(4, 4, 0, 0, 0, 0, 0, None)


@dataclass
class Place:
    """A copy of the small study, all of whose trials are complete, and a store that shows it or not."""

    storage: Path
    uri: str
    study: Study
    file: Path

    def register(self, summary: Summary = COMPLETE, study: Study | None = None) -> str:
        console = Console(file=StringIO(), width=400)
        register_if_asked(study or self.study, summary, storage=str(self.storage), mlflow=self.uri, console=console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    def versions(self) -> list[str]:
        return [str(each.version) for each in MlflowClient(self.uri).search_model_versions("name = 'small'")]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template") / "empty.db"


@pytest.fixture
def place(trained_study: TrainedStudy, tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(trained_study.storage, tmp_path / "results")
    uri = make_database(tmp_path, template)
    study = load_study(trained_study.file, ["execution.register=best"])
    return Place(tmp_path / "results", uri, study, trained_study.file)


def test_the_model_that_validation_chooses_is_registered_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(place.storage), "small")
    sync(ledger, place.uri)
    assert place.register().split() == ["registered", "models:/small@best", "(version", "1)"]
    client = MlflowClient(place.uri)
    version = client.get_model_version_by_alias("small", "best")
    chosen = select_arm(TrainedStudy(place.file, place.storage, Path()).results, SelectionCriteria())
    assert version.tags["robustsweep.signature"] == chosen.signature
    (model,) = client.search_logged_models(["1"])
    files = {Path(each.path).name for each in client.list_logged_model_artifacts(model.model_id)}
    assert {"README.md", "card.html", "MLmodel"} <= files
    Folder(str(place.storage / "small")).remove(REGISTERED)
    assert "(version 1)" in place.register()
    assert place.versions() == ["1"]
    monkeypatch.setattr(register_best, "select_model", lambda *_, **__: pytest.fail("the model was chosen again"))
    assert "small: its model was registered before" in place.register()
    assert place.versions() == ["1"]


def test_it_is_off_by_default_and_waits_for_the_last_trial(place: Place) -> None:
    asked = load_study(place.file)
    assert asked.execution.register is None
    assert place.register(study=asked) == ""
    assert place.register(replace(COMPLETE, complete=3, missing=1)) == ""
    assert not (place.storage / "small" / REGISTERED).exists()


def test_a_failure_is_a_warning_with_the_command(place: Place) -> None:
    said = place.register()  # the store does not have the study
    assert said.startswith("register looked for the run of trial")
    command = f"robustsweep select small --register small --alias best --storage {place.storage} --mlflow {place.uri}"
    assert said.rstrip().endswith(f"the study is complete, register its model with: {command}")
    assert not (place.storage / "small" / REGISTERED).exists()


def test_run_registers_at_its_end(place: Place) -> None:
    words = ["run", str(place.file), "--storage", str(place.storage), "--mlflow", place.uri]
    done = CliRunner().invoke(app, [*words, "--set", "execution.register=best"])
    assert done.exit_code == 0, done.output
    assert "models:/small@best (version 1)" in done.output
    assert place.versions() == ["1"]


def test_every_data_set_has_a_model_of_its_own() -> None:
    assert list_models({"study": "s"}) == {"s": None}
    assert list_models({"study": "s", "data_sets": {"xray": {}, "ct": {}}}) == {"s-xray": "xray", "s-ct": "ct"}
