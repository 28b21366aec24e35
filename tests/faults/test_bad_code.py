"""Divergence, and a model whose code is wrong: that trial fails with its traceback, and the sweep goes on."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from orchestrator.ledger.derived import PAGE
from orchestrator.ledger.ledger import Ledger
from tests.conftest import FinishedStudy
from tests.support.tiny_study import IN_RAY, make_place

#: Found by every Python of the study: breaks one network as a user's own code would, in its second training step.
SITECUSTOMIZE = """\
import sys


class Breaking:
    def find_spec(self, name, path=None, target=None):
        if name == "trainables.trial":
            sys.meta_path.remove(self)
            from torchvision.models import SqueezeNet

            original, steps = SqueezeNet.forward, []

            def forward(self, images):
                steps.append(self.training)
                if sum(steps) == 2:
                    raise ZeroDivisionError("a bug in the network")
                return original(self, images)

            SqueezeNet.forward = forward
        return None


sys.meta_path.insert(0, Breaking())
"""
FACTORS = """\
factors:
  model.name: [shufflenet_v2_x0_5, squeezenet1_1]
  training.learning_rate: [0.005, 1.0e+6]
"""


@pytest.mark.parametrize("options", [(), pytest.param(IN_RAY, marks=pytest.mark.long)])
def test_one_trial_fails_and_the_sweep_goes_on(
    finished_study: FinishedStudy, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path, finished_study.place.study.parent / "cache")
    text = place.study.read_text()
    start, end = text.index("factors:"), text.index("execution:")
    text = (text[:start] + FACTORS + text[end:]).replace("input_size: 16", "input_size: 32")
    place.study.write_text(text.replace("epochs: 3,", "epochs: 3, optimiser: sgd, label_fraction: 0.3,"))
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", f"{code}:{os.environ.get('PYTHONPATH', '')}")
    done = place.call("run", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    ledger = Ledger(str(place.storage), "tiny")
    records = {
        (record.config["arm"]["model.name"], record.config["arm"]["training.learning_rate"]): record
        for record in ledger.records("trial")
    }
    assert {arm: record.state for arm, record in records.items()} == {
        ("shufflenet_v2_x0_5", "0.005"): "complete",
        ("squeezenet1_1", "0.005"): "failed",
        ("shufflenet_v2_x0_5", "1000000"): "failed",
        ("squeezenet1_1", "1000000"): "failed",
    }
    failures = [record.failure for record in records.values() if record.failure]
    assert Counter(failure["reason"] for failure in failures) == {"error": 2, "diverged": 1}
    for failure in failures:
        assert "Traceback" in failure["traceback"]
        assert ("ZeroDivisionError: a bug in the network" in failure["traceback"]) == (failure["reason"] == "error")
        assert failure["attempts"] == 1  # trying again would change nothing

    client = MlflowClient(f"sqlite:///{place.ledger}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`robustsweep.kind` = 'trial'")
    assert Counter(run.info.status for run in runs) == {"FINISHED": 1, "FAILED": 3}
    assert "a bug in the network" in (place.ledger / PAGE).read_text()
