from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.driver.prepare import prepare
from orchestrator.study.study_file import load_study
from orchestrator.templates.examples import copy_examples, find_examples
from orchestrator.templates.find_data import find_source
from orchestrator.templates.forms import CLASSIFICATION, SEGMENTATION
from orchestrator.templates.write_study import (
    MAX_EPOCHS,
    MAX_SIDE_CPU,
    MIN_EPOCHS,
    OVERHEAD_SECONDS,
    REPLICATES,
    choose_epochs,
    estimate_seconds,
    write_study,
)
from trainables.errors import DataError, RobustSweepError, StudyError


def write_images(
    folder: Path, *, side: int = 40, mode: str = "L", counts: tuple[int, int] = (30, 10), seed: int = 0
) -> None:
    """Write ``counts`` images of noise of two classes, named after patients of two images each."""
    rng = np.random.default_rng(seed)
    for label, count in zip(("sick", "well"), counts, strict=True):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            shape = (side, side + 9) if mode == "L" else (side, side + 9, 3)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{label}{number // 2:03}_{number % 2}.png")


def write_manifest(folder: Path) -> Path:
    """Write images and their manifest with patients and sites."""
    write_images(folder / "images", mode="RGB", counts=(20, 20))
    files = sorted((folder / "images").rglob("*.png"))
    path = folder / "manifest.csv"
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["file_name", "label", "group", "site"])
        for file in files:
            writer.writerow([file.relative_to(folder).as_posix(), file.parent.name, file.stem[:7], "lyon"])
    return path


def draw_pairs(images: Path, masks: Path, *, number: int = 12, values: tuple[int, ...] = (255,), end: str = "") -> None:
    """Write images of a bright disc in noise, and masks in which it has the values in turn."""
    rng = np.random.default_rng(0)
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    row, column = np.mgrid[:40, :48]
    for index in range(number):
        inside = (row - rng.integers(12, 28)) ** 2 + (column - rng.integers(12, 36)) ** 2 < 64
        pixels = np.where(inside, 160, 60) + rng.integers(0, 60, inside.shape)
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{index:02}.png")
        mask = np.where(inside, values[index % len(values)], 0).astype(np.uint8)
        Image.fromarray(mask).save(masks / f"{index:02}{end}.png")


@pytest.mark.parametrize("kind", ["usual names", "other names", "one folder"])
def test_images_with_masks_become_a_study_of_segmentations_that_plans(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "lungs"
    if kind == "usual names":
        draw_pairs(place / "images", place / "masks", end="_mask")
    elif kind == "other names":
        draw_pairs(place / "Img", place / "Labels", values=(1, 2))
    else:
        draw_pairs(place / "all", place / "all", end="_mask")
    out = tmp_path / "study.yaml"
    written = write_study(place, out, minutes=5, cache_dir=tmp_path / "cache", has_gpu=False)
    text, study = out.read_text(), load_study(out, [f"execution.cache_dir={tmp_path / 'cache'}"])
    assert written.num_trials == SEGMENTATION.num_arms * REPLICATES == len(study.arms()) * study.replicates
    assert study.task.kind == "segmentation"
    assert (study.data.image_size, study.data.channels, study.data.resize) == (32, 1, "pad")
    expected = {
        "usual names": ("path: lungs # add group_pattern", "classes: 2, in this order: background, foreground"),
        "other names": (
            "image_folder: Img\n  mask_folder: Labels",
            "mask_values: {0: background, 1: class-1, 2: class-2} # name the classes",
        ),
        "one folder": ("path: study-pairs.csv # a column group", "root: lungs\n"),
    }[kind]
    for words in (*expected, "patches_per_epoch: 160 #", "of all pixels are not background"):
        assert words in text
    plan = prepare(study, storage=str(tmp_path / "results")).plan
    assert len(plan.trials) == written.num_trials


def test_images_and_masks_that_may_be_told_apart_in_two_ways_are_refused(tmp_path: Path) -> None:
    def write(name: str) -> None:
        write_study(tmp_path / name, tmp_path / "s.yaml", minutes=5, cache_dir=tmp_path / "cache", has_gpu=False)

    for folder in ("images", "1st_manual", "mask"):  # as in DRIVE, where mask is the field of view
        (tmp_path / "drive" / "training" / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"found the folders 1st_manual, mask in .*; expected one"):
        write("drive")
    draw_pairs(tmp_path / "lone", tmp_path / "lone", end="_mask")
    (tmp_path / "lone" / "03_mask.png").unlink()
    with pytest.raises(DataError, match=r"found 11 pairs .*, and 1 files without a partner, the first .*03\.png"):
        write("lone")
    draw_pairs(tmp_path / "bad", tmp_path / "bad", end="_mask")
    (tmp_path / "bad" / "03.png").write_text("no image")
    with pytest.raises(DataError, match=r"03\.png"):
        write("bad")
    assert not list(tmp_path.glob("*.csv")), "no manifest is left behind"


def test_a_folder_becomes_a_study_that_can_be_read_and_says_what_is_in_it(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    out = tmp_path / "study.yaml"
    written = write_study(tmp_path / "images", out, minutes=5, cache_dir=tmp_path / "cache", has_gpu=False)
    text = out.read_text()
    study = load_study(out)
    assert study == written.study
    assert study.data.kind == "image_folder"
    assert (study.data.image_size, study.data.channels) == (32, 1)  # the largest usual side within 40 px
    assert study.data.path == tmp_path / "images"
    assert "path: images #" in text  # relative to the study file
    assert "classes: 2, in this order: sick, well" in text
    assert "add group_pattern" in text
    assert study.training.class_weights == "balanced"  # 30 against 10
    assert "on_leak" not in text
    assert len(study.arms()) * study.replicates == written.num_trials == CLASSIFICATION.num_arms * REPLICATES
    assert f"{max(written.seconds / 60, 1):.0f} min on" in text
    assert MIN_EPOCHS <= study.training.epochs <= MAX_EPOCHS


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (60, 32), (500, 256)])
def test_the_study_of_few_images_passes_all_checks_of_a_run(tmp_path: Path, count: int, batch: int) -> None:
    write_images(tmp_path / "images", counts=(count, count))
    out = tmp_path / "study.yaml"
    write_study(tmp_path / "images", out, minutes=5, cache_dir=tmp_path / "cache", has_gpu=False)
    study = load_study(out, [f"execution.cache_dir={tmp_path / 'cache'}"])
    plan = prepare(study, storage=str(tmp_path / "results")).plan
    (stage,) = plan.stages
    assert stage.config.pretraining.batch_size == batch  # type: ignore[union-attr]
    assert len(plan.trials) == CLASSIFICATION.num_arms * REPLICATES


def test_copies_across_sets_are_set_aside_with_the_reason(tmp_path: Path) -> None:
    for seed, (split, number) in enumerate({"train": 24, "val": 8, "test": 8}.items()):
        write_images(tmp_path / "images" / split, counts=(number, number), seed=seed)
    copied = (tmp_path / "images/train/sick/sick000_0.png").read_bytes()
    (tmp_path / "images/val/sick/sick000_0.png").write_bytes(copied)
    out = tmp_path / "study.yaml"
    write_study(tmp_path / "images", out, minutes=1, cache_dir=tmp_path / "cache", has_gpu=False)
    assert "on_leak: quarantine # 1 training image repeats an image of another set" in out.read_text()


def test_a_manifest_in_colour_with_patients_needs_no_advice_on_groups(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    out = tmp_path / "study.yaml"
    write_study(manifest, out, minutes=1, cache_dir=tmp_path / "cache", has_gpu=False)
    study, text = load_study(out), out.read_text()
    assert study.data.kind == "csv"
    assert study.data.channels == 3
    assert "path: manifest.csv\n" in text
    assert "class_weights" not in text


def test_an_npz_keeps_its_side_up_to_what_the_machine_can_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", train_images=np.zeros((4, 224, 224, 3), np.uint8))
    found = find_source(tmp_path / "mine.npz", max_side=MAX_SIDE_CPU)
    assert found == {
        "kind": "medmnist", "flag": "mine", "path": str(tmp_path / "mine.npz"), "image_size": 64, "channels": 3,
    }  # fmt: skip
    np.savez(tmp_path / "grey.npz", train_images=np.zeros((4, 28, 28), np.uint8))
    found = find_source(tmp_path / "grey.npz", max_side=MAX_SIDE_CPU)
    assert (found["image_size"], found["channels"]) == (28, 1)


def test_what_cannot_be_read_is_one_clear_error_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.csv").write_text("path,class\na.png,1\n")
    (tmp_path / "text.txt").write_text("")
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    for name, said in {
        "nowhere": "there is nothing at",
        "empty": "found no image in",
        "other.csv": "expected file_name and label",
        "text.txt": "expected a CSV manifest",
        "other.npz": "expected MedMNIST's arrays",
    }.items():
        with pytest.raises(DataError, match=said):
            write_study(tmp_path / name, tmp_path / "s.yaml", minutes=1, cache_dir=tmp_path / "cache", has_gpu=False)
    assert not (tmp_path / "s.yaml").exists()


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("mine")
    with pytest.raises(StudyError, match="is there already"):
        write_study(tmp_path, tmp_path / "study.yaml", minutes=1, cache_dir=tmp_path / "cache", has_gpu=False)
    assert (tmp_path / "study.yaml").read_text() == "mine"


def test_the_epochs_are_the_most_that_fit() -> None:
    # 72 trials of (e · 1 s + 2 s + overhead) and one stage of 4 e s on two slots.
    seconds = (72 * (10 * 1.0 + 2.0 + OVERHEAD_SECONDS) + CLASSIFICATION.stage_trials * 10) / 2
    assert estimate_seconds(CLASSIFICATION, 10, 1.0, 2.0, slots=2) == pytest.approx(seconds)
    assert choose_epochs(CLASSIFICATION, 1.0, 2.0, slots=2, seconds=seconds) == 10
    assert choose_epochs(CLASSIFICATION, 1.0, 2.0, slots=2, seconds=seconds - 1) == 9
    assert choose_epochs(CLASSIFICATION, 100.0, 2.0, slots=2, seconds=60) == MIN_EPOCHS
    assert choose_epochs(CLASSIFICATION, 0.001, 0.0, slots=2, seconds=3600) == MAX_EPOCHS


def test_the_shipped_studies_are_copied_and_can_be_read(tmp_path: Path) -> None:
    copies = copy_examples(tmp_path / "examples")
    assert [path.name for path in copies] == [path.name for path in find_examples()]
    assert "quickstart.yaml" in {path.name for path in copies}
    for path in copies:
        assert load_study(path).study
    copies[0].write_text("changed")
    with pytest.raises(StudyError, match="--force"):
        copy_examples(tmp_path / "examples")
    assert copies[0].read_text() == "changed"
    copy_examples(tmp_path / "examples", overwrite=True)
    assert copies[0].read_text() != "changed"


def test_the_commands_print_what_to_run_next(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["examples", str(tmp_path / "here")])
    assert result.exit_code == 0
    assert f"robustsweep run {tmp_path / 'here/quickstart.yaml'}" in result.output
    failed = CliRunner().invoke(app, ["init", "--from", str(tmp_path / "nowhere"), "--out", str(tmp_path / "s.yaml")])
    assert isinstance(failed.exception, RobustSweepError)
