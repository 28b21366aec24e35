"""A study's ledger with plausible synthetic numbers, written through the same API as a real one. Tests only."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.identity import compute_signature
from orchestrator.planning.plan import Plan, Skipped
from orchestrator.planning.works import Work
from trainables.config import TrialConfig
from trainables.data_config import DigitsData
from trainables.evaluation.metrics import AGGREGATES, METRICS, name_over_shifts
from trainables.evaluation.shift_means import average_shifts

FACTORS = {
    "pretraining": ("scratch", "imagenet", "contrastive"),
    "augmentation": ("none", "strong"),
    "regulariser": ("none", "spectral_decoupling"),
}
SHIFTS = [
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "gaussian_blur",
    "defocus_blur",
    "motion_blur",
    "brightness_up",
    "brightness_down",
    "contrast_down",
    "gamma_up",
    "saturation",
    "jpeg",
    "pixelate",
]
LEVEL_VALUES = {"imagenet": 0.03, "contrastive": 0.02, "strong": -0.005, "spectral_decoupling": 0.002}
LEVEL_ROBUSTNESS = {"imagenet": 0.12, "contrastive": 0.2, "strong": 0.45, "spectral_decoupling": 0.05}
STARTED_MS = 1_790_000_000_000


@dataclass(frozen=True)
class Fate:
    """How many trials, from the end of the plan, do not become complete."""

    failed: int = 0
    interrupted: int = 0
    missing: int = 0


def make_fake_ledger(
    storage: Path,
    *,
    factors: Mapping[str, Sequence[str]] | None = None,
    replicates: int = 2,
    fate: Fate | None = None,
    externals: Sequence[str] = ("site-3",),
    config: TrialConfig | None = None,
    study: str = "fake-study",
    question: str = "Which training choices hold up on images from another scanner?",
    storage_uri: str | None = None,
    fingerprint: str = "f" * 16,
) -> Ledger:
    """Write a planned and (mostly) finished study below ``storage`` (or ``storage_uri``) and return its ledger."""
    chosen = FACTORS if factors is None else factors
    fate = fate or Fate()
    base = config or TrialConfig(data=DigitsData())
    ledger = Ledger(storage_uri or str(storage), study)
    trials = [
        _work(base, dict(zip(chosen, levels, strict=True)), replicate, number, fingerprint)
        for replicate in range(replicates)
        for number, levels in enumerate(itertools.product(*chosen.values()))
    ]
    skipped = (Skipped("pretraining=imagenet-21k", {"pretraining": "imagenet-21k"}, replicates, "no weights file"),)
    about = _about(study, question, chosen, base, replicates)
    about["data"]["fingerprint"] = fingerprint
    ledger.write_plan(Plan((), tuple(trials), skipped if fate != Fate() else ()), about)
    num_complete = len(trials) - fate.failed - fate.interrupted - fate.missing
    for number, work in enumerate(trials):
        if number >= len(trials) - fate.missing:
            continue
        ledger.begin(work, study=study, git_commit="0123456789abcdef0123456789abcdef01234567")
        folder = ledger.folder("trial", work.signature)
        lines = _epochs(work, 12 if number < num_complete else 5)
        folder.write("epochs.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        if number < num_complete:
            folder.write_json("result.json", make_result(work, externals))
        elif number < num_complete + fate.failed:
            folder.write_json("failure.json", _failure(work))
    return ledger


def _work(base: TrialConfig, levels: dict[str, str], replicate: int, number: int, fingerprint: str) -> Work:
    # The number makes each arm's config its own; which fields a level sets is the study file's business.
    training = base.training.model_copy(update={"learning_rate": 1e-3 + number * 1e-6})
    config = base.model_copy(update={"replicate": replicate, "training": training})
    name = ", ".join(f"{factor}={level}" for factor, level in levels.items()) or "base"
    return Work("trial", compute_signature(config, fingerprint), name, config, fingerprint, (), levels, replicate)


def _about(
    study: str, question: str, factors: Mapping[str, Sequence[str]], base: TrialConfig, replicates: int
) -> dict[str, Any]:
    return {
        "study": study,
        "question": question,
        "factors": {factor: list(levels) for factor, levels in factors.items()},
        "replicates": replicates,
        "seed": 0,
        "data": {
            "name": base.data.kind,
            "kind": base.data.kind,
            "classes": ["normal", "diseased"],
            "fingerprint": "f" * 16,
            "num_images": {"train": 1080, "val": 357, "test": 360, "site-3": 300},
            "quarantined": [{"file_name": "scan_0412.png", "row": 413, "problem": "the file is truncated"}],
            "num_patients": {"train": 540, "val": 180, "test": 180, "site-3": 150},
            "num_sites": {"train": 2, "val": 2, "test": 2, "site-3": 1},
            "modality": "general",
        },
        "base": {"data": {"kind": base.data.kind}},
        "mlflow": "http://127.0.0.1:5000",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"robustsweep": "0.1.0", "torch": "2.15.0", "ray": "2.60.0"},
        "written_ms": STARTED_MS,
        "study_sha256": "a" * 64,
    }


def _noise(work: Work) -> np.random.Generator:
    return np.random.default_rng([work.replicate or 0, *work.signature.encode()])


def make_result(work: Work, externals: Sequence[str], num_severities: int = 5) -> dict[str, Any]:
    """Return a ``result.json`` in which strong augmentation helps under shift and not in distribution."""
    levels = list((work.levels or {}).values())
    random = _noise(work)
    common = np.random.default_rng(work.replicate or 0).normal(scale=0.008)
    clean = 0.9 + common + sum(LEVEL_VALUES.get(level, 0.0) for level in levels) + random.normal(scale=0.006)
    protection = min(0.9, sum(LEVEL_ROBUSTNESS.get(level, 0.0) for level in levels))
    evaluations = [
        _evaluation("test", "identity", 0, clean),
        _evaluation("val", "identity", 0, clean + random.normal(scale=0.006)),
        *(_evaluation(name, "identity", 0, clean - 0.15 * (1 - protection)) for name in externals),
    ]
    for number, shift in enumerate(SHIFTS):
        hardness = 0.05 + 0.3 * abs(np.sin(number + 1.0))
        for severity in range(1, num_severities + 1):
            drop = hardness * severity / 5 * (1 - protection) + random.normal(scale=0.004)
            evaluations.append(_evaluation("test", shift, severity, max(0.5, clean - drop)))
    duration = float(40 + 10 * random.random())
    return {
        "signature": work.signature,
        "status": "complete",
        "started_ms": STARTED_MS,
        "finished_ms": STARTED_MS + int(duration * 1000),
        "duration_seconds": duration,
        "epochs": 12,
        "best_epoch": 9,
        "metrics": _headline(evaluations, externals),
        "evaluations": evaluations,
        "undefined": {},
        "files": {},
        "environment": {"device": "cpu", "precision": "float32", "torch": "2.15.0", "python": "3.12", "num_threads": 1},
        "num_parameters": 11_170_000,
        "cpu_utilization_percentage": 98.4,
        "peak_rss_mib": 812.0,
        "checkpoint_sha256": "c" * 64,
    }


def _evaluation(name: str, shift: str, severity: int, value: float) -> dict[str, Any]:
    value = float(min(0.995, value))
    metrics = {
        "accuracy": min(1.0, value + 0.004),
        "balanced_accuracy": value,
        "auroc": min(1.0, value + 0.5 * (1 - value)),
        "ece": 0.4 * (1 - value),
        "nll": 2.2 * (1 - value),
        "brier": 1.4 * (1 - value),
    }
    strength = severity * 0.04 if severity else None
    about = {"set": name, "shift": shift, "severity": severity, "strength": strength, "num_images": 360}
    return about | {"metrics": metrics}


def _headline(evaluations: list[dict[str, Any]], externals: Sequence[str]) -> dict[str, float]:
    shifted = [e for e in evaluations if e["severity"]]
    clean = evaluations[0]["metrics"]
    metrics = {f"id/{name}": clean[name] for name in ("accuracy", "balanced_accuracy", "auroc")}
    metrics |= {f"calibration/{name}": clean[name] for name in ("ece", "nll", "brier")}
    for name in ("accuracy", "balanced_accuracy", "auroc", "ece"):
        means = average_shifts(np.array([[e["metrics"][name] for e in shifted]]), [e["shift"] for e in shifted])
        found = zip(AGGREGATES, means.aggregate(METRICS[name].higher_is_better), strict=True)
        metrics |= {name_over_shifts(aggregate, name): float(values[0]) for aggregate, values in found}
    for evaluation in evaluations:
        if evaluation["set"] in externals:
            for name in ("accuracy", "balanced_accuracy", "auroc", "ece"):
                metrics[f"external/{evaluation['set']}/{name}"] = evaluation["metrics"][name]
    shifted_accuracy = metrics[name_over_shifts("mean", "accuracy")]
    for number, score in enumerate(("msr", "max_logit", "predictive_entropy", "energy", "margin")):
        # Between a perfect ranking, e²/2, and a constant, e/2, at the error rate e.
        own, of_shifts = (0.1 * (1 + number) * (1 - each) / 2 for each in (clean["accuracy"], shifted_accuracy))
        metrics |= {f"failure/{score}/augrc": own, f"validation/failure/{score}/augrc": own}
        metrics[f"failure/{score}/mean_shifted_augrc"] = of_shifts
    return metrics


def _epochs(work: Work, count: int) -> list[dict[str, Any]]:
    random = _noise(work)
    lines = []
    for epoch in range(1, count + 1):
        value = 0.92 - 0.4 * np.exp(-epoch / 3) + random.normal(scale=0.008)
        metrics = {
            "train/loss": float(1.1 * np.exp(-epoch / 4) + 0.05),
            "val/loss": float(1.0 * np.exp(-epoch / 3) + 0.2),
            "val/accuracy": float(value),
            "val/balanced_accuracy": float(value),
            "learning_rate": 1e-3,
            "seconds": 3.2,
            "images_per_second": 330.0,
        }
        lines.append({"epoch": epoch, "timestamp_ms": STARTED_MS + epoch * 3200, "metrics": metrics})
    return lines


def _failure(work: Work) -> dict[str, Any]:
    return {
        "signature": work.signature,
        "status": "failed",
        "reason": "diverged",
        "message": "the training loss became nan in epoch 5; lower training.learning_rate <0.001>",
        "traceback": "Traceback (most recent call last): …",
        "attempts": 1,
        "timestamp_ms": STARTED_MS + 16_000,
    }
