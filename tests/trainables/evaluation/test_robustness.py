from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.tiny_configs import NETWORK, random_dataset
from trainables.config import EvaluationConfig, Execution
from trainables.errors import ConfigError
from trainables.evaluation.classification import compute_metrics
from trainables.evaluation.predictions import Predictions, load_predictions, predict
from trainables.evaluation.robustness import (
    Evaluation,
    check_shifts,
    choose_shifts,
    choose_validation_shifts,
    evaluate_model,
    list_sets,
    summarise_predictions,
    summarise_rows,
)
from trainables.evaluation.validation_fit import fit_on_validation
from trainables.model_config import ModelConfig
from trainables.models.networks import Classifier, build_model
from trainables.seeding import hash_ids, mix
from trainables.shifts.bank import DEFAULT_NAMES
from trainables.shifts.wording import check_shift_names
from trainables.storage.folder import Folder

CONFIG = EvaluationConfig(shifts=("gaussian_noise", "saturation", "contrast_down"), severities=(2, 5))
SHIFTED = ("gaussian_noise/2", "gaussian_noise/5", "contrast_down/2", "contrast_down/5")


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build_model(ModelConfig(name=NETWORK), num_classes=3, channels=1, image_size=16)


def evaluate(model: Classifier, folder: Folder, config: EvaluationConfig = CONFIG, batch_size: int = 10) -> Evaluation:
    data = random_dataset()
    execution = Execution(cache_dir=Path(folder.uri) / "cache", evaluation_batch_size=batch_size)
    evaluate_model(model, data, config, folder=folder, execution=execution, precision=torch.float32)
    shifts, _ = choose_shifts(data, config)
    return summarise_predictions(
        [load_predictions(folder, name) for name in ("val", "test", "elsewhere")],
        strengths={f"{shift.name}/{shift.severity}": shift.strength for shift in shifts},
        ece_bins=15,
        ordinal=True,
    )


def test_shifts_that_do_nothing_in_grey_images_are_left_out_and_said() -> None:
    shifts, left_out = choose_shifts(random_dataset(), EvaluationConfig())
    names = {shift.name for shift in shifts}
    assert names == {"identity", *DEFAULT_NAMES} - {"saturation"}
    assert list(left_out) == ["shift/saturation"]
    assert "grey images" in left_out["shift/saturation"]
    shifts, left_out = choose_shifts(random_dataset(channels=3), EvaluationConfig())
    assert {shift.name for shift in shifts} == {"identity", *DEFAULT_NAMES}
    assert left_out == {}


def test_every_remaining_shift_changes_grey_images() -> None:
    data = random_dataset()
    images = torch.from_numpy(data.splits["test"].images)
    seeds = mix(torch.from_numpy(hash_ids(data.splits["test"].ids)), "shift", 0)
    for shift in choose_shifts(data, EvaluationConfig(severities=(5,)))[0]:
        assert torch.equal(shift.apply(images, seeds), images) == (shift.name == "identity"), shift


def test_an_unknown_shift_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.shifts: found 'gausian_noise'.*did you mean 'gaussian_noise'"):
        choose_shifts(random_dataset(), EvaluationConfig(shifts=("gausian_noise",)))


def test_identity_is_the_clean_evaluation(model: Classifier, tmp_path: Path) -> None:
    evaluation = evaluate(model, Folder(tmp_path))
    test = random_dataset().splits["test"]
    clean, _ = predict(model, test, batch_size=10, precision=torch.float32)
    stored = load_predictions(Folder(tmp_path), "test")
    assert np.array_equal(stored.of("identity/0"), clean)
    row = next(row for row in evaluation.rows if row["set"] == "test" and row["shift"] == "identity")
    validation = load_predictions(Folder(tmp_path), "val")
    fit = fit_on_validation(validation.of("identity/0"), validation.labels)
    assert row["metrics"] == compute_metrics(clean, test.labels, ordinal=True, fit=fit).values
    assert evaluation.validation_fit == fit.as_json()
    assert row["strength"] == 0.0


def test_what_is_stored(model: Classifier, tmp_path: Path) -> None:
    evaluation = evaluate(model, Folder(tmp_path))
    data = random_dataset()
    for name, images, shifts in (
        ("val", data.splits["val"], ("identity/0",)),
        ("test", data.splits["test"], ("identity/0", *SHIFTED)),
        ("elsewhere", data.external["elsewhere"], ("identity/0",)),
    ):
        stored = load_predictions(Folder(tmp_path), name)
        assert stored.shifts == shifts
        assert stored.ids.tolist() == images.ids.tolist()
        assert np.array_equal(stored.labels, images.labels)
        assert stored.groups is not None
        assert np.array_equal(np.unique(images.groups)[stored.groups], images.groups)
        assert stored.logits.shape == (len(shifts), len(images), 3)
        assert stored.features is not None
        assert stored.features.shape == (len(images), model.num_features)
        assert stored.shifted_features is None
    assert len(evaluation.rows) == 7
    assert len({row["strength"] for row in evaluation.rows if row["set"] == "test"}) == 5
    logits = load_predictions(Folder(tmp_path), "test").logits
    assert all(not np.array_equal(logits[0], shifted) for shifted in logits[1:])


def test_shifted_images_do_not_depend_on_the_batch(model: Classifier, tmp_path: Path) -> None:
    evaluate(model, Folder(tmp_path / "one"), batch_size=7)
    evaluate(model, Folder(tmp_path / "two"), batch_size=24)
    first, second = (load_predictions(Folder(tmp_path / name), "test").logits for name in ("one", "two"))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_another_seed_is_another_noise_and_nothing_else(model: Classifier, tmp_path: Path) -> None:
    evaluate(model, Folder(tmp_path / "one"))
    evaluate(model, Folder(tmp_path / "two"), CONFIG.model_copy(update={"shift_seed": 1, "store_features": ()}))
    first, second = (load_predictions(Folder(tmp_path / name), "test") for name in ("one", "two"))
    assert not np.array_equal(first.of("gaussian_noise/2"), second.of("gaussian_noise/2"))
    assert np.array_equal(first.of("contrast_down/5"), second.of("contrast_down/5"))
    assert second.features is None


def row(name: str, shift: str, severity: int = 1, **metrics: float) -> dict:
    return {"set": name, "shift": shift, "severity": severity, "metrics": metrics}


def test_validation_images_are_shifted_by_their_own_seeds_and_summarised(model: Classifier, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"validation_shifts": ("gaussian_noise", "saturation", "snow")})
    evaluation = evaluate(model, Folder(tmp_path), config)
    stored, images = load_predictions(Folder(tmp_path), "val"), random_dataset().splits["val"]
    assert stored.shifts == ("identity/0", "gaussian_noise/2", "gaussian_noise/5", "snow/2", "snow/5")
    seeds = mix(torch.from_numpy(hash_ids(images.ids)), "shift", 0)
    shifted = choose_validation_shifts(random_dataset(), config)[0][1].apply(torch.from_numpy(images.images), seeds)
    again, _ = predict(model, replace(images, images=shifted.numpy()), batch_size=10, precision=torch.float32)
    np.testing.assert_allclose(stored.of("gaussian_noise/2"), again, rtol=1e-4, atol=1e-5)
    correct = stored.logits.argmax(axis=2) == images.labels
    noise, snow = correct[1:3].mean(), correct[3:].mean()
    found = evaluation.metrics
    assert found["validation/accuracy"] == pytest.approx(correct[0].mean())
    assert found["validation/robustness/mean_accuracy"] == pytest.approx((noise + snow) / 2)
    assert found["validation/robustness/worst_shift_accuracy"] == pytest.approx(min(noise, snow))
    assert found["validation/robustness/worst_cell_accuracy"] == pytest.approx(correct[1:].mean(axis=1).min())
    assert "validation/calibration/mean_shifted_ece" in found
    # What is said of test images, and what was fitted, does not depend on it.
    plain = evaluate(model, Folder(tmp_path / "plain"))
    assert {name: value for name, value in found.items() if not name.startswith("validation/")} == {
        name: value for name, value in plain.metrics.items() if not name.startswith("validation/")
    }
    assert evaluation.validation_fit == plain.validation_fit
    assert not [name for name in plain.metrics if name.startswith("validation/robustness")]


def test_a_shift_that_the_study_defines_is_known_on_validation_by_its_name() -> None:
    own = ({"name": "dusk", "op": "brightness_down", "strengths": [0.4, 0.1]},
           {"compose": ["gaussian_noise", "jpeg"], "name": "noisy_jpeg"})  # fmt: skip
    config = EvaluationConfig(shifts=own, severities=(1, 5), validation_shifts=("noisy_jpeg", "dusk", "snow"))
    shifts = choose_validation_shifts(random_dataset(), config)[0][1:]
    assert [f"{shift.name}/{shift.severity}" for shift in shifts] == [
        "noisy_jpeg/1", "noisy_jpeg/5", "dusk/1", "dusk/2", "snow/1", "snow/5",
    ]  # fmt: skip
    assert {shift.strength for shift in shifts if shift.name == "dusk"} == {0.4, 0.1}
    groups = choose_validation_shifts(random_dataset(), EvaluationConfig(shifts=(), validation_shifts=("all",)))
    assert groups[0] == choose_shifts(random_dataset(), EvaluationConfig())[0]
    assert list(groups[1]) == ["validation/shift/saturation"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["gausian_noise"], r"evaluation.validation_shifts: found 'gausian_noise'.*did you mean 'gaussian_noise'"),
        (["snow", "snow"], r"evaluation.validation_shifts: .*snow"),
        (["saturation"], r"evaluation.validation_shifts: found 1 shifts, none of which changes anything in grey"),
    ],
)
def test_wrong_shifts_of_validation_are_refused(names: list[str], message: str) -> None:
    config = EvaluationConfig(validation_shifts=tuple(names))
    with pytest.raises(ConfigError, match=message):
        check_shifts(random_dataset(), config)
    if names != ["saturation"]:  # the images are not looked at here
        with pytest.raises(ConfigError, match=message):
            check_shift_names(config, "general")


def test_headline_numbers_by_hand() -> None:
    headline = summarise_rows(
        [
            row("test", "identity", accuracy=0.9, auroc=0.95, ece=0.05, quadratic_kappa=0.8),
            row("test", "jpeg", accuracy=0.7, auroc=0.9, ece=0.2),
            row("test", "pixelate", 1, accuracy=0.6, auroc=0.8, ece=0.3),
            row("test", "pixelate", 2, accuracy=0.4, auroc=0.6, ece=0.5),
            row("test", "stain_h1_e2", accuracy=0.9, auroc=0.9, ece=0.1),
            row("test", "stain_h2_e1", accuracy=0.1, auroc=0.9, ece=0.3),
            row("val", "identity", accuracy=0.92),
            row("val", "jpeg", 1, accuracy=0.8, ece=0.1),
            row("val", "jpeg", 3, accuracy=0.6, ece=0.3),
            row("val", "snow", accuracy=0.5),
            row("Messidor", "identity", accuracy=0.6, ece=0.3),
        ]
    )
    assert headline == pytest.approx(
        {
            "id/accuracy": 0.9,
            "id/auroc": 0.95,
            "id/quadratic_kappa": 0.8,
            "calibration/ece": 0.05,
            "robustness/mean_accuracy": (0.7 + 0.5 + 0.5) / 3,
            "robustness/worst_cell_accuracy": 0.1,
            "robustness/worst_shift_accuracy": 0.5,
            "robustness/mean_auroc": (0.9 + 0.7 + 0.9) / 3,
            "robustness/worst_cell_auroc": 0.6,
            "robustness/worst_shift_auroc": 0.7,
            "calibration/mean_shifted_ece": (0.2 + 0.4 + 0.2) / 3,
            "calibration/worst_cell_ece": 0.5,
            "calibration/worst_shift_ece": 0.4,
            "validation/accuracy": 0.92,
            "validation/robustness/mean_accuracy": 0.6,
            "validation/robustness/worst_cell_accuracy": 0.5,
            "validation/robustness/worst_shift_accuracy": 0.5,
            "external/Messidor/accuracy": 0.6,
            "external/Messidor/ece": 0.3,
            "external/mean_accuracy": 0.6,
            "external/mean_ece": 0.3,
        }
    )


def summarise(predictions: Predictions) -> Evaluation:
    alike, labels = np.zeros((1, 4, 2), dtype=np.float32), np.array([0, 1, 0, 1])
    alike[0, :, 1] = (-1.0, 1.0, 2.0, 1.0)  # two of three right: a finite temperature
    validation = Predictions("val", predictions.ids, labels, ("identity/0",), alike)
    return summarise_predictions([predictions, validation], strengths={}, ece_bins=15, ordinal=True)


def test_undefined_metrics_are_said_once_and_absent() -> None:
    shifts = ("identity/0", "jpeg/1", "jpeg/2")
    logits = np.tile(np.float32([[[3.0, 0.0]]]), (3, 4, 1))
    predictions = Predictions("test", np.arange(4).astype(str), np.zeros(4, dtype=np.int64), shifts, logits)
    evaluation = summarise(predictions)
    lacking = ("auroc", "quadratic_kappa", "sensitivity_at_specificity_95", "sensitivity_at_sensitivity_95")
    absent = {f"{prefix}{metric}" for prefix in ("id/", "robustness/mean_") for metric in lacking}
    assert set(evaluation.undefined) == absent
    assert not absent & evaluation.metrics.keys()
    assert evaluation.undefined["robustness/mean_auroc"] == "no image of class 1 (counted from 0)"
    evaluation = summarise(replace(predictions, name="Messidor", shifts=shifts[:1], logits=logits[:1]))
    assert set(evaluation.undefined) == {f"external/Messidor/{metric}" for metric in lacking}


def test_there_is_no_mean_over_fewer_shifts() -> None:
    logits = np.tile(np.float32([[[3.0, 0.0]]]), (3, 4, 1))
    logits[2, 0] = (0.0, 3.0)
    predictions = Predictions(
        "test", np.arange(4).astype(str), np.zeros(4, dtype=np.int64), ("identity/0", "jpeg/1", "jpeg/2"), logits
    )
    evaluation = summarise(predictions)
    assert not [name for name in evaluation.metrics if name.startswith("robustness") and name.endswith("kappa")]
    assert "under 1 of 2 shifts × severities" in evaluation.undefined["robustness/mean_quadratic_kappa"]


def test_features_of_shifts_training_images_and_other_sources_are_stored_on_request(
    model: Classifier, tmp_path: Path
) -> None:
    data = random_dataset()
    digits = replace(data.splits["test"], name="digits", labels=np.full(len(data.splits["test"]), -1))
    data = replace(data, ood={"digits": digits})
    config = CONFIG.model_copy(update={"store_features": ("train", "test", "ood", "shifts")})
    folder, execution = Folder(tmp_path), Execution(cache_dir=tmp_path / "cache", evaluation_batch_size=10)
    evaluate_model(model, data, config, folder=folder, execution=execution, precision=torch.float32)
    assert list_sets(data, config) == ["val", "test", "elsewhere", "digits", "train"]
    found = {name: load_predictions(folder, name) for name in list_sets(data, config)}
    size = model.num_features
    assert {name: None if each.features is None else each.features.shape for name, each in found.items()} == {
        "val": None,
        "test": (len(digits), size),
        "elsewhere": None,
        "digits": (len(digits), size),
        "train": (len(data.splits["train"]), size),
    }
    test = found["test"]
    assert test.shifted_features is not None
    assert test.shifted_features.shape == (len(SHIFTED), len(digits), size)
    assert np.array_equal(test.features_of("identity/0"), found["digits"].features)
    noisy = test.features_of("gaussian_noise/5")
    assert noisy is not None
    assert not np.array_equal(noisy, test.features)
    with torch.inference_mode():
        logits = model.head(torch.from_numpy(noisy).float()).numpy()
    np.testing.assert_allclose(logits, test.of("gaussian_noise/5"), atol=0.02)
    assert found["digits"].labels.tolist() == [-1] * len(digits)
