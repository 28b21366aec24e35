"""The chosen segmentation: by which images, as a folder that needs no study, in MLflow."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.analysis.results import Results, load_results
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection.export import CONTENTS, Exported, export_selection
from orchestrator.selection.ranking import Selection, SelectionCriteria, select_arm
from orchestrator.selection.registry import register_model
from orchestrator.study.study_file import load_study
from orchestrator.tracking.registry.models import default_store
from orchestrator.tracking.shipper import sync
from tests.support.mlflow_stores import make_database
from tests.support.organs_study import TEXT
from trainables.config import read_trial_config
from trainables.data.load import load_dataset
from trainables.errors import CheckpointError, ConfigError, StudyError
from trainables.evaluation.ood import fix_rejection
from trainables.evaluation.segmentation.cases import average_cases
from trainables.evaluation.segmentation.stored import load_segmented
from trainables.exported.folder import load_exported
from trainables.exported.segmenter import ImageSegmenter
from trainables.storage.folder import Folder

OF_CT = SelectionCriteria(by="dataset/ct/dice")


@pytest.fixture(scope="module")
def results(organs: Path) -> Results:
    return load_results(Ledger(str(organs), "organs"))


@pytest.fixture(scope="module")
def ledger(organs: Path) -> Ledger:
    return Ledger(str(organs), "organs")


@pytest.fixture(scope="module")
def exported(
    ledger: Ledger, results: Results, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Selection, Exported]:
    selection = select_arm(results, OF_CT)
    out = Folder(tmp_path_factory.mktemp("exported") / "out")
    return selection, export_selection(ledger, results, selection, out=out, cache_dir=cache_dir, onnx=True)


def read(ledger: Ledger, signature: str, name: str) -> Any:
    return load_segmented(ledger.folder("trial", signature), name)


def test_arms_that_are_trained_on_different_data_sets_are_compared_on_one(results: Results, ledger: Ledger) -> None:
    with pytest.raises(StudyError, match=r"by val/dice, .* do not compare; .*: dataset/ct/dice, dataset/us/dice"):
        select_arm(results, SelectionCriteria())
    with pytest.raises(StudyError, match=r"by id/dice, .* do not compare"):
        select_arm(results, SelectionCriteria(by="id/dice", oracle=True))
    chosen = select_arm(results, OF_CT)
    assert chosen.column == "validation/dataset/ct/dice"
    assert chosen.chooser == "in-distribution validation"
    for arm in chosen.ranking:
        values = []
        for signature in results.trials[results.trials["name"] == arm.name]["signature"]:
            stored = read(ledger, signature, "val")
            values.append(average_cases(stored.metrics["dice"][0][stored.sources == 0]))
        assert arm.mean == pytest.approx(np.mean(values))
        assert arm.n == 2
    of_us = select_arm(results, SelectionCriteria(by="dataset/us/dice"))
    assert [arm.n for arm in of_us.ranking] == [2, 0], "what is not trained on it has no such validation images"
    oracle = select_arm(results, SelectionCriteria(by="dataset/us/dice", oracle=True))
    assert (oracle.column, [arm.n for arm in oracle.ranking]) == ("dataset/us/dice", [2, 2])


def test_the_loaded_network_draws_the_masks_of_the_trial(
    exported: tuple[Selection, Exported], results: Results, ledger: Ledger, cache_dir: Path, tmp_path: Path
) -> None:
    selection, done = exported
    check = done.checks[0]
    assert check.num_images == check.num_same_class
    assert check.difference == 0.0
    shutil.copytree(done.folder.uri, tmp_path / "elsewhere")
    model = load_exported(tmp_path / "elsewhere")
    assert isinstance(model, ImageSegmenter)
    config = read_trial_config(results.records[selection.signature].config["config"])
    data = load_dataset(config.data, cache_dir=cache_dir)
    for images in (data.splits["test"], data.splits["val"], *data.external.values()):
        stored = read(ledger, selection.signature, images.name)
        pixels = torch.from_numpy(np.array(images.images))
        np.testing.assert_array_equal(model.segment(pixels).numpy(), stored.predicted)
        for name, confidences in model.rate_foreign(pixels).items():
            np.testing.assert_allclose(confidences, stored.scores[name][0], rtol=1e-4, atol=1e-6)
    validation = read(ledger, selection.signature, "val").scores["spectral_signature"][0]
    threshold = fix_rejection(validation)
    assert model.config.pixels is not None
    assert model.config.pixels.thresholds["spectral_signature"] == pytest.approx(threshold)
    pixels = torch.from_numpy(np.array(data.splits["val"].images))
    assert model.is_foreign(pixels).sum() == (validation < threshold).sum() == 1
    with pytest.raises(ConfigError, match="expected one of spectral_signature, mahalanobis, knn, intensity_histogram"):
        model.is_foreign(pixels, "nonsense")
    with pytest.raises(ConfigError, match="found the data set 'mr' for a network that was made for 'ct'"):
        model.segment(pixels, "mr")


def test_the_folder_is_whole_and_says_what_was_measured(exported: tuple[Selection, Exported], results: Results) -> None:
    selection, done = exported
    assert set(done.folder.children()) == set(done.files) == set(CONTENTS)
    card = done.folder.read("README.md").decode()
    assert "pipeline_tag: image-segmentation" in card
    assert "gives every pixel of RGB images, brought to 32 px (crop), one of: background, foreground" in card
    assert "Windows of 24 px that share 0.5 of their side" in card
    assert "mask = model.segment(images)" in card
    rows = results.complete[results.complete["name"] == selection.arm.name]
    for name in ("ct", "us"):
        line = next(line for line in card.splitlines() if line.startswith(f"| test images of {name} |"))
        cells = [cell.strip().replace("\u00a0", " ") for cell in line.split("|")][2:-1]
        dice, hd95, ece = (rows[f"dataset/{name}/{metric}"] for metric in ("dice", "hd95", "pixel_ece"))
        assert cells[0] == "4"
        assert cells[1] == f"{100 * dice.mean():.1f} ± {100 * dice.std():.1f} %"
        assert cells[2] == f"{hd95.mean():.2f} ± {hd95.std():.2f}"
        assert cells[4] == f"{100 * ece.mean():.1f} ± {100 * ece.std():.1f} %"
        own = rows[rows["signature"] == selection.signature][f"dataset/{name}/dice"].iloc[0]
        assert cells[-1] == f"{100 * own:.1f} %"
    assert re.search(r"\| foreground \| \d+ \|", card)
    assert "alanced accuracy" not in card
    said = json.loads(done.folder.read("selection.json"))
    assert said["column"] == "validation/dataset/ct/dice"
    assert said["checks"][1]["what"] == "model.onnx against model.safetensors"


def test_a_reference_of_other_weights_is_refused(exported: tuple[Selection, Exported], tmp_path: Path) -> None:
    from trainables.storage.checkpoint import save_weights

    _, done = exported
    shutil.copytree(done.folder.uri, tmp_path / "out")
    save_weights(Folder(tmp_path / "out"), "reference.safetensors", {}, {"weights_sha256": "0" * 64})
    with pytest.raises(CheckpointError, match="it belongs to the weights 0000"):
        load_exported(tmp_path / "out")


def test_the_registered_version_answers_as_the_folder_does(
    exported: tuple[Selection, Exported], ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(ledger.storage, tmp_path / "results")
    copy, uri = Ledger(str(tmp_path / "results"), "organs"), make_database(tmp_path, tmp_path / "empty.db")
    sync(copy, uri)
    selection, done = exported
    told: list[str] = []
    registered = register_model(uri, copy, selection, done, name="organs", alias="best", write_line=told.append)
    assert (registered.version, registered.is_new) == ("1", True)
    assert registered.check.num_images == registered.check.num_same_class == 8
    with default_store(uri):
        module = mlflow.pytorch.load_model("models:/organs@best")
    with torch.no_grad():
        masks = module(torch.from_numpy(done.images[:3])).argmax(1).numpy()
    np.testing.assert_array_equal(masks, done.logits[:3].argmax(1))


def test_the_model_of_a_study_is_registered_at_its_end_unless_arms_do_not_compare(
    tmp_path: Path, cache_dir: Path
) -> None:
    text = TEXT.replace("CACHE}", f"{cache_dir}, register: best}}")
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"execution.register: found best, and arms that are trained on different"):
        prepare(load_study(tmp_path / "s.yaml"), storage=str(tmp_path))
    factor = "{ct: {data.train_on: [ct]}, both: {data.train_on: [ct, us]}}"
    assert factor in text
    text = text.replace(factor, "{ct: {training.learning_rate: 0.001}, both: {training.learning_rate: 0.002}}")
    (tmp_path / "s.yaml").write_text(text)
    prepare(load_study(tmp_path / "s.yaml"), storage=str(tmp_path))
