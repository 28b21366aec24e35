from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from orchestrator.analysis.results import load_results
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection import registry
from orchestrator.selection.export import Exported, export_selection
from orchestrator.selection.ranking import Selection, SelectionCriteria, select_arm
from orchestrator.selection.registry import Registered, register_model
from orchestrator.tracking.client import MlflowClient
from orchestrator.tracking.registry.models import default_store, upload_model
from orchestrator.tracking.shipper import sync
from tests.support.mlflow_stores import make_database
from tests.support.trained_study import TrainedStudy
from trainables.errors import CheckpointError, StudyError


@pytest.fixture(scope="module")
def shipped(trained_study: TrainedStudy, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Ledger]:
    """A store that shows the study, and a copy of its ledger; tests register under names of their own."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copytree(trained_study.storage, folder / "results")
    ledger = Ledger(str(folder / "results"), "small")
    uri = make_database(folder, folder / "empty.db")
    sync(ledger, uri)
    return uri, ledger


@pytest.fixture(scope="module")
def exports(shipped: tuple[str, Ledger], trained_study: TrainedStudy) -> dict[int, tuple[Selection, Exported]]:
    """Replicate → what was exported of it."""
    _, ledger = shipped
    results = load_results(ledger)
    done = {}
    for replicate in (0, 1):
        selection = select_arm(results, SelectionCriteria(replicate=replicate))
        done[replicate] = (
            selection, export_selection(ledger, results, selection, out=None, cache_dir=trained_study.cache_dir),
        )  # fmt: skip
    return done


class Call:
    """Registers one of the exports, and remembers what the user was told."""

    def __init__(self, shipped: tuple[str, Ledger], exports: dict[int, tuple[Selection, Exported]]) -> None:
        self.uri, self.ledger = shipped
        self.exports = exports
        self.told: list[str] = []

    def __call__(self, name: str, *, alias: str | None = None, replicate: int = 0, **changes: Any) -> Registered:
        selection, exported = self.exports[replicate]
        selection = replace(selection, **changes)
        return register_model(
            self.uri, self.ledger, selection, exported, name=name, alias=alias, write_line=self.told.append
        )  # fmt: skip

    def versions(self, name: str) -> list[Any]:
        return list(MlflowClient(self.uri).search_model_versions(f"name = '{name}'"))


@pytest.fixture
def call(
    shipped: tuple[str, Ledger],
    exports: dict[int, tuple[Selection, Exported]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Call(shipped, exports)


def test_the_registered_model_is_loaded_as_users_do_and_answers_alike(call: Call, tmp_path: Path) -> None:
    done = call("fundus", alias="champion")
    assert (done.version, done.uri, done.is_new) == ("1", "models:/fundus@champion", True)
    assert done.check.difference <= 1e-4
    assert list(tmp_path.iterdir()) == [], "no database or mlruns of MLflow's own"
    _, exported = call.exports[0]
    with default_store(call.uri):
        module = mlflow.pytorch.load_model("models:/fundus@champion")
        served = mlflow.pyfunc.load_model("models:/fundus@champion")
    for count in (1, 5):
        with torch.no_grad():
            logits = module(torch.from_numpy(exported.images[:count])).numpy()
        np.testing.assert_allclose(logits, exported.logits[:count], atol=1e-5)
        np.testing.assert_allclose(served.predict(exported.images[:count]), exported.logits[:count], atol=1e-5)


def test_a_version_says_where_it_comes_from_and_leaves_the_run_alone(call: Call) -> None:
    client = MlflowClient(call.uri)
    selection, exported = call.exports[0]
    found = f"tags.`robustsweep.signature` = '{selection.signature}'"
    (before,) = client.search_runs(["1"], found)
    done = call("described", oracle=True, rule="best")
    (version,) = call.versions("described")
    assert version.run_id == done.run_id == before.info.run_id
    assert version.tags["robustsweep.study"] == "small"
    assert version.tags["robustsweep.signature"] == selection.signature
    assert version.tags["robustsweep.checkpoint_sha256"] == exported.model.config.weights_sha256
    assert (version.tags["robustsweep.rule"], version.tags["robustsweep.oracle"]) == ("best", "true")
    assert "an ORACLE" in version.description
    after = client.get_run(done.run_id)
    assert (after.info.status, after.info.end_time) == (before.info.status, before.info.end_time)
    model_id = version.source.removeprefix("models:/")
    assert model_id in [output.model_id for output in after.outputs.model_outputs]
    assert client.get_logged_model(model_id).source_run_id == done.run_id


def test_what_is_stored_holds_no_pickle_and_no_image_of_the_study(call: Call) -> None:
    call("files")
    (version,) = call.versions("files")
    logged = MlflowClient(call.uri).get_logged_model(version.source.removeprefix("models:/"))
    folder = Path(logged.artifact_location.removeprefix("file://"))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"MLmodel", "data/model.pt2", "README.md", "card.html"} <= names
    assert [name for name in names if name.endswith((".pkl", ".pth", ".pickle"))] == []
    with zipfile.ZipFile(folder / "data" / "model.pt2") as archive:
        weights = [name for name in archive.namelist() if "/weights/weight_" in name]
        assert len(weights) > 20
        assert not any(archive.read(name).startswith((b"\x80", b"PK")) for name in weights), "raw bytes of tensors"
    pixels = call.exports[0][1].images[0].tobytes()
    assert not any(pixels in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_same_weights_are_registered_once_and_an_alias_moves(call: Call) -> None:
    first = call("twice", alias="champion")
    again = call("twice", alias="champion")
    assert (first.version, again.version, again.is_new) == ("1", "1", False)
    assert len(call.versions("twice")) == 1
    assert any(line.startswith("was registered already: twice version 1") for line in call.told)
    other = call("twice", alias="champion", replicate=1)
    assert (other.version, other.is_new) == ("2", True)
    assert "alias champion moves from version 1 to version 2" in call.told
    back = call("twice", alias="champion")
    assert (back.version, back.is_new) == ("1", False)
    aliases = MlflowClient(call.uri).get_registered_model("twice").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "1"}
    assert len(call.versions("twice")) == 2
    without = call("twice")
    assert (without.uri, without.alias) == ("models:/twice/1", None)


def change_stored(call: Call, name: str, version: str) -> None:
    """Change a byte of a weight in what the registry has of a version."""
    source = next(each.source for each in call.versions(name) if str(each.version) == version)
    logged = MlflowClient(call.uri).get_logged_model(source.removeprefix("models:/"))
    path = Path(logged.artifact_location.removeprefix("file://")) / "data" / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    weight = next(member for member in members if member.endswith("/weights/weight_0"))
    members[weight] = bytes([members[weight][0] ^ 1]) + members[weight][1:]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def test_a_version_that_comes_back_otherwise_is_deleted_again(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def upload(client: Any, model_id: str, folder: Path) -> None:
        upload_model(client, model_id, folder)
        path = next(Path(call.uri.removeprefix("sqlite:///")).parent.rglob(f"{model_id}/artifacts/data/model.pt2"))
        path.write_bytes(b"PK")

    before = len(MlflowClient(call.uri).search_logged_models(["1"]))
    monkeypatch.setattr(registry, "upload_model", upload)
    with pytest.raises(CheckpointError, match=r"MLflow's wrong version 1: its data/model\.pt2 is not the one"):
        call("wrong", alias="champion")
    assert call.versions("wrong") == []
    assert len(MlflowClient(call.uri).search_logged_models(["1"])) == before
    assert MlflowClient(call.uri).get_registered_model("wrong").aliases == {}


def test_a_version_with_the_same_tags_and_another_network_is_left_alone(call: Call) -> None:
    """Somebody with an account changed it: it is not loaded, which would run code, and not taken for ours."""
    assert call("changed", alias="champion").version == "1"
    change_stored(call, "changed", "1")
    again = call("changed", alias="champion")
    assert (again.version, again.is_new) == ("2", True)
    assert "alias champion moves from version 1 to version 2" in call.told


def test_a_trial_that_is_not_in_mlflow_is_a_wrong_request(call: Call) -> None:
    with pytest.raises(StudyError, match=r"looked for the run of trial 0000.*`robustsweep sync`"):
        call("nobody", signature="0000")
    assert call.versions("nobody") == []


@pytest.mark.parametrize(
    ("name", "alias"),
    [("a/b", None), ("a:b", None), ("it's", None), ("", None), ("a", "v1"), ("a", "latest"), ("a", "x y")],
)
def test_names_that_mlflow_or_a_filter_would_not_take_are_refused(call: Call, name: str, alias: str | None) -> None:
    with pytest.raises(StudyError, match="expected"):
        call(name, alias=alias)


def test_mlflows_own_default_store_is_put_back(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    mlflow.set_tracking_uri("http://127.0.0.1:1")
    with default_store(call.uri):
        assert mlflow.get_tracking_uri() == call.uri
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:1"
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
