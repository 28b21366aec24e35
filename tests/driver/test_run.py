from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console

from orchestrator.driver import run
from orchestrator.driver.prepare import Prepared, find_git_commit, prepare, resolve_execution
from orchestrator.driver.run import record_upstream_failures, release_ended_claims, run_study, summarise
from orchestrator.driver.terminal.announce import announce
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.inputs import Inputs
from orchestrator.planning.plan import Plan, Skipped
from orchestrator.planning.reconcile import reconcile
from orchestrator.planning.states import COMPLETE
from orchestrator.planning.trial_checks import check_trials
from orchestrator.study.study_file import Study, parse_study
from tests.support.plans import make_stage, make_trial
from trainables.config import TrialConfig
from trainables.errors import ConfigError, DataError, LeaseError, StudyError, WeightsUnavailableError
from trainables.storage.claims import find_claim, take_claim

HEAD = "study: s\nquestion: Why?\ndata: {kind: digits, image_size: 8}\nmodel: {name: shufflenet_v2_x0_5}\n"


def make_study(text: str = "", *overrides: str, cache_dir: Path) -> Study:
    return parse_study(HEAD + text, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])


@pytest.fixture
def prepared(tmp_path: Path, cache_dir: Path) -> Prepared:
    study = make_study("factors: {augmentation: [none, strong]}\n", cache_dir=cache_dir)
    return prepare(study, storage=str(tmp_path / "results"))


def said_by(prepared: Prepared) -> str:
    console = Console(file=StringIO(), width=60)
    announce(prepared, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


# ------------------------------------------------------------------ counting


def test_every_planned_trial_is_counted_once() -> None:
    trials = [make_trial(name) for name in ("complete", "failed", "interrupted", "absent")]
    states = {trial.signature: trial.name for trial in trials if trial.name != "absent"}
    summary = summarise(Plan((), tuple(trials), (Skipped("x", {}, 1, "?"),)), states)
    assert (summary.planned, summary.complete, summary.failed) == (4, 1, 1)
    assert (summary.interrupted, summary.missing, summary.skipped_arms) == (1, 1, 1)
    assert not summary.is_complete
    assert not summary.is_only_failed


@pytest.mark.parametrize(("others", "expected"), [("failed", True), ("interrupted", False), ("absent", False)])
def test_only_what_failed_needs_a_flag_to_go_on(others: str, expected: bool) -> None:
    plan = Plan((), (make_trial("a"), make_trial("b"), make_trial("c")))
    states = dict(zip((trial.signature for trial in plan.trials), ("complete", "failed", others), strict=True))
    assert summarise(plan, states).is_only_failed is expected


# ------------------------------------------------------------------ what is said before it starts


def test_the_announcement_counts_what_there_is(prepared: Prepared) -> None:
    assert "2 trials and 0 stages; 0 trials complete, 2 trials and 0 stages to run\n" in said_by(prepared)
    states = {prepared.plan.trials[0].signature: "interrupted", "f" * 16: "complete"}
    said = said_by(replace(prepared, actions=reconcile(prepared.plan, states)))
    assert "2 trials and 0 stages to run, 1 of them to resume" in said
    assert "1 stages and trials in the ledger that are no longer planned" in said


def test_what_is_planned_otherwise_than_before_is_said(prepared: Prepared) -> None:
    before = prepared.about | prepared.plan.as_json()
    assert "changed" not in said_by(prepared) + said_by(replace(prepared, before=before))
    before["trials"] = [before["trials"][0], *({"signature": digit * 16} for digit in "ab")]
    said = said_by(replace(prepared, before=before))
    assert "changed  1 trial added, 2 no longer planned since the run before\n" in said
    assert "the study file is the same: weights or defaults have changed (with the same versions)" in said
    older = before | {"versions": before["versions"] | {"torch": "1.0"}}
    assert " instead of 1.0)" in said_by(replace(prepared, before=older))
    other = before | {"study_sha256": "0"}
    assert said_by(replace(prepared, before=other)).count("changed") == 1
    moved = other | {"data": before["data"] | {"fingerprint": "0"}}
    assert "the images, labels or splits have changed" in said_by(replace(prepared, before=moved))


def test_what_is_left_out_or_failed_is_said_loudly_and_literally(prepared: Prepared) -> None:
    """Names and reasons may look like markup: [red] or [/]."""
    plan = replace(prepared.plan, skipped=(Skipped("pretraining=[red]", {}, 2, "no [/] weights"),))
    states = {prepared.plan.trials[0].signature: "failed"}
    said = said_by(replace(prepared, plan=plan, actions=reconcile(plan, states)))
    assert "left out 1 arm of 2 trials: no [/] weights; details in the report" in said
    assert "failed before 1 trial; --retry-failed tries again" in said


def test_the_claim_of_a_complete_trial_whose_driver_was_lost_is_released(prepared: Prepared) -> None:
    done, running = prepared.plan.trials[:2]
    claims = {work.signature: take_claim(prepared.ledger.claims(work.signature), 2) for work in (done, running)}
    actions = reconcile(prepared.plan, {done.signature: COMPLETE})
    release_ended_claims(replace(prepared, actions=actions))
    assert find_claim(prepared.ledger.claims(done.signature)) is None
    assert find_claim(prepared.ledger.claims(running.signature)) == claims[running.signature]


def test_a_new_arm_on_a_failed_stage_is_recorded_as_failed(prepared: Prepared) -> None:
    stage = make_stage("stage")
    old, new = make_trial("old", stage), make_trial("new", stage)
    plan = Plan((stage,), (old, new))
    prepared.ledger.record_failure(stage, {"reason": "error", "message": "m"}, study="s", git_commit=None)
    states = prepared.ledger.states()
    record_upstream_failures(replace(prepared, plan=plan, states=states, actions=reconcile(plan, states)))
    records = {record.config["name"]: record for record in prepared.ledger.records("trial")}
    assert set(records) == {"old", "new"}
    for record in records.values():
        assert record.failure is not None
        assert record.failure["reason"] == "upstream"
        assert stage.signature in record.failure["message"]


# ------------------------------------------------------------------ nothing starts when the request is wrong


def attempt(study: Study, storage: Path) -> None:
    run_study(study, storage=str(storage), mlflow=None, address=None, console=Console(file=StringIO()))


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("model.name=shufflenet_v2_x0_6", ConfigError, "shufflenet_v2_x0_5"),
        # A fork server each; the checks themselves are tested without one (planning/test_trial_checks.py).
        pytest.param("model.name=timm/nonsense", ConfigError, "nonsense", marks=pytest.mark.long),
        pytest.param("training.batch_size=1", ConfigError, "expected at least 2, or a net", marks=pytest.mark.long),
        pytest.param("regulariser=stochastic_depth", ConfigError, "which it does not have", marks=pytest.mark.long),
        pytest.param(
            "regulariser=stain_normalisation", ConfigError, "of 1 channel, expected RGB", marks=pytest.mark.long
        ),
        ("evaluation.shifts=[gaussian_nois]", StudyError, "did you mean 'gaussian_noise'"),
        ("training.batch_size=100000", StudyError, "found 100000, and there are"),
        ("regulariser={kind: spectral_decoupling, weight: [0.1, 0.2]}", StudyError, "one per class"),
        ("regulariser={kind: group_dro, group_by: [scaner]}", StudyError, "found scaner, expected class, site"),
        ("data={kind: csv, path: /nowhere.csv}", DataError, "/nowhere.csv"),
    ],
)
def test_a_wrong_request_stops_before_anything_is_written(
    override: str, error: type[Exception], message: str, tmp_path: Path, cache_dir: Path
) -> None:
    with pytest.raises(error, match=message):
        attempt(make_study("", override, cache_dir=cache_dir), tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("override", ["execution.device=cuda", "training.precision=bfloat16"])
def test_what_needs_a_gpu_is_refused_where_there_is_none(
    override: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.execution.resources._GPU_DEVICES", ())
    key, _, found = override.partition("=")
    with pytest.raises(StudyError, match=f"{key}: found {found}, and this machine has no GPU"):
        attempt(make_study("", override, cache_dir=cache_dir), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_second_driver_is_refused_before_the_data_are_read(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time() * 1000)
    holder = {"host": "elsewhere", "pid": 7, "since_ms": now, "alive_ms": now, "token": "theirs"}
    Ledger(str(tmp_path), "s").root.write_json("lease.json", holder)
    monkeypatch.setattr(run, "prepare", lambda *_, **__: pytest.fail("the data were read"))
    with pytest.raises(LeaseError, match="process 7 on elsewhere"):
        attempt(make_study(cache_dir=cache_dir), tmp_path)


def test_a_driver_that_has_lost_the_lease_records_no_failure(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_lease(prepared: Prepared, *_: object, **__: object) -> None:
        root, trial = Ledger(str(tmp_path), "s").root, prepared.plan.trials[0]
        root.write_json("lease.json", root.read_json("lease.json") | {"token": "theirs"})
        details = {"reason": "error", "message": "refused to write"}
        prepared.ledger.record_failure(trial, details, study="s", git_commit=None)

    monkeypatch.setattr(run, "Runtime", MagicMock())  # nothing is trained
    monkeypatch.setattr(run, "execute_and_report", lose_lease)
    with pytest.raises(LeaseError, match="now held by"):
        attempt(make_study(cache_dir=cache_dir), tmp_path)
    assert not list((tmp_path / "s").rglob("failure.json"))


# ------------------------------------------------------------------ weights


IMAGENET = "factors: {pretraining: {scratch: scratch, imagenet: {kind: imagenet, on_unavailable: %s}}}\nreplicates: 2\n"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def find_missing_weights(name: str, *_: Any) -> str:
        asked.append(name)
        return f"no weights of {name} can be reached"

    monkeypatch.setattr("trainables.pretraining.imagenet.find_missing_weights", find_missing_weights)
    return asked


def test_missing_weights_stop_the_study(offline: list[str], tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match=r"no weights of .*pretraining.file.*on_unavailable: skip"):
        prepare(make_study(IMAGENET % "error", cache_dir=cache_dir), storage=str(tmp_path))


def test_missing_weights_leave_arms_out_when_the_study_says_so(
    offline: list[str], tmp_path: Path, cache_dir: Path
) -> None:
    prepared = prepare(make_study(IMAGENET % "skip", cache_dir=cache_dir), storage=str(tmp_path))
    assert len(prepared.plan.trials) == 2
    assert [skipped.num_trials for skipped in prepared.plan.skipped] == [2]
    assert len(offline) == 1  # asked once
    assert (
        "left out 1 arm of 2 trials: no weights of shufflenet_v2_x0_5 can be reached; details in the report"
        in said_by(prepared)
    )


def test_the_digest_of_a_weights_file_is_identity_and_its_path_is_not(tmp_path: Path) -> None:
    signatures = set()
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"two")):
        (tmp_path / name).write_bytes(content)
        config = TrialConfig.model_validate({"pretraining": {"kind": "imagenet", "file": tmp_path / name}})
        resolved = Inputs(tmp_path).resolve(config)
        signatures.add(resolved.pretraining.file_sha256)  # type: ignore[union-attr]
    assert len(signatures) == 2
    assert Inputs(tmp_path).resolve(TrialConfig()) == TrialConfig()


def test_a_timm_network_and_every_shift_pass_the_check(cache_dir: Path) -> None:
    config = TrialConfig.model_validate({"data": {"kind": "digits", "image_size": 8}, "model": {"name": "resnet18"}})
    timm = config.model_copy(update={"model": config.model.model_copy(update={"name": "timm/test_resnet"})})
    check_trials([config, timm, config], Inputs(cache_dir))


def test_an_image_size_that_a_network_does_not_take_is_found_before_it_trains(cache_dir: Path) -> None:
    model = {"name": "squeezenet1_1", "input_size": 16}
    config = TrialConfig.model_validate({"data": {"kind": "digits", "image_size": 16}, "model": model})
    with pytest.raises(ConfigError, match=r"tried images of 16 px .* set model\.input_size"):
        check_trials([config], Inputs(cache_dir))


def test_two_data_sets_that_differ_in_place_only_are_both_read(tmp_path: Path, cache_dir: Path) -> None:
    """The same manifest over two roots: the fingerprints differ, if both are looked at."""
    from PIL import Image

    from trainables.data_config import CsvData

    rows = [f"{index}.png,{'ab'[index % 2]},{('train', 'val', 'test')[index // 2]}" for index in range(6)]
    (tmp_path / "m.csv").write_text("\n".join(["file_name,label,split", *rows]) + "\n")
    inputs, fingerprints = Inputs(cache_dir), set()
    for root in ("bright", "dark"):
        (tmp_path / root).mkdir()
        for index in range(6):
            Image.new("L", (8, 8), 10 * index + 100 * (root == "bright")).save(tmp_path / root / f"{index}.png")
        config = CsvData(path=tmp_path / "m.csv", root=tmp_path / root, image_size=8)
        fingerprints.add(inputs.dataset(config).fingerprint)
    assert len(fingerprints) == 2


# ------------------------------------------------------------------ threads, commit


def test_a_trial_has_as_many_threads_as_cpus(cache_dir: Path) -> None:
    for cpus, threads in ((0.5, 1), (1, 1), (4, 4)):
        study = make_study("", f"execution.cpus_per_trial={cpus}", cache_dir=cache_dir)
        assert resolve_execution(study).num_threads == threads


def test_decisions_on_acceleration_lie_in_the_ledger(tmp_path: Path, cache_dir: Path) -> None:
    ledger = Ledger(str(tmp_path), "s")
    off = make_study("", cache_dir=cache_dir)
    probing = make_study("", "execution.acceleration=probe", cache_dir=cache_dir)
    assert resolve_execution(off, ledger).acceleration is None
    assert resolve_execution(probing, ledger).acceleration == str(tmp_path / "s" / "acceleration")
    assert resolve_execution(probing).acceleration is None  # a pilot decides nothing


def test_the_commit_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert find_git_commit() is None
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run([*git, *command], check=True, env=os.environ | {"GIT_CONFIG_GLOBAL": os.devnull})
    commit = find_git_commit()
    assert commit is not None
    assert len(commit) == 40
    assert int(commit, 16)
