"""A study of volumes with thick slices, trained for real, from its file to its report; what is refused of it."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.analysis.results import load_results
from orchestrator.analysis.segmentation.cases import Case, Cases, find_worst, load_cases
from orchestrator.analysis.segmentation.panels import choose_slice, paint_panels
from orchestrator.cli.trial import run_single
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.planning.trial_checks import check_trials
from orchestrator.report.sections.segmentation.pictures import draw_cases
from orchestrator.report.write import write_report
from orchestrator.study.study_file import load_study
from tests.support.volumes import write_balls, write_dark_balls
from trainables.data.dataset import UNCOUNTED
from trainables.data.load import load_dataset
from trainables.data.segmentation.extents import find_extents
from trainables.errors import RobustSweepError
from trainables.evaluation.segmentation.stored import load_segmented
from trainables.evaluation.segmentation.surface import measure_surfaces

pytest.importorskip("nibabel", reason="NIfTI is read by nibabel: pip install 'robustsweep[medical]'")
TEXT = """\
study: balls
question: Do flips help?
task: {kind: segmentation, patch_size: [8, 16, 16], depth: 3, width: 32, patches_per_epoch: 24, tolerance: 1}
data: {kind: decathlon, path: BALLS, dimensions: 3, channels: 1}
model: {name: monai/unet}
training: {epochs: 3, batch_size: 4, learning_rate: 1e-2}
regulariser: {kind: dropout, probability: 0.1}
evaluation:
  shifts: [gaussian_noise, contrast_down]
  severities: [3]
  mc_dropout: 2
  foreign: {others: {data: {kind: decathlon, path: OTHERS, dimensions: 3}, role: far}}
factors:
  flips:
    none: {augmentation.kind: none}
    all: {augmentation.horizontal_flip: true, augmentation.vertical_flip: true, augmentation.slice_flip: true}
hypotheses:
- {name: h, claim: They help., treatment: {flips: all}, control: {flips: none}, direction: higher,
   smallest_effect: 0, over: shifts, metric: robustness/mean_dice}
execution: {cache_dir: CACHE}
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("volumes")
    balls, others = write_balls(root / "balls"), write_dark_balls(root / "others")
    return TEXT.replace("BALLS", str(balls)).replace("OTHERS", str(others)).replace("CACHE", str(root / "cache"))


@pytest.fixture(scope="module")
def ledger(text: str, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    path = tmp_path_factory.mktemp("study")
    (path / "balls.yaml").write_text(text)
    study = load_study(path / "balls.yaml")
    prepared = prepare(study, storage=str(path))
    prepared.ledger.write_plan(prepared.plan, prepared.about)
    for work in prepared.plan.works:
        run_single(study, work.signature, storage=str(path), echo=lambda line: None)
    return Ledger(str(path), "balls")


@pytest.fixture(scope="module")
def result(ledger: Ledger) -> dict[str, Any]:
    found = next(each for each in ledger.read_plan()["trials"] if each["name"] == "flips=none")
    return {"signature": found["signature"], **ledger.folder("trial", found["signature"]).read_json("result.json")}


@pytest.fixture(scope="module")
def cache_dir(text: str) -> Path:
    return Path(re.findall(r"cache_dir: (\S+)}", text)[0])


@pytest.fixture(scope="module")
def cases(ledger: Ledger) -> Cases:
    found = load_cases(load_results(ledger), ledger, "flips=none")
    assert found is not None
    return found


def test_balls_are_found_and_distances_are_in_mm(ledger: Ledger, result: dict[str, Any], cache_dir: Path) -> None:
    data = load_dataset(load_study_data(ledger, result), cache_dir=cache_dir)
    test = data.splits["test"]
    stored = load_segmented(ledger.folder("trial", result["signature"]), "test")
    assert stored.predicted is not None
    assert stored.areas is not None
    assert test.targets is not None
    assert stored.predicted.shape == test.targets.shape
    dice, hd95 = [], []
    for row, extent in enumerate(find_extents(test)):
        box = tuple(slice(0, side) for side in extent)
        predicted, target = stored.predicted[(row, *box)], test.targets[(row, *box)]
        assert not (target == UNCOUNTED).any()
        assert not stored.predicted[row, extent[0] :].any()
        both = int((predicted * target).sum())
        dice.append(2 * both / int(predicted.sum() + target.sum()))
        found = measure_surfaces(
            predicted[None], target[None], foreground=[1], spacing=np.array([[5.0, 1.0, 1.0]]), tolerance_mm=1.0
        )
        hd95.append(found["hd95"][0, 0])
        assert stored.areas[row, 0] == pytest.approx([5.0 * predicted.sum(), 5.0 * target.sum()])  # mm³
    assert result["metrics"]["id/dice"] == pytest.approx(np.mean(dice))
    assert stored.metrics["hd95"][0, :, 0] == pytest.approx(hd95)
    assert min(dice) > 0.5
    assert "cl_dice" not in stored.metrics
    assert result["undefined"]["id/cl_dice"] == "it is a metric of images, not of volumes"


def load_study_data(ledger: Ledger, result: dict[str, Any]) -> Any:
    from trainables.config import read_trial_config

    return read_trial_config(ledger.folder("trial", result["signature"]).read_json("config.json")["config"]).data


def test_scores_and_detectors_judge_volumes(ledger: Ledger, result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    for score in ("predictive_entropy.foreground", "mc_dropout_entropy.worst_patch", "spectral_signature", "knn"):
        assert np.isfinite(metrics[f"failure/{score}/augrc"]), score
    for detector in ("spectral_signature", "mahalanobis", "knn", "intensity_histogram"):
        assert metrics[f"ood/{detector}/others/auroc"] == 1.0
    others = load_segmented(ledger.folder("trial", result["signature"]), "others")
    assert others.predicted is not None
    assert others.predicted.shape[1:] == (8, 24, 24)  # 12 × 12 voxels of 2 mm, at the spacing of the study
    assert {row["shift"] for row in result["evaluations"]} == {"identity", "gaussian_noise", "contrast_down"}
    assert all(0 < metrics[f"calibration/{region}_ece"] < 0.5 for region in ("pixel", "band"))
    assert 0.5 < metrics["id/nsd"] < 1


def test_the_report_shows_the_worst_slice(ledger: Ledger, cases: Cases, cache_dir: Path) -> None:
    report = write_report(ledger, cache_dir=cache_dir)
    text = html.unescape(re.sub(r"<[^>]+>", " ", Path(report.html).read_text()))
    assert re.search(r"· slice \d of 9", text)
    worst = find_worst(load_results(ledger), cases, cache_dir, number=1)[0]
    wrong = ((worst.target != worst.predicted) & (worst.target != UNCOUNTED)).sum(axis=(1, 2))
    number = choose_slice(worst.target, worst.predicted)
    assert wrong[number] == wrong.max()
    painted = paint_panels(worst.image, worst.target, worst.predicted, worst.entropy)
    flat = paint_panels(worst.image[:, number], worst.target[number], worst.predicted[number], worst.entropy[number])
    assert all(np.array_equal(painted[name], flat[name]) for name in flat)
    assert f"slice {number + 1} of 9" in draw_cases([worst])


def test_of_a_volume_without_errors_the_largest_section_is_shown_and_else_the_centre() -> None:
    target = np.zeros((5, 4, 4), dtype=np.uint8)
    target[1, :2, :2], target[3] = 1, 1
    assert choose_slice(target, target) == 3
    assert choose_slice(None, target) == 3
    assert choose_slice(None, np.zeros_like(target)) == 2
    assert "slice" not in draw_cases([Case("a", "test", 1.0, target[None, 0], target[0], target[0], target[0])])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("shifts: [gaussian_noise,", "shifts: [snow,", r"evaluation.shifts: found snow with volumes"),
        ("patch_size: [8, 16, 16],", "", r"task.patch_size: found none with volumes of up to 9 × 24 × 24 voxels"),
        ("patch_size: [8, 16, 16]", "patch_size: [8, 32, 32]", r"task.patch_size: found 8 × 32 × 32 voxels"),
        ("patch_size: [8, 16, 16]", "patch_size: [8, 18, 16]", r"expected multiples of 1 × 4 × 4"),
        ("tolerance: 1}", "tolerance: 1, inference: whole}", r"task.inference: found whole with volumes"),
        ("monai/unet", "resnet18", r"model.name: found resnet18 with volumes"),
        ("mean_dice", "mean_cl_dice", "cl_dice is a metric of images, and the data are volumes"),
        ("monai/unet}", "monai/unet, memory_format: channels_last}", "model.memory_format: found channels_last"),
        ("flips:\n", "flips:\n    mix: {augmentation.kind: augmix}\n", r"augmentation: found augmix"),
        (
            "flips:\n",
            "flips:\n    net: {pretraining: {kind: imagenet, weights: default}}\n",
            "pretraining: found other than random weights with volumes",
        ),
        (
            "{kind: decathlon, path: OTHERS, dimensions: 3}",
            "{kind: digits, test_fraction: 0.02}",
            "evaluation.foreign: found images in others",
        ),
        ("dimensions: 3, channels: 1}\nmodel", "channels: 1, window: [128, 256]}\nmodel", "augmentation.slice_flip"),
    ],
)
def test_what_volumes_cannot_have_is_refused_before_anything_runs(
    old: str, new: str, message: str, text: str, tmp_path: Path
) -> None:
    others = re.findall(r"path: (\S+others)", text)[0]
    found = text.replace(old.replace("OTHERS", others), new)
    assert found != text
    (tmp_path / "s.yaml").write_text(found)
    with pytest.raises(RobustSweepError, match=message):
        check_plan(tmp_path / "s.yaml")


def check_plan(path: Path) -> None:
    prepared = prepare(load_study(path), storage=str(path.parent))
    check_trials(prepared.open_configs, prepared.inputs)


def test_the_plan_is_readable_as_json(ledger: Ledger) -> None:
    assert json.loads(json.dumps(ledger.read_plan()))["data"]["num_images"] == {"train": 6, "val": 2, "test": 2}
