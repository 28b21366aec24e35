"""A trial that is stopped while it trains goes on later, bit for bit, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_configs import tiny_trial
from trainables.config import Execution
from trainables.storage.completeness import is_finished, is_stopped
from trainables.storage.folder import Folder
from trainables.training.stopping import StopTraining
from trainables.trial import run_trial

CONFIG = tiny_trial(training={"epochs": 3}, evaluation={"shifts": ["gaussian_noise"], "severities": [1]})


@pytest.fixture(scope="module")
def execution(cache_dir: Path) -> Execution:
    return Execution(device="cpu", cache_dir=cache_dir, early_stopping=True)


def run(folder: Folder, execution: Execution, *, stop_at: int | None = None) -> list[dict[str, Any]]:
    """Run the trial; somebody writes ``stop.json`` when an epoch is reported."""
    events: list[dict[str, Any]] = []

    def report(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "epoch" and event["epoch"] == stop_at:
            folder.write_json("stop.json", {})

    run_trial(CONFIG, signature="mine", folder=folder, execution=execution, report=report)
    return events


def test_it_ends_before_its_next_epoch_and_goes_on_with_the_same_bits(tmp_path: Path, execution: Execution) -> None:
    whole, folder = Folder(tmp_path / "whole"), Folder(tmp_path / "stopped")
    run(whole, execution)
    with pytest.raises(StopTraining) as stop:
        run(folder, execution, stop_at=1)
    assert stop.value.epoch == 1
    assert is_stopped(folder)
    assert len(folder.read_lines("epochs.jsonl")) == 1
    assert folder.exists("checkpoint.safetensors")
    with pytest.raises(StopTraining) as stop:  # whoever begins it again looks before the first epoch
        run(folder, execution)
    assert stop.value.epoch == 1
    assert len(folder.read_lines("epochs.jsonl")) == 1
    folder.remove("stop.json")
    run(folder, execution)
    assert is_finished(folder)
    assert folder.read("model.safetensors") == whole.read("model.safetensors")
    results = [each.read_json("result.json") for each in (whole, folder)]
    for key in ("metrics", "evaluations", "epochs", "best_epoch", "checkpoint_sha256"):
        assert results[0][key] == results[1][key]


def test_after_the_last_epoch_nothing_is_stopped(tmp_path: Path, execution: Execution) -> None:
    folder = Folder(tmp_path)
    run(folder, execution, stop_at=3)
    assert is_finished(folder)
    assert not is_stopped(folder)


def test_other_studies_do_not_look(tmp_path: Path, execution: Execution, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, exists, asked = Folder(tmp_path), Folder.exists, list[str]()
    folder.write_json("stop.json", {})

    def watched(self: Folder, name: str) -> bool:
        asked.append(name)
        return exists(self, name)

    monkeypatch.setattr(Folder, "exists", watched)
    run(folder, execution.model_copy(update={"early_stopping": False}))
    assert is_finished(folder)
    assert "stop.json" not in asked
