"""Attribution metrics of one trained trial: baselines beside them, files, and what the plan makes of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.support.tiny_configs import tiny_trial
from trainables.config import Execution, TrialConfig
from trainables.data.dataset import Dataset
from trainables.data.load import load_dataset
from trainables.data.sources.lesion_masks import load_test_masks
from trainables.evaluation.attribution.evaluate import choose_scored, count_passes, read_attribution
from trainables.evaluation.attribution.mask_metrics import compute_relevance_mass
from trainables.evaluation.attribution.methods import ATTRIBUTION_METHODS
from trainables.evaluation.attribution.table import METHODS, split_attribution
from trainables.evaluation.metrics import ATTRIBUTION_METRICS, find_metric, is_higher_better
from trainables.evaluation_config import AttributionName
from trainables.storage.completeness import ATTRIBUTION
from trainables.storage.folder import Folder
from trainables.trial import run_trial

PHANTOM = {
    "kind": "phantom", "num_images": 200, "image_size": 32, "num_external_sites": 0, "near_duplicates": "ignore",
    "lesion_radius_px": [2.0, 6.0],
}  # fmt: skip


def phantom_trial(**attribution: Any) -> TrialConfig:
    return tiny_trial(
        data=PHANTOM,
        model={"name": "timm/test_resnet", "input_size": 32},
        training={"epochs": 1, "label_fraction": 1.0},
        evaluation={
            "shifts": [], "severities": [1], "store_features": False,
            "attribution": {"methods": ["grad_cam", "integrated_gradients"], "images": 12, **attribution},
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def execution(cache_dir: Path) -> Execution:
    return Execution(device="cpu", cache_dir=cache_dir)


@pytest.fixture(scope="module")
def phantom(cache_dir: Path) -> Dataset:
    return load_dataset(phantom_trial().data, cache_dir=cache_dir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, execution: Execution) -> tuple[Folder, dict[str, Any]]:
    folder = Folder(tmp_path_factory.mktemp("attributed"))
    return folder, run_trial(phantom_trial(), signature="mine", folder=folder, execution=execution)


def test_every_method_has_its_metrics_and_baselines(finished: tuple[Folder, dict[str, Any]]) -> None:
    metrics = finished[1]["metrics"]
    for method in ("grad_cam", "integrated_gradients"):
        for prefix in ("", "randomised_"):
            assert 0 <= metrics[f"attribution/{method}/{prefix}relevance_mass"] <= 1
            assert 0 <= metrics[f"attribution/{method}/{prefix}pointing_game"] <= 1
        assert 0 <= metrics[f"attribution/{method}/without_relevance"] <= 1
    gradients = "attribution/integrated_gradients"
    assert metrics[f"{gradients}/relevance_mass"] != metrics[f"{gradients}/randomised_relevance_mass"]
    assert metrics[f"{gradients}/without_relevance"] == 0
    assert "attribution/centre_prior/relevance_mass" in metrics
    assert not any(name.startswith("attribution/occlusion") for name in metrics)
    found = [name for name in metrics if name.startswith("attribution/")]
    assert all(find_metric(name) is ATTRIBUTION_METRICS[split_attribution(name)[2]] for name in found)  # type: ignore[index]


def test_the_file_holds_what_the_metrics_were_computed_from(
    finished: tuple[Folder, dict[str, Any]], phantom: Dataset
) -> None:
    folder, result = finished
    arrays = read_attribution(folder)
    test, metrics = phantom.splits["test"], result["metrics"]
    assert ATTRIBUTION in result["files"]
    assert list(arrays["ids"]) == list(test.ids[arrays["rows"]])
    mass = arrays["scores/grad_cam/relevance_mass"]
    assert len(mass) == 12
    assert mass.mean() == pytest.approx(metrics["attribution/grad_cam/relevance_mass"])
    assert test.masks is not None
    masks = np.asarray(test.masks)[arrays["rows"]] > 0
    assert np.array_equal(arrays["masks"] > 0, masks[:3])
    small = (arrays["components/area_px"] < 25) & (arrays["components/area_px"] >= 1)
    shares = arrays["shares/grad_cam/"][small].sum() / (arrays["components/area_px"][small] / 32**2).sum()
    assert shares == pytest.approx(metrics["attribution/grad_cam/concentration_below_25"], rel=1e-5)
    maps = arrays["maps/grad_cam"].astype(np.float32)
    assert maps.shape == (3, 32, 32)
    has = maps.any(axis=(1, 2))
    assert has.tolist() == (arrays["scores/grad_cam/without_relevance"][:3] == 0).tolist()
    assert compute_relevance_mass(maps[has], masks[:3][has]) == pytest.approx(mass[:3][has], abs=0.02)  # of 8 bits


def test_evaluating_again_gives_the_same_numbers(finished: tuple[Folder, dict[str, Any]], execution: Execution) -> None:
    folder, result = finished
    again = run_trial(phantom_trial(), signature="mine", folder=folder, execution=execution)
    assert again["metrics"] == result["metrics"]


def test_scored_images_have_lesions_and_a_smaller_sample_is_part_of_a_larger(phantom: Dataset, cache_dir: Path) -> None:
    masks = load_test_masks(phantom, phantom_trial().data, cache_dir=cache_dir)
    test = phantom.splits["test"]
    every, few = (choose_scored(test, masks, count) for count in (1000, 5))
    assert (test.labels[every] > 0).all()
    assert len(every) == (test.labels > 0).sum()
    assert few.tolist() == every[:5].tolist()


def test_nothing_is_computed_unless_it_is_asked_for(tmp_path: Path, execution: Execution) -> None:
    config = tiny_trial(evaluation={"shifts": [], "severities": [1], "store_features": False}, training={"epochs": 1})
    result = run_trial(config, signature="mine", folder=Folder(tmp_path), execution=execution)
    assert not any(name.startswith("attribution") for name in [*result["metrics"], *result["files"]])


def test_passes_are_counted_with_the_random_weights_and_backward_passes() -> None:
    asked = phantom_trial(methods=["grad_cam", "occlusion"], images=7).evaluation.attribution
    assert count_passes(asked) == 2 * 7 * (3 * 1 + 225)
    assert count_passes(None) == 0


def test_names_and_directions_of_the_metrics() -> None:
    assert get_args(AttributionName) == METHODS
    assert set(METHODS) == set(ATTRIBUTION_METHODS)
    assert split_attribution("attribution/grad_cam/randomised_pointing_game") == (
        "grad_cam", "randomised_", "pointing_game",
    )  # fmt: skip
    assert split_attribution("attribution/centre_prior/randomised_pointing_game") is None
    assert split_attribution("attribution/lrp/pointing_game") is None
    assert is_higher_better("attribution/occlusion/concentration_above_400")
