"""Files beside the code that other programs read: containers, citation, hooks, issue forms and the workflow."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yaml"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def test_the_citation_is_complete_and_of_this_version() -> None:
    """Required by the schema of CFF 1.2.0: cff-version, message, title and authors."""
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["authors"] == [{"name": project()["authors"][0]["name"]}]
    assert (citation["title"].lower(), citation["version"]) == (project()["name"], project()["version"])
    assert citation["license"] == project()["license"]
    assert set(citation["keywords"]) == set(project()["keywords"])


def test_the_hooks_check_what_make_check_does() -> None:
    (local,) = read(".pre-commit-config.yaml")["repos"]
    hooks = {hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in local["hooks"]}
    commands = re.search(r"^check: install\n((?:\t.+\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert commands
    expected = {line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in commands[1].splitlines()}
    assert hooks == expected
    assert all(hook["language"] == "system" for hook in local["hooks"])


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = read(".github/workflows/ci.yaml")
    job = workflow["jobs"]["ci"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    supported = {f"3.{minor}" for minor in range(11, 14)}
    assert set(job["strategy"]["matrix"]["python"]) <= supported


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_asks_something(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    assert any(each.get("validations", {}).get("required") for each in form["body"])
    assert len({each["id"] for each in form["body"]}) == len(form["body"])


def test_the_containers_hold_what_exists_and_no_secret() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.+)$", dockerfile, re.M) for name in line.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "orchestrator", "robustsweep", "trainables"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} == {line for line in allowed if line.startswith("!")}
    extras = re.search(r"'\.\[([a-z,]+)\]'", dockerfile)
    assert extras
    assert set(extras[1].split(",")) <= set(project()["optional-dependencies"])
    compose = read("docker-compose.yaml")
    assert set(compose["services"]) == {"database", "mlflow"}
    assert compose["services"]["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    store = compose["services"]["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    # Without a name the driver is SQLAlchemy's choice: psycopg since 2.1, which the image does not have.
    assert store.startswith("postgresql+psycopg2://mlflow:${POSTGRES_PASSWORD}@")
    assert all(port.startswith("127.0.0.1:") for port in compose["services"]["mlflow"]["ports"])
    named = {mount.split(":")[0] for service in compose["services"].values() for mount in service["volumes"]}
    assert named == set(compose["volumes"])
