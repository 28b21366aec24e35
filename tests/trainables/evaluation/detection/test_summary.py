"""Detection metrics of a trial against the same numbers computed one by one from its stored predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from trainables.errors import ConfigError
from trainables.evaluation.confidence import compute_augrc, compute_confidence
from trainables.evaluation.detection.summary import check_scores, save_detection, summarise_detection
from trainables.evaluation.predictions import Predictions, save_predictions
from trainables.storage.folder import Folder

SHIFTS = ("identity/0", "gaussian_noise/1", "gaussian_noise/3", "contrast_down/1")
ROLES = {"clinic": "covariate", "held_out": "near", "digits": "far"}
SETS = ("val", "test", "clinic", "held_out", "digits", "train")
N, F, C = 60, 5, 3


def make(name: str, *, seed: int, labelled: bool = True, features: bool = True) -> Predictions:
    random = np.random.default_rng(seed)
    shifts = SHIFTS if name == "test" else SHIFTS[:1]
    labels = random.integers(C, size=N) if labelled else np.full(N, -1)
    centres = np.eye(C, F) * 3
    hidden = random.normal(size=(len(shifts), N, F)) + (centres[labels] if labelled else 5.0)
    weight = np.eye(F, C)
    logits = (hidden @ weight + random.normal(size=(len(shifts), N, C))).astype(np.float32)
    return Predictions(
        name,
        np.array([f"{name}-{row}" for row in range(N)]),
        labels,
        shifts,
        logits,
        features=hidden[0].astype(np.float16) if features else None,
        shifted_features=hidden[1:].astype(np.float16) if name == "test" and features else None,
        scores={"devries": random.normal(size=(len(shifts), N)).astype(np.float32)},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    for seed, name in enumerate(SETS):
        save_predictions(folder, make(name, seed=seed, labelled=name not in ("held_out", "digits")))
    return folder


def test_headline_numbers_are_those_of_the_parts(folder: Folder) -> None:
    found = summarise_detection(folder, SETS, scores=["msr"], roles=ROLES).metrics
    test, clinic = make("test", seed=1), make("clinic", seed=2)

    def augrc(predictions: Predictions, row: int) -> float:
        logits = predictions.logits[row]
        return compute_augrc(compute_confidence("msr", logits), logits.argmax(1) == predictions.labels)

    assert found["failure/msr/augrc"] == augrc(test, 0)
    assert found["failure/msr/mean_shifted_augrc"] == pytest.approx(
        (np.mean([augrc(test, 1), augrc(test, 2)]) + augrc(test, 3)) / 2
    )
    assert found["failure/msr/mean_external_augrc"] == augrc(clinic, 0)
    assert found["validation/failure/msr/augrc"] == augrc(make("val", seed=0), 0)


def test_other_sets_are_told_from_the_unshifted_test_images(folder: Folder) -> None:
    summary = summarise_detection(folder, SETS, scores=["energy"], roles=ROLES)
    test, digits = make("test", seed=1), make("digits", seed=4, labelled=False)
    inside, outside = (compute_confidence("energy", each.logits[0]) for each in (test, digits))
    expected = roc_auc_score(np.repeat([1, 0], N), np.concatenate([inside, outside]))
    assert summary.metrics["ood/energy/digits/auroc"] == pytest.approx(expected)
    assert summary.metrics["ood/energy/far/auroc"] == pytest.approx(expected)
    covariate = [compute_confidence("energy", logits) for logits in test.logits[1:]]
    covariate.append(compute_confidence("energy", make("clinic", seed=2).logits[0]))
    wide = np.concatenate([inside, *covariate])
    assert summary.metrics["ood/energy/far_full_spectrum/auroc"] == pytest.approx(
        roc_auc_score(np.repeat([1, 0], [len(wide), N]), np.concatenate([wide, outside]))
    )
    assert {(row["set"], row["shift"], row["role"]) for row in summary.ood if row["score"] == "energy"} == {
        ("test", "gaussian_noise", "covariate"),
        ("test", "contrast_down", "covariate"),
        ("clinic", "identity", "covariate"),
        ("held_out", "identity", "near"),
        ("digits", "identity", "far"),
    }
    assert {row["set"] for row in summary.failures} == {"val", "test", "clinic"}  # the others have no right answer


def test_a_score_of_features_judges_shifts_whose_features_are_stored(folder: Folder) -> None:
    summary = summarise_detection(folder, SETS, scores=["mahalanobis"], roles=ROLES)
    rows = [row for row in summary.failures if row["score"] == "mahalanobis" and row["set"] == "test"]
    assert [f"{row['shift']}/{row['severity']}" for row in rows] == list(SHIFTS)
    assert summary.metrics["ood/mahalanobis/digits/auroc"] > 0.95  # five standard deviations away
    save_predictions(folder, make("train", seed=5, features=False))
    summary = summarise_detection(folder, SETS, scores=["mahalanobis", "msr"], roles=ROLES)
    assert "add train to evaluation.store_features" in summary.undefined["mahalanobis"]
    assert not any("mahalanobis" in name for name in summary.metrics)


def test_what_a_detector_cannot_do_is_a_reason_and_no_end(folder: Folder) -> None:
    whole = make("train", seed=5)
    assert whole.features is not None
    few = {"ids": whole.ids[:40], "labels": whole.labels[:40], "logits": whole.logits[:, :40]}
    save_predictions(folder, replace(whole, **few, features=whole.features[:40], scores={}))
    summary = summarise_detection(folder, SETS, scores=["knn", "msr"], roles=ROLES)
    assert "40" in summary.undefined["knn"]
    assert "failure/msr/augrc" in summary.metrics


def test_what_the_model_gives_is_always_judged(folder: Folder) -> None:
    summary = summarise_detection(folder, SETS, scores=[], roles=ROLES)
    assert {row["score"] for row in summary.failures} == {"devries"}
    test = make("test", seed=1)
    is_correct = test.logits[0].argmax(1) == test.labels
    assert summary.metrics["failure/devries/augrc"] == compute_augrc(test.scores["devries"][0], is_correct)
    summary = summarise_detection(folder, SETS, scores=["confidnet"], roles=ROLES)
    assert summary.undefined == {"confidnet": "the model gives no scores/confidnet"}


def test_the_threshold_is_that_of_validation(folder: Folder) -> None:
    summary = summarise_detection(folder, SETS, scores=["msr"], roles=ROLES)
    validation, test = make("val", seed=0), make("test", seed=1)
    threshold = np.sort(compute_confidence("msr", validation.logits[0]))[N - int(0.8 * N)]
    kept = compute_confidence("msr", test.logits[2]) >= threshold
    row = next(row for row in summary.failures if (row["score"], row["shift"], row["severity"]) == ("msr", *_key(2)))
    assert row["metrics"]["coverage_at_coverage_80"] == pytest.approx(kept.mean())
    wrong = test.logits[2].argmax(1) != test.labels
    assert row["metrics"]["risk_at_coverage_80"] == pytest.approx(wrong[kept].mean())


def _key(row: int) -> tuple[str, int]:
    shift, severity = SHIFTS[row].split("/")
    return shift, int(severity)


def test_rows_are_stored_as_columns(folder: Folder) -> None:
    summary = summarise_detection(folder, SETS, scores=["msr", "margin"], roles=ROLES)
    save_detection(folder, summary)
    stored = json.loads(folder.read("detection.json"))
    assert stored["failures"]["score"] == [row["score"] for row in summary.failures]
    assert stored["failures"]["augrc"] == [row["metrics"]["augrc"] for row in summary.failures]
    assert stored["ood"]["fpr_at_95_tpr"] == [row["metrics"]["fpr_at_95_tpr"] for row in summary.ood]


@pytest.mark.parametrize(
    ("name", "said"), [("msrr", "'msrr', which does not exist"), ("ensemble_msr", "is computed from several models")]
)
def test_scores_that_no_trial_can_have_are_refused(name: str, said: str) -> None:
    check_scores(["msr", "mahalanobis", "pytorch_ood/SHE"])
    with pytest.raises(ConfigError, match=said):
        check_scores(["msr", name])
