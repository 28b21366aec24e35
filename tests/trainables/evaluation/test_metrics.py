"""The table of metrics against what is computed, and who looks names up in it."""

from __future__ import annotations

import runpy
import subprocess
import sys

import numpy as np
import pytest

from tests.support.paths import ROOT
from tests.support.study_texts import arms
from trainables.errors import ConfigError, StudyError
from trainables.evaluation.classification import Metrics, compute_metrics
from trainables.evaluation.metrics import (
    ERRORS,
    METRICS,
    SCORES,
    SEGMENTATION_METRICS,
    find_metric,
    is_higher_better,
    list_metrics_of,
    name_over_shifts,
    name_unshifted,
)
from trainables.evaluation.validation_fit import fit_on_validation


def draw(*, right: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of which about so many are right, each with much confidence, and labels of two classes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    shown = np.where(generator.random(300) < right, labels, 1 - labels)
    return 8.0 * np.eye(2)[shown] + 3.0 * generator.normal(size=(300, 2)), labels.astype(np.int64)


def compute(*, right: float) -> Metrics:
    return compute_metrics(*draw(right=right), ordinal=True, fit=fit_on_validation(*draw(right=0.8)))


def test_the_table_has_exactly_what_is_computed() -> None:
    computed = compute(right=0.8)
    assert not computed.undefined
    assert set(computed.values) == set(METRICS) == {*SCORES, *ERRORS}
    in_training = compute_metrics(*draw(right=0.8), ordinal=True).values
    assert set(in_training) == {name for name, metric in METRICS.items() if not metric.is_fitted}


@pytest.mark.parametrize("name", METRICS)
def test_direction_and_range_are_those_of_the_values(name: str) -> None:
    metric = METRICS[name]
    good, bad = (compute(right=right).values[name] for right in (0.95, 0.3))
    assert (good > bad) == metric.higher_is_better
    assert all(metric.low <= value <= metric.high for value in (good, bad))


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("auroc", "auroc"),
        ("val/nll", "nll"),
        ("validation/balanced_accuracy", "balanced_accuracy"),
        ("robustness/worst_shift_quadratic_kappa", "quadratic_kappa"),
        ("robustness/worst_cell_accuracy", "accuracy"),
        ("calibration/mean_shifted_ece", "ece"),
        ("calibration/worst_shift_brier_scaled", "brier_scaled"),
        ("external/north/site/brier", "brier"),
        ("shift/gaussian_noise/accuracy", "accuracy"),
        ("num_parameters", "num_parameters"),
        ("external/mean_balanced_accuracy", "balanced_accuracy"),
        ("external/worst_nll", "nll"),
        ("id/dice", "dice"),
        ("robustness/mean_dice", "dice"),
        ("robustness/worst_shift_hd95", "hd95"),
        ("external/chase_db1/cl_dice", "cl_dice"),
        ("external/mean_pixel_sensitivity", "pixel_sensitivity"),
        ("calibration/mean_shifted_band_ece", "band_ece"),
        ("shift/gaussian_noise/nsd", "nsd"),
        ("class_1/id/missed", "missed"),
    ],
)
def test_a_headline_number_has_the_metric_it_ends_with(column: str, name: str) -> None:
    assert find_metric(column).name == name
    assert is_higher_better(column) == (
        name.partition("_")[0] not in ("nll", "ece", "brier", "num", "hd95", "band", "missed")
    )


@pytest.mark.parametrize(
    "name", ["aurc", "val/loss", "robustness/mean_hd99", "validation/my_accuracy", "accuracy/", ""]
)
def test_an_unknown_metric_is_an_error_and_never_better_when_higher(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one that ends with one of accuracy, balanced_accuracy"):
        is_higher_better(name)


@pytest.mark.parametrize("name", ["validation/my_accuracy", "robustness/mean_hd99", "external/a/aurc"])
def test_a_search_takes_no_metric_that_is_not_in_the_table(name: str) -> None:
    text = f"search: {{num_trials: 3, objectives: [{{metric: {name}, oracle: true}}]}}\n"
    with pytest.raises(StudyError, match="expected a headline number of a trial"):
        arms(text)


def test_errors_of_a_decision_are_not_named_calibration() -> None:
    assert (name_unshifted("hd95"), name_unshifted("pixel_nll")) == ("id/hd95", "calibration/pixel_nll")
    assert name_over_shifts("mean", "assd") == "robustness/mean_assd"
    assert name_over_shifts("worst_cell", "band_brier") == "calibration/worst_cell_band_brier"
    for name, metric in METRICS.items():
        assert metric.is_calibration == (not metric.higher_is_better), name


def test_a_classification_has_no_metric_of_a_segmentation() -> None:
    assert list_metrics_of("") == METRICS
    assert set(list_metrics_of("class_1")) == {"sensitivity", "auroc"}
    assert list_metrics_of("class_1", "segmentation") == SEGMENTATION_METRICS == list_metrics_of("", "segmentation")
    assert not set(SEGMENTATION_METRICS) & set(METRICS)


def test_the_page_of_metrics_is_the_table() -> None:
    page = runpy.run_path(str(ROOT / "docs/metrics.py"))["describe_metrics"]()
    committed = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert committed == page, "run python docs/metrics.py > docs/metrics.md"
    assert all(f"| `{name}` | {metric.title} |" in page for name, metric in METRICS.items())


def test_the_table_is_there_without_numpy() -> None:
    code = "import sys, trainables.evaluation.metrics; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
