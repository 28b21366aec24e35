"""Arrays of a prepared trial, against the stored predictions themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from orchestrator.explorer import prepare
from orchestrator.explorer.classification.cases import describe_case
from orchestrator.explorer.computed import compute
from orchestrator.explorer.prepare import compute_key, list_sets
from orchestrator.explorer.prepared import NO_LABEL, Prepared
from orchestrator.explorer.study import ExploredStudy
from orchestrator.ledger.ledger import Ledger
from tests.support.synthetic_ledger import make_fake_ledger
from trainables.errors import StudyError
from trainables.evaluation.confidence import compute_confidence
from trainables.evaluation.predictions import Predictions, load_predictions


@pytest.fixture
def prepared(explored: ExploredStudy) -> Prepared:
    return explored.open(0)


def test_points_lie_set_by_set_and_shift_by_shift(explored: ExploredStudy, prepared: Prepared) -> None:
    folder = explored.ledger.folder("trial", explored.trials[0].signature)
    names = [each.name for each in prepared.index.sets]
    assert names == list_sets(folder)
    assert names[:2] == ["test", "val"]
    for each in prepared.index.sets:
        stored = load_predictions(folder, each.name)
        points = slice(each.first_point, each.first_point + each.count * len(each.shifts))
        assert each.shifts == stored.shifts
        assert np.array_equal(prepared.array("predicted")[points], stored.logits.argmax(axis=2).ravel())
        assert np.array_equal(prepared.array("labels")[points], np.tile(stored.labels, len(stored.shifts)))
        energy = next(k for k, score in enumerate(prepared.index.scores) if score.name == "energy")
        expected = compute_confidence("energy", stored.logits).ravel()
        assert prepared.array(f"score-{energy}")[points] == pytest.approx(expected, rel=1e-6)
        images = slice(each.first_image, each.first_image + each.count)
        assert prepared.ids[images] == list(stored.ids)
    assert prepared.index.num_points == len(prepared.array("pca"))


def test_axes_are_fitted_on_the_test_set_and_the_others_placed_on_them(
    explored: ExploredStudy, prepared: Prepared
) -> None:
    folder = explored.ledger.folder("trial", explored.trials[0].signature)
    assert prepared.index.fitted_on == "test"
    test, other = (load_predictions(folder, name).features.astype(np.float64) for name in ("test", "external-0"))
    _, _, axes = np.linalg.svd(test - test.mean(axis=0), full_matrices=False)
    external = next(each for each in prepared.index.sets if each.name == "external-0")
    placed = prepared.array("pca")[external.first_point : external.first_point + external.count]
    expected = (other - test.mean(axis=0)) @ axes[:2].T
    assert np.abs(placed) == pytest.approx(np.abs(expected), abs=1e-3)


def test_what_has_no_features_has_no_place_and_a_reason(prepared: Prepared) -> None:
    test = prepared.index.sets[0]
    assert test.placed == ("identity/0",)
    assert "4 shifts of test" in str(test.problem)
    assert "evaluation.store_features" in str(test.problem)
    shifted = prepared.array("pca")[test.first_point + test.count : test.first_point + 5 * test.count]
    assert np.isnan(shifted).all()


def test_metadata_are_columns_over_images(prepared: Prepared) -> None:
    columns = {each.name: number for number, each in enumerate(prepared.index.columns)}
    site = prepared.index.columns[columns["site"]]
    assert site.levels is not None
    external = next(each for each in prepared.index.sets if each.name == "external-0")
    values = prepared.array(f"column-{columns['site']}")
    assert len(values) == prepared.index.num_images
    inside = values[external.first_image : external.first_image + external.count]
    assert {site.levels[code] for code in inside} == {"external-0"}


def test_a_case_has_itself_under_all_shifts(explored: ExploredStudy, prepared: Prepared) -> None:
    test = prepared.index.sets[0]
    found = describe_case(prepared, test.first_point + 2 * test.count + 7)
    stored = load_predictions(explored.ledger.folder("trial", explored.trials[0].signature), "test")
    assert found["id"] == stored.ids[7]
    assert [each["shift"] for each in found["versions"]] == list(stored.shifts)
    shares = np.exp(stored.logits[2, 7]) / np.exp(stored.logits[2, 7]).sum()
    assert [each["probability"] for each in found["distribution"]] == pytest.approx(sorted(shares, reverse=True))
    assert found["no_neighbours"] is not None
    json.dumps(found, allow_nan=False)


def test_a_point_that_is_not_there_is_refused(prepared: Prepared) -> None:
    for point in (-1, prepared.index.num_points):
        with pytest.raises(StudyError, match="expected 0 to"):
            prepared.find(point)


def test_other_predictions_have_another_key(explored: ExploredStudy, tmp_path: Path) -> None:
    signature = explored.trials[0].signature
    shutil.copytree(explored.ledger.root.uri, tmp_path / "small")
    folder = Ledger(str(tmp_path), "small").folder("trial", signature)
    before = compute_key(folder)
    folder.write("predictions/test.npz", folder.read("predictions/test.npz") + b" ")
    assert compute_key(folder) != before


def test_a_point_is_found_again_in_another_trial(explored: ExploredStudy) -> None:
    explored.prepare_now(1)
    match = explored.match(0, 1)
    mine, theirs = explored.open(0), explored.open(1)
    points = np.flatnonzero(match >= 0)
    assert len(points) == mine.index.num_points  # replicate 0 has the same split in both arms
    for point in points[:: len(points) // 50]:
        here, there = mine.find(int(point)), theirs.find(int(match[point]))
        assert mine.ids[here.image] == theirs.ids[there.image]
        assert here.set.shifts[here.shift] == there.set.shifts[there.shift]


def test_tsne_without_opentsne_says_how_to_get_it(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"pip install 'robustsweep\[explore\]'"):
        compute({"kind": "tsne", "folder": str(prepared.folder)}, lambda share: None)


def test_clusters_cover_labelled_unshifted_images(prepared: Prepared) -> None:
    compute({"kind": "clusters", "folder": str(prepared.folder)}, lambda share: None)
    codes = prepared.array("clusters")
    found = json.loads((prepared.folder / "clusters.json").read_text())
    assert len(codes) == prepared.index.num_points
    test = prepared.index.sets[0]
    assert (codes[test.first_point + test.count : prepared.index.sets[1].first_point] == -1).all()
    assert found["num_images"] == sum(each.count for each in prepared.index.sets if each.name != "train")
    assert {code for code in codes.tolist() if code >= 0} == {each["number"] for each in found["clusters"]}


def test_a_study_without_a_complete_trial_is_refused(tmp_path: Path) -> None:
    ledger = make_fake_ledger(tmp_path, replicates=0)
    with pytest.raises(StudyError, match="run the study first"):
        ExploredStudy(ledger, tmp_path)


def test_training_neighbours_foreign_images_and_stored_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of predictions with features of training images and of shifts, and with confidences that the model has given."""
    ledger = make_fake_ledger(tmp_path, factors={"augmentation": ("none",)}, replicates=1)
    signature = ledger.read_plan()["trials"][0]["signature"]
    random = np.random.default_rng(0)
    features = {name: random.normal(size=(20, 5)).astype(np.float16) for name in ("train", "test", "digits")}
    features["test"][0] = features["train"][7]
    labels = {"train": np.arange(20) % 2, "test": np.arange(20) % 2, "digits": np.full(20, -1)}
    stored = {
        name: Predictions(
            name=name,
            ids=np.array([f"{name}-{k}" for k in range(20)]),
            labels=labels[name].astype(np.int64),
            shifts=("identity/0", "noise/1") if name == "test" else ("identity/0",),
            logits=random.normal(size=(2 if name == "test" else 1, 20, 2)).astype(np.float32),
            features=features[name],
            shifted_features=features[name][None] + np.float16(1) if name == "test" else None,
            groups=None,
            scores={"devries": random.normal(size=(2, 20)).astype(np.float32)} if name == "test" else {},
        )
        for name in features
    }
    monkeypatch.setattr(prepare, "list_sets", lambda folder: ["test", "digits", "train"])
    monkeypatch.setattr(prepare, "load_predictions", lambda folder, name: stored[name])
    prepared = Prepared(prepare.prepare_trial(ledger, signature, cache_dir=tmp_path / "cache"))
    test, digits, train = prepared.index.sets
    assert (test.placed, test.problem) == (("identity/0", "noise/1"), None)
    assert np.isfinite(prepared.array("pca")).all()
    shift = prepared.array("pca")[20:40] - prepared.array("pca")[:20]
    assert shift == pytest.approx(np.tile(shift[0], (20, 1)), abs=0.02)  # all features moved by one: all places alike
    assert set(prepared.array("labels")[digits.first_point : digits.first_point + 20]) == {NO_LABEL}
    names = [score.name for score in prepared.index.scores]
    values = prepared.array(f"score-{names.index('devries')}")
    assert np.array_equal(values[:40], stored["test"].scores["devries"].ravel())
    assert np.isnan(values[40:]).all()
    nearest = describe_case(prepared, 0)["neighbours"][0]
    assert (nearest["point"], nearest["distance"]) == (train.first_point + 7, 0.0)
    assert describe_case(prepared, train.first_point + 7)["neighbours"][0]["point"] != train.first_point + 7
    assert describe_case(prepared, digits.first_point)["label"] is None
    compute({"kind": "clusters", "folder": str(prepared.folder)}, lambda share: None)
    assert json.loads((prepared.folder / "clusters.json").read_text())["num_images"] == 20


def test_no_label_stands_outside_the_classes() -> None:
    assert np.iinfo(np.uint16).max == NO_LABEL
