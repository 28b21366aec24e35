"""Settings that fail in every trial, or change nothing in any, are refused by plan without a pilot."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.driver.prepare import prepare
from orchestrator.study.study_file import parse_study
from tests.support.small_data import DIGITS, PHANTOM
from trainables.errors import ConfigError, RobustSweepError


def plan(tmp_path: Path, cache_dir: Path, text: str, *overrides: str) -> None:
    study = parse_study(text, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    prepare(study, storage=str(tmp_path / "results"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.warmup_epochs=3"], r"training.warmup_epochs: found 3 of 2 training.epochs"),
        (["training.warmup_epochs=2"], r"training.warmup_epochs: found 2 of 2 training.epochs"),
        (["regulariser={kind: weight_decay, weight: 2000}"], r"regulariser.weight: found 2000 .* a product below 2"),
        (
            ["regulariser={kind: weight_decay, weight: 4000}", "training.optimiser=sgd"],
            r"regulariser.weight: found 4000 .* a product below 3.8",
        ),
        (["training.precision=bfloat16", "execution.device=cpu"], r"training.precision: found bfloat16 with"),
        (["training.label_fraction=1e-9"], r"leaves no training image of class 0, 1, 2, 3, 4, 5;"),
        (["regulariser={kind: label_smoothing, epsilon: 1}"], r"regulariser.epsilon: found 1"),
        (["regulariser=group_dro"], r"found site, by which all training images are one group"),
        (["regulariser={kind: group_dro, group_by: [scanner]}"], r"found scanner, expected class, site"),
        (
            ["regulariser={kind: group_dro, group_by: [class]}", "training.class_weights=balanced"],
            r"found group_dro and training.class_weights",
        ),
        (["regulariser={kind: spectral_decoupling, weight: [1, 1]}"], r"found 2 values, expected one or 10"),
        (["regulariser={kind: spectral_decoupling, gamma: []}"], r"gamma: found 0 values, expected one or 10"),
        (["regulariser={kind: combined, spectral_decoupling: {weight: [1]}}"], r"found 1 values, expected one or 10"),
        (["evaluation.shifts=[jpeg, jpeg_compression]"], r"evaluation.shifts: jpeg is listed more than once"),
        (["evaluation.severities=[1, 1]"], r"evaluation.severities: 1 is listed more than once"),
        (["evaluation.shifts=medmnist-c"], r"no table for the modality 'general'"),
        (["evaluation.shifts=[{compose: [jpeg/1, snow/9]}]"], r"found 'snow/9', expected snow with a severity"),
        (["evaluation.shifts=[{name: dusk, op: jepg, strengths: [5]}]"], r"\[0\].op: found 'jepg'"),
    ],
    ids=str,
)
def test_what_cannot_work_is_named(overrides: list[str], message: str, tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(RobustSweepError, match=message):
        plan(tmp_path, cache_dir, DIGITS, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.warmup_epochs=1.9"],
        ["regulariser={kind: weight_decay, weight: 1000}"],
        ["regulariser={kind: weight_decay, weight: 3000}", "training.optimiser=sgd"],
        ["training.precision=bfloat16", "execution.device=cuda"],
        ["training.label_fraction=0.01"],  # one image of each class
        ["training.label_fraction=0.1", "training.batch_size=512"],  # one batch an epoch
        ["regulariser={kind: group_dro, group_by: [class]}"],
        ["evaluation.modality=fundus", "evaluation.shifts=medmnist-c"],
    ],
    ids=str,
)
def test_what_can_work_passes(overrides: list[str], tmp_path: Path, cache_dir: Path) -> None:
    plan(tmp_path, cache_dir, DIGITS, *overrides)


def test_group_dro_needs_two_groups(tmp_path: Path, cache_dir: Path) -> None:
    plan(tmp_path, cache_dir, PHANTOM, "regulariser=group_dro")
    with pytest.raises(RobustSweepError, match="all training images are one group"):
        plan(tmp_path, cache_dir, PHANTOM, "regulariser=group_dro", "data.num_sites=1")


def test_a_weights_file_is_the_one_that_was_named(tmp_path: Path, cache_dir: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"weights")
    file = f"kind: imagenet, file: {tmp_path / 'w.pth'}"
    plan(tmp_path, cache_dir, DIGITS, f"pretraining={{{file}}}")
    with pytest.raises(RobustSweepError, match=r"pretraining.weights: found IMAGENET1K_V1 beside pretraining.file"):
        plan(tmp_path, cache_dir, DIGITS, f"pretraining={{{file}, weights: IMAGENET1K_V1}}")
    with pytest.raises(ConfigError, match=r"pretraining.file_sha256: expected abc, and .*w.pth has"):
        plan(tmp_path, cache_dir, DIGITS, f"pretraining={{{file}, file_sha256: abc}}")
