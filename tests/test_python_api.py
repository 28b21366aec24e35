"""The public package: its names, and the example of ``docs/python.md`` as a reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import robustsweep
from tests.support.paths import ROOT
from tests.support.trained_study import TrainedStudy
from trainables.errors import ConfigError, StudyError


def test_every_public_name_is_there_and_documented() -> None:
    for name in robustsweep.__all__:
        assert getattr(robustsweep, name), name
        assert name.startswith("__") or getattr(robustsweep, name).__doc__
    assert set(robustsweep.__all__) == set(dir(robustsweep))
    with pytest.raises(AttributeError, match=r"no attribute 'rum'; it has .*run, run_trial"):
        robustsweep.rum  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, robustsweep; robustsweep.__version__; robustsweep.load_study\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'numpy', 'pandas', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [("--version",), ("--help",)])
def test_the_module_is_the_command_line(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "robustsweep", *words], capture_output=True, text=True, check=True)
    expected = f"robustsweep {robustsweep.__version__}\n" if words == ("--version",) else "Usage:"
    assert expected in done.stdout


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 6
    (tmp_path / "example.py").write_text("\n".join(blocks))
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "all 4 trials are complete" in done.stdout
    assert (tmp_path / "results/notebook/report/index.html").exists()
    assert (tmp_path / "one-trial/result.json").exists()


def test_results_are_tidy_and_those_of_the_ledger(trained_study: TrainedStudy) -> None:
    study, storage = trained_study.study, trained_study.ledger.storage
    results = robustsweep.results(study, storage=storage)
    assert len(results.trials) == 4
    assert results.trials["signature"].is_unique
    assert len(results.arms) == 2
    signature = results.trials["signature"].iloc[0]
    predictions = results.predictions(signature)
    assert not predictions.duplicated(["set", "id", "shift", "severity"]).any()
    probabilities = predictions.filter(like="probability/")
    assert probabilities.sum(axis=1).round(6).eq(1).all()
    assert (probabilities.idxmax(axis=1) == "probability/" + predictions["predicted"]).all()
    rows = results.shifts[results.shifts["signature"] == signature].set_index(["set", "shift", "severity"])
    hits = predictions.assign(hit=predictions["label"] == predictions["predicted"])
    found = hits.groupby(["set", "shift", "severity"])["hit"].mean()
    for key, accuracy in found.items():
        assert rows.loc[key, "accuracy"] == pytest.approx(accuracy)
    planned = robustsweep.plan(study, storage=storage)
    assert set(planned["action"]) == {"complete"}
    assert robustsweep.status(study, storage=storage)["complete"] == 4


def test_what_is_not_there_is_an_error(trained_study: TrainedStudy, tmp_path: Path) -> None:
    results = robustsweep.results(trained_study.study, storage=trained_study.ledger.storage)
    with pytest.raises(StudyError, match="found no study file"):
        robustsweep.results("nothing-of-this-name", storage=str(tmp_path))
    with pytest.raises(StudyError, match="not complete"):
        results.predictions("0" * 16)
    with pytest.raises(ConfigError, match="no description of a trial"):
        robustsweep.run_trial({"training": {"epoch": 3}}, folder=tmp_path)
    with pytest.raises(ConfigError, match="a stage that only a study runs"):
        robustsweep.run_trial({"pretraining": {"kind": "contrastive"}}, folder=tmp_path)
