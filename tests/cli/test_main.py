from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import main as cli_main
from orchestrator.driver import estimate as estimates
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.tiny_study import Place, copy_place, make_place


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the command line in this process."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("signal.signal", lambda *_: None)  # a test run keeps its own handlers

    def call(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["robustsweep", *words])
        with pytest.raises(SystemExit) as ended:
            cli_main.main()
        captured = capsys.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def place(tmp_path: Path, cache_dir: Path) -> Place:
    return make_place(tmp_path, cache_dir)


# ------------------------------------------------------------------ imports

HELP = """
import sys
import orchestrator, trainables
sys.argv = ["robustsweep", *sys.argv[1:]]
from orchestrator.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {"torch", "torchvision", "ray", "mlflow", "numpy", "pandas", "sklearn", "timm", "plotly", "fsspec"}
print("imported:", *sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["select", "--help"], ["trial", "--help"]], ids=" ".join
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=True)
    assert "Usage: robustsweep" in done.stdout
    assert done.stdout.endswith("imported:\n")


@pytest.mark.parametrize("words", [["status"], ["plan", "--no-pilot"]], ids=" ".join)
def test_looking_needs_neither_torch_nor_ray_nor_mlflow(words: list[str], finished_study: FinishedStudy) -> None:
    flags = finished_study.place.flags
    done = subprocess.run([sys.executable, "-c", HELP, *words, *flags], capture_output=True, text=True, check=True)
    imported = done.stdout.rsplit("imported:", 1)[1].split()
    assert not {"torch", "torchvision", "ray", "mlflow", "pandas", "plotly"} & set(imported)


# ------------------------------------------------------------------ exit code 2: the request was wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "model.name=shufflenet_v2_x0_6"], "shufflenet_v2_x0_5"),
        (["--set", "evaluation.shifts=[smog]"], "evaluation.shifts: found 'smog', expected one of"),
        (["--set", "training.epoch=3"], "epochs"),
        (["--set", "data={kind: medmnist, path: nowhere.npz}"], "nowhere.npz"),
        (["--mlflow", "ftp://x"], "MLflow cannot track to"),
    ],
)
def test_a_wrong_request_is_one_message_and_nothing_is_written(
    words: list[str], message: str, call: Call, place: Place
) -> None:
    said = call("run", *place.flags, *words)
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert message in said.err
    assert "Traceback" not in said.err + said.out
    assert not place.storage.exists()


def test_usage_errors_are_wrong_requests(call: Call, tmp_path: Path) -> None:
    assert call("run").code == 2
    assert call("run", "x.yaml", "--no-such-flag").code == 2
    said = call("plan", str(tmp_path / "missing.yaml"))
    assert said.code == 2
    assert "missing.yaml" in said.err
    assert call("status", str(tmp_path)).code == 2  # a folder


def test_an_unknown_signature_is_a_wrong_request(call: Call, place: Place) -> None:
    said = call("trial", str(place.study), "ffff", "--storage", str(place.storage))
    assert said.code == 2
    assert "looked for exactly one stage or trial 'ffff'" in said.err


def test_a_report_of_nothing_is_a_wrong_request(call: Call, place: Place) -> None:
    assert call("report", *place.flags).code == 2
    assert call("sync", *place.flags).code == 2
    assert not (place.ledger / "report").exists()


def test_a_study_that_is_being_run_is_refused(call: Call, place: Place) -> None:
    now = int(time.time() * 1000)
    holder = {"host": "elsewhere", "pid": 7, "since_ms": now, "alive_ms": now, "token": "theirs"}
    Ledger(str(place.storage), "tiny").root.write_json("lease.json", holder)
    said = call("run", *place.flags)
    assert said.code == 2
    assert "process 7 on elsewhere" in said.err


# ------------------------------------------------------------------ exit codes 1 and 3


def test_storage_that_cannot_be_written_is_infrastructure(call: Call, place: Place) -> None:
    place.storage.write_text("a file is in the way")
    said = call("run", *place.flags)
    assert said.code == 3
    assert said.err.startswith(f"error: could not read {place.storage}")
    assert "Not a directory" in said.err


def test_an_interruption_says_how_to_go_on(call: Call, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.driver.run.run_study", interrupt)
    monkeypatch.setattr("orchestrator.cli.main._exit_without_cleanup", sys.exit)
    said = call("run", *place.flags, "--set", "training.epochs=2", "--set", "question=is it so?", "--address", "host:1")
    assert said.code == 1
    words = (
        f"{place.study} --storage {place.storage} --set training.epochs=2 --set 'question=is it so?' --address host:1"
    )
    assert said.out == f"stopped; go on with: robustsweep run {words}\n"


def test_status_before_the_first_run(call: Call, place: Place) -> None:
    said = call("status", *place.flags, "--json")
    assert said.code == 1
    assert json.loads(said.out) == {
        "planned": 4, "complete": 0, "running": 0, "failed": 0, "interrupted": 0, "missing": 4,
    }  # fmt: skip
    assert "missing      4" in call("status", *place.flags).out
    assert not place.storage.exists()


# ------------------------------------------------------------------ what is printed


def test_the_plan_for_people(call: Call, place: Place) -> None:
    said = call("plan", *place.flags, "--no-pilot")
    assert said.code == 0
    assert "4 trials and 1 stage; 0 trials complete" in said.out
    assert "simclr on digits from scratch" in said.out
    assert "pretraining=contrastive, augmentation=strong" in said.out
    assert "estimate: unknown" in said.out


def test_the_plan_for_programs(call: Call, place: Place) -> None:
    said = call("plan", *place.flags, "--no-pilot", "--json", "--set", "replicates=3")
    plan = json.loads(said.out)
    assert plan["counts"]["planned"] == plan["counts"]["to_run"] == 12
    assert {row["state"] for row in plan["trials"] + plan["stages"]} == {"to run"}


def test_schema_and_doctor_are_json(call: Call, place: Place) -> None:
    schema = json.loads(call("schema").out)
    assert {"study", "data", "factors"} <= set(schema["properties"])
    said = call("doctor", *place.flags, "--json")
    found = {finding["what"]: finding for finding in json.loads(said.out)}
    assert str(place.storage) in found["storage"]["found"]
    assert said.code in (0, 3)  # 3 on a disk that is nearly full


def test_doctor_looks_at_what_the_study_names(call: Call, place: Place, tmp_path: Path) -> None:
    overrides = [f"execution.storage={tmp_path}/named", "execution.mlflow=http://127.0.0.1:9"]
    said = call("doctor", str(place.study), "--json", "--set", overrides[0], "--set", overrides[1])
    assert said.code == 3
    found = {finding["what"]: finding for finding in json.loads(said.out)}
    assert f"{tmp_path}/named" in found["storage"]["found"]
    assert not found["MLflow"]["ok"]


def test_an_arm_without_weights_is_left_out_loudly(
    call: Call, finished_study: FinishedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the plan, in the log and in the report; the study is complete without it, and exits so."""
    monkeypatch.setattr(
        "trainables.pretraining.imagenet.find_missing_weights", lambda name, config: f"no weights of {name} here"
    )
    place = copy_place(finished_study.place, tmp_path)
    text = place.study.read_text()
    arm = "    scratch: {kind: scratch}\n"
    place.study.write_text(text.replace(arm, arm + "    pretrained: {kind: imagenet, on_unavailable: skip}\n"))
    reason = "2 arms of 2 trials: no weights of shufflenet_v2_x0_5 here"
    assert f"left out {reason}" in call("plan", *place.flags).out
    said = call("run", *place.flags)
    assert said.code == 0, said.err
    assert f"left out {reason}" in said.out
    assert "no weights of shufflenet_v2_x0_5 here" in (place.ledger / "report/index.html").read_text()
    place.study.write_text(place.study.read_text().replace("on_unavailable: skip", "on_unavailable: error"))
    said = call("run", *place.flags)
    assert said.code == 2
    assert "no weights of shufflenet_v2_x0_5 here" in said.err
    assert "on_unavailable: skip" in said.err


def test_commands_that_look_at_what_is_there_take_a_name(
    call: Call, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    place = copy_place(finished_study.place, tmp_path)
    flags = ["tiny", "--storage", str(place.storage)]
    said = call("status", *flags)
    assert (said.code, said.err) == (0, "")
    assert "complete     4" in said.out
    assert "4 planned, 4 complete" in call("report", *flags).out
    assert "records shipped to sqlite:///" + str(tmp_path) in call("sync", *flags).out
    said = call("status", "tinny", *flags[1:])
    assert said.code == 2
    assert "the studies there are tiny" in said.err
    said = call("run", *flags)  # needs the file: it says what should be
    assert said.code == 2
    assert "could not read the study tiny" in said.err


def test_report_and_sync_say_what_they_did(call: Call, finished_study: FinishedStudy, tmp_path: Path) -> None:
    place = copy_place(finished_study.place, tmp_path)
    said = call("report", *place.flags, "--metric", "accuracy")
    assert said.code == 0
    assert "4 planned, 4 complete" in said.out
    assert call("report", *place.flags, "--metric", "nonsense").code == 2
    said = call("sync", *place.flags)
    assert said.code == 0, said.err
    assert "5 records shipped to sqlite:///" in said.out
    assert "0 records shipped" in call("sync", *place.flags).out


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_output_that_cannot_show_every_character_is_no_failure(
    encoding: str, finished_study: FinishedStudy, tmp_path: Path
) -> None:
    place = copy_place(finished_study.place, tmp_path)
    for command in (("run",), ("plan", "--no-pilot"), ("status",)):
        words = [sys.executable, "-m", "robustsweep", command[0], *place.flags, *command[1:]]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        assert done.stdout.decode(encoding)


def test_the_plan_is_printed_before_a_pilot_begins(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, before = make_place(tmp_path, cache_dir), []
    really = estimates.estimate

    def look(prepared: Any, *, allow_pilot: bool) -> Any:
        before.append(capsys.readouterr().out)
        return really(prepared, allow_pilot=False)

    monkeypatch.setattr(estimates, "estimate", look)
    monkeypatch.setattr(sys, "argv", ["robustsweep", "plan", *place.flags])
    with pytest.raises(SystemExit):
        cli_main.main()
    assert "classes: 10, in this order: 0, 1, 2" in before[0]
    assert "4 arms × 1 replicates" in before[0]
    assert "estimate" in capsys.readouterr().out
