"""The command of a job: it finds the storage that the submitter meant, and says nothing that is secret."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.cluster.jobs.attempts import Attempts
from orchestrator.cluster.jobs.entrypoint import (
    build_entrypoint,
    check_no_secret,
    check_storage,
    find_in_upload,
    is_this_machine,
)
from orchestrator.cluster.jobs.upload import find_upload
from orchestrator.ledger.ledger import Ledger
from orchestrator.study.study_file import Study, load_study
from tests.support.tiny_study import make_place
from trainables.errors import StudyError


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return load_study(make_place(tmp_path, tmp_path / "cache").study)


def test_a_folder_of_this_machine_is_refused_unless_the_cluster_has_it() -> None:
    here, bucket = Ledger("results", "tiny"), Ledger("s3://bucket/results", "tiny")
    check_storage(bucket, "http://192.0.2.7:8265", is_shared=False)
    check_storage(here, "http://192.0.2.7:8265", is_shared=True)
    check_storage(here, "http://127.0.0.1:8265", is_shared=False)
    with pytest.raises(StudyError, match=r"on the cluster of 192\.0\.2\.7 with the storage results, a folder of this"):
        check_storage(here, "http://192.0.2.7:8265", is_shared=False)


@pytest.mark.parametrize(
    ("host", "is_here"),
    [("127.0.0.1", True), ("localhost", True), ("192.0.2.7", False), ("no-such-host.invalid", False)],
)
def test_a_machine_knows_its_addresses(host: str, is_here: bool) -> None:
    assert is_this_machine(host) == is_here


def test_the_command_runs_only_where_the_ledger_is(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "it's here"), "tiny")
    attempt = Attempts(ledger).claim(1, "http://head:8265")
    assert attempt is not None
    command = build_entrypoint(ledger, ["run", "a b.yaml", "--set", "x='y'"], program="printf '%s|'")(attempt)

    def call() -> tuple[int, str]:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert call() == (0, "run|a b.yaml|--set|x='y'|")
    (tmp_path / "it's here").rename(tmp_path / "elsewhere")
    code, out = call()
    assert code == 2
    assert out.startswith(f"error: looked for {tmp_path}/it's here/tiny, where the study was submitted, and found")


def test_an_object_store_is_where_it_is() -> None:
    ledger = Ledger("memory://anywhere", "tiny")
    attempt = Attempts(ledger).claim(1, "http://head:8265")
    assert attempt is not None
    assert Attempts(ledger).claim(1, "http://head:8265") is None
    assert build_entrypoint(ledger, ["run"], program="robustsweep")(attempt) == "exec robustsweep run"


def test_passwords_in_flags_and_study_are_refused(study: Study) -> None:
    check_no_secret(study, {"--mlflow": "http://mlflow:5000", "--set": ["execution.max_retries=3"], "--storage": None})
    with pytest.raises(StudyError, match="got --set with a password"):
        check_no_secret(study, {"--set": ["execution.mlflow=http://u:c0ffee@mlflow:5000"]})
    for field in ("mlflow", "optuna"):
        execution = study.execution.model_copy(update={field: "postgresql://user:c0ffee@db/x"})
        with pytest.raises(StudyError, match=rf"got execution\.{field} with a password"):
            check_no_secret(study.model_copy(update={"execution": execution}), {})


def test_the_study_file_has_to_be_among_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "project"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "a.yaml").touch()
    (tmp_path / "b.yaml").touch()
    monkeypatch.chdir(root)
    assert find_in_upload(Path("configs/a.yaml"), find_upload(root)) == Path("configs/a.yaml")
    with pytest.raises(StudyError, match="does not lie in"):
        find_in_upload(tmp_path / "b.yaml", find_upload(root))
    with pytest.raises(StudyError, match="is left out of the upload"):
        find_in_upload(Path("configs/a.yaml"), find_upload(root, ["*.yaml"]))
