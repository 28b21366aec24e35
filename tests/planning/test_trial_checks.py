"""Settings that cannot work are refused before anything runs; networks, weights and shifts are tried once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.driver.prepare import prepare
from orchestrator.planning.inputs import Inputs
from orchestrator.planning.trial_checks import check_trials, find_distinct
from orchestrator.study.study_file import parse_study
from tests.support.small_data import DIGITS
from trainables.config import TrialConfig
from trainables.errors import ConfigError, DataError, StudyError

SPLITS = ("train", "train", "val", "test")


def write_manifest(folder: Path, leave_out: Any = lambda row, split: False) -> Path:
    """Write 48 images of two classes, without the rows that are left out."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    lines = ["file_name,label,split,group"]
    for row in range(48):
        split = SPLITS[row // 2 % 4]
        if not leave_out(row, split):
            Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{row}.png")
            lines.append(f"{row}.png,{row % 2},{split},p{row}")
    (folder / "m.csv").write_text("\n".join(lines))
    return folder / "m.csv"


def check(tmp_path: Path, manifest: Path, *overrides: str) -> None:
    text = f"study: s\ndata: {{kind: csv, path: {manifest}, image_size: 8}}\ntraining: {{batch_size: 8}}\n"
    always = [f"execution.cache_dir={tmp_path / 'cache'}"]
    prepare(parse_study(text, source="s.yaml", overrides=[*always, *overrides]), storage=str(tmp_path / "results"))


def test_a_sound_study_passes(tmp_path: Path) -> None:
    check(tmp_path, write_manifest(tmp_path / "d"), "training.select_by=auroc", "evaluation.shifts=[jpeg, stain-grid]")


def test_auroc_cannot_select_where_validation_lacks_a_class(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "d", lambda row, split: split == "val" and row % 2 == 1)
    check(tmp_path, manifest)
    with pytest.raises(StudyError, match=r"training.select_by: found auroc, and no validation image is of class 1"):
        check(tmp_path, manifest, "training.select_by=auroc")


def test_a_test_set_of_one_class_tells_nothing_apart(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "d", lambda row, split: split == "test" and row % 2 == 0)
    with pytest.raises(StudyError, match="every test image is of class '1'"):
        check(tmp_path, manifest)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.shifts=[gausian_noise]", "did you mean 'gaussian_noise'"),
        ("evaluation.shifts=[blur]", "evaluation.shifts: found 'blur'"),
        ("training.batch_size=64", "there are 24 training images"),
    ],
)
def test_wrong_names_and_sizes_are_named(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=message):
        check(tmp_path, write_manifest(tmp_path / "d"), override)


def test_mc_dropout_is_refused_before_anything_runs_where_a_network_has_no_dropout(tmp_path: Path) -> None:
    def check_text(rest: str) -> None:
        text = f"study: s\ndata: {{kind: digits, image_size: 8}}\nevaluation: {{mc_dropout: 5, shifts: []}}\n{rest}"
        study = parse_study(text, source="s.yaml", overrides=[f"execution.cache_dir={tmp_path / 'cache'}"])
        prepared = prepare(study, storage=str(tmp_path / "results"))
        check_trials(prepared.open_configs, prepared.inputs)

    check_text("model: {name: shufflenet_v2_x0_5}\nregulariser: dropout\n")
    check_text("model: {name: mobilenet_v3_small}\n")
    with pytest.raises(ConfigError, match=r"evaluation.mc_dropout: looked for dropout .* add regulariser: dropout"):
        check_text("model: {name: shufflenet_v2_x0_5}\nfactors: {regulariser: [dropout, none]}\n")


def test_no_severity_is_no_evaluation(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"evaluation\.severities"):
        check(tmp_path, write_manifest(tmp_path / "d"), "evaluation.severities=[]")


def test_the_plan_says_how_the_data_were_understood(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "d")
    (tmp_path / "s.yaml").write_text(
        f"study: s\ndata: {{kind: csv, path: {manifest}, image_size: 8}}\ntraining: {{batch_size: 8}}\n"
        f"execution: {{cache_dir: {tmp_path / 'cache'}}}\n"
    )
    words = [sys.executable, "-m", "robustsweep", "plan", str(tmp_path / "s.yaml"), "--no-pilot"]
    done = subprocess.run([*words, "--storage", str(tmp_path)], capture_output=True, text=True, check=True)
    for line in ("classes: 2, in this order: 0, 1", "train: 24 images: 0 12, 1 12", "groups: one per image"):
        assert line in done.stdout
    as_json = subprocess.run([*words, "--storage", str(tmp_path), "--json"], capture_output=True, text=True, check=True)
    assert json.loads(as_json.stdout)["counts"]["planned"] == 1


def test_damaged_data_are_named_by_the_command(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "d")
    (tmp_path / "d" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3.png \(row 5\)"):
        check(tmp_path, manifest)


# ------------------------------------------------------------------ networks, weights and shifts


def try_out(cache_dir: Path, *overrides: str) -> None:
    study = parse_study(DIGITS, source="s.yaml", overrides=[f"execution.cache_dir={cache_dir}", *overrides])
    check_trials([arm.config for arm in study.arms()], Inputs(cache_dir))


def test_groups_of_a_contrastive_batch_that_are_too_small_are_refused_before_anything_runs(cache_dir: Path) -> None:
    """MoCo's eight groups need 16 images, and a network without batch normalisation has no groups."""
    step = "pretraining={kind: contrastive, batch_size: 15, method: {kind: moco, queue_size: 32}}"
    with pytest.raises(ConfigError, match=r"found 15 images in a batch.*_groups: 8, .* expected 16 images"):
        try_out(cache_dir, step)
    try_out(cache_dir, step.replace("15", "16"))
    try_out(cache_dir, step, "model.name=timm/test_convnext", "model.input_size=32")


def test_batch_normalisation_over_one_value_is_refused(cache_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.batch_size: found 1, .* at 8 px .*expected at least 2"):
        try_out(cache_dir, "training.batch_size=1")


@pytest.mark.parametrize(
    "override",
    [
        "training.batch_size=2",
        "training.backbone_learning_rate_factor=0",  # a frozen network keeps its statistics
        "model={name: squeezenet1_1, input_size: 32}",  # no normalisation
        "model.input_size=64",  # four values of each image
    ],
)
def test_one_image_is_a_batch_where_nothing_is_normalised_over_it(override: str, cache_dir: Path) -> None:
    try_out(cache_dir, "training.batch_size=1", override)


def test_trials_are_told_apart_by_what_is_tried() -> None:
    pretraining = {"kind": "imagenet", "file": "a.pth"}
    same = [{}, {"training": {"learning_rate": 0.1}}, {"augmentation": {"kind": "strong"}}]
    others = [
        {"training": {"batch_size": 1}},
        {"training": {"backbone_learning_rate_factor": 0.0}},
        {"pretraining": pretraining},
        {"pretraining": {"kind": "contrastive", "init": pretraining}},
    ]
    distinct = find_distinct(TrialConfig.model_validate(sections) for sections in [*same, *others])
    assert len(distinct) == 1 + len(others)


@pytest.mark.parametrize("kind", ["imagenet", "contrastive"])
def test_weights_that_do_not_fit_are_refused_before_anything_runs(kind: str, tmp_path: Path, cache_dir: Path) -> None:
    import torch

    file = tmp_path / "w.pth"
    imagenet = f"{{kind: imagenet, file: {file}}}"
    pretraining = imagenet if kind == "imagenet" else f"{{kind: contrastive, init: {imagenet}}}"
    file.write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"pretraining: read .*w.pth and found no plain state dict"):
        try_out(cache_dir, f"pretraining={pretraining}")
    torch.save({"conv1.weight": torch.zeros(3)}, file)
    with pytest.raises(ConfigError, match="expected the weights of the same architecture"):
        try_out(cache_dir, f"pretraining={pretraining}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=timm/nonsense", "nonsense"),
        ("regulariser=stochastic_depth", "which it does not have"),
        ("regulariser=stain_normalisation", "images of 1 channel, expected RGB"),
    ],
)
def test_what_the_network_or_the_images_lack_is_refused(override: str, message: str, cache_dir: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        try_out(cache_dir, override)


def test_a_stain_that_the_training_images_lack_is_refused(cache_dir: Path) -> None:
    regulariser = "regulariser={kind: stain_normalisation, target: training}"
    with pytest.raises(ConfigError, match=r"regulariser.target: looked for stained tissue"):
        try_out(cache_dir, "data.channels=3", regulariser)


def test_shifts_that_leave_grey_images_unchanged_are_no_evaluation(cache_dir: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"evaluation.shifts: found 99 shifts, none of which changes anything in grey"
    ):
        try_out(cache_dir, "evaluation.shifts=stain-grid")
    try_out(cache_dir, "evaluation.shifts=[jpeg, stain-grid]")
    try_out(cache_dir, "evaluation.shifts=[]")


@pytest.mark.parametrize("op", ["{op: fog, strengths: [[1, 0]]}", "{op: zoom_blur, strengths: [[1.1, 0]]}"])
def test_an_own_shift_that_fails_is_found_before_the_training(op: str, cache_dir: Path) -> None:
    shift = op.replace("{", "{name: dusk, ")
    with pytest.raises(ConfigError, match=r"evaluation.shifts: applied dusk .*ZeroDivisionError"):
        try_out(cache_dir, f"evaluation.shifts=[{shift}]")
