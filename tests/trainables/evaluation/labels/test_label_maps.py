"""Label maps of one quinary model against scikit-learn and SciPy on summed probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import logsumexp, softmax
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, log_loss, recall_score, roc_auc_score

from tests.support.tiny_configs import random_dataset
from trainables.data.dataset import Dataset
from trainables.errors import ConfigError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.labels.maps import check_label_maps, merge_logits, resolve_label_map
from trainables.evaluation.labels.per_class import compute_class_metrics
from trainables.evaluation.labels.summary import Views, merge_predictions, summarise_views
from trainables.evaluation.metric_tables.views import CLASS_METRICS, split_view
from trainables.evaluation.metrics import METRICS, find_metric, is_higher_better
from trainables.evaluation.predictions import Predictions, load_predictions, save_predictions
from trainables.evaluation.robustness import summarise_predictions
from trainables.evaluation_config import EvaluationConfig
from trainables.storage.folder import Folder

CLASSES = ("0", "1", "2", "3", "4")
MAPS: dict[str, dict[str, str | None]] = {
    "any": {"0": "none", "1": "some", "2": "some", "3": "some", "4": "some"},
    "referable": {"0": "no", "1": "no", "2": "yes", "3": "yes", "4": "yes"},
    "three": {"0": "low", "1": "low", "2": "middle", "3": "high", "4": "high"},
    "odd": {"0": "even", "1": "odd", "2": "even", "3": "odd", "4": "even"},
    "severe_among_sick": {"0": None, "1": "mild", "2": "mild", "3": "severe", "4": "severe"},
}


def draw(name: str, cells: list[str], seed: int) -> Predictions:
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(5), random.integers(0, 5, 85)])
    logits = 2 * np.eye(5)[labels] + random.normal(scale=1.5, size=(len(cells), 90, 5))
    return Predictions(name, np.arange(90).astype(str), labels, tuple(cells), logits.astype(np.float32))


@pytest.fixture(scope="module")
def sets() -> list[Predictions]:
    cells = ["identity/0", "noise/1", "noise/2", "blur/1"]
    return [draw("val", cells[:1], 0), draw("test", cells, 1), draw("north", cells[:1], 2)]


@pytest.fixture(scope="module")
def views(sets: list[Predictions]) -> Views:
    return summarise_views(sets, CLASSES, MAPS, per_class=True, ece_bins=15, ordinal=True)


def merged_by_hand(predictions: Predictions, name: str, cell: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return probabilities and labels by merged class of the images that are not left out."""
    names = list(dict.fromkeys(MAPS[name][each] for each in CLASSES if MAPS[name][each] is not None))
    kept = np.array([MAPS[name][str(label)] is not None for label in predictions.labels])
    logits = predictions.logits[cell][kept].astype(np.float64)
    used = [index for index, each in enumerate(CLASSES) if MAPS[name][each] is not None]
    p = softmax(logits[:, used], axis=1)
    sums = np.stack([p[:, [MAPS[name][CLASSES[k]] == each for k in used]].sum(axis=1) for each in names], axis=1)
    return sums, np.array([names.index(MAPS[name][str(k)]) for k in predictions.labels[kept]]), names


@pytest.mark.parametrize("name", MAPS)
def test_numbers_are_those_of_summed_probabilities(sets: list[Predictions], views: Views, name: str) -> None:
    for where, predictions in (("validation", sets[0]), ("id", sets[1]), ("external/north", sets[2])):
        p, labels, names = merged_by_hand(predictions, name)
        errors = "calibration" if where == "id" else where
        found = {key.removeprefix(f"{name}/"): value for key, value in views.metrics.items() if key.startswith(name)}
        assert found[f"{where}/balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, p.argmax(axis=1)))
        assert found[f"{errors}/nll"] == pytest.approx(log_loss(labels, p), abs=1e-12)
        # One-vs-rest of each class, by the log-odds: the merged probabilities do not saturate here.
        odds = np.log(p) - np.log1p(-p)
        areas = [roc_auc_score(labels == k, odds[:, k]) for k in range(len(names))]
        assert found[f"{where}/auroc"] == pytest.approx(areas[1] if len(names) == 2 else np.mean(areas), abs=1e-12)
        kappa = cohen_kappa_score(labels, p.argmax(axis=1), weights="quadratic")
        assert found.get(f"{where}/quadratic_kappa") == (None if name == "odd" else pytest.approx(kappa))
        for k in range(len(names)):
            recall = recall_score(labels == k, p.argmax(axis=1) == k)
            assert found[f"class_{k}/{where}/sensitivity"] == pytest.approx(recall)
            assert found[f"class_{k}/{where}/auroc"] == pytest.approx(areas[k], abs=1e-12)
    worst = min(balanced_accuracy_score(*_called(sets[1], name, cell)) for cell in (1, 2, 3))
    assert views.metrics[f"{name}/robustness/worst_cell_balanced_accuracy"] == pytest.approx(worst)
    cells = [balanced_accuracy_score(*_called(sets[1], name, cell)) for cell in (1, 2, 3)]
    mean = ((cells[0] + cells[1]) / 2 + cells[2]) / 2
    assert views.metrics[f"{name}/robustness/mean_balanced_accuracy"] == pytest.approx(mean)


def _called(predictions: Predictions, name: str, cell: int) -> tuple[np.ndarray, np.ndarray]:
    p, labels, _ = merged_by_hand(predictions, name, cell)
    return labels, p.argmax(axis=1)


def test_a_map_that_merges_nothing_gives_the_numbers_of_the_model(sets: list[Predictions], tmp_path: Path) -> None:
    plain = summarise_predictions(sets, strengths={}, ece_bins=15, ordinal=True)
    same = {each: f"grade {each}" for each in CLASSES}
    found = summarise_views(sets, CLASSES, {"same": same}, per_class=False, ece_bins=15, ordinal=True)
    assert found.metrics == pytest.approx({f"same/{name}": value for name, value in plain.metrics.items()}, abs=1e-9)
    for each in sets:  # and from what is stored
        save_predictions(Folder(tmp_path), each)
    stored = [load_predictions(Folder(tmp_path), each.name) for each in sets]
    again = summarise_views(stored, CLASSES, {"same": same}, per_class=False, ece_bins=15, ordinal=True)
    assert again == found


def test_a_class_against_the_rest_is_a_label_map_too(sets: list[Predictions], views: Views) -> None:
    """The AUROC of class 3 in two ways: per class, and of the map that merges all others."""
    rest = {each: "three" if each == "3" else "rest" for each in CLASSES}
    found = summarise_views(sets, CLASSES, {"third": rest}, per_class=False, ece_bins=15, ordinal=False)
    for name in ("id/auroc", "validation/auroc", "robustness/mean_auroc", "external/mean_auroc"):
        assert found.metrics[f"third/{name}"] == pytest.approx(views.metrics[f"class_3/{name}"], abs=1e-12)


def test_per_class_numbers_are_those_of_scikit_learn(sets: list[Predictions], views: Views) -> None:
    for where, predictions in (("validation", sets[0]), ("id", sets[1]), ("external/north", sets[2])):
        f, labels = predictions.logits[0].astype(np.float64), predictions.labels
        recalls = recall_score(labels, f.argmax(axis=1), average=None)
        for k in range(5):
            score = f[:, k] - logsumexp(np.delete(f, k, axis=1), axis=1)
            assert views.metrics[f"class_{k}/{where}/sensitivity"] == pytest.approx(recalls[k])
            assert views.metrics[f"class_{k}/{where}/auroc"] == pytest.approx(roc_auc_score(labels == k, score))
        mean = np.mean([views.metrics[f"class_{k}/{where}/sensitivity"] for k in range(5)])
        assert mean == pytest.approx(compute_metrics(f, labels).values["balanced_accuracy"])


def test_absent_classes_are_said_and_not_guessed() -> None:
    labels = np.array([0, 0, 2, 2])
    found = compute_class_metrics(np.eye(3)[[0, 1, 2, 2]], labels)
    assert [each.values.get("sensitivity") for each in found] == [0.5, None, 1.0]
    assert "no image of class 1" in found[1].undefined["auroc"]
    alone = compute_class_metrics(np.eye(3)[:2], np.array([0, 0]))
    assert alone[0].values == {"sensitivity": 0.5}
    assert "other than 0" in alone[0].undefined["auroc"]


def test_merged_logits_do_not_saturate() -> None:
    label_map = resolve_label_map("referable", MAPS["referable"], CLASSES)
    logits = np.array([[500.0, 0, 0, 0, 0], [400.0, 0, 0, 0, 0]], dtype=np.float32)
    merged = merge_logits(logits, label_map)
    assert merged[0, 0] - merged[0, 1] > merged[1, 0] - merged[1, 1]  # both probabilities are 1
    assert merged[0] == pytest.approx([500, np.log(3)])
    assert softmax(merge_logits(np.zeros((1, 5)), label_map)[0]) == pytest.approx([0.4, 0.6])


def test_sets_whose_images_are_left_out_are_said(sets: list[Predictions]) -> None:
    healthy = Predictions("screening", np.array(["a", "b"]), np.array([0, 0]), ("identity/0",), np.zeros((1, 2, 5)))
    maps = {"severe": MAPS["severe_among_sick"]}
    found = summarise_views([*sets, healthy], CLASSES, maps, per_class=True, ece_bins=15, ordinal=False)
    assert "leaves out" in found.undefined["severe/external/screening"]
    assert not [name for name in found.metrics if name.startswith("severe/external/screening")]
    foreign = Predictions("ood", np.array(["a"]), np.array([-1]), ("identity/0",), np.zeros((1, 1, 5)))
    assert len(merge_predictions(foreign, resolve_label_map("any", MAPS["any"], CLASSES)).labels) == 0


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        ({**MAPS["any"], "5": "some"}, "found the class '5'"),
        ({"0": "none", "1": "some"}, "found no entry for 2, 3, 4; expected one for every class"),
    ],
)
def test_unknown_and_unmapped_classes_are_errors(merged: dict[str, str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_label_map("any", merged, CLASSES)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ({"id": MAPS["any"]}, "is none of"),
        ({"class_1": MAPS["any"]}, "does not begin with class_"),
        ({"a/b": MAPS["any"]}, "small letters, digits and _"),
        ({"all": dict.fromkeys(CLASSES, "one")}, "two classes or more"),
        ({"none": {"0": "one", "1": None}}, "two classes or more"),
    ],
)
def test_maps_that_cannot_work_are_errors(maps: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig(label_maps=maps)


def test_maps_have_to_leave_two_classes_in_validation_and_test() -> None:
    data = random_dataset()
    names = dict(zip(data.classes, ("a", "a", "b"), strict=True))
    check_label_maps(EvaluationConfig(label_maps={"ab": names}), data)
    three = dict(zip(data.classes, ("a", "b", None), strict=True))
    check_label_maps(EvaluationConfig(label_maps={"three": three}), data)
    lacking = Dataset(
        **{**vars(data), "classes": (*data.classes, "rare")},
    )
    maps = {"rare": {**dict.fromkeys(data.classes, "common"), "rare": "rare"}}
    with pytest.raises(ConfigError, match="found val images of fewer than two of its classes"):
        check_label_maps(EvaluationConfig(label_maps=maps), lacking)


def test_the_order_of_a_map_in_a_file_changes_nothing() -> None:
    """JSON sorts keys: classes are in the order of the data's."""
    one = resolve_label_map("odd", MAPS["odd"], CLASSES)
    other = resolve_label_map("odd", dict(reversed(MAPS["odd"].items())), CLASSES)
    assert one.classes == other.classes == ("even", "odd")
    assert one.index.tolist() == other.index.tolist() == [0, 1, 0, 1, 0]
    assert not one.is_ordered
    assert resolve_label_map("three", MAPS["three"], CLASSES).is_ordered


def test_names_of_views_lead_to_their_metric(views: Views) -> None:
    assert split_view("referable/id/auroc") == ("referable", "id/auroc")
    assert split_view("class_3/robustness/mean_auroc") == ("class_3", "robustness/mean_auroc")
    assert split_view("referable/class_1/id/sensitivity") == ("referable/class_1", "id/sensitivity")
    for name in ("id/auroc", "external/class_1/auroc", "auroc", "num_parameters", "failure/msr/augrc", "be/mean"):
        assert split_view(name) == ("", name)
    for name in views.metrics:
        metric = find_metric(name)
        assert name.endswith(metric.name)
        assert is_higher_better(name) == (metric.higher_is_better and "/sd_" not in name)
        assert (metric.name in CLASS_METRICS) if "class_" in name else (metric.name in METRICS)
    for name in ("id/sensitivity", "class_1/id/ece"):
        with pytest.raises(ConfigError, match="looked for the metric"):
            find_metric(name)
