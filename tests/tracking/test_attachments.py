from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from orchestrator.ledger.ledger import Ledger
from orchestrator.tracking.attachments import count_confusions, draw_confusion, draw_curves, make_attachments
from tests.support.ledger_records import begin, complete, fail, finished, make_ledger
from trainables.errors import StorageError
from trainables.evaluation.predictions import Predictions, save_predictions

LABELS = np.array([0, 0, 0, 1, 1])
LOGITS = np.array([[2, 1], [2, 1], [0, 1], [0, 3], [0, 3]], dtype=np.float32)


def store(ledger: Ledger, name: str = "test") -> None:
    logits = np.stack([-LOGITS, LOGITS])
    predictions = Predictions(name, np.arange(5), LABELS, ("jpeg/3", "identity/0"), logits)
    save_predictions(ledger.folder("trial", "t1"), predictions)


def files_of(ledger: Ledger, traceback: str | None = None) -> dict[str, bytes]:
    return make_attachments(ledger, ledger.read("trial", "t1"), ["no", "yes"], traceback)


def test_a_complete_trial_has_config_log_figures_and_a_summary_of_its_predictions(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    finished(ledger)
    evaluations = [
        {"set": "test", "shift": shift, "severity": severity, "metrics": {"balanced_accuracy": 0.9 - severity / 10}}
        for shift, severity in (("identity", 0), ("jpeg", 1), ("jpeg", 3))
    ]
    complete(ledger, evaluations=evaluations)
    store(ledger)
    ledger.folder("trial", "t1").write("log.txt", b"it began\n")
    files = files_of(ledger)
    assert set(files) == {"config.yaml", "log.txt", "predictions.json", "curves.png", "confusion.png"}
    assert yaml.safe_load(files["config.yaml"]) == ledger.read("trial", "t1").config["config"]
    assert b"# device: cpu\n" in files["config.yaml"]
    assert files["log.txt"] == b"it began\n"
    told = json.loads(files["predictions.json"])["test"]
    assert told["confusion_true_by_predicted"] == [[2, 1], [0, 2]]
    assert told["classes"]["no"] == {
        "num_images": 3, "num_predicted": 2, "recall": pytest.approx(2 / 3), "precision": 1.0,
    }  # fmt: skip
    for name in ("curves.png", "confusion.png"):
        assert Image.open(io.BytesIO(files[name])).size == (720, 420)
        assert len(files[name]) < 100_000


def test_a_failure_has_its_config_and_traceback_only(tmp_path: Path) -> None:
    ledger = make_ledger(tmp_path)
    begin(ledger)
    fail(ledger)
    files = files_of(ledger, "Traceback")
    assert set(files) == {"config.yaml", "traceback.txt"}
    assert files["traceback.txt"] == b"Traceback"


def test_damaged_predictions_are_named() -> None:
    with pytest.raises(StorageError, match="trial x"):
        count_confusions(b"garbage", "trial x")


def test_curves_go_from_the_left_down_and_a_cell_is_as_dark_as_its_share() -> None:
    image = np.asarray(Image.open(io.BytesIO(draw_curves({"jpeg": {0: 1.0, 1: 0.0}}, "t"))).convert("RGB"))
    is_blue = (image == (0, 114, 178)).all(axis=2)
    (left, right) = (np.flatnonzero(is_blue[:, column]).mean() for column in (56, 524))
    assert left < 60
    assert right > 350
    image = np.asarray(Image.open(io.BytesIO(draw_confusion(np.array([[9, 1], [0, 10]]), ["a", "b"], "t"))))
    cells = [tuple(image[_row, _column]) for _row, _column in ((60, 160), (60, 330), (225, 160), (225, 330))]
    assert cells[2] == (255, 255, 255)
    assert cells[3] == (0, 84, 133)
    assert cells[0][0] < cells[1][0]
