"""Every metric and headline number of an evaluation, recomputed from the stored logits with scikit-learn and NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    log_loss,
    roc_auc_score,
)

from trainables.evaluation.metrics import METRICS
from trainables.evaluation.predictions import Predictions, load_predictions, save_predictions
from trainables.evaluation.robustness import Evaluation, summarise_predictions
from trainables.storage.folder import Folder

BINS = 12
SHIFTS = {"noise": 3, "blur": 3, "stain_h0.5_e1": 1, "stain_h1_e2": 1, "stain_h2_e1": 1}
TOLERANCE = 1e-9


def draw(classes: int, *, count: int, seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are right more often than not, with ties, and labels with every class."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), random.integers(0, classes, count - classes)])
    logits = 2.5 * np.eye(classes)[labels] + random.normal(scale=spread, size=(count, classes))
    return np.round(logits, 1).astype(np.float32), labels


@pytest.fixture(scope="module", params=[2, 4], ids=["two classes", "four classes"])
def evaluated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    classes, folder = request.param, Folder(tmp_path_factory.mktemp("trial"))
    cells = ["identity/0", *(f"{name}/{severity + 1}" for name, num in SHIFTS.items() for severity in range(num))]
    stored = {}
    for seed, (name, keys, count) in enumerate([("val", cells[:1], 60), ("test", cells, 90), ("north", cells[:1], 41)]):
        _, labels = draw(classes, count=count, seed=seed, spread=1.0)
        logits = np.stack([draw(classes, count=count, seed=seed, spread=1.5 + i / 4)[0] for i in range(len(keys))])
        logits = logits + np.random.default_rng(seed).normal(size=logits.shape).round(1).astype(np.float32)
        ids = np.arange(count).astype(str)
        stored[name] = Predictions(name, ids, labels.astype(np.int64), tuple(keys), logits)
        save_predictions(folder, stored[name])
    sets = [load_predictions(folder, name) for name in stored]
    evaluation = summarise_predictions(sets, strengths={}, ece_bins=BINS, ordinal=True)
    return evaluation, stored, classes


def recompute_calibration(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    p = softmax(logits.astype(np.float64), axis=1)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    ece = 0.0
    for m in range(BINS):
        inside = (confidence > m / BINS) & (confidence <= (m + 1) / BINS)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    brier = np.mean([sum((p[i, k] - (labels[i] == k)) ** 2 for k in range(p.shape[1])) for i in range(len(p))])
    return {"ece": float(ece), "nll": log_loss(labels, p, labels=np.arange(p.shape[1])), "brier": float(brier)}


def recompute_fit(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    logits = logits.astype(np.float64)

    def slope(inverse: float) -> float:
        p = softmax(inverse * logits, axis=1)
        return float((p * logits).sum(axis=1).mean() - logits[np.arange(len(labels)), labels].mean())

    fit = {"temperature": 1 / brentq(slope, 1e-3, 1e3, xtol=1e-15, rtol=1e-14)}
    if logits.shape[1] == 2:
        score = logits[:, 1] - logits[:, 0]
        candidates = np.unique(np.concatenate([score, np.nextafter(score, -np.inf)]))
        specific = [t for t in candidates if (score[labels == 0] <= t).mean() >= 0.95]
        sensitive = [t for t in candidates if (score[labels == 1] > t).mean() >= 0.95]
        fit |= {"threshold_at_specificity_95": min(specific), "threshold_at_sensitivity_95": max(sensitive)}
    return fit


def recompute(logits: np.ndarray, labels: np.ndarray, fit: dict[str, float]) -> dict[str, float]:
    f, classes = logits.astype(np.float64), logits.shape[1]
    predicted = f.argmax(axis=1)
    rest = [np.delete(f, k, axis=1) for k in range(classes)]
    areas = [roc_auc_score(labels == k, f[:, k] - logsumexp(rest[k], axis=1)) for k in range(classes)]
    found = {
        "accuracy": accuracy_score(labels, predicted),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "auroc": areas[1] if classes == 2 else np.mean(areas),
        "quadratic_kappa": cohen_kappa_score(labels, predicted, weights="quadratic"),
        **recompute_calibration(f, labels),
    }
    scaled = recompute_calibration(f / fit["temperature"], labels)
    found |= {f"{name}_scaled": value for name, value in scaled.items()}
    if classes == 2:
        for at in ("specificity_95", "sensitivity_95"):
            called = f[:, 1] - f[:, 0] > fit[f"threshold_at_{at}"]
            (tn, fp), (fn, tp) = confusion_matrix(labels, called)
            found |= {f"sensitivity_at_{at}": tp / (tp + fn), f"specificity_at_{at}": tn / (tn + fp)}
    return found


def test_every_number_is_that_of_scikit_learn_and_numpy(evaluated: tuple[Evaluation, dict, int]) -> None:
    evaluation, stored, classes = evaluated
    fit = recompute_fit(stored["val"].logits[0], stored["val"].labels)
    assert evaluation.validation_fit == pytest.approx(fit, abs=TOLERANCE, rel=0)
    expected_names = {name for name, metric in METRICS.items() if classes == 2 or "two classes" not in metric.needs}
    for row in evaluation.rows:
        logits = stored[row["set"]].of(f"{row['shift']}/{row['severity']}")
        expected = recompute(logits, stored[row["set"]].labels, fit)
        assert expected.keys() == row["metrics"].keys() == expected_names
        assert row["metrics"] == pytest.approx(expected, abs=TOLERANCE, rel=0)


def test_every_headline_number_follows_from_them(evaluated: tuple[Evaluation, dict, int]) -> None:
    evaluation, stored, _ = evaluated
    fit = recompute_fit(stored["val"].logits[0], stored["val"].labels)

    def of(name: str, cell: str) -> dict[str, float]:
        return recompute(stored[name].of(cell), stored[name].labels, fit)

    expected: dict[str, float] = {}
    for metric, value in of("val", "identity/0").items():
        expected[f"validation/{metric}"] = value
    for metric, value in of("north", "identity/0").items():
        expected[f"external/north/{metric}"] = expected[f"external/mean_{metric}"] = value
    cells = {key: of("test", key) for key in stored["test"].shifts[1:]}
    for metric, value in of("test", "identity/0").items():
        is_error = metric.partition("_")[0] in ("ece", "nll", "brier")
        group, mean, worst = ("calibration", "mean_shifted", max) if is_error else ("robustness", "mean", min)
        expected[f"{'calibration' if is_error else 'id'}/{metric}"] = value
        stains = [cells[f"{name}/1"][metric] for name in SHIFTS if name.startswith("stain")]
        types = [np.mean([cells[f"{name}/{s}"][metric] for s in (1, 2, 3)]) for name in ("noise", "blur")]
        types.append(np.mean(stains))
        expected[f"{group}/{mean}_{metric}"] = float(np.mean(types))
        expected[f"{group}/worst_shift_{metric}"] = worst(types)
        expected[f"{group}/worst_cell_{metric}"] = worst(cell[metric] for cell in cells.values())
    assert evaluation.metrics.keys() == expected.keys()
    assert evaluation.metrics == pytest.approx(expected, abs=TOLERANCE, rel=0)
    assert not evaluation.undefined
    assert all(math.isfinite(value) for value in evaluation.metrics.values())
