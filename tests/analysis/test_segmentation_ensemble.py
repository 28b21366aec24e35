"""Ensembles of segmentations on stored sets whose votes are known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from orchestrator.analysis.failure_detection import (
    DetectionRows,
    EnsembleScores,
    failure_table,
)
from orchestrator.analysis.segmentation.ensemble import score_segmentations
from orchestrator.report.sections.detection.ood import ood_section
from orchestrator.report.sections.segmentation.ensemble import show_ensemble
from trainables.config import TrialConfig
from trainables.data.dataset import Dataset, ImageSet
from trainables.data.load import load_dataset
from trainables.evaluation.segmentation.stored import SegmentedSet, load_segmented, save_segmented
from trainables.storage.folder import Folder

CONFIG = TrialConfig.model_validate(
    {
        "task": {"kind": "segmentation", "depth": 3, "width": 16},
        "data": {"kind": "organs", "organ": "ct", "image_size": 32, "num_images": 60},
        "model": {"name": "timm/test_resnet"},
        "evaluation": {"foreign": {"digits": {"data": {"kind": "digits"}}}},
    }
)
MEMBERS = ("one", "two", "three")
NUM_DIGITS = 7


@pytest.fixture(scope="module")
def data(cache_dir: Path) -> Dataset:
    return load_dataset(CONFIG.data, cache_dir=cache_dir)


def shift(targets: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return every image moved to the right by a number of pixels of its own."""
    return np.stack([np.roll(each, by, axis=1) for each, by in zip(targets, pixels, strict=True)])


def count_dice(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Dice of every image, mean over the classes that one of the two has."""
    found = []
    for a, b in zip(one, other, strict=True):
        pairs = [(a == label, b == label) for label in (1, 2) if (a == label).any() or (b == label).any()]
        found.append(np.mean([2 * (x & y).sum() / (x.sum() + y.sum()) for x, y in pairs]))
    return np.array(found)


def make_predictions(data: Dataset) -> dict[str, list[np.ndarray]]:
    """Return set → predictions of three members.

    Two members see the truth on validation, and on test the same as each other, image i moved by i modulo 5 pixels: so
    the vote is theirs. The third is off by three times as much. Of foreign images all see something else.
    """
    found: dict[str, list[np.ndarray]] = {}
    for name in ("val", "test"):
        images = data.splits[name]
        targets = np.asarray(images.targets)
        by = np.arange(len(targets)) % 5 * (name == "test")
        found[name] = [shift(targets, by), shift(targets, by), shift(targets, 3 * by)]
    random = np.random.default_rng(0)
    found["digits"] = [random.integers(0, 3, size=(NUM_DIGITS, 32, 32)) for _ in MEMBERS]
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A folder for each of three members, with their stored sets."""
    root = tmp_path_factory.mktemp("members")
    for name, predictions in make_predictions(data).items():
        images = data.splits.get(name)
        ids = np.array([f"digit {k}" for k in range(NUM_DIGITS)]) if images is None else images.ids
        for member, predicted in zip(MEMBERS, predictions, strict=True):
            stored = SegmentedSet(
                name=name, ids=ids, groups=np.arange(len(ids)), sources=np.zeros(len(ids), dtype=np.int64),
                shifts=("identity/0",), classes=tuple(data.classes[1:]), predicted=predicted.astype(np.uint8),
                metrics={} if images is None else {"dice": measure(predicted, images)[None]},
            )  # fmt: skip
            save_segmented(Folder(root / member), stored)
    return root


def measure(predicted: np.ndarray, images: ImageSet) -> np.ndarray:
    """Return Dice of every case and class, NaN where neither has it."""
    targets, found = np.asarray(images.targets), np.full((len(images), 2), np.nan, dtype=np.float32)
    for row, label in itertools.product(range(len(images)), (1, 2)):
        a, b = predicted[row] == label, targets[row] == label
        if a.any() or b.any():
            found[row, label - 1] = 2 * (a & b).sum() / (a.sum() + b.sum())
    return found


def make_results(num: int = 3) -> Any:
    record = SimpleNamespace(
        result={"files": {f"cases/{name}.npz": {} for name in ("val", "test", "digits")}},
        config={"config": CONFIG.model_dump(mode="json")},
    )
    trials = pd.DataFrame({"name": "a", "replicate": range(num), "signature": MEMBERS[:num]})
    return SimpleNamespace(
        trials=trials, complete=trials, records=dict.fromkeys(MEMBERS, record), external_sets=[], families={},
        metric="dice", labels={}, plan={"task": "segmentation"},
        group_replicates=lambda own: {int(each): int(each) for each in own["replicate"]},
    )  # fmt: skip


def make_ledger(root: Path) -> Any:
    return SimpleNamespace(folder=lambda kind, signature: Folder(root / signature))


@pytest.fixture(scope="module")
def ensemble(root: Path, cache_dir: Path) -> EnsembleScores:
    found = score_segmentations(make_results(), make_ledger(root), "a", cache_dir)
    assert found is not None
    return found


def test_every_number_is_that_of_the_known_vote(ensemble: EnsembleScores, data: Dataset) -> None:
    predictions = make_predictions(data)
    targets = np.asarray(data.splits["test"].targets)
    vote = predictions["test"][0]
    dice = count_dice(vote, targets)
    assert 0.2 < dice.mean() < 0.95
    assert (ensemble.num_members, ensemble.problem, [each.name for each in ensemble.voted]) == (
        3, None, ["test", "digits"],
    )  # fmt: skip
    test, digits = ensemble.voted

    def average(own: np.ndarray) -> float:
        return float(np.nanmean(np.nanmean(measure(own, data.splits["test"]).astype(np.float64), axis=0)))

    assert test.vote_dice == pytest.approx(average(vote), abs=1e-6)
    assert test.member_dice == pytest.approx(np.mean([average(each) for each in predictions["test"]]), abs=1e-6)
    assert test.vote_dice > test.member_dice  # type: ignore[operator]
    agreement = agree(predictions["test"])
    assert test.failure["spearman"] == pytest.approx(spearmanr(agreement, dice).statistic)
    assert test.failure["spearman"] > 0.5
    # Area under (mean over all images of the risk of those kept) over coverage, ties at once, trapezoids from (0, 0).
    kept = [agreement >= threshold for threshold in sorted({*agreement}, reverse=True)]
    coverage = [0.0, *(each.mean() for each in kept)]
    risk = [0.0, *(((1 - dice) * each).mean() for each in kept)]
    assert test.failure["augrc"] == pytest.approx(np.trapezoid(risk, coverage))
    assert ensemble.augrc == {"pairwise_dice": {"in distribution": test.failure["augrc"]}}
    assert (digits.num_cases, digits.vote_dice, digits.member_dice, digits.failure) == (NUM_DIGITS, None, None, {})
    outside = agree(predictions["digits"])
    above = (agreement[:, None] > outside).mean() + (agreement[:, None] == outside).mean() / 2
    assert digits.ood["auroc"] == pytest.approx(above)
    # All members agree on validation, so that the threshold is 1.
    assert (digits.ood["sensitivity"], digits.ood["specificity"]) == (1.0, pytest.approx((agreement == 1).mean()))
    assert 0.1 < digits.ood["specificity"] < 0.9


def agree(members: list[np.ndarray]) -> np.ndarray:
    """Return pairwise Dice, where a class that neither predicts counts 1."""
    found = []
    for image in zip(*members, strict=True):
        pairs = []
        for (a, b), label in itertools.product(itertools.combinations(image, 2), (1, 2)):
            either = (a == label).sum() + (b == label).sum()
            pairs.append(2 * ((a == label) & (b == label)).sum() / either if either else 1.0)
        found.append(np.mean(pairs))
    return np.array(found)


def test_it_stands_in_the_tables(ensemble: EnsembleScores) -> None:
    html = show_ensemble(ensemble, "an <arm>")
    test, digits = ensemble.voted
    assert "an &lt;arm&gt;" in html
    assert f">{test.vote_dice:.3f}<" in html
    assert f">{test.failure['spearman']:+.2f}<" in html
    assert f">{100 * digits.ood['auroc']:.1f}<" in html
    about = {"signature": "one", "name": "a", "replicate": 0, "score": "energy.image", "severity": 0}
    failures = pd.DataFrame([about | {"set": "test", "shift": "identity", "augrc": 0.1}])
    ood = pd.DataFrame(
        [about | {"set": "digits", "shift": "identity", "role": "far", "auroc": 0.5, "fpr_at_95_tpr": 0.9}]
    )
    rows = DetectionRows(failures, ood, {})
    table = failure_table(make_results(), rows, ensemble)
    row = table[table["score"] == "pairwise_dice"].iloc[0]
    assert (row["condition"], row["n"], row["mean"]) == ("in distribution", 1, test.failure["augrc"])
    assert pd.isna(row["low"])
    arms = pd.DataFrame({"name": ["a"], "val/dice.mean": [0.5]})
    results = make_results()
    results.stopped_arms = []
    section = ood_section(results, rows, ensemble, arms)
    assert section is not None
    assert f"{100 * digits.ood['auroc']:.1f}<br>" in section.body
    assert "ensemble of these 3 models" in section.body


def test_without_images_the_agreement_is_left(root: Path, ensemble: EnsembleScores) -> None:
    found = score_segmentations(make_results(), make_ledger(root), "a", None)
    assert found is not None
    assert found.problem is not None
    assert "made without the images" in show_ensemble(found, "a")
    assert (found.augrc, found.voted[0].vote_dice, found.voted[0].failure) == ({}, None, {})
    assert (found.voted[0].member_dice, found.voted[1]) == (ensemble.voted[0].member_dice, ensemble.voted[1])


def test_one_model_is_no_ensemble_and_other_splits_make_none(root: Path, cache_dir: Path, tmp_path: Path) -> None:
    assert score_segmentations(make_results(1), make_ledger(root), "a", cache_dir) is None
    assert score_segmentations(make_results(), make_ledger(root), None, cache_dir) is None
    for member in MEMBERS[:2]:
        for name in ("val", "test", "digits"):
            stored = load_segmented(Folder(root / member), name)
            moved = np.array([f"{member} {each}" for each in stored.ids])
            save_segmented(Folder(tmp_path / member), replace(stored, ids=moved if name == "val" else stored.ids))
    found = score_segmentations(make_results(2), make_ledger(tmp_path), "a", cache_dir)
    assert found is not None
    assert not found.voted
    assert "not all validated and tested on the same images" in show_ensemble(found, "a")
