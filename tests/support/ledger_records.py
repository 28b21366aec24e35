"""A small ledger written file by file as a worker writes it, to project to MLflow. Tests only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.ledger.ledger import Ledger

STUDY = "demo"
CREATED_MS = 1_790_000_000_000
SHIFTS = ("gaussian_noise", "jpeg")
FINGERPRINT = "ab" * 32
NAME = "pretraining=scratch, augmentation.strength=0.5"
ARM = {"augmentation.strength": 0.5, "pretraining": "scratch"}  # sorted, as a ledger has it


def make_ledger(folder: Path, signatures: tuple[str, ...] = ("t1", "t2"), study: str = STUDY) -> Ledger:
    """Return a ledger with a plan of these trials and nothing run yet."""
    ledger = Ledger(str(folder), study)
    ledger.root.write_json(
        "plan.json",
        {
            "study": study,
            "question": "Does it hold?",
            "factors": {"pretraining": ["scratch", "imagenet"]},
            "replicates": 2,
            "seed": 0,
            "data": {
                "name": "digits",
                "kind": "digits",
                "classes": ["0", "1"],
                "fingerprint": FINGERPRINT,
                "num_images": {"train": 10, "val": 5, "test": 5},
            },
            "git_commit": "c0ffee",
            "written_ms": CREATED_MS,
            "study_sha256": "a" * 64,
            "stages": [],
            "trials": [
                {"signature": signature, "name": NAME, "arm": ARM, "replicate": replicate, "needs": []}
                for replicate, signature in enumerate(signatures)
            ],
        },
    )
    return ledger


def begin(ledger: Ledger, signature: str = "t1", kind: str = "trial", **changes: Any) -> None:
    """Write ``config.json``."""
    is_trial = kind == "trial"
    config = {
        "signature": signature,
        "kind": kind,
        "study": STUDY,
        "name": NAME if is_trial else "simclr",
        "arm": ARM if is_trial else {},
        "replicate": 0 if is_trial else None,
        "needs": [],
        "config": {"data": {"kind": "digits", "sites": []}, "training": {"epochs": 3, "clip": None}, "seed": 0},
        "identity": {},
        "data_fingerprint": FINGERPRINT,
        "git_commit": "c0ffee",
        "created_ms": CREATED_MS,
    }
    ledger.folder(kind, signature).write_json("config.json", config | changes)


def add_epochs(ledger: Ledger, signature: str = "t1", *, first: int = 1, last: int = 3, delay_ms: int = 0) -> None:
    """Append lines to ``epochs.jsonl``."""
    for epoch in range(first, last + 1):
        line = {
            "epoch": epoch,
            "timestamp_ms": CREATED_MS + 1000 * epoch + delay_ms,
            "metrics": {"train/loss": 1.0 / epoch, "val/accuracy": 0.5 + epoch / 10},
        }
        ledger.folder("trial", signature).append_line("epochs.jsonl", json.dumps(line))


def complete(ledger: Ledger, signature: str = "t1", **changes: Any) -> None:
    """Write ``result.json``."""
    evaluations = [_evaluation("test", "identity", 0, 0.9), _evaluation("val", "identity", 0, 0.8)]
    evaluations += [_evaluation("site B (2019)", "identity", 0, 0.7)]
    evaluations += [_evaluation("test", shift, level, 0.9 - level / 10) for shift in SHIFTS for level in (1, 2, 3)]
    result = {
        "signature": signature,
        "status": "complete",
        "finished_ms": CREATED_MS + 9000,
        "duration_seconds": 9.0,
        "epochs": 3,
        "best_epoch": 2,
        "metrics": {"id/accuracy": 0.9, "robustness/mean_accuracy": 0.7, "external/site B (2019)/accuracy": 0.7},
        "evaluations": evaluations,
        "undefined": {"id/auroc": "one class only"},
        "files": {},
        "environment": {"device": "cpu"},
        "num_parameters": 123,
        "cpu_utilization_percentage": 97.5,
        "peak_rss_mib": 300.5,
        "checkpoint_sha256": "d" * 64,
    }
    ledger.folder("trial", signature).write_json("result.json", result | changes)


def fail(ledger: Ledger, signature: str = "t1") -> None:
    """Write ``failure.json``."""
    ledger.folder("trial", signature).write_json(
        "failure.json",
        {
            "signature": signature,
            "status": "failed",
            "reason": "diverged",
            "message": "the loss became nan\nlower the learning rate",
            "traceback": "Traceback: line 1",
            "attempts": 1,
            "timestamp_ms": CREATED_MS + 7000,
        },
    )


def finished(ledger: Ledger, signature: str = "t1") -> None:
    """Write everything of a complete trial."""
    begin(ledger, signature)
    add_epochs(ledger, signature)
    complete(ledger, signature)


def _evaluation(name: str, shift: str, severity: int, value: float) -> dict[str, Any]:
    return {"set": name, "shift": shift, "severity": severity, "metrics": {"accuracy": value, "ece": 1 - value}}


def stop(ledger: Ledger, signature: str = "t1", *, judged: Sequence[str] = ("t1",)) -> None:
    """Write ``stop.json``; every judged trial had the same value."""
    said = {"rule": "asha", "metric": "validation/accuracy", "epoch": 2, "value": 0.7}
    said["values"] = dict.fromkeys(judged, 0.7)
    ledger.folder("trial", signature).write_json("stop.json", said | {"timestamp_ms": CREATED_MS + 2500})
