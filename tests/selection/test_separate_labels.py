"""The export of a segmentation whose data sets have classes of their own (``data.labels: separate``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.analysis.results import load_results
from orchestrator.cli.trial import run_single
from orchestrator.driver.prepare import prepare
from orchestrator.ledger.ledger import Ledger
from orchestrator.selection.export import Exported, export_selection
from orchestrator.selection.ranking import SelectionCriteria, select_arm
from orchestrator.study.study_file import load_study
from trainables.config import read_trial_config
from trainables.data.dataset import UNCOUNTED, Dataset, ImageSet
from trainables.data.load import load_dataset
from trainables.errors import ConfigError
from trainables.evaluation.segmentation.cases import average_cases
from trainables.evaluation.segmentation.stored import SegmentedSet, load_segmented
from trainables.exported.folder import load_exported
from trainables.exported.segmenter import ImageSegmenter
from trainables.storage.folder import Folder

TEXT = """\
study: heads
question: Does one network for two organs need long?
task: {kind: segmentation, depth: 3, width: 16, patch_size: 24, patches_per_epoch: 16}
data:
  kind: datasets
  labels: separate
  image_size: 32
  datasets:
    ct: {kind: organs, organ: ct, num_images: 20}
    us: {kind: organs, organ: ultrasound, num_images: 20, seed: 1}
model: {name: timm/test_resnet}
training: {epochs: 2, batch_size: 8, learning_rate: 5e-3}
evaluation: {shifts: [gaussian_noise], severities: [3]}
execution: {cache_dir: CACHE}
"""


@dataclass(frozen=True)
class Heads:
    """A trained trial, its images, and its export as it was read back."""

    data: Dataset
    test: SegmentedSet
    exported: Exported
    model: ImageSegmenter

    def classes_of(self, data_set: str) -> list[int]:
        """Return the indices of a data set's classes, the background first."""
        return sorted({0, *self.data.annotated[data_set]})

    def select(self, data_set: str) -> tuple[np.ndarray, ImageSet]:
        """Return the rows of a data set among the test images, and these with targets among its classes alone."""
        images, own = self.data.splits["test"], self.classes_of(data_set)
        rows = np.flatnonzero(self.test.sources == self.data.components.index(data_set))
        lut = np.full(256, UNCOUNTED, dtype=np.uint8)
        lut[own] = np.arange(len(own))
        assert images.targets is not None
        named = {name: getattr(images, name)[rows] for name in ("images", "labels", "ids", "groups", "sites")}
        return rows, replace(images, **named, targets=lut[images.targets[rows]], metadata={}, masks=None)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Heads:
    folder = tmp_path_factory.mktemp("heads")
    (folder / "heads.yaml").write_text(TEXT.replace("CACHE", str(cache_dir)))
    study = load_study(folder / "heads.yaml")
    prepared = prepare(study, storage=str(folder))
    prepared.ledger.write_plan(prepared.plan, prepared.about)
    (work,) = prepared.plan.works
    run_single(study, work.signature, storage=str(folder), echo=lambda line: None)
    ledger = Ledger(str(folder), "heads")
    results = load_results(ledger)
    selection = select_arm(results, SelectionCriteria())
    exported = export_selection(ledger, results, selection, out=Folder(folder / "out"), cache_dir=cache_dir, onnx=True)
    config = read_trial_config(results.records[work.signature].config["config"])
    model = load_exported(folder / "out")
    assert isinstance(model, ImageSegmenter)
    test = load_segmented(ledger.folder("trial", work.signature), "test")
    return Heads(load_dataset(config.data, cache_dir=cache_dir), test, exported, model)


def test_an_export_has_the_outputs_of_all_data_sets_and_says_whose_they_are(heads: Heads) -> None:
    assert heads.model.config.classes == heads.data.classes
    assert all(name == "background" or name.startswith(("ct:", "us:")) for name in heads.data.classes)
    pixels = heads.model.config.pixels
    assert pixels is not None
    assert pixels.data_sets == ("ct", "us")
    assert {name: set(pixels.annotated[name]) for name in pixels.data_sets} == {
        name: {place for place, each in enumerate(heads.data.classes) if each == "background" or each.startswith(name)}
        for name in pixels.data_sets
    }
    card = heads.exported.folder.read("README.md").decode()
    assert r"They have classes of their own: segment(images, data\_set) tells pixels apart among its." in card
    assert all(name in card for name in heads.data.classes)


def test_the_head_of_each_data_set_draws_the_masks_of_the_trial(heads: Heads) -> None:
    stored, graph = heads.exported.checks
    assert (stored.difference, stored.num_same_class) == (0.0, stored.num_images)
    assert graph.num_same_class == graph.num_images  # with the outputs of all data sets in competition
    assert heads.test.predicted is not None
    for data_set in ("ct", "us"):
        rows, images = heads.select(data_set)
        assert len(rows) == 4
        masks = heads.model.segment(torch.from_numpy(np.array(images.images)), data_set).numpy()
        np.testing.assert_array_equal(masks, heads.test.predicted[rows])
        assert {*np.unique(masks)} <= {*heads.classes_of(data_set)}
        assert len(np.unique(masks)) > 1, "a network that says nothing but background shows nothing"


def test_the_head_of_another_data_set_answers_in_its_own_classes(heads: Heads) -> None:
    pixels = torch.from_numpy(np.array(heads.data.splits["test"].images))
    logits = heads.model(pixels)
    assert logits.shape[1] == len(heads.data.classes)
    for data_set in ("ct", "us"):
        own = heads.classes_of(data_set)
        expected = np.array(own)[logits[:, own].argmax(1).numpy()]
        np.testing.assert_array_equal(heads.model.segment(pixels, data_set).numpy(), expected)
    np.testing.assert_array_equal(heads.model.segment(pixels).numpy(), logits.argmax(1).numpy())


def test_new_images_of_a_data_set_are_judged_by_its_head(heads: Heads) -> None:
    for data_set in ("ct", "us"):
        rows, images = heads.select(data_set)
        names = [heads.data.classes[place] for place in heads.classes_of(data_set)]
        found = heads.model.evaluate([images], names, data_set=data_set)
        shown = [heads.test.classes.index(name) for name in names[1:]]
        dice = heads.test.metrics["dice"][0][rows][:, shown]
        assert found.metrics.values["dice"] == pytest.approx(average_cases(dice), abs=1e-6)
        assert found.counts["num_cases"] == 4
        with pytest.raises(ConfigError, match="expected the same names"):
            heads.model.evaluate([images], names, data_set="us" if data_set == "ct" else "ct")
